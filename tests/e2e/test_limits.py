"""Limits of the real gateway: never more than they allow, whatever comes at once and however the gateway ends."""

from __future__ import annotations

import asyncio
import collections
import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from appliance.account import prompt_bound
from appliance.dialects.kinds import CHAT as CHATS
from appliance.records.rows import read_charges
from appliance.settings.rates import format_usd
from tests.e2e.clients import Answer, chat, post
from tests.fakes.upstream import BEHAVIOURS, Reply, Seen, chat_whole
from tests.gateway import CHAT, Gateway, UpstreamThread

pytestmark = pytest.mark.timeout(240)

NewGateway = Callable[..., Gateway]
LIMITS = "/admin/v1/limits"
AT_ONCE = 200
ALLOWED = 10
MOST = 20
"""Tokens of an answer."""
REALLY = 9
"""Tokens that the fake upstream reports of a request."""
INPUT, OUTPUT = 1000, 2000
"""Nano-USD of a token."""


@pytest.fixture
def upstream() -> Iterator[UpstreamThread]:
    """One of the test's own: what it holds back and releases is no other test's business."""
    with UpstreamThread() as upstream:
        yield upstream


def ask(route: str, said: str = "Hi", **fields: Any) -> dict[str, Any]:
    return chat(said, model=route, stream=False, max_tokens=MOST, **fields)


def worst() -> tuple[int, int]:
    """Tokens of the prompt and of the answer that are reserved for `ask`."""
    return prompt_bound(CHATS.parse(json.dumps(ask("any")).encode(), 64).request), MOST


def with_limits(
    upstream: UpstreamThread, limits: dict[str, dict[str, Any]], reply: Callable[[Seen], Reply]
) -> dict[str, Any]:
    """Settings with a route to a model of the fake upstream for each limit, which is named like it and holds for it
    alone."""
    for name in limits:
        upstream.call(partial(upstream.fake.behave, name, reply))
    return {
        "deployments": [],
        "providers": [{"name": "fake", "kind": "openai", "zone": "on_box", "base_url": upstream.url}],
        "routes": [{"model": name, "retries": 0, "targets": [{"provider": "fake", "model": name}]} for name in limits],
        "limits": [{"name": name, "scope": "route", "match": {"route": name}, **each} for name, each in limits.items()],
        "prices": [{"target": f"fake/{name}", "input": INPUT / 1000, "output": OUTPUT / 1000} for name in limits],
    }


def usage(gateway: Gateway) -> dict[str, dict[str, Any]]:
    """By limit and measure; money as nano-USD."""
    found = {}
    for each in gateway.control.call("GET", f"{LIMITS}/usage"):
        for field in ("amount", "used", "reserved", "remaining"):
            if isinstance(each[field], str):
                each[field] = round(float(each[field]) * 1e9)
        found[f"{each['name']}:{each['measure']}"] = each
    return found


def seen(upstream: UpstreamThread) -> list[Seen]:
    found: list[Seen] = upstream.call(lambda: list(upstream.fake.seen))
    return found


async def until_held(upstream: UpstreamThread, count: int) -> None:
    for _ in range(count):
        await asyncio.wait_for(asyncio.wrap_future(upstream.begin(upstream.fake.sending.acquire)), 60)


