from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from runtimes.supervisor import Rules, Supervisor
from tests.supervisor.supervisor_harness import QUICK, SOON, Make, living_group


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Makes supervisors, and leaves no process behind."""
    made: list[Supervisor] = []

    def build(rules: Rules = QUICK, **options: Any) -> Supervisor:
        supervisor = Supervisor(rules=rules, **options)
        made.append(supervisor)
        return supervisor

    yield build
    for supervisor in made:
        pids = [view.pid for view in supervisor.replicas() if view.pid]
        async with asyncio.timeout(SOON):
            await supervisor.stop(drain=False)
        assert {view.state for view in supervisor.replicas()} <= {"stopped"}
        assert all(not living_group(pid) for pid in pids)
