"""Nothing that is asked of an engine ends it: every bound is an answer, never an assertion in the native library."""

from __future__ import annotations

import asyncio
import math
import os
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from runtimes.catalogue import Catalogue
from runtimes.engine import (
    ContextLengthExceeded,
    CountRequest,
    EmbedRequest,
    EngineError,
    EngineOverloaded,
    GenerateRequest,
    InvalidRequest,
    Sampling,
    Unsupported,
)
from runtimes.llamacpp.client import LlamaClient
from tests.gateway import CHAT, EMBEDDER
from tests.llamacpp.engine_process import GREEDY, EngineProcess, ask, idle, leave_after, status_when

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

CONTEXT = 128
STRESS = int(os.environ.get("OUTPOST_TEST_STRESS", "150"))
"""Requests of the random stress; 500 takes a few minutes."""


@pytest.fixture(scope="module")
def process(catalogue: Catalogue) -> Iterator[EngineProcess]:
    with EngineProcess(catalogue.resolve(CHAT).main, context=CONTEXT, slots=4, max_waiting=32) as process:
        yield process


@pytest.fixture
async def engine(process: EngineProcess) -> AsyncIterator[LlamaClient]:
    async with process.client() as engine:
        yield engine
        await status_when(engine, idle, "the engine to be idle")
    assert process.alive


@pytest.fixture(scope="module")
def embedding_process(catalogue: Catalogue) -> Iterator[EngineProcess]:
    with EngineProcess(catalogue.resolve(EMBEDDER).main, task="embed", context=256, max_waiting=32) as process:
        yield process


def ids(count: int, seed: int = 0) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(1000, 40_000) for _ in range(count)]


@pytest.mark.parametrize("length", [1, CONTEXT - 3, CONTEXT - 2, CONTEXT - 1])
@pytest.mark.parametrize("most", [None, 1, 2, 10**9])
async def test_a_prompt_that_fits_is_answered_up_to_the_end_of_the_context(
    engine: LlamaClient, length: int, most: int | None
) -> None:
    banned = dict.fromkeys((0, 1, 2), -100.0)  # the ends of generation, so that only the length ends it
    request = GenerateRequest(
        prompt=ids(length), max_tokens=most, sampling=Sampling(temperature=0.0, logit_bias=banned), logprobs=0
    )
    answer = await ask(engine, request)
    room = min(CONTEXT - length, most or CONTEXT)
    assert (len(answer.tokens[0]), answer.reasons) == (room, {0: "length"})
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (length, room)


@pytest.mark.parametrize("length", [CONTEXT, CONTEXT + 1, 5 * CONTEXT, 20_000])
async def test_a_prompt_that_does_not_fit_is_refused(engine: LlamaClient, length: int) -> None:
    with pytest.raises(ContextLengthExceeded, match=f"{CONTEXT} tokens.* {length} tokens") as refused:
        await ask(engine, GenerateRequest(prompt=ids(length)))
    assert refused.value.param == "prompt"
    with pytest.raises(ContextLengthExceeded) as refused:
        await ask(engine, GenerateRequest(messages=[{"role": "user", "content": "wizard " * length}]))
    assert refused.value.param == "messages"
    assert await engine.count(CountRequest(GenerateRequest(prompt=ids(length)))) == length


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [49_152]}, "prompt"),
        ({"prompt": [2**40]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": None, "messages": []}, "messages"),
        ({"prompt": "lone \ud800 surrogate"}, None),
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"n": 37}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"sampling": Sampling(temperature=math.nan)}, "temperature"),
        ({"sampling": Sampling(temperature=math.inf)}, "temperature"),
        ({"sampling": Sampling(top_p=math.nan)}, "top_p"),
        ({"sampling": Sampling(repeat_penalty=0.0)}, "repeat_penalty"),
        ({"sampling": Sampling(logit_bias={49_152: 1.0})}, "logit_bias"),
        ({"sampling": Sampling(logit_bias={-1: 1.0})}, "logit_bias"),
        ({"sampling": Sampling(logit_bias={2**63 + 1: 1.0})}, "logit_bias"),
        ({"sampling": Sampling(logit_bias={5: math.inf})}, "logit_bias"),
        ({"sampling": Sampling(seed=2**80)}, None),
    ],
    ids=repr,
)
async def test_what_is_out_of_range_is_refused_by_name(
    engine: LlamaClient, fields: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await ask(engine, GenerateRequest(**{"prompt": "Hi", "max_tokens": 2, **fields}))
    assert refused.value.param == param


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1e-40),
        Sampling(temperature=1e-30, top_k=5, top_p=0.5, min_p=0.1),
        Sampling(temperature=1e-5),
        Sampling(temperature=2.0, top_p=0.0),
        Sampling(temperature=2.0, top_p=1e-30),
        Sampling(min_p=1.0),
        Sampling(top_k=1),
    ],
    ids=repr,
)
async def test_extreme_sampling_is_greedy(engine: LlamaClient, sampling: Sampling) -> None:
    greedy = await ask(engine, GenerateRequest(prompt="The sky is", max_tokens=3, sampling=GREEDY))
    extreme = await ask(engine, GenerateRequest(prompt="The sky is", max_tokens=3, sampling=sampling))
    assert extreme.text == greedy.text


