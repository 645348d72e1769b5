"""The chargeback of a real gateway: by whatever it is asked, in every form, for those who may see it."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from appliance.commands import usage
from tests.e2e.clients import chat
from tests.gateway import Gateway, UpstreamThread, open_gateway

pytestmark = pytest.mark.timeout(240)

COST = "0.000013"
"""Of one answer of the fake upstream: 3 prompt tokens for 1 USD a million, 2 cached for 0.5, 4 of answer for 2.25."""
SETTINGS: dict[str, Any] = {
    "deployments": [],
    "routes": [
        {"model": "paid", "retries": 0, "targets": [{"provider": "fake", "model": "ok"}]},
        {
            "model": "either",
            "retries": 1,
            "targets": [{"provider": "fake", "model": "503"}, {"provider": "fake", "model": "ok"}],
        },
    ],
    "prices": [{"target": "fake/ok", "input": 1, "cached": 0.5, "output": 2.25}],
}


class Box:
    """A gateway with two organisations, each with people who ask and who look on."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.keys: dict[str, str] = {"admin": gateway.key, "member": gateway.user_key}
        call = gateway.control.call
        call("POST", "/admin/v1/organizations", body={"name": "acme"})
        call("POST", "/admin/v1/teams", body={"name": "research"})
        call("POST", "/admin/v1/teams", body={"name": "sales", "organization": "acme"})
        for name, fields in {
            "ann": {"team": "research"},
            "auditor": {"role": "auditor"},
            "bob": {"team": "sales", "organization": "acme"},
            "acme-auditor": {"role": "auditor", "organization": "acme"},
            "acme-member": {"organization": "acme"},
        }.items():
            (made,) = call("POST", "/admin/v1/keys", body={"name": name, **fields})
            self.keys[name] = made["key"]

    async def ask(self, who: str, model: str = "paid", tags: str = "") -> None:
        async with httpx.AsyncClient(base_url=self.gateway.url, timeout=30) as session:
            headers = {"Authorization": f"Bearer {self.keys[who]}", **({"x-outpost-tags": tags} if tags else {})}
            answer = await session.post(
                "/v1/chat/completions", json=chat("Hi", model=model, stream=False), headers=headers
            )
        assert answer.status_code == 200, answer.text

    def get(self, who: str, **query: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.keys[who]}"}
        return httpx.get(f"{self.gateway.operator_url}/admin/v1/usage", params=query, headers=headers, timeout=30)

    def report(self, *args: str) -> str:
        """What the command prints."""
        options = ["report", "--data-dir", str(self.gateway.data_dir), *args]
        done = CliRunner().invoke(usage.app, options)
        assert done.exit_code == 0, done.output
        return done.stdout


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with UpstreamThread() as upstream:
        fake = {"name": "fake", "kind": "openai", "zone": "on_box", "base_url": upstream.url}
        with open_gateway(tmp_path_factory.mktemp("usage"), {**SETTINGS, "providers": [fake]}) as gateway:
            box = Box(gateway)

            async def ask() -> None:
                for who, model, tags in (
                    ("ann", "paid", "paper"),
                    ("ann", "paid", "paper, talk"),
                    ("ann", "either", ""),
                    ("bob", "paid", "project:x"),
                ):
                    await box.ask(who, model, tags)

            asyncio.run(ask())
            yield box


def numbers(row: dict[str, Any]) -> tuple[int, int, int, int, int, str]:
    return (
        *(int(row[name]) for name in ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens")),
        row["cost_usd"],
    )  # type: ignore[return-value]


def times(count: int, failed: int = 0) -> tuple[int, int, int, int, int, str]:
    cost = {0: "0", 1: "0.000013", 2: "0.000026", 3: "0.000039", 4: "0.000052"}[count - failed if failed else count]
    return (count, failed, 5 * count, 2 * count, 4 * count, cost)


def test_by_whatever_it_is_asked(box: Box) -> None:
    today = datetime.now(UTC).date().isoformat()
    expected: dict[str, dict[str, Any]] = {
        "team": {"research": times(3), "sales": times(1)},
        "key": {"ann": times(3), "bob": times(1)},
        "model": {"paid": times(3), "either": times(1)},
        "tag": {"": times(1), "paper": times(2), "talk": times(1), "project:x": times(1)},
        "day": {today: times(4)},
        "target": {"fake/ok": times(4), "fake/503": (1, 1, 0, 0, 0, "0")},
    }
    for by, groups in expected.items():
        data = box.get("admin", by=by).json()["data"]
        found = {row[by]: numbers(row) for row in data}
        if by == "team":
            ids = {each["id"]: each["name"] for each in box.gateway.control.call("GET", "/admin/v1/teams")}
            found = {ids[team]: row for team, row in found.items()}
        assert found == groups, by


def test_forms_agree_with_and_without_a_gateway(box: Box) -> None:
    asked = ("--by", "key,tag,day")
    gateway = box.gateway
    running = {form: box.report(*asked, "--format", form) for form in ("table", "json", "jsonl", "csv")}
    rows = json.loads(running["json"])["data"]
    assert len(rows) == 4
    assert [json.loads(line) for line in running["jsonl"].splitlines()] == rows
    table = list(csv.DictReader(io.StringIO(running["csv"], newline="")))
    assert [{name: str(value) for name, value in row.items()} for row in rows] == [
        {name: value.removeprefix("'") for name, value in row.items()} for row in table
    ]
    assert {row["key"] for row in table} == {"ann", "bob"}
    assert len(running["table"].splitlines()) == 5
    over_http = {form: box.get("admin", by="key,tag,day", format=form) for form in ("json", "jsonl", "csv")}
    assert over_http["json"].json()["data"] == rows
    assert [json.loads(line) for line in over_http["jsonl"].text.splitlines()] == rows
    assert over_http["csv"].text == running["csv"].replace("\n", "\r\n").replace("\r\r", "\r")
    assert over_http["csv"].headers["content-type"].startswith("text/csv")
    assert gateway.stop() == 0
    try:
        for form, text in running.items():
            assert box.report(*asked, "--format", form) == text, form
        tomorrow = (datetime.now(UTC) + timedelta(days=2)).date().isoformat()
        assert json.loads(box.report("--since", tomorrow, "--until", "2999-01-01", "--format", "json")) == {"data": []}
    finally:
        gateway.start()


def test_who_sees_what(box: Box) -> None:
    everything = box.get("auditor", by="organization,key").json()["data"]
    assert {row["key"] for row in everything} == {"ann", "bob"}
    assert box.get("admin", by="organization,key").json()["data"] == everything
    theirs = box.get("acme-auditor", by="organization,key").json()["data"]
    assert theirs == [row for row in everything if row["key"] == "bob"]
    assert box.get("acme-auditor", by="target").json()["data"][0]["requests"] == 1
    for who in ("member", "ann", "acme-member"):
        refused = box.get(who)
        assert (refused.status_code, refused.headers["content-type"]) == (403, "application/problem+json")
    assert httpx.get(f"{box.gateway.operator_url}/admin/v1/usage", timeout=30).status_code == 401
    for wrong in (
        {"by": "teams"},
        {"since": "yesterday"},
        {"format": "xml"},
        {"since": "2026-02-02", "until": "2026-02-01"},
    ):
        assert box.get("admin", **wrong).status_code == 400
