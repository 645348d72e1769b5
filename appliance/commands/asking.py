"""Asking the operator's API: of the gateway if one runs, else the same operations in this process.

Who may open the box's files may do what an owner may do; so may who opens its control socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from appliance import data_dir
from appliance.commands.control import Control, NotRunning
from appliance.commands.place import Place
from appliance.commands.terminal import visible
from appliance.door.admin import operations
from appliance.door.operation import MAX_ROWS, perform
from appliance.errors import NotFound
from appliance.identity.key_ring import KeyRing
from appliance.identity.principal import Principal
from appliance.records.database import Database
from appliance.records.recorder import Recorder

PATIENCE_S = 5.0
"""How long to wait for another command that writes."""
COMMAND_LINE = Principal(key_id="command-line", key_name="command-line", role="owner")
"""Who acts where no gateway runs, on the ledger too."""


class Desk:
    """One box. `running` tells after a question whether a gateway has answered it."""

    def __init__(self, place: Place, *, new: bool = False) -> None:
        self.place = place
        self.running = False
        self._new = new

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int | None] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """The `data` of the answer, one thing as a list of one. `path`: what follows /admin/v1. Raises OutpostError."""
        whole = f"/admin/v1{path}"
        try:
            answer = Control(self.place.control_socket).call(method, whole, query=query, body=body)
        except NotRunning:
            self._must_exist(reading=method == "GET")
            if not self.place.has_database and not self._new:
                return []
            return asyncio.run(_here(self.place, method, whole, query or {}, body))
        self.running = True
        return answer

    def all(self, path: str, **query: str | None) -> list[dict[str, Any]]:
        """Everything of a list, page after page."""
        found: list[dict[str, Any]] = []
        while True:
            after = str(found[-1]["id"]) if found else None
            rows = self.ask("GET", path, query={**query, "after": after, "limit": MAX_ROWS})
            found += rows
            if len(rows) < MAX_ROWS:
                return found

    def _must_exist(self, *, reading: bool) -> None:
        """What is made in a folder that no gateway has used is known to no gateway. Raises NotFound."""
        if self._new or reading or self.place.has_database:
            return
        raise NotFound(
            f"there is no gateway's data in {visible(self.place.data_dir.absolute())}: go to the folder in which the "
            "gateway is started, or name its data with --data-dir FOLDER or its settings with --config FILE"
        )

    @property
    def where(self) -> str:
        """The data folder, and whether a change reaches anybody before the next start."""
        running = "a" if self.running else "no"
        return f"{visible(self.place.data_dir.absolute())}, where {running} gateway is running"


def escaped(id_or_name: str) -> str:
    """An id or a name as one piece of a path."""
    return quote(id_or_name, safe="")


async def _here(
    place: Place, method: str, path: str, query: Mapping[str, str | int | None], body: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    given = {name: str(value) for name, value in query.items() if value is not None}
    payload = b"" if body is None else msgspec.json.encode(body)
    async with contextlib.AsyncExitStack() as stack:
        recorder = None
        if method != "GET":
            await stack.enter_async_context(_alone(place.data_dir))
        database = await Database.open(place.database)
        stack.push_async_callback(database.close)
        if method != "GET":
            recorder = Recorder(database)
            stack.push_async_callback(recorder.close)
            await recorder.start()
        # Nobody is identified here, and keys of a lost secret must still be shown and revoked.
        ring = await KeyRing.open(database, place.data_dir, recorder=recorder, strict=False)
        ring.declared = place.declared
        answer = await perform(operations(ring), COMMAND_LINE, method, path, given, payload)
    data = msgspec.json.decode(answer)["data"]
    return data if isinstance(data, list) else [data]


@contextlib.asynccontextmanager
async def _alone(folder: Path) -> AsyncIterator[None]:
    """Keep gateways and other commands out meanwhile: the record has one writer at a time. Raises DataDirInUse."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    end = time.monotonic() + PATIENCE_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(data_dir.hold(folder))
                break
            except data_dir.DataDirInUse:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.05)
        yield
