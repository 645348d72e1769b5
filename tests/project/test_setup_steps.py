"""The set-up's shell: long commands with a live line, and environments that are never somebody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.environment import Environment
from tools.llama_build import find_compilers, this_machine
from tools.progress import StepFailed, elapsed, run_logged

ROOT = Path(__file__).resolve().parents[2]


def test_a_long_command_goes_to_the_log_and_shows_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def detail(line: str) -> str | None:
        seen.append(line)
        return line

    script = "import sys; print('one'); print('two', file=sys.stderr)"
    log = tmp_path / "logs" / "x.log"
    run_logged("a step", [sys.executable, "-c", script], log=log, cwd=tmp_path, detail=detail, done="ready")
    assert sorted(seen) == ["one", "two"]
    assert sorted(log.read_text().split()) == ["one", "two"]
    assert "outpost: a step: ready (" in capsys.readouterr().out


def test_a_command_that_fails_shows_its_last_lines_the_log_and_the_cure(tmp_path: Path) -> None:
    script = "for n in range(100): print('line', n)\nraise SystemExit(3)"
    log = tmp_path / "x.log"
    with pytest.raises(StepFailed) as caught:
        run_logged(
            "a step", [sys.executable, "-c", script], log=log, cwd=tmp_path,
            hint=lambda output: "look there" if "line 99" in output else "",
        )  # fmt: skip
    message = str(caught.value)
    assert "line 99" in message
    assert "line 9\n" not in message
    assert str(log) in message
    assert message.endswith("look there")
    assert len(log.read_text().splitlines()) == 100


@pytest.mark.parametrize(("deaf", "interrupts"), [(False, 1), (True, 1), (True, 2)])
def test_an_interrupt_takes_the_whole_command_along(tmp_path: Path, deaf: bool, interrupts: int) -> None:
    """ctrl-C while a compiler runs must not leave it running."""
    child = "import os, signal, time; print(os.getpid(), flush=True); time.sleep(600)"
    if deaf:
        child = child.replace("print", "signal.signal(signal.SIGTERM, signal.SIG_IGN); print", 1)
    parent = (
        "import sys; from pathlib import Path; from tools.progress import run_logged; "
        f"run_logged('x', [sys.executable, '-c', {child!r}], log=Path('{tmp_path}/x.log'), cwd=Path('.'), detail=print)"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", parent],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # A shell without job control starts what it runs in the background with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    pid = next(int(line) for line in process.stdout if line.strip().isdigit())
    for _ in range(interrupts):
        process.send_signal(signal.SIGINT)
        while _runs(process.pid) and _pending(process.pid, signal.SIGINT):
            time.sleep(0.01)
    process.communicate(timeout=30)
    assert process.returncode != 0
    deadline = time.monotonic() + 10
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(pid)


def _pending(pid: int, number: int) -> bool:
    """Whether this signal is still on its way to the process: two of a kind become one."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    waiting = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask >> (number - 1) & 1 for mask in waiting)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_somebody_elses_environment_is_never_removed(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho 2.7\n")
    python.chmod(0o755)
    with pytest.raises(StepFailed, match="did not create"):
        Environment(tmp_path).create()
    assert python.exists()


def test_an_environment_remembers_what_was_done(tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    environment.stamps.mkdir()
    assert not environment.stamped("step", "a")
    environment.stamp("step", "a")
    assert environment.stamped("step", "a")
    assert not environment.stamped("step", "b")


def test_a_missing_python_is_said_with_its_cure() -> None:
    done = subprocess.run(
        [ROOT / "tools" / "find-python"], env={"PATH": os.defpath, "PYTHON": "no-such-python"}, capture_output=True
    )
    assert done.returncode == 1
    assert b"no-such-python" in done.stderr
    assert b"apt-get install python3" in done.stderr


def test_compilers_are_found_only_where_they_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("clang", "clang++"):
        # A clang that tells its version and cannot link, as one without the C++ headers.
        (tmp_path / name).write_text('#!/bin/sh\n[ "$1" = --version ] && echo "clang version 18.1" && exit 0\nexit 1\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compilers("auto") == []


def test_this_machine_can_be_described() -> None:
    machine = this_machine()
    assert machine.arch == os.uname().machine
    assert machine.features


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.9, "59 s"), (60, "1 min 00 s"), (605, "10 min 05 s")])
def test_elapsed_times_read_well(seconds: float, text: str) -> None:
    assert elapsed(seconds) == text
