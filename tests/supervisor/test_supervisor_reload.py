"""A new set of specs on running replicas: only what differs is touched."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtimes.engine import EngineLost
from runtimes.supervisor import ReplicaSpec, SpecError, Subscription, Supervisor
from tests.supervisor.supervisor_harness import QUICK, SOON, Make, fake_spec, living_group, ready, until, until_state


async def two(supervisor: Supervisor, folder: Path) -> None:
    """Two ready replicas of one deployment."""
    await supervisor.start([fake_spec(folder, index=i) for i in range(2)])
    for index in range(2):
        await until_state(supervisor, "ready", index=index)


async def rolled(supervisor: Supervisor, seen: Subscription) -> None:
    """Both were restarted once, and the second one served until the first one did."""
    seen.close()
    story = [(view.index, view.state) async for view in seen]
    assert story.index((0, "ready")) < story.index((1, "stopping"))
    assert {(view.restarts, view.state) for view in supervisor.replicas()} == {(1, "ready")}


async def test_replace_touches_only_what_differs(make: Make, tmp_path: Path) -> None:
    supervisor = make()
    names = ("kept", "changed", "removed")
    await ready(supervisor, *(fake_spec(tmp_path, name=name) for name in names))
    before = {view.deployment: view.pid for view in supervisor.replicas()}
    await supervisor.replace([
        fake_spec(tmp_path, name="kept", drain_timeout_s=1.0),
        fake_spec(tmp_path, name="changed", env={"NEW": "1"}),
        fake_spec(tmp_path, name="added"),
    ])  # fmt: skip
    await supervisor.wait_ready("added", SOON)
    after = {view.deployment: view for view in supervisor.replicas()}
    assert sorted(after) == ["added", "changed", "kept"]
    assert {view.state for view in after.values()} == {"ready"}
    assert after["kept"].pid == before["kept"]
    assert after["changed"].pid != before["changed"]
    assert before["removed"] is not None
    assert not living_group(before["removed"])


async def test_replicas_of_one_deployment_restart_one_by_one(make: Make, tmp_path: Path) -> None:
    supervisor = make()
    await two(supervisor, tmp_path)
    seen = supervisor.subscribe()
    await supervisor.replace([fake_spec(tmp_path, index=i, env={"NEW": "1"}) for i in range(2)])
    await rolled(supervisor, seen)


async def test_a_reload_that_was_cut_short_can_be_taken_back(make: Make, tmp_path: Path) -> None:
    supervisor = make()
    await ready(supervisor, fake_spec(tmp_path))
    async with supervisor.lease("small"):
        reload = asyncio.create_task(supervisor.replace([]))
        await until_state(supervisor, "draining")
        reload.cancel()
        await asyncio.gather(reload, return_exceptions=True)
        await supervisor.replace([fake_spec(tmp_path)])
    await until(supervisor, lambda view: view.state == "ready" and view.restarts == 1)


async def cut_short(supervisor: Supervisor, taken_back: list[ReplicaSpec]) -> None:
    """A reload without any replicas that does not come to its end, and another behind it."""
    async with supervisor.lease("small"):
        reload = asyncio.create_task(supervisor.replace([]))
        await until_state(supervisor, "draining")
        reload.cancel()
        await asyncio.gather(reload, return_exceptions=True)
        after = asyncio.create_task(supervisor.replace(taken_back))
        await asyncio.sleep(0)
    await after


class Gates:
    """Replicas that are ready once their gate is open."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.gates = [asyncio.Event() for _ in range(count)]
        for gate in self.gates:
            gate.set()

    def spec(self, index: int, **changes: Any) -> ReplicaSpec:
        async def warm_up(engine: Any) -> None:
            await self.gates[index].wait()

        return fake_spec(self.folder, index=index, warm_up=warm_up, **changes)

    def specs(self, **changes: Any) -> list[ReplicaSpec]:
        return [self.spec(index, **changes) for index in range(len(self.gates))]


