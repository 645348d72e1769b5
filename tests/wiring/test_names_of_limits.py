"""Metrics know the limits that are made while the gateway runs."""

from __future__ import annotations

from pathlib import Path

from tests.door.whole_desk import Whole, open_whole


async def told(whole: Whole) -> set[str]:
    """The names under which refusals are counted."""
    status, page = await whole.ask("GET", "/metrics")
    assert status == 200
    lines = str(page.text).splitlines()
    return {
        line.split('limit="')[1].split('"')[0] for line in lines if line.startswith("outpost_limit_refusals_total{")
    }


async def test_a_limit_of_the_database_has_its_name_in_metrics(tmp_path: Path) -> None:
    async with open_whole(tmp_path) as whole:
        wish = {"name": "made-now", "scope": "key", "requests": "1/day"}
        status, made = await whole.ask("POST", "/admin/v1/limits", wish)
        assert status == 201, made
        whole.app.gateway.observer.refused("made-now", "key")
        assert await told(whole) == {"made-now"}
        status, _ = await whole.ask("PATCH", f"/admin/v1/limits/{made['data']['id']}", {"name": "renamed"})
        assert status == 200
        whole.app.gateway.observer.refused("renamed", "key")
        assert await told(whole) == {"made-now", "renamed"}
        assert (await whole.ask("DELETE", "/admin/v1/limits/renamed"))[0] == 200
        whole.app.gateway.observer.refused("renamed", "key")
        assert await told(whole) == {"made-now", "renamed", "other"}


async def test_a_limit_that_names_a_team_goes_by_its_name_of_now(tmp_path: Path) -> None:
    async with open_whole(tmp_path) as whole:
        await whole.made("/teams", {"name": "lab"})
        key = (await whole.made("/keys", {"name": "of-lab", "team": "lab"}))["key"]
        await whole.made("/limits", {"scope": "team", "match": {"team": "research"}, "requests": "0/day"})

        async def ask() -> int:
            body = {"model": "far", "messages": [{"role": "user", "content": "?"}]}
            return (await whole.ask("POST", "/v1/chat/completions", body, key=key, public=True))[0]

        assert await ask() == 502
        assert (await whole.ask("PATCH", "/admin/v1/teams/lab", {"name": "research"}))[0] == 200
        assert await ask() == 403
        assert (await whole.ask("PATCH", "/admin/v1/teams/research", {"name": "lab"}))[0] == 200
        assert await ask() == 502
