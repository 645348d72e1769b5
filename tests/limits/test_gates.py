"""All gates: capacities follow replicas and settings, and a reload strands nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import cast

import pytest

from appliance.errors import Unavailable
from appliance.limits.admission import Gates, Opening, follow
from appliance.limits.fair_queue import Rules
from tests.limits.waiting_room import Guest, StepLoop, gate_on


@pytest.fixture
def loop() -> Iterator[StepLoop]:
    loop = StepLoop()
    yield loop
    loop.end()


class House:
    """Gates with one deployment and one provider."""

    SMALL = Opening("small", ("small",), 2, replicated=True)
    LAB = Opening("lab/*", ("lab/x", "lab/y"), 1)

    def __init__(self, loop: StepLoop) -> None:
        self.loop = loop
        self.gates: Gates
        loop.run_until_complete(self._make())

    async def _make(self) -> None:
        self.gates = Gates()
        self.gates.apply(Rules(), [self.SMALL, self.LAB])

    def apply(self, *openings: Opening, rules: Rules | None = None) -> None:
        async def apply() -> None:
            self.gates.apply(rules or Rules(), openings)

        self.loop.run_until_complete(apply())
        self.loop.settle()

    def guest(self, target: str, choices: int = 1) -> Guest:
        guest = Guest(self.loop, self.gates.enter(target, "normal", "a", choices=choices))
        self.loop.settle()
        return guest


@pytest.fixture
def house(loop: StepLoop) -> House:
    return House(loop)


def test_a_deployment_has_places_for_each_ready_replica_and_a_place_a_choice(house: House) -> None:
    first, second = house.guest("small", choices=3), house.guest("small")
    assert (first.inside, second.inside) == (False, False)
    house.gates.ready("small", 1)
    house.loop.settle()
    assert (first.inside, second.inside) == (True, False)
    house.gates.ready("small", 2)
    house.loop.settle()
    assert second.inside
    assert [(view.name, view.capacity, view.inside) for view in house.gates.views()] == [
        ("lab/*", 1, 0),
        ("small", 4, 4),
    ]


def test_a_provider_s_models_share_its_places_and_choices_do_not_count(house: House) -> None:
    first, second = house.guest("lab/x", choices=8), house.guest("lab/y")
    assert (first.inside, second.inside) == (True, False)
    assert house.gates.views()[0].waiting == {"interactive": 0, "normal": 1, "batch": 0}
    first.go.set()
    house.loop.settle()
    assert second.inside


def test_a_target_without_a_gate_always_has_room(house: House) -> None:
    assert all(house.guest("elsewhere/x").inside for _ in range(50))


def test_a_reload_strands_nobody(house: House) -> None:
    house.gates.ready("small", 1)
    inside = [house.guest("small") for _ in range(2)]
    waiting = [house.guest("small") for _ in range(3)]
    held, queued = house.guest("lab/x"), house.guest("lab/x")
    house.apply(Opening("small", ("small",), 3, replicated=True), house.LAB, rules=Rules(max_waiting=2))
    assert [guest.inside for guest in waiting] == [True, False, False]
    refused = house.guest("small")
    assert refused.error is not None
    inside[0].go.set()
    house.loop.settle()
    assert [guest.inside for guest in waiting] == [True, True, False]
    # The deployment goes, and the provider is not limited any more.
    house.apply()
    assert isinstance(waiting[2].error, Unavailable)
    assert waiting[2].error.retryable
    assert (held.inside, queued.inside) == (True, True)
    assert house.guest("lab/x").inside
    for guest in (*inside, *waiting, held, queued):
        guest.go.set()
    house.loop.settle()
    # Back again: the replicas that are ready are known still.
    house.apply(house.SMALL, house.LAB)
    assert [house.guest("small").inside for _ in range(3)] == [True, True, False]


def test_a_closed_gate_refuses_who_comes_too(loop: StepLoop) -> None:
    gate = gate_on(loop, 1)
    gate.close(Unavailable("gone"))
    guest = Guest(loop, gate.enter("normal", "a"))
    loop.settle()
    assert isinstance(guest.error, Unavailable)


@dataclass
class FakeReplica:
    deployment: str
    state: str


class FakeSupervisor:
    def __init__(self) -> None:
        self.now: list[FakeReplica] = []
        self.news: asyncio.Queue[FakeReplica | None] = asyncio.Queue()

    def replicas(self) -> list[FakeReplica]:
        return self.now

    async def subscribe(self) -> AsyncIterator[FakeReplica]:
        while (view := await self.news.get()) is not None:
            yield view

    def become(self, *replicas: FakeReplica) -> None:
        self.now = [*replicas]
        self.news.put_nowait(FakeReplica("any", "any"))


def test_capacities_follow_the_replicas(house: House) -> None:
    supervisor = FakeSupervisor()
    supervisor.now = [FakeReplica("small", "ready"), FakeReplica("small", "warming"), FakeReplica("other", "ready")]
    following = house.loop.create_task(follow(house.gates, supervisor))

    def capacity() -> int:
        house.loop.settle()
        return house.gates.views()[1].capacity

    assert capacity() == 2
    supervisor.become(FakeReplica("small", "ready"), FakeReplica("small", "ready"))
    assert capacity() == 4
    supervisor.become(FakeReplica("small", "draining"), FakeReplica("small", "failed"))
    assert capacity() == 0
    supervisor.become(FakeReplica("small", "ready"))
    assert capacity() == 2
    supervisor.become()  # out of the configuration altogether
    assert capacity() == 0
    supervisor.become(cast("FakeReplica", None))  # trouble that nobody expected passes with the next change
    assert capacity() == 0
    supervisor.become(FakeReplica("small", "ready"))
    assert capacity() == 2
    supervisor.news.put_nowait(None)
    house.loop.settle()
    assert following.done()
    assert following.exception() is None
