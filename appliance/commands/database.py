"""The box's database in a command: to read it as it is, or as its one writer for a moment."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from appliance import data_dir
from appliance.commands.place import Place
from appliance.commands.terminal import visible
from appliance.errors import RecordsUnavailable
from appliance.identity.principal import Principal
from appliance.records.database import Database
from appliance.records.failures import damaged
from appliance.records.recorder import Recorder

PATIENCE_S = 5.0
"""How long to wait for another command that writes."""
COMMAND_LINE = Principal(key_id="command-line", key_name="command-line", role="owner")
"""Who acts where no gateway runs, on the ledger too: who may open the box's files may do what an owner may do."""


@contextlib.asynccontextmanager
async def reading(place: Place) -> AsyncIterator[Database]:
    """Nothing is made, migrated or waited for, whoever works in the folder meanwhile. Raises OutpostError."""
    place.must_have_database()
    try:
        database = await Database.open_to_read(place.database)
        try:
            yield database
        finally:
            await database.close()
    except RecordsUnavailable as error:
        if isinstance(place.database, Path) and (named := damaged(error, place.database)):
            raise named from error
        raise


@contextlib.asynccontextmanager
async def writing(place: Place) -> AsyncIterator[tuple[Database, Recorder]]:
    """Opened as a gateway's start does, which may make and migrate it. Raises OutpostError."""
    async with alone(place.data_dir), contextlib.AsyncExitStack() as stack:
        database = await Database.open(place.database)
        stack.push_async_callback(database.close)
        yield database, await stack.enter_async_context(recording(database))


@contextlib.asynccontextmanager
async def recording(database: Database) -> AsyncIterator[Recorder]:
    """To be entered `alone`. Raises RecordsUnavailable."""
    recorder = Recorder(database)
    try:
        await recorder.start()
        yield recorder
    finally:
        await recorder.close()


@contextlib.asynccontextmanager
async def alone(folder: Path) -> AsyncIterator[None]:
    """Keep gateways and other commands out meanwhile: the record has one writer at a time. Raises DataDirInUse,
    DataDirUnusable."""
    with contextlib.suppress(OSError):  # `hold` says so
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    end = time.monotonic() + PATIENCE_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(data_dir.hold(folder))
                break
            except data_dir.DataDirInUse as held:
                if time.monotonic() > end:
                    raise data_dir.DataDirInUse(
                        f"another process ({held.holder}) is at work in {visible(folder)}: a gateway that starts or "
                        "stops, or another command; try again when it has ended",
                        held.holder,
                    ) from None
                await asyncio.sleep(0.05)
        yield
