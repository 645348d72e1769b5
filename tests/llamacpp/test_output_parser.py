from __future__ import annotations

import json

import pytest

from runtimes.engine import Delta, FinishReason, PositionLogprobs, TokenLogprob, ToolCallDelta
from runtimes.llamacpp.output import OutputParser
from runtimes.llamacpp.tools import GENERIC, HERMES, ToolFormat, ToolScanner, read_tools
from tests.llamacpp.byte_vocabulary import SPECIAL, encode, piece
from tests.llamacpp.template_shapes import MULTIPLY, WEATHER


def entry(text: str) -> PositionLogprobs:
    return PositionLogprobs(TokenLogprob(text, -1.0, list(text.encode())), [])


def with_tools(form: ToolFormat, stops: tuple[str, ...] = ()) -> OutputParser:
    plan = read_tools([WEATHER, MULTIPLY], "auto", True)
    assert plan is not None
    scanner = ToolScanner(plan, form, lambda: "call_1")
    return OutputParser(3, stops=stops, scanner=scanner, marks={i: t for t, i in SPECIAL.items()})


def play(parser: OutputParser, text: str, reason: FinishReason = "stop") -> tuple[list[Delta], FinishReason]:
    deltas = []
    for token in encode(text):
        if (delta := parser.feed(token, piece(token), entry(chr(token % 256)))) is not None:
            deltas.append(delta)
        if parser.stopped:
            break
    last, ended = parser.finish(reason)
    return deltas + ([last] if last is not None else []), ended


def test_text_comes_as_it_is_written() -> None:
    parser = OutputParser(1)
    assert parser.feed(7, b"Hel") == Delta(1, "Hel")
    assert parser.feed(8, b"lo \xe2\x82") == Delta(1, "lo ")
    assert parser.feed(9, b"\xac") == Delta(1, "€")
    assert parser.finish("stop") == (None, "stop")


def test_what_is_held_back_comes_at_the_end() -> None:
    parser = OutputParser(0, stops=["\n\n"])
    assert parser.feed(1, b"a\n") == Delta(0, "a")
    assert parser.feed(2, b"\xf0\x9f") is None
    assert parser.finish("length") == (Delta(0, "\n\ufffd"), "length")


def test_a_stop_string_ends_the_choice() -> None:
    deltas, reason = play(OutputParser(0, stops=["END"]), "one END two")
    assert "".join(d.text for d in deltas) == "one "
    assert reason == "stop"


@pytest.mark.parametrize("text", ["plain", "one END", "é€ done", "no EN"])
def test_logprobs_belong_to_shown_text_only(text: str) -> None:
    parser = OutputParser(0, stops=["END"])
    shown, logged = "", ""
    deltas = []
    for char in text:
        deltas.append(parser.feed(0, char.encode(), entry(char)))
        if parser.stopped:
            break
    deltas.append(parser.finish("stop")[0])
    for delta in deltas:
        if delta is not None:
            shown += delta.text
            logged += "".join(e.chosen.token for e in delta.logprobs)
            assert len(logged) <= len(shown)
    assert shown == logged == text.split("END")[0]


def test_a_token_that_runs_into_a_stop_string_keeps_its_logprobs() -> None:
    parser = OutputParser(0, stops=["END"])
    delta = parser.feed(0, b"abcEND", entry("abcEND"))
    assert delta == Delta(0, "abc", logprobs=[entry("abcEND")])
    assert parser.stopped


def test_calls_come_with_id_and_name_first() -> None:
    parser = with_tools(HERMES)
    deltas, reason = play(
        parser, 'Let me look.<tool_call>\n{"name": "get_weather", "arguments": {"location": "A}"}}\n</tool_call>'
    )
    assert reason == "tool_calls"
    assert "".join(d.text for d in deltas) == "Let me look."
    calls = [c for d in deltas for c in d.tool_calls]
    assert calls[0] == ToolCallDelta(0, "call_1", "get_weather")
    assert all(c.name == "" and c.id == "" for c in calls[1:])
    assert json.loads("".join(c.arguments for c in calls)) == {"location": "A}"}
    assert {d.index for d in deltas} == {3}
    # Logprobs describe text; the tokens of a call have no place in OpenAI's shape.
    assert "".join(e.chosen.token for d in deltas for e in d.logprobs) == "Let me look."


def test_the_generic_decision_is_not_shown() -> None:
    deltas, reason = play(with_tools(GENERIC), " none\nHello!")
    assert "".join(d.text for d in deltas) == "Hello!"
    assert "".join(e.chosen.token for d in deltas for e in d.logprobs) == "Hello!"
    assert reason == "stop"


def test_two_calls_and_stop_strings_inside_of_them() -> None:
    deltas, reason = play(
        with_tools(GENERIC, stops=("Tool", "Paris")),
        ' get_weather {"location": "Paris"}\nTool: multiply {"a": 1, "b": 2}',
    )
    arguments = {0: "", 1: ""}
    for delta in deltas:
        assert delta.text == ""
        for call in delta.tool_calls:
            arguments[call.index] += call.arguments
    assert [json.loads(a) for a in arguments.values()] == [{"location": "Paris"}, {"a": 1, "b": 2}]
    assert reason == "tool_calls"


@pytest.mark.parametrize(
    ("text", "reason", "expected"),
    [
        (' get_weather {"location": "Pa', "length", "length"),
        (' get_weather {"location": "Pa', "stop", "length"),
        (' get_weather {"location": "Paris"}', "length", "length"),
        (' get_weather {"location": "Paris"}', "cancelled", "cancelled"),
        (" none\nHello", "length", "length"),
    ],
)
def test_reasons(text: str, reason: FinishReason, expected: FinishReason) -> None:
    assert play(with_tools(GENERIC), text, reason)[1] == expected
