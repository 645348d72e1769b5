"""Deadlines that move, and what ends an exchange."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from appliance.errors import OutpostError, ShuttingDown, UpstreamError, UpstreamTimeout
from appliance.routing.watch import Running, Watch


def late() -> OutpostError:
    return UpstreamTimeout("late")


async def guarded(work: Any) -> OutpostError | None:
    """What the watch of a task that does `work(watch)` made of its cancellation."""
    running = Running()
    with running.watch() as watch:
        try:
            await work(watch)
        except asyncio.CancelledError:
            error = watch.caught()
            if error is None:
                raise
            return error
    return None


async def test_a_deadline_that_passes_is_an_error() -> None:
    async def work(watch: Watch) -> None:
        watch.arm(0.01, late)
        await asyncio.Event().wait()

    async with asyncio.timeout(5):
        error = await guarded(work)
    assert isinstance(error, UpstreamTimeout)
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_touching_moves_the_deadline_and_the_total_stays() -> None:
    touched = 0

    async def work(watch: Watch) -> None:
        nonlocal touched
        watch.total(0.3, lambda: UpstreamError("over"))
        watch.arm(0.2, late)
        while True:
            await asyncio.sleep(0.01)
            watch.touch()
            touched += 1

    async with asyncio.timeout(5):
        error = await guarded(work)
    assert error is not None
    assert error.message == "over"
    assert touched >= 2


async def test_a_disarmed_or_closed_watch_does_not_ring() -> None:
    async def work(watch: Watch) -> None:
        watch.arm(0.01, late)
        watch.disarm()
        await asyncio.sleep(0.03)
        watch.arm(0.01, late)
        watch.close()
        watch.stop(late())
        await asyncio.sleep(0.03)

    assert await guarded(work) is None


async def test_a_shorter_deadline_after_a_longer_one() -> None:
    async def work(watch: Watch) -> None:
        watch.total(60, late)
        watch.arm(0.01, lambda: UpstreamError("short"))
        await asyncio.Event().wait()

    async with asyncio.timeout(5):
        error = await guarded(work)
    assert error is not None
    assert error.message == "short"


async def test_a_cancellation_from_outside_stays_one() -> None:
    started = asyncio.Event()

    async def work(watch: Watch) -> None:
        watch.arm(60, late)
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(guarded(work))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_outside_wins_when_both_come_at_once() -> None:
    watches: list[Watch] = []

    async def work(watch: Watch) -> None:
        watches.append(watch)
        await asyncio.Event().wait()

    task = asyncio.create_task(guarded(work))
    await asyncio.sleep(0)
    watches[0].stop(late())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_shutdown_ends_all_and_waits() -> None:
    running = Running()
    seen: list[OutpostError | None] = []

    async def exchange() -> None:
        with running.watch() as watch:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append(watch.caught())

    tasks = [asyncio.create_task(exchange()) for _ in range(5)]
    await asyncio.sleep(0)
    assert len(running) == 5
    running.stop_all()
    async with asyncio.timeout(5):
        await running.wait_idle()
    await asyncio.gather(*tasks)
    assert [type(error) for error in seen] == [ShuttingDown] * 5
    assert len(running) == 0
