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
                       └─ too many failures ──▶ quarantined ──Run, Cycle, (one try now and then)──▶ starting

The races that shape it:
- A process is over only when its whole group is gone (`Gone`), not when its leader has exited (`Died`).
  Until then the replica is `stopping` whatever else is asked, so there are never two processes for one.
- Every process has a number (`attempt`). Events of an earlier process are ignored by that number, so a late
  warm-up or a lease that is returned after a restart cannot touch the present one.
- A caller that met a broken connection (`Doubted`) may know of a death before its exit has been noticed.
  The replica gets no new leases until a probe has answered, so a retry does not run into the same corpse.

Nothing but `Halt` keeps a replica down for good:
- In quarantine it gets one try every `quarantine_retry_s`. It is `on_trial` then: whatever ends it before it has run
  well puts it back at once.
- A signal from outside that ends a ready replica (`kill -9`, the kernel's memory killer) is no defect of it. It counts
  for the back-off, so that a killer in a loop costs one start a minute at most, but not towards quarantine.

Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from runtimes.supervisor.events import (
    Broken,
    Connect,
    Connected,
    Cycle,
    Died,
    Disconnect,
    Doubted,
    Effect,
    Event,
    Gone,
    Halt,
    Kill,
    LeaseReturned,
    LeaseTaken,
    Probe,
    Probed,
    Progress,
    Run,
    Spawn,
    Spawned,
    SpawnFailed,
    Terminate,
    Tick,
    WarmedUp,
    WarmUp,
)  # fmt: skip

__all__ = [
    "RESTING", "SETTLED", "Broken", "Connect", "Connected", "Cycle", "Died", "Disconnect", "Doubted", "Effect", "Event",
    "Gone", "Halt", "Kill", "LeaseReturned", "LeaseTaken", "Outcome", "Phase", "Probe", "Probed", "ProcessState",
    "Progress", "ReplicaState", "Rules", "Run", "Spawn", "SpawnFailed", "Spawned", "Terminate", "Tick", "WarmUp",
    "WarmedUp", "backoff_s", "reason_at", "step", "wake_at",
]  # fmt: skip

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
    quarantine_retry_s: float = 300.0
    """Between the tries of a replica that is in quarantine."""
    probe_interval_s: float = 2.0
    probe_timeout_s: float = 10.0
    probe_misses: int = 3
    """Probes in a row without an answer, or with a bad one, that make a ready engine count as hung."""
    longest_batch_s: float = 180.0
    """An answer is bad if the engine has been computing one batch of text for longer. Those are cut to fractions of a
    second; the slowest model on the slowest machine takes some seconds for its smallest one."""


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
    served_s: float | None = None
    """How long it had been ready when the fault showed; None = it was not ready."""
    outside: bool = False
    """A signal from outside ended this process."""
    strikes: int = 0
    """Failures in a row, for the back-off."""
    failures: tuple[float, ...] = ()
    """Times of the failures within the quarantine window."""
    on_trial: bool = False
    """It was started out of quarantine and has not run well since."""
    spawned_at: float = 0.0
    progress_at: float = 0.0
    deadline: float | None = None
    """End of a drain, of the grace after SIGTERM, of a back-off, or of a while in quarantine."""
    probe_at: float = 0.0
    probing: bool = False
    missed: int = 0
    doubted: bool = False

    @property
    def leasable(self) -> bool:
        return self.phase == "ready" and not self.doubted


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
        case Died(how=how, outside=outside):
            state = msgspec.structs.replace(state, outside=state.outside or outside)
            if state.phase == "draining":
                return _ended(state, how, now)
            return _fail(state, how, now)
        case Broken(why=why):
            return _fail(state, why, now)
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


def reason_at(state: ReplicaState, now: float) -> str:
    """`state.reason` as it reads at this moment: its first line says when the next start is, if one is due."""
    if state.phase not in ("failed", "quarantined") or state.deadline is None:
        return state.reason
    words, newline, lines = state.reason.partition("\n")
    return f"{words}; next start in {max(0.0, state.deadline - now):.0f} s{newline}{lines}"


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
        goal="run", attempt=attempt, process="up", leases=0, fault="", served_s=None, outside=False,
        spawned_at=now, progress_at=now, probing=False, missed=0, doubted=False,
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


def _fail(state: ReplicaState, why: str, now: float) -> Outcome:
    if state.phase not in ("starting", "warming", "ready"):
        return state, []  # An end was already under way; how exactly it came adds nothing.
    return _ended(_at_fault(state, why, now), why, now)


def _at_fault(state: ReplicaState, why: str, now: float) -> ReplicaState:
    served_s = now - state.since if state.phase == "ready" else None
    return msgspec.structs.replace(state, fault=why, served_s=served_s)


def _struck(state: ReplicaState, now: float, rules: Rules) -> ReplicaState:
    """What the fault counts for. Judged when nothing is left of the process: only then its whole story is known,
    since a lost connection is often met before the signal that caused it."""
    ran_well = state.served_s is not None and state.served_s >= rules.ran_well_s
    blameless = state.served_s is not None and state.outside
    recent = () if ran_well else tuple(t for t in state.failures if now - t < rules.quarantine_window_s)
    return msgspec.structs.replace(
        state,
        strikes=1 if ran_well else state.strikes + 1,
        failures=recent if blameless else (*recent, now),
        on_trial=state.on_trial and not (ran_well or blameless),
    )


def _gone(state: ReplicaState, tail: str, jitter: float, now: float, rules: Rules) -> Outcome:
    state = msgspec.structs.replace(state, process="none", leases=0, probing=False, doubted=False, missed=0)
    if state.goal == "stop":
        return _enter(state, "stopped", state.reason, now), []
    if not state.fault:
        return _spawn(state, state.reason, now)
    state = _struck(state, now, rules)
    lines = f"\nLast log lines:\n{tail}" if tail else "\nIt logged nothing."
    if state.on_trial or len(state.failures) >= rules.quarantine_failures:
        failed = f"failure {len(state.failures)} within {rules.quarantine_window_s:g} s"
        reason = (
            f"{state.fault}; {'it failed again when it was tried' if state.on_trial else failed}, so by itself it is "
            f"started only every {rules.quarantine_retry_s:g} s: mend the cause and reload the settings{lines}"
        )
        return _enter(state, "quarantined", reason, now, deadline=now + rules.quarantine_retry_s), []
    pause = backoff_s(state.strikes, jitter, rules)
    if pause <= 0:
        return _spawn(state, f"restarted after: {state.fault}", now)
    return _enter(state, "failed", f"{state.fault}{lines}", now, deadline=now + pause), []


def _spawn_failed(state: ReplicaState, event: SpawnFailed, now: float, rules: Rules) -> Outcome:
    if state.phase == "starting":
        state = _at_fault(state, event.why, now)
    return _gone(state, "", event.jitter, now, rules)


def _cleared(state: ReplicaState) -> ReplicaState:
    return msgspec.structs.replace(state, strikes=0, failures=(), on_trial=False)


def _wanted(state: ReplicaState, event: Run | Cycle, now: float, rules: Rules) -> Outcome:
    if state.process == "none":
        return _spawn(_cleared(state), _why_run(event), now)
    state = msgspec.structs.replace(state, goal="run")
    if isinstance(event, Run):
        return state, []
    # A new process was asked for, so what the old one did wrong is no longer held against the replica.
    state = msgspec.structs.replace(_cleared(state), fault="")
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
            return _fail(state, why, now)
        case "ready":
            return msgspec.structs.replace(state, probing=True), [Probe(state.attempt)]
        case "draining":
            why = f"{state.reason}; {state.leases} requests had not ended after {rules.drain_timeout_s:g} s"
            return _terminate(state, why, now, rules)
        case "stopping":
            return msgspec.structs.replace(state, process="killed", deadline=None), [Kill(state.attempt)]
        case "failed":
            return _spawn(state, f"restarted after: {state.fault}", now)
        case "quarantined":
            tried = msgspec.structs.replace(_cleared(state), on_trial=True)
            return _spawn(tried, f"tried again after: {state.fault}", now)
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
            if event.computing_s <= rules.longest_batch_s:
                return msgspec.structs.replace(state, probing=False, missed=0, doubted=False, probe_at=probe_at), []
            if state.missed + 1 >= rules.probe_misses:
                return _fail(state, f"hung: one batch has been computing for {event.computing_s:.0f} s", now)
            # It may only have been stopped for a while; then the next answers are better.
            return msgspec.structs.replace(state, probing=False, missed=state.missed + 1, probe_at=probe_at), []
        case Probed():
            missed = state.missed + 1
            if missed >= rules.probe_misses:
                return _fail(state, f"hung: no answer to {missed} probes of {rules.probe_timeout_s:g} s", now)
            return msgspec.structs.replace(state, missed=missed, probing=True), [Probe(state.attempt)]
    return state, []
