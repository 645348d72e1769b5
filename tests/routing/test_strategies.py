"""The order in which targets are asked, for each strategy. No clock, chance by hand."""

from __future__ import annotations

import random as chance
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.pricing import FREE, Consumption, Price, cost
from appliance.routing.board import TargetState
from appliance.routing.breaker import FINE, Standing
from appliance.routing.hashing import digest, room
from appliance.routing.strategies import (
    EXPLORED,
    MANY,
    STRATEGIES,
    Asking,
    Choice,
    Ranking,
    expected_nanousd,
    expected_s,
    rank,
    shares,
)

OPEN = Standing("open", 3.0, False, "5 failures in a row (upstream_error)")
COOLING = Standing("closed", 1.5, True, "it gets too many requests")
TRIAL = Standing("half_open", 0.0, False, "the next request is its trial after its failures")
PLAIN = Asking()
NAMES = "abcdefghijklmnop"


def choice(
    name: str, *, standing: Standing = FINE, weight: float = 1.0, share: float | None = None, **state: Any
) -> Choice:
    price = state.pop("price", FREE)
    return Choice(TargetState(name, standing, **state), weight=weight, share=share, price=price)


def names(ranking: Ranking, choices: Sequence[Choice]) -> list[str]:
    return [choices[each.at].name for each in ranking.order]


def order(
    strategy: str, choices: Sequence[Choice], asking: Asking = PLAIN, random: Callable[[], float] = chance.random
) -> list[str]:
    return names(rank(strategy, choices, asking, random), choices)


