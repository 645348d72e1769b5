"""Engine processes on this machine: spawned into a group of their own, logged, watched, killed whole, reaped.

A launcher is the seam at which replicas could one day run elsewhere; the supervisor knows only the protocols.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runtimes.supervisor import child
from runtimes.supervisor.logs import RotatedLog
from runtimes.supervisor.spec import ReplicaSpec, make_private

log = logging.getLogger(__name__)

ALLOWED_ENVIRONMENT = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "TZ", "LANG", "LANGUAGE", "TMPDIR", "LD_LIBRARY_PATH",
    "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
})  # fmt: skip
ALLOWED_PREFIXES = ("LC_", "OMP_", "GOMP_", "KMP_", "GGML_")
DEFAULTS = {"PYTHONUNBUFFERED": "1"}
"""A log line that sits in a buffer is no progress."""
LATCHES = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
"""Set last, so that nothing can open them: an engine loads what is on the disk and reports to nobody."""

PR_SET_CHILD_SUBREAPER = 36
PF_EXITING = 4
"""A bit of the kernel's flags of a process."""
READ_BYTES = 64 * 1024
READS_A_TURN = 4
"""A chattering engine must not hold up the gateway's loop: after so much it waits for the next turn."""
GROUP_POLL_FIRST_S = 0.002
GROUP_POLL_MOST_S = 0.1


class Process(Protocol):
    """A running process group. Its launcher's `Observer` is told of its end."""

    pid: int

    def terminate(self) -> None:
        """SIGTERM to the leader. Does nothing once it has exited."""
        ...

    def kill(self) -> None:
        """SIGKILL to the whole group. Does nothing once the leader has exited: that has killed it already."""
        ...

    def tail(self) -> str:
        """The last log lines."""
        ...


class Observer(Protocol):
    """Told from the event loop's thread, in this order and never while `launch` still runs."""

    def output(self) -> None:
        """Something was logged."""
        ...

    def died(self, how: str, outside: bool) -> None:
        """The leader has exited and the rest of its group was killed. Once.

        `outside`: neither this launcher's signals nor a fault of its own ended it.
        """
        ...

    def gone(self) -> None:
        """No process is left of the group, and no descriptor. Once, after `died`."""
        ...


class Launcher(Protocol):
    def launch(self, spec: ReplicaSpec, observer: Observer) -> Process:
        """Start a process. Raises OSError or SpecError when there is none afterwards."""
        ...


