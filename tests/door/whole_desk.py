"""The appliance as it runs, with all of its endpoints, less models: and a key for every role in two organisations."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import yaml

from appliance.app import App
from appliance.door.endpoint import Endpoint
from appliance.identity.key_store import NewKey
from appliance.identity.people_work import ORGANIZATION
from appliance.identity.permissions import Role
from appliance.identity.principal import Principal
from appliance.settings import load
from tests.door.desk import ROLES

OWNER = Principal("key_root", "root", "owner")


class Text(NamedTuple):
    """An answer that is no JSON."""

    text: str
    media: str


@dataclass
class Whole:
    """keys: role → the text of a key of the organisation that runs the box; theirs: of another, `acme`."""

    app: App
    session: aiohttp.ClientSession
    acme: str
    keys: dict[Role, str] = field(default_factory=dict)
    theirs: dict[Role, str] = field(default_factory=dict)

    @property
    def operators(self) -> tuple[Endpoint, ...]:
        """Every endpoint of the operator's listener."""
        return self.app._doors._console.door.endpoints

    @property
    def public(self) -> tuple[Endpoint, ...]:
        return self.app._doors._public.door.endpoints

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        public: bool = False,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Status and body (decoded where it is JSON); with an owner's key unless another is given. key "": none."""
        key = self.keys["owner"] if key is None else key
        port = self.app.public_port if public else self.app.operator_port
        sent = {**({"Authorization": f"Bearer {key}"} if key else {}), **(headers or {})}
        data = None if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{port}{path}"
        async with self.session.request(method, url, data=data, headers=sent, allow_redirects=False) as response:
            text = await response.read()
            if response.status == 401:
                assert response.headers["WWW-Authenticate"] == "Bearer"
            if response.status >= 400 and not public and "json" in response.content_type:
                assert response.content_type == "application/problem+json"
            is_json = response.content_type in ("application/json", "application/problem+json")
            return response.status, json.loads(text) if is_json else Text(text.decode(), response.content_type)

    async def made(self, path: str, body: Any, *, key: str | None = None) -> Any:
        """The `data` of a POST that succeeds."""
        status, found = await self.ask("POST", f"/admin/v1{path}", body, key=key)
        assert status == 201, found
        return found["data"]


@asynccontextmanager
async def open_whole(folder: Path) -> AsyncIterator[Whole]:
    lab = {"name": "lab", "kind": "openai", "base_url": "http://127.0.0.1:1/v1", "zone": "on_box"}
    settings = {
        "server": {"listen": "127.0.0.1:0"},
        "console": {"listen": "127.0.0.1:0"},
        "data_dir": str(folder / "data"),
        "log": {"access": False},
        "deployments": [],
        "providers": [lab],
        "routes": [{"model": "far", "retries": 0, "targets": [{"provider": "lab", "model": "x"}]}],
    }
    path = folder / "outpost.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    app = App(load(path, {}), {})
    await app.start()
    try:
        ring = app._office.ring
        acme = await ring.directory.create(OWNER, ORGANIZATION, {"name": "acme"})
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            whole = Whole(app, session, acme.id)
            for role in ROLES:
                whole.keys[role] = (await ring.create(OWNER, NewKey(f"box-{role}", role)))[1]
                whole.theirs[role] = (await ring.create(OWNER, NewKey(f"acme-{role}", role, organization=acme.id)))[1]
            yield whole
    finally:
        await app.stop()
