"""Ourselves against the fake upstream's Gemini and Cohere: what we ask is understood, what it says is read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.dialects.answer import Outbound
from appliance.dialects.cohere_outbound import COHERE
from appliance.dialects.gemini_outbound import GEMINI, VERTEX
from runtimes.engine import Delta, Finished, Usage
from tests.dialects.chat_requests import CLOCK, PIXEL, USER, WEATHER, asked
from tests.fakes.replies import Seen
from tests.fakes.talk import Call, Said
from tests.fakes.tongue import Tongue
from tests.fakes.tongue_cohere import COHERE as COHERE_TONGUE
from tests.fakes.tongue_gemini import GEMINI as GEMINI_TONGUE

TARGETS: list[tuple[Outbound, Tongue]] = [
    (GEMINI, GEMINI_TONGUE),
    (VERTEX, GEMINI_TONGUE),
    (COHERE, COHERE_TONGUE),
]
SAID = [
    Said(pieces=["Hel", "lo ", "you"], prompt=9, cached=4),
    Said(pieces=["Hi"], finish="length"),
    Said(
        pieces=["I look."],
        calls=[Call("c1", "weather", {"city": "Øslo"}), Call("c2", "clock", {})],
        finish="tool_calls",
    ),
    Said(pieces=["Hi"], thought=["Well", ", then."]),
]


def seen(outbound: Outbound, request: Any, *, stream: bool) -> Seen:
    ask = outbound.ask(request, "gemini-3-flash", stream=stream)
    return Seen("POST", "/" + ask.path.partition("?")[0], {}, json.loads(ask.body), "gemini-3-flash")


@pytest.mark.parametrize(("outbound", "tongue"), TARGETS)
def test_what_is_asked_is_understood(outbound: Outbound, tongue: Tongue) -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    called = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"at": 1}'}}
    request = asked(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "See"}, image]},
            {"role": "assistant", "content": "Wait.", "tool_calls": [called]},
            {"role": "tool", "tool_call_id": "c1", "content": "noon"},
            USER,
        ],
        tools=[WEATHER, CLOCK],
        tool_choice="required",
        max_tokens=7,
        stop=["a"],
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
        reasoning_effort="low",
    )
    question = tongue.question(seen(outbound, request, stream=True))
    assert [turn.role for turn in question.turns] == ["system", "user", "assistant", "tool", "user"]
    assert [turn.text for turn in question.turns if turn.role != "tool"] == ["Be brief.", "See", "Wait.", "Hi"]
    assert (question.turns[1].media, question.turns[3].results) == (1, ["noon"])
    assert [(call.name, call.arguments) for call in question.turns[2].calls] == [("clock", {"at": 1})]
    assert [tool.name for tool in question.tools] == ["weather", "clock"]
    assert (question.choice, question.most, question.stop) == ("required", 7, ["a"])
    assert (question.schema, question.think) == ({"type": "object"}, True)


@pytest.mark.parametrize(("outbound", "tongue"), TARGETS)
@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_said_is_read(outbound: Outbound, tongue: Tongue, said: Said, stream: bool) -> None:
    request = asked(reasoning={"enabled": True})
    question = tongue.question(seen(outbound, request, stream=stream))
    if stream:
        spoken = tongue.spoken(question, said)
        reader = outbound.reader("up", request)
        events = [
            item
            for data in [*spoken.events, *spoken.marker]
            for item in reader.feed(tongue.comment + tongue.frame(data, b"\n"))
        ]
        assert reader.done
    else:
        events = outbound.read_whole(tongue.whole(question, said), "up", request)
    deltas = [item for item in events if isinstance(item, Delta)]
    assert "".join(item.text for item in deltas) == said.text
    assert "".join(item.reasoning for item in deltas).startswith("".join(said.thought))
    calls: dict[int, list[str]] = {}
    for item in deltas:
        for piece in item.tool_calls:
            call = calls.setdefault(piece.index, ["", "", ""])
            for k, value in enumerate((piece.id, piece.name, piece.arguments)):
                call[k] += value
    assert [(id, name, json.loads(arguments)) for id, name, arguments in calls.values()] == [
        (call.id, call.name, call.arguments) for call in said.calls
    ]
    assert events[-2] == Finished(said.finish)
    usage = events[-1]
    assert isinstance(usage, Usage)
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (
        said.prompt,
        said.cached,
        said.tokens,
    )
