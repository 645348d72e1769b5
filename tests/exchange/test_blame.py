"""Whose failure it is: a key's is not its target's, a request's is neither's; an end that is held open is an end."""

from __future__ import annotations

import json

import pytest

from appliance.errors import ContentFiltered
from appliance.providers.credentials import Credentials, Key, Keys
from appliance.routing.breaker import FAILURES_IN_A_ROW
from appliance.routing.routes import Deadlines, Target
from tests.fakes.answers import events_of, text_of
from tests.fakes.house import House
from tests.fakes.tongue_openai import chunk, usage_chunk
from tests.fakes.upstream import TEXT as PIECES
from tests.fakes.upstream import Reply, Seen
from tests.providers.test_every_kind_over_http import by_key, refusal, two_keys

TEXT = "".join(PIECES)
SHORT = Deadlines(first_token=3.0, idle=3.0)


@pytest.mark.parametrize("status", [401, 429])
async def test_a_key_that_is_refused_is_no_trouble_of_its_target(house: House, status: int) -> None:
    house.upstream.behave("m", by_key(refusal(status)))
    upstream = await two_keys(house.upstream, house.session)
    house.route("keys", Target(upstream, {}, "cloud"))
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    house.gateway.pause = pause
    assert (await house.chat("keys")).status == 200
    assert sum(pauses) < 0.2, "the other key need not wait for the first"
    board, now = house.gateway.health.board, house.gateway.health.clock()
    assert board.standing("lab/m", now).wait_s == 0
    assert (await house.chat("keys")).status == 200
    assert len(house.upstream.seen) == 3


def test_moderation_says_nothing_of_the_key() -> None:
    credentials = Credentials("t", Keys("p", [Key("a", "sk-first-key"), Key("b", "sk-second-key")]))
    for _ in range(4):
        credentials.failed(credentials.take(), 403, ContentFiltered("flagged"))
    assert all(each.free_at() == 0 for each in credentials.all)


async def test_a_refusal_that_repeats_a_long_request_stays_one(house: House) -> None:
    """Else whoever sends nonsense could have a target taken for a broken one."""

    def verbose(seen: Seen) -> Reply:
        return Reply(
            422, {}, json.dumps({"detail": [{"loc": ["body"], "msg": "no", "input": "x" * 3_000_000}]}).encode()
        )

    house.upstream.behave("verbose", verbose)
    house.route("m", "verbose", "ok")
    for _ in range(6):
        assert (await house.chat("m")).status == 400
    assert {seen.body["model"] for seen in house.upstream.seen} == {"verbose"}
    assert house.gateway.health.board.snapshot("fake/verbose", 0.0).failures == 0


MESSAGES = {"model": "m", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_an_empty_answer_whose_end_is_held_open_is_none(house: House, path: str) -> None:
    empty = [chunk({"role": "assistant", "content": ""}), chunk({}, "stop")]
    house.upstream.behave("hangs", lambda seen: Reply(events=[*empty, b"{}"], hold_after=2))
    house.route("m", "hangs", "ok", deadlines=SHORT)
    response = await house.post(path, MESSAGES)
    assert response.status == 200
    assert response.headers["x-outpost-target"] == "fake/ok"
    row = await house.recorder.wait_for(1)
    assert [each.outcome for each in row.attempts] == ["failed", "completed"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_counts_that_came_before_an_end_that_is_held_open_count(house: House, path: str) -> None:
    events = [chunk({"content": TEXT}), chunk({}, "stop"), usage_chunk(completion=77)]
    house.upstream.behave("hangs", lambda seen: Reply(events=[*events, b"{}"], hold_after=3))
    house.route("m", "hangs", deadlines=SHORT)
    response = await house.post(path, MESSAGES)
    assert response.status == 200
    if path.endswith("completions"):
        assert text_of(await events_of(response)) == TEXT
    row = await house.recorder.wait_for(1)
    assert (row.usage_source, row.completion_tokens, row.finish_reasons) == ("reported", 77, ["stop"])


async def test_one_that_hangs_is_left_alone_though_there_is_no_other(house: House) -> None:
    """Whole answers have no deadline of their own where nobody else could answer."""
    house.route("m", "silent", deadlines=Deadlines(total=0.2), retries=2)
    for _ in range(FAILURES_IN_A_ROW):
        response = await house.chat("m")
        assert (response.status, (await response.json())["error"]["code"]) == (504, "deadline_exceeded")
    response = await house.chat("m")
    assert (response.status, response.headers["x-outpost-attempts"]) == (503, "0")
    assert "left alone" in (await response.json())["error"]["message"]
    assert len(house.upstream.asked("silent")) == FAILURES_IN_A_ROW


async def test_an_engine_that_is_at_work_has_not_failed_when_the_time_is_over(house: House) -> None:
    local = house.gateway.router.find("local").targets[0]
    assert isinstance(local, Target)
    house.route("m", local, deadlines=Deadlines(total=0.2))
    for _ in range(FAILURES_IN_A_ROW + 1):
        assert (await house.chat("m", "!stall")).status == 504
    state = house.gateway.health.board.snapshot("local", house.gateway.health.clock())
    assert (state.requests, state.failures) == (FAILURES_IN_A_ROW + 1, 0)