def child_environment(outer: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """What an engine sees: the allowed part of `outer`, `extra` over it, and the offline latches over both."""
    allowed = {k: v for k, v in outer.items() if k in ALLOWED_ENVIRONMENT or k.startswith(ALLOWED_PREFIXES)}
    return {**DEFAULTS, **allowed, **extra, **LATCHES}


def adopt_orphans() -> None:
    """Become the parent of processes whose own parent dies, so that an engine's children can be reaped.

    Without it they fall to the machine's first process, and in a container that is often one that reaps nothing.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        log.warning("children of engines cannot be adopted: %s", os.strerror(ctypes.get_errno()))


@dataclass(slots=True)
class LocalLauncher:
    """Engines as children of this process. Call it from the thread of the event loop only."""

    max_log_bytes: int = 10 * 1024 * 1024
    log_backups: int = 2
    wall: Callable[[], float] = time.time

    def launch(self, spec: ReplicaSpec, observer: Observer) -> LocalProcess:
        adopt_orphans()
        make_private(spec.socket_path.parent)
        spec.socket_path.unlink(missing_ok=True)
        logged = RotatedLog(spec.log_path, max_bytes=self.max_log_bytes, backups=self.log_backups)
        return LocalProcess(spec, logged, observer, self.wall)


class LocalProcess:
    """One process group, from its spawn to the reaping of its last member."""

    def __init__(self, spec: ReplicaSpec, logged: RotatedLog, observer: Observer, wall: Callable[[], float]) -> None:
        self._spec = spec
        self._log = logged
        self._observer = observer
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._reaped = False
        self._signalled = False
        """A signal of ours has met it alive."""
        with contextlib.ExitStack() as undo:
            undo.callback(logged.close)
            self._popen, self._lifeline, self._output = self._spawn(undo)
            self.pid = self._popen.pid
            self._note(f"process {self.pid} started")
            self._watch_exit()
            self._loop.add_reader(self._output, self._read_some)
            undo.pop_all()

    def terminate(self) -> None:
        if not self._reaped:
            # The leader alone: it knows best in which order its workers have to end.
            self._signalled = self._signalled or not _is_exiting(self.pid)
            self._popen.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        if not self._reaped:
            self._signalled = self._signalled or not _is_exiting(self.pid)
            _kill_group(self.pid)

    def tail(self) -> str:
        return self._log.tail()

    # --- the start --------------------------------------------------------------------------------

    def _spawn(self, undo: contextlib.ExitStack) -> tuple[subprocess.Popen[bytes], int, int]:
        """The process, our end of its lifeline (to hold), our end of its output (to read)."""
        lifeline_read, lifeline = os.pipe()
        output, output_write = os.pipe()
        ours, theirs = (lifeline, output), (lifeline_read, output_write)
        try:
            os.set_blocking(output, False)
            program = [
                sys.executable, "-I", "-S", str(Path(child.__file__)), str(os.getpid()), str(lifeline_read),
                *self._spec.argv,
            ]  # fmt: skip
            # PR_SET_PDEATHSIG means the thread that spawned, not the process: never do this in a worker thread.
            popen = subprocess.Popen(
                program,
                stdin=subprocess.DEVNULL,
                stdout=output_write,
                stderr=subprocess.STDOUT,
                pass_fds=(lifeline_read,),
                start_new_session=True,
                env={
                    **child_environment(os.environ, self._spec.env),
                    "OUTPOST_LIFELINE_FD": str(lifeline_read),
                },
            )
        except BaseException:
            for descriptor in ours:
                os.close(descriptor)
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        for descriptor in ours:
            undo.callback(os.close, descriptor)
        undo.callback(popen.wait)
        undo.callback(_kill_group, popen.pid)
        return popen, lifeline, output

    # --- the log ----------------------------------------------------------------------------------

    def _read_some(self) -> None:
        seen = False
        for _ in range(READS_A_TURN):
            try:
                data = os.read(self._output, READ_BYTES)
            except BlockingIOError:
                break
            if not data:
                self._loop.remove_reader(self._output)
                break
            seen = True
            self._log.write(data)
        if seen:
            self._observer.output()

    def _read_rest(self) -> None:
        """What is left in the pipe after the end; a process that got away may still write, so it is bounded."""
        for _ in range(64):
            try:
                data = os.read(self._output, READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                return
            self._log.write(data)

    def _note(self, text: str) -> None:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._wall()))
        self._log.note(f"--- outpost {moment} {self._spec.name}: {text}")

    # --- the end ----------------------------------------------------------------------------------

    def _watch_exit(self) -> None:
        try:
            exit_descriptor = os.pidfd_open(self.pid)
        except OSError:
            # Kernels before 5.3, and some sandboxes: a thread that sleeps in the kernel until the exit.
            threading.Thread(target=self._wait_in_thread, name=f"exit of {self._spec.name}", daemon=True).start()
            return

        def readable() -> None:
            self._loop.remove_reader(exit_descriptor)
            os.close(exit_descriptor)
            self._leader_exited()

        self._loop.add_reader(exit_descriptor, readable)

    def _wait_in_thread(self) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(RuntimeError):  # The loop was closed before; nobody is left to be told.
            self._loop.call_soon_threadsafe(self._leader_exited)

    def _leader_exited(self) -> None:
        # As long as the leader is not reaped its number belongs to nobody else, so this hits no stranger.
        _kill_group(self.pid)
        code = self._popen.wait()
        self._reaped = True
        self._read_rest()
        how = _how_it_ended(code)
        self._observer.died(how, outside=not self._signalled and _by_outside(code))
        self._await_group(how, GROUP_POLL_FIRST_S)

    def _await_group(self, how: str, pause_s: float) -> None:
        if _group_is_gone(self.pid):
            self._finish(how)
            return
        if pause_s >= GROUP_POLL_MOST_S:
            log.warning("%s: waiting for the other processes of group %d to end", self._spec.name, self.pid)
        following = min(2 * pause_s, GROUP_POLL_MOST_S) if pause_s < GROUP_POLL_MOST_S else 1.0
        self._loop.call_later(pause_s, self._await_group, how, following)

    def _finish(self, how: str) -> None:
        self._loop.remove_reader(self._output)
        self._read_rest()
        self._note(f"process {self.pid} {how}")
        self._log.close()
        os.close(self._output)
        os.close(self._lifeline)
        self._spec.socket_path.unlink(missing_ok=True)
        self._observer.gone()


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _is_exiting(pid: int) -> bool:
    """Whether a process that was not reaped yet has met its end already.

    A broken connection is often the first sign of that: the kernel closes an exiting process's files before it
    tells the parent.
    """
    fields = _stat(pid)
    return bool(fields) and (fields[0] in b"ZX" or bool(int(fields[6]) & PF_EXITING))


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the state on; empty when the process is gone.

    Bytes, because the name before them is any process's own choice and need not be text.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []


def _group_is_gone(group: int) -> bool:
    """True when no member is left that could still hold anything; those that were adopted are reaped then."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # There are members, with another user's rights.
    if _living_members(group):
        return False
    # Only now: a member that dies after it was waited for would stay a zombie. Others' children are left to them.
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    return True


def _living_members(group: int) -> list[int]:
    living = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        fields = _stat(int(entry.name))
        if fields and int(fields[2]) == group and fields[0] not in b"ZX":
            living.append(int(entry.name))
    return living


OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
"""Signals that a process gets from somebody else; SIGSEGV, SIGABRT and their like come from its own faults."""


def _by_outside(code: int) -> bool:
    # 0: an engine that is asked to leave by SIGTERM ends in order, and it never leaves without being asked.
    return code == 0 or -code in OUTSIDE


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
