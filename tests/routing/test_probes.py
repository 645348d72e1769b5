"""Health checks of targets that have failed, against a server that fails and recovers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from appliance.probes import Prober
from appliance.providers.http import make_session
from appliance.providers.upstream import Upstream
from appliance.routing.board import Board
from appliance.routing.breaker import FAILURES_IN_A_ROW
from appliance.routing.routes import Nested, Route, Router, Shadow, Target
from tests.fakes.providers import upstream as made
from tests.fakes.replies import Reply, Seen
from tests.fakes.upstream import FakeUpstream

KEY = "sk-health-0123456789"


class Time:
    """A clock that is set by hand, and pauses that end when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.turns: asyncio.Queue[None] = asyncio.Queue()
        self.paused = asyncio.Semaphore(0)

    def __call__(self) -> float:
        return self.now

    async def pause(self, seconds: float) -> None:
        self.paused.release()
        await self.turns.get()
        self.now += seconds


class Bench:
    def __init__(self, fake: FakeUpstream, session: aiohttp.ClientSession) -> None:
        self.fake = fake
        self.session = session
        self.time = Time()
        self.board = Board(lambda: 0.5)
        self.told: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()
        self.prober = Prober(
            self.board, self.time, lambda *told: self.told.put_nowait(told), pause=self.time.pause, timeout_s=0.2
        )

    def target(self, name: str, kind: str = "openai_compatible", base_url: str | None = None) -> Target:
        url = base_url or self.fake.url
        return Target(made(name, model="ok", base_url=url, api_key=KEY, session=self.session, kind=kind))

    def know(self, *targets: Target | Nested, **options: Any) -> None:
        self.prober.know(Router([Route("chat", targets, **options)]))

    def fail(self, name: str) -> None:
        """As often as opens its breaker."""
        for _ in range(FAILURES_IN_A_ROW):
            flight = self.board.began(name, 0, self.time.now)
            assert flight is not None
            flight.ended("failed", self.time.now)

    def phase(self, name: str) -> str:
        return self.board.standing(name, self.time.now).phase

    def past_the_pause(self, name: str) -> None:
        self.time.now += self.board.standing(name, self.time.now).wait_s + 0.001

    async def checked(self) -> tuple[str, bool]:
        return await asyncio.wait_for(self.told.get(), 5)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with FakeUpstream() as fake, make_session() as session:
        yield Bench(fake, session)


async def test_a_check_lets_one_request_through_and_costs_no_tokens(bench: Bench) -> None:
    bench.know(bench.target("lab/x"))
    bench.fail("lab/x")
    bench.prober.look()
    assert bench.told.empty(), "it is asked after the pause"
    bench.past_the_pause("lab/x")
    assert bench.board.began("lab/x", 0, bench.time.now) is None, "no user's request is the trial"
    bench.prober.look()
    assert await bench.checked() == ("lab/x", True)
    assert bench.phase("lab/x") == "half_open"
    trial = bench.board.began("lab/x", 0, bench.time.now)
    assert trial is not None and trial.trial
    assert bench.board.began("lab/x", 0, bench.time.now) is None, "one request at a time"
    trial.ended("ok", bench.time.now)
    assert bench.phase("lab/x") == "closed"
    [seen] = bench.fake.seen
    assert (seen.method, seen.path, seen.body) == ("GET", "/v1/models", {})
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert "content-type" not in seen.headers


async def test_a_check_that_fails_leaves_it_open_and_the_next_one_comes_later(bench: Bench) -> None:
    bench.know(bench.target("lab/x"))
    bench.fail("lab/x")
    bench.fake.down = True
    first = bench.board.standing("lab/x", bench.time.now).wait_s
    bench.past_the_pause("lab/x")
    bench.prober.look()
    assert await bench.checked() == ("lab/x", False)
    assert bench.phase("lab/x") == "open"
    assert bench.board.standing("lab/x", bench.time.now).wait_s > first
    bench.prober.look()
    assert bench.told.empty()
    bench.fake.down = False
    bench.past_the_pause("lab/x")
    bench.prober.look()
    assert await bench.checked() == ("lab/x", True)
    assert bench.phase("lab/x") == "half_open"
    bench.prober.look()
    assert bench.told.empty(), "it is asked once"
    assert {seen.method for seen in bench.fake.seen} == {"GET"}


