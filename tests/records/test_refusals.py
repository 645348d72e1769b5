"""Refusals reach the ledger, at once or together, and a flood stays small."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from appliance.errors import RecordsUnavailable
from appliance.records.refusals import KIND, OTHERS, Refusals, network_of


class Ledger:
    """What works append, as a recorder's transaction would take it."""

    def __init__(self) -> None:
        self.writes: list[list[dict[str, Any]]] = []
        self.failing = False
        self.wrote = asyncio.Event()

    def write(self, work: Callable[[Any], None], *, durable: bool = True) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.failing:
            future.set_exception(RecordsUnavailable("no"))
            return future
        bodies: list[dict[str, Any]] = []

        class Tx:
            def append(self, kind: str, body: dict[str, Any]) -> int:
                assert kind == KIND
                bodies.append(body)
                return len(bodies)

        work(Tx())
        self.writes.append(bodies)
        self.wrote.set()
        future.set_result(None)
        return future


async def test_the_first_is_written_at_once_and_the_rest_together() -> None:
    ledger, now = Ledger(), [1000.0]
    refusals = Refusals(ledger, lambda: now[0], every_s=0.05)
    refusals.note("invalid_api_key", "10.0.0.1", "/v1/models")
    assert ledger.writes == [
        [
            {
                "code": "invalid_api_key",
                "address": "10.0.0.1",
                "endpoint": "/v1/models",
                "count": 1,
                "first_us": 1_000_000_000,
                "last_us": 1_000_000_000,
            }
        ]
    ]
    ledger.wrote.clear()
    for now[0] in (1001.0, 1002.0, 1003.0):
        refusals.note("invalid_api_key", "10.0.0.1", "/v1/models")
        refusals.note("permission_denied", "10.0.0.2", "/admin/v1/keys")
    async with asyncio.timeout(5):
        await ledger.wrote.wait()
    assert [(body["code"], body["count"], body["first_us"], body["last_us"]) for body in ledger.writes[1]] == [
        ("invalid_api_key", 3, 1_001_000_000, 1_003_000_000),
        ("permission_denied", 3, 1_001_000_000, 1_003_000_000),
    ]
    await refusals.close()


async def test_a_flood_from_many_addresses_is_bounded_and_nothing_is_uncounted() -> None:
    ledger = Ledger()
    refusals = Refusals(ledger, lambda: 1.0, every_s=60.0, most=10)
    for number in range(1000):
        refusals.note("invalid_api_key", f"10.0.{number // 256}.{number % 256}", "/v1/models")
    await refusals.close()
    assert len(ledger.writes) == 2
    assert len(ledger.writes[1]) == 11
    assert sum(body["count"] for bodies in ledger.writes for body in bodies) == 1000
    assert OTHERS in {body["address"] for body in ledger.writes[1]}


async def test_while_they_keep_coming_the_records_become_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, loop = Ledger(), asyncio.get_running_loop()
    timers: list[tuple[float, Callable[[], None]]] = []

    def call_later(delay: float, ring: Callable[[], None]) -> asyncio.TimerHandle:
        timers.append((delay, ring))
        return asyncio.TimerHandle(0.0, ring, (), loop)

    refusals = Refusals(ledger, lambda: 1.0, every_s=10.0, slowest_s=75.0)
    with monkeypatch.context() as slow:
        slow.setattr(loop, "call_later", call_later)
        for count in range(1, 8):
            refusals.note("invalid_api_key", "10.0.0.1", "/v1/models")
            assert len(ledger.writes) == count, "what came meanwhile waits for the next"
            refusals.note("invalid_api_key", "10.0.0.1", "/v1/models")
            assert len(ledger.writes) == count
            timers[-1][1]()
        assert [delay for delay, _ in timers] == [10.0, 20.0, 40.0, 75.0, 75.0, 75.0, 75.0, 75.0]
        timers[-1][1]()
        assert len(timers) == 8, "where none comes, nothing is waited for"
        refusals.note("invalid_api_key", "10.0.0.1", "/v1/models")
        assert timers[-1][0] == 10.0, "and the next one is written at once again"
    await refusals.close()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("unix", "unix"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_of_ipv6_the_network_counts(address: str, told: str) -> None:
    assert network_of(address) == told


async def test_trouble_with_the_disk_does_not_reach_the_caller() -> None:
    ledger = Ledger()
    ledger.failing = True
    refusals = Refusals(ledger, lambda: 1.0)
    refusals.note("invalid_api_key", "10.0.0.1", "/v1/models")
    await refusals.close()
    assert ledger.writes == []
