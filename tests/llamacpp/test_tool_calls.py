from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtimes.engine import EngineError, InvalidRequest, ToolCallDelta, Unsupported
from runtimes.llamacpp.constraints import LIMITS, GrammarConstraint
from runtimes.llamacpp.schema import check_schema
from runtimes.llamacpp.tools import (
    GENERIC,
    HERMES,
    LLAMA3,
    MAX_CALLS,
    MISTRAL,
    JsonEnd,
    ToolFormat,
    ToolPlan,
    ToolScanner,
    detect_format,
    read_tools,
    tool_grammar,
)
from tests.llamacpp.byte_vocabulary import N_VOCAB, SPECIAL, accepts, tokenizer, wander
from tests.llamacpp.template_shapes import MULTIPLY, TEMPLATES, WEATHER

import llguidance  # isort: skip

FORMATS = [HERMES, MISTRAL, LLAMA3, GENERIC]
TOKENIZER = tokenizer()
# How a vocabulary without tokens for the markers looks.
SPELLED: dict[str, int] = {}


def plan(choice: Any = "auto", parallel: bool = True, tools: Any = (WEATHER, MULTIPLY)) -> ToolPlan:
    made = read_tools(list(tools), choice, parallel)
    assert made is not None
    return made


def constraint(made: ToolPlan, form: ToolFormat, special: dict[str, int], **options: Any) -> GrammarConstraint:
    matcher = llguidance.LLMatcher(
        TOKENIZER, tool_grammar(made, form, special, **options), limits=llguidance.LLParserLimits(**LIMITS), log_level=0
    )
    assert not matcher.is_error(), matcher.get_error()
    return GrammarConstraint(matcher, N_VOCAB)


def answer(form: ToolFormat, *calls: tuple[str, Any], text: str = "") -> str:
    """What a model writes to make these calls."""
    bodies = [form.head_of(name) + json.dumps(arguments) + form.tail for name, arguments in calls]
    return text + form.opening + form.between.join(bodies) + form.closing


PARIS = ("get_weather", {"location": "Paris"})
SIX = ("multiply", {"a": 2, "b": 3})


# --- reading the request ------------------------------------------------------------------------


def test_what_is_on_offer() -> None:
    assert read_tools([], "auto", True) is None
    assert read_tools([WEATHER], "none", True) is None
    auto = plan()
    assert [tool.name for tool in auto.tools] == ["get_weather", "multiply"]
    assert (auto.forced, auto.max_calls) == (False, MAX_CALLS)
    assert plan("required", parallel=False).max_calls == 1
    named = plan({"type": "function", "function": {"name": "multiply"}})
    assert [tool.name for tool in named.tools] == ["multiply"]
    assert (named.forced, named.max_calls) == (True, 1)


def test_parameters_may_be_absent() -> None:
    tool = {"type": "function", "function": {"name": "now"}}
    closed = {"type": "object", "properties": {}, "additionalProperties": False}
    assert plan(tools=[tool]).tools[0].schema == closed


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


@pytest.mark.parametrize(
    ("tools", "choice", "param", "kind"),
    [
        ([], "required", "tool_choice", InvalidRequest),
        ([WEATHER, WEATHER], "auto", "tools", InvalidRequest),
        ([WEATHER], "sometimes", "tool_choice", InvalidRequest),
        ([WEATHER], {"type": "function", "function": {"name": "other"}}, "tool_choice", InvalidRequest),
        ([WEATHER], {"type": "function"}, "tool_choice", InvalidRequest),
        ([{"type": "web_search"}], "auto", "tools[0].type", Unsupported),
        ([{"type": "function"}], "auto", "tools[0].function", InvalidRequest),
        ([WEATHER, function(name="no spaces")], "auto", "tools[1].function.name", InvalidRequest),
        ([function(name="x" * 65)], "auto", "tools[0].function.name", InvalidRequest),
        ([function(parameters={"type": "string"})], "auto", "tools[0].function.parameters", InvalidRequest),
        ([function(parameters={"not": {}}, strict=True)], "auto", "tools[0].function.parameters", InvalidRequest),
        ([function(name=f"f{i}") for i in range(129)], "auto", "tools", InvalidRequest),
    ],
)
def test_what_is_refused(tools: Any, choice: Any, param: str, kind: type[EngineError]) -> None:
    with pytest.raises(kind) as caught:
        read_tools(tools, choice, True)
    assert caught.value.param == param


def test_only_strict_tools_must_be_enforceable() -> None:
    assert plan(tools=[function(parameters={"type": "object", "not": {}})]).tools[0].schema == {"type": "object"}


def test_formats_are_recognised_by_the_template() -> None:
    assert {shape: getattr(detect_format(t), "name", None) for shape, t in TEMPLATES.items()} == {
        "chatml": None,
        "llama3": "llama3",
        "mistral": "mistral",
        "gemma": None,
        "qwen": "hermes",
    }
    # The same markers with another inside are other formats.
    assert detect_format("<tool_call>\n<function=name>") is None
    assert detect_format("[TOOL_CALLS]name[ARGS]{}") is None


