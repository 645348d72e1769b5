"""Many chats at once on a real model: all complete, in their order, with the answers that each gets alone."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tests.e2e.clients import Answer, chat, client, engine_of, post, posts, settled
from tests.gateway import CHAT, Gateway

pytestmark = pytest.mark.timeout(600)

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards"]
CHATS = 32
SLOTS = 8


def body_of(number: int) -> dict[str, Any]:
    dice = random.Random(number)
    said = " ".join(dice.choice(WORDS) for _ in range((3, 12, 3, 60)[number % 4]))
    return chat(
        f"Story {number}: {said}",
        stream=number % 2 == 0,
        temperature=0,
        logprobs=True,
        max_tokens=dice.choice((1, 4, 7)),
        n=2 if number % 8 == 0 else 1,
    )


def said(answer: Answer, choices: int) -> list[list[tuple[bytes, float]]]:
    return [answer.tokens(index) for index in range(choices)]


async def leave_in_between(gateway: Gateway, number: int) -> None:
    async with client(gateway) as one:
        await one.send("/v1/chat/completions", {**body_of(number), "max_tokens": 200})
        await asyncio.sleep(0.05 * number)
        one.leave("reset")


async def test_chats_at_once_get_what_each_gets_alone(gateway: Gateway) -> None:
    bodies = [body_of(number) for number in range(CHATS)]
    alone = [await post(gateway, body) for body in bodies]
    together, _ = await asyncio.gather(
        posts(gateway, bodies), asyncio.gather(*(leave_in_between(gateway, number) for number in range(8)))
    )
    for number, (expected, answer) in enumerate(zip(alone, together, strict=True)):
        choices = bodies[number]["n"]
        assert (answer.status, answer.done, answer.error) == (200, True, None), answer.body[-300:]
        assert said(answer, choices) == said(expected, choices), f"chat {number}"
        assert answer.text() == expected.text()
    async with engine_of(gateway) as engine:
        await settled(engine)


async def test_nobody_is_passed_by(gateway: Gateway) -> None:
    """Slots are given in the order of arrival: a request waits for those before it and for none after it."""
    newest = max((row["seq"] for row in gateway.rows()), default=0)
    answers = await posts(gateway, (chat(f"{number}!", temperature=0, max_tokens=5) for number in range(CHATS)))
    assert all(answer.done and answer.error is None for answer in answers)
    rows = gateway.wait_for(
        lambda: found if len(found := gateway.rows(after=newest)) == CHATS else None, "all exchanges on record"
    )
    rows.sort(key=lambda row: row["started_at"])
    begun = sorted(range(CHATS), key=lambda place: rows[place]["started_at"] + rows[place]["queue_s"])
    # Those that are placed in the same step have no order among themselves.
    assert all(abs(place - arrival) <= SLOTS for place, arrival in enumerate(begun)), begun
    waits = [row["queue_s"] for row in rows]
    assert max(waits[:SLOTS]) <= min(waits[-SLOTS:]), "the last to come had to wait, the first had not"


async def test_a_long_prompt_does_not_stall_the_others(gateway: Gateway) -> None:
    """While a long prompt is read, every stream that runs gets a token for each piece of it."""
    chunk = 64
    long_prompt = "wizard " * 600
    async with engine_of(gateway) as engine:
        await settled(engine)
        streams = [
            asyncio.ensure_future(post(gateway, chat(f"Tell me a story {number}", temperature=0, max_tokens=400)))
            for number in range(3)
        ]
        while (before := await engine.status()).steps < 5 or before.busy < 3:
            await asyncio.sleep(0.01)
        first = await post(gateway, {"model": CHAT, "prompt": long_prompt, "max_tokens": 1}, "/v1/completions")
        after = await engine.status()
        assert first.status == 200, first.body
        assert first.usage["prompt_tokens"] > 500
        read = after.tokens_prefilled - before.tokens_prefilled
        assert read > 400
        still_running = sum(not stream.done() for stream in streams)
        assert still_running, "the streams were to outlast the long prompt"
        assert after.steps - before.steps >= read / chunk - 2
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        await settled(engine)


async def test_the_second_turn_of_a_chat_is_not_read_anew(gateway: Gateway) -> None:
    story = " ".join(random.Random(2).choice(WORDS) for _ in range(150))
    first = await post(gateway, chat(story, stream=False, temperature=0, max_tokens=4))
    messages = [
        {"role": "user", "content": story},
        {"role": "assistant", "content": first.text()},
        {"role": "user", "content": "And then?"},
    ]
    body = {"model": CHAT, "messages": messages, "temperature": 0, "max_tokens": 4}
    second = await post(gateway, body)
    cached = second.usage["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first.usage["prompt_tokens"] - 1
    row = next(row for row in reversed(gateway.rows()) if row["id"] == second.id)
    assert row["cached_tokens"] == cached
