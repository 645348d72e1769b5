"""One rule in every dialect that targets speak: what is sent, what is left out, what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dialects import chat, thoughts
from appliance.dialects.answer import Outbound
from appliance.dialects.bedrock.outbound import Bedrock
from appliance.dialects.cohere_outbound import COHERE
from appliance.dialects.gemini_outbound import GEMINI, VERTEX
from appliance.dialects.messages.outbound import AnthropicOutbound
from appliance.dialects.openai_outbound import OpenAIOutbound, Quirks
from appliance.dialects.openai_reader import OpenAIReader
from appliance.dialects.responses.outbound import ResponsesOutbound
from appliance.dialects.translating import EFFORTS, nearest
from appliance.errors import BadRequest
from appliance.providers.catalogue import row
from runtimes.engine import Delta
from tests.dialects.anthropic_shapes import complaints
from tests.dialects.chat_requests import CLOCK, USER, asked, requests

OPENROUTER = OpenAIOutbound(Quirks(reasoning_back="reasoning_details"))
TARGETS: list[tuple[Outbound, str]] = [
    (OpenAIOutbound(), "m"),
    (OPENROUTER, "m"),
    (ResponsesOutbound(), "m"),
    (AnthropicOutbound(), "claude-opus-4-5"),
    (AnthropicOutbound(), "claude-opus-5-5"),
    (Bedrock(), "anthropic.claude-sonnet-4-5"),
    (Bedrock(), "amazon.nova-2-lite-v1:0"),
    (GEMINI, "gemini-3.5-flash"),
    (VERTEX, "gemini-2.5-pro"),
    (COHERE, "command-a"),
]
each_target = pytest.mark.parametrize(
    ("outbound", "model"), TARGETS, ids=[f"{outbound.name}-{model}" for outbound, model in TARGETS]
)


@each_target
@given(request_=requests(), stream=st.booleans())
def test_whatever_is_asked_is_sent_or_refused_by_name(
    outbound: Outbound, model: str, request_: chat.ChatRequest, stream: bool
) -> None:
    try:
        ask = outbound.ask(request_, model, stream=stream)
    except BadRequest as error:
        assert error.param is not None
        assert error.param.split("[")[0].split(".")[0] in chat.ChatRequest.__struct_fields__
        assert error.param in error.message
        return
    body = json.loads(ask.body)
    if outbound.name == "anthropic":
        assert complaints("CreateMessageParams", body) == []


@each_target
def test_names_marks_and_details_fail_nobody(outbound: Outbound, model: str) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    kept = {"cache_control": {"type": "ephemeral"}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": [{"type": "text", "text": "s", **kept}], "name": "rules"},
        {**USER, "name": "ann"},
        {"role": "assistant", "content": "x", "tool_calls": [call], "name": "bot"},
        {"role": "tool", "tool_call_id": "c1", "content": "1", "is_error": True, "name": "clock"},
    ]
    body = outbound.ask(asked(messages, tools=[{**CLOCK, **kept}]), model, stream=False).body
    assert (b'"ann"' in body) is (outbound.name == "openai")
    assert (b"cache_control" in body) is (outbound.name == "anthropic")


FOREIGN = [
    "gemini:call:c1:SECRET",
    "gemini:text::SECRET",
    "openai-responses:rs_1:SECRET",
    "reasoning-details:xai-responses-v1::SECRET",
    "outpost-data:SECRET",
    "outpost-signature:SECRET",
    "SECRET",
]
OWNERS = {
    "gemini:call:c1:SECRET": {"gemini", "vertex"},
    "gemini:text::SECRET": {"gemini", "vertex"},
    "openai-responses:rs_1:SECRET": {"responses"},
    "reasoning-details:xai-responses-v1::SECRET": {"openai"},
    "SECRET": {"anthropic", "bedrock", "openai"},
}


@pytest.mark.parametrize("data", FOREIGN)
@each_target
def test_thoughts_go_back_to_their_maker_alone(outbound: Outbound, model: str, data: str) -> None:
    as_data = {"type": "reasoning.encrypted", "data": data.replace("SECRET", "U0VDUkVU")}
    call = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    said = {"role": "assistant", "content": "x", "tool_calls": [call], "reasoning_details": [as_data]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "1"}
    body = outbound.ask(asked([USER, said, result], tools=[CLOCK]), model, stream=False).body
    takes = outbound.name in OWNERS.get(data, set())
    if outbound.name == "openai" and outbound is not OPENROUTER:
        takes = False
    if "nova" in model:
        takes = False
    assert (b"U0VDUkVU" in body) is takes
    assert not any(mark.encode() in body for mark in (thoughts.DETAILS, thoughts.CARRIED_DATA, thoughts.GEMINI))
    if not (data == "SECRET" and outbound.name == "openai"):
        signed = {"type": "reasoning.text", "text": "hm", "signature": f"{data}x"}
        said = {**said, "reasoning_details": [signed]}
        body = outbound.ask(asked([USER, said, result], tools=[CLOCK]), model, stream=False).body
        assert b"outpost-" not in body
        assert b"gemini:" not in body


@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=3)), max_size=5), st.data())
def test_thoughts_that_come_back_in_pieces_are_whole_again(blocks: list[tuple[str, str]], data: st.DataObject) -> None:
    whole, pieces = [], []
    for at, (text, rest) in enumerate(blocks):
        signature = "sig" + rest
        whole.append((text, signature, ""))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=3)))
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            pieces.append({"type": "reasoning.text", "text": text[start:end], "index": at})
        pieces.append({"type": "reasoning.text", "text": "", "signature": signature, "index": at})
    assert [tuple(each) for each in thoughts.anthropics(pieces)] == whole
    assert thoughts.merged(thoughts.merged(pieces)) == thoughts.merged(pieces)


def test_blocks_of_a_format_find_their_way_back() -> None:
    block = {"type": "reasoning.encrypted", "data": "abc", "format": "openai-responses-v1", "id": "rs_1"}
    reader = OpenAIReader("t", asked())
    chunk = {"choices": [{"index": 0, "delta": {"reasoning_details": [block]}}]}
    (delta,) = reader.feed(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    assert isinstance(delta, Delta)
    assert thoughts.marked(delta.reasoning_data)
    assert thoughts.unmarked([{"type": "reasoning.encrypted", "data": delta.reasoning_data}]) == [block]


@given(
    st.sampled_from(EFFORTS),
    st.lists(st.sampled_from(EFFORTS), min_size=1, unique=True).map(lambda some: sorted(some, key=EFFORTS.index)),
)
def test_the_nearest_effort(effort: str, takes: list[str]) -> None:
    found = nearest(effort, takes)
    assert found in takes
    if effort in takes:
        assert found == effort
    elif effort != "none" and takes != ["none"]:
        assert found != "none"


def test_efforts_of_openais_models_are_data() -> None:
    facts = row("openai").facts
    for model, asked_for, sent in (
        ("gpt-5", "xhigh", "high"),
        ("gpt-5.4", "xhigh", "xhigh"),
        ("gpt-5.1", "minimal", "low"),
        ("gpt-5-pro", "low", "high"),
        ("gpt-5", "none", "minimal"),
        ("unheard-of", "xhigh", "xhigh"),
    ):
        outbound = OpenAIOutbound(efforts=facts(model).efforts)
        body = json.loads(outbound.ask(asked(reasoning_effort=asked_for), model, stream=False).body)
        assert body["reasoning_effort"] == sent


@each_target
def test_what_a_route_may_drop_is_what_is_refused(outbound: Outbound, model: str) -> None:
    values: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.5, "top_k": 5, "seed": 1, "min_p": 0.5, "repetition_penalty": 1.5,
        "presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": {"1": 1}, "logprobs": True, "n": 2,
        "stop": "x", "verbosity": "low", "parallel_tool_calls": False,
    }  # fmt: skip
    refused = set()
    for field, value in values.items():
        try:
            outbound.ask(asked(tools=[CLOCK], **{field: value}), model, stream=False)
        except BadRequest as error:
            assert error.param == field
            refused.add(field)
    assert refused - {"n"} == outbound.unknown(model) - {"n"}


def test_one_call_at_a_time_is_asked_for_where_it_can_be() -> None:
    """Of all others no more than the first call is given: see test_custom_tools."""
    request = asked(tools=[CLOCK], parallel_tool_calls=False)
    for outbound, model in TARGETS:
        body = outbound.ask(request, model, stream=False).body
        assert (b"parallel_tool" in body) is not (outbound.name in ("gemini", "vertex", "cohere") or "nova" in model)
