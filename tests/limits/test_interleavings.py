"""The book against a model that keeps everything: never over, nothing lost, nothing left over."""

from __future__ import annotations

import msgspec
from hypothesis import HealthCheck
from hypothesis import settings as bounds_of
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from appliance.limits.book import Book, Reservation
from appliance.limits.refusal import Refusal
from appliance.limits.rules import MEASURES, Bound, Context, Demand, Rule, Used
from tests.limits.book_samples import DAY, INPUT, MINUTE, NOTHING, OUTPUT, REQUESTS, T0, TOKENS, USD, limit, now
from tests.limits.naive import Entry, Naive

RULES = (
    limit("team", Bound(TOKENS, 1000, MINUTE), Bound(REQUESTS, 12, DAY), name="team"),
    limit("user", Bound(USD, 700, MINUTE), Bound(OUTPUT, 600, DAY), name="user", cap=4),
    limit("model", Bound(TOKENS, 800, MINUTE), Bound(REQUESTS, 6, MINUTE), name="model"),
    limit("tag", Bound(INPUT, 300, MINUTE), name="tag", tag="a,b"),
    limit("box", Bound(TOKENS, 4000, DAY), name="lab", provider="lab"),
)
CONTEXTS = [
    Context(team=team, user=user, model=model, provider="lab" if "/" in model else None, tags=tags)
    for team in ("t1", "t2")
    for user in ("u1", "u2")
    for model in ("lab/x", "small")
    for tags in ((), ("a",), ("a", "b", "c"))
]
contexts = st.sampled_from(CONTEXTS)
demands = st.builds(Demand, st.integers(0, 150), st.integers(0, 300), st.integers(0, 300))
fractions = st.floats(0, 1)


def part(demand: Demand, fraction: float, requests: int = 1) -> Used:
    return Used(
        int(demand.input_tokens * fraction),
        int(demand.output_tokens * fraction),
        int(demand.cost_nanousd * fraction),
        requests,
    )


