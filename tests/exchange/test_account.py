"""The account over the real book, for any course that exchanges may take: in the end nothing is reserved, and what is
charged is what the attempts used."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Coroutine, Generator
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from hypothesis import settings as bounds_of
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from appliance.account import Account, Limits
from appliance.dialects.tally import Tally
from appliance.errors import OutpostError, RecordsUnavailable
from appliance.identity.principal import Principal
from appliance.limits.book import Book
from appliance.limits.clock import Now
from appliance.limits.counters import Reservation
from appliance.limits.rules import Used, read_key, rule_of
from appliance.pricing import Prices
from appliance.providers.upstream import Capabilities
from appliance.routing.candidate import Candidate
from appliance.routing.routes import Target
from appliance.settings.limiting import Limit, Price
from tests.fakes.house import House

T = TypeVar("T")

RULES = [
    rule_of(Limit.model_validate(each))
    for each in (
        {"name": "key", "scope": "key", "requests": "40/month", "tokens": "4000/month", "in_flight": 6},
        {"name": "box", "scope": "box", "usd": "0.02/month", "output_tokens": "6000/month"},
        {"name": "model", "scope": "model", "requests": "25/month", "input_tokens": "2000/month", "in_flight": 4},
        {"name": "lab", "scope": "provider", "match": {"provider": "lab"}, "usd": "0.005/month"},
    )
]
MEASURES = ("requests", "input_tokens", "output_tokens", "tokens", "usd")
PRICES = [
    Prices(),
    Prices([Price(target="lab/x", input="1", output="2", request="0.0001"), Price(target="small", gpu_second="0.001")]),
    Prices([Price(target="lab/x", input="3", cached="1", output="9"), Price(target="lab/y", output="2")]),
]


class Suspend:
    """What a store awaits while its write is on the way."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Store:
    """How its next `ensure` goes is in `next`; knows whom it has to allow for."""

    def __init__(self) -> None:
        self.next = "at once"
        self.allowed: set[int] = set()
        self.released: Counter[str] = Counter()

    async def ensure(self, reservation: Reservation, now: Now) -> None:
        self.allowed.add(id(reservation))
        if self.next != "at once":
            await Suspend()
        if self.next == "fails":
            raise RecordsUnavailable("locked")

    def release(self, reservation: Reservation) -> None:
        assert reservation.ended
        self.allowed.discard(id(reservation))
        self.released["recorded"] += 1

    def lost(self, reservation: Reservation, exchange_id: str) -> None:
        self.release(reservation)


def candidate(name: str, most: int | None) -> Candidate:
    """An answer may have `most` tokens; the target counts 7 tokens in any prompt if it is one of the box."""

    async def count(request: Any) -> int:
        await Suspend()
        return 7

    upstream: Any = SimpleNamespace(
        name=name, capabilities=Capabilities(frozenset(("chat.completions",)), frozenset(), context_length=500)
    )
    if "/" not in name:
        upstream.count = count
    request: Any = SimpleNamespace(token_limit=most, choices=1)
    return Candidate(Target(upstream), request)


candidates = st.builds(
    candidate, st.sampled_from(["small", "large", "lab/x", "lab/y"]), st.none() | st.integers(0, 300)
)
tallies = st.builds(
    Tally,
    prompt_tokens=st.sampled_from([0, 7, 30]),
    cached_tokens=st.integers(0, 7),
    completion_tokens=st.integers(0, 200),
    reasoning_tokens=st.integers(0, 50),
    source=st.sampled_from(["reported", "estimated", "none"]),
)


def drive(work: Coroutine[Any, Any, T], *, cancelled_at: int | None) -> T:
    """Run it; at its so-maniest wait its client leaves."""
    at = 0
    try:
        work.send(None)
        while True:
            if at == cancelled_at:
                work.throw(asyncio.CancelledError())
            else:
                work.send(None)
            at += 1
    except StopIteration as end:
        result: T = end.value
        return result


