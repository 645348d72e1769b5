"""A life of the pure machine, told event by event."""

from __future__ import annotations

from hypothesis import strategies as st

from runtimes.supervisor import machine as m

RULES = m.Rules(
    start_timeout_s=10, start_cap_factor=3, drain_timeout_s=20, term_grace_s=5, backoff_base_s=1, backoff_cap_s=8,
    ran_well_s=30, quarantine_failures=5, quarantine_window_s=600, quarantine_retry_s=300,
    probe_interval_s=2, probe_misses=3,
)  # fmt: skip
UNIT = st.floats(0, 1, exclude_max=True)


class Story:
    """One replica, its clock, and shorthands for what often happens to it."""

    def __init__(self, rules: m.Rules = RULES) -> None:
        self.state, self.now, self.rules = m.ReplicaState(), 0.0, rules

    def tell(self, *events: m.Event, after: float = 0.0) -> list[m.Effect]:
        self.now += after
        effects: list[m.Effect] = []
        for event in events:
            self.state, more = m.step(self.state, event, self.now, self.rules)
            effects += more
        return effects

    def become_ready(self) -> None:
        n = self.state.attempt
        self.tell(m.Spawned(n), m.Connected(n), m.WarmedUp(n), m.Probed(n, True))
        assert self.state.phase == "ready"

    def crash(self, *, after: float = 0.0, jitter: float = 0.0, outside: bool = False) -> list[m.Effect]:
        n = self.state.attempt
        return self.tell(m.Died(n, "it died", outside), m.Gone(n, "last words", jitter), after=after)

    def fall_into_quarantine(self) -> None:
        self.tell(m.Run())
        while self.state.phase != "quarantined":
            if self.state.phase == "failed":
                self.tell(m.Tick(), after=8)
            self.crash()
