"""Limits through the whole exchange: never over, given back when nothing was used, moved with each attempt."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest

from appliance.limits.admission import Opening
from appliance.limits.fair_queue import Rules
from appliance.limits.rules import rule_of
from appliance.limits.standing import Standing
from appliance.pricing import Prices
from appliance.settings.admission import Priority
from appliance.settings.limiting import Limit, Price
from tests.fakes.house import House, now

PATH = "/v1/chat/completions"
SAY = {"model": "local", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 10}


def limit(house: House, *limits: dict[str, Any]) -> None:
    rules = [rule_of(Limit.model_validate(each)) for each in limits]
    house.gateway.limits.book.change(rules, now())


def standing(house: House) -> dict[str, Standing]:
    return {f"{each.whom}:{each.measure}": each for _, each in house.gateway.limits.book.usage(now())}


def nothing_is_left(house: House) -> None:
    assert all(each.reserved == 0 for each in standing(house).values())
    assert house.gateway.limits.book.under_way(now()) == []


@pytest.mark.parametrize(
    ("rule", "admitted"),
    [
        ({"scope": "key", "requests": "10/hour"}, 10),
        # The worst case of each is 64 tokens of prompt (the bound here) and 10 of answer; 7 and 6 are really used.
        ({"scope": "key", "tokens": "740/hour"}, 10),
        ({"scope": "box", "usd": "0.00074/month"}, 10),
        ({"scope": "route", "in_flight": 10}, 10),
    ],
    ids=["requests", "tokens", "money", "in flight"],
)
async def test_200_at_once_on_a_budget_for_10(house: House, rule: dict[str, Any], admitted: int) -> None:
    limit(house, rule)
    house.gateway.limits.prices = Prices([Price(target="local", input="1", output="1")])
    hold = {**SAY, "messages": [{"role": "user", "content": "!hold"}]}
    tasks = [asyncio.create_task(house.post(PATH, hold)) for _ in range(200)]
    for _ in range(admitted):
        await house.engine.holding.acquire()
    done: set[asyncio.Task[Any]] = set()
    pending: set[asyncio.Task[Any]] = set(tasks)
    async with asyncio.timeout(20):
        while len(done) < 200 - admitted:
            more, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            done |= more
    assert (len(pending), house.engine.running) == (admitted, admitted)
    statuses = Counter(task.result().status for task in done)
    assert statuses == {429: 200 - admitted}
    some = next(iter(done)).result()
    error = (await some.json())["error"]
    assert error["type"] == "rate_limit_error"
    assert "The limit" in error["message"]
    assert int(some.headers["Retry-After"]) >= 1
    house.engine.release.set()
    assert {(await task).status for task in pending} == {200}
    await house.recorder.wait_for(200)
    nothing_is_left(house)


async def test_what_was_not_used_is_given_back_at_the_end(house: House) -> None:
    limit(house, {"scope": "key", "tokens": "150/hour"})
    for _ in range(2):
        response = await house.post(PATH, SAY)
        assert response.status == 200
    used = standing(house)["k-user:tokens"]
    assert (used.used, used.reserved) == (26, 0), "7 of each prompt and 6 of each answer"
    row = house.recorder.rows[-1]
    assert [(charge.amount, charge.counter.split("|")[2]) for charge in row.charges] == [(13, "tokens")]


@pytest.mark.parametrize("marker", ["!invalid", "!lost", "!context", "!overloaded"])
async def test_who_gets_nothing_pays_nothing(house: House, marker: str) -> None:
    limit(house, {"scope": "key", "requests": "3/hour", "tokens": "1000/hour"})
    for _ in range(5):
        response = await house.post(PATH, {**SAY, "messages": [{"role": "user", "content": marker}]})
        assert response.status not in (200, 429)
    assert standing(house) == {}
    assert all(row.charges == [] for row in house.recorder.rows)


async def test_who_waited_in_vain_pays_nothing(house: House) -> None:
    limit(house, {"scope": "key", "requests": "3/minute"})
    waits: dict[Priority, float] = {"interactive": 0.05, "normal": 0.05, "batch": 0.05}
    house.gateway.gates.apply(Rules(max_wait=waits), [Opening("local", ("local",), 1)])
    first = asyncio.create_task(house.post(PATH, {**SAY, "messages": [{"role": "user", "content": "!hold"}]}))
    await house.engine.holding.acquire()
    refused = await house.post(PATH, SAY)
    assert (refused.status, (await refused.json())["error"]["code"]) == (503, "queue_timeout")
    assert (await house.recorder.wait_for(1)).charges == []
    house.engine.release.set()
    assert (await first).status == 200
    assert [(await house.post(PATH, SAY)).status for _ in range(3)] == [200, 200, 429]


async def test_a_broken_stream_costs_what_came(house: House) -> None:
    limit(house, {"scope": "key", "tokens": "1000/hour"})
    body = {**SAY, "messages": [{"role": "user", "content": "!dies"}], "stream": True}
    await house.post(PATH, body)
    assert standing(house)["k-user:tokens"].used == 7 + 2


async def test_a_client_that_leaves_pays_for_what_was_done(house: House) -> None:
    limit(house, {"scope": "key", "tokens": "1000/hour", "in_flight": 1})
    body = {**SAY, "messages": [{"role": "user", "content": "!stall"}], "stream": True}
    task = asyncio.create_task(house.post(PATH, body))
    await house.engine.holding.acquire()
    assert (await house.post(PATH, SAY)).status == 429
    task.cancel()
    row = await house.recorder.wait_for(2)
    assert row.outcome == "client_closed"
    assert standing(house)["k-user:tokens"].used == 7 + 2
    nothing_is_left(house)
    assert (await house.post(PATH, SAY)).status == 200


async def test_a_provider_without_budget_is_passed_by(house: House) -> None:
    limit(house, {"scope": "provider", "match": {"provider": "fake"}, "requests": "1/hour"})
    local = house.gateway.router.find("local").targets[0]
    house.route("either", "ok", local)
    answers = [await house.chat("either") for _ in range(3)]
    assert [answer.headers["x-outpost-target"] for answer in answers] == ["fake/ok", "local", "local"]
    refused = await house.chat("remote")
    assert (refused.status, (await refused.json())["error"]["code"]) == (429, "rate_limit_exceeded")


async def test_an_attempt_that_failed_frees_its_provider(house: House) -> None:
    limit(
        house,
        {"scope": "provider", "requests": "5/hour", "tokens": "10000/hour"},
        {"scope": "key", "requests": "5/hour"},
    )
    local = house.gateway.router.find("local").targets[0]
    house.route("either", "500", local)
    assert (await house.chat("either")).status == 200
    found = standing(house)
    assert {name: each.used for name, each in found.items()} == {"k-user:requests": 1}


async def test_every_attempt_is_paid_to_the_target_that_did_the_work(house: House) -> None:
    house.gateway.limits.prices = Prices([Price(target="fake/ok", input="1", output="2", request="0.5")])
    answer = await house.chat("remote")
    assert answer.status == 200
    row = await house.recorder.wait_for(1)
    usage = (await answer.json())["usage"]
    expected = usage["prompt_tokens"] * 1000 + usage["completion_tokens"] * 2000 + 500_000_000
    assert row.cost_nanousd == expected == row.attempts[0].cost_nanousd
    assert (row.attempts[0].prompt_tokens, row.attempts[0].completion_tokens) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_without_usage_is_not_free(house: House, stream: bool) -> None:
    limit(house, {"scope": "key", "tokens": "100000/hour"})
    house.route("silent", "no-usage")
    assert (await house.chat("silent", stream=stream)).status == 200
    row = await house.recorder.wait_for(1)
    assert (row.usage_source, row.prompt_tokens) == ("estimated", 64), "the bound of the prompt"
    assert row.completion_tokens > 0
    assert standing(house)["k-user:tokens"].used == row.prompt_tokens + row.completion_tokens


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_say_how_much_is_left(house: House, stream: bool) -> None:
    limit(house, {"name": "fair", "scope": "key", "requests": "100/minute", "tokens": "5000/minute"})
    response = await house.post(PATH, {**SAY, "stream": stream})
    assert response.headers["x-ratelimit-limit-requests"] == "100"
    assert response.headers["x-ratelimit-remaining-requests"] == "99"
    # A stream begins while all of its worst case is reserved; a whole answer knows what was used.
    assert response.headers["x-ratelimit-remaining-tokens"] == str(5000 - (74 if stream else 13))
    assert '"fair-requests";q=100;w=60' in response.headers["RateLimit-Policy"]
    assert '"fair-requests";r=99' in response.headers["RateLimit"]


async def test_a_refusal_says_how_much_is_left_too(house: House) -> None:
    limit(house, {"name": "one", "scope": "key", "requests": "1/hour"})
    await house.post(PATH, SAY)
    response = await house.post(PATH, SAY)
    assert response.status == 429
    assert response.headers["x-ratelimit-remaining-requests"] == "0"
    assert "The limit one allows 1 request an hour for the key" in (await response.json())["error"]["message"]
    row = await house.recorder.wait_for(2)
    assert (row.outcome, row.error_code, row.charges) == ("refused", "rate_limit_exceeded", [])


async def test_the_exact_count_decides_where_the_bound_would_refuse(house: House) -> None:
    # The bound says 64 tokens of prompt; the model's own tokenizer says 7.
    limit(house, {"scope": "key", "input_tokens": "10/hour"})
    assert (await house.post(PATH, SAY)).status == 200
    assert standing(house)["k-user:input_tokens"].used == 7
    assert (await house.post(PATH, SAY)).status == 429


async def test_a_request_that_can_never_fit_is_told_how_it_would(house: House) -> None:
    limit(house, {"scope": "key", "output_tokens": "5/hour"})
    response = await house.post(PATH, SAY)
    error = (await response.json())["error"]
    assert (response.status, error["code"], error["param"]) == (400, "limit_too_small", "max_tokens")
    assert (await house.post(PATH, {**SAY, "max_tokens": 5})).status == 200


async def test_a_row_that_cannot_be_written_still_counts(house: House) -> None:
    limit(house, {"scope": "key", "tokens": "1000/hour"})
    house.recorder.failing = True
    assert (await house.post(PATH, SAY)).status == 503
    assert standing(house)["k-user:tokens"].used == 13
    store: Any = house.gateway.limits.store
    assert (store.recorded, store.unrecorded) == (0, 1)


async def test_embeddings_count_too(house: House) -> None:
    limit(house, {"scope": "key", "tokens": "1000/hour"})
    response = await house.post("/v1/embeddings", {"model": "embedder", "input": ["a", "b"]})
    assert response.status == 200
    used = json.loads(await response.read())["usage"]["prompt_tokens"]
    assert standing(house)["k-user:tokens"].used == used


@pytest.mark.parametrize("limit_text", ["80/hour", "1000/hour"], ids=["no room for another", "room"])
async def test_an_attempt_that_died_is_paid_whether_or_not_another_is_allowed(house: House, limit_text: str) -> None:
    limit(house, {"scope": "key", "tokens": limit_text})
    house.route("twice", house.gateway.router.find("local").targets[0], retries=1)
    answer = await house.chat("twice", "!dies", max_tokens=10)
    row = await house.recorder.wait_for(1)
    attempts = [(attempt.prompt_tokens, attempt.completion_tokens) for attempt in row.attempts]
    assert (answer.status, attempts) == (503, [(7, 2)] * (1 if limit_text == "80/hour" else 2))
    assert sum(charge.amount for charge in row.charges) == 9 * len(attempts)
    assert standing(house)["k-user:tokens"].used == 9 * len(attempts)
    nothing_is_left(house)


async def test_a_target_that_no_limit_allows_is_passed_by_after_a_failure(house: House) -> None:
    limit(house, {"scope": "provider", "match": {"provider": "fake"}, "output_tokens": "5/hour"})
    local = house.gateway.router.find("local").targets[0]
    house.route("dear", local, "ok", house.gateway.router.find("local").targets[0], retries=1)
    answer = await house.chat("dear", "!lost", max_tokens=10)
    row = await house.recorder.wait_for(1)
    assert (answer.status, [attempt.target for attempt in row.attempts]) == (503, ["local", "local"])
    assert (row.error_code, row.charges) == ("engine_lost", [])
