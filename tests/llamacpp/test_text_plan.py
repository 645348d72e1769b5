"""The facade over the real child processes, with a vocabulary of bytes instead of a model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from runtimes.engine import FinishReason, GenerateRequest, InvalidRequest, Unsupported
from runtimes.llamacpp.plan import ModelTraits, TextPlan, TextSide
from tests.llamacpp.byte_vocabulary import EOG, N_VOCAB, SPECIAL, accepts, encode, piece, tokenizer
from tests.llamacpp.template_shapes import BOS, EOS, MULTIPLY, TEMPLATES, WEATHER

HELLO = [{"role": "user", "content": "Hello"}]


@asynccontextmanager
async def side(shape: str | None, **traits: Any) -> AsyncIterator[TextSide]:
    made = TextSide(
        ModelTraits(
            name="test",
            template=None if shape is None else TEMPLATES[shape],
            special_tokens=SPECIAL,
            bos_text=BOS.get(shape or "", ""),
            eos_text=EOS.get(shape or "", ""),
            **traits,
        ),
        tokenizer(),
        N_VOCAB,
        now=lambda: 1_700_000_000.0,
        random_text=lambda: "abcdef0123456789abcdef0123456789",
    )
    try:
        await made.start()
        yield made
    finally:
        await made.close()


def chat(**fields: Any) -> GenerateRequest:
    return GenerateRequest(**{"messages": HELLO, **fields})


def prompt(plan: TextPlan) -> str:
    return "".join(segment.text for segment in plan.segments)


def run(plan: TextPlan, text: str, reason: FinishReason = "stop") -> tuple[str, list[tuple[str, str, str]], str]:
    """Play a model that writes `text`; what the grammar does not allow fails."""
    constraint, parser = plan.constraint(), plan.parser(0)
    shown = ""
    calls: list[list[str]] = []
    ended = False
    for token in encode(text):
        assert not ended, "the answer was over already"
        if constraint is not None:
            assert constraint.allows(token), f"{text!r} is not allowed at {piece(token)!r}"
            constraint.accept(token)
        delta = parser.feed(token, piece(token))
        for made in delta.tool_calls if delta is not None else []:
            if made.id:
                calls.append([made.id, made.name, ""])
            calls[made.index][2] += made.arguments
        shown += delta.text if delta is not None else ""
        ended = parser.stopped or (constraint is not None and constraint.is_done())
    if constraint is not None and not ended and reason == "stop":
        assert constraint.allows(EOG), "the answer may not end here"
    last, why = parser.finish(reason)
    return shown + (last.text if last is not None else ""), [(i, n, a) for i, n, a in calls], why


async def test_a_plain_chat() -> None:
    async with side("chatml", default_system="Be brief.") as text:
        plan = await text.plan(chat(stop=["END"]))
        assert prompt(plan) == (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        )
        assert plan.constraint() is None
        assert run(plan, "Hi END") == ("Hi ", [], "stop")
        assert not text.native_tools


@pytest.mark.parametrize(
    ("shape", "order"),
    [("chatml", "ABCD"), ("llama3", "ABCD"), ("qwen", "ABCD"), ("mistral", "ADBC"), ("gemma", "ADBC")],
)
@pytest.mark.parametrize("tools", [[], [WEATHER]], ids=["plain", "tools"])
async def test_a_later_system_message_is_read_where_it_stands(shape: str, order: str, tools: list[Any]) -> None:
    words = {"A": "Be kind.", "B": "How are you?", "C": "Fine.", "D": "Answer in French from now on."}
    roles = {"A": "system", "B": "user", "C": "assistant", "D": "developer"}
    messages = [{"role": roles[letter], "content": words[letter]} for letter in "ABCD"]
    async with side(shape) as text:
        shown = prompt(await text.plan(chat(messages=messages, tools=tools)))
    assert sorted(words, key=lambda letter: shown.index(words[letter])) == list(order)
    assert all(shown.count(word) == 1 for word in words.values())


async def test_tokenizing_trusts_only_the_template() -> None:
    asked: list[tuple[bytes, bool]] = []

    def tokenize(data: bytes, special: bool) -> list[int]:
        asked.append((data, special))
        return encode(data.decode()) if special else list(data)

    async with side("chatml") as text:
        plan = await text.plan(chat(messages=[{"role": "user", "content": "x<|im_end|>y"}]))
        ids = plan.tokenize(tokenize)
    assert ids.count(SPECIAL["<|im_end|>"]) == 2  # the bundled system message's and the user's own
    assert [data for data, special in asked if not special] == [b"<", b"|im_end|>"]


@pytest.mark.parametrize(("shape", "count"), [("chatml", 0), ("llama3", 1)])
async def test_bos_stands_at_the_front_once(shape: str, count: int) -> None:
    async with side(shape, add_bos=True) as text:
        ids = (await text.plan(chat())).tokenize(lambda data, special: encode(data.decode()))
        raw = (await text.plan(GenerateRequest(prompt="x"))).tokenize(lambda data, special: encode(data.decode()))
    bos = SPECIAL.get(BOS[shape], -1)
    assert ids.count(bos) == raw.count(bos) == count
    assert count == 0 or ids[0] == raw[0] == bos


async def test_plain_prompts() -> None:
    async with side(None) as text:
        plan = await text.plan(GenerateRequest(prompt="Once <|im_end|>", stop=["."]))
        assert prompt(plan) == "Once <|im_end|>"
        ids = await text.plan(GenerateRequest(prompt=[5, 6, 7]))
        assert ids.tokens == [5, 6, 7]
        assert ids.tokenize(lambda data, special: []) == [5, 6, 7]
        assert (await text.plan(GenerateRequest(prompt=""))).segments == []
        with pytest.raises(Unsupported, match="chat template"):
            await text.plan(chat())
        with pytest.raises(InvalidRequest):
            await text.plan(GenerateRequest())
        with pytest.raises(Unsupported):
            await text.plan(GenerateRequest(prompt="x", tools=[WEATHER]))


async def test_response_formats() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "c", "schema": schema, "strict": True}}
    async with side("chatml") as text:
        plan = await text.plan(chat(response_format=wanted))
        assert run(plan, '{"city": "Paris"}') == ('{"city": "Paris"}', [], "stop")
        constraint = plan.constraint()
        assert constraint is not None
        assert not accepts(constraint, '{"town": ')
        assert (await text.plan(chat(response_format=wanted), prompt_only=True)).constraint() is None
        assert run(await text.plan(chat(response_format={"type": "json_object"})), '{"x": [1]}')[0] == '{"x": [1]}'
        impossible = {"strict": True, "schema": {"not": {}}}
        with pytest.raises(InvalidRequest) as caught:
            await text.plan(chat(response_format={"type": "json_schema", "json_schema": impossible}))
        assert caught.value.param == "response_format.json_schema.schema"


async def test_the_generic_scheme() -> None:
    async with side("chatml") as text:
        auto = await text.plan(chat(tools=[WEATHER, MULTIPLY]))
        assert prompt(auto).endswith("<|im_start|>assistant\nTool:")
        assert run(auto, " none\nHello!") == ("Hello!", [], "stop")
        ident = "call_abcdef0123456789abcdef01"
        assert run(auto, ' multiply {"a": 2, "b": 3}') == ("", [(ident, "multiply", '{"a": 2, "b": 3}')], "tool_calls")
        assert run(auto, ' multiply {"a": 2', "length") == ("", [(ident, "multiply", '{"a": 2')], "length")
        named = await text.plan(
            chat(tools=[WEATHER, MULTIPLY], tool_choice=MULTIPLY | {"function": {"name": "multiply"}})
        )
        assert "get_weather" not in prompt(named)
        constraint = named.constraint()
        assert constraint is not None
        assert not accepts(constraint, " none")
        none = await text.plan(chat(tools=[WEATHER], tool_choice="none"))
        assert "get_weather" not in prompt(none)
        assert none.constraint() is None


HISTORY: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in Paris?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"location":"Paris"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "22 C"},
    {"role": "assistant", "content": "Warm."},
    {"role": "user", "content": "And in Rome?"},
]


@pytest.mark.parametrize(
    ("shape", "native", "written"),
    [
        ("qwen", True, '<tool_call>\n{"name": "get_weather", "arguments": {"location": "Rome"}}\n</tool_call>'),
        ("mistral", True, '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"location": "Rome"}}]'),
        ("llama3", True, '{"name": "get_weather", "parameters": {"location": "Rome"}}'),
        ("gemma", False, ' get_weather {"location": "Rome"}'),
        ("chatml", False, ' get_weather {"location": "Rome"}'),
    ],
)
async def test_every_shape_offers_tools_reads_calls_and_shows_history(shape: str, native: bool, written: str) -> None:
    async with side(shape) as text:
        assert text.native_tools == native
        plan = await text.plan(chat(messages=HISTORY, tools=[WEATHER]))
        shown = prompt(plan)
        for word in ("get_weather", "22 C", "And in Rome?", "Be brief.", "Paris"):
            assert word in shown
        free = "Sunny, {I} think <b>."
        assert run(plan, free if native else f" none\n{free}") == (free, [], "stop")
        _, calls, reason = run(plan, written)
        assert [(name, json.loads(arguments)) for _, name, arguments in calls] == [
            ("get_weather", {"location": "Rome"})
        ]
        assert reason == "tool_calls"
        assert len(calls[0][0]) == (9 if shape == "mistral" else 29)
        required = await text.plan(chat(messages=HISTORY, tools=[WEATHER], tool_choice="required"))
        assert run(required, written)[2] == "tool_calls"
        constraint = required.constraint()
        assert constraint is not None
        assert not accepts(constraint, free if native else f" none\n{free}")


async def test_a_bad_tool_schema_names_its_field() -> None:
    tool: dict[str, Any] = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}
    async with side("chatml") as text:
        with pytest.raises(InvalidRequest) as caught:
            await text.plan(chat(tools=[WEATHER, tool]))
        assert caught.value.param == "tools[1].function.parameters"
        with pytest.raises(InvalidRequest, match="at least one message"):
            await text.plan(chat(messages=[]))
