"""Requests to providers of OpenAI's family: what goes out as it is, and what a provider's quirks make of it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dialects import chat, completions, embeddings
from appliance.dialects.openai_outbound import OpenAIOutbound, Quirks
from appliance.errors import UnsupportedParameter

USER = {"role": "user", "content": "Hi"}
PLAINLY = Quirks()
PLAIN: dict[str, Any] = {"model": "m", "messages": [USER]}


def sent(quirks: Quirks = PLAINLY, *, stream: bool = False, **fields: Any) -> dict[str, Any]:
    """The body for a chat with these fields."""
    request = chat.parse(json.dumps({**PLAIN, **fields}).encode())
    ask = OpenAIOutbound(quirks).ask(request, "target", stream=stream)
    assert ask.path == "chat/completions"
    body: dict[str, Any] = json.loads(ask.body)
    return body


def messages(quirks: Quirks, *given: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sent(quirks, messages=list(given))["messages"]
    return found


def test_a_plain_chat() -> None:
    assert sent() == {"model": "target", "messages": [USER]}
    counted = {"stream": True, "stream_options": {"include_usage": True}}
    assert sent(stream=True) == {"model": "target", "messages": [USER], **counted}
    # Whether the answer is streamed is the gateway's choice, whatever the client asked for.
    streamed = chat.parse(json.dumps({**PLAIN, "stream": True, "stream_options": {"include_usage": True}}).encode())
    assert json.loads(OpenAIOutbound().ask(streamed, "target", stream=False).body) == sent()
    assert sent(Quirks(usage_in_streams="always"), stream=True) == {
        "model": "target",
        "messages": [USER],
        "stream": True,
    }


def test_the_other_operations() -> None:
    outbound = OpenAIOutbound(
        Quirks(rename={"max_tokens": "most"}, token_limit="max_completion_tokens"),
        {"embeddings": "vectors", "completions": "deployments/{model}/completions?api-version=1"},
    )
    text = completions.parse(b'{"model":"m","prompt":"x","max_tokens":0,"user":"u","stop":["a"]}')
    ask = outbound.ask(text, "a/b", stream=True)
    assert ask.path == "deployments/a%2Fb/completions?api-version=1"
    assert json.loads(ask.body) == {
        "model": "a/b",
        "prompt": "x",
        "most": 0,
        "stop": ["a"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    vectors = embeddings.parse(b'{"model":"m","input":[[1,2]],"encoding_format":"base64","user":"u"}')
    ask = outbound.ask(vectors, "e", stream=False)
    assert (ask.path, json.loads(ask.body)) == (
        "vectors",
        {"model": "e", "input": [[1, 2]], "encoding_format": "base64"},
    )


NO_OPS = {
    "user": "u",
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "modalities": ["text"],
}


@given(st.frozensets(st.sampled_from(sorted(NO_OPS))))
def test_fields_without_effect_go_only_to_who_takes_them(taken: frozenset[str]) -> None:
    body = sent(Quirks(pass_on=taken), **NO_OPS)
    assert {field: value for field, value in body.items() if field in NO_OPS} == {
        field: NO_OPS[field] for field in taken
    }


@pytest.mark.parametrize("given", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("taken", ["as_sent", "max_tokens", "max_completion_tokens"])
def test_the_most_tokens_have_the_one_name_that_is_known(given: str, taken: Any) -> None:
    body = sent(Quirks(token_limit=taken), **{given: 7})
    name = given if taken == "as_sent" else taken
    assert {field: body.get(field) for field in ("max_tokens", "max_completion_tokens") if field in body} == {name: 7}


def test_both_names_at_once() -> None:
    assert sent(Quirks(token_limit="max_tokens"), max_tokens=7, max_completion_tokens=7)["max_tokens"] == 7


def test_what_a_provider_leaves_out_renames_and_maps() -> None:
    quirks = Quirks(
        rename={"seed": "random_seed", "tool_choice": "tool_choice"},
        leave_out=frozenset({"parallel_tool_calls"}),
        values={"tool_choice": {"required": "any"}, "verbosity": {"high": None}},
        extra={"usage": {"include": True}},
    )
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = sent(quirks, seed=0, tools=tools, tool_choice="required", parallel_tool_calls=False, verbosity="high")
    assert body == {
        "model": "target",
        "messages": [USER],
        "random_seed": 0,
        "tools": tools,
        "tool_choice": "any",
        "usage": {"include": True},
    }


@pytest.mark.parametrize(
    ("field", "asks", "idle"),
    [
        ("n", 2, 1),
        ("seed", 0, None),
        ("logit_bias", {"1": 1}, {}),
        ("parallel_tool_calls", False, True),
        ("presence_penalty", 0.5, 0),
        ("temperature", 0, None),
        ("stop", ["a"], []),
        ("logprobs", True, False),
    ],
)
def test_what_a_provider_has_no_notion_for_is_refused_by_name_where_it_asks_for_something(
    field: str, asks: Any, idle: Any
) -> None:
    quirks = Quirks(refuse=frozenset({field}))
    assert field not in sent(quirks, **{field: idle})
    with pytest.raises(UnsupportedParameter) as caught:
        sent(quirks, **{field: asks})
    assert caught.value.param == field
    assert sent(**{field: asks})[field] == asks


# --- reasoning ------------------------------------------------------------------------------------


BOUNDED = {"max_tokens": 9, "exclude": True}


@pytest.mark.parametrize(
    ("how", "asked", "fields"),
    [
        ("effort", {"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ("effort", {"reasoning": {"effort": "high", "summary": "auto"}}, {"reasoning_effort": "high"}),
        ("effort", {"reasoning": {"enabled": False}}, {"reasoning_effort": "none"}),
        ("effort", {"reasoning": {"enabled": True}}, {}),
        ("object", {"reasoning_effort": "low"}, {"reasoning": {"effort": "low"}}),
        ("object", {"reasoning": BOUNDED}, {"reasoning": BOUNDED}),
        ("thinking", {"reasoning_effort": "high"}, {"thinking": {"type": "enabled"}}),
        ("thinking", {"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ("none", {"reasoning_effort": "none"}, {}),
    ],
)
def test_each_way_to_ask_for_reasoning(how: Any, asked: dict[str, Any], fields: dict[str, Any]) -> None:
    assert sent(Quirks(reasoning=how), **asked) == {"model": "target", "messages": [USER], **fields}


def test_efforts_of_another_scale() -> None:
    quirks = Quirks(values={"reasoning_effort": {"xhigh": "high", "minimal": None}})
    assert sent(quirks, reasoning={"effort": "xhigh"})["reasoning_effort"] == "high"
    assert "reasoning_effort" not in sent(quirks, reasoning_effort="minimal")


@pytest.mark.parametrize(
    ("how", "asked", "param"),
    [
        ("effort", {"reasoning": {"max_tokens": 9}}, "reasoning.max_tokens"),
        ("thinking", {"reasoning": {"max_tokens": 9}}, "reasoning.max_tokens"),
        ("none", {"reasoning_effort": "low"}, "reasoning_effort"),
        ("none", {"reasoning": {"effort": "low"}}, "reasoning.effort"),
    ],
)
def test_reasoning_that_cannot_be_asked_for(how: Any, asked: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        sent(Quirks(reasoning=how), **asked)
    assert caught.value.param == param


# --- messages -------------------------------------------------------------------------------------

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
DETAILS = [{"type": "reasoning.text", "text": "hm", "signature": "s"}]
THOUGHT = {"role": "assistant", "content": "x", "reasoning_content": "hm", "reasoning_details": DETAILS}
PRESENT = {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "so"}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "1", "is_error": True}


def test_earlier_reasoning_goes_back_as_each_wants_it() -> None:
    given = (USER, THOUGHT, USER, PRESENT, RESULT)
    result = {"role": "tool", "tool_call_id": "c", "content": "1"}
    said, called = {"role": "assistant", "content": "x"}, {"role": "assistant", "tool_calls": [CALL]}
    assert messages(Quirks(), *given) == [USER, said, USER, called, result]
    assert messages(Quirks(reasoning_back="reasoning_content"), *given) == [
        USER,
        said,
        USER,
        {**called, "reasoning_content": "so"},
        result,
    ]
    assert messages(Quirks(reasoning_back="reasoning_details"), *given) == [
        USER,
        {**said, "reasoning_details": DETAILS},
        USER,
        {**called, "reasoning_content": "so"},
        result,
    ]


def test_marks_for_a_cache_go_only_to_who_knows_them() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    parts = [{"type": "text", "text": "a", **mark}, {"type": "text", "text": "b"}]
    tool = {"type": "function", "function": {"name": "f"}}
    given = {"messages": [{"role": "user", "content": parts}], "tools": [{**tool, **mark}]}
    bare = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    body = sent(**given)
    assert (body["messages"], body["tools"]) == (bare, [tool])
    body = sent(Quirks(cache_control=True), **given)
    assert (body["messages"], body["tools"]) == (given["messages"], given["tools"])


def test_roles_names_and_texts_of_simpler_servers() -> None:
    texts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    found = messages(
        Quirks(system_role="system", texts="joined", names=False),
        {"role": "developer", "content": texts},
        {"role": "user", "content": [*texts, image], "name": "ann"},
    )
    named = {"type": "text", "text": "ann: a"}
    assert found == [{"role": "system", "content": "a\nb"}, {"role": "user", "content": [named, texts[1], image]}]


def test_files_in_results_of_tools_follow() -> None:
    file = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    given = (USER, PRESENT, {"role": "tool", "tool_call_id": "c", "content": [file, image]})
    head = {"type": "text", "text": "What the tool gave for the call c:"}
    assert messages(Quirks(tool_images=True), *given)[2:] == [
        {**given[2], "content": [image]},
        {"role": "user", "content": [head, file]},
    ]
    assert messages(Quirks(), *given)[2:] == [
        {**given[2], "content": "The result is a file; it follows."},
        {"role": "user", "content": [head, file, image]},
    ]


def test_images_in_results_of_tools_go_where_they_are_taken() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    given = (USER, PRESENT, {"role": "tool", "tool_call_id": "c", "content": [image]})
    assert messages(Quirks(tool_images=True), *given)[2]["content"] == [image]
    follow = {"role": "tool", "tool_call_id": "c", "content": "The result is an image; it follows."}
    shown = {"role": "user", "content": [{"type": "text", "text": "What the tool gave for the call c:"}, image]}
    assert messages(Quirks(), *given)[2:] == [follow, shown]
    # Results stay together behind their calls, and what was said stays where it was.
    said = {"type": "text", "text": "two of them"}
    second = {"role": "tool", "tool_call_id": "c", "content": "plain"}
    found = messages(Quirks(), *given[:2], {**given[2], "content": [said, image]}, second, USER)
    assert found[2:] == [{**given[2], "content": [said]}, second, shown, USER]


def test_the_beginning_of_an_answer_is_marked_as_one() -> None:
    quirks = Quirks(prefix={"prefix": True})
    begun = {"role": "assistant", "content": "Once"}
    assert messages(quirks, USER, begun) == [USER, {**begun, "prefix": True}]
    assert messages(quirks, begun, USER) == [begun, USER]
    result = {"role": "tool", "tool_call_id": "c", "content": "1"}
    assert messages(quirks, USER, {"role": "assistant", "tool_calls": [CALL]}, result)[-1] == result


def test_messages_that_need_nothing_are_not_made_again() -> None:
    request = chat.parse(json.dumps({**PLAIN, "messages": [USER, {"role": "assistant", "content": "x"}]}).encode())
    assert OpenAIOutbound()._messages(request.messages) is request.messages


# --- there and back -------------------------------------------------------------------------------

texts = st.text(max_size=8)
contents = texts | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), min_size=1, max_size=3)
said = st.builds(dict, role=st.sampled_from(["system", "developer", "user", "assistant"]), content=contents)
numbers = st.floats(0, 1, allow_nan=False)
options = st.fixed_dictionaries(
    {},
    optional={
        "temperature": numbers,
        "top_p": numbers,
        "seed": st.integers(-(2**63), 2**63 - 1),
        "n": st.integers(1, 4),
        "max_tokens": st.integers(1, 9),
        "stop": texts.filter(bool) | st.lists(texts.filter(bool), max_size=4),
        "presence_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(st.integers(0, 9).map(str), st.floats(-100, 100), max_size=2),
        "logprobs": st.booleans(),
        "top_k": st.integers(-1, 9),
        "parallel_tool_calls": st.booleans(),
        "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
        "reasoning_effort": st.sampled_from(["none", "low", "high"]),
        "verbosity": st.sampled_from(["low", "high"]),
    },
)


@given(st.lists(said, min_size=1, max_size=4), options)
def test_what_goes_out_says_what_came_in(given: list[dict[str, Any]], fields: dict[str, Any]) -> None:
    request = chat.parse(json.dumps({"model": "m", "messages": given, **fields}).encode())
    ask = OpenAIOutbound(Quirks(tool_images=True, cache_control=True)).ask(request, "m", stream=False)
    assert chat.parse(ask.body) == request
    assert msgspec.json.decode(ask.body)["model"] == "m"
