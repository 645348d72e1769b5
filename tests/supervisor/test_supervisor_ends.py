"""Whose doing the end of an engine process was, and that it comes back by itself whatever ended it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from runtimes.supervisor import LocalLauncher
from runtimes.supervisor.process import LocalProcess
from tests.supervisor.supervisor_harness import QUICK, SOON, Make, ask, fake_spec, ready, until, until_state


async def test_the_quarantined_come_back_by_themselves(make: Make, tmp_path: Path) -> None:
    supervisor = make(msgspec.structs.replace(QUICK, quarantine_failures=2, quarantine_retry_s=0.3))
    repaired = tmp_path / "repaired"
    await supervisor.start([fake_spec(tmp_path, "--exit-until", str(repaired))])
    await until(supervisor, lambda view: view.state == "quarantined" and view.restarts == 3)  # one try has failed
    first = supervisor.replicas("small")[0].reason.splitlines()[0]
    assert re.search(r"failed again when it was tried, .* only every 0\.3 s: .*; next start in 0 s$", first)
    repaired.touch()
    await until_state(supervisor, "ready")


async def test_an_engine_that_is_killed_again_and_again_is_never_given_up(make: Make, tmp_path: Path) -> None:
    supervisor = make(msgspec.structs.replace(QUICK, quarantine_failures=2, quarantine_retry_s=3600.0))
    await ready(supervisor, fake_spec(tmp_path))
    for number in range(1, 7):
        pid = supervisor.replicas("small")[0].pid
        assert pid is not None
        held = [asyncio.create_task(ask(supervisor, "hold")) for _ in range(4 * (number % 2))]
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL if number % 3 else signal.SIGTERM)
        await until(supervisor, lambda view, number=number: view.state == "ready" and view.restarts == number)
        await asyncio.gather(*held, return_exceptions=True)


@pytest.mark.parametrize(
    ("end", "outside"),
    [(signal.SIGKILL, True), (signal.SIGTERM, True), (signal.SIGSEGV, False), (signal.SIGABRT, False), (0, True),
     (3, False)],
)  # fmt: skip
async def test_whose_doing_an_end_was(tmp_path: Path, end: int, outside: bool) -> None:
    assert await how_it_was_told(tmp_path, end) == outside


async def test_a_signal_of_ours_is_not_from_outside_unless_it_came_too_late(tmp_path: Path) -> None:
    assert not await how_it_was_told(tmp_path, None, LocalProcess.kill)
    assert not await how_it_was_told(tmp_path, None, LocalProcess.terminate)

    def late(process: LocalProcess) -> None:
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        process.kill()

    assert await how_it_was_told(tmp_path, None, late)


async def how_it_was_told(
    directory: Path, end: int | None, act: Callable[[LocalProcess], None] = lambda process: None
) -> bool:
    """Whether a process that ends so is said to have been ended from outside. A signal, or an exit code below 5."""
    told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    gone = asyncio.Event()

    class Watch:
        def output(self) -> None:
            if not told.done():
                act(process)

        def died(self, how: str, outside: bool) -> None:
            told.set_result(outside)

        def gone(self) -> None:
            gone.set()

    ends = {None: "signal.pause()", 0: "sys.exit(0)", 3: "sys.exit(3)"}
    last = ends.get(end, f"os.kill(os.getpid(), {end})")
    argv = [sys.executable, "-I", "-S", "-c", f"import os, signal, sys; print('up', flush=True); {last}"]
    process = LocalLauncher().launch(fake_spec(directory, argv=argv), Watch())
    async with asyncio.timeout(SOON):
        await gone.wait()
        return await told


async def test_a_process_whose_name_is_no_text_does_not_keep_a_stop_from_ending(make: Make, tmp_path: Path) -> None:
    """Names are bytes, and the kernel cuts them at the fifteenth, in the middle of a character if need be."""
    named = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'caf\\xc3', 0, 0, 0); print(flush=True); sys.stdin.read()"
    pipe = asyncio.subprocess.PIPE
    stranger = await asyncio.create_subprocess_exec(sys.executable, "-c", named, stdin=pipe, stdout=pipe)
    assert stranger.stdin is not None
    assert stranger.stdout is not None
    try:
        await stranger.stdout.readline()
        with pytest.raises(UnicodeDecodeError):
            Path(f"/proc/{stranger.pid}/stat").read_text(encoding="utf-8")
        supervisor = make(QUICK)
        await ready(supervisor, fake_spec(tmp_path))
        async with asyncio.timeout(SOON):
            await supervisor.stop()
    finally:
        stranger.stdin.close()
        await stranger.wait()
