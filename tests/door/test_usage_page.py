"""GET /admin/v1/usage: its three forms, and that a long report does not hold up everybody else."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request

from appliance.door import admin_usage
from appliance.door.door import Door
from appliance.door.endpoint import Visit
from appliance.door.listen import Listener
from appliance.door.render import problem
from appliance.door.serve import CONTROL
from appliance.door.terms import Terms
from appliance.identity.authenticator import Authenticator
from appliance.identity.principal import DEFAULT_ORGANIZATION, Principal
from appliance.records.usage_rows import DIMENSIONS, Dimension, Usage, to_plain
from tests.door.login_console import Clock, Keys
from tests.fakes.issuer import FakePeople

ROWS = [Usage(team="=1+1", model="m", requests=2, cost_nanousd=1_500_000_000), Usage(team="b", model="m", requests=1)]


class Reader:
    async def report(
        self, by: Sequence[Dimension], since: float, until: float, *, organization: str | None = None
    ) -> list[Usage]:
        return ROWS


@pytest.mark.parametrize(
    ("form", "content_type"),
    [("json", "application/json"), ("jsonl", "application/jsonl"), ("csv", "text/csv; charset=utf-8")],
)
async def test_a_report_is_written_off_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, form: str, content_type: str
) -> None:
    threads: list[int] = []

    def noted(*args: Any) -> Any:
        threads.append(threading.get_ident())
        return to_plain(*args)

    monkeypatch.setattr(admin_usage, "to_plain", noted)
    clock = Clock()
    door = Door(
        admin_usage.endpoints(Reader(), lambda: 1.7e9),
        authenticator=Authenticator(Keys(), FakePeople(), clock=clock.wall),
        render=problem,
        clock=clock,
        new_id=lambda: "id1",
        terms=Terms(),
        trusted=CONTROL,
    )
    listener = Listener(door, Terms())
    port = await listener.tcp("127.0.0.1", 0)
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/admin/v1/usage?format={form}") as answer,
        ):
            assert (answer.status, answer.headers["Content-Type"]) == (200, content_type)
            text = await answer.text()
    finally:
        listener.stop_accepting()
        await listener.close(0.1)
    if form == "csv":
        found = list(csv.DictReader(io.StringIO(text)))
        assert [row["team"] for row in found] == ["'=1+1", "b"]
    else:
        found = json.loads(text)["data"] if form == "json" else [json.loads(line) for line in text.splitlines()]
        assert [row["team"] for row in found] == ["=1+1", "b"]
    assert [row["cost_usd"] for row in found] == ["1.5", "0"]
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.parametrize(("organization", "asked"), [("org_acme", "org_acme"), (DEFAULT_ORGANIZATION, None)])
async def test_whoever_does_not_oversee_the_box_reads_of_their_own_only(organization: str, asked: str | None) -> None:
    seen: list[str | None] = []

    class Noting:
        async def report(
            self, by: Sequence[Dimension], since: float, until: float, *, organization: str | None = None
        ) -> list[Usage]:
            seen.append(organization)
            return []

    (endpoint,) = admin_usage.endpoints(Noting(), lambda: 1.7e9)
    visit = Visit(make_mocked_request("GET", "/admin/v1/usage"), "id1", 0.0)
    visit.principal = Principal("key_1", "one", "auditor", organization)
    await endpoint.handler(visit)
    assert seen == [asked]


def test_the_document_describes_rows_as_they_are_answered() -> None:
    """Before, it promised an amount in nano-dollars."""
    (row,) = to_plain([Usage(cost_nanousd=1)], DIMENSIONS)
    assert set(row) == set(admin_usage.UsageRow.__struct_fields__)
