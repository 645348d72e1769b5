"""Stored responses for tests that have no database of their own."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.dialects.asked import Asked
from appliance.errors import NotFound, OutpostError
from appliance.identity.principal import Principal
from appliance.records.content import Keeper
from appliance.records.database import Database
from appliance.records.recorder import Recorder
from appliance.responses.keeper import Order, Responses
from appliance.responses.prepared import Prepared
from appliance.responses.store import ResponseStore, owner_of
from appliance.routing.residency import Residency
from appliance.settings.recording import DAY, Records


class NoResponses:
    """Stores nothing, as a gateway with `records.store_responses: false` does."""

    async def begin(self, principal: Principal, asked: Asked, row_id: str) -> Prepared:
        return Prepared(f"resp_{row_id}", owner_of(principal), asked, 0)

    async def admitted(self, prepared: Prepared, route: str, within: Sequence[Residency]) -> None:
        pass

    async def finish(
        self, prepared: Prepared, response: Mapping[str, Any] | None, error: OutpostError | None = None
    ) -> asyncio.Future[bool] | None:
        return None

    def expect(self, row_id: str) -> asyncio.Future[bytes]:
        return asyncio.get_running_loop().create_future()

    def forget(self, row_id: str) -> None:
        pass

    async def get(self, principal: Principal, id: str, include: Sequence[str] = ()) -> bytes:
        raise NotFound("There is none.")

    async def items(
        self, principal: Principal, id: str, *, after: str | None, limit: int, order: Order, include: Sequence[str] = ()
    ) -> bytes:
        raise NotFound("There is none.")

    async def delete(self, principal: Principal, id: str) -> bytes:
        raise NotFound("There is none.")

    async def cancel(self, principal: Principal, id: str) -> bytes:
        raise NotFound("There is none.")


@dataclass
class Stored:
    """The real thing over a file. `recorder.close()` makes it fail."""

    responses: Responses
    recorder: Recorder
    database: Database

    def again(self) -> Responses:
        """The same file in a new process."""
        return _over(self.database, self.recorder)


@asynccontextmanager
async def open_responses(folder: Path) -> AsyncIterator[Stored]:
    database = await Database.open(folder / "responses.db")
    recorder = Recorder(database)
    await recorder.start()
    try:
        yield Stored(_over(database, recorder), recorder, database)
    finally:
        await recorder.close()
        await database.close()


def _over(database: Database, recorder: Recorder) -> Responses:
    store = ResponseStore(database, recorder, Keeper(database, bytes(32)).keys, kept_s=DAY)
    return Responses(store, Records(), secrets.token_bytes)
