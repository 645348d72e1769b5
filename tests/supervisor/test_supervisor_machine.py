"""The pure machine: no order of events leads it astray, whatever the world does."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runtimes.supervisor import machine as m
from tests.supervisor.machine_story import RULES, UNIT, Story

PHASES: tuple[m.Phase, ...] = typing.get_args(m.Phase)

LEGAL: dict[m.Phase, set[m.Phase]] = {
    "stopped": {"starting"},
    "starting": {"warming", "stopping", "failed", "quarantined", "stopped"},
    "warming": {"ready", "stopping"},
    "ready": {"draining", "stopping"},
    "draining": {"stopping"},
    "stopping": {"stopped", "starting", "failed", "quarantined"},
    "failed": {"starting", "stopped"},
    "quarantined": {"starting", "stopped"},
}


def check(state: m.ReplicaState) -> None:
    """What must hold in every state, however it was reached."""
    assert (state.process == "none") == (state.phase in m.RESTING)
    if state.phase in ("starting", "warming", "ready", "draining"):
        assert state.process == "up"
    if state.phase == "stopping":
        assert state.process in ("asked", "killed")
    assert state.leases >= 0
    assert state.leases == 0 or state.phase in ("ready", "draining", "stopping")
    assert state.phase != "draining" or state.leases > 0
    assert state.phase != "quarantined" or len(state.failures) >= RULES.quarantine_failures or state.on_trial
    assert state.phase not in ("failed", "quarantined") or state.fault
    assert state.goal == "run" or state.phase not in ("starting", "warming", "ready", "failed", "quarantined")
    assert state.reason
    assert (state.phase in ("draining", "failed", "quarantined")) <= (state.deadline is not None)
    # A replica that is stopped or serves needs no clock for its safety; every other one is bounded in time, except
    # for a killed group, whose end only the kernel can bring about.
    unbounded = state.phase == "stopped" or state.process == "killed" or state.probing
    assert (m.wake_at(state, RULES) is None) == unbounded or state.probing


events: st.SearchStrategy[m.Event] = st.one_of(
    st.builds(m.Run),
    st.builds(m.Halt, reason=st.just("asked to stop"), drain=st.booleans()),
    st.builds(m.Cycle, reason=st.just("asked to restart")),
    st.builds(m.Tick),
    *(st.builds(kind, attempt=st.integers(0, 4)) for kind in (
        m.Spawned, m.Progress, m.Connected, m.WarmedUp, m.Doubted, m.LeaseTaken, m.LeaseReturned,
    )),
    st.builds(m.SpawnFailed, attempt=st.integers(0, 4), why=st.just("no memory"), jitter=UNIT),
    st.builds(m.Broken, attempt=st.integers(0, 4), why=st.just("it broke")),
    st.builds(m.Died, attempt=st.integers(0, 4), how=st.just("it died"), outside=st.booleans()),
    st.builds(m.Gone, attempt=st.integers(0, 4), tail=st.sampled_from(["", "last words"]), jitter=UNIT),
    st.builds(
        m.Probed, attempt=st.integers(0, 4), answered=st.booleans(), computing_s=st.sampled_from([0.0, 1.0, 1e6])
    ),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.tuples(events, st.floats(0, 40)), max_size=40))
def test_any_events_in_any_order(story: list[tuple[m.Event, float]]) -> None:
    state, now = m.ReplicaState(), 0.0
    for event, pause in story:
        now += pause
        before = state
        state, effects = m.step(before, event, now, RULES)
        check(state)
        if state.attempt == before.attempt and state.phase != before.phase:
            assert state.phase in LEGAL[before.phase]
            assert state.since == now
        attempt = getattr(event, "attempt", None)
        if attempt is not None and attempt != before.attempt:
            assert (state, effects) == (before, [])
        spawns = [e for e in effects if isinstance(e, m.Spawn)]
        assert len(spawns) == state.attempt - before.attempt <= 1
        if spawns and before.process != "none":
            assert isinstance(event, m.Gone | m.SpawnFailed)


class World(RuleBasedStateMachine):
    """A world that may do anything that a real one can: it owes what the effects promise, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.state = m.ReplicaState()
        self.now = 0.0
        self.processes: dict[int, str] = {}  # attempt → "alive" | "exited"
        self.spawned: list[int] = []
        self.over: list[int] = []
        self.owed: set[tuple[str, int]] = set()  # what may still be answered: ("Connect" | "WarmUp" | "Probe", attempt)
        self.connected: set[int] = set()
        self.leases: list[int] = []

    def post(self, event: m.Event) -> None:
        before = self.state
        self.state, effects = m.step(before, event, self.now, RULES)
        check(self.state)
        for effect in effects:
            self.carry_out(effect)

    def carry_out(self, effect: m.Effect) -> None:
        attempt = effect.attempt
        match effect:
            case m.Spawn():
                assert not self.processes, "two processes for one replica"
                assert attempt not in self.spawned
                self.spawned.append(attempt)
                self.processes[attempt] = "spawning"
            case m.Connect():
                assert self.processes.get(attempt) is not None
                self.owed.add(("Connect", attempt))
            case m.WarmUp() | m.Probe():
                assert attempt in self.connected
                assert not [o for o in self.owed if o[1] == attempt], "one thing at a time"
                self.owed.add((type(effect).__name__, attempt))
            case m.Disconnect():
                self.owed = {owed for owed in self.owed if owed[1] != attempt}
                self.connected.discard(attempt)
            case m.Terminate() | m.Kill():
                assert attempt in self.processes, "a signal to a process that is not ours"

    def the(self, kind: str) -> list[int]:
        return [attempt for attempt, state in self.processes.items() if state == kind]

    # --- people -------------------------------------------------------------------------------

    @initialize()
    def begins(self) -> None:
        self.post(m.Run())

    @rule()
    def run_it(self) -> None:
        self.post(m.Run())

    @rule(drain=st.booleans())
    def halt_it(self, drain: bool) -> None:
        self.post(m.Halt("asked to stop", drain))

    @rule()
    def cycle_it(self) -> None:
        self.post(m.Cycle("asked to restart"))

    @precondition(lambda self: self.state.leasable)
    @rule()
    def take_a_lease(self) -> None:
        self.post(m.LeaseTaken(self.state.attempt))
        self.leases.append(self.state.attempt)

    @precondition(lambda self: self.leases)
    @rule(lost=st.booleans())
    def return_a_lease(self, lost: bool) -> None:
        attempt = self.leases.pop(0)
        if lost:
            self.post(m.Doubted(attempt))
        self.post(m.LeaseReturned(attempt))

    # --- processes ----------------------------------------------------------------------------

    @precondition(lambda self: self.the("spawning"))
    @rule(works=st.booleans(), jitter=UNIT)
    def spawn_ends(self, works: bool, jitter: float) -> None:
        (attempt,) = self.the("spawning")
        if works:
            self.processes[attempt] = "alive"
            self.post(m.Spawned(attempt))
        else:
            del self.processes[attempt]
            self.over.append(attempt)
            self.post(m.SpawnFailed(attempt, "no memory", jitter))

    @precondition(lambda self: self.the("alive"))
    @rule(outside=st.booleans())
    def process_exits(self, outside: bool = False) -> None:
        (attempt,) = self.the("alive")
        self.processes[attempt] = "exited"
        self.post(m.Died(attempt, "it died", outside))

    @precondition(lambda self: self.the("exited"))
    @rule(jitter=UNIT)
    def group_is_gone(self, jitter: float) -> None:
        (attempt,) = self.the("exited")
        del self.processes[attempt]
        self.over.append(attempt)
        self.post(m.Gone(attempt, "last words", jitter))

    @precondition(lambda self: self.the("alive"))
    @rule()
    def it_logs(self) -> None:
        self.post(m.Progress(*self.the("alive")))

    @precondition(lambda self: self.owed)
    @rule(works=st.booleans(), breaks=st.booleans())
    def an_answer_comes(self, works: bool, breaks: bool) -> None:
        what, attempt = sorted(self.owed)[0]
        self.owed.discard((what, attempt))
        if what == "Connect" and works:
            self.connected.add(attempt)
            self.post(m.Connected(attempt))
        elif what == "WarmUp" and works:
            self.post(m.WarmedUp(attempt))
        elif what == "Probe" and (works or not breaks):
            self.post(m.Probed(attempt, works))
        else:
            self.post(m.Broken(attempt, "it broke"))

    @rule(pause=st.floats(0, 45))
    def time_passes(self, pause: float) -> None:
        due = m.wake_at(self.state, RULES)
        self.now = self.now + pause if due is None else min(self.now + pause, max(due, self.now))
        self.post(m.Tick())

    # --- what holds ---------------------------------------------------------------------------

    @invariant()
    def the_machine_and_the_world_agree(self) -> None:
        assert set(self.processes) == ({self.state.attempt} if self.state.process != "none" else set())
        assert set(self.spawned) == set(self.over) | set(self.processes)
        assert self.state.leases <= self.leases.count(self.state.attempt)
        assert self.connected <= set(self.processes)
        if self.state.phase in ("warming", "ready", "draining"):
            assert self.connected == {self.state.attempt}
        if self.state.probing and self.state.phase == "ready":
            assert self.owed == {("Probe", self.state.attempt)}

    def come_back(self) -> None:
        """From wherever it is: who is wanted is ready again by itself, once the world does what it must."""
        patience = self.now + RULES.quarantine_retry_s + 10 * RULES.start_timeout_s
        while self.state.phase != "ready" or self.state.doubted:
            if self.the("spawning"):
                self.spawn_ends(True, 0.5)
            elif self.the("exited"):
                self.group_is_gone(0.5)
            elif self.state.process == "killed":
                self.process_exits()
            elif self.owed:
                self.an_answer_comes(True, False)
            elif self.leases and self.state.phase == "draining":
                self.return_a_lease(False)
            else:
                due = m.wake_at(self.state, RULES)
                assert due is not None
                self.now = max(self.now, due)
                self.post(m.Tick())
            assert self.now <= patience

    def teardown(self) -> None:
        """Then a stop comes to its end as long as the kernel does what it must."""
        if self.state.goal == "run":
            self.come_back()
        self.post(m.Halt("asked to stop"))
        for _ in range(8):
            if self.state.phase == "stopped":
                break
            if self.the("spawning"):
                self.spawn_ends(True, 0.5)
            elif self.the("exited"):
                self.group_is_gone(0.5)
            elif self.state.process == "killed":
                self.process_exits()
            else:
                due = m.wake_at(self.state, RULES)
                assert due is not None
                self.now = max(self.now, due)
                self.post(m.Tick())
        assert self.state.phase == "stopped"
        assert not self.processes
        assert not self.connected
        assert not self.owed


