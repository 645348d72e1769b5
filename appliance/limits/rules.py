"""What may be used, by whom, and what a request would use: plain data. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, get_args

import msgspec

from appliance.identity.keys import ROTATED_DIGITS, ROTATED_NAME
from appliance.limits.windows import Window, window_of
from appliance.settings.checks_limiting import limit_name
from appliance.settings.limiting import MEASURES, Limit, Scope

__all__ = [
    "MEASURES",
    "Bound",
    "Context",
    "CounterName",
    "Demand",
    "Rule",
    "Scope",
    "Used",
    "counter_key",
    "read_key",
    "rule_of",
]

REQUESTS, INPUT, OUTPUT, TOKENS, USD = range(5)
"""Places in the vectors of demands, in the order of `MEASURES`."""

SCOPES: tuple[Scope, ...] = get_args(Scope)
TARGET_BOUND: frozenset[str] = frozenset({"model", "provider"})
"""Scopes whose value changes when another target takes over."""
_CALENDAR = frozenset({"day", "week", "month"})
_MOST_WHOM = 100

Names = Callable[[str, str], str | None]
"""(scope, id) → the name that people know it by; None = it has none."""

Vector = tuple[int, int, int, int, int]
"""One amount a measure."""


class Context(msgspec.Struct, frozen=True, cache_hash=True):
    """What a request is, as far as limits can tell. Ids from the credential, never from the request."""

    organization: str | None = None
    team: str | None = None
    user: str | None = None
    service_account: str | None = None
    key: str | None = None
    """The key's id, which `match` may name."""
    route: str | None = None
    """The route's own name, not an alias."""
    model: str | None = None
    """The target: a deployment's name, or provider/model."""
    provider: str | None = None
    """None for a deployment of this box."""
    tags: tuple[str, ...] = ()
    key_name: str | None = None
    """The key's name where there is no directory to ask; `match` may name it."""
    credential: str | None = None
    """Whose counter is meant under a limit per key, where a `key` stands for several people; None = the key's."""


class Demand(msgspec.Struct, frozen=True):
    """The most that a request may use. Tokens; cost in nano-USD. `requests` 0: another attempt of the same one."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost_nanousd: int = 0
    requests: int = 1

    def vector(self) -> Vector:
        tokens = self.input_tokens + self.output_tokens
        return (self.requests, self.input_tokens, self.output_tokens, tokens, self.cost_nanousd)


class Used(Demand, frozen=True):
    """What was really used."""


class Bound(NamedTuple):
    """At most `amount` of the measure (its place in a vector) in the window."""

    measure: int
    amount: int
    window: Window


class Rule(msgspec.Struct, frozen=True):
    """A limit made ready."""

    id: str
    """Name of a limit of the file, id of one of the database: what its counters are called by."""
    name: str
    scope: Scope
    bounds: tuple[Bound, ...] = ()
    in_flight: int | None = None
    match: Mapping[str, frozenset[str]] = {}
    """Scope → names or ids of which one has to fit."""

    @property
    def by_target(self) -> bool:
        """Whether it may apply to one target of a route and not to another."""
        return self.scope in TARGET_BOUND or not TARGET_BOUND.isdisjoint(self.match)

    def applies(self, context: Context, names: Names) -> bool:
        return all(self._fits(context, field, wanted, names) for field, wanted in self.match.items())

    def whom(self, context: Context, names: Names) -> Iterator[str]:
        """Whose counters a request that it applies to goes to; none where the request has no such thing."""
        if self.scope == "box":
            yield "box"
        elif self.scope == "tag":
            wanted = self.match.get("tag")
            yield from dict.fromkeys(tag for tag in context.tags if wanted is None or tag in wanted)
        elif self.scope == "key" and context.credential is not None:
            yield context.credential
        elif (value := getattr(context, self.scope)) is not None:
            yield value

    def _fits(self, context: Context, field: str, wanted: frozenset[str], names: Names) -> bool:
        if field == "tag":
            return not wanted.isdisjoint(context.tags)
        value = getattr(context, field)
        if value is None:
            return False
        if value in wanted or names(field, value) in wanted:
            return True
        return field == "key" and context.key_name is not None and _key_named(context.key_name, value, wanted)


def _key_named(name: str, key: str, wanted: frozenset[str]) -> bool:
    """Whether a key's name is one of `wanted`. A key that was rotated has given its name to the one that follows it and
    goes by it until it ends: else everybody would be free of a limit by rotating."""
    if name in wanted:
        return True
    before, plus, end = name.rpartition("+")
    if not plus or not key.endswith(end) or len(end) != ROTATED_DIGITS:
        return False
    return before in wanted or (len(before) == ROTATED_NAME and any(each[:ROTATED_NAME] == before for each in wanted))


def rule_of(limit: Limit, *, id: str | None = None, name: str | None = None, organization: str | None = None) -> Rule:
    """A limit of the settings made ready; one of the database has an id and a name beside it.

    organization: the id of the only organisation that it may reach, whatever it says itself.
    """
    called = name or limit_name(limit)
    match = {
        field: frozenset(names) for field in type(limit.match).model_fields if (names := getattr(limit.match, field))
    }
    if organization is not None:
        match["organization"] = frozenset({organization})
    bounds = []
    for measure, field in enumerate(MEASURES):
        for quota in getattr(limit, field) or ():
            calendar = limit.window == "calendar" or (limit.window is None and quota.unit in _CALENDAR)
            zone = limit.timezone if calendar else None
            bounds.append(Bound(measure, quota.amount, Window(quota.seconds, quota.unit if calendar else None, zone)))
    return Rule(
        id=id or called,
        name=called,
        scope=limit.scope,
        bounds=tuple(bounds),
        in_flight=limit.in_flight,
        match=match,
    )


def counter_key(rule: str, scope: Scope, measure: int, window: Window, whom: str) -> str:
    """A counter's name in the database, at most 255 characters. The amount is not in it, so that a limit that is
    raised keeps what was used."""
    if len(whom) > _MOST_WHOM:
        whom = f"{whom[:48]}~{hashlib.sha256(whom.encode('utf-8', 'surrogatepass')).hexdigest()[:40]}"
    return f"{rule}|{scope}|{MEASURES[measure]}|{window.code}|{whom}"


class CounterName(NamedTuple):
    rule: str
    scope: Scope
    measure: int
    window: Window
    whom: str
    """Cut, where it was long."""


def read_key(key: str) -> CounterName:
    """The inverse of `counter_key`. Raises ValueError for a text that is no counter's name."""
    rule, scope, measure, code, whom = key.split("|", 4)
    if scope not in SCOPES:
        raise ValueError(f"{scope!r} is no scope")
    return CounterName(rule, scope, MEASURES.index(measure), window_of(code), whom)
