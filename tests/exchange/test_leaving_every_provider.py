"""A client that leaves ends the work behind its request, whoever does it and however far it has got."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from appliance.routing.routes import Target
from tests.fakes.house import USER_KEY, House
from tests.fakes.providers import upstream

KINDS = {
    "openai_compatible": "/v1",
    "anthropic": "/v1",
    "gemini": "/v1beta",
    "bedrock": "",
    "cohere": "/v2",
}
ASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {}),
    "messages": ("/v1/messages", {"max_tokens": 99}),
}
STATES = [("silent", False), ("silent", True), ("stall", True)]
"""What the provider does, and whether a stream is asked for: nothing at all, nothing, some tokens and then nothing."""


def target(house: House, kind: str, model: str) -> Target:
    made = upstream(
        f"{kind}/{model}",
        model=model,
        base_url=house.upstream.root + KINDS[kind],
        api_key="sk-upstream-key",
        session=house.session,
        kind=kind,
    )
    return Target(made, {}, "cloud")


@pytest.mark.parametrize("dialect", ASKS)
@pytest.mark.parametrize(("behaviour", "stream"), STATES)
@pytest.mark.parametrize("kind", KINDS)
async def test_the_provider_is_hung_up_on(house: House, kind: str, behaviour: str, stream: bool, dialect: str) -> None:
    house.route("m", target(house, kind, behaviour))
    path, more = ASKS[dialect]
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": stream, **more}
    headers = {"Authorization": f"Bearer {USER_KEY}"}

    async def ask() -> None:
        async with house.session.post(house.url + path, json=body, headers=headers) as response:
            await response.read()

    asking = asyncio.create_task(ask())
    async with asyncio.timeout(10):
        await house.upstream.sending.acquire()
        asking.cancel()
        await house.upstream.hung_up.acquire()
        row = await house.recorder.wait_for(1)
    assert (row.outcome, [each.outcome for each in row.attempts]) == ("client_closed", ["cancelled"])
    # Nobody knows what was used; the prompt was read at least.
    assert row.usage_source == "estimated"
    assert row.prompt_tokens > 0