@pytest.mark.parametrize("prompt", ["", []])
async def test_an_empty_prompt_is_continued(engine: LlamaClient, prompt: Any) -> None:
    answer = await ask(engine, GenerateRequest(prompt=prompt, max_tokens=3))
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 3


@pytest.mark.parametrize("n", [32, 36])
async def test_many_choices_take_turns(engine: LlamaClient, n: int) -> None:
    answer = await ask(engine, GenerateRequest(prompt="A", n=n, max_tokens=3, sampling=Sampling(seed=1), logprobs=0))
    assert sorted(answer.reasons) == list(range(n))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == sum(
        len(tokens) + (answer.reasons[index] == "stop") for index, tokens in answer.tokens.items()
    )


async def test_a_full_waiting_list_refuses_at_once_and_only_the_surplus(engine: LlamaClient) -> None:
    # Long enough that none has ended when the last one comes, however fast the processor is.
    request = GenerateRequest(prompt="Hello", max_tokens=64, sampling=GREEDY)
    told = await asyncio.gather(*(ask(engine, request) for _ in range(100)), return_exceptions=True)
    refused = [answer for answer in told if isinstance(answer, EngineOverloaded)]
    answered = [answer for answer in told if not isinstance(answer, BaseException)]
    assert len(refused) + len(answered) == 100
    assert 32 + 4 <= len(answered) <= 32 + 8  # every slot and waiting place, and a few whose places were free again
    assert all(error.retryable and error.retry_after_s > 0 for error in refused)
    assert (await ask(engine, request)).reasons


async def test_a_model_for_text_makes_no_embeddings(engine: LlamaClient) -> None:
    with pytest.raises(Unsupported):
        await engine.embed(EmbedRequest(["a"]))