async def test_200_at_once_on_budgets_for_10(new_gateway: NewGateway, upstream: UpstreamThread) -> None:
    prompt, answer = worst()
    budgets: dict[str, dict[str, Any]] = {
        "requests": {"requests": f"{ALLOWED}/hour"},
        "tokens": {"tokens": f"{ALLOWED * (prompt + answer)}/hour"},
        "output_tokens": {"output_tokens": f"{ALLOWED * answer}/hour"},
        "usd": {"usd": f"{format_usd(ALLOWED * (prompt * INPUT + answer * OUTPUT))}/month"},
        "in_flight": {"in_flight": ALLOWED},
    }
    gateway = new_gateway(with_limits(upstream, budgets, BEHAVIOURS["silent"]))
    for name in budgets:
        before = len(seen(upstream))
        asking = {asyncio.ensure_future(post(gateway, ask(name))) for _ in range(AT_ONCE)}
        await until_held(upstream, ALLOWED)
        refused: list[Answer] = []
        async with asyncio.timeout(60):
            while len(refused) < AT_ONCE - ALLOWED:
                done, asking = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                refused += [task.result() for task in done]
        assert len(seen(upstream)) - before == ALLOWED
        under_way = usage(gateway)[f"{name}:{name}"]
        assert (under_way["used"], under_way["remaining"]) == (0, 0)
        assert under_way["reserved"] == under_way["amount"]
        for each in refused:
            assert each.status == 429
            assert each.error is not None
            assert f"The limit {name} " in each.error["message"]
            assert each.error["code"] == ("budget_exceeded" if name == "usd" else "rate_limit_exceeded")
            assert int(each.headers["retry-after"]) >= 1
        if name not in ("usd", "in_flight"):
            measure = "requests" if name == "requests" else "tokens"
            assert {each.headers[f"x-ratelimit-remaining-{measure}"] for each in refused} == {"0"}
            assert all(f'"{name}-{name}";r=0' in each.headers["ratelimit"] for each in refused)
        upstream.call(upstream.fake.release.set)
        answers = await asyncio.gather(*asking)
        upstream.call(upstream.fake.release.clear)
        assert {each.status for each in answers} == {200}
        after = usage(gateway).get(f"{name}:{name}", {"reserved": 0, "used": 0})
        real = {"requests": 1, "tokens": REALLY, "output_tokens": 4, "usd": 5 * INPUT + 4 * OUTPUT, "in_flight": 0}
        assert (after["reserved"], after["used"]) == (0, ALLOWED * real[name])
        if name == "requests":
            assert {each.headers["x-ratelimit-limit-requests"] for each in answers} == {str(ALLOWED)}
    outcomes = collections.Counter(row["outcome"] for row in gateway.rows())
    outcomes += collections.Counter(row["outcome"] for row in gateway.rows(after=1000))
    assert outcomes["completed"] == ALLOWED * len(budgets)


async def test_retry_after_is_true(new_gateway: NewGateway, upstream: UpstreamThread) -> None:
    limits = {"burst": {"requests": "2/4s"}, "one": {"in_flight": 1}}
    gateway = new_gateway(with_limits(upstream, limits, BEHAVIOURS["ok"]))
    began = time.monotonic()
    assert [(await post(gateway, ask("burst"))).status for _ in range(2)] == [200, 200]
    first = await post(gateway, ask("burst"))
    told_at, told = time.monotonic(), int(first.headers["retry-after"])
    assert first.status == 429
    assert first.error is not None
    assert f"Try again in {told} s." in first.error["message"]
    assert told_at - began < 3, "the machine is too busy to tell"
    async with asyncio.timeout(20):
        while (await post(gateway, ask("burst"))).status == 429:
            await asyncio.sleep(0.05)
    waited = time.monotonic() - told_at
    assert told - 2 < waited <= told + 1


BUDGET, AT_A_TIME = 60, 25
"""Requests at their worst, in all and between one kill and the next."""


