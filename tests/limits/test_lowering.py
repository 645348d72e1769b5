"""What is held in vain is lowered soon, and what a start finds of it is told."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from appliance.limits.book import Reservation
from appliance.limits.rules import Bound, Rule
from appliance.limits.store import GRAIN, ROOM, SOON_S
from appliance.limits.windows import Window
from appliance.records.tables import events
from tests.limits.slow_writer import DAY, REQUESTS, STEP, T0, bounded, life

HOUR = Window(3600)


@pytest.mark.parametrize("window", [DAY, HOUR], ids=["day", "rolling"])
def test_a_death_soon_after_the_last_answer_costs_nothing(window: Window) -> None:
    with life(*bounded(10 * STEP, 10, window)) as box:
        for number in range(5):
            box.one(f"x{number}")
        assert set(box.writer.held().values()) == {1, STEP}
        box.settle_down()
        assert box.writer.held() == {}
        assert len(box.writer.lowerings) == 1
        assert box.t <= 4 * SOON_S
        box.die()
        assert sorted(box.start().values()) == [5, 15]
        assert box.writer.told() == []


def test_what_was_under_way_is_held_and_told() -> None:
    with life(*bounded(10 * STEP, 10)) as box:
        box.one("x")
        box.begin()
        box.settle_down()
        keys = {"l|team|tokens|day@UTC|t": STEP, "l|team|requests|day@UTC|t": 1}
        assert box.writer.held() == keys
        box.die()
        box.wait(5)
        assert sorted(box.start().values()) == [2, 3 + STEP]
        told = box.writer.told()
        assert {each["counter"]: each["amount"] for each in told} == keys
        midnight = int(T0 // 86_400 * 86_400)
        assert {each["counts_from_us"] for each in told} == {midnight * 1_000_000}
        box.die()
        box.start()
        assert box.writer.told() == told, "once, by the start that found it"


def test_what_no_longer_counts_is_not_told() -> None:
    with life(*bounded(10 * STEP, 10)) as box:
        box.begin()
        box.die()
        box.wait(86_400)
        assert box.start() == {}
        assert box.writer.told() == []


def test_many_counters_are_told_in_some_events() -> None:
    rules = [
        Rule(id=f"l{each}", name=f"l{each}", scope="team", bounds=(Bound(REQUESTS, 5, DAY),)) for each in range(230)
    ]
    with life(*rules) as box:
        box.begin()
        box.die()
        assert len(box.start()) == 230
        assert {each["counter"].split("|")[0] for each in box.writer.told()} == {rule.id for rule in rules}
        assert len(box.writer.connection.execute(select(events)).all()) == 3


def test_a_burst_on_much_room_is_lowered_too() -> None:
    """A limit that was roomy when it was asked for, and of which the burst's worst case is a large part."""
    amount = ROOM * GRAIN * STEP * 2
    with life(*bounded(amount, 10**6)) as box:
        many = [box.reserve() for _ in range(GRAIN * 4)]
        for each in many:
            assert isinstance(each, Reservation)
            box.loop.create_task(box.store.ensure(each, box.now()))
        box.turn()
        box.settle_down()
        held = box.writer.held()["l|team|tokens|day@UTC|t"]
        assert held >= GRAIN * 4 * STEP
        for number, each in enumerate(many):
            assert isinstance(each, Reservation)
            box.end(each, f"x{number}", 1)
        box.settle_down()
        assert "l|team|tokens|day@UTC|t" not in box.writer.held()


def test_where_there_is_room_nothing_more_is_written() -> None:
    with life(*bounded(10**9, 10**7)) as box:
        box.one("first")
        asked = box.writer.asked
        for number in range(200):
            box.one(f"x{number}")
            box.wait(SOON_S)
        assert box.writer.asked == asked + 200, "the rows"


def test_those_who_come_and_go_do_not_wait_for_what_was_lowered() -> None:
    """A tight limit with one request right after the other: each needs what the one before it has held."""
    with life(*bounded(10 * STEP, 200)) as box:
        box.one("first", 0)
        asked = box.writer.asked
        for number in range(50):
            box.one(f"x{number}", 0)
            box.wait(SOON_S / 3)
        assert box.writer.asked == asked + 50, "the rows"


def test_windows_that_are_over_before_the_next_start_are_left_alone() -> None:
    with life(*bounded(10 * STEP, 10, Window(5))) as box:
        box.one("x")
        box.settle_down()
        assert box.writer.lowerings == []


def test_a_lowering_that_failed_is_made_up_for_by_the_next_checkpoint() -> None:
    with life(*bounded(10 * STEP, 10)) as box:
        first, second = box.begin(), box.begin()
        box.end(first, "first", 0)
        box.go_on()
        box.wait(SOON_S)
        assert len(box.writer.waiting) == 1
        box.writer.go_on(fails=True, happens=False)
        box.turn()
        assert set(box.writer.held().values()) == {2, 2 * STEP}
        checkpoint = box.loop.create_task(box.store.checkpoint(box.now()))
        box.settle_down()
        checkpoint.result()
        assert set(box.writer.held().values()) == {1, STEP}, second


def test_nothing_is_lowered_beside_a_raise_that_somebody_waits_for() -> None:
    """What is in the database at the end is what the later write says, and who asks next goes by what was raised."""
    with life(*bounded(10 * STEP, 10)) as box:
        large = box.begin(3 * STEP)
        box.end(large, "large", 0)
        small = box.reserve(STEP // 4)
        assert isinstance(small, Reservation)
        begun = box.loop.create_task(box.store.ensure(small, box.now()))
        box.turn()
        box.go_on()  # the row
        for _ in range(3):
            box.wait(SOON_S)
        assert not begun.done()
        box.go_on()  # the raise
        assert begun.done()
        other = box.reserve()
        assert isinstance(other, Reservation)
        begun = box.loop.create_task(box.store.ensure(other, box.now()))
        box.turn()
        while box.writer.waiting:
            box.go_on()
        assert begun.done()
        assert box.writer.held()["l|team|tokens|day@UTC|t"] >= STEP // 4 + STEP


def test_one_that_leaves_before_it_was_allowed_for_leaves_nothing() -> None:
    with life(*bounded(10 * STEP, 10)) as box:
        held = box.reserve()
        assert isinstance(held, Reservation)
        begun = box.loop.create_task(box.store.ensure(held, box.now()))
        box.turn()
        begun.cancel()
        box.turn()
        box.give_back(held)
        box.settle_down()
        assert box.writer.held() == {}


def test_a_clean_end_is_the_last_write() -> None:
    with life(*bounded(10 * STEP, 10)) as box:
        for number in range(5):
            box.one(f"x{number}")
        closing = box.loop.create_task(box.store.close(box.now()))
        box.turn()
        while not closing.done():
            box.go_on()
        asked = box.writer.asked
        box.wait(1)
        assert box.writer.asked == asked
        assert box.writer.held() == {}
