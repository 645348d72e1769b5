"""The book: who has used how much. Pure and synchronous, with one owner (the event loop).

A request counts as of its dispatch: its worst case is added to every counter that applies, all of them or none, and
corrected to what was really used when it ends. So no counter ever holds more than its limit, except by what a target
reports beyond a wrong estimate; that is charged in full and makes later requests wait.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from appliance.limits.clock import Now
from appliance.limits.counters import Counter, Hold, Places, Reservation, Selection
from appliance.limits.refusal import IN_FLIGHT, Refusal
from appliance.limits.rules import MEASURES, REQUESTS, Bound, Context, Demand, Names, Rule, Scope, Used, read_key
from appliance.limits.standing import Near, Standing
from appliance.limits.windows import Usage
from appliance.records.rows import Charge

__all__ = ["Book", "Now", "Reservation"]

LEASE_S = 900.0
"""How long a place is kept for a request that gives no sign of life."""
MAX_OWNERS = 10_000
"""Counters of one bound; further owners share one, so that a caller who invents tags gains nothing."""
_MAX_SELECTIONS = 4096
OTHERS = "~others"

_Group = tuple[str, str, int, str]
"""Rule, scope, measure, window."""


def _nameless(scope: str, id: str) -> str | None:
    return None


class Book:
    """names: what people call an id; only asked when a context is seen for the first time."""

    def __init__(
        self, rules: Iterable[Rule], now: Now, names: Names = _nameless, *, max_owners: int = MAX_OWNERS
    ) -> None:
        self._names = names
        self._max_owners = max_owners
        # Rolling windows go by this clock, which no change of the machine's time can move.
        self._offset = now.wall - now.monotonic
        self._rules: tuple[Rule, ...] = ()
        self._groups: dict[_Group, dict[str, Counter]] = {}
        self._places: dict[tuple[str, Scope], dict[str, Places]] = {}
        self._parked: dict[str, Counter] = {}
        """Counters of rules that are not in force."""
        self._selections: dict[Context, Selection] = {}
        self.change(rules, now)

    # --- a request's way ---------------------------------------------------------------------------

    def reserve(self, context: Context, demand: Demand, now: Now, *, lease_s: float = LEASE_S) -> Reservation | Refusal:
        """Count the worst case everywhere it applies, or nowhere. To be settled."""
        selection = self._selections.get(context) or self._select(context, now)
        vector = demand.vector()
        wall, steady = now.wall, now.monotonic + self._offset
        for counter in selection.counters:
            usage, need = counter.usage, vector[counter.measure]
            at = steady if counter.rolling else wall
            if not usage.floor <= at < usage.turn:
                usage.advance(at)
            if (need and usage.total + need > counter.amount) or counter.dropped:
                return self._no_room(selection, context, demand, now, lease_s)
        for places in selection.places:
            if places.full(now) or places.dropped:
                return self._no_room(selection, context, demand, now, lease_s)
        holds = []
        for counter in selection.counters:
            need = vector[counter.measure]
            at = steady if counter.rolling else wall
            counter.open += need
            holds.append(Hold(counter, need, counter.usage.take(at, need), at))
        reservation = Reservation(context, holds, selection.places, lease_s, now.monotonic)
        for places in selection.places:
            places.take(reservation, now)
        return reservation

    def _no_room(
        self, selection: Selection, context: Context, demand: Demand, now: Now, lease_s: float
    ) -> Reservation | Refusal:
        if selection.outdated:
            del self._selections[context]
            return self.reserve(context, demand, now, lease_s=lease_s)
        return self._refuse(selection, demand.vector(), now, {})

    def refuses(
        self, reservation: Reservation, context: Context, demand: Demand, now: Now, used: Used | None = None
    ) -> Refusal | None:
        """What `move` would be refused for."""
        selection = self._selection(context, now)
        wall, steady = now.wall, now.monotonic + self._offset
        before = {hold.counter: hold for hold in reservation.holds}
        vector = demand.vector()
        ended = (used or Used(requests=0)).vector()
        for counter in selection.counters:
            counter.usage.advance(steady if counter.rolling else wall)
            own = self._still(before.get(counter))
            need = self._need(counter, before.get(counter), vector, ended)
            if need > own and counter.usage.total - own + need > counter.amount:
                return self._refuse(selection, vector, now, before, ended)
        if any(places.full(now) for places in selection.places if places not in reservation.places):
            return self._refuse(selection, vector, now, before, ended)
        return None

    def move(
        self,
        reservation: Reservation,
        context: Context,
        demand: Demand,
        now: Now,
        used: Used | None = None,
        *,
        done: bool = False,
    ) -> Refusal | None:
        """Another attempt at another target, or at the same one. `used`: by the attempt that has ended; counts where
        that one counted. A refusal leaves the reservation as it was; an attempt that is `done` is not refused. Limits
        that do not depend on the target count one request, however many attempts it takes."""
        refusal = self.refuses(reservation, context, demand, now, used)
        if refusal is not None and not done:
            return refusal
        selection = self._selection(context, now)
        wall, steady = now.wall, now.monotonic + self._offset
        before = {hold.counter: hold for hold in reservation.holds}
        vector = demand.vector()
        ended = (used or Used(requests=0)).vector()
        joined = [places for places in selection.places if places not in reservation.places]
        holds = []
        for counter in selection.counters:
            hold = before.pop(counter, None)
            need = self._need(counter, hold, vector, ended)
            if hold is not None and counter.measure == REQUESTS and not counter.by_target:
                hold.spent = max(hold.spent, ended[REQUESTS])
                holds.append(hold)
                continue
            at = steady if counter.rolling else wall
            if hold is None:
                hold = Hold(counter, need, counter.usage.take(at, need), at)
                counter.open += need
            else:
                hold.spent += ended[counter.measure]
                self._redo(hold, need, at)
            holds.append(hold)
        for hold in before.values():
            self._close(reservation, hold, hold.spent + ended[hold.counter.measure], now)
        for places in reservation.places:
            if places not in selection.places:
                places.leave(reservation, now)
        reservation.context, reservation.holds, reservation.places = context, holds, selection.places
        for places in joined:
            places.take(reservation, now)
        return None

    def touch(self, reservation: Reservation, now: Now) -> None:
        """A sign of life: renews the places of a request under way."""
        if not reservation.ended:
            for places in reservation.places:
                places.take(reservation, now)

    def settle(self, reservation: Reservation, used: Used, now: Now) -> list[Charge]:
        """Put what was really used in the place of the worst case; where nothing was, since the last `move`, that is
        `Used(requests=0)`. The charges go into the exchange's row. Settling again changes nothing and gives the same
        charges."""
        if not reservation.ended:
            vector = used.vector()
            for hold in reservation.holds:
                measure = hold.counter.measure
                actual = vector[measure]
                if measure == REQUESTS and not hold.counter.by_target:
                    actual = max(actual, hold.spent)
                else:
                    actual += hold.spent
                self._close(reservation, hold, actual, now)
            self._end(reservation, now)
        return reservation.charges

    def _close(self, reservation: Reservation, hold: Hold, actual: int, now: Now) -> None:
        counter = hold.counter
        if actual != hold.amount:
            counter.usage.correct(hold.bucket, actual - hold.amount)
        counter.open -= hold.amount
        reservation.closed.append(hold)
        if actual:
            at = hold.at
            if counter.rolling:
                # On record by the wall clock, with the age that it really has.
                at = now.wall - (now.monotonic + self._offset - at)
            elif at < hold.bucket[0]:
                at = hold.bucket[0]  # the clock went back, the window did not
            reservation.charges.append(Charge(counter.key, actual, at))

    def _end(self, reservation: Reservation, now: Now) -> None:
        for places in reservation.places:
            places.leave(reservation, now)
        reservation.holds = []
        reservation.places = ()
        reservation.ended = True

    @staticmethod
    def _redo(hold: Hold, amount: int, at: float) -> None:
        """Hold another amount. It counts as of now, since that is when the work is dispatched."""
        counter = hold.counter
        counter.usage.correct(hold.bucket, -hold.amount)
        counter.open += amount - hold.amount
        hold.amount, hold.bucket, hold.at = amount, counter.usage.take(at, amount), at

    @staticmethod
    def _still(hold: Hold | None) -> int:
        """How much of a hold is in its counter's total."""
        if hold is None:
            return 0
        usage = hold.counter.usage
        return hold.amount if usage.has(hold.bucket) else 0

    @staticmethod
    def _need(counter: Counter, hold: Hold | None, vector: tuple[int, ...], ended: tuple[int, ...]) -> int:
        """What a counter has to hold once the next attempt begins."""
        need = vector[counter.measure]
        if hold is None:
            return need
        if counter.measure == REQUESTS and not counter.by_target:
            return hold.amount
        return hold.spent + ended[counter.measure] + need

    # --- refusing ----------------------------------------------------------------------------------

    def _refuse(
        self,
        selection: Selection,
        vector: tuple[int, ...],
        now: Now,
        before: Mapping[Counter, Hold],
        ended: tuple[int, ...] = (0, 0, 0, 0, 0),
    ) -> Refusal:
        """Of all limits in the way the one that takes longest to pass."""
        worst: Refusal | None = None
        steady = now.monotonic + self._offset
        for counter in selection.counters:
            t = steady if counter.rolling else now.wall
            counter.usage.advance(t)
            own = self._still(before.get(counter))
            need = self._need(counter, before.get(counter), vector, ended)
            others = counter.usage.total - own
            if need <= own or others + need <= counter.amount:
                continue
            wait = None
            if need <= counter.amount:
                wait = max(0.001, counter.usage.free_at(others + need - counter.amount) - t)
            found = self._refusal(counter, MEASURES[counter.measure], counter.amount, others, need, wait)
            worst = _worse(worst, found)
        for places in selection.places:
            if places.full(now):
                found = self._refusal(places, IN_FLIGHT, places.cap, len(places.leases), 1, places.wait_s)
                worst = _worse(worst, found)
        assert worst is not None  # the caller has found one in the way
        return worst

    def _refusal(
        self, at: Counter | Places, measure: str, amount: int, used: int, needed: int, wait: float | None
    ) -> Refusal:
        return Refusal(
            limit=at.limit,
            scope=at.scope,
            whom=self._names(at.scope, at.whom) or at.whom,
            measure=measure,
            amount=amount,
            used=used,
            needed=needed,
            period=at.window.period if isinstance(at, Counter) else "",
            retry_after_s=wait,
            by_target=at.by_target,
        )

    # --- looking -----------------------------------------------------------------------------------

    def tightest(self, context: Context, now: Now) -> tuple[Near | None, Near | None]:
        """Of the limits for requests and of those for tokens the one with the least left each, for the headers of
        every answer; among equals the one that lasts longest."""
        selection = self._selections.get(context) or self._select(context, now)
        return self._nearest(selection.requests, now), self._nearest(selection.tokens, now)

    def _nearest(self, counters: tuple[Counter, ...], now: Now) -> Near | None:
        nearest: Counter | None = None
        least, at = 0, 0.0
        for counter in counters:
            usage = counter.usage
            t = now.monotonic + self._offset if counter.rolling else now.wall
            if not usage.floor <= t < usage.turn:
                usage.advance(t)
            left = counter.amount - usage.total
            if nearest is None or left < least or (left == least and counter.window.seconds > nearest.window.seconds):
                nearest, least, at = counter, left, t
        if nearest is None:
            return None
        return Near(
            nearest.limit,
            MEASURES[nearest.measure],
            nearest.amount,
            nearest.window.seconds,
            least if least > 0 else 0,
            max(0.0, nearest.usage.reset_at() - at),
        )

    def usage(self, now: Now) -> list[tuple[str, Standing]]:
        """Every counter that holds something, with the id of its rule."""
        found = []
        for (rule, *_), group in self._groups.items():
            for counter in group.values():
                standing = self._standing(counter, now)
                if standing.used or standing.reserved:
                    found.append((rule, standing))
        return found

    def under_way(self, now: Now) -> list[tuple[str, str, Scope, str, int, int]]:
        """(rule, limit, scope, whom, cap, requests under way) wherever there are any."""
        found = []
        for (rule, _), group in self._places.items():
            for each in group.values():
                each.expire(now)
                if each.leases:
                    whom = self._names(each.scope, each.whom) or each.whom
                    found.append((rule, each.limit, each.scope, whom, each.cap, len(each.leases)))
        return found

    def _standing(self, counter: Counter, now: Now) -> Standing:
        t = now.monotonic + self._offset if counter.rolling else now.wall
        usage = counter.usage
        usage.advance(t)
        total = usage.total
        reserved = min(counter.open, total)
        return Standing(
            limit=counter.limit,
            scope=counter.scope,
            whom=self._names(counter.scope, counter.whom) or counter.whom,
            measure=MEASURES[counter.measure],
            amount=counter.amount,
            used=total - reserved,
            reserved=reserved,
            remaining=max(0, counter.amount - total),
            window_s=counter.window.seconds,
            period=counter.window.period,
            reset_s=max(0.0, usage.reset_at() - t),
        )

    # --- rules and counters ------------------------------------------------------------------------

    @property
    def rules(self) -> tuple[Rule, ...]:
        return self._rules

    def change(self, rules: Iterable[Rule], now: Now) -> None:
        """Go by these rules from now on. A counter stays what it is where rule, scope, measure and window do."""
        self._rules = tuple(rules)
        self._selections.clear()
        wanted: dict[_Group, tuple[Rule, Bound]] = {}
        for rule in self._rules:
            for bound in rule.bounds:
                wanted[rule.id, rule.scope, bound.measure, bound.window.code] = (rule, bound)
        for key, group in list(self._groups.items()):
            if key in wanted:
                rule, bound = wanted[key]
                for counter in group.values():
                    counter.adopt(rule, bound.amount)
            else:
                self._parked |= {counter.key: counter for counter in group.values()}
                del self._groups[key]
        steady = now.monotonic + self._offset
        for counter in list(self._parked.values()):
            counter.usage.advance(steady if counter.rolling else now.wall)
            name = read_key(counter.key)
            group_key = (name.rule, name.scope, name.measure, name.window.code)
            if group_key in wanted:
                rule, bound = wanted[group_key]
                counter.adopt(rule, bound.amount)
                self._groups.setdefault(group_key, {})[name.whom] = self._parked.pop(counter.key)
            elif counter.idle:
                del self._parked[counter.key]
        capped = {(rule.id, rule.scope): rule for rule in self._rules if rule.in_flight}
        self._places = {key: group for key, group in self._places.items() if key in capped}
        for places_key, places_group in self._places.items():
            for places in places_group.values():
                places.adopt(capped[places_key])

    def names_changed(self) -> None:
        """Somebody may be called differently: match anew."""
        self._selections.clear()

    def restore(self, states: Mapping[str, Usage], now: Now) -> None:
        """Take over what was used before this process, by the counters' names; before the first request."""
        for key, usage in states.items():
            name = read_key(key)
            rule = Rule(id=name.rule, name=name.rule, scope=name.scope)
            counter = Counter(rule, name.measure, 0, name.window, name.whom)
            counter.usage = usage
            self._parked[key] = counter
        self.change(self._rules, now)

    def _selection(self, context: Context, now: Now) -> Selection:
        selection = self._selections.get(context) or self._select(context, now)
        if selection.outdated:
            del self._selections[context]
            selection = self._select(context, now)
        return selection

    def _select(self, context: Context, now: Now) -> Selection:
        counters: dict[Counter, None] = {}
        places: list[Places] = []
        for rule in self._rules:
            if rule.applies(context, self._names):
                for whom in rule.whom(context, self._names):
                    for bound in rule.bounds:
                        counters[self._counter(rule, bound, whom, now, counters)] = None
                    if rule.in_flight:
                        places.append(self._place(rule, whom, places))
        if len(self._selections) >= _MAX_SELECTIONS:
            self._selections.clear()
        selection = self._selections[context] = Selection(tuple(counters), tuple(dict.fromkeys(places)))
        return selection

    def _counter(self, rule: Rule, bound: Bound, whom: str, now: Now, needed: Container[Counter]) -> Counter:
        group = self._groups.setdefault((rule.id, rule.scope, bound.measure, bound.window.code), {})
        counter = Counter(rule, bound.measure, bound.amount, bound.window, whom)
        whom = counter.key.split("|", 4)[4]
        if whom in group:
            return group[whom]
        # Each new counter looks after two old ones, so that there is never a long sweep.
        steady = now.monotonic + self._offset
        for old in [old for _, old in zip(range(2), group, strict=False)]:
            seen = group.pop(old)
            seen.usage.advance(steady if seen.rolling else now.wall)
            if seen.idle and seen not in needed:
                seen.dropped = True
            else:
                group[old] = seen
        if len(group) >= self._max_owners and whom != OTHERS:
            return self._counter(rule, bound, OTHERS, now, needed)
        group[whom] = counter
        return counter

    def _place(self, rule: Rule, whom: str, needed: Container[Places]) -> Places:
        group = self._places.setdefault((rule.id, rule.scope), {})
        if whom in group:
            return group[whom]
        for old in [old for _, old in zip(range(2), group, strict=False)]:
            seen = group.pop(old)
            if seen.leases or seen in needed:
                group[old] = seen
            else:
                seen.dropped = True
        if len(group) >= self._max_owners:
            whom = OTHERS
        return group.setdefault(whom, Places(rule, whom))


def _worse(one: Refusal | None, other: Refusal) -> Refusal:
    if one is None or other.retry_after_s is None:
        return other
    if one.retry_after_s is None or one.retry_after_s >= other.retry_after_s:
        return one
    return other
