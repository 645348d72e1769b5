"""More than fits: a full waiting list and a prompt beyond the context are plain refusals, and the rest is served."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.clients import Answer, chat, engine_of, post, posts, settled
from tests.gateway import CHAT, Gateway, open_gateway

pytestmark = pytest.mark.timeout(240)

CONTEXT, SLOTS, WAITING = 160, 2, 6


@pytest.fixture(scope="module")
def small(model_store: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    args = {"context": CONTEXT, "slots": SLOTS, "max_waiting": WAITING}
    settings = {
        "deployments": [{"name": CHAT, "model": CHAT, "engine": "llamacpp", "args": args}],
        "admission": {"max_waiting": WAITING},
    }
    with open_gateway(tmp_path_factory.mktemp("small"), settings, store=model_store) as gateway:
        yield gateway


@pytest.fixture
def same_engine(small: Gateway) -> Iterator[None]:
    before = small.replicas(CHAT)[0]["pid"]
    yield
    replica = small.replicas(CHAT)[0]
    assert (replica["pid"], replica["state"], replica["restarts"]) == (before, "ready", 0)


@pytest.mark.usefixtures("same_engine")
async def test_a_full_waiting_list_is_a_503_that_says_when_to_come_back(small: Gateway) -> None:
    answers = await posts(
        small, (chat("Hi", stream=number % 2 == 0, max_tokens=3, temperature=0) for number in range(60))
    )
    served = [answer for answer in answers if answer.status == 200]
    assert len(served) >= WAITING
    assert all(answer.done and answer.error is None for answer in served)
    refused = [answer for answer in answers if answer.status != 200]
    assert refused, "sixty at once were to be too many"
    for answer in refused:
        assert answer.status == 503
        assert answer.error is not None
        assert answer.error["code"] == "overloaded"
        assert int(answer.headers["retry-after"]) >= 1
    async with engine_of(small) as engine:
        await settled(engine)
    assert (await post(small, chat("Hi", max_tokens=2))).done


@pytest.mark.usefixtures("same_engine")
@pytest.mark.parametrize("length", [1, CONTEXT - 2, CONTEXT - 1, CONTEXT, CONTEXT + 1, 50 * CONTEXT])
async def test_prompts_around_the_end_of_the_context(small: Gateway, length: int) -> None:
    prompt = [1000 + number % 500 for number in range(length)]
    answer = await post(small, {"model": CHAT, "prompt": prompt, "max_tokens": 2**31 - 1}, "/v1/completions")
    if length < CONTEXT:
        assert answer.status == 200, answer.body
        assert answer.usage["prompt_tokens"] == length
        assert 1 <= answer.usage["completion_tokens"] <= CONTEXT - length
        return
    check_too_long(answer, "prompt", length)
    for stream in (True, False):
        check_too_long(await post(small, chat("word " * length, stream=stream)), "messages", None)


def check_too_long(answer: Answer, param: str, length: int | None) -> None:
    assert answer.status == 400
    assert answer.error is not None
    assert (answer.error["code"], answer.error["param"]) == ("context_length_exceeded", param)
    assert answer.error["type"] == "invalid_request_error"
    assert f"maximum context length is {CONTEXT} tokens" in answer.error["message"]
    assert length is None or f"{length} tokens" in answer.error["message"]


@pytest.mark.usefixtures("same_engine")
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [49_152]}, "prompt"),
        ({"prompt": "Hi", "logit_bias": {"49152": 1}}, "logit_bias"),
        ({"prompt": "Hi", "n": 128}, "n"),
    ],
)
async def test_what_only_the_engine_can_know_is_refused_by_name(
    small: Gateway, fields: dict[str, Any], param: str
) -> None:
    answer = await post(small, {"model": CHAT, "max_tokens": 2, **fields}, "/v1/completions")
    assert answer.status == 400, answer.body
    assert answer.error is not None
    assert answer.error["param"] == param


@pytest.mark.usefixtures("same_engine")
async def test_a_temperature_next_to_nothing_is_greedy(small: Gateway) -> None:
    cold, greedy = await posts(
        small, (chat("Count", stream=False, max_tokens=4, temperature=value) for value in (1e-40, 0))
    )
    assert cold.text() == greedy.text()
