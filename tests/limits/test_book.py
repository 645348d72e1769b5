"""The book: who may go on, who is refused and when that passes, and what moves, clocks and changes do to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as bounds_of
from hypothesis import strategies as st

from appliance.errors import BadRequest, PermissionDenied, RateLimited
from appliance.limits.book import Book, Reservation
from appliance.limits.refusal import Refusal
from appliance.limits.rules import Bound, Context, Demand, Rule, Used
from appliance.limits.windows import Window
from tests.limits.book_samples import (
    DAY,
    INPUT,
    MINUTE,
    NOTHING,
    OUTPUT,
    REQUESTS,
    T0,
    TOKENS,
    USD,
    limit,
    now,
    standings,
)


def taken(answer: Reservation | Refusal | None) -> Reservation:
    assert isinstance(answer, Reservation)
    return answer


def refused(answer: Reservation | Refusal | None) -> Refusal:
    assert isinstance(answer, Refusal)
    return answer


ANN = Context(organization="o", team="t", user="ann", key="k1", route="chat", model="lab/x", provider="lab")
BOB = Context(organization="o", team="t", user="bob", key="k2", route="chat", model="lab/x", provider="lab")
ON_BOX = Context(organization="o", team="t", user="ann", key="k1", route="chat", model="small")

# --- the promise ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "amount", "demand"),
    [
        (REQUESTS, 10, Demand(5, 5, 5)),
        (TOKENS, 10_000, Demand(200, 800, 5)),
        (USD, 10_000_000, Demand(200, 800, 1_000_000)),
    ],
    ids=["requests", "tokens", "usd"],
)
def test_of_200_at_once_on_a_budget_for_10_exactly_10_go_on(measure: int, amount: int, demand: Demand) -> None:
    book = Book([limit("team", Bound(measure, amount, DAY))], now())
    answers = [book.reserve(ANN if n % 2 else BOB, demand, now(n / 1000)) for n in range(200)]
    assert sum(isinstance(answer, Reservation) for answer in answers) == 10
    assert all(answer.retry_after_s for answer in answers if isinstance(answer, Refusal))


def test_all_limits_or_none() -> None:
    book = Book(
        [limit("user", Bound(REQUESTS, 5, MINUTE)), limit("team", Bound(TOKENS, 100, MINUTE), name="m", cap=9)], now()
    )
    assert refused(book.reserve(ANN, Demand(50, 51), now())).limit == "m"
    assert book.usage(now()) == []
    assert book.under_way(now()) == []


def test_what_was_estimated_too_low_is_charged_in_full_and_makes_others_wait() -> None:
    book = Book([limit("team", Bound(TOKENS, 100, MINUTE))], now())
    one = taken(book.reserve(ANN, Demand(10, 10), now()))
    (charge,) = book.settle(one, Used(90, 60), now(1))
    assert charge.amount == 150
    assert refused(book.reserve(BOB, Demand(1, 0), now(2))).used == 150
    taken(book.reserve(BOB, Demand(1, 0), now(61.5)))


def test_who_costs_nothing_goes_on_where_a_budget_is_overdrawn() -> None:
    book = Book([limit("team", Bound(USD, 100, DAY))], now())
    one = taken(book.reserve(ANN, Demand(5, 5, 100), now()))
    (charge,) = book.settle(one, Used(5, 50, 300), now())
    assert charge.amount == 300
    refused(book.reserve(ANN, Demand(5, 5, 1), now()))
    free = taken(book.reserve(ON_BOX, Demand(5, 5, 0), now()))
    assert book.settle(free, Used(5, 5), now()) == []


# --- another target takes over --------------------------------------------------------------------


def test_a_move_goes_to_the_new_targets_counters_and_charges_the_old_one_with_what_it_did() -> None:
    rules = [
        limit("model", Bound(TOKENS, 1000, MINUTE), Bound(REQUESTS, 5, MINUTE), name="m"),
        limit("team", Bound(TOKENS, 1000, MINUTE), Bound(REQUESTS, 5, MINUTE), name="t"),
    ]
    book = Book(rules, now())
    held = taken(book.reserve(ANN, Demand(100, 300), now()))
    assert book.move(held, ON_BOX, Demand(100, 300), now(1), Used(100, 7)) is None
    by_whom = {(each.whom, each.measure): (each.used, each.reserved) for _, each in book.usage(now(1))}
    assert by_whom == {
        ("lab/x", "tokens"): (107, 0),
        ("lab/x", "requests"): (1, 0),
        ("small", "tokens"): (0, 400),
        ("small", "requests"): (0, 1),
        ("t", "tokens"): (0, 507),
        ("t", "requests"): (0, 1),
    }
    charges = {each.counter: each.amount for each in book.settle(held, Used(100, 50), now(2))}
    assert charges == {
        "m|model|tokens|r60|lab/x": 107,
        "m|model|requests|r60|lab/x": 1,
        "m|model|tokens|r60|small": 150,
        "m|model|requests|r60|small": 1,
        "t|team|tokens|r60|t": 257,
        "t|team|requests|r60|t": 1,
    }


def test_a_move_that_is_refused_changes_nothing() -> None:
    rules = [limit("model", Bound(TOKENS, 300, MINUTE), name="m", cap=2), limit("team", Bound(TOKENS, 999, MINUTE))]
    book = Book(rules, now())
    held = taken(book.reserve(ANN, Demand(100, 100), now()))
    taken(book.reserve(ON_BOX, Demand(100, 150), now()))
    before = book.usage(now())
    refusal = refused(book.move(held, ON_BOX, Demand(100, 100), now(), Used(100, 0)))
    assert refusal.by_target
    assert (refusal.limit, refusal.whom, refusal.used, refusal.needed) == ("m", "small", 250, 200)
    assert book.usage(now()) == before
    assert [each.amount for each in book.settle(held, Used(3, 0), now())] == [3, 3]


def test_the_same_target_again_counts_as_another_request_of_the_target_only() -> None:
    rules = [limit("model", Bound(REQUESTS, 5, MINUTE), name="m"), limit("team", Bound(REQUESTS, 5, MINUTE))]
    book = Book(rules, now())
    held = taken(book.reserve(ANN, Demand(), now()))
    assert book.move(held, ANN, Demand(), now(1), Used()) is None
    assert [(each.counter[0], each.amount) for each in book.settle(held, Used(), now(2))] == [("m", 2), ("l", 1)]


def test_giving_back_after_a_move_charges_what_the_first_attempt_did() -> None:
    book = Book([limit("team", Bound(REQUESTS, 5, MINUTE), Bound(TOKENS, 900, MINUTE))], now())
    held = taken(book.reserve(ANN, Demand(10, 10), now()))
    assert book.move(held, ON_BOX, Demand(10, 10), now(1), Used(8, 2)) is None
    assert [each.amount for each in book.settle(held, NOTHING, now(2))] == [1, 10]


# --- requests under way ---------------------------------------------------------------------------


def test_a_lease_that_ends_frees_its_place_and_a_late_holder_counts_again() -> None:
    book = Book([limit("user", cap=2)], now())
    one = taken(book.reserve(ANN, Demand(), now(), lease_s=10))
    two = taken(book.reserve(ANN, Demand(), now(), lease_s=10))
    taken(book.reserve(BOB, Demand(), now()))
    refusal = refused(book.reserve(ANN, Demand(), now(5)))
    assert (refusal.measure, refusal.amount, refusal.used) == ("in_flight", 2, 2)
    assert isinstance(refusal.error(), RateLimited)
    book.touch(two, now(5))
    three = taken(book.reserve(ANN, Demand(), now(11), lease_s=10))
    refused(book.reserve(ANN, Demand(), now(11)))
    book.touch(one, now(12))
    assert [each[4:] for each in book.under_way(now(12)) if each[3] == "ann"] == [(2, 3)]
    for held in (one, two, three, three):
        book.settle(held, Used(), now(13))
    book.touch(one, now(13))
    assert [each[3] for each in book.under_way(now(13))] == ["bob"]


# --- clocks that jump -----------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [-86_400.0, -3600.0, 3600.0])
def test_a_jump_of_the_clock_gives_nothing_away_in_a_rolling_window(jump: float) -> None:
    book = Book([limit("team", Bound(REQUESTS, 2, MINUTE))], now())
    for _ in range(2):
        book.settle(taken(book.reserve(ANN, Demand(), now())), Used(), now())
    refusal = refused(book.reserve(ANN, Demand(), now(1, wall=1 + jump)))
    assert refusal.retry_after_s == pytest.approx(60, abs=1.1)
    taken(book.reserve(ANN, Demand(), now(61.1, wall=61.1 + jump)))


@pytest.mark.parametrize("jump", [-86_400.0, -3600.0, -1.0])
def test_a_clock_that_goes_back_does_not_begin_a_day_anew(jump: float) -> None:
    # 0.5 s after midnight in Berlin, so that each jump leads into the day before.
    midnight = 1_700_002_800.0 + 0.5 - T0
    book = Book([limit("team", Bound(REQUESTS, 2, DAY))], now(0, wall=midnight))
    held = [taken(book.reserve(ANN, Demand(), now(0, wall=midnight))) for _ in range(2)]
    refused(book.reserve(ANN, Demand(), now(1, wall=midnight + jump)))
    assert [each.amount for each in book.settle(held[0], Used(), now(2, wall=midnight + jump))] == [1]
    refused(book.reserve(ANN, Demand(), now(3, wall=midnight + 1)))
    book.settle(held[1], NOTHING, now(3, wall=midnight + jump))
    late = taken(book.reserve(ANN, Demand(), now(4, wall=midnight + jump)))
    (charge,) = book.settle(late, Used(), now(4, wall=midnight + jump))
    assert charge.at >= midnight + T0 - 0.5, "it counts in the day that was under way"
    taken(book.reserve(ANN, Demand(), now(5, wall=midnight + 86_400)))


def test_a_clock_that_was_years_ahead_does_not_lock_anybody_out() -> None:
    year = 365 * 86_400.0
    book = Book([limit("team", Bound(REQUESTS, 2, DAY))], now(0, wall=year))
    for _ in range(2):
        taken(book.reserve(ANN, Demand(), now(0, wall=year)))
    refused(book.reserve(ANN, Demand(), now(1)))
    taken(book.reserve(ANN, Demand(), now(2, wall=86_400.0)))


# --- refusals say what and when -------------------------------------------------------------------


@bounds_of(deadline=None, max_examples=150)
@given(
    spends=st.lists(st.tuples(st.floats(0, 59), st.integers(1, 60)), min_size=1, max_size=20),
    need=st.integers(1, 100),
    window=st.sampled_from([MINUTE, Window(7), Window(60, "minute", "UTC")]),
)
def test_what_waits_as_long_as_it_is_told_passes(spends: list[tuple[float, int]], need: int, window: Window) -> None:
    book = Book([limit("team", Bound(TOKENS, 100, window))], now())
    last = 0.0
    for t, amount in sorted(spends):
        answer = book.reserve(ANN, Demand(amount), now(t))
        if isinstance(answer, Reservation):
            book.settle(answer, Used(amount), now(t))
        last = t
    answer = book.reserve(ANN, Demand(need), now(last))
    if isinstance(answer, Refusal):
        assert answer.retry_after_s is not None
        assert answer.retry_after_s <= window.seconds * (1 + 1 / 59)
        taken(book.reserve(ANN, Demand(need), now(last + answer.retry_after_s + 1e-3)))


def test_the_limit_that_takes_longest_is_named() -> None:
    book = Book([limit("user", Bound(REQUESTS, 1, MINUTE)), limit("team", Bound(REQUESTS, 1, DAY), name="day")], now())
    taken(book.reserve(ANN, Demand(), now()))
    refusal = refused(book.reserve(ANN, Demand(), now(1)))
    assert refusal.limit == "day"
    assert refusal.message == (
        "The limit day allows 1 request a day for the team t; 1 request is used or reserved and this request may "
        "need 1 request. Try again in 46 min 39 s."
    )
    assert refusal.error().retry_after_s == refusal.retry_after_s


@pytest.mark.parametrize(
    ("seconds", "per"),
    [(1, "a second"), (10, "per 10 s"), (300, "per 5 min"), (3600, "an hour"), (43_200, "per 12 h"), (86_400, "a day")],
)
def test_the_length_of_a_window_is_told_in_words(seconds: int, per: str) -> None:
    book = Book([limit("box", Bound(REQUESTS, 0, Window(seconds)))], now())
    message = refused(book.reserve(ANN, Demand(), now())).message
    assert message == f"The limit l allows 0 requests {per} for the whole box; ask the operator to raise it."


def test_what_can_never_fit_says_how_to_make_it_fit() -> None:
    book = Book([limit("team", Bound(OUTPUT, 1000, DAY))], now())
    error = refused(book.reserve(ANN, Demand(10, 4096), now())).error()
    assert isinstance(error, BadRequest)
    assert (error.param, error.code, error.retry_after_s) == ("max_tokens", "limit_too_small", None)
    assert "may need 4,096 tokens of answers; set max_tokens to 1000 or less" in error.message
    prompts = Book([limit("team", Bound(INPUT, 1000, DAY))], now())
    error = refused(prompts.reserve(ANN, Demand(1001, 10), now())).error()
    assert (error.param, error.code) == (None, "limit_too_small"), "no max_tokens helps here"
    assert "may need 1,001 tokens of prompts; send a shorter prompt" in error.message
    nothing = Book([limit("team", Bound(USD, 0, DAY))], now())
    assert isinstance(refused(nothing.reserve(ANN, Demand(1, 1, 1), now())).error(), PermissionDenied)
    taken(nothing.reserve(ANN, Demand(1, 1, 0), now()))


def test_money_and_names_are_shown_as_people_know_them() -> None:
    names = {("team", "t"): "research"}
    book = Book(
        [limit("team", Bound(USD, 1_500_000_000, DAY), team="research")],
        now(),
        lambda scope, id: names.get((scope, id)),
    )
    taken(book.reserve(ANN, Demand(1, 1, 1_000_000_000), now()))
    message = refused(book.reserve(ANN, Demand(1, 1, 600_000_000), now())).message
    assert "allows 1.5 USD a day for the team research; 1 USD are used or reserved" in message


# --- who is counted where -------------------------------------------------------------------------


def test_a_limit_reaches_only_those_that_match() -> None:
    names = {("user", "ann"): "Ann"}
    rules = [limit("team", Bound(REQUESTS, 1, MINUTE), user="bob,cid", route="chat")]
    book = Book(rules, now(), lambda scope, id: names.get((scope, id)))
    for _ in range(3):
        taken(book.reserve(ANN, Demand(), now()))
    other_ways = [Context(team="t", user="bob"), Context(team="t", user="bob", route="embed")]
    for _ in range(2):
        for elsewhere in other_ways:
            taken(book.reserve(elsewhere, Demand(), now()))
    taken(book.reserve(BOB, Demand(), now()))
    refused(book.reserve(BOB, Demand(), now()))
    for _ in range(2):
        taken(book.reserve(Context(user="bob", route="chat"), Demand(), now()))  # works for no team
    book.names_changed()
    refused(book.reserve(BOB, Demand(), now()))
    taken(book.reserve(ANN, Demand(), now()))
    names["user", "ann"] = "cid"
    book.names_changed()
    refused(book.reserve(ANN, Demand(), now()))


def test_invented_tags_share_one_counter_once_there_are_many() -> None:
    book = Book([limit("tag", Bound(REQUESTS, 1, DAY))], now(), max_owners=5)
    went = [book.reserve(Context(tags=(f"tag{n}",)), Demand(), now(n / 100)) for n in range(50)]
    assert [isinstance(each, Reservation) for each in went] == [True] * 6 + [False] * 44
    for each in went[:6]:
        book.settle(taken(each), Used(), now(1))
    assert len(book.usage(now(1))) == 6
    # The day after they are forgotten one by one, and the next ones get counters of their own.
    later = now(2 * 86_400)
    assert all(isinstance(book.reserve(Context(tags=(f"new{n}",)), Demand(), later), Reservation) for n in range(5))


@pytest.mark.parametrize(
    "rule", [limit("user", Bound(REQUESTS, 1, MINUTE)), limit("user", cap=1)], ids=["bound", "cap"]
)
def test_counters_that_were_forgotten_are_not_written_to(rule: Rule) -> None:
    book = Book([rule], now())
    book.settle(taken(book.reserve(ANN, Demand(), now())), NOTHING, now())
    for n in range(5):
        taken(book.reserve(Context(user=f"u{n}"), Demand(), now()))
    taken(book.reserve(ANN, Demand(), now()))
    book.names_changed()
    refused(book.reserve(ANN, Demand(), now()))


# --- rules that change ----------------------------------------------------------------------------


def test_a_raised_limit_keeps_what_was_used() -> None:
    book = Book([limit("team", Bound(TOKENS, 100, DAY))], now())
    held = taken(book.reserve(ANN, Demand(60), now()))
    book.change([limit("team", Bound(TOKENS, 150, DAY))], now())
    assert [each.remaining for each in standings(book, ANN, now())] == [90]
    book.change([], now())
    taken(book.reserve(ANN, Demand(10**6), now()))
    book.settle(held, Used(50), now(1))
    book.change([limit("team", Bound(TOKENS, 70, DAY))], now(1))
    assert [each.remaining for each in standings(book, ANN, now(1))] == [20]
    book.change([limit("team", Bound(TOKENS, 70, MINUTE))], now(1))
    assert [each.remaining for each in standings(book, ANN, now(1))] == [70], "another window begins anew"
    book.change([limit("user", Bound(TOKENS, 70, DAY))], now(1))
    assert [each.remaining for each in standings(book, ANN, now(1))] == [70], "another scope begins anew"


def test_a_limit_of_the_settings_file_that_comes_back_goes_on_with_what_was_used() -> None:
    book = Book([limit("team", Bound(TOKENS, 100, DAY))], now())
    book.settle(taken(book.reserve(ANN, Demand(60), now())), Used(60), now())
    book.change([], now(1))
    book.change([limit("team", Bound(TOKENS, 100, DAY))], now(2))
    assert [each.remaining for each in standings(book, ANN, now(2))] == [40]
