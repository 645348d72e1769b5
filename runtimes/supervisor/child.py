"""Becomes an engine process that cannot outlive the gateway. Run as a file, before the engine's own program:

    python -I -S child.py PARENT_PID LIFELINE_FD PROGRAM [ARGUMENT…]

A function between fork and exec (`preexec_fn`) would run in a copy of a threaded, multi-loop process, where any
lock may be held for ever; so this tiny program is exec'd instead, prepares itself, and execs the engine.

Two ways make sure of the end, since each has a hole:
- PR_SET_PDEATHSIG kills the engine when its parent dies, even if the engine hangs – but not its own children.
- The keeper, a process in the same group, waits for the end of the lifeline pipe, which the kernel closes
  with the gateway however it dies, and kills the whole group – but only after it has been started.

The engine inherits the lifeline as well (its number is in OUTPOST_LIFELINE_FD): at its end-of-file the
gateway is gone. This file imports nothing of ours, so that it starts in milliseconds from any environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
EXIT_NOT_STARTED = 127


def main(arguments: list[str]) -> None:
    """Never returns: execs the program, or exits with 127 after a line on stderr."""
    parent, lifeline, program = int(arguments[0]), int(arguments[1]), arguments[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        _give_up(f"cannot tie this process to its parent: {os.strerror(ctypes.get_errno())}")
    # The parent may have died before the line above; then the signal never comes.
    if os.getppid() != parent:
        _give_up(f"the process that started this one ({parent}) is gone")
    _start_keeper(libc, lifeline)
    # This interpreter ignores them at its start, and an ignored signal stays ignored across exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvp(program[0], program)
    except OSError as error:
        _give_up(f"cannot run {program[0]}: {error.strerror}")


def _start_keeper(libc: ctypes.CDLL, lifeline: int) -> None:
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    # Forked twice, so that the engine never meets a child that it did not start.
    if os.fork():
        os._exit(0)
    libc.prctl(PR_SET_NAME, b"outpost-keeper", 0, 0, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # The log's pipe must end with the engine, not with the keeper.
    for descriptor in (0, 1, 2):
        os.close(descriptor)
    with contextlib.suppress(OSError):
        while os.read(lifeline, 1):
            pass
    os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _give_up(message: str) -> None:
    os.write(2, f"outpost: {message}\n".encode())
    os._exit(EXIT_NOT_STARTED)


if __name__ == "__main__":
    main(sys.argv[1:])
