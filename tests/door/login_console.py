"""An operator's listener with browser login, and what a browser does with it."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from html import unescape
from typing import Any

import aiohttp
import httpx
from aiohttp import web

from appliance.door.door import Door
from appliance.door.endpoint import Endpoint, Visit
from appliance.door.listen import Listener
from appliance.door.login import CSRF_HEADER, Login
from appliance.door.render import problem, respond
from appliance.door.terms import Terms
from appliance.door.who import who_asks
from appliance.errors import RecordsUnavailable
from appliance.identity.authenticator import Authenticator
from appliance.identity.oidc import Provider, build_providers
from appliance.identity.principal import Principal
from appliance.identity.sessions import Logins, Sessions
from appliance.providers.http import make_session
from appliance.settings import from_mapping
from tests.fakes.issuer import FakePeople

KEY = Principal("key_1", "one", "admin")
LIFE = {"name": "corp", "audience": "outpost", "claims": {"role": "groups"}, "roles": {"admins": "admin"}}


class Keys:
    def identify(self, presented: str, address: str | None = None) -> Principal | None:
        return KEY if presented == "op-key" else None


class Clock:
    def __init__(self) -> None:
        self.ahead = 0.0

    def wall(self) -> float:
        return time.time() + self.ahead

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


class Console:
    """An operator's listener with logins, and two endpoints of its own to try them on."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.clock = Clock()
        self.people = FakePeople()
        numbers = itertools.count(1)
        random = lambda size: next(numbers).to_bytes(size, "big")  # noqa: E731
        self.sessions = Sessions(self.clock.monotonic, random)
        self.noted: list[tuple[str, dict[str, Any]]] = []
        self.refused: list[tuple[str, str, str]] = []
        self.recording = True
        self.login = Login(
            self.people,
            self.sessions,
            Logins(self.clock.monotonic, random),
            clock=self.clock.wall,
            note=self.note,
            refused=lambda *refusal: self.refused.append(refusal),
        )
        self.who = Authenticator(Keys(), self.people, clock=self.clock.wall)
        self.terms = Terms()
        self.port = 0

    async def note(self, kind: str, body: dict[str, Any]) -> None:
        if not self.recording:
            raise RecordsUnavailable("The disk is full.", retry_after_s=1.0)
        self.noted.append((kind, body))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def use(self, *entries: Mapping[str, Any], before: tuple[Provider, ...] = ()) -> tuple[Provider, ...]:
        """Go by these issuers from now on."""
        env = {"SECRET": "a+b c/%"}
        identity = from_mapping({"identity": {"oidc": list(entries)}}).identity
        providers = build_providers(identity, env, self.session, self.clock.monotonic, before=before)
        self.who.change(providers, ())
        self.login.change(providers)
        return providers

    def entry(self, issuer: str, **changes: Any) -> dict[str, Any]:
        login = {"client_id": "console", "redirect_base": self.url, **changes.pop("login", {})}
        return {**LIFE, "issuer": issuer, "login": login, **changes}

    def endpoints(self) -> tuple[Endpoint, ...]:
        async def show(visit: Visit) -> web.StreamResponse:
            principal = await who_asks(self.who, self.login, visit.request)
            return respond(principal.key_name.encode(), visit.id)

        return (
            *self.login.endpoints(),
            Endpoint("GET", "/thing", "status.read", show, identifies=True),
            Endpoint("POST", "/thing", "status.read", show, identifies=True),
        )


@asynccontextmanager
async def open_console() -> AsyncIterator[Console]:
    async with make_session() as session:
        made = Console(session)
        door = Door(
            made.endpoints(),
            authenticator=Authenticator(Keys(), None, clock=time.time),  # type: ignore[arg-type]  # nobody signs in
            render=problem,
            clock=made.clock,
            new_id=lambda: "id1",
            terms=made.terms,
        )
        listener = Listener(door, made.terms)
        made.port = await listener.tcp("127.0.0.1", 0)
        try:
            yield made
        finally:
            listener.stop_accepting()
            await listener.close(0.1)


def refreshed_to(page: httpx.Response) -> str:
    found = re.search(r'<meta http-equiv="refresh" content="0;url=([^"]*)">', page.text)
    assert found is not None, page.text
    return unescape(found[1])


async def log_in(console: Console, browser: httpx.AsyncClient, path: str = "/login") -> httpx.Response:
    """The page that a login with the fake issuer ends on."""
    return await browser.get(console.url + path, follow_redirects=True)


async def change(console: Console, browser: httpx.AsyncClient, **headers: str | None) -> httpx.Response:
    csrf = (await browser.get(console.url + "/admin/v1/session")).json()["data"]["csrf"]
    sent = {CSRF_HEADER: csrf, "Origin": console.url, **{k.replace("_", "-"): v for k, v in headers.items()}}
    return await browser.post(
        console.url + "/thing", headers={name: value for name, value in sent.items() if value is not None}
    )
