"""What a replica's failures count for: back-off, quarantine and its tries, and kills that are no fault of its own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes.supervisor import machine as m
from tests.supervisor.machine_story import RULES, UNIT, Story


def test_the_first_failure_restarts_at_once_then_it_backs_off_then_quarantine() -> None:
    story = Story()
    story.tell(m.Run())
    assert story.crash() == [m.Disconnect(1), m.Kill(1), m.Spawn(2)]
    pauses = []
    for attempt in (2, 3, 4):
        story.crash()
        assert story.state.phase == "failed"
        due = m.wake_at(story.state, RULES)
        assert due is not None
        pauses.append(due - story.now)
        assert story.tell(m.Tick(), after=pauses[-1] - 0.001) == []
        assert story.tell(m.Tick(), after=0.002) == [m.Spawn(attempt + 1)]
    assert pauses == pytest.approx([1, 2, 4])
    assert story.crash() == [m.Disconnect(5), m.Kill(5)]
    assert story.state.phase == "quarantined"
    assert story.state.reason.startswith("it died; failure 5 within 600 s")
    assert story.state.reason.endswith("Last log lines:\nlast words")
    assert m.wake_at(story.state, RULES) == story.now + 300
    assert story.tell(m.Run()) == [m.Spawn(6)]
    assert story.state.failures == ()
    story.crash()
    assert story.state.phase == "starting"  # a clean sheet: its first failure


def test_in_quarantine_one_try_is_made_now_and_then() -> None:
    story = Story()
    story.fall_into_quarantine()
    for attempt in range(6, 12):
        first, _, rest = m.reason_at(story.state, story.now + 12).partition("\n")
        assert first.endswith("mend the cause and reload the settings; next start in 288 s")
        assert rest == "Last log lines:\nlast words"
        assert story.tell(m.Tick(), after=299.9) == []
        assert story.tell(m.Tick(), after=0.2) == [m.Spawn(attempt)]
        assert story.state.reason == "tried again after: it died"
        assert story.crash() == [m.Disconnect(attempt), m.Kill(attempt)]
        assert story.state.phase == "quarantined"
        assert story.state.reason.startswith("it died; it failed again when it was tried, so by itself")


@pytest.mark.parametrize(("ready_s", "outside", "after"), [(31, False, "starting"), (1, True, "starting")])
def test_a_try_that_works_ends_the_quarantine(ready_s: float, outside: bool, after: str) -> None:
    story = Story()
    story.fall_into_quarantine()
    story.tell(m.Tick(), after=301)
    story.become_ready()
    story.crash(after=ready_s, outside=outside)
    assert (story.state.phase, story.state.on_trial) == (after, False)
    story.crash()
    assert story.state.phase == "failed"


def test_a_try_that_is_ready_and_fails_at_once_is_no_success() -> None:
    story = Story()
    story.fall_into_quarantine()
    story.tell(m.Tick(), after=301)
    story.become_ready()
    story.crash(after=29)
    assert story.state.phase == "quarantined"


def test_a_start_that_cannot_be_made_is_a_failed_try() -> None:
    story = Story()
    story.fall_into_quarantine()
    story.tell(m.Tick(), after=301)
    story.tell(m.SpawnFailed(story.state.attempt, "no memory", 0.0))
    assert story.state.phase == "quarantined"
    story.tell(m.Halt("bye"))
    assert (story.state.phase, m.wake_at(story.state, RULES)) == ("stopped", None)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 60), st.booleans(), UNIT), min_size=1, max_size=40))
def test_who_is_killed_from_outside_is_never_given_up(kills: list[tuple[float, bool, float]]) -> None:
    """However often and however soon it is killed once it is ready, and whoever notices first."""
    story = Story()
    story.tell(m.Run())
    for ready_s, noticed, jitter in kills:
        story.become_ready()
        n = story.state.attempt
        story.tell(*([m.Broken(n, "a probe failed: EngineLost")] if noticed else []), after=ready_s)
        story.crash(jitter=jitter, outside=True)
        assert story.state.failures == ()
        if story.state.phase == "failed":
            due = m.wake_at(story.state, RULES)
            assert due is not None
            assert due <= story.now + RULES.backoff_cap_s
            story.now = due
            story.tell(m.Tick())
        assert story.state.phase == "starting"


def test_a_kill_during_the_start_counts_and_so_does_a_crash_among_kills() -> None:
    story = Story()
    story.tell(m.Run())
    story.crash(outside=True)
    assert len(story.state.failures) == 1
    for _ in range(4):
        story.become_ready()
        story.crash(outside=True)
        story.tell(m.Tick(), after=8)
        story.become_ready()
        story.crash()
        story.tell(m.Tick(), after=8)
    assert story.state.phase == "quarantined"
    assert len(story.state.failures) == 5


def test_who_ran_well_starts_with_a_clean_sheet() -> None:
    story = Story()
    story.tell(m.Run())
    for number in range(1, 12):
        story.become_ready()
        story.crash(after=31)
        assert story.state.phase == "starting"
        assert story.state.attempt == number + 1
    story.become_ready()
    story.crash(after=29)
    assert story.state.phase == "failed"


def test_old_failures_do_not_count() -> None:
    story = Story()
    story.tell(m.Run())
    for _ in range(20):
        story.crash(after=160)
        assert story.state.phase in ("starting", "failed")
        story.tell(m.Tick(), after=10)
    assert len(story.state.failures) == 4


@settings(deadline=None)
@given(st.integers(0, 10_000), UNIT)
def test_back_off_bounds(strikes: int, jitter: float) -> None:
    pause = m.backoff_s(strikes, jitter, RULES)
    if strikes <= 1:
        assert pause == 0
    else:
        whole = min(8, 2 ** min(strikes - 2, 10))
        assert whole / 2 <= pause <= whole
        assert m.backoff_s(strikes + 1, jitter, RULES) >= pause
