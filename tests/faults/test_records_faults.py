"""The record cannot be written: no answer reaches its last byte, everybody is told soon, and it heals by itself."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import fake_routes
from tests.e2e.clients import Answer, chat, client, post
from tests.gateway import Gateway, UpstreamThread

TOLD_WITHIN_S = 2.0
LOCKED_S = 10.0
LIMITS = "/admin/v1/limits"
SLACK_S = 2.0
"""For a machine that has much else to do."""
NewGateway = Callable[..., Gateway]


@pytest.fixture
def recording(new_gateway: NewGateway, upstream: UpstreamThread) -> Gateway:
    settings = {**fake_routes(upstream, "ok", "500"), "deployments": []}
    settings["routes"] = [route for route in settings["routes"] if route["model"].startswith("fake-")]
    settings["limits"] = [{"name": "all", "scope": "box", "requests": "1000000/day", "tokens": "1000000000/day"}]
    return new_gateway(settings)


def bodies(count: int) -> list[dict[str, Any]]:
    return [
        chat("Hi", model="fake-500" if number % 5 == 4 else "fake-ok", stream=number % 2 == 0)
        for number in range(count)
    ]


async def ask(gateway: Gateway, count: int) -> list[Answer]:
    return list(await asyncio.gather(*(post(gateway, body) for body in bodies(count))))


def check_refused(answers: list[Answer]) -> None:
    for answer in answers:
        assert answer.complete
        assert answer.error is not None, answer.body
        assert answer.error["code"] == "records_unavailable"
        assert answer.status == (200 if answer.streamed else 503)
        assert not (answer.streamed and answer.done)
        assert answer.ended_s - answer.began_s < TOLD_WITHIN_S + SLACK_S
        if not answer.streamed:
            assert "retry-after" in answer.headers


async def check_healed(gateway: Gateway) -> None:
    await asyncio.to_thread(gateway.wait_for, lambda: gateway.status()["recording"], "the record to work again")
    healed = await ask(gateway, 10)
    assert all(answer.done for answer in healed)
    assert {answer.error["code"] for answer in healed if answer.error} <= {"upstream_error", "upstream_unavailable"}
    found = {row["id"] for row in gateway.rows()}
    assert {answer.id for answer in healed} <= found


def used(gateway: Gateway) -> dict[str, int]:
    """What is charged to the limit over everything, by measure. Nothing may be reserved."""
    found = gateway.control.call("GET", f"{LIMITS}/usage", query={"limit": "all"})
    assert [each for each in found if each["reserved"]] == []
    return {each["measure"]: each["used"] for each in found}


async def check_nothing_is_lost_or_double(gateway: Gateway, done: list[Answer]) -> None:
    """Limits say after a restart what they said before, and at least what was answered."""
    before = used(gateway)
    assert before["requests"] >= sum(answer.status == 200 and answer.error is None for answer in done)
    assert await asyncio.to_thread(gateway.stop) == 0
    await asyncio.to_thread(gateway.start)
    assert used(gateway) == before


async def change_in_vain(gateway: Gateway, name: str) -> bool:
    """An operator's change while hardly anything can be written: refused in time. False if it was made after all."""
    began = time.monotonic()
    async with gateway_operator(gateway) as operator:
        response = await operator.post(LIMITS, json={"name": name, "scope": "user", "requests": "1/day"})
    assert time.monotonic() - began < TOLD_WITHIN_S + SLACK_S
    if response.status_code == 201:
        return False
    assert response.status_code == 503, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "records_unavailable"
    return True


async def check_changes_are_whole(gateway: Gateway, names: list[str], made: Sequence[str] = ()) -> None:
    """Each change that was refused has happened as a whole, ledger and all, or not at all; those that were made are
    there; and all that is kept is in force."""
    connection = sqlite3.connect(f"file:{gateway.data_dir}/outpost.db?mode=ro", uri=True)
    try:
        kept = {name for (name,) in connection.execute("SELECT name FROM limits")}
        query = "SELECT json_extract(body, '$.after.name') FROM events WHERE kind = 'admin.limit.create'"
        noted = [name for (name,) in connection.execute(query)]
    finally:
        connection.close()
    assert sorted(noted) == sorted(kept)
    assert set(made) <= kept

    def in_force() -> bool:
        return {each["name"] for each in gateway.control.call("GET", LIMITS)} == kept | {"all"}

    await asyncio.to_thread(gateway.wait_for, in_force, "what is kept to be in force")
    for name in set(names) - kept:
        async with gateway_operator(gateway) as operator:
            response = await operator.post(LIMITS, json={"name": name, "scope": "user", "requests": "1/day"})
        assert response.status_code == 201, response.text


