"""Placement: whatever the slots hold, the decision is sound and saves what can be saved."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from runtimes.llamacpp.slots import COPY_GAIN, Placement, SlotView, Wait, common_prefix, place


def tokens(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def slot(
    index: int,
    held: list[int],
    *,
    free: bool = True,
    coming: list[int] | None = None,
    partition: str = "",
    used: int = 0,
) -> SlotView:
    return SlotView(index, free, tokens(held), tokens(coming if coming is not None else held), partition, used)


small = st.lists(st.integers(0, 2), max_size=60)


@st.composite
def slot_sets(draw: st.DrawFn) -> list[SlotView]:
    views = []
    for index in range(draw(st.integers(1, 5))):
        coming = draw(small) * draw(st.integers(1, 3))
        held = coming[: draw(st.integers(0, len(coming)))]
        free = draw(st.booleans())
        views.append(
            slot(
                index,
                held,
                free=free,
                coming=held if free else coming,
                partition=draw(st.sampled_from(["", "a"])),
                used=draw(st.integers(0, 9)),
            )
        )
    return views


@given(small, small)
def test_common_prefix_is_the_longest(a: list[int], b: list[int]) -> None:
    n = common_prefix(tokens(a), tokens(b))
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


@given(slot_sets(), st.lists(st.integers(0, 2), min_size=1, max_size=150), st.sampled_from(["", "a"]))
def test_a_placement_never_reuses_what_is_not_there(views: list[SlotView], prompt: list[int], partition: str) -> None:
    decision = place(views, tokens(prompt), partition)
    free = {v.index for v in views if v.free}
    if decision is None:
        assert not free
        return
    assert free
    if isinstance(decision, Wait):
        behind = views[decision.behind]
        assert not behind.free and behind.partition == partition
        assert len(behind.coming) > len(behind.held)
        return
    assert decision.slot in free
    assert 0 <= decision.keep < len(prompt), "the last token must be computed for its logits"
    source = views[decision.slot if decision.copy_from is None else decision.copy_from]
    assert decision.copy_from != decision.slot
    assert list(source.held[: decision.keep]) == prompt[: decision.keep]
    assert decision.keep == 0 or source.partition == partition, "no reuse across partitions"


def test_a_conversation_returns_to_its_slot() -> None:
    views = [slot(0, [9] * 50, used=5), slot(1, list(range(100)), used=1), slot(2, [], used=0)]
    assert place(views, tokens([*range(100), 500, 501]), "") == Placement(1, 100)


def test_a_short_common_beginning_does_not_cost_another_conversation_its_memory() -> None:
    system = list(range(40))
    views = [slot(0, [*system, *range(1000, 1400)], used=5), slot(1, [], used=0)]
    assert place(views, tokens([*system, 7, 8, 9]), "") == Placement(1, 40, copy_from=0)


def test_a_busy_slot_can_be_copied_from() -> None:
    shared = list(range(200))
    views = [slot(0, [*shared, 1, 2, 3], free=False), slot(1, [], used=0)]
    assert place(views, tokens([*shared, 50]), "") == Placement(1, 200, copy_from=0)


def test_a_small_gain_is_not_worth_a_copy() -> None:
    shared = list(range(COPY_GAIN - 1))
    views = [slot(0, [*shared, 1, 2, 3], free=False), slot(1, [], used=0)]
    assert place(views, tokens([*shared, 50]), "") == Placement(1, 0)


def test_the_same_beginning_under_way_is_waited_for() -> None:
    prompt = list(range(300))
    views = [slot(0, prompt[:64], free=False, coming=prompt), slot(1, [])]
    assert place(views, tokens([*prompt[:250], 7]), "") == Wait(0)


def test_empty_then_oldest_is_overwritten() -> None:
    views = [slot(0, [1] * 9, used=3), slot(1, [2] * 9, used=1), slot(2, [3] * 9, used=2)]
    assert place(views, tokens([5, 6, 7]), "") == Placement(1, 0)
    assert place([*views, slot(3, [], used=9)], tokens([5, 6, 7]), "") == Placement(3, 0)


def test_a_prompt_that_is_held_whole_computes_its_last_token() -> None:
    assert place([slot(0, list(range(50)))], tokens(list(range(50))), "") == Placement(0, 49)
