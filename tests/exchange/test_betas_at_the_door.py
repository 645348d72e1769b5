"""What Claude Code and Anthropic's SDK say beside the body, from the door to the target."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.routing.routes import Target
from tests.fakes.house import ADMIN_KEY, UPSTREAM_KEY, House
from tests.fakes.providers import upstream

INTERLEAVED = "interleaved-thinking-2025-05-14"
BUNDLE = {
    "anthropic-beta": f"claude-code-20250219,{INTERLEAVED},mcp-client-2025-11-20",
    "anthropic-version": "2999-01-01",
}
THINKING = {"type": "enabled", "budget_tokens": 8192}
BODY: dict[str, Any] = {"max_tokens": 4096, "messages": [{"role": "user", "content": "Hi"}]}


def target(house: House, kind: str = "anthropic") -> Target:
    made = upstream(
        f"{kind}/ok",
        model="ok",
        base_url=house.upstream.url,
        api_key=UPSTREAM_KEY,
        session=house.session,
        kind=kind,
    )
    return Target(made, {}, "cloud")


@pytest.mark.parametrize("stream", [False, True])
async def test_allowed_betas_reach_a_target_that_speaks_the_dialect(house: House, stream: bool) -> None:
    house.route("m", target(house))
    response = await house.post(
        "/v1/messages", {"model": "m", **BODY, "thinking": THINKING, "stream": stream}, **BUNDLE
    )
    assert response.status == 200, await response.text()
    (seen,) = house.upstream.seen
    assert seen.headers["anthropic-beta"] == f"claude-code-20250219,{INTERLEAVED}"
    assert seen.headers["anthropic-version"] == "2023-06-01"
    assert seen.body["thinking"] == THINKING
    assert "betas" not in seen.body


async def test_no_other_target_hears_of_them(house: House) -> None:
    house.route("m", "ok")
    assert (await house.post("/v1/messages", {"model": "m", **BODY}, **BUNDLE)).status == 200
    house.route("c", target(house))
    chat = {"model": "c", "messages": BODY["messages"]}
    assert (await house.post("/v1/chat/completions", chat, **BUNDLE)).status == 200
    for seen in house.upstream.seen:
        assert "anthropic-beta" not in seen.headers


async def test_a_budget_without_room_for_an_answer_is_refused_in_the_clients_form(house: House) -> None:
    house.route("m", target(house))
    response = await house.post("/v1/messages", {"model": "m", **BODY, "thinking": THINKING})
    told = await response.json()
    assert (response.status, told["type"], told["error"]["type"]) == (400, "error", "invalid_request_error")
    assert told["error"]["message"].startswith("thinking.budget_tokens must be less than max_tokens")
    assert house.upstream.seen == []


async def test_servers_that_a_request_names_are_refused_by_name(house: House) -> None:
    house.route("m", target(house), drop_unsupported=True)
    fields = {"mcp_servers": [{"type": "url", "url": "https://mcp.example.com", "name": "a"}]}
    response = await house.post("/v1/messages", {"model": "m", **BODY, **fields}, **BUNDLE)
    assert response.status == 400
    assert "mcp_servers: the model m connects to no servers" in (await response.json())["error"]["message"]


async def test_an_operator_sees_what_does_not_go_out(house: House) -> None:
    house.route("m", target(house), target(house, "openai"), drop_unsupported=True)
    body = {"model": "m", **BODY, "top_k": 5}
    response = await house.post("/v1/messages", body, key=ADMIN_KEY, **{**BUNDLE, "x-outpost-explain": "1"})
    first, second = (await response.json())["considered"]
    assert first["without"] == ["anthropic-beta mcp-client-2025-11-20"]
    assert second["without"] == [
        "top_k",
        "anthropic-beta claude-code-20250219",
        f"anthropic-beta {INTERLEAVED}",
        "anthropic-beta mcp-client-2025-11-20",
    ]
