"""The operator's API in this process, on the database itself: for commands, where no gateway runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from appliance import data_dir
from appliance.commands.place import Place
from appliance.door.admin import operations
from appliance.door.operation import perform
from appliance.identity.key_ring import KeyRing
from appliance.identity.principal import Principal
from appliance.records.database import Database
from appliance.records.recorder import Recorder

PATIENCE_S = 5.0
"""How long to wait for another command that writes."""
COMMAND_LINE = Principal(key_id="command-line", key_name="command-line", role="owner")
"""Who acts where no gateway runs, on the ledger too."""


def answered(
    place: Place, method: str, path: str, query: Mapping[str, str | int | None], body: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """The `data` of the answer to a question about people and keys, one thing as a list of one. Raises OutpostError."""
    return asyncio.run(_here(place, method, path, query, body))


async def _here(
    place: Place, method: str, path: str, query: Mapping[str, str | int | None], body: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    given = {name: str(value) for name, value in query.items() if value is not None}
    payload = b"" if body is None else msgspec.json.encode(body)
    async with contextlib.AsyncExitStack() as stack:
        recorder = None
        if method != "GET":
            await stack.enter_async_context(alone(place.data_dir))
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
async def alone(folder: Path) -> AsyncIterator[None]:
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