def answering(status: int) -> Callable[[Seen], Reply]:
    return lambda seen: Reply(status=status, body=b"{}")


@pytest.mark.parametrize(
    ("status", "reached"), [(200, True), (401, True), (404, True), (429, True), (302, True), (500, False), (503, False)]
)
async def test_every_answer_but_a_failure_of_the_server_tells_that_it_is_there(
    bench: Bench, status: int, reached: bool
) -> None:
    bench.fake.behave("ok", answering(status))
    target = bench.target("lab/x")
    assert await target.upstream.probe() is reached  # type: ignore[attr-defined]


async def _refused(bench: Bench) -> Upstream:
    return bench.target("lab/x", base_url="http://127.0.0.1:1/v1").upstream


async def _reset(bench: Bench) -> Upstream:
    bench.fake.behave("ok", lambda seen: Reply(close=True, end="reset"))
    return bench.target("lab/x").upstream


async def _bad_key(bench: Bench) -> Upstream:
    return made("lab/x", model="ok", base_url=bench.fake.url, api_key="has\nlines", session=bench.session)


@pytest.mark.parametrize("how", [_refused, _reset, _bad_key], ids=lambda how: how.__name__)
async def test_who_cannot_be_asked_is_not_reached(bench: Bench, how: Callable[[Bench], Awaitable[Upstream]]) -> None:
    upstream = await how(bench)
    assert await upstream.probe() is False  # type: ignore[attr-defined]


async def test_one_that_hangs_holds_up_no_other_and_is_given_up(bench: Bench) -> None:
    bench.fake.behave("ok", lambda seen: Reply(body=b"{}", hold=True))
    async with FakeUpstream() as well:
        bench.know(bench.target("hung/x"), bench.target("lab/x", base_url=well.url))
        bench.fail("hung/x")
        bench.fail("lab/x")
        bench.past_the_pause("hung/x")
        bench.past_the_pause("lab/x")
        bench.prober.look()
        await asyncio.wait_for(bench.fake.sending.acquire(), 5)
        assert await bench.checked() == ("lab/x", True)
        bench.prober.look()  # the one that hangs is not asked twice
        assert await bench.checked() == ("hung/x", False)
    assert len(bench.fake.seen) == 1
    assert bench.phase("hung/x") == "open"


async def test_which_targets_have_a_check(bench: Bench) -> None:
    """All of the router's are kept, and others forgotten."""
    bench.board.began("gone", 0, 0.0).ended("ok", 0.0)  # type: ignore[union-attr]
    inner = Route("inner", (bench.target("inner/x"),))
    shadow = Shadow(bench.target("shadow/x"))
    without = bench.target("none/x", kind="perplexity")
    bench.know(bench.target("lab/x"), without, Nested(inner), shadows=(shadow,))
    assert sorted(bench.board.names()) == ["inner/x", "lab/x", "none/x"]
    for name in ("lab/x", "none/x", "inner/x"):
        bench.fail(name)
        bench.past_the_pause(name)
    assert sorted(bench.board.due_probes(bench.time.now)) == ["inner/x", "lab/x"]
    assert bench.board.began("none/x", 0, bench.time.now) is not None, "a user's request is its trial"


async def test_it_looks_once_a_second_and_ends_what_runs(bench: Bench) -> None:
    bench.fake.behave("ok", lambda seen: Reply(body=b"{}", hold=True))
    bench.know(bench.target("lab/x"))
    bench.fail("lab/x")
    task = asyncio.create_task(bench.prober.run())
    await bench.time.paused.acquire()
    assert not bench.fake.seen
    for _ in range(3):  # the pause after the failures
        bench.time.turns.put_nowait(None)
        await bench.time.paused.acquire()
    await asyncio.wait_for(bench.fake.sending.acquire(), 5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not bench.prober._running
    await asyncio.wait_for(bench.fake.hung_up.acquire(), 5)


async def test_a_broken_check_breaks_nothing_else(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    target = bench.target("lab/x")

    async def broken() -> bool:
        raise RuntimeError("a mistake")

    target.upstream.probe = broken  # type: ignore[attr-defined]
    bench.know(target)
    bench.fail("lab/x")
    bench.past_the_pause("lab/x")
    bench.prober.look()
    assert await bench.checked() == ("lab/x", False)
    assert "health_check_broken" in caplog.text
    assert bench.phase("lab/x") == "open"