# --- the grammar --------------------------------------------------------------------------------

every_format = pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
every_vocabulary = pytest.mark.parametrize("special", [SPECIAL, SPELLED], ids=["tokens", "spelled"])


@every_format
@every_vocabulary
def test_required_holds_the_whole_answer(form: ToolFormat, special: dict[str, int]) -> None:
    def fits(text: str) -> bool:
        return accepts(constraint(plan("required"), form, special), text)

    if not special and any(word in form.opening + form.tail for word in SPECIAL):
        # The test vocabulary would encode the marker as its token; spell it differently for this one.
        form = ToolFormat(**{f: _spell(getattr(form, f)) for f in form.__struct_fields__ if f != "short_ids"})
    assert fits(answer(form, PARIS))
    assert fits(answer(form, SIX))
    assert fits(answer(form, PARIS, SIX)) == bool(form.between)
    assert not fits("Sure. " + answer(form, PARIS))
    assert not fits(answer(form, ("get_weather", {"location": 5})))
    assert not fits(answer(form, ("get_weather", {})))
    assert not fits(answer(form, ("get_weather", {"location": "x", "more": 1})))
    assert not fits(answer(form, ("unknown", {"location": "x"})))
    assert not fits(answer(form, ("multiply", {"location": "x"})))


def _spell(text: str) -> str:
    for word in ("<tool_call>", "</tool_call>", "[TOOL_CALLS]"):
        text = text.replace(word, word.replace("tool", "plain").replace("TOOL", "PLAIN"))
    return text


