"""What a book is made of: counters, places for requests under way, and what one request holds of them."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.limits.clock import Now
from appliance.limits.rules import REQUESTS, USD, Context, Rule, counter_key
from appliance.limits.windows import Bucket, Calendar, Rolling, Window
from appliance.records.rows import Charge

_SMOOTHING = 0.1


class Counter:
    """What one owner has used of one bound. Everything that is reserved counts as used from its dispatch on.

    What follows `covered` belongs to the store (store.py).
    """

    __slots__ = (
        "aim",
        "aim_start",
        "amount",
        "by_target",
        "covered",
        "dropped",
        "held",
        "held_start",
        "held_until",
        "key",
        "limit",
        "measure",
        "open",
        "peak",
        "raising",
        "rolling",
        "scope",
        "step",
        "usage",
        "whom",
        "window",
    )

    def __init__(self, rule: Rule, measure: int, amount: int, window: Window, whom: str) -> None:
        self.key = counter_key(rule.id, rule.scope, measure, window, whom)
        self.scope = rule.scope
        self.whom = whom
        self.measure = measure
        self.window = window
        self.usage = window.usage()
        self.rolling = isinstance(self.usage, Rolling)
        self.open = 0
        """Reserved by requests under way."""
        self.dropped = False
        """Nobody counts here any longer; look the counter up again."""
        self.covered = 0
        """Dispatched and not yet on record."""
        self.held = 0
        """How much of that the database allows for."""
        self.held_start = 0.0
        """Unix seconds: what `held` is valid from, see `allows`."""
        self.held_until = (0.0, 0.0)
        self.aim = 0
        self.aim_start = 0.0
        """What `held` and `held_start` will be when the writes under way are done; there are `raising` of them."""
        self.raising = 0
        self.step = 0
        """What the last request needed that made `held` rise."""
        self.peak = 0
        """The most that was covered since the last checkpoint."""
        self.adopt(rule, amount)

    def adopt(self, rule: Rule, amount: int) -> None:
        """Go by this form of the rule from now on."""
        self.limit = rule.name
        self.amount = amount
        self.by_target = rule.by_target

    def allows(self, now: Now) -> bool:
        """Whether `held` covers all that is dispatched now."""
        if self.covered > self.held:
            return False
        if isinstance(self.usage, Calendar):
            return self.held_start == self.usage.start
        return now.wall < self.held_until[0] and now.monotonic < self.held_until[1]

    @property
    def idle(self) -> bool:
        """Whether forgetting it changes nothing. To be asked after `advance`."""
        return not (self.usage.total or self.open or self.covered or self.held or self.raising)


class Places:
    """Who is under way of one owner: leases, so that a holder that vanished does not keep its place for ever."""

    __slots__ = ("_earliest", "_mean", "by_target", "cap", "dropped", "leases", "limit", "scope", "whom")

    def __init__(self, rule: Rule, whom: str) -> None:
        self.scope = rule.scope
        self.whom = whom
        self.leases: dict[Reservation, float] = {}
        """Holder → monotonic seconds at which the lease ends."""
        self._earliest = float("inf")
        self._mean = 1.0
        self.dropped = False
        self.adopt(rule)

    def adopt(self, rule: Rule) -> None:
        self.limit = rule.name
        self.cap = rule.in_flight or 0
        self.by_target = rule.by_target

    def full(self, now: Now) -> bool:
        if len(self.leases) < self.cap:
            return False
        self.expire(now)
        return len(self.leases) >= self.cap

    def expire(self, now: Now) -> None:
        """Forget the leases that have ended."""
        if self._earliest <= now.monotonic:
            # Touched leases end later than `_earliest` says: it is a bound, and set right here.
            self.leases = {holder: end for holder, end in self.leases.items() if end > now.monotonic}
            self._earliest = min(self.leases.values(), default=float("inf"))

    def take(self, holder: Reservation, now: Now) -> None:
        """Take or renew a place; also that of a lease that has ended, even where it is one too many then."""
        end = now.monotonic + holder.lease_s
        self.leases[holder] = end
        if end < self._earliest:
            self._earliest = end

    def leave(self, holder: Reservation, now: Now) -> None:
        if self.leases.pop(holder, None) is not None:
            self._mean += _SMOOTHING * (now.monotonic - holder.began - self._mean)

    @property
    def wait_s(self) -> float:
        """Seconds in which a place becomes free, as far as can be told from those before."""
        return max(0.5, self._mean / max(1, self.cap))


class Hold:
    """What a reservation holds of one counter."""

    __slots__ = ("amount", "at", "bucket", "counter", "covered", "spent")

    def __init__(self, counter: Counter, amount: int, bucket: Bucket, at: float) -> None:
        self.counter = counter
        self.amount = amount
        """Reserved; includes `spent`."""
        self.bucket = bucket
        self.at = at
        """When it counts, on the counter's clock."""
        self.spent = 0
        """Used up by attempts that have ended."""
        self.covered = 0
        """How much of it the store has been told of."""


class Selection:
    """What a context's requests count against."""

    __slots__ = ("counters", "places", "requests", "tokens")

    def __init__(self, counters: tuple[Counter, ...], places: tuple[Places, ...]) -> None:
        self.counters = counters
        self.places = places
        self.requests = tuple(each for each in counters if each.measure == REQUESTS)
        self.tokens = tuple(each for each in counters if each.measure not in (REQUESTS, USD))

    @property
    def outdated(self) -> bool:
        return any(each.dropped for each in self.counters) or any(each.dropped for each in self.places)


class Reservation:
    """What one request holds. `charges` is there once it has been settled."""

    __slots__ = ("began", "charges", "closed", "context", "ended", "holds", "lease_s", "places")

    def __init__(
        self, context: Context, holds: list[Hold], places: Sequence[Places], lease_s: float, began: float
    ) -> None:
        self.context = context
        self.holds = holds
        self.places = places
        self.lease_s = lease_s
        self.began = began
        """Monotonic seconds."""
        self.closed: list[Hold] = []
        """Holds that have been settled and may not be on record yet."""
        self.charges: list[Charge] = []
        self.ended = False