TestWorld = World.TestCase
TestWorld.settings = settings(deadline=None)


# --- told as stories ------------------------------------------------------------------------------


def test_the_ordinary_life() -> None:
    story = Story()
    assert story.tell(m.Run()) == [m.Spawn(1)]
    assert story.tell(m.Spawned(1)) == [m.Connect(1)]
    assert story.tell(m.Connected(1)) == [m.WarmUp(1)]
    assert story.tell(m.WarmedUp(1)) == [m.Probe(1)]
    assert story.tell(m.Probed(1, True)) == []
    assert story.tell(m.Tick(), after=2) == [m.Probe(1)]
    assert story.tell(m.Probed(1, True)) == []
    assert story.tell(m.LeaseTaken(1), m.Halt("bye")) == []
    assert story.state.phase == "draining"
    assert story.tell(m.LeaseReturned(1)) == [m.Disconnect(1), m.Terminate(1)]
    assert story.tell(m.Tick(), after=5) == [m.Kill(1)]
    assert story.tell(m.Died(1, "killed"), m.Gone(1, "", 0.5)) == []
    assert (story.state.phase, story.state.reason) == ("stopped", "bye")


def test_only_probes_in_a_row_count_as_hung() -> None:
    story = Story()
    story.tell(m.Run())
    story.become_ready()
    story.tell(m.Tick(), after=2)
    assert story.tell(m.Probed(1, False), m.Probed(1, False)) == [m.Probe(1), m.Probe(1)]
    story.tell(m.Probed(1, True))
    story.tell(m.Tick(), after=2)
    story.tell(m.Probed(1, False), m.Probed(1, False))
    assert story.tell(m.Probed(1, False)) == [m.Disconnect(1), m.Kill(1)]
    assert story.state.reason.startswith("hung")


