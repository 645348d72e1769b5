"""The supervisor over real processes: fake engines that die, hang, refuse to leave, or have children of their own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from runtimes.engine import EngineLost, EngineStatus
from runtimes.supervisor import LocalLauncher, ReplicaView, Rules, Supervisor, child
from tests.supervisor.supervisor_harness import (
    QUICK,
    SOON,
    FakeEngine,
    Make,
    ask,
    ended,
    fake_spec,
    living_group,
    ready,
    until,
    until_state,
    zombie_children,
)

# --- the ordinary life ----------------------------------------------------------------------------


async def test_start_lease_stop(make: Make, tmp_path: Path) -> None:
    supervisor = make()
    seen = supervisor.subscribe()
    spec = fake_spec(tmp_path)
    await ready(supervisor, spec)

    assert stat.S_IMODE(spec.socket_path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(spec.log_path.stat().st_mode) == 0o600
    async with supervisor.lease("small") as engine:
        assert isinstance(engine, FakeEngine)
        assert supervisor.replicas("small")[0].in_flight == 1
        pid = supervisor.replicas("small")[0].pid
        assert pid is not None
        assert (await engine.status()).model == str(pid)
        assert os.getpgid(pid) == os.getsid(pid) == pid
    assert supervisor.replicas("small")[0].in_flight == 0

    await supervisor.stop()
    assert [view.state async for view in seen] == ["starting", "warming", "ready", "stopping", "stopped"]
    assert not spec.socket_path.exists()
    assert f"process {pid} was ended by SIGTERM" in spec.log_path.read_text()
    assert engine.lost
    with pytest.raises(RuntimeError, match="make a new one"):
        await supervisor.start([fake_spec(tmp_path, name="other")])


async def test_a_probe_brings_the_status(make: Make, tmp_path: Path) -> None:
    probed = asyncio.Event()

    class Probed(FakeEngine):
        async def status(self) -> EngineStatus:
            status = await super().status()
            probed.set()
            return status

    async def connect(path: Path) -> Probed:
        return Probed(*await asyncio.open_unix_connection(path))

    async def no_warm_up(engine: Any) -> None:
        assert not probed.is_set()

    supervisor = make()
    await ready(supervisor, fake_spec(tmp_path, connect=connect, warm_up=no_warm_up))
    async with asyncio.timeout(SOON):
        await probed.wait()
    status = supervisor.replicas("small")[0].status
    assert status is not None
    assert status.model == str(supervisor.replicas("small")[0].pid)


async def test_leases_go_to_the_replica_with_the_fewest(make: Make, tmp_path: Path) -> None:
    supervisor = make()
    await supervisor.start([fake_spec(tmp_path, index=i) for i in range(2)])
    for index in range(2):
        await until_state(supervisor, "ready", index=index)
    async with supervisor.lease("small"), supervisor.lease("small") as other, supervisor.lease("small"):
        assert sorted(view.in_flight for view in supervisor.replicas("small")) == [1, 2]
        assert (await other.status()).model == str(supervisor.replicas("small")[1].pid)


async def test_the_engine_sees_only_what_it_may(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://outside")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    found = tmp_path / "environment"
    await ready(make(), fake_spec(tmp_path, "--environment", str(found), env={"MORE": "1", "HF_HUB_OFFLINE": "0"}))
    environment = json.loads(found.read_text())
    assert "OPENAI_API_KEY" not in environment
    assert "HTTPS_PROXY" not in environment
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["MORE"] == "1"
    assert environment["PATH"] == os.environ["PATH"]
    assert {environment[k] for k in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DO_NOT_TRACK")} == {"1"}


def test_it_runs_on_uvloop_too(tmp_path: Path) -> None:
    async def scene() -> None:
        supervisor = Supervisor(rules=QUICK)
        await ready(supervisor, fake_spec(tmp_path))
        pid = supervisor.replicas("small")[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(supervisor, lambda view: view.state == "ready" and view.restarts == 1)
        await supervisor.stop()

    uvloop.run(asyncio.wait_for(scene(), SOON))


async def test_without_pidfd_a_thread_sees_the_exit(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(pid: int, flags: int = 0) -> int:
        raise OSError(38, "not implemented")

    with monkeypatch.context() as patch:
        patch.setattr("runtimes.supervisor.process.os.pidfd_open", missing)
        supervisor = make()
        await ready(supervisor, fake_spec(tmp_path))
    await supervisor.restart("small", 0)
    assert supervisor.replicas("small")[0].restarts == 1


# --- engines that fail ----------------------------------------------------------------------------


async def test_a_killed_engine_loses_its_own_requests_and_comes_back(make: Make, tmp_path: Path) -> None:
    supervisor = make()
    await ready(supervisor, fake_spec(tmp_path), fake_spec(tmp_path, name="other"))
    victim = supervisor.replicas("small")[0].pid
    assert victim is not None
    theirs = [asyncio.create_task(ask(supervisor, "hold")) for _ in range(16)]
    other = asyncio.create_task(ask(supervisor, "hold", name="other"))
    await asyncio.sleep(0)  # each has its lease
    assert supervisor.replicas("small")[0].in_flight == 16
    os.kill(victim, signal.SIGKILL)
    async with asyncio.timeout(2):
        outcomes = await asyncio.gather(*theirs, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {EngineLost}
    view = await until(supervisor, lambda view: view.state == "ready" and view.restarts == 1)
    assert view.pid != victim
    assert view.in_flight == 0
    assert not other.done()
    assert supervisor.replicas("other")[0].restarts == 0
    other.cancel()


async def test_a_lost_engine_gets_no_new_lease(make: Make, tmp_path: Path) -> None:
    """Between the broken socket and the noticed exit, a retry must not meet the same corpse."""
    supervisor = make()
    await ready(supervisor, fake_spec(tmp_path))
    with pytest.raises(EngineLost, match="as told"):
        async with supervisor.lease("small"):
            raise EngineLost("as told")
    with pytest.raises(EngineLost, match="connection was just lost"):
        async with supervisor.lease("small"):
            pass
    await supervisor.wait_ready("small", SOON)  # the probe was answered after all
    async with supervisor.lease("small"):
        assert supervisor.replicas("small")[0].restarts == 0


async def test_an_engine_that_hangs_up_is_replaced(make: Make, tmp_path: Path) -> None:
    supervisor = make()
    seen = supervisor.subscribe()
    await ready(supervisor, fake_spec(tmp_path))
    with pytest.raises(EngineLost):
        await ask(supervisor, "close")
    await until(supervisor, lambda view: view.state == "ready" and view.restarts == 1)
    seen.close()
    assert "a probe failed: EngineLost: the fake engine is gone" in {view.reason async for view in seen}


async def test_a_hung_engine_is_killed_and_replaced(make: Make, tmp_path: Path) -> None:
    supervisor = make(Rules(probe_interval_s=0.05, probe_timeout_s=0.2, probe_misses=3))
    seen = supervisor.subscribe()
    await ready(supervisor, fake_spec(tmp_path, "--ignore-term"))
    with pytest.raises(EngineLost):
        await ask(supervisor, "hang")
    await until(supervisor, lambda view: view.state == "ready" and view.restarts > 0)
    seen.close()
    assert "hung: no answer to 3 probes of 0.2 s" in {view.reason async for view in seen}


async def test_a_useless_engine_is_quarantined_with_its_last_words(make: Make, tmp_path: Path) -> None:
    supervisor = make()
    repaired = tmp_path / "repaired"
    await supervisor.start([fake_spec(tmp_path, "--exit-until", str(repaired))])
    with pytest.raises(EngineLost, match=r"replica 0 is quarantined \(the engine exited with code 4") as refused:
        await supervisor.wait_ready("small", SOON)
    assert "cause is here" not in str(refused.value)
    view = supervisor.replicas("small")[0]
    assert view.reason.endswith("fake engine: cannot go on\nfake engine: the cause is here")
    assert (view.restarts, view.pid) == (4, None)
    with pytest.raises(EngineLost, match="quarantined"):
        async with supervisor.lease("small"):
            pass
    repaired.touch()
    assert (await supervisor.restart("small", 0)).state == "ready"


async def test_a_program_that_does_not_exist(make: Make, tmp_path: Path) -> None:
    supervisor = make()
    await supervisor.start([fake_spec(tmp_path, argv=[str(tmp_path / "nothing")])])
    view = await until_state(supervisor, "quarantined")
    assert f"outpost: cannot run {tmp_path / 'nothing'}: No such file or directory" in view.reason


async def test_a_socket_directory_that_cannot_be_made(make: Make, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    supervisor = make()
    await supervisor.start([fake_spec(tmp_path)])
    view = await until_state(supervisor, "quarantined")
    assert "is no directory of ours" in view.reason
    assert view.pid is None


async def test_silence_is_a_failed_start_but_slow_progress_is_not(make: Make, tmp_path: Path) -> None:
    supervisor = make(Rules(backoff_base_s=60))
    slow = fake_spec(tmp_path, "--log-before", "20", "--log-pause", "0.1", name="slow", start_timeout_s=1.5)
    silent = fake_spec(tmp_path, "--never-listen", name="silent", start_timeout_s=1.5)
    await supervisor.start([slow, silent])
    await supervisor.wait_ready("slow", SOON)
    view = await until_state(supervisor, "failed", name="silent")
    assert supervisor.replicas("slow")[0].restarts == 0
    assert "no new log line for 1.5 s while starting; next start in" in view.reason
    with pytest.raises(EngineLost, match="replica 0 is failed"):
        await supervisor.wait_ready("silent", 0.01)


async def test_endless_progress_is_no_start_either(make: Make, tmp_path: Path) -> None:
    supervisor = make(Rules(backoff_base_s=60, start_cap_factor=2))
    await supervisor.start([fake_spec(tmp_path, "--log-before", "9999", "--log-pause", "0.05", start_timeout_s=0.5)])
    view = await until_state(supervisor, "failed")
    assert "not ready after 1 s, though it still logged" in view.reason


async def test_a_failed_warm_up_is_a_failed_start(make: Make, tmp_path: Path) -> None:
    async def refuse(engine: Any) -> None:
        raise ValueError("it answered nonsense")

    supervisor = make()
    await supervisor.start([fake_spec(tmp_path, warm_up=refuse)])
    view = await until_state(supervisor, "quarantined")
    assert view.reason.startswith("the warm-up failed: ValueError: it answered nonsense")


# --- the end --------------------------------------------------------------------------------------


async def test_stop_waits_for_running_requests(make: Make, tmp_path: Path) -> None:
    supervisor = make()
    await ready(supervisor, fake_spec(tmp_path))
    async with supervisor.lease("small") as engine:
        stopping = asyncio.create_task(supervisor.stop())
        await until_state(supervisor, "draining")
        with pytest.raises(EngineLost, match="replica 0 is draining"):
            async with supervisor.lease("small"):
                pass
        await engine.status()
        assert not stopping.done()
    async with asyncio.timeout(SOON):
        await stopping


async def test_a_request_that_does_not_end_is_cut_off(make: Make, tmp_path: Path) -> None:
    supervisor = make()
    await ready(supervisor, fake_spec(tmp_path, drain_timeout_s=0.2))
    held = asyncio.create_task(ask(supervisor, "hold"))
    await asyncio.sleep(0)  # it has its lease
    await supervisor.drain("small")
    with pytest.raises(EngineLost):
        await held
    view = supervisor.replicas("small")[0]
    assert view.state == "stopped"
    assert view.reason == "drained on request; 1 requests had not ended after 0.2 s"
    assert (await supervisor.restart("small", 0)).state == "ready"


async def test_an_engine_that_ignores_sigterm_is_killed_with_its_group(make: Make, tmp_path: Path) -> None:
    supervisor = make(Rules(term_grace_s=0.2))
    written = tmp_path / "grandchild"
    await ready(supervisor, fake_spec(tmp_path, "--ignore-term", "--grandchild", str(written)))
    grandchild = int(written.read_text())
    pid = supervisor.replicas("small")[0].pid
    assert pid is not None
    assert os.getpgid(grandchild) == pid
    await supervisor.stop()
    assert ended(grandchild, 0)
    assert not living_group(pid)
    assert zombie_children() == []


async def test_a_dead_engine_leaves_no_grandchild(make: Make, tmp_path: Path) -> None:
    supervisor = make(Rules(backoff_base_s=60))
    written = tmp_path / "grandchild"
    await ready(supervisor, fake_spec(tmp_path, "--grandchild", str(written)))
    grandchild = int(written.read_text())
    pid = supervisor.replicas("small")[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await until(supervisor, lambda view: view.restarts == 1)
    assert ended(grandchild, 0)  # before its successor was started
    assert not living_group(pid)


async def test_stop_ends_a_start_that_hangs(make: Make, tmp_path: Path) -> None:
    supervisor = make()
    await supervisor.start([fake_spec(tmp_path, "--never-listen")])
    waiting = asyncio.create_task(supervisor.wait_ready("small", SOON))
    await asyncio.sleep(0)
    async with asyncio.timeout(SOON):
        await supervisor.stop()
        with pytest.raises(EngineLost, match=r"replica 0 is stopped \(the gateway is stopping\)"):
            await waiting


async def test_a_second_stop_does_not_wait_for_requests(make: Make, tmp_path: Path) -> None:
    supervisor = make()
    await ready(supervisor, fake_spec(tmp_path))
    held = asyncio.create_task(ask(supervisor, "hold"))
    first = asyncio.create_task(supervisor.stop())
    await until_state(supervisor, "draining")
    async with asyncio.timeout(SOON):
        await supervisor.stop(drain=False)
        await first
    with pytest.raises(EngineLost):
        await held


@contextlib.contextmanager
def gateway(directory: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process with a supervisor, and the pid of its one engine, which is ready."""
    program = [sys.executable, "-m", "tests.supervisor.supervising_process", str(directory), *options]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        engine = int(process.stdout.readline())
        try:
            yield process, engine
        finally:
            process.kill()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(engine, signal.SIGKILL)
    for pid in living_group(engine):
        ended(pid)
    # Other tests have made this process the one that such orphans fall to.
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-engine, os.WNOHANG)[0]:
            pass


