"""Shadows and health checks in the running gateway, from its settings on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.routing.breaker import FAILURES_IN_A_ROW
from tests.faults.failover import KEY
from tests.gateway import Gateway, UpstreamThread, open_gateway

pytestmark = pytest.mark.timeout(240)

SOON_S = 10.0
"""What has no reason to take longer."""


@pytest.fixture
def primary() -> Iterator[UpstreamThread]:
    with UpstreamThread() as upstream:
        yield upstream


@pytest.fixture
def other() -> Iterator[UpstreamThread]:
    with UpstreamThread() as upstream:
        yield upstream


def settings_of(primary: UpstreamThread, other: UpstreamThread, **route: Any) -> dict[str, Any]:
    def provider(name: str, upstream: UpstreamThread) -> dict[str, Any]:
        keys = [{"name": each, "key": KEY} for each in ("first", "second")]
        return {"name": name, "kind": "openai", "zone": "on_box", "base_url": upstream.url, "keys": keys}

    targets = [{"provider": "primary", "model": "ok"}, {"provider": "other", "model": "ok"}]
    return {
        "deployments": [],
        "providers": [provider("primary", primary), provider("other", other)],
        "routes": [{"model": "chat", "targets": targets, **route}],
    }


def ask(gateway: Gateway, http: httpx.Client) -> str:
    """The target that answered."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}
    response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.headers["x-outpost-target"]


def asked(upstream: UpstreamThread) -> list[str]:
    seen: list[str] = upstream.call(lambda: [f"{seen.method} {seen.path}" for seen in upstream.fake.seen])
    return seen


def turn(upstream: UpstreamThread, *, down: bool) -> None:
    def act() -> None:
        upstream.fake.down = down
        upstream.fake.seen.clear()

    upstream.call(act)


def compared(gateway: Gateway) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = gateway.control.call("GET", "/admin/v1/routes/chat/shadows")[0]["latest"]
    return found


def test_a_target_that_is_back_is_found_by_a_free_check(
    tmp_path: Path, primary: UpstreamThread, other: UpstreamThread
) -> None:
    with open_gateway(tmp_path, settings_of(primary, other, retries=1)) as gateway, gateway.http() as http:
        assert ask(gateway, http) == "primary/ok"
        turn(primary, down=True)
        assert {ask(gateway, http) for _ in range(3 * FAILURES_IN_A_ROW)} == {"other/ok"}
        posts = [each for each in asked(primary) if each.startswith("POST")]
        assert len(posts) <= FAILURES_IN_A_ROW
        gateway.wait_for(lambda: "GET /v1/models" in asked(primary), "a check that fails", SOON_S)
        assert ask(gateway, http) == "other/ok"
        turn(primary, down=False)
        gateway.wait_for(lambda: "GET /v1/models" in asked(primary), "a check that succeeds", 30.0)
        assert set(asked(primary)) == {"GET /v1/models"}, "no user's request was the trial"
        gateway.wait_for(lambda: ask(gateway, http) == "primary/ok", "the primary to be used again", SOON_S)
        headers = {"Authorization": f"Bearer {gateway.key}"}
        page = httpx.get(f"{gateway.operator_url}/metrics", headers=headers, trust_env=False).text
        for result in ("ok", "failed"):
            assert f'outpost_health_checks_total{{target="primary/ok",result="{result}"}}' in page
        # What is known of checks outlives new settings.
        gateway.write_settings(settings_of(primary, other, retries=2))
        gateway.control.call("POST", "/admin/v1/reload")
        turn(primary, down=True)
        assert {ask(gateway, http) for _ in range(3 * FAILURES_IN_A_ROW)} == {"other/ok"}
        gateway.wait_for(lambda: "GET /v1/models" in asked(primary), "a check after a reload", SOON_S)


def _settled(gateway: Gateway, count: int) -> bool:
    """Whether so many requests of a shadow have failed, or were not sent."""
    [shadow] = gateway.control.call("GET", "/admin/v1/routes/chat/shadows")[0]["shadows"]
    assert set(shadow["results"]) <= {"failed", "skipped"}
    return bool(sum(shadow["results"].values()) == count)


def test_a_shadow_whose_keys_are_refused_takes_them_from_nobody(
    tmp_path: Path, primary: UpstreamThread, other: UpstreamThread
) -> None:
    refused = {"provider": "primary", "model": "401"}
    with open_gateway(tmp_path, settings_of(primary, other, shadow=[refused])) as gateway, gateway.http() as http:
        for count in range(1, 4):  # one for each key, and one more
            assert ask(gateway, http) == "primary/ok"
            gateway.wait_for(partial(_settled, gateway, count), "the shadow to fail", SOON_S)
        assert {each["comparison"]["error"] for each in compared(gateway)} <= {"upstream_credentials", "rate_limited"}
        assert primary.call(lambda: len(primary.fake.asked("401"))) in (1, 2), "a key that is refused rests"
        assert not other.call(lambda: other.fake.seen)


def test_shadows_of_the_settings_are_asked_and_a_shutdown_ends_them(
    tmp_path: Path, primary: UpstreamThread, other: UpstreamThread
) -> None:
    overrides = {"temperature": 0.25}
    shadows: list[dict[str, Any]] = [{"provider": "other", "model": "ok~shadow", "overrides": overrides}]
    with open_gateway(tmp_path, settings_of(primary, other, shadow=shadows)) as gateway, gateway.http() as http:
        assert ask(gateway, http) == "primary/ok"
        [found] = gateway.wait_for(lambda: compared(gateway), "the comparison", SOON_S)
        assert (found["target"], found["shadow"], found["result"]) == ("primary/ok", "other/ok~shadow", "same")
        [seen] = other.call(lambda: other.fake.asked("ok~shadow"))
        assert seen.body["temperature"] == 0.25
        [row] = gateway.rows()
        assert [(attempt["target"], attempt["outcome"]) for attempt in row["attempts"]] == [
            ("primary/ok", "completed"),
            ("other/ok~shadow", "shadow"),
        ]
        assert "shadow_compared" in gateway.log()
        silent = [{"provider": "other", "model": "silent"}, *shadows]
        gateway.write_settings(settings_of(primary, other, shadow=silent))
        gateway.control.call("POST", "/admin/v1/reload")
        assert ask(gateway, http) == "primary/ok"
        other.begin(other.fake.sending.acquire).result(SOON_S)
        began = time.monotonic()
        assert gateway.stop() == 0
        assert time.monotonic() - began < SOON_S
        other.begin(other.fake.hung_up.acquire).result(SOON_S)