def gateway_operator(gateway: Gateway) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=gateway.operator_url, headers=gateway.headers, timeout=30.0)


def recorded_ids(gateway: Gateway) -> set[str]:
    connection = sqlite3.connect(f"file:{gateway.data_dir}/outpost.db?mode=ro", uri=True)
    try:
        return {row[0] for row in connection.execute("SELECT id FROM exchanges")}
    finally:
        connection.close()


async def test_a_database_that_is_locked_for_ten_seconds(recording: Gateway, upstream: UpstreamThread) -> None:
    await check_healed(recording)
    lock = sqlite3.connect(recording.data_dir / "outpost.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    seen: list[Answer] = []
    try:
        refused, in_vain = await asyncio.gather(ask(recording, 20), change_in_vain(recording, "locked-1"))
        assert in_vain
        check_refused(refused)
        async with asyncio.timeout(10):
            readyz = await _get(recording, "/readyz")
        assert readyz.status == 503
        assert (await _get(recording, "/healthz")).status == 200
        # Known to be down: nothing is asked of a target whose answer could not be kept.
        asked = len(upstream.fake.seen)
        refused = await ask(recording, 4)
        check_refused(refused)
        assert {answer.status for answer in refused} == {503}
        assert len(upstream.fake.seen) == asked
        assert await change_in_vain(recording, "locked-2")
        while time.monotonic() - began < LOCKED_S:
            # Whoever comes before it is noticed again must be told in time, too.
            seen += await ask(recording, 4)
            await asyncio.sleep(0.3)
        check_refused(seen)
    finally:
        lock.execute("ROLLBACK")
        lock.close()
    await check_healed(recording)
    await check_changes_are_whole(recording, ["locked-1", "locked-2"])
    await check_nothing_is_lost_or_double(recording, seen)


async def test_a_full_disk(recording: Gateway) -> None:
    """A limit on file sizes, which is set and lifted from outside, is to SQLite what a full disk is."""
    await check_healed(recording)
    process = psutil.Process(recording.pid)
    size = max(path.stat().st_size for path in Path(recording.data_dir).glob("outpost.db*"))
    seen: list[Answer] = []
    process.rlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        for _ in range(200):
            answers = await ask(recording, 10)
            seen += answers
            if all(answer.error and answer.error["code"] == "records_unavailable" for answer in answers):
                break
        else:
            pytest.fail("the limit was never met")
        # A page that is half empty may still take a row; what matters is that nothing else is answered.
        refused: list[Answer] = []
        for _ in range(20):
            last = await ask(recording, 10)
            seen += last
            refused = [answer for answer in last if (answer.error or {}).get("code") == "records_unavailable"]
            if refused:
                break
        assert refused
        check_refused(refused)
        assert sorted(answer.ended_s - answer.began_s for answer in refused)[len(refused) // 2] < 1.0
        # SQLite may begin its log anew, and has room in it until that is as long as it was.
        refusals: dict[str, bool] = {}
        while sum(refusals.values()) < 3 and len(refusals) < 100:
            name = f"full-{'x' * 50}{len(refusals)}"
            refusals[name] = await change_in_vain(recording, name)
        assert sum(refusals.values()) == 3
    finally:
        process.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await check_healed(recording)
    found = recorded_ids(recording)
    kept = [answer for answer in seen if answer.done and (answer.error or {}).get("code") != "records_unavailable"]
    assert [answer.id for answer in kept if answer.id not in found] == []
    await check_changes_are_whole(recording, list(refusals), [name for name in refusals if not refusals[name]])
    await check_nothing_is_lost_or_double(recording, kept)


async def _get(gateway: Gateway, path: str) -> Answer:
    async with client(gateway) as one:
        await one.send(path, {}, method="GET")
        await one.head()
        return await one.rest()