@pytest.mark.parametrize("options", [(), ("--ignore-term",)])
@pytest.mark.parametrize("hung", [False, True])
def test_engines_and_their_children_die_with_the_gateway(tmp_path: Path, options: tuple[str, ...], hung: bool) -> None:
    written = tmp_path / "grandchild"
    with gateway(tmp_path, "--grandchild", str(written), *options) as (process, engine):
        group = living_group(engine)
        assert {engine, int(written.read_text())} < set(group)
        if hung:
            os.kill(engine, signal.SIGSTOP)
        process.kill()
        assert all(ended(pid, 2.0) for pid in group)
        assert living_group(engine) == []


def test_a_hung_engine_dies_with_the_gateway_even_without_its_keeper(tmp_path: Path) -> None:
    with gateway(tmp_path) as (process, engine):
        (keeper,) = (pid for pid in living_group(engine) if pid != engine)
        assert Path(f"/proc/{keeper}/comm").read_text() == "outpost-keeper\n"
        os.kill(engine, signal.SIGSTOP)
        os.kill(keeper, signal.SIGKILL)
        assert ended(keeper)
        process.kill()
        assert ended(engine, 2.0)


def test_an_engine_is_not_started_for_a_parent_that_is_gone(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    done = subprocess.run(
        [sys.executable, "-I", "-S", child.__file__, "1", "0", "touch", str(touched)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SOON, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (127, "outpost: the process that started this one (1) is gone\n")
    assert not touched.exists()


def _restarted(times: int) -> Callable[[ReplicaView], bool]:
    return lambda view: view.state == "ready" and view.restarts == times


async def test_thirty_restarts_leak_nothing(tmp_path: Path) -> None:
    rules = Rules(backoff_base_s=0.001, backoff_cap_s=0.001, quarantine_failures=100)

    def descriptors() -> set[tuple[str, str]]:
        """What is open, with what it leads to: a number alone would hide a leak behind what another test left to the
        collector and that is closed meanwhile."""
        gc.collect()
        found = set()
        for number in os.listdir("/proc/self/fd"):
            # The descriptor that lists them is gone by now.
            with contextlib.suppress(FileNotFoundError):
                found.add((number, os.readlink(f"/proc/self/fd/{number}")))
        return found

    async def life(restarts: int) -> None:
        supervisor = Supervisor(rules=rules)
        await ready(supervisor, fake_spec(tmp_path, "--grandchild", str(tmp_path / "grandchild")))
        for number in range(1, restarts + 1):
            view = supervisor.replicas("small")[0]
            assert view.pid is not None
            os.kill(view.pid, signal.SIGKILL)
            await until(supervisor, _restarted(number))
        await supervisor.stop()
        assert zombie_children() == []
        assert [task for task in asyncio.all_tasks() if "replica" in task.get_name()] == []

    # What one life leaves open for good, such as the loop's own pipes, is no leak.
    await life(1)
    before = descriptors()
    await life(30)
    assert descriptors() - before == set()


async def test_the_log_is_bounded(make: Make, tmp_path: Path) -> None:
    supervisor = make(launcher=LocalLauncher(max_log_bytes=50_000, log_backups=2))
    spec = fake_spec(tmp_path, "--chatter", "1000000")
    await ready(supervisor, spec)
    await supervisor.stop()
    logs = sorted(spec.log_path.parent.iterdir())
    assert [log.name for log in logs] == ["small.0.log", "small.0.log.1", "small.0.log.2"]
    assert all(log.stat().st_size <= 50_000 for log in logs)
    assert sum(log.stat().st_size for log in logs) > 100_000