def test_an_engine_that_answers_but_computes_one_batch_for_ever_is_hung() -> None:
    story = Story()
    story.tell(m.Run())
    story.become_ready()
    story.tell(m.Tick(), after=2)
    late = m.Probed(1, True, computing_s=story.rules.longest_batch_s + 1)
    for probed in (late, late, m.Probed(1, True, computing_s=story.rules.longest_batch_s), late, late):
        assert story.tell(probed) == []
        assert story.tell(m.Tick(), after=2) == [m.Probe(1)]
    assert story.tell(late) == [m.Disconnect(1), m.Kill(1)]
    assert story.state.reason.startswith("hung: one batch")


def test_progress_moves_the_start_timeout_up_to_the_cap() -> None:
    story = Story()
    story.tell(m.Run(), m.Spawned(1))
    for _ in range(3):
        assert story.tell(m.Tick(), m.Progress(1), after=9) == []
    assert m.wake_at(story.state, RULES) == 30
    assert story.tell(m.Tick(), after=3) == [m.Disconnect(1), m.Kill(1)]


def test_a_stop_during_back_off_and_a_run_during_a_stop() -> None:
    story = Story()
    story.tell(m.Run())
    story.crash()
    story.crash()
    story.tell(m.Halt("bye"))
    assert (story.state.phase, m.wake_at(story.state, RULES)) == ("stopped", None)
    assert story.tell(m.Run()) == [m.Spawn(3)]
    assert story.tell(m.Halt("bye"), m.Run()) == [m.Disconnect(3), m.Terminate(3)]
    assert story.tell(m.Died(3, "ended"), m.Gone(3, "", 0)) == [m.Spawn(4)]
    assert story.state.failures == ()


