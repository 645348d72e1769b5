"""The same request gets the same tokens and the same probabilities, whatever else the engine does.

See `native.py`: the batch, what was cached, where a prompt was cut and who left in between must not change one bit.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from runtimes.catalogue import Catalogue
from runtimes.engine import GenerateRequest, Sampling
from runtimes.llamacpp.client import LlamaClient
from tests.gateway import CHAT
from tests.llamacpp.engine_process import GREEDY, Answer, EngineProcess, ask, idle, leave_after, status_when

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards"]
SIZES = (4, 12, 32, 80)
CHATS = 32


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "flash-attention"])
def process(catalogue: Catalogue, request: pytest.FixtureRequest) -> Iterator[EngineProcess]:
    model = catalogue.resolve(CHAT).main
    with EngineProcess(model, context=512, slots=8, flash_attention=request.param) as process:
        yield process


@pytest.fixture
async def engine(process: EngineProcess) -> AsyncIterator[LlamaClient]:
    async with process.client() as engine:
        yield engine
        await status_when(engine, idle, "the engine to be idle")


def request_of(number: int) -> GenerateRequest:
    dice = random.Random(number)
    said = " ".join(dice.choice(WORDS) for _ in range(SIZES[number % len(SIZES)]))
    return GenerateRequest(
        messages=[{"role": "user", "content": f"Story {number}: {said}"}],
        max_tokens=dice.choice((1, 5, 12)),
        sampling=GREEDY,
        logprobs=2,
        n=2 if number % 8 == 0 else 1,
    )


async def alone(engine: LlamaClient, requests: list[GenerateRequest]) -> list[Answer]:
    """Each by itself, with nothing to reuse: no two share a partition."""
    return [
        await ask(engine, msgspec.structs.replace(request, cache_partition=f"alone {number} {id(requests)}"))
        for number, request in enumerate(requests)
    ]


async def test_chats_at_once_get_what_each_gets_alone(engine: LlamaClient) -> None:
    requests = [request_of(number) for number in range(CHATS)]
    expected = await alone(engine, requests)
    assert all(answer.usage is not None and not answer.usage.cached_tokens for answer in expected)
    for seed in range(2):
        order = random.Random(seed).sample(range(CHATS), CHATS)
        leaving = [leave_after(engine, requests[(7 * k + seed) % CHATS], k % 4) for k in range(12)]
        answers, _ = await asyncio.gather(
            asyncio.gather(*(ask(engine, requests[number]) for number in order)), asyncio.gather(*leaving)
        )
        for number, answer in zip(order, answers, strict=True):
            assert answer.content == expected[number].content, f"request {number} of round {seed}"
    status = await engine.status()
    assert status.tokens_reused > 0, "nothing was reused, so reuse was not shown to be harmless"


async def test_drawn_tokens_depend_on_the_seed_alone(engine: LlamaClient) -> None:
    sampling = Sampling(temperature=1.2, top_p=0.9, top_k=50, seed=5, frequency_penalty=0.5)
    requests = [
        msgspec.structs.replace(request_of(number), sampling=sampling, n=1, max_tokens=8) for number in range(8)
    ]
    expected = await alone(engine, requests)
    again = await asyncio.gather(*(ask(engine, request) for request in requests))
    assert [answer.content for answer in again] == [answer.content for answer in expected]


async def test_choices_of_one_request_are_those_of_their_seeds(engine: LlamaClient) -> None:
    request = msgspec.structs.replace(request_of(3), n=6, max_tokens=8, sampling=Sampling(seed=40))
    together = await ask(engine, request)
    for index in range(6):
        single = msgspec.structs.replace(request, n=1, sampling=Sampling(seed=40 + index))
        assert (await ask(engine, single)).tokens[0] == together.tokens[index]
    assert len({tuple(tokens) for tokens in together.tokens.values()}) > 1


async def test_a_long_chat_pays_for_its_new_turn_only(engine: LlamaClient) -> None:
    told = " ".join(random.Random(1).choice(WORDS) for _ in range(200))
    first = GenerateRequest(
        messages=[{"role": "user", "content": told}], max_tokens=8, sampling=GREEDY, cache_partition="me", logprobs=0
    )
    said = await ask(engine, first)
    second = msgspec.structs.replace(
        first,
        messages=[
            *(first.messages or ()),
            {"role": "assistant", "content": said.text[0]},
            {"role": "user", "content": "And then?"},
        ],
    )
    before = await engine.status()
    reused = await ask(engine, second)
    after = await engine.status()
    assert reused.usage is not None
    assert said.prompt_tokens - 1 <= reused.usage.cached_tokens < reused.prompt_tokens
    assert after.tokens_prefilled - before.tokens_prefilled == reused.prompt_tokens - reused.usage.cached_tokens
    stranger = await ask(engine, msgspec.structs.replace(second, cache_partition="you"))
    assert stranger.usage is not None
    assert stranger.usage.cached_tokens == 0
    assert stranger.content == reused.content


async def test_waiting_is_fair(engine: LlamaClient) -> None:
    """Equal requests get their slots in the order in which they came, and none is passed by for long."""
    requests = [
        GenerateRequest(prompt=f"{number} bottles", max_tokens=6, sampling=GREEDY, logprobs=0) for number in range(32)
    ]
    started: list[int] = []

    async def one(number: int) -> Answer:
        answer = await ask(engine, requests[number])
        started.append(number)
        return answer

    answers = await asyncio.gather(*(one(number) for number in range(32)))
    firsts = [answer.first_s or 0.0 for answer in answers]
    by_first_token = sorted(range(32), key=lambda number: firsts[number])
    # Those that share a step may be told in any order: no more than the slots can be out of place.
    assert all(abs(place - number) < 8 for place, number in enumerate(by_first_token)), by_first_token
    waits = [answer.usage.queue_s for answer in answers if answer.usage is not None]
    assert max(waits[:8]) <= min(waits[8:]), "someone who came later was served before the first eight"
