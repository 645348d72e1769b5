"""The operator's door over a real directory: database, recorder, ring, listener, and a key for every role."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from appliance.door.admin import Operator
from appliance.door.door import Door
from appliance.door.listen import Listener
from appliance.door.serve import build_operator
from appliance.door.terms import Terms
from appliance.identity.authenticator import Authenticator
from appliance.identity.key_ring import KeyRing
from appliance.identity.key_store import NewKey
from appliance.identity.people_work import ORGANIZATION
from appliance.identity.permissions import Role
from appliance.identity.principal import Principal
from tests.fakes.house import House, open_house
from tests.identity.conftest import OWNER, Box, open_box

ROLES: tuple[Role, ...] = get_args(Role)


@dataclass
class Desk:
    """keys: role → the text of a key of the organisation that runs the box; theirs: of another, `acme`."""

    house: House
    box: Box
    operator: Operator
    door: Door
    url: str
    keys: dict[str, str]
    theirs: dict[str, str]
    acme: str

    @property
    def ring(self) -> KeyRing:
        return self.box.ring

    async def ask(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, **headers: str
    ) -> tuple[int, Any]:
        """Status and decoded body; with an owner's key unless another is given."""
        headers = {"Authorization": f"Bearer {key or self.keys['owner']}", **headers}
        data = None if body is None else json.dumps(body).encode()
        async with self.house.session.request(
            method, f"{self.url}/admin/v1{path}", data=data, headers=headers
        ) as response:
            found = await response.json(content_type=None)
            if response.status >= 400:
                assert response.content_type == "application/problem+json"
                assert found["status"] == response.status
                assert found["detail"]
            return response.status, found

    async def made(self, path: str, body: Any, *, key: str | None = None) -> Any:
        """The `data` of a POST that succeeds."""
        status, found = await self.ask("POST", path, body, key=key)
        assert status == 201, found
        return found["data"]

    async def credential(self, name: str, role: Role, **fields: Any) -> str:
        """A key that the box itself makes."""
        return (await self.ring.create(OWNER, NewKey(name, role, **fields)))[1]


@asynccontextmanager
async def open_desk(folder: Path) -> AsyncIterator[Desk]:
    async with open_box(folder) as box, open_house(folder) as house:
        acme = await box.directory.create(OWNER, ORGANIZATION, {"name": "acme"})
        keys, theirs = {}, {}
        for role in ROLES:
            keys[role] = (await box.key(f"box-{role}", role))[1]
            theirs[role] = (await box.key(f"acme-{role}", role, organization=acme.id))[1]
        house.gateway.authenticator = Authenticator(box.ring, box.directory, clock=time.time)
        operator = Operator(house.gateway, box.ring, house.recorder, lambda: {"replicas": []}, _reload)
        terms = Terms()
        door = build_operator(operator, terms)
        listener = Listener(door, terms)
        port = await listener.tcp("127.0.0.1", 0)
        try:
            yield Desk(house, box, operator, door, f"http://127.0.0.1:{port}", keys, theirs, acme.id)
        finally:
            await listener.close(0.2)


async def _reload(actor: Principal) -> dict[str, Any]:
    return {"changed": [], "applied": [], "needs_restart": []}