class Interleavings(RuleBasedStateMachine):
    """Requests begin, move, end and are given back in any order, while time goes on."""

    @initialize()
    def begin(self) -> None:
        self.t = 0.0
        self.book = Book(RULES, now(0))
        self.naive = Naive()
        self.open: dict[int, tuple[Reservation, Demand, dict[tuple[str, str, int], Entry]]] = {}
        self.number = 0
        self.spent: dict[tuple[int, tuple[str, str, int]], int] = {}
        """By attempts of a request that have ended, where it goes on."""
        self.moved: set[int] = set()
        self.left: dict[int, list[int]] = {}
        """What a request has charged where it does not go on."""

    def places(self, context: Context) -> list[tuple[Rule, Bound, str]]:
        return [
            (each, bound, whom)
            for each in RULES
            if each.applies(context, lambda scope, id: None)
            for whom in each.whom(context, lambda scope, id: None)
            for bound in each.bounds
        ]

    @rule(context=contexts, demand=demands)
    def reserve(self, context: Context, demand: Demand) -> None:
        answer = self.book.reserve(context, demand, now(self.t))
        vector = demand.vector()
        if isinstance(answer, Refusal):
            over = [
                (each, bound)
                for each, bound, whom in self.places(context)
                if self.total(each, bound, whom, longest=True) + vector[bound.measure] > bound.amount
            ]
            assert over or answer.measure == "in_flight", "nothing was in the way"
            assert answer.retry_after_s is None or answer.retry_after_s > 0
            return
        entries = {}
        for each, bound, whom in self.places(context):
            entry = Entry(each.id, whom, bound.measure, bound.window, T0 + self.t, vector[bound.measure])
            entries[each.id, whom, bound.measure] = entry
        self.naive.entries += entries.values()
        self.number += 1
        self.open[self.number] = (answer, demand, entries)

    @rule(data=st.data(), fraction=fractions)
    def settle(self, data: st.DataObject, fraction: float) -> None:
        if not self.open:
            return
        number = data.draw(st.sampled_from(sorted(self.open)))
        reservation, demand, entries = self.open.pop(number)
        used = part(demand, fraction)
        charges = self.book.settle(reservation, used, now(self.t))
        assert self.book.settle(reservation, used, now(self.t + 1)) is charges
        for key, entry in entries.items():
            entry.amount = used.vector()[entry.measure] + self.spent.pop((number, key), 0)
        left = sum(self.left.pop(number, []))
        assert sum(each.amount for each in charges) == sum(each.amount for each in entries.values()) + left

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        if not self.open:
            return
        number = data.draw(st.sampled_from(sorted(self.open)))
        reservation, _, entries = self.open.pop(number)
        moved = number in self.moved
        charges = self.book.settle(reservation, NOTHING, now(self.t))
        assert moved or charges == []
        for key, entry in entries.items():
            entry.amount = self.spent.pop((number, key), 0)
            if moved and entry.measure == REQUESTS and key[0] == "team":
                entry.amount = 1  # an attempt was made
        assert sum(each.amount for each in charges) == sum(each.amount for each in entries.values()) + sum(
            self.left.pop(number, [])
        )

    @rule(data=st.data(), model=st.sampled_from(["lab/x", "small"]), demand=demands, fraction=fractions)
    def move(self, data: st.DataObject, model: str, demand: Demand, fraction: float) -> None:
        """The attempt has used a part of what was reserved; another one begins, at the same target or another."""
        if not self.open:
            return
        number = data.draw(st.sampled_from(sorted(self.open)))
        reservation, before, entries = self.open[number]
        context = msgspec.structs.replace(reservation.context, model=model, provider="lab" if "/" in model else None)
        used = part(before, fraction)
        answer = self.book.move(reservation, context, demand, now(self.t), used)
        if answer is not None:
            return
        self.moved.add(number)
        new: dict[tuple[str, str, int], Entry] = {}
        for each, bound, whom in self.places(context):
            key = (each.id, whom, bound.measure)
            old = entries.pop(key, None)
            if old is not None and bound.measure == REQUESTS and not each.by_target:
                new[key] = old
                continue
            need = demand.vector()[bound.measure]
            if old is not None:
                # It goes on where it was: what was used stays, and all of it counts as of now.
                self.naive.entries.remove(old)
                self.spent[number, key] = self.spent.get((number, key), 0) + used.vector()[bound.measure]
                need += self.spent[number, key]
            new[key] = Entry(each.id, whom, bound.measure, bound.window, T0 + self.t, need)
            self.naive.entries.append(new[key])
        for key, old in entries.items():
            old.amount = used.vector()[old.measure] + self.spent.pop((number, key), 0)
            self.left.setdefault(number, []).append(old.amount)
        self.open[number] = (reservation, demand, new)

    @rule(seconds=st.floats(0.01, 90))
    def wait(self, seconds: float) -> None:
        self.t += seconds

    def total(self, each: Rule, bound: Bound, whom: str, *, longest: bool = False) -> int:
        return self.naive.total(each, bound.measure, bound.window, whom, T0 + self.t, longest=longest)

    @invariant()
    def never_over(self) -> None:
        for context in CONTEXTS:
            for each, bound, whom in self.places(context):
                assert self.total(each, bound, whom) <= bound.amount, (each.id, whom, MEASURES[bound.measure])

    @invariant()
    def never_counts_too_little(self) -> None:
        for _, standing in self.book.usage(now(self.t)):
            each = next(one for one in RULES if one.id == standing.limit)
            bound = next(one for one in each.bounds if MEASURES[one.measure] == standing.measure)
            counted = standing.used + standing.reserved
            assert self.total(each, bound, standing.whom) <= counted
            assert counted <= self.total(each, bound, standing.whom, longest=True)

    def teardown(self) -> None:
        if not hasattr(self, "book"):
            return
        for number, (reservation, demand, entries) in self.open.items():
            self.book.settle(reservation, part(demand, 0.5), now(self.t))
            for key, entry in entries.items():
                entry.amount = part(demand, 0.5).vector()[entry.measure] + self.spent.pop((number, key), 0)
        self.open.clear()
        self.never_counts_too_little()
        assert all(standing.reserved == 0 for _, standing in self.book.usage(now(self.t)))
        assert self.book.under_way(now(self.t)) == []
        assert self.book.usage(now(self.t + 3 * 86_400)) == []


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = bounds_of(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