async def test_embeddings_have_bounds_too(embedding_process: EngineProcess) -> None:
    async with embedding_process.client() as engine:
        for inputs, kind in (
            ([], InvalidRequest),
            ([""], None),
            ([[]], InvalidRequest),
            ([[10**6]], InvalidRequest),
            ([[-1]], InvalidRequest),
            (["fine", "word " * 2000], ContextLengthExceeded),
            (["a"] * 300, None),
        ):
            if kind is None:
                assert len((await engine.embed(EmbedRequest(list(inputs)))).vectors) == len(inputs)
                continue
            with pytest.raises(kind) as refused:
                await engine.embed(EmbedRequest(list(inputs)))
            assert refused.value.param == "input"
        with pytest.raises(Unsupported):
            await ask(engine, GenerateRequest(prompt="Hi"))
        one = await engine.embed(EmbedRequest(["a cat"]))
        many = await asyncio.gather(*(engine.embed(EmbedRequest(["a cat", f"dog {n}"])) for n in range(20)))
        assert all(len(result.vectors) == 2 for result in many)
        told = await asyncio.gather(
            *(engine.embed(EmbedRequest(["cat"] * 10)) for _ in range(80)), return_exceptions=True
        )
        refused = [answer for answer in told if isinstance(answer, BaseException)]
        assert all(isinstance(error, EngineOverloaded) for error in refused)
        assert 0 < len(refused) <= 80 - 33
        assert one.dimensions == 384
        asking = [asyncio.ensure_future(engine.embed(EmbedRequest(["word " * 100] * 12))) for _ in range(8)]
        await asyncio.sleep(0)
        for task in asking[1:]:
            task.cancel()
        told = await asyncio.gather(*asking, return_exceptions=True)
        assert not isinstance(told[0], BaseException)
        assert idle(await status_when(engine, idle, "the embedder to be idle"))
    assert embedding_process.alive


def stress_request(dice: random.Random) -> GenerateRequest:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "look", "parameters": schema}}
    asked: dict[str, Any] = dice.choice(
        (
            {"prompt": ids(dice.choice((1, 5, 40, CONTEXT - 2, CONTEXT - 1, CONTEXT, CONTEXT + 7)), dice.randrange(4))},
            {"prompt": "".join(chr(dice.randrange(1, 0x2FFF)) for _ in range(dice.randrange(40)))},
            {"messages": [{"role": "user", "content": "Hi " * dice.randrange(50)}]},
            {"messages": [{"role": "user", "content": "Look."}], "tools": [tool], "tool_choice": "required"},
            {
                "messages": [{"role": "user", "content": "JSON"}],
                "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
            },
        )
    )
    sampling = Sampling(
        temperature=dice.choice((0.0, 1e-20, 0.7, 2.0)),
        top_p=dice.choice((0.0, 0.1, 1.0)),
        top_k=dice.choice((0, 1, 40, 10**9)),
        min_p=dice.choice((0.0, 0.2, 1.0)),
        presence_penalty=dice.choice((0.0, -2.0, 2.0)),
        frequency_penalty=dice.choice((0.0, -2.0, 2.0)),
        repeat_penalty=dice.choice((1.0, 0.01, 10.0)),
        seed=dice.choice((None, 0, -1, 2**63 - 1)),
        logit_bias={dice.randrange(49_152): dice.choice((-100.0, 100.0)) for _ in range(dice.choice((0, 0, 50)))},
    )
    return GenerateRequest(
        **asked,
        max_tokens=dice.choice((None, 1, 4, 8, 10**9) if dice.random() < 0.3 else (1, 4, 8)),
        n=dice.choice((1, 1, 1, 3, 12)),
        stop=dice.choice(([], ["e"], ["\n", "the"])),
        logprobs=dice.choice((None, None, 0, 5, 20)),
        sampling=sampling,
        cache_partition=dice.choice(("", "a", "b")),
    )


async def test_random_requests_never_end_the_engine(engine: LlamaClient, process: EngineProcess) -> None:
    dice = random.Random(23)
    refusals = 0
    for _ in range(0, STRESS, 10):
        work = [
            leave_after(engine, stress_request(dice), dice.choice((0, 1, 3)))
            if dice.random() < 0.3
            else ask(engine, stress_request(dice))
            for _ in range(10)
        ]
        for told in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(told, BaseException):
                assert isinstance(told, (InvalidRequest, ContextLengthExceeded, EngineOverloaded)), repr(told)
                assert isinstance(told, EngineError)
                refusals += 1
    assert process.alive
    assert 0 < refusals < STRESS
    assert "Traceback" not in process.log()
    assert (await ask(engine, GenerateRequest(prompt="Still", max_tokens=2, sampling=GREEDY))).reasons
