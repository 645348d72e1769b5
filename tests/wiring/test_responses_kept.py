"""Stored responses in the appliance as it runs: over a restart, a reload and an erasure."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from appliance.app import App
from appliance.settings import load
from tests.fakes.upstream import FakeUpstream

KEY = "op-" + "k" * 43


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as opened:
        yield opened


def write(folder: Path, upstream: FakeUpstream, **records: Any) -> Path:
    file = folder / "outpost.yaml"
    far = {"name": "far", "kind": "openai", "base_url": upstream.url, "zone": "on_prem", "api_key": {"env": "FAR"}}
    settings = {
        "server": {"listen": "127.0.0.1:0"},
        "console": {"listen": "127.0.0.1:0"},
        "data_dir": str(folder / "data"),
        "deployments": [],
        "providers": [far],
        "routes": [
            {"model": model, "targets": [{"provider": "far", "model": name}]}
            for model, name in (("chat", "ok"), ("hung", "silent"))
        ],
        "identity": {"keys": [{"name": "boss", "key": {"env": "KEY"}, "role": "owner"}]},
        "records": records,
    }
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return file


class Box:
    def __init__(self, app: App, session: aiohttp.ClientSession) -> None:
        self.app = app
        self._session = session

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        port = self.app.operator_port if path.startswith("/admin") else self.app.public_port
        url, headers = f"http://127.0.0.1:{port}{path}", {"Authorization": f"Bearer {KEY}"}
        async with self._session.request(method, url, json=body, headers=headers) as response:
            return response.status, json.loads(await response.read())


@asynccontextmanager
async def running(file: Path) -> AsyncIterator[Box]:
    app = App(load(file, {"KEY": KEY, "FAR": "sk-far"}), {"KEY": KEY, "FAR": "sk-far"})
    await app.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Box(app, session)
    finally:
        await app.stop()


async def test_over_a_restart_and_a_reload(tmp_path: Path, upstream: FakeUpstream) -> None:
    file = write(tmp_path, upstream)
    async with running(file) as box:
        status, first = await box.ask("POST", "/v1/responses", {"model": "chat", "input": "I am Ann."})
        assert (status, first["status"]) == (200, "completed")
    async with running(file) as box:
        assert await box.ask("GET", f"/v1/responses/{first['id']}") == (200, first)
        body = {"model": "chat", "input": "Who am I?", "previous_response_id": first["id"]}
        assert (await box.ask("POST", "/v1/responses", body))[0] == 200
        assert "I am Ann." in str(upstream.seen[-1].body)
        write(tmp_path, upstream, store_responses=False)
        assert (await box.ask("POST", "/admin/v1/reload"))[0] == 200
        status, found = await box.ask("POST", "/v1/responses", body)
        assert (status, found["error"]["param"]) == (400, "previous_response_id")
        status, found = await box.ask("POST", "/v1/responses", {"model": "chat", "input": "Hi"})
        assert (status, found["store"]) == (200, False)
        write(tmp_path, upstream)
        assert (await box.ask("POST", "/admin/v1/reload"))[0] == 200
        assert (await box.ask("POST", "/v1/responses", body))[0] == 200


async def test_a_gateway_that_stops_and_one_that_crashed(tmp_path: Path, upstream: FakeUpstream) -> None:
    file = write(tmp_path, upstream)
    hung = {"model": "hung", "input": "Hi", "background": True}
    async with running(file) as box:
        _, stopped = await box.ask("POST", "/v1/responses", hung)
        await upstream.sending.acquire()
        await box.app._doors.close(0.05)
    async with running(file) as box:
        status, found = await box.ask("GET", f"/v1/responses/{stopped['id']}")
        assert (status, found["status"], found["error"]["code"]) == (200, "failed", "shutting_down")
        _, lost = await box.ask("POST", "/v1/responses", hung)
        await upstream.sending.acquire()
        # A crash leaves the row as it is: what a start makes of it, whoever was at work.
        await box.app._office.responses.recover()
        status, found = await box.ask("GET", f"/v1/responses/{lost['id']}")
        assert (status, found["status"]) == (200, "failed")
        assert found["error"]["message"]
        assert (await box.ask("POST", f"/v1/responses/{lost['id']}/cancel"))[1]["status"] == "failed"
        upstream.release.set()


async def test_erased(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with running(write(tmp_path, upstream)) as box:
        _, first = await box.ask("POST", "/v1/responses", {"model": "chat", "input": "A canary of mine."})
        status, found = await box.ask("POST", "/admin/v1/erase", {"subject": "fixed:boss"})
        assert (status, found["data"]["responses"], found["data"]["key"]) == (200, 1, True)
        assert (await box.ask("GET", f"/v1/responses/{first['id']}"))[0] == 404
        verified = await box.ask("GET", "/admin/v1/ledger?limit=1")
        assert verified[0] == 200
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            assert b"A canary of mine." not in path.read_bytes(), path


async def test_the_status_tells_what_was_dropped(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with running(write(tmp_path, upstream)) as box:
        _, status = await box.ask("GET", "/admin/v1/status")
        assert status["data"]["records"]["retention"]["responses_dropped"] == 0
