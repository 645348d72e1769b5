"""Whom a request was sent to beside its targets is on record; shadows of routes inside a route are asked too."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from appliance.records.rows import SHADOW, Attempt, ExchangeRow, flatten, tries, unflatten
from appliance.routing.routes import Deadlines, Nested, Route, Shadow, Target
from tests.exchange.test_shadowing import done, latest, results, shadow, shadowed
from tests.fakes.house import House
from tests.fakes.upstream import Reply, chat_events


def named(row: ExchangeRow) -> list[str]:
    return [each.target for each in row.attempts if each.outcome == SHADOW]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_record_names_the_shadows_before_they_are_asked(
    house: House, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadowed(house, "ok~one", "ok~two")
    house.recorder.gate.clear()
    written, submit = asyncio.Event(), house.recorder.submit

    def submitted(row: ExchangeRow) -> asyncio.Future[int]:
        written.set()
        return submit(row)

    monkeypatch.setattr(house.recorder, "submit", submitted)
    asking = asyncio.create_task(house.chat("chat", stream=stream))
    async with asyncio.timeout(5):
        await written.wait()
    assert len(house.upstream.seen) == 1, "the row is not on the disk yet"
    house.recorder.gate.set()
    response = await asking
    assert response.headers["x-outpost-attempts"] == "1"
    await done(house)
    (row,) = house.recorder.rows
    assert named(row) == ["fake/ok~one", "fake/ok~two"]
    assert [each.target for each in tries(row)] == ["fake/ok"]
    shadows = [each for each in row.attempts if each.outcome == SHADOW]
    assert all(each.started_s == row.duration_s for each in shadows)
    assert not any(each.prompt_tokens or each.completion_tokens or each.cost_nanousd for each in shadows)
    assert len(house.upstream.seen) == 3


async def test_who_cannot_have_it_is_not_named(house: House) -> None:
    near = msgspec.structs.replace(house.provider("ok~near"), zone="on_prem")
    far = Shadow(house.provider("ok~far"))
    target = msgspec.structs.replace(house.provider("ok"), zone="on_prem")
    house.route("chat", target, shadows=(far, Shadow(near)), keep="on_prem")
    assert (await house.chat("chat")).status == 200
    await done(house)
    assert named(house.recorder.rows[0]) == ["fake/ok~near"]
    assert house.upstream.asked("ok~far") == []
    assert results(house)["fake/ok~far"] == {"skipped": 1}


async def test_where_the_record_cannot_be_written_no_shadow_is_asked(house: House) -> None:
    shadowed(house, "ok~shadow")
    house.recorder.failing = True
    response = await house.chat("chat")
    assert (response.status, response.headers["x-outpost-attempts"]) == (503, "1")
    await done(house)
    assert house.upstream.asked("ok~shadow") == []


async def test_an_answer_that_failed_has_no_shadow(house: House) -> None:
    shadowed(house, "ok~shadow", target="503", retries=0)
    assert (await house.chat("chat")).status == 503
    assert named(await house.recorder.wait_for(1)) == []


def test_a_row_with_shadows_is_read_back_as_it_was() -> None:
    attempts = [Attempt("a/b", 0.0, 1.5, "completed"), Attempt("c/d", 1.5, 0.0, SHADOW)]
    row = ExchangeRow(id="x", kind="chat.completions", started_at=1.0, attempts=attempts)
    assert unflatten(flatten(1, row)).attempts == attempts
    assert tries(row) == attempts[:1]
    assert tries(ExchangeRow(id="x", kind="chat.completions", started_at=1.0)) == []


# --- routes inside routes -------------------------------------------------------------------------


def inner(house: House, *targets: str, shadows: tuple[Shadow, ...] = (), **more: Any) -> Route:
    return Route("inner", tuple(house.provider(each) for each in targets), shadows=shadows, **more)


async def test_a_shadow_inside_gets_what_its_route_has_answered(house: House) -> None:
    route = inner(house, "ok", shadows=(shadow(house, "ok~inside"),))
    made: tuple[Target | Nested, ...] = (Nested(route, {"temperature": 0.5}), house.provider("ok~last"))
    house.route("chat", *made, shadows=(shadow(house, "ok~own"),))  # type: ignore[arg-type]
    assert (await house.chat("chat")).status == 200
    await done(house)
    (row,) = house.recorder.rows
    assert named(row) == ["fake/ok~own", "fake/ok~inside"]
    (inside,) = house.upstream.asked("ok~inside")
    assert inside.body["temperature"] == 0.5, "what holds on the way holds for it"
    assert "temperature" not in house.upstream.asked("ok~own")[0].body
    assert house.gateway.shadows.overview(route).latest[0].shadow == "fake/ok~inside", "under the route that has it"
    assert latest(house).shadow == "fake/ok~own"


async def test_where_another_target_has_answered_it_is_not_asked(house: House) -> None:
    route = inner(house, "503", shadows=(shadow(house, "ok~inside"),))
    house.route("chat", Nested(route), house.provider("ok"))  # type: ignore[arg-type]
    assert (await house.chat("chat")).status == 200
    await done(house)
    assert named(house.recorder.rows[0]) == []
    assert house.upstream.asked("ok~inside") == []


async def test_what_the_routes_on_the_way_demand_holds_for_it(house: House) -> None:
    """The shadow is in the cloud; the route in the middle keeps data on the premises."""
    near = msgspec.structs.replace(house.provider("ok"), zone="on_prem")
    deep = Route("inner", (near,), shadows=(shadow(house, "ok~inside"),))
    middle = Route("middle", (Nested(deep),), keep="on_prem")
    house.route("chat", Nested(middle))  # type: ignore[arg-type]
    assert (await house.chat("chat")).status == 200
    await done(house)
    assert house.upstream.asked("ok~inside") == []
    assert named(house.recorder.rows[0]) == []
    skipped = house.gateway.shadows.overview(deep).shadows[0].skipped_for
    assert "the route middle keeps data on the premises" in skipped


async def test_a_stream_inside_is_compared_whole(house: House) -> None:
    house.upstream.behave("long", lambda seen: Reply(events=chat_events(["word "] * 40)))
    route = inner(house, "long", shadows=(shadow(house, "ok~inside"),), deadlines=Deadlines())
    house.route("chat", Nested(route))  # type: ignore[arg-type]
    response = await house.chat("chat", stream=True)
    assert response.status == 200
    await done(house)
    found = house.gateway.shadows.overview(route).latest[0]
    assert found.comparison.characters == len("word ") * 40