async def all_turns_taken() -> None:
    """What can go on without a process or a gate has done so."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_whoever_was_taken_back_as_it_was_is_waited_for(make: Make, tmp_path: Path) -> None:
    supervisor, given = make(), Gates(tmp_path, 2)
    await supervisor.start(given.specs())
    for index in range(2):
        await until_state(supervisor, "ready", index=index)
    await cut_short(supervisor, given.specs())
    for index in range(2):
        await until_state(supervisor, "ready", index=index)
    given.gates[0].clear()
    again = asyncio.create_task(supervisor.restart("small", 0))
    await until_state(supervisor, "warming", index=0)
    replacing = asyncio.create_task(supervisor.replace([given.spec(0), given.spec(1, env={"NEW": "1"})]))
    await all_turns_taken()
    assert [view.state for view in supervisor.replicas()] == ["warming", "ready"]
    given.gates[0].set()
    await asyncio.gather(again, replacing)
    assert [view.state for view in supervisor.replicas()] == ["ready", "ready"]


async def test_whoever_was_taken_back_with_a_change_is_waited_for(make: Make, tmp_path: Path) -> None:
    supervisor, given = make(), Gates(tmp_path, 3)
    await supervisor.start(given.specs())
    for index in range(3):
        await until_state(supervisor, "ready", index=index)
    given.gates[1].clear()
    taking_back = asyncio.create_task(cut_short(supervisor, given.specs(env={"NEW": "1"})))
    await until(supervisor, lambda view: view.state == "ready" and view.restarts == 1)
    await until_state(supervisor, "warming", index=1)
    given.gates[0].clear()
    again = asyncio.create_task(supervisor.restart("small", 0))
    await until_state(supervisor, "warming", index=0)
    given.gates[1].set()
    await until_state(supervisor, "ready", index=1)
    await all_turns_taken()
    assert [view.state for view in supervisor.replicas()] == ["warming", "ready", "stopped"]
    given.gates[0].set()
    await asyncio.gather(again, taking_back)
    assert [view.state for view in supervisor.replicas()] == ["ready"] * 3


async def test_a_reload_that_overrules_another_leaves_one_of_them_serving(make: Make, tmp_path: Path) -> None:
    supervisor = make()
    await two(supervisor, tmp_path)
    seen = supervisor.subscribe()
    wanted = [fake_spec(tmp_path, index=i, env={"NEW": "1"}) for i in range(2)]
    first = asyncio.create_task(supervisor.replace(wanted))
    await until_state(supervisor, "starting", index=0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await supervisor.replace(wanted)
    await rolled(supervisor, seen)


async def test_a_reload_gives_the_quarantined_another_chance(make: Make, tmp_path: Path) -> None:
    supervisor = make(msgspec.structs.replace(QUICK, quarantine_failures=2))
    cure = tmp_path / "cure"
    spec = fake_spec(tmp_path, "--exit-until", str(cure))
    await supervisor.start([spec])
    given_up = await until_state(supervisor, "quarantined")
    assert "reload the settings" in given_up.reason
    cure.touch()
    await supervisor.replace([spec])
    await supervisor.wait_ready("small", SOON)


async def test_bad_specs_change_nothing(make: Make, tmp_path: Path) -> None:
    supervisor = make()
    await ready(supervisor, fake_spec(tmp_path))
    pid = supervisor.replicas("small")[0].pid
    with pytest.raises(SpecError, match="given twice"):
        await supervisor.start([fake_spec(tmp_path)])
    thief = fake_spec(tmp_path, name="thief", socket_path=fake_spec(tmp_path).socket_path)
    with pytest.raises(SpecError, match="may not take the socket of small/0"):
        await supervisor.replace([thief])
    assert [(view.deployment, view.pid) for view in supervisor.replicas()] == [("small", pid)]
    with pytest.raises(EngineLost, match="'nobody' has no replicas"):
        await supervisor.wait_ready("nobody", SOON)
    with pytest.raises(SpecError, match="no replica 7"):
        await supervisor.restart("small", 7)
