"""The wheel of deadlines against a list of them: nobody is looked at too early, late by more than a tick, or twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from appliance.routing.watch import TICK_S, _Wheel

STEP_S = 0.001


class FakeLoop:
    """Time that only `advance` moves, and the timers that ring meanwhile."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        self.timers.append((self.now + seconds, call))

    def advance(self, seconds: float, *, late: bool = False) -> None:
        """late: the loop was busy, and finds all that was due at the end."""
        end = self.now + seconds
        while due := [each for each in self.timers if each[0] <= end]:
            first = min(due, key=lambda each: each[0])
            self.timers.remove(first)
            self.now = end if late else max(self.now, first[0])
            first[1]()
        self.now = end


class Seen:
    """In the place of a watch."""

    def __init__(self, at: float, put_at: float) -> None:
        self.at = at
        self.soonest = max(at, put_at)
        """When it can be looked at at all: who is put there with a deadline that has passed is looked at next."""
        self.looked: list[float] = []

    def look(self, now: float) -> None:
        self.looked.append(now)


steps = st.one_of(
    st.tuples(st.just("put"), st.floats(-0.1, 3.0)),
    st.tuples(st.just("drop"), st.integers(0, 50)),
    st.tuples(st.just("wait"), st.floats(0, 1.5)),
    st.tuples(st.just("stall"), st.floats(0, 200)),
)


@given(st.lists(steps, max_size=40))
@example([("put", -0.0625), ("wait", 0.0)])
def test_everybody_is_looked_at_once_and_in_time(course: list[tuple[str, Any]]) -> None:
    loop = FakeLoop()
    wheel = _Wheel(loop)  # type: ignore[arg-type]
    waiting: dict[Seen, int] = {}
    dropped: list[Seen] = []
    for what, value in course:
        if what == "put":
            seen = Seen(loop.now + value, loop.now)
            waiting[seen] = wheel.put(seen, seen.at)  # type: ignore[arg-type]
        elif what == "drop" and waiting:
            seen = list(waiting)[value % len(waiting)]
            wheel.drop(seen, waiting.pop(seen))  # type: ignore[arg-type]
            dropped.append(seen)
        elif what in ("wait", "stall"):
            before = loop.now
            loop.advance(value, late=what == "stall")
            for seen in list(waiting):
                if seen.looked:
                    (at,) = seen.looked
                    assert at >= seen.at, "too early"
                    bound = loop.now if what == "stall" else max(seen.soonest, before) + 2 * TICK_S + STEP_S
                    assert at <= bound, "too late"
                    del waiting[seen]
                else:
                    assert seen.soonest > loop.now - 2 * TICK_S - STEP_S, "forgotten"
    for _ in range(3):
        loop.advance(4.0)
    assert all(len(seen.looked) == 1 for seen in waiting)
    assert not any(seen.looked for seen in dropped)
    assert loop.timers == [], "nobody is under way, and still it turns"