async def test_kill_in_the_middle_and_start_again(new_gateway: NewGateway, upstream: UpstreamThread) -> None:
    """Some requests are over, some under way and some refused when the gateway dies: nothing stays reserved, and what
    was used stays used."""
    prompt, answer = worst()
    amounts = {
        "requests": BUDGET,
        "tokens": BUDGET * (prompt + answer),
        "usd": BUDGET * (prompt * INPUT + answer * OUTPUT),
    }
    limits: dict[str, dict[str, Any]] = {
        "requests": {"requests": f"{amounts['requests']}/day", "in_flight": 100},
        "tokens": {"tokens": f"{amounts['tokens']}/day"},
        "usd": {"usd": f"{format_usd(amounts['usd'])}/month"},
    }

    def some_wait(seen: Seen) -> Reply:
        return Reply(body=chat_whole(), hold=len(upstream.fake.seen) % 3 == 0)

    gateway = new_gateway(with_limits(upstream, limits, some_wait))
    asked: collections.Counter[str] = collections.Counter()
    for number in range(4):
        asking = [asyncio.ensure_future(post(gateway, ask(name))) for _ in range(AT_A_TIME) for name in limits]
        done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED, timeout=60)
        assert done
        await asyncio.sleep(0.02 * number)
        os.kill(gateway.pid, signal.SIGKILL)
        gateway.kill()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert any(isinstance(each, Answer) and each.status == 200 for each in answers) or number > 0
        await asyncio.to_thread(gateway.start)
        asked = collections.Counter(each.body["model"] for each in seen(upstream))
        charged = charges(gateway)
        # Nothing is known of a limit of which nothing was used before the first kill.
        found = {f"{name}:{name}": {"measure": name, "reserved": 0, "used": 0} for name in amounts} | usage(gateway)
        for name, amount in amounts.items():
            each = found[f"{name}:{name}"]
            assert each["reserved"] == 0
            # What was dispatched in the last seconds may count twice, as no one can tell whether it was over.
            assert charged[name] <= each["used"] <= charged[name] + (number + 1) * AT_A_TIME * amount // BUDGET
        # What the upstream saw was counted, each with at least what it really cost.
        assert asked["requests"] <= found["requests:requests"]["used"]
        assert asked["tokens"] * REALLY <= found["tokens:tokens"]["used"]
        assert asked["usd"] * (5 * INPUT + 4 * OUTPUT) <= found["usd:usd"]["used"]
        assert not [each for each in found.values() if each["measure"] == "in_flight"]
    upstream.call(upstream.fake.release.set)
    last = await asyncio.gather(*(post(gateway, ask("requests")) for _ in range(60)))
    assert {each.status for each in last} <= {200, 429}
    assert any(each.status == 429 for each in last)
    asked = collections.Counter(each.body["model"] for each in seen(upstream))
    assert asked["requests"] <= amounts["requests"]
    assert usage(gateway)["requests:requests"]["used"] >= amounts["requests"]


def charges(gateway: Gateway) -> collections.Counter[str]:
    """By measure, what the rows on record have charged."""
    found: collections.Counter[str] = collections.Counter()
    connection = sqlite3.connect(f"file:{gateway.data_dir}/outpost.db?mode=ro", uri=True)
    try:
        for (text,) in connection.execute("SELECT charges FROM exchanges"):
            for charge in read_charges(text):
                found[charge.counter.split("|")[2]] += charge.amount
    finally:
        connection.close()
    return found


async def test_a_real_engine_counts_for_itself(new_gateway: NewGateway) -> None:
    """The bound of the prompt would refuse what the model's own tokenizer lets through; in the end no token is over."""
    body = chat("Say hi", stream=False, max_tokens=5, temperature=0)
    settings: dict[str, Any] = {"deployments": [{"name": CHAT, "model": CHAT, "engine": "llamacpp"}]}
    gateway = new_gateway(settings)
    one = await post(gateway, body)
    each_needs = one.usage["prompt_tokens"] + 5
    budget = ALLOWED * each_needs
    gateway.control.call("POST", LIMITS, body={"name": "tight", "scope": "key", "tokens": f"{budget}/hour"})
    # All at once each is reserved for with the bound where that fits, and so a few get through; then one by one, as
    # long as there is room.
    answers = list(await asyncio.gather(*(post(gateway, body) for _ in range(60))))
    assert {each.status for each in answers} == {200, 429}
    while (last := await post(gateway, body)).status == 200:
        answers.append(last)
    paid = [each for each in answers if each.status == 200]
    used = sum(each.usage["total_tokens"] for each in paid)
    assert budget - each_needs < used <= budget
    assert len(paid) >= ALLOWED
    found = usage(gateway)["tight:tokens"]
    assert (found["used"], found["reserved"]) == (used, 0)