class Open:
    """One exchange under way, as the relay leads it."""

    def __init__(self, account: Account, plan: list[Candidate], key: str) -> None:
        self.account = account
        self.plan = plan
        self.key = key
        self.spent: Used | None = None
        self.attempts: list[tuple[str, Used]] = []
        self.working = True
        """An attempt is under way."""


class Courses(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.t = 0.0
        self.store = Store()
        self.book = Book(RULES, self.clock())
        self.limits = Limits(self.book, self.store, PRICES[1], self.clock, lambda request: 30)
        self.open: list[Open] = []
        self.charged: Counter[tuple[str, str, str]] = Counter()
        self.ended = 0

    def clock(self) -> Now:
        return Now(1_700_000_000.0 + self.t, 50.0 + self.t)

    @rule(
        key=st.sampled_from(["k1", "k2"]),
        plan=st.lists(candidates, min_size=1, max_size=3),
        ensure=st.sampled_from(["at once", "at once", "later", "fails"]),
        leaves=st.none() | st.integers(0, 2),
    )
    def reserve(self, key: str, plan: list[Candidate], ensure: str, leaves: int | None) -> None:
        principal = Principal(key_id=key, key_name=key, role="member")
        account = self.limits.account(principal, "chat", (), 60.0)
        opened = Open(account, plan, principal.credential)
        self.store.next = ensure
        try:
            opened.plan = list(drive(account.reserve(plan), cancelled_at=leaves))
        except (OutpostError, asyncio.CancelledError):
            opened.working = False
            self.end(opened, recorded=True)
        else:
            assert account.target == opened.plan[0].target.name
            self.open.append(opened)

    @rule(data=st.data(), tally=tallies, work_s=st.floats(0, 5))
    def attempt_ends(self, data: st.DataObject, tally: Tally, work_s: float) -> None:
        opened = self._one(data)
        if opened is None or not opened.working:
            return
        account = opened.account
        used = account.used(tally, account.cost(account.target, tally, work_s))
        opened.working, opened.spent = False, used
        opened.attempts.append((account.target, used))
        assert (used.requests == 0) == (tally.source == "none")
        assert used.requests or used == Used(requests=0), "who uses nothing pays nothing"

    @rule(
        data=st.data(),
        to=candidates,
        ensure=st.sampled_from(["at once", "at once", "later", "fails"]),
        leaves=st.none() | st.just(0),
    )
    def another_attempt(self, data: st.DataObject, to: Candidate, ensure: str, leaves: int | None) -> None:
        opened = self._one(data)
        if opened is None or opened.working:
            return
        self.store.next = ensure
        try:
            opened.account.move(to, opened.spent)
        except OutpostError as error:
            assert error.elsewhere
            return  # another one may be tried
        opened.spent = None
        try:
            drive(opened.account.cover(), cancelled_at=leaves)
        except (OutpostError, asyncio.CancelledError):
            self.open.remove(opened)
            self.end(opened, recorded=False)
        else:
            opened.working = True

    @rule(data=st.data(), recorded=st.booleans())
    def over(self, data: st.DataObject, recorded: bool) -> None:
        opened = self._one(data)
        if opened is not None:
            self.open.remove(opened)
            self.end(opened, recorded=recorded)

    def end(self, opened: Open, *, recorded: bool) -> None:
        account = opened.account
        charges = account.settle(opened.spent or Used(requests=0))
        assert account.settle(Used(10**6, 10**6, 10**6)) is charges, "once is enough"
        found: Counter[tuple[str, str, str]] = Counter()
        for charge in charges:
            name = read_key(charge.counter)
            found[name.rule, MEASURES[name.measure], name.whom] += charge.amount
        assert found == self.expected(opened)
        self.charged += found
        account.recorded() if recorded else account.unrecorded("x")
        self.ended += 1

    def expected(self, opened: Open) -> Counter[tuple[str, str, str]]:
        due: Counter[tuple[str, str, str]] = Counter()
        for target, used in opened.attempts:
            vector = dict(zip(MEASURES, used.vector(), strict=True))
            due["key", "tokens", opened.key] += vector["tokens"]
            due["box", "usd", "box"] += vector["usd"]
            due["box", "output_tokens", "box"] += vector["output_tokens"]
            due["model", "requests", target] += vector["requests"]
            due["model", "input_tokens", target] += vector["input_tokens"]
            if "/" in target:
                due["lab", "usd", "lab"] += vector["usd"]
            # However many attempts it takes, it is one request.
            due["key", "requests", opened.key] = max(due["key", "requests", opened.key], vector["requests"])
        return +due

    @rule(prices=st.sampled_from(PRICES))
    def reload(self, prices: Prices) -> None:
        self.limits.prices = prices

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.t += seconds

    @rule(data=st.data())
    def touch(self, data: st.DataObject) -> None:
        opened = self._one(data)
        if opened is not None:
            opened.account.touch()
            opened.account.headers()

    @invariant()
    def allowed_for(self) -> None:
        if hasattr(self, "store"):
            assert len(self.store.allowed) <= len(self.open)

    def _one(self, data: st.DataObject) -> Open | None:
        return data.draw(st.sampled_from(self.open)) if self.open else None

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        for opened in self.open:
            self.end(opened, recorded=True)
        standings = [each for _, each in self.book.usage(self.clock())]
        assert [each for each in standings if each.reserved] == []
        assert {(each.limit, each.measure, each.whom): each.used for each in standings} == dict(self.charged)
        assert self.book.under_way(self.clock()) == []
        assert self.store.allowed == set()


TestCourses = Courses.TestCase
TestCourses.settings = bounds_of(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("leaves", [0, 1])
def test_a_client_that_leaves_while_its_prompt_is_counted_holds_nothing(leaves: int) -> None:
    machine = Courses()
    machine.begin()
    machine.book.change([rule_of(Limit.model_validate({"scope": "box", "tokens": "20/month"}))], machine.clock())
    account = machine.limits.account(Principal(key_id="k", key_name="k", role="member"), "chat", (), 60.0)
    machine.store.next = "later"
    with contextlib.suppress(asyncio.CancelledError):
        drive(account.reserve([candidate("small", 10)]), cancelled_at=leaves)
        pytest.fail("it was not cancelled")
    assert [each.reserved for _, each in machine.book.usage(machine.clock())] == [17] * leaves
    assert account.settle(Used(requests=0)) == []
    account.recorded()
    assert machine.book.usage(machine.clock()) == []
    assert machine.store.allowed == set()


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, -86_400.0])
@pytest.mark.parametrize("window", ["rolling", "calendar"])
async def test_a_wall_clock_that_is_set_gives_nothing_away(house: House, jump_s: float, window: str) -> None:
    jump = 0.0

    def clock() -> Now:
        # Noon, so that an hour does not reach into another day.
        return Now(1_700_049_600.0 + jump + time.monotonic() - began, time.monotonic())

    began = time.monotonic()
    gateway = house.gateway
    limit = {"scope": "key", "requests": "2/day", "tokens": "1000/day", "in_flight": 1, "window": window}
    gateway.limits.book = Book([rule_of(Limit.model_validate(limit))], clock())
    gateway.limits.clock = clock
    assert (await house.chat("local", max_tokens=10)).status == 200
    hold = asyncio.create_task(house.chat("local", "!hold", max_tokens=10))
    await house.engine.holding.acquire()
    jump = jump_s
    assert (await house.chat("local", max_tokens=10)).status == 429
    house.engine.release.set()
    assert (await hold).status == 200
    refused = await house.chat("local", max_tokens=10)
    assert refused.status == 429
    assert int(refused.headers["Retry-After"]) <= 2 * 86_400
    rows = house.recorder.rows
    assert [sum(charge.amount for charge in row.charges) for row in rows] == [14, 0, 14, 0]
    (requests, tokens) = (each for _, each in gateway.limits.book.usage(clock()))
    assert (requests.used, requests.reserved, tokens.used, tokens.reserved) == (2, 0, 26, 0)
    assert gateway.limits.book.under_way(clock()) == []
    jump = 0.0
    assert (await house.chat("local", max_tokens=10)).status == 429
