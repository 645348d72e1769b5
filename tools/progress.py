"""Long commands with a live line: what runs, how far it is, for how long; the whole output goes to a log."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PLAIN_INTERVAL_S = 20.0
_GRACE_S = 3.0
TAIL_LINES = 25


class StepFailed(Exception):
    """A step could not be done; the message is complete and meant for the user."""


def say(text: str = "") -> None:
    print(f"outpost: {text}" if text else "", flush=True)


def elapsed(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


class LiveLine:
    """One line that is rewritten on a terminal, and said again every 20 s where there is none."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.detail = ""
        self.started = time.monotonic()
        self._terminal = sys.stdout.isatty()
        self._said = self.started
        if not self._terminal:
            say(f"{label} …")

    def refresh(self) -> None:
        now = time.monotonic()
        text = f"{self.label} … {elapsed(now - self.started)}" + (f" · {self.detail}" if self.detail else "")
        if self._terminal:
            width = max(20, os.get_terminal_size(sys.stdout.fileno()).columns - 1)
            print(f"\r\x1b[2Koutpost: {text}"[: width + 5], end="", flush=True)
        elif now - self._said >= PLAIN_INTERVAL_S:
            self._said = now
            say(text)

    def finish(self, outcome: str) -> None:
        if self._terminal:
            print("\r\x1b[2K", end="")
        say(f"{self.label}: {outcome} ({elapsed(time.monotonic() - self.started)})")


def run_logged(
    label: str,
    command: Sequence[str],
    *,
    log: Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    detail: Callable[[str], str | None] = lambda line: None,
    done: str = "done",
    hint: Callable[[str], str] = lambda output: "",
) -> None:
    """Run `command`, its output to `log`, with a live line; `detail` turns an output line into what the line shows.

    Raises StepFailed with the last lines of the log, and with `hint(those lines)` as the cure, when it fails.
    """
    line = LiveLine(label)
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env=dict(env) if env is not None else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _follow(process, sink.write, tail, line, detail)
            code = process.wait()
        except BaseException:
            # Also for ctrl-C: a compiler that goes on in the background would surprise everybody. Asked to end first,
            # since ninja gives each compiler a group of its own and ends them only then.
            try:
                os.killpg(process.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE_S)
            finally:  # a second ctrl-C does not wait
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            raise
    if code:
        line.finish("FAILED")
        text = "\n".join(tail)
        cure = hint(text)
        raise StepFailed(f"{text}\n\n{label} failed; the whole log is in {log}" + (f"\n{cure}" if cure else ""))
    line.finish(done)


def _follow(
    process: subprocess.Popen[bytes],
    write: Callable[[bytes], int],
    tail: deque[str],
    line: LiveLine,
    detail: Callable[[str], str | None],
) -> None:
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if selector.select(timeout=1.0):
                data = os.read(descriptor, 65536)
                if not data:
                    return
                write(data)
                *whole, rest = (rest + data).split(b"\n")
                for raw in whole:
                    text = raw.decode("utf-8", "replace").rstrip()
                    tail.append(text)
                    line.detail = detail(text) or line.detail
            line.refresh()
