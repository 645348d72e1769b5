"""The queue in front of a child process that does one thing at a time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runtimes.llamacpp.worker import ChildLost, Worker, WorkerDied, _status_of

# Answers {"sleep": s} after s seconds with the number of calls that it has had.
SCRIPT = """
import json, struct, sys, time
source, sink = sys.stdin.buffer, sys.stdout.buffer
count = -1
while len(head := source.read(4)) == 4:
    message = json.loads(source.read(struct.unpack(">I", head)[0]))
    count += 1
    time.sleep(message["sleep"])
    body = json.dumps({"served": count}).encode()
    sink.write(struct.pack(">I", len(body)) + body)
    sink.flush()
"""


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    script = tmp_path / "child.py"
    script.write_text(SCRIPT)
    made = Worker(script, {"sleep": 0}, timeout_s=20.0)
    await made.start()
    yield made
    await made.close()


def ask(worker: Worker, sleep: float = 0.0) -> asyncio.Task[dict[str, Any]]:
    return asyncio.ensure_future(worker.call({"sleep": sleep}))


async def test_a_crowd_that_has_left_does_not_keep_the_child_busy(worker: Worker) -> None:
    crowd = [ask(worker, 0.2) for _ in range(300)]
    await asyncio.sleep(0.05)  # the first is with the child, the others wait for their turn
    for task in crowd:
        task.cancel()
    before = time.monotonic()
    assert await worker.call({"sleep": 0}) == {"served": 2}
    assert time.monotonic() - before < 10.0
    assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*crowd, return_exceptions=True))
    assert worker.starts == 1


async def test_a_caller_that_leaves_during_its_turn_spoils_no_answer(worker: Worker) -> None:
    leaving = ask(worker, 0.3)
    await asyncio.sleep(0.05)
    following = [ask(worker) for _ in range(3)]
    leaving.cancel()
    assert await asyncio.gather(*following) == [{"served": 2}, {"served": 3}, {"served": 4}]
    assert worker.starts == 1


async def test_turns_are_taken_in_order_whoever_leaves(worker: Worker) -> None:
    tasks = [ask(worker, 0.05 if number == 0 else 0.0) for number in range(20)]
    await asyncio.sleep(0)
    for task in tasks[1::2]:
        task.cancel()
    assert [(await task)["served"] for task in tasks[::2]] == list(range(1, 11))


async def test_a_close_ends_those_that_wait(worker: Worker) -> None:
    tasks = [ask(worker, 5.0) for _ in range(3)]
    await asyncio.sleep(0.05)
    await worker.close()
    told = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(error, WorkerDied) for error in told)


@pytest.mark.parametrize(("ends", "status"), [("exit(3)", 3), ("import os; os.kill(os.getpid(), 24)", -24)])
def test_how_a_child_ended_is_read_without_taking_it_away(ends: str, status: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", ends], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.read()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert (_status_of(process.pid), _status_of(process.pid)) == (status, status)
    assert process.wait() == status
    assert _status_of(process.pid) is None


async def test_a_child_that_was_killed_is_lost_and_one_that_failed_has_died(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(SCRIPT.replace('time.sleep(message["sleep"])', 'message["sleep"] > 1 and sys.exit(3)'))
    made = Worker(script, {"sleep": 0}, timeout_s=20.0)
    await made.start()
    with pytest.raises(WorkerDied) as died:
        await made.call({"sleep": 2})
    assert not isinstance(died.value, ChildLost)
    await made.start()
    assert made.pid is not None
    os.kill(made.pid, signal.SIGSTOP)
    asked = ask(made)
    await asyncio.sleep(0.1)
    os.kill(made.pid, signal.SIGKILL)
    with pytest.raises(ChildLost):
        await asked
    assert await made.call({"sleep": 0})
    await made.close()