@every_format
def test_auto_leaves_text_free_and_holds_calls(form: ToolFormat) -> None:
    def fits(text: str, **options: Any) -> bool:
        return accepts(constraint(plan(), form, SPECIAL, **options), text)

    assert fits(form.refusal + "Hello! {1, 2} <b> [x] É €")
    assert fits(answer(form, PARIS))
    assert not fits(answer(form, ("get_weather", {"location": 5})))
    assert not fits(answer(form, ("unknown", {})))
    if form.trigger:
        assert fits(answer(form, PARIS, text="Let me look. "))
        assert not fits(answer(form, ("unknown", {}), text="Let me look. "))
    shape = check_schema({"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}, param="p")
    if form is LLAMA3:
        with pytest.raises(Unsupported):
            fits("{}", text_schema=shape)
        return
    assert fits(form.refusal + '{"x": 1}', text_schema=shape)
    assert fits(answer(form, PARIS), text_schema=shape)
    assert not fits(form.refusal + "Hello", text_schema=shape)


def test_a_spelled_trigger_switches_the_grammar_on_too() -> None:
    form = ToolFormat(**{f: _spell(getattr(HERMES, f)) for f in HERMES.__struct_fields__ if f != "short_ids"})
    made = plan()
    assert accepts(constraint(made, form, SPELLED), "Text only, with <b>tags</b> and <plain.")
    assert accepts(constraint(made, form, SPELLED), answer(form, PARIS, SIX, text="Look: "))
    assert not accepts(constraint(made, form, SPELLED), "Look: <plain_call>\nnonsense")


def test_where_the_trigger_is_a_token_its_spelling_is_not_allowed() -> None:
    state = constraint(plan(), HERMES, SPECIAL)
    for byte in b"<tool_call":
        assert state.allows(byte)
        state.accept(byte)
    assert not state.allows(ord(">"))


@pytest.mark.parametrize("form", [HERMES, MISTRAL, GENERIC], ids=lambda f: f.name)
def test_the_number_of_calls_is_bounded(form: ToolFormat) -> None:
    many = [PARIS] * (MAX_CALLS + 1)
    assert accepts(constraint(plan("required"), form, SPECIAL), answer(form, *many[:-1]))
    assert not accepts(constraint(plan("required"), form, SPECIAL), answer(form, *many))
    assert not accepts(constraint(plan("required", parallel=False), form, SPECIAL), answer(form, PARIS, SIX))
    single = constraint(plan("required", parallel=False), form, SPECIAL)
    assert accepts(single, answer(form, PARIS), ended=False)
    assert single.is_done()


# --- reading the answer -------------------------------------------------------------------------


def scan(made: ToolPlan, form: ToolFormat, pieces: list[str]) -> tuple[str, list[list[str]], ToolScanner]:
    """Text, calls as [id, name, arguments], and the scanner; checks the order of the pieces on the way."""
    numbers = itertools.count(1)
    scanner = ToolScanner(made, form, lambda: f"id{next(numbers)}")
    text = ""
    calls: list[list[str]] = []
    for piece in pieces:
        shown, deltas = scanner.feed(piece)
        text += shown
        for delta in deltas:
            if delta.name:
                assert delta.index == len(calls)
                calls.append([delta.id, delta.name, ""])
            else:
                assert delta.index == len(calls) - 1
                assert delta.arguments
            calls[delta.index][2] += delta.arguments
    return text + scanner.flush(), calls, scanner


@every_format
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text('a"\\{}[]é,\n', max_size=12), st.booleans(), st.lists(st.integers(0, 300), max_size=6))
def test_calls_are_read_the_same_however_they_are_cut(
    form: ToolFormat, text: str, nested: bool, places: list[int]
) -> None:
    arguments = {text: [{"k": text}, 1.5, None]} if nested else {"k": text}
    several = [("get_weather", arguments), SIX][: 2 if form.between else 1]
    before = "Let me see. " if form.trigger and nested else ""
    whole = answer(form, *several, text=before)
    edges = [0, *sorted(min(p, len(whole)) for p in places), len(whole)]
    for pieces in ([whole], list(whole), [whole[a:b] for a, b in itertools.pairwise(edges)]):
        shown, calls, scanner = scan(plan(), form, pieces)
        assert shown == before
        assert calls == [[f"id{i + 1}", name, json.dumps(args)] for i, (name, args) in enumerate(several)]
        assert scanner.complete == scanner.calls == len(several)


@every_format
def test_an_answer_cut_before_its_decision_shows_nothing_of_the_protocol(form: ToolFormat) -> None:
    forced = ToolPlan(plan().tools, True, 1)
    whole = answer(form, SIX)
    for end in range(len(whole)):
        assert scan(forced, form, [whole[:end]])[0] == ""
        if form.refusal:
            assert scan(plan(), form, [whole[:end]])[0] == ""
    for end in range(len(form.refusal)):
        assert scan(plan(), form, [form.refusal[:end]])[0] == ""


@every_format
def test_text_is_text_and_is_not_delayed(form: ToolFormat) -> None:
    words = ["Hello", ", ", "world", "!", " 2 < 3", " [ok]", " {x}"]
    numbers = itertools.count()
    scanner = ToolScanner(plan(), form, lambda: str(next(numbers)))
    for piece in form.refusal:
        assert scanner.feed(piece) == ("", [])
    assert [scanner.feed(word) for word in words] == [(word, []) for word in words]
    assert scanner.plain
    assert scanner.flush() == ""


def test_text_is_held_no_longer_than_the_marker() -> None:
    scanner = ToolScanner(plan(), HERMES, lambda: "id")
    assert scanner.feed("a <tool_c") == ("a ", [])
    assert scanner.feed("lub> b") == ("<tool_club> b", [])
    assert scanner.feed("<tool_call>\n") == ("", [])
    assert scanner.feed('{"name": "get_') == ("", [])
    assert scanner.feed('weather", "arguments": ') == ("", [ToolCallDelta(0, "id", "get_weather")])
    assert scanner.feed('{"loc') == ("", [ToolCallDelta(0, arguments='{"loc')])


@every_format
def test_a_call_that_is_cut_off_is_incomplete(form: ToolFormat) -> None:
    whole = answer(form, PARIS)
    text, calls, scanner = scan(plan(), form, [whole[: whole.index("Paris")]])
    assert text == ""
    assert calls == [["id1", "get_weather", '{"location": "']]
    assert (scanner.calls, scanner.complete) == (1, 0)


@pytest.mark.parametrize(
    "broken", ["<tool_call>\nno", '<tool_call>\n{"name": "other", "arguments": {}}', "<tool_call>"]
)
def test_what_only_looks_like_a_call_comes_out_as_text(broken: str) -> None:
    for pieces in ([broken], list(broken)):
        text, calls, scanner = scan(plan(), HERMES, pieces)
        assert (text, calls, scanner.calls) == (broken, [], 0)


@every_format
@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_grammar_lets_through_is_read_as_calls(form: ToolFormat, seed: int) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, "two", {"three": []}]}}, "required": ["n"]}
    made = plan("required", parallel=seed % 2 == 0, tools=[function(parameters=schema), MULTIPLY])
    written = wander(constraint(made, form, SPECIAL), seed)
    _, calls, scanner = scan(made, form, list(written))
    assert scanner.complete == scanner.calls >= 1
    for _, name, arguments in calls:
        assert name in ("f", "multiply")
        assert isinstance(json.loads(arguments), dict)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text('\\"{}[]a', max_size=8), st.text('\\"{}[]a', max_size=8), st.sampled_from(["", "}", "]}", '"}']))
def test_the_end_of_an_object(key: str, value: str, rest: str) -> None:
    text = json.dumps({key: [value, {value: key}]})
    assert JsonEnd().feed(text + rest) == len(text)
    one_by_one = JsonEnd()
    ends = [one_by_one.feed(char) for char in text]
    assert ends == [None] * (len(text) - 1) + [1]
