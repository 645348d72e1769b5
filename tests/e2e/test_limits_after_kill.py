"""kill -9 of the real gateway shortly after its last answer: the next start counts what the records charge, no more."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.e2e.clients import post
from tests.e2e.test_limits import LIMITS, ask, charges, until_held, usage, with_limits, worst
from tests.fakes.upstream import BEHAVIOURS, Reply, Seen, chat_whole
from tests.gateway import Gateway, UpstreamThread

pytestmark = pytest.mark.timeout(240)

NewGateway = Callable[..., Gateway]
BUDGET, DONE = 10, 5


@pytest.fixture
def upstream() -> Iterator[UpstreamThread]:
    with UpstreamThread() as upstream:
        yield upstream


def asked(gateway: Gateway, query: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{gateway.data_dir}/outpost.db?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


def held(gateway: Gateway) -> dict[str, int]:
    """By measure, what a start would count beside what is on record."""
    return {
        name.split("|")[2]: most for name, most in asked(gateway, "SELECT counter, held FROM limit_counters") if most
    }


def lowered(gateway: Gateway) -> list[bool]:
    """Nothing while something is held; then whether that came to pass before a checkpoint took in the newest record."""
    query = """SELECT (SELECT max(held) FROM limit_counters),
        (SELECT as_of FROM limit_counters WHERE counter = '*') < (SELECT max(seq) FROM exchanges)"""
    ((most, behind),) = asked(gateway, query)
    return [] if most else [bool(behind)]


def told(gateway: Gateway) -> dict[str, int]:
    """By measure, what the ledger says of what starts have counted so."""
    found: dict[str, int] = {}
    for (text,) in asked(gateway, "SELECT body FROM events WHERE kind = 'limits.interrupted'"):
        for each in json.loads(text)["counters"]:
            measure = each["counter"].split("|")[2]
            found[measure] = found.get(measure, 0) + each["amount"]
    return found


async def killed_and_started(gateway: Gateway) -> None:
    await asyncio.to_thread(gateway.kill)
    await asyncio.to_thread(gateway.start)


async def test_what_was_done_before_a_kill_counts_once(new_gateway: NewGateway, upstream: UpstreamThread) -> None:
    prompt, answer = worst()
    limits = {"requests": {"requests": f"{BUDGET}/day"}, "tokens": {"tokens": f"{BUDGET * (prompt + answer)}/day"}}
    gateway = new_gateway(with_limits(upstream, limits, BEHAVIOURS["ok"]))
    behind = []
    for _ in range(DONE):
        for name in limits:
            assert (await post(gateway, ask(name))).status == 200
        behind += await asyncio.to_thread(gateway.wait_for, lambda: lowered(gateway), "what is held to be lowered", 10)
    assert any(behind), "it was never lowered before the next checkpoint"
    await killed_and_started(gateway)
    charged, found = charges(gateway), usage(gateway)
    assert charged["requests"] == DONE
    assert {name: found[f"{name}:{name}"]["used"] for name in limits} == dict(charged.items())
    assert told(gateway) == {}
    assert {each["reserved"] for each in gateway.control.call("GET", f"{LIMITS}/usage")} == {0}
    statuses = [(await post(gateway, ask("requests"))).status for _ in range(BUDGET)]
    assert statuses == [200] * (BUDGET - DONE) + [429] * DONE


async def test_what_was_under_way_at_a_kill_counts_and_is_told(
    new_gateway: NewGateway, upstream: UpstreamThread
) -> None:
    def some_wait(seen: Seen) -> Reply:
        return Reply(body=chat_whole(), hold=len(upstream.fake.seen) > DONE)

    prompt, answer = worst()
    limits = {"tokens": {"tokens": f"{BUDGET * (prompt + answer)}/day"}}
    gateway = new_gateway(with_limits(upstream, limits, some_wait))
    assert [(await post(gateway, ask("tokens"))).status for _ in range(DONE)] == [200] * DONE
    waits = asyncio.ensure_future(post(gateway, ask("tokens")))
    await until_held(upstream, 1)
    most = {"tokens": prompt + answer}
    await asyncio.to_thread(gateway.wait_for, lambda: held(gateway) == most, "what is held to be lowered", 10)
    await killed_and_started(gateway)
    await asyncio.gather(waits, return_exceptions=True)
    assert told(gateway) == most
    assert usage(gateway)["tokens:tokens"]["used"] == charges(gateway)["tokens"] + most["tokens"]
    await killed_and_started(gateway)
    assert told(gateway) == most, "once"
    assert usage(gateway)["tokens:tokens"]["used"] == charges(gateway)["tokens"] + most["tokens"]
