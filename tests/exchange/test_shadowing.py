"""Shadows: they get the request too, and nobody who asks ever notices."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from appliance.errors import UpstreamError
from appliance.identity.principal import Principal, Restrictions
from appliance.limits.admission import Opening
from appliance.limits.fair_queue import Rules
from appliance.pricing import Prices
from appliance.records.rows import tries
from appliance.routing.residency import Action
from appliance.routing.routes import Deadlines, Shadow
from appliance.settings.limiting import Price
from appliance.shadows import KEPT, Compared, Overview
from tests.fakes.behaviours import LONG_TEXT
from tests.fakes.house import ADMIN_KEY, USER_KEY, House
from tests.fakes.replies import Seen
from tests.fakes.upstream import Reply, chat_events, chat_whole

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/messages": {"max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]},
    "/v1/responses": {"input": "Hi", "store": False},
}
SAYS = "Hello from elsewhere: another answer, quite unlike the first."


def shadow(house: House, model: str, share: float = 1.0, **overrides: Any) -> Shadow:
    return Shadow(house.provider(model, **overrides), share)


def shadowed(house: House, *shadows: Shadow | str, target: str = "ok", **options: Any) -> None:
    """A route `chat` with shadows."""
    made = tuple(shadow(house, each) if isinstance(each, str) else each for each in shadows)
    house.route("chat", target, shadows=made, **options)


async def done(house: House) -> None:
    """Once no shadow is under way."""
    async with asyncio.timeout(10):
        while house.gateway.shadows.running:
            await asyncio.gather(*house.gateway.shadows.running, return_exceptions=True)


def overview(house: House) -> Overview:
    return house.gateway.shadows.overview(house.gateway.router.find("chat"))


def latest(house: House) -> Compared:
    return overview(house).latest[0]


def results(house: House) -> dict[str, dict[str, int]]:
    return {each.shadow: each.results for each in overview(house).shadows}


def other(seen: Seen) -> Reply:
    return Reply(body=chat_whole(SAYS))


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, "outpost.shadows"):
        yield


# --- what a shadow gets, and what the caller does not notice ----------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_a_shadow_gets_the_request_too_and_its_answer_is_compared(house: House, path: str, stream: bool) -> None:
    shadowed(house, "ok~shadow")
    response = await house.post(path, {"model": "chat", "stream": stream, **BODIES[path]})
    assert response.status == 200
    await done(house)
    [caller], [copy] = house.upstream.asked("ok"), house.upstream.asked("ok~shadow")
    assert not copy.body.get("stream")
    assert "stream_options" not in copy.body
    assert copy.body["messages"] == caller.body["messages"]
    found = latest(house)
    assert (found.target, found.shadow, found.result) == ("fake/ok", "fake/ok~shadow", "same")
    assert found.comparison.similarity == 1.0
    assert found.comparison.characters == found.comparison.shadow_characters > 0
    assert found.comparison.same_finish_reason


@pytest.mark.parametrize("stream", [False, True])
async def test_the_caller_and_the_record_are_as_without_it(house: House, stream: bool) -> None:
    house.gateway.limits.prices = Prices(
        [Price(target="fake/ok", input=1_000_000, output=1_000_000), Price(target="fake/ok~shadow", input=9_000_000)]
    )
    house.route("alone", "ok")
    shadowed(house, "ok~shadow")
    told: list[Any] = []
    rows: list[Any] = []
    for count, model in enumerate(("alone", "chat"), 1):
        response = await house.chat(model, stream=stream)
        body = await response.text()
        row = await house.recorder.wait_for(count)
        await done(house)
        told.append((response.status, body.replace(response.headers["x-request-id"], "ID"), sorted(response.headers)))
        asked = [each.target for each in tries(row)]
        rows.append((row.outcome, row.target, row.cost_nanousd, row.prompt_tokens, row.completion_tokens, asked))
    assert told[0] == told[1]
    assert rows[0] == rows[1]
    assert len(house.recorder.rows) == 2, "a shadow has no row"
    assert rows[1][2] > 0
    assert latest(house).comparison.nanousd_more > 0, "what it costs is told all the same"


async def test_what_differs_is_told_and_nothing_of_what_was_said(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.upstream.behave("other", other)
    shadowed(house, "other")
    assert (await house.chat("chat", "a secret of the caller's")).status == 200
    await done(house)
    found = latest(house)
    assert found.result == "different"
    assert 0 < found.comparison.similarity < 0.5
    assert found.comparison.shadow_characters == len(SAYS)
    [record] = [each for each in caplog.records if each.message == "shadow_compared"]
    assert record.__dict__["similarity"] == found.comparison.similarity
    assert record.__dict__["request_id"] == house.recorder.rows[-1].id
    for text in ("secret", "Another", "Hello"):
        assert text not in str(record.__dict__)
        assert text not in json.dumps(msgspec.to_builtins(overview(house)))


async def test_completions_have_shadows_and_embeddings_have_none(house: House) -> None:
    shadowed(house, "ok~shadow")
    assert (await house.post("/v1/completions", {"model": "chat", "prompt": "Hi"})).status == 200
    assert (await house.post("/v1/embeddings", {"model": "chat", "input": "Hi"})).status == 200
    await done(house)
    [seen] = house.upstream.asked("ok~shadow")
    assert seen.path == "/v1/completions"
    assert latest(house).result == "same"


async def test_calls_of_tools_are_compared(house: House) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]

    def calling(arguments: str) -> Any:
        def reply(seen: Seen) -> Reply:
            call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}
            body = json.loads(chat_whole(""))
            body["choices"][0] |= {
                "message": {"role": "assistant", "tool_calls": [call]},
                "finish_reason": "tool_calls",
            }
            return Reply(body=json.dumps(body).encode())

        return reply

    for name, arguments in (("caller", '{"a": 1, "b": 2}'), ("same", '{"b":2,"a":1}'), ("not", '{"a": 1}')):
        house.upstream.behave(name, calling(arguments))
    shadowed(house, "same", "not", target="caller")
    assert (await house.chat("chat", tools=tools)).status == 200
    await done(house)
    assert results(house) == {"fake/same": {"same": 1}, "fake/not": {"different": 1}}


async def test_a_long_stream_is_compared_by_its_beginning(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.exchange.PIECES", 1000)
    house.upstream.behave("caller", lambda seen: Reply(events=chat_events(["word "] * 200)))
    house.upstream.behave("other", lambda seen: Reply(body=chat_whole("word " * 200)))
    shadowed(house, "other", target="caller")
    assert (await house.chat("chat", stream=True)).status == 200
    await done(house)
    comparison = latest(house).comparison
    assert 0 < comparison.characters < comparison.shadow_characters == 1000
    assert comparison.same_finish_reason


async def test_overrides_are_the_shadows_alone(house: House) -> None:
    shadowed(house, shadow(house, "ok~shadow", temperature=0.25, max_tokens=7))
    assert (await house.chat("chat", temperature=0.75)).status == 200
    await done(house)
    [caller], [copy] = house.upstream.asked("ok"), house.upstream.asked("ok~shadow")
    assert (caller.body["temperature"], copy.body["temperature"]) == (0.75, 0.25)
    assert 7 in copy.body.values()
    assert 7 not in caller.body.values()


# --- a shadow that fails ----------------------------------------------------------------------------


FAILS = ("503", "429", "401", "400", "closed", "garbage", "cut-whole", "compressed", "empty")


@pytest.mark.parametrize("fault", FAILS)
async def test_a_shadow_that_fails_is_nobody_elses_trouble(house: House, fault: str) -> None:
    shadowed(house, fault)
    assert (await house.chat("chat")).status == 200
    await done(house)
    assert results(house) == {f"fake/{fault}": {"failed": 1}}
    assert latest(house).comparison.error
    row = house.recorder.rows[-1]
    assert (row.outcome, [each.target for each in tries(row)]) == ("completed", ["fake/ok"])


async def test_its_failures_keep_no_caller_away_from_the_same_target(house: House) -> None:
    house.route("direct", "503")
    shadowed(house, "503")
    for _ in range(8):
        assert (await house.chat("chat")).status == 200
        await done(house)
    board, now = house.gateway.health.board, house.gateway.health.clock()
    assert board.standing("fake/503", now).phase == "closed"
    assert board.snapshot("fake/503", now).requests == 0
    found = results(house)["fake/503"]
    assert found["failed"] >= 1
    assert found["skipped"] >= 1, "it is left alone itself"
    assert found["failed"] == len(house.upstream.asked("503"))
    assert "left alone" in overview(house).shadows[0].skipped_for


async def test_one_that_is_left_alone_by_others_is_not_asked(house: House) -> None:
    health = house.gateway.health
    for _ in range(5):
        health.ended(health.began("fake/ok~shadow", 0), UpstreamError("down"), 0)
    shadowed(house, "ok~shadow")
    assert (await house.chat("chat")).status == 200
    await done(house)
    assert results(house) == {"fake/ok~shadow": {"skipped": 1}}
    assert not house.upstream.asked("ok~shadow")


async def test_one_that_is_silent_delays_nobody_and_has_a_deadline(house: House) -> None:
    shadowed(house, "silent", deadlines=Deadlines(2.0, 2.0, 2.0, 0.3))
    assert (await asyncio.wait_for(house.chat("chat"), 5)).status == 200
    assert house.gateway.shadows.running
    await done(house)
    assert latest(house).comparison.error == "upstream_timeout"
    await asyncio.wait_for(house.upstream.hung_up.acquire(), 5)


async def test_a_mistake_of_ours_is_logged_and_counted(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr("appliance.shadows.compare", broken)
    shadowed(house, "ok~shadow")
    assert (await house.chat("chat")).status == 200
    await done(house)
    assert "shadow_broken" in caplog.text
    assert results(house) == {"fake/ok~shadow": {"failed": 1}}


# --- which requests have one ------------------------------------------------------------------------


async def test_each_shadow_gets_its_share(house: House) -> None:
    numbers = iter([0.09, 0.11, 0.1, 0.0])
    house.gateway.health.random = lambda: next(numbers)
    shadowed(house, shadow(house, "ok~a", 0.1), shadow(house, "ok~b", 0.1))
    house.gateway.health.board._random = lambda: 0.5
    for _ in range(2):
        assert (await house.chat("chat")).status == 200
        await done(house)
    assert [seen.model for seen in house.upstream.seen] == ["ok", "ok~a", "ok", "ok~b"]


async def test_a_request_that_fails_has_none(house: House) -> None:
    shadowed(house, "ok~shadow", target="400")
    assert (await house.chat("chat")).status == 400
    assert (await house.chat("chat", messages=[])).status == 400
    await done(house)
    assert results(house) == {"fake/ok~shadow": {}}
    assert not house.upstream.asked("ok~shadow")


async def test_a_caller_that_leaves_has_none(house: House) -> None:
    shadowed(house, "ok~shadow", target="stall")
    task = asyncio.create_task(house.chat("chat", stream=True))
    await asyncio.wait_for(house.upstream.sending.acquire(), 5)
    task.cancel()
    row = await house.recorder.wait_for(1)
    assert row.outcome == "client_closed"
    await done(house)
    assert not house.upstream.asked("ok~shadow")


async def test_one_that_cannot_have_the_request_is_skipped(house: House) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    house.route(
        "chat",
        house.provider("ok"),
        shadows=(Shadow(house.gateway.router.find("local").targets[0], 1.0),),  # type: ignore[arg-type]
    )
    response = await house.post(
        "/v1/chat/completions",
        {"model": "chat", "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, image]}]},
    )
    assert response.status == 200
    await done(house)
    assert results(house) == {"local": {"skipped": 1}}
    assert "images" in overview(house).shadows[0].skipped_for
    assert not house.engine.requests


@pytest.mark.parametrize("action", ["drop", "pseudonymise"])
async def test_data_that_must_stay_here_goes_to_no_shadow_elsewhere(house: House, action: Action) -> None:
    """Not even masked."""
    local = house.gateway.router.find("local").targets[0]
    shadows = (shadow(house, "ok~shadow"),)
    house.route("chat", local, shadows=shadows, keep="on_box", keep_action=action)  # type: ignore[arg-type]
    assert (await house.chat("chat")).status == 200
    await done(house)
    assert results(house) == {"fake/ok~shadow": {"skipped": 1}}
    assert not house.upstream.seen


@pytest.mark.parametrize("limits", [{"zones": ("on_box",)}, {"models": ("local",)}])
async def test_a_key_that_is_limited_to_other_targets_has_no_shadow(house: House, limits: dict[str, Any]) -> None:
    house.keys.known[USER_KEY] = Principal(
        key_id="k-user", key_name="user", role="member", restrictions=Restrictions(**limits)
    )
    local = house.gateway.router.find("local").targets[0]
    house.route("chat", local, shadows=(shadow(house, "ok~shadow"),))  # type: ignore[arg-type]
    assert (await house.chat("chat")).status == 200
    await done(house)
    assert results(house) == {"fake/ok~shadow": {"skipped": 1}}
    assert not house.upstream.seen


# --- bounds -----------------------------------------------------------------------------------------


async def test_no_more_than_a_number_of_them_at_a_time(house: House) -> None:
    house.gateway.shadows._most = 1
    shadowed(house, "silent")
    for _ in range(3):
        assert (await house.chat("chat")).status == 200
    assert len(house.gateway.shadows.running) == 1
    assert results(house) == {"fake/silent": {"dropped": 2}}
    house.upstream.release.set()
    await done(house)
    assert results(house) == {"fake/silent": {"dropped": 2, "same": 1}}


async def test_it_takes_no_place_from_those_who_wait(house: House) -> None:
    """And gives back the place that it has."""
    local = house.gateway.router.find("local").targets[0]
    house.gateway.gates.apply(Rules(), [Opening("local", ("local",), 1)])
    house.route("chat", "ok", shadows=(Shadow(local, 1.0),))  # type: ignore[arg-type]
    holding = asyncio.create_task(house.chat("local", "!hold"))
    await asyncio.wait_for(house.engine.holding.acquire(), 5)
    assert (await house.chat("chat")).status == 200
    await done(house)
    assert results(house) == {"local": {"skipped": 1}}
    assert overview(house).shadows[0].skipped_for == "it is busy"
    house.engine.release.set()
    await holding
    assert (await house.chat("chat")).status == 200
    await done(house)
    assert results(house) == {"local": {"skipped": 1, "different": 1}}
    assert (await house.chat("chat", "!lost")).status == 200
    await done(house)
    assert results(house) == {"local": {"skipped": 1, "different": 1, "failed": 1}}
    [view] = house.gateway.gates.views()
    assert view.inside == 0


async def test_a_shutdown_ends_them_and_begins_no_more(house: House) -> None:
    shadowed(house, "silent")
    assert (await house.chat("chat")).status == 200
    await asyncio.wait_for(house.upstream.sending.acquire(), 5)
    await asyncio.wait_for(house.gateway.shadows.close(), 5)
    assert not house.gateway.shadows.running
    await asyncio.wait_for(house.upstream.hung_up.acquire(), 5)
    assert (await house.chat("chat")).status == 200
    assert not house.gateway.shadows.running
    assert len(house.upstream.asked("silent")) == 1


async def test_what_is_kept_of_comparisons_is_bounded(house: House) -> None:
    shadowed(house, "ok~shadow")
    for _ in range(KEPT + 3):
        assert (await house.chat("chat")).status == 200
        await done(house)
    assert len(overview(house).latest) == KEPT
    assert results(house) == {"fake/ok~shadow": {"same": KEPT + 3}}
    assert latest(house).request_id == house.recorder.rows[-1].id, "the newest comes first"
    house.gateway.shadows.keep({"other"})
    assert overview(house).latest == []


# --- what is shown of it ----------------------------------------------------------------------------


async def test_operators_see_how_they_compare(house: House) -> None:
    house.upstream.behave("other", other)
    shadowed(house, "ok~shadow", "other", "503")
    assert (await house.chat("chat")).status == 200
    await done(house)
    url = f"{house.operator_url}/admin/v1/routes/chat/shadows"
    async with house.session.get(url, headers={"Authorization": f"Bearer {ADMIN_KEY}"}) as response:
        assert response.status == 200
        shown = (await response.json())["data"]
    assert shown["route"] == "chat"
    by_name = {each["shadow"]: each for each in shown["shadows"]}
    assert {name: each["results"] for name, each in by_name.items()} == {
        "fake/ok~shadow": {"same": 1},
        "fake/other": {"different": 1},
        "fake/503": {"failed": 1},
    }
    assert by_name["fake/ok~shadow"]["similarity"] == 1.0
    assert by_name["fake/503"]["similarity"] is None
    assert {each["shadow"] for each in shown["latest"]} == set(by_name)
    async with house.session.get(url, headers={"Authorization": f"Bearer {USER_KEY}"}) as response:
        assert response.status == 403
    async with house.session.get(
        f"{house.operator_url}/admin/v1/routes/nothing/shadows", headers={"Authorization": f"Bearer {ADMIN_KEY}"}
    ) as response:
        assert response.status == 404


async def test_metrics_count_them(house: House) -> None:
    house.gateway.limits.prices = Prices([Price(target="fake/ok~shadow", input=1_000_000)])
    metrics = house.gateway.observer.metrics  # type: ignore[attr-defined]
    metrics.known = metrics.known._replace(routes=frozenset({"chat"}), targets=frozenset({"fake/ok~shadow"}))
    shadowed(house, "ok~shadow", "503")
    assert (await house.chat("chat")).status == 200
    await done(house)
    page = (await metrics.render(""))[0].decode()
    assert 'outpost_shadow_requests_total{route="chat",target="fake/ok~shadow",result="same"} 1' in page
    assert 'outpost_shadow_requests_total{route="chat",target="other",result="failed"} 1' in page
    assert 'outpost_shadow_similarity_ratio_bucket{route="chat",target="fake/ok~shadow",le="0.9"} 0' in page
    assert 'outpost_shadow_similarity_ratio_count{route="chat",target="fake/ok~shadow"} 1' in page
    assert 'outpost_shadow_similarity_ratio_count{route="chat",target="other"}' not in page
    assert 'outpost_shadow_cost_usd_total{route="chat",target="fake/ok~shadow"}' in page
    assert LONG_TEXT not in page
