"""Starting, measuring and stopping the processes of a benchmark (Linux: reads /proc)."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from benchmarks.load import Job, Result

ROOT = Path(__file__).resolve().parent.parent
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Unavailable(Exception):
    """A subject cannot take part; the message says why."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """A process in a session of its own, its output in a file. Ends with this program, however that ends."""

    def __init__(self, argv: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [str(a) for a in argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=ROOT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_listening(self, port: int, timeout_s: float, path: str = "/health") -> None:
        """Return once `GET path` is answered with 200. Raises Unavailable with the end of the log."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise Unavailable(f"ended with status {self._process.returncode}: {self.last_words()}")
            if http_status(port, path) == 200:
                return
            time.sleep(0.1)
        raise Unavailable(f"not ready after {timeout_s:.0f} s: {self.last_words()}")

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "no output"

    def stop(self) -> None:
        """End the whole session that this child leads."""
        for number, patience_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue
        self._process.wait(5.0)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def http_status(port: int, path: str) -> int:
    """Status of a GET on the loopback interface; 0 = nobody answered within two seconds."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2.0) as s:
            s.sendall(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n".encode())
            answer = s.recv(4096)
    except OSError:
        return 0
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0


def process_tree(pid: int) -> list[int]:
    """`pid` and all its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    tree = [pid]
    for parent in tree:
        tree.extend(children.get(parent, []))
    return tree


def cpu_seconds(pid: int) -> float:
    """User and system time of the whole tree, exited and awaited children included."""
    return sum(sum(map(int, fields[11:15])) for p in process_tree(pid) if (fields := _stat(p))) * _TICK_S


def rss_bytes(pid: int) -> int:
    return sum(int(fields[21]) for p in process_tree(pid) if (fields := _stat(p))) * _PAGE


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from `state` on (index 0); empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def run_load(job: Job) -> Result:
    """Run one job in a process of its own and wait for it."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=msgspec.json.encode(job),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        timeout=job.limit_s + 30,
        check=True,
        preexec_fn=_die_with_parent,
    )
    return msgspec.json.decode(done.stdout, type=Result)


def start_load(job: Job) -> subprocess.Popen[bytes]:
    """Start one job without waiting; `finish_load` gives its result."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        preexec_fn=_die_with_parent,
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(job))
    process.stdin.close()
    process.stdin = None
    return process


def finish_load(process: subprocess.Popen[bytes], limit_s: float) -> Result:
    out, _ = process.communicate(timeout=limit_s + 30)
    return msgspec.json.decode(out, type=Result)
