"""The operator's API in this process, on the database itself: for commands, where no gateway runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from appliance.commands.database import COMMAND_LINE, reading, writing
from appliance.commands.place import Place
from appliance.commands.router_here import ROUTES, operations_here
from appliance.door import admin, admin_limits
from appliance.door.operation import Operation, perform
from appliance.identity.key_ring import KeyRing, placed
from appliance.limits.book import Book
from appliance.limits.clock import Now
from appliance.limits.keeper import LimitKeeper
from appliance.records.database import Database
from appliance.records.recorder import Recorder

LIMITS = "/admin/v1/limits"


def answered(
    place: Place, method: str, path: str, query: Mapping[str, str | int | None], body: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """The `data` of the answer to a question about people, keys, limits and routes, one thing as a list of one. Raises
    OutpostError."""
    return asyncio.run(_here(place, method, path, query, body))


async def _here(
    place: Place, method: str, path: str, query: Mapping[str, str | int | None], body: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    given = {name: str(value) for name, value in query.items() if value is not None}
    payload = b"" if body is None else msgspec.json.encode(body)
    async with contextlib.AsyncExitStack() as stack:
        recorder = None
        if method == "GET" or path.startswith(ROUTES):  # a plan changes nothing
            database = await stack.enter_async_context(reading(place))
        else:
            database, recorder = await stack.enter_async_context(writing(place))
        about = next((about for start, about in _ABOUT.items() if path.startswith(start)), _people_and_keys)
        table = await about(place, database, recorder, stack)
        answer = await perform(table, COMMAND_LINE, method, path, given, payload)
    data = msgspec.json.decode(answer)["data"]
    return data if isinstance(data, list) else [data]


async def _people_and_keys(
    place: Place, database: Database, recorder: Recorder | None, stack: contextlib.AsyncExitStack
) -> Sequence[Operation]:
    # Nobody is identified here, and keys of a lost secret must still be shown and revoked.
    ring = await KeyRing.open(database, place.data_dir, recorder=recorder, strict=False)
    ring.declared = [placed(key, ring.directory) for key in place.declared_keys]
    return admin.operations(ring)


async def _limits(
    place: Place, database: Database, recorder: Recorder | None, stack: contextlib.AsyncExitStack
) -> Sequence[Operation]:
    now = Now(time.time(), time.monotonic())
    # One that was never started is asked for nothing where nothing is written.
    keeper = LimitKeeper(database, recorder or Recorder(database), Book([], now), lambda: now)
    stack.push_async_callback(keeper.close)
    await keeper.load(place.settings)
    return admin_limits.operations(keeper)


async def _routes(
    place: Place, database: Database, recorder: Recorder | None, stack: contextlib.AsyncExitStack
) -> Sequence[Operation]:
    ring = await KeyRing.open(database, place.data_dir, recorder=recorder, strict=False)
    ring.declared = [placed(key, ring.directory) for key in place.declared_keys]
    return operations_here(place, ring.show)


_ABOUT = {LIMITS: _limits, ROUTES: _routes}
"""How paths begin → what answers there, if it is not people and keys."""
