"""A second target is asked when the first is slower than it mostly is; the first that answers wins."""

from __future__ import annotations

import asyncio

import pytest

from appliance.routing.hedging import Hedging
from appliance.routing.routes import Deadlines
from tests.fakes.answers import events_of, text_of
from tests.fakes.house import House
from tests.fakes.upstream import TEXT as PIECES

TEXT = "".join(PIECES)
EVERY = Hedging(percentile=95, share=1.0, least_s=0.01)
USUAL_S = 0.01


def hedged(house: House, *behaviours: str, hedging: Hedging = EVERY, **options: object) -> None:
    """A route whose first target is known to be quick."""
    house.route("m", *behaviours, hedging=hedging, **options)
    health = house.gateway.health
    for _ in range(30):
        flight = health.board.began(f"fake/{behaviours[0]}", 1, 0.0)
        assert flight is not None
        flight.first_token(USUAL_S)
        flight.ended("ok", 2 * USUAL_S, tokens_out=3)


@pytest.mark.parametrize("stream", [True, False])
async def test_the_second_answers_while_the_first_is_silent(house: House, stream: bool) -> None:
    hedged(house, "silent", "ok")
    async with asyncio.timeout(10):
        response = await house.chat("m", stream=stream)
        assert response.status == 200
        text = (
            text_of(await events_of(response))
            if stream
            else (await response.json())["choices"][0]["message"]["content"]
        )
        assert text == TEXT
        assert response.headers["x-outpost-target"] == "fake/ok"
        await house.upstream.hung_up.acquire()  # the loser's work has ended
        row = await house.recorder.wait_for(1)
    assert [(each.target, each.outcome) for each in row.attempts] == [
        ("fake/silent", "cancelled"),
        ("fake/ok", "completed"),
    ]
    assert (row.target, row.outcome) == ("fake/ok", "completed")
    # Whoever is asked in vain has read the prompt all the same.
    assert row.attempts[0].prompt_tokens > 0
    assert row.completion_tokens == row.attempts[1].completion_tokens


async def test_who_answers_in_time_is_alone(house: House) -> None:
    hedged(house, "ok", "silent", hedging=Hedging(percentile=95, share=1.0, least_s=5.0))
    response = await house.chat("m", stream=True)
    assert text_of(await events_of(response)) == TEXT
    assert len(house.upstream.seen) == 1


async def test_no_more_are_hedged_than_their_share(house: House) -> None:
    hedged(
        house,
        "silent",
        "ok",
        hedging=Hedging(percentile=95, share=0.0001, least_s=0.01),
        deadlines=Deadlines(first_token=0.3),
    )
    answers = await asyncio.gather(*(house.chat("m", stream=True) for _ in range(4)))
    for answer in answers:
        assert text_of(await events_of(answer)) == TEXT
    await house.recorder.wait_for(4)
    rows = house.recorder.rows
    # One may always be; the others fell back when the time for a first token was over.
    assert sorted(row.attempts[0].outcome for row in rows) == ["cancelled", "failed", "failed", "failed"]


async def test_a_deadline_ends_both(house: House) -> None:
    hedged(house, "silent", "silent", deadlines=Deadlines(first_token=0.3), retries=0)
    response = await house.chat("m", stream=True)
    assert (response.status, (await response.json())["error"]["code"]) == (504, "upstream_timeout")
    row = await house.recorder.wait_for(1)
    assert [each.outcome for each in row.attempts] == ["failed", "failed"]
    async with asyncio.timeout(5):
        for _ in range(2):
            await house.upstream.hung_up.acquire()


async def test_a_first_that_fails_at_once_is_followed_as_ever(house: House) -> None:
    hedged(house, "500", "ok")
    response = await house.chat("m")
    assert response.status == 200
    assert [seen.body["model"] for seen in house.upstream.seen] == ["500", "ok"]


async def test_a_client_that_leaves_ends_both(house: House) -> None:
    hedged(house, "silent", "silent")
    asking = asyncio.create_task(house.chat("m", stream=True))
    async with asyncio.timeout(5):
        for _ in range(2):
            await house.upstream.sending.acquire()
        asking.cancel()
        for _ in range(2):
            await house.upstream.hung_up.acquire()
        row = await house.recorder.wait_for(1)
    assert (row.outcome, [each.outcome for each in row.attempts]) == ("client_closed", ["cancelled", "cancelled"])
