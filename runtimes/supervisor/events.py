"""What the machine of a replica is told, and what it asks for: plain data.

Every event of a process carries the number of its attempt, and so does every effect.
"""

from __future__ import annotations

import msgspec

# --- events ---------------------------------------------------------------------------------------


class Run(msgspec.Struct, frozen=True):
    """Somebody wants the replica to run; this also takes it out of back-off and quarantine."""


class Halt(msgspec.Struct, frozen=True):
    """Somebody wants it stopped. `drain`: let the running requests end first."""

    reason: str
    drain: bool = True


class Cycle(msgspec.Struct, frozen=True):
    """Somebody wants a new process in place of this one, after a drain; also out of back-off and quarantine."""

    reason: str


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


class Spawned(msgspec.Struct, frozen=True):
    attempt: int


class SpawnFailed(msgspec.Struct, frozen=True):
    """No process came to be. `jitter` is random in [0, 1)."""

    attempt: int
    why: str
    jitter: float


class Progress(msgspec.Struct, frozen=True):
    """The process has logged something."""

    attempt: int


class Connected(msgspec.Struct, frozen=True):
    attempt: int


class WarmedUp(msgspec.Struct, frozen=True):
    attempt: int


class Broken(msgspec.Struct, frozen=True):
    """The process cannot be used, though it may still run: a refused warm-up, a lost connection."""

    attempt: int
    why: str


class Died(msgspec.Struct, frozen=True):
    """The leader of the process group has exited and its group has been killed.

    `outside`: somebody else's signal ended it, which is no sign of a defect.
    """

    attempt: int
    how: str
    outside: bool = False


class Gone(msgspec.Struct, frozen=True):
    """Nothing is left of the process group. `tail` holds its last log lines, `jitter` is random in [0, 1)."""

    attempt: int
    tail: str
    jitter: float


class Doubted(msgspec.Struct, frozen=True):
    """A lease holder found the engine lost."""

    attempt: int


class Probed(msgspec.Struct, frozen=True):
    """`computing_s`: how long the engine has been at its present batch, by its own account."""

    attempt: int
    answered: bool
    computing_s: float = 0.0


class LeaseTaken(msgspec.Struct, frozen=True):
    attempt: int


class LeaseReturned(msgspec.Struct, frozen=True):
    attempt: int


ProcessEvent = (
    Spawned | SpawnFailed | Progress | Connected | WarmedUp | Broken | Died | Gone
    | Doubted | Probed | LeaseTaken | LeaseReturned
)  # fmt: skip
Event = Run | Halt | Cycle | Tick | ProcessEvent

# --- effects --------------------------------------------------------------------------------------


class Spawn(msgspec.Struct, frozen=True):
    """Owes exactly one `Spawned` (and later one `Gone`) or one `SpawnFailed`."""

    attempt: int


class Connect(msgspec.Struct, frozen=True):
    """Try until it works; owes `Connected` or `Broken` unless a `Disconnect` comes first."""

    attempt: int


class WarmUp(msgspec.Struct, frozen=True):
    """Owes `WarmedUp` or `Broken` unless a `Disconnect` comes first."""

    attempt: int


class Probe(msgspec.Struct, frozen=True):
    """Owes `Probed` or `Broken` unless a `Disconnect` comes first."""

    attempt: int


class Disconnect(msgspec.Struct, frozen=True):
    """Give up the connection and all that waits on it; running requests end with EngineLost."""

    attempt: int


class Terminate(msgspec.Struct, frozen=True):
    attempt: int


class Kill(msgspec.Struct, frozen=True):
    """SIGKILL to the whole group."""

    attempt: int


Effect = Spawn | Connect | WarmUp | Probe | Disconnect | Terminate | Kill
