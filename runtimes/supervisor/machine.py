"""What a replica does next: one pure function over plain data.

`step(state, event, now, rules)` gives the next state and the effects that the world owes. It reads no
clock, draws no random number and touches no process; `wake_at` says when it wants to be told the time.

    stopped ──Run──▶ starting ──Connected──▶ warming ──WarmedUp──▶ ready
       ▲               ▲  │                     │                 │   │ Halt, Cycle
       │ goal: stop    │  └──── any failure ────┴─────────────────┘   ▼
       └── Gone ── stopping ◀─────────────────────────────────── draining
                       │ Gone, goal: run
                       ├─ nothing was wrong, or the first failure ──▶ starting
                       ├─ a later failure ──▶ failed ──(back-off)──▶ starting
                       └─ too many failures ──▶ quarantined ──Run, Cycle──▶ starting

The races that shape it:
- A process is over only when its whole group is gone (`Gone`), not when its leader has exited (`Died`).
  Until then the replica is `stopping` whatever else is asked, so there are never two processes for one.
- Every process has a number (`attempt`). Events of an earlier process are ignored by that number, so a late
  warm-up or a lease that is returned after a restart cannot touch the present one.
- A caller that met a broken connection (`Doubted`) may know of a death before its exit has been noticed.
  The replica gets no new leases until a probe has answered, so a retry does not run into the same corpse.

Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Phase = Literal["stopped", "starting", "warming", "ready", "draining", "stopping", "failed", "quarantined"]
ProcessState = Literal["none", "up", "asked", "killed"]
"""No process; running; asked to leave (SIGTERM); its group was killed. Only `Gone` leads back to none."""

RESTING: frozenset[Phase] = frozenset({"stopped", "failed", "quarantined"})
SETTLED: frozenset[Phase] = frozenset({"ready", "stopped", "failed", "quarantined"})


class Rules(msgspec.Struct, frozen=True):
    """The numbers of one replica. Seconds, unless a name says otherwise."""

    start_timeout_s: float = 120.0
    """Longest silence of a process that is not ready yet; each new log line starts it afresh."""
    start_cap_factor: float = 10.0
    """A start ends after this many start timeouts, however much is logged."""
    drain_timeout_s: float = 30.0
    term_grace_s: float = 5.0
    """Between SIGTERM and the SIGKILL of the group."""
    backoff_base_s: float = 1.0
    backoff_cap_s: float = 60.0
    ran_well_s: float = 30.0
    """A process that was ready for so long starts with a clean sheet: its end is a first failure."""
    quarantine_failures: int = 5
    quarantine_window_s: float = 900.0
    probe_interval_s: float = 2.0
    probe_timeout_s: float = 10.0
    probe_misses: int = 3
    """Probes in a row without an answer that make a ready engine count as hung."""


class ReplicaState(msgspec.Struct, frozen=True):
    """All that is known about one replica; nothing about it is kept anywhere else."""

    phase: Phase = "stopped"
    since: float = 0.0
    reason: str = "not started yet"
    goal: Literal["run", "stop"] = "stop"
    attempt: int = 0
    """Number of the present or last process, from 1; 0 = there has been none."""
    process: ProcessState = "none"
    leases: int = 0
    fault: str = ""
    """Why the end of this process counts as a failure; empty = its end is wanted."""
    strikes: int = 0
    """Failures in a row, for the back-off."""
    failures: tuple[float, ...] = ()
    """Times of the failures within the quarantine window."""
    spawned_at: float = 0.0
    progress_at: float = 0.0
    deadline: float | None = None
    """End of a drain, of the grace after SIGTERM, or of a back-off."""
    probe_at: float = 0.0
    probing: bool = False
    missed: int = 0
    doubted: bool = False

    @property
    def leasable(self) -> bool:
        return self.phase == "ready" and not self.doubted


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
    """The leader of the process group has exited and its group has been killed."""

    attempt: int
    how: str


class Gone(msgspec.Struct, frozen=True):
    """Nothing is left of the process group. `tail` holds its last log lines, `jitter` is random in [0, 1)."""

    attempt: int
    tail: str
    jitter: float


class Doubted(msgspec.Struct, frozen=True):
    """A lease holder found the engine lost."""

    attempt: int


class Probed(msgspec.Struct, frozen=True):
    attempt: int
    answered: bool


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
Outcome = tuple[ReplicaState, list[Effect]]


# --- the function ---------------------------------------------------------------------------------


def step(state: ReplicaState, event: Event, now: float, rules: Rules) -> Outcome:
    """Next state and effects, to be carried out in their order. Total: every event is legal in every state."""
    match event:
        case Run() | Cycle():
            return _wanted(state, event, now, rules)
        case Halt():
            return _unwanted(state, event, now, rules)
        case Tick():
            return _time_passed(state, now, rules)
    if event.attempt != state.attempt:
        return state, []
    match event:
        case Gone() if state.process != "none":
            # A launcher reports Died first; should it not, the end is told apart from a wanted one all the same.
            state, effects = step(state, Died(event.attempt, "the process is gone"), now, rules)
            state, following = _gone(state, event.tail, event.jitter, now, rules)
            return state, [*effects, *following]
        case SpawnFailed() if state.process != "none":
            return _spawn_failed(state, event, now, rules)
        case LeaseReturned():
            return _lease_returned(state, now, rules)
        case Died(how=how):
            if state.phase == "draining":
                return _ended(state, how, now)
            return _fail(state, how, now, rules)
        case Broken(why=why):
            return _fail(state, why, now, rules)
    match state.phase:
        case "starting":
            return _in_starting(state, event, now)
        case "warming":
            return _in_warming(state, event, now)
        case "ready":
            return _in_ready(state, event, now, rules)
    return state, []


def wake_at(state: ReplicaState, rules: Rules) -> float | None:
    """When `step` wants the next `Tick`; None = no time limit is running."""
    match state.phase:
        case "starting" | "warming":
            return min(
                state.progress_at + rules.start_timeout_s,
                state.spawned_at + rules.start_timeout_s * rules.start_cap_factor,
            )
        case "ready":
            return None if state.probing else state.probe_at
        case "stopping" if state.process != "asked":
            return None
    return state.deadline


def backoff_s(strikes: int, jitter: float, rules: Rules) -> float:
    """Pause before the restart after failure number `strikes` in a row: none, then base × 2ⁿ up to the cap.

    `jitter` in [0, 1) takes up to half of it away, so that replicas that fell together do not rise together.
    """
    if strikes <= 1:
        return 0.0
    # Exponents beyond this reach any sensible cap; larger ones would overflow a float.
    whole = min(rules.backoff_cap_s, rules.backoff_base_s * 2.0 ** min(strikes - 2, 60))
    return whole * (1.0 - jitter / 2.0)


def _enter(state: ReplicaState, phase: Phase, reason: str, now: float, deadline: float | None = None) -> ReplicaState:
    return msgspec.structs.replace(state, phase=phase, since=now, reason=reason, deadline=deadline)


def _spawn(state: ReplicaState, reason: str, now: float) -> Outcome:
    attempt = state.attempt + 1
    fresh = msgspec.structs.replace(
        _enter(state, "starting", reason, now),
        goal="run", attempt=attempt, process="up", leases=0, fault="", spawned_at=now, progress_at=now,
        probing=False, missed=0, doubted=False,
    )  # fmt: skip
    return fresh, [Spawn(attempt)]


def _terminate(state: ReplicaState, reason: str, now: float, rules: Rules) -> Outcome:
    """Ask the process to leave. The connection goes first, so that no request is left waiting for its answer."""
    left = _enter(state, "stopping", reason, now, deadline=now + rules.term_grace_s)
    return (
        msgspec.structs.replace(left, process="asked"),
        [Disconnect(state.attempt), Terminate(state.attempt)],
    )


def _ended(state: ReplicaState, why: str, now: float) -> Outcome:
    """The process is of no more use: kill what is left of it."""
    left = _enter(state, "stopping", why, now)
    return msgspec.structs.replace(left, process="killed"), [Disconnect(state.attempt), Kill(state.attempt)]


def _fail(state: ReplicaState, why: str, now: float, rules: Rules) -> Outcome:
    if state.phase not in ("starting", "warming", "ready"):
        return state, []  # An end was already under way; how exactly it came adds nothing.
    return _ended(_struck(state, why, now, rules), why, now)


def _struck(state: ReplicaState, why: str, now: float, rules: Rules) -> ReplicaState:
    ran_well = state.phase == "ready" and now - state.since >= rules.ran_well_s
    recent = () if ran_well else tuple(t for t in state.failures if now - t < rules.quarantine_window_s)
    return msgspec.structs.replace(
        state, fault=why, strikes=1 if ran_well else state.strikes + 1, failures=(*recent, now)
    )


def _gone(state: ReplicaState, tail: str, jitter: float, now: float, rules: Rules) -> Outcome:
    state = msgspec.structs.replace(state, process="none", leases=0, probing=False, doubted=False, missed=0)
    if state.goal == "stop":
        return _enter(state, "stopped", state.reason, now), []
    if not state.fault:
        return _spawn(state, state.reason, now)
    lines = f"\nLast log lines:\n{tail}" if tail else "\nIt logged nothing."
    if len(state.failures) >= rules.quarantine_failures:
        reason = (
            f"{state.fault}; failure {len(state.failures)} within {rules.quarantine_window_s:g} s, so it is not "
            f"started again by itself: mend the cause, then reload the settings{lines}"
        )
        return _enter(state, "quarantined", reason, now), []
    pause = backoff_s(state.strikes, jitter, rules)
    if pause <= 0:
        return _spawn(state, f"restarted after: {state.fault}", now)
    return _enter(state, "failed", f"{state.fault}; next start in {pause:.1f} s{lines}", now, deadline=now + pause), []


def _spawn_failed(state: ReplicaState, event: SpawnFailed, now: float, rules: Rules) -> Outcome:
    if state.phase == "starting":
        state = _struck(state, event.why, now, rules)
    return _gone(state, "", event.jitter, now, rules)


def _wanted(state: ReplicaState, event: Run | Cycle, now: float, rules: Rules) -> Outcome:
    if state.process == "none":
        return _spawn(msgspec.structs.replace(state, strikes=0, failures=()), _why_run(event), now)
    state = msgspec.structs.replace(state, goal="run")
    if isinstance(event, Run):
        return state, []
    # A new process was asked for, so what the old one did wrong is no longer held against the replica.
    state = msgspec.structs.replace(state, strikes=0, failures=(), fault="")
    return _leave(state, event.reason, now, rules, drain=True)


def _why_run(event: Run | Cycle) -> str:
    return event.reason if isinstance(event, Cycle) else "started"


def _unwanted(state: ReplicaState, event: Halt, now: float, rules: Rules) -> Outcome:
    was_running = state.goal == "run"
    state = msgspec.structs.replace(state, goal="stop")
    if state.process == "none":
        if state.phase == "stopped":
            return state, []
        return _enter(state, "stopped", event.reason, now), []
    if state.phase == "stopping" and was_running:
        # It is on its way out for another reason; what is shown from now on is that it stays out.
        state = msgspec.structs.replace(state, reason=event.reason)
    return _leave(state, event.reason, now, rules, drain=event.drain)


def _leave(state: ReplicaState, reason: str, now: float, rules: Rules, *, drain: bool) -> Outcome:
    """Towards the end of a process that is there, by the gentlest way that is still open."""
    match state.phase:
        case "ready" if drain and state.leases:
            return _enter(state, "draining", reason, now, deadline=now + rules.drain_timeout_s), []
        case "draining" if drain:
            return state, []
        case "starting" | "warming" | "ready" | "draining":
            return _terminate(state, reason, now, rules)
    return state, []


def _time_passed(state: ReplicaState, now: float, rules: Rules) -> Outcome:
    due = wake_at(state, rules)
    if due is None or now < due:
        return state, []
    match state.phase:
        case "starting" | "warming":
            if now - state.progress_at >= rules.start_timeout_s:
                why = f"no new log line for {rules.start_timeout_s:g} s while {state.phase}"
            else:
                why = f"not ready after {rules.start_timeout_s * rules.start_cap_factor:g} s, though it still logged"
            return _fail(state, why, now, rules)
        case "ready":
            return msgspec.structs.replace(state, probing=True), [Probe(state.attempt)]
        case "draining":
            why = f"{state.reason}; {state.leases} requests had not ended after {rules.drain_timeout_s:g} s"
            return _terminate(state, why, now, rules)
        case "stopping":
            return msgspec.structs.replace(state, process="killed", deadline=None), [Kill(state.attempt)]
        case "failed":
            return _spawn(state, f"restarted after: {state.fault}", now)
    return state, []


def _lease_returned(state: ReplicaState, now: float, rules: Rules) -> Outcome:
    if not state.leases:
        return state, []
    state = msgspec.structs.replace(state, leases=state.leases - 1)
    if state.phase == "draining" and not state.leases:
        return _terminate(state, state.reason, now, rules)
    return state, []


def _in_starting(state: ReplicaState, event: Event, now: float) -> Outcome:
    match event:
        case Spawned():
            return state, [Connect(state.attempt)]
        case Progress():
            return msgspec.structs.replace(state, progress_at=now), []
        case Connected():
            warming = _enter(state, "warming", "connected; waiting for the warm-up's answer", now)
            return msgspec.structs.replace(warming, progress_at=now), [WarmUp(state.attempt)]
    return state, []


def _in_warming(state: ReplicaState, event: Event, now: float) -> Outcome:
    match event:
        case Progress():
            return msgspec.structs.replace(state, progress_at=now), []
        case WarmedUp():
            ready = _enter(state, "ready", "answered the warm-up", now)
            # Probed at once, so that its status can be shown from the beginning.
            return msgspec.structs.replace(ready, probing=True), [Probe(state.attempt)]
    return state, []


def _in_ready(state: ReplicaState, event: Event, now: float, rules: Rules) -> Outcome:
    match event:
        case LeaseTaken() if state.leasable:
            return msgspec.structs.replace(state, leases=state.leases + 1), []
        case Doubted():
            effects: list[Effect] = [] if state.probing else [Probe(state.attempt)]
            return msgspec.structs.replace(state, doubted=True, probing=True), effects
        case Probed(answered=True):
            probe_at = now + rules.probe_interval_s
            return msgspec.structs.replace(state, probing=False, missed=0, doubted=False, probe_at=probe_at), []
        case Probed():
            missed = state.missed + 1
            if missed >= rules.probe_misses:
                return _fail(state, f"hung: no answer to {missed} probes of {rules.probe_timeout_s:g} s", now, rules)
            return msgspec.structs.replace(state, missed=missed, probing=True), [Probe(state.attempt)]
    return state, []