STANDINGS = st.sampled_from([FINE, FINE, FINE, OPEN, COOLING, TRIAL])
NUMBERS = st.floats(0, 100)
STATES = st.builds(
    lambda standing, weight, share, in_flight, tokens, ttft, per, price: (
        standing,
        weight,
        share,
        {
            "in_flight": in_flight,
            "in_flight_tokens": tokens,
            "ttft_s": ttft,
            "per_token_s": per,
            "price": Price(price, 2 * price, request=price),
        },
    ),
    STANDINGS,
    st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    st.sampled_from([None, None, 0.05, 0.6]),
    st.integers(0, 50),
    st.integers(0, 10_000),
    st.none() | NUMBERS,
    st.none() | st.floats(0, 1),
    st.integers(0, 10**9),
)


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(
    states=st.lists(STATES, max_size=16),
    session=st.sampled_from(["", "s1", "s2"]),
    prefix=st.sampled_from([b"", b"x" * 16]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_every_choice_has_one_place_and_the_broken_ones_are_out(
    strategy: str, states: list[Any], session: str, prefix: bytes, seed: int
) -> None:
    choices = [
        choice(name, standing=standing, weight=weight, share=share, **state)
        for name, (standing, weight, share, state) in zip(NAMES, states, strict=False)
    ]
    ranking = rank(strategy, choices, Asking(100, 200, session, prefix), chance.Random(seed).random)
    assert sorted(each.at for each in (*ranking.order, *ranking.out)) == list(range(len(choices)))
    assert all(choices[each.at].state.standing.wait_s == 0 for each in ranking.order)
    assert [each.score for each in ranking.out] == sorted(
        choices[each.at].state.standing.wait_s for each in ranking.out
    )
    assert all(each.reason for each in (*ranking.order, *ranking.out))


def test_priority_is_the_order_of_the_file_and_the_broken_ones_come_soonest_first() -> None:
    choices = [choice("a", standing=OPEN), choice("b"), choice("c", standing=COOLING), choice("d", standing=TRIAL)]
    ranking = rank("priority", choices, Asking(), chance.random)
    assert names(ranking, choices) == ["b", "d"]
    assert [choices[each.at].name for each in ranking.out] == ["c", "a"]
    assert ranking.out[1].reason == OPEN.reason


# --- weighted ---------------------------------------------------------------------------------------


def test_shares_converge_to_the_weights() -> None:
    choices = [choice("a", weight=6), choice("b", weight=3), choice("c", weight=1), choice("d", weight=0)]
    random = chance.Random(1).random
    first = Counter(order("weighted", choices, random=random)[0] for _ in range(10_000))
    assert abs(first["a"] - 6000) < 200
    assert abs(first["b"] - 3000) < 200
    assert abs(first["c"] - 1000) < 150
    assert first["d"] == 0
    assert order("weighted", choices, random=random)[-1] == "d"  # asked all the same, when all others fail


@pytest.mark.parametrize("sticky", [False, True])
def test_a_canary_gets_its_share_whatever_the_weights(sticky: bool) -> None:
    choices = [choice("a", weight=70), choice("b", weight=30), choice("canary", share=0.05)]
    random = chance.Random(2).random
    first = Counter(
        order("weighted", choices, Asking(session=f"s{number}" if sticky else ""), random)[0]
        for number in range(10_000)
    )
    assert abs(first["canary"] - 500) < 100
    assert abs(first["a"] - 6650) < 250


def test_the_second_choice_follows_the_weights_too() -> None:
    choices = [choice("a"), choice("b", weight=3), choice("c")]
    random = chance.Random(3).random
    second = Counter(
        placed[1] for placed in (order("weighted", choices, random=random) for _ in range(8000)) if placed[0] == "a"
    )
    assert second["b"] / second.total() == pytest.approx(0.75, abs=0.05)


@given(st.lists(st.tuples(st.floats(0, 9), st.none() | st.floats(0, 1)), min_size=1, max_size=8))
@settings(deadline=None)
def test_shares_are_those_of_one_whole(sizes: list[tuple[float, float | None]]) -> None:
    choices = [choice(str(at), weight=weight, share=share) for at, (weight, share) in enumerate(sizes)]
    parts = shares(choices)
    assert all(part >= 0 for part in parts)
    assert sum(parts) == pytest.approx(1.0) or set(parts) == {0.0}
    fixed = sum(share for _, share in sizes if share is not None)
    if fixed <= 1 and any(share is None and weight > 0 for weight, share in sizes):
        assert [part for part, (_, share) in zip(parts, sizes, strict=True) if share is not None] == [
            share for _, share in sizes if share is not None
        ]


@given(st.text(min_size=1, max_size=20), st.integers(2, 8), st.data())
@settings(deadline=None)
def test_a_session_stays_and_moves_only_when_its_target_goes(session: str, count: int, data: st.DataObject) -> None:
    choices = [choice(name, weight=1 + at) for at, name in enumerate(NAMES[:count])]
    asking = Asking(session=session)
    placed = order("weighted", choices, asking)
    assert all(order("weighted", choices, asking) == placed for _ in range(3))
    gone = data.draw(st.integers(0, count - 1))
    left = choices[:gone] + choices[gone + 1 :]
    assert order("weighted", left, asking) == [name for name in placed if name != NAMES[gone]]
    broken = [
        choice(each.name, weight=each.weight, standing=OPEN) if at == gone else each for at, each in enumerate(choices)
    ]
    assert order("weighted", broken, asking) == [name for name in placed if name != NAMES[gone]]


# --- least busy --------------------------------------------------------------------------------------


def test_the_target_with_the_fewest_tokens_for_its_weight_comes_first() -> None:
    choices = [
        choice("a", in_flight=1, in_flight_tokens=9000),
        choice("b", in_flight=8, in_flight_tokens=800),
        choice("c", in_flight=8, in_flight_tokens=1600, weight=4),
        choice("d", weight=0),
    ]
    assert order("least_busy", choices) == ["c", "b", "a", "d"]


def test_equal_targets_take_turns_by_lot() -> None:
    random = chance.Random(4).random
    first = Counter(order("least_busy", [choice("a"), choice("b")], random=random)[0] for _ in range(400))
    assert first.total() == 400
    assert abs(first["a"] - 200) < 60


def test_of_many_the_better_one_of_two_comes_first() -> None:
    choices = [choice(name, in_flight=1, in_flight_tokens=100 * at) for at, name in enumerate(NAMES)]
    assert len(choices) > MANY
    random = chance.Random(5).random
    first = Counter(order("least_busy", choices, random=random)[0] for _ in range(2000))
    assert first[NAMES[-1]] == 0  # never the worst
    assert len(first) > 10  # but not the best alone
    assert first["a"] > first["h"] > 0


# --- latency and cost --------------------------------------------------------------------------------


def test_expected_times_count_tokens_and_what_is_under_way() -> None:
    quick, fluent = choice("quick", ttft_s=0.1, per_token_s=0.05), choice("fluent", ttft_s=1.0, per_token_s=0.01)
    assert order("latency", [fluent, quick], Asking(output_tokens=10)) == ["quick", "fluent"]
    assert order("latency", [quick, fluent], Asking(output_tokens=100)) == ["fluent", "quick"]
    busy = choice("busy", ttft_s=0.1, per_token_s=0.05, in_flight=1)
    assert expected_s(busy.state, 10) == pytest.approx(2 * (expected_s(quick.state, 10) or 0))
    assert expected_s(TargetState("x"), 10) is None


def test_unknown_targets_are_tried_a_little_and_one_request_at_a_time() -> None:
    known, unknown = choice("known", ttft_s=0.1, per_token_s=0.01), choice("unknown")
    random = chance.Random(6).random
    first = Counter(order("latency", [known, unknown], random=random)[0] for _ in range(4000))
    assert first["unknown"] / 4000 == pytest.approx(EXPLORED, abs=0.02)
    busy = choice("unknown", in_flight=1)
    assert {order("latency", [known, busy], random=random)[0] for _ in range(500)} == {"known"}
    assert {order("latency", [choice("a"), choice("b")], random=random)[0] for _ in range(100)} == {"a", "b"}


def test_the_cheapest_comes_first_and_of_equal_ones_the_quickest() -> None:
    free_slow = choice("slow", ttft_s=2.0)
    free_quick = choice("quick", ttft_s=0.1)
    unknown = choice("unknown")
    dear = choice("dear", ttft_s=0.01, price=Price(input=150, output=600))
    assert order("cost", [dear, unknown, free_slow, free_quick], Asking(10_000, 500)) == [
        "quick",
        "slow",
        "unknown",
        "dear",
    ]


def test_long_prompts_and_long_answers_may_have_different_cheapest_targets() -> None:
    reads = choice("reads", price=Price(input=100_000_000, output=8_000_000_000))
    writes = choice("writes", price=Price(input=900_000_000, output=900_000_000))
    assert order("cost", [writes, reads], Asking(50_000, 100))[0] == "reads"
    assert order("cost", [reads, writes], Asking(100, 5_000))[0] == "writes"


@given(
    st.integers(0, 10**10), st.integers(0, 10**10), st.integers(0, 10**9), st.integers(0, 10**6), st.integers(0, 10**5)
)
@settings(deadline=None)
def test_an_expected_cost_is_what_it_would_be_charged(
    into: int, out: int, request: int, prompt: int, answer: int
) -> None:
    price = Price(input=into, output=out, request=request)
    expected = expected_nanousd(choice("a", price=price), Asking(prompt, answer))
    assert expected == cost(price, Consumption(prompt, 0, answer))


def test_time_on_this_box_costs_too() -> None:
    price = Price(gpu_second=1_000_000)
    slow = choice("a", ttft_s=1.0, per_token_s=0.01, price=price, in_flight=3)
    assert expected_nanousd(slow, Asking(0, 100), expected_s(slow.state, 100)) == 2_000_000


# --- prefix ------------------------------------------------------------------------------------------


@given(st.binary(min_size=16, max_size=16), st.lists(st.integers(0, 30), min_size=1, max_size=8))
@settings(deadline=None)
def test_a_prefix_stays_where_it_is_unless_that_is_full(prefix: bytes, loads: list[int]) -> None:
    idle = [choice(name) for name in NAMES[: len(loads)]]
    busy = [choice(name, in_flight=load) for name, load in zip(NAMES, loads, strict=False)]
    asking = Asking(prefix=prefix)
    preferred, placed = order("prefix", idle, asking), order("prefix", busy, asking)
    load = dict(zip(NAMES, loads, strict=False))
    assert load[placed[0]] + 1 <= room(loads)
    assert placed[0] == next(name for name in preferred if load[name] < room(loads))


def test_many_conversations_over_replicas_keep_their_places_within_the_bound() -> None:
    random = chance.Random(7)
    loads = dict.fromkeys("abcd", 0)
    hits = asked = 0
    home: dict[int, str] = {}
    under_way: list[str] = []
    for _ in range(4000):
        conversation = int(random.paretovariate(0.7)) % 60  # some are much more popular
        choices = [choice(name, in_flight=load) for name, load in loads.items()]
        chosen = order("prefix", choices, Asking(prefix=digest(str(conversation))))[0]
        bound = room(list(loads.values()))
        loads[chosen] += 1
        assert loads[chosen] <= bound
        asked += 1
        hits += home.setdefault(conversation, chosen) == chosen
        under_way.append(chosen)
        if len(under_way) > 24:
            loads[under_way.pop(random.randrange(len(under_way)))] -= 1
    assert hits / asked > 0.5  # far more than a quarter, which chance would give


def test_a_heavier_target_is_home_to_more_prefixes() -> None:
    choices = [choice("a", weight=3), choice("b"), choice("c", weight=0)]
    first = Counter(order("prefix", choices, Asking(prefix=digest(str(number))))[0] for number in range(4000))
    assert abs(first["a"] - 3000) < 150
    assert first["c"] == 0


def test_without_a_prefix_the_session_counts_and_without_both_the_load() -> None:
    choices = [choice(name, in_flight_tokens=9 - at) for at, name in enumerate("abc")]
    assert order("prefix", choices) == ["c", "b", "a"]
    asking = Asking(session="s")
    assert len({tuple(order("prefix", choices, asking)) for _ in range(5)}) == 1