def test_a_restart_asked_for_in_a_crash_loop_is_no_failure() -> None:
    story = Story()
    story.tell(m.Run())
    for _ in range(3):
        story.crash()
        story.tell(m.Tick(), after=10)
    story.tell(m.Died(4, "it died"), m.Cycle("by hand"))
    assert story.tell(m.Gone(4, "", 0)) == [m.Spawn(5)]
    assert (story.state.strikes, story.state.failures) == (0, ())


def test_every_event_is_legal_in_every_phase() -> None:
    """No combination raises: the world's order is not ours to choose."""
    kinds: dict[Any, dict[str, Any]] = {
        m.Halt: {"reason": "x"}, m.Cycle: {"reason": "x"}, m.SpawnFailed: {"why": "x", "jitter": 0},
        m.Broken: {"why": "x"}, m.Died: {"how": "x"}, m.Gone: {"tail": "", "jitter": 0}, m.Probed: {"answered": True},
    }  # fmt: skip
    tried = 0
    for phase in PHASES:
        process: m.ProcessState = "none" if phase in m.RESTING else "killed" if phase == "stopping" else "up"
        deadline = 1.0 if phase in ("draining", "failed", "quarantined") else None
        state = m.ReplicaState(phase=phase, process=process, attempt=1, leases=1, goal="run", deadline=deadline)
        for kind in typing.get_args(m.Event):
            fields = dict(kinds.get(kind, {}))
            if "attempt" in {f.name for f in msgspec.structs.fields(kind)}:
                fields["attempt"] = 1
            after, effects = m.step(state, kind(**fields), 2.0, RULES)
            assert after.phase in {phase, *LEGAL[phase], "starting"}
            assert all(e.attempt in (1, 2) for e in effects)
            tried += 1
    assert tried == len(PHASES) * 16
