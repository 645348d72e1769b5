"""A keeper of stored responses over a database of its own, for tests of it."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.dialects.answer import Frame
from appliance.dialects.asked import Asked
from appliance.dialects.responses import request
from appliance.dialects.responses.answer import ResponsesWhole
from appliance.dialects.tally import Tally
from appliance.identity.principal import Principal
from appliance.records.content import Keeper
from appliance.records.database import Database
from appliance.records.recorder import Recorder
from appliance.responses.keeper import Responses
from appliance.responses.prepared import Prepared
from appliance.responses.store import ResponseStore
from appliance.routing.residency import UNBOUND
from appliance.settings.recording import DAY, Records
from runtimes.engine import Delta, Finished, Usage

NOW = 1_000 * DAY
ANYWHERE = [UNBOUND]
ANN = Principal("key_1", "one", "member", "org_a", team="team_x", user="user_ann")
ANNS_OTHER_KEY = Principal("key_2", "two", "member", "org_a", user="user_ann")
BOB = Principal("key_3", "three", "member", "org_a", user="user_bob")


@dataclasses.dataclass
class Box:
    database: Database
    recorder: Recorder
    responses: Responses
    count: int = 0

    async def begin(self, body: dict[str, Any], who: Principal = ANN) -> Prepared:
        self.count += 1
        asked = request.parse(msgspec.json.encode({"model": "chat", **body}))
        return await self.responses.begin(who, asked, f"{self.count:012d}")

    async def ask(self, body: dict[str, Any] | str, said: str = "Fine.", who: Principal = ANN) -> str:
        """One exchange; gives the response's id."""
        prepared = await self.begin({"input": body} if isinstance(body, str) else body, who)
        await self.responses.admitted(prepared, "chat", ANYWHERE)
        written = await self.responses.finish(prepared, answer(prepared, said))
        if written is not None:
            assert await written
        return prepared.id

    async def get(self, id: str, who: Principal = ANN, include: tuple[str, ...] = ()) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.json.decode(await self.responses.get(who, id, include))
        return found

    async def items(self, id: str, who: Principal = ANN, **query: Any) -> dict[str, Any]:
        wanted = {"after": None, "limit": 20, "order": "asc", **query}
        found: dict[str, Any] = msgspec.json.decode(await self.responses.items(who, id, **wanted))
        return found

    def in_background(self, prepared: Prepared) -> tuple[asyncio.Future[bytes], asyncio.Task[None], asyncio.Event]:
        """An exchange that works on it until it is let go; then it answers."""
        let_go = asyncio.Event()
        told = self.responses.expect(prepared.id.removeprefix("resp_"))

        async def exchange() -> None:
            await self.responses.admitted(prepared, "chat", ANYWHERE)
            await let_go.wait()
            written = await self.responses.finish(prepared, answer(prepared, "Done."))
            assert written is not None
            await written

        return told, asyncio.create_task(exchange()), let_go


def answer(prepared: Prepared, said: str, *, encrypted: str = "") -> dict[str, Any]:
    frame = Frame(prepared.id, prepared.created, "chat", prepared.asked.request, prepared.asked.native)
    whole = ResponsesWhole(frame, Tally(), wall=lambda: NOW)
    if encrypted:
        whole.feed([Delta(0, "", reasoning="Hm.", reasoning_data=encrypted)])
    whole.feed([Delta(0, said), Finished("stop"), Usage(3, 2)])
    whole.body()
    return whole.response()


def said_of(asked: Asked) -> list[tuple[str, Any]]:
    """The conversation as roles and texts."""
    names = {"SystemMessage": "system", "UserMessage": "user", "AssistantMessage": "assistant", "ToolMessage": "tool"}
    return [(names[type(each).__name__], each.content) for each in asked.request.messages]


@asynccontextmanager
async def open_box(folder: Path) -> AsyncIterator[Box]:
    database = await Database.open(folder / "outpost.db")
    recorder = Recorder(database, wall=lambda: NOW)
    await recorder.start()
    keys = Keeper(database, bytes(32), clock=lambda: NOW).keys
    store = ResponseStore(database, recorder, keys, kept_s=DAY, clock=lambda: NOW)
    yield Box(database, recorder, Responses(store, Records(), secrets.token_bytes))
    await recorder.close()
    await database.close()


def refused(error: pytest.ExceptionInfo[Any]) -> tuple[int, str, str | None]:
    return error.value.status, error.value.code, error.value.param
