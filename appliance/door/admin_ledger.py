"""/admin/v1/ledger: the chain of all records, its newest checkpoint, and whether it is sound."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from appliance.door.endpoint import Query
from appliance.door.operation import LIMIT, MAX_NUMBER, Asked, Operation, number
from appliance.errors import BadRequest
from appliance.records.checkpoints import Checkpointer
from appliance.records.database import Database
from appliance.records.ledger_store import LedgerStore, verify_database
from appliance.records.verify import Record, Report


@dataclass
class LedgerDesk:
    """The collaborators of these operations."""

    database: Database
    checkpointer: Checkpointer
    data_dir: Path
    verifying: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One at a time: each reads the whole ledger."""


class LedgerRecord(msgspec.Struct, frozen=True):
    """A record. kind: "exchange", or what an event is about. body: what was hashed, null where it cannot be read
    (`fault` says why). hash: hexadecimal, null for records from before there was a ledger."""

    seq: int
    kind: str
    body: msgspec.Raw | None
    hash: str | None
    fault: str | None = None


class LedgerCheckpoint(msgspec.Struct, frozen=True):
    """The newest record's hash, signed. note: a C2SP signed note. key: what verifies it."""

    seq: int
    hash: str
    note: str
    key: str


def operations(desk: LedgerDesk) -> tuple[Operation, ...]:
    store = LedgerStore(desk.database)

    async def records(asked: Asked) -> list[LedgerRecord]:
        after = number(asked.query.get("after_seq"), "after_seq", 0, MAX_NUMBER)
        kind = asked.query.get("kind")
        if kind is not None and not (0 < len(kind) <= 64 and kind.isascii() and kind.isprintable()):
            raise BadRequest('kind must be "exchange" or the kind of an event, such as admin.key.create', param="kind")
        if after is None:
            found = await store.tail(asked.limit, kind)
        else:
            found = await store.batch(after, MAX_NUMBER, asked.limit, kind)
        return [shown(record) for record in found]

    async def checkpoint(asked: Asked) -> LedgerCheckpoint:
        made = await desk.checkpointer.make()
        said = made.checkpoint
        return LedgerCheckpoint(said.seq, said.hash.hex(), made.note, desk.checkpointer.public.text)

    async def verify(asked: Asked) -> Report:
        async with desk.verifying:
            return await verify_database(desk.database, desk.data_dir, desk.checkpointer.public)

    path = "/admin/v1/ledger"
    window = (
        Query("after_seq", "Those after this number, oldest first. Left out: the newest.", "integer"),
        Query("kind", 'Only these: "exchange", or the kind of an event.'),
        LIMIT,
    )
    return (
        Operation(
            "GET", path, "ledger.read", records, "Records of the ledger in order.", list[LedgerRecord], query=window
        ),
        Operation(
            "GET",
            f"{path}/checkpoint",
            "ledger.read",
            checkpoint,
            "A signed checkpoint of the newest record; made now if it has none.",
            LedgerCheckpoint,
        ),
        Operation(
            "GET", f"{path}/verify", "ledger.read", verify, "Verify the whole ledger; this reads all of it.", Report
        ),
    )


def shown(record: Record) -> LedgerRecord:
    """A record as the API shows it."""
    body = msgspec.Raw(record.body) if record.fault is None else None
    return LedgerRecord(record.seq, record.kind, body, None if record.hash is None else record.hash.hex(), record.fault)
