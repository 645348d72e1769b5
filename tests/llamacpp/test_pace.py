"""Chunks and threads: what the loop decides from the times that it measures."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtimes.llamacpp.machine import Compute, read_times
from runtimes.llamacpp.pace import SMALLEST_CHUNK, Pace, Threads, idle_processors, share_prefill


@given(
    st.lists(st.tuples(st.integers(1, 512), st.floats(1e-4, 5.0), st.booleans())),
    st.integers(1, 100_000),
    st.booleans(),
    st.integers(1, 512),
)
def test_a_chunk_is_never_empty_and_never_too_large(
    measured: list[tuple[int, float, bool]], todo: int, decoding: bool, most: int
) -> None:
    pace = Pace()
    for rows, seconds, prefill in measured:
        pace.measured(rows, seconds, prefill=prefill)
    assert 1 <= pace.prefill_budget(todo, decoding=decoding, most=most) <= min(todo, most)


@given(st.lists(st.integers(1, 5000), max_size=8), st.integers(1, 512))
def test_a_budget_is_shared_so_that_the_oldest_and_the_shortest_get_on(todo: list[int], budget: int) -> None:
    counts = share_prefill(todo, budget)
    assert all(0 <= count <= left for count, left in zip(counts, todo, strict=True))
    assert sum(counts) == min(budget, sum(todo))
    if todo:
        assert counts[0] >= min(todo[0], (budget + 1) // 2)
        shortest = min(range(len(todo)), key=lambda at: todo[at])
        assert counts[shortest] >= min(todo[shortest], budget // 2)


def test_beside_others_a_chunk_takes_about_one_of_their_steps() -> None:
    pace = Pace()
    for _ in range(50):
        pace.measured(64, 0.32, prefill=True)  # 200 tokens a second
        pace.measured(8, 0.16, prefill=False)
    assert 28 <= pace.prefill_budget(10_000, decoding=True, most=512) <= 36
    assert 45 <= pace.prefill_budget(10_000, decoding=False, most=512) <= 55


def test_a_very_slow_machine_still_gets_on() -> None:
    pace = Pace()
    for _ in range(50):
        pace.measured(16, 10.0, prefill=True)
    assert pace.prefill_budget(10_000, decoding=True, most=512) == SMALLEST_CHUNK


def run(threads: Threads, share: float, seconds: float, start: float, step: float = 0.02) -> float:
    now = start
    while now < start + seconds:
        now += step
        threads.observed(step, step * threads.count * share, now)
    return now


def test_a_busy_neighbour_costs_a_thread_at_once_and_a_quiet_machine_none() -> None:
    threads = Threads(2)
    now = run(threads, 0.98, 5.0, 0.0)
    assert threads.count == 2
    run(threads, 0.66, 0.1, now)
    assert threads.count == 1


def test_threads_come_back_when_processors_are_idle() -> None:
    threads = Threads(2)
    now = run(threads, 0.5, 1.0, 10.0)
    assert threads.count == 1
    threads.idle(0.2, now + 1)
    assert threads.count == 1
    threads.idle(0.9, now + 1)
    assert threads.count == 2


def test_a_mistaken_return_makes_more_patient() -> None:
    threads = Threads(2)
    now, waits = 100.0, []
    for _ in range(8):
        now = run(threads, 0.5, 0.1, now)
        assert threads.count == 1
        left = now
        while not threads.wants_to_know(now):
            now += 0.05
        waits.append(now - left)
        threads.idle(1.0, now)
        assert threads.count == 2
    assert waits == sorted(waits) and waits[-1] > 8 * waits[0]


@given(st.integers(1, 64), st.lists(st.tuples(st.floats(0.001, 1.0), st.floats(0.0, 2.0), st.floats(0.0, 70.0))))
def test_the_count_stays_in_bounds(most: int, steps: list[tuple[float, float, float]]) -> None:
    threads, now = Threads(most), 0.0
    for wall, share, idle in steps:
        now += wall
        threads.observed(wall, wall * share * threads.count, now)
        threads.idle(idle, now)
        assert 1 <= threads.count <= most


def test_idle_processors_is_the_share_of_idle_time() -> None:
    assert idle_processors((100, 1000), (150, 1100), 4) == 2.0
    assert idle_processors((100, 1000), (100, 1000), 4) == 0.0


def test_the_machine_can_be_read() -> None:
    idle, total = read_times()
    assert 0 <= idle <= total
    compute = Compute(3)
    compute.began()
    compute.ended(0.001, 1.0)
    assert compute.threads == 3
