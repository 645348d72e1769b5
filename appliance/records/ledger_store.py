"""Reading the ledger: records with what was hashed of them, checkpoints, anchors – and verifying all of it.

Bodies of exchanges are made again from their columns. Whatever a column may hold after somebody has been at it, reading
must go on: it becomes a fault of that one record.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import LargeBinary, String, cast, func, select, type_coerce
from sqlalchemy.types import NullType

from appliance.records.chain import exchange_body
from appliance.records.checkpoint_file import CheckpointFile
from appliance.records.database import Database
from appliance.records.notes import PublicKey, claimed_seq
from appliance.records.rows import COLUMNS, flatten, unflatten
from appliance.records.tables import anchors, checkpoints, events, exchanges
from appliance.records.verify import DATABASE, ELSEWHERE, EXCHANGE, FILE, Anchor, Record, Report, Verifier

__all__ = ["BATCH", "EXCHANGE", "LedgerStore", "event_record", "exchange_record", "verify_database"]

BATCH = 200
"""Records that are looked at before others get a turn."""
_TRIES = 3
_STREAM = COLUMNS.index("stream")


class _Own(msgspec.Struct):
    """What the body of an event says itself of its columns."""

    at_us: int
    kind: str
    seq: int
    type: str


_own = msgspec.json.Decoder(_Own)


class LedgerStore:
    """Every method may raise RecordsUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sqlite = database.engine.dialect.name == "sqlite"
        self._exchanges = select(*(self._bare(exchanges.c[name]) for name in (*COLUMNS, "hash")))
        self._events = select(*(self._bare(events.c[name]) for name in ("seq", "kind", "at_us", "body", "hash")))

    async def batch(self, after: int, through: int, limit: int = BATCH, kind: str | None = None) -> list[Record]:
        """The next records after a number up to another, at most `limit`. kind: only those ("exchange": exchanges)."""
        found: list[Record] = []
        async with self._database.read() as connection:
            for table, query, make in (
                (exchanges, self._exchanges, exchange_record),
                (events, self._events, event_record),
            ):
                if kind is not None and (kind == EXCHANGE) is not (table is exchanges):
                    continue
                if kind is not None and table is events:
                    query = query.where(events.c.kind == kind)
                query = query.where(table.c.seq > after, table.c.seq <= through).order_by(table.c.seq).limit(limit)
                found += [make(tuple(row)) for row in (await connection.execute(query)).all()]
        return sorted(found, key=lambda record: record.seq)[:limit]

    async def tail(self, limit: int, kind: str | None = None) -> list[Record]:
        """The newest records, oldest of them first."""
        last = await self.newest()
        tables = [exchanges] if kind == EXCHANGE else [events] if kind else [exchanges, events]
        first: list[int] = []
        async with self._database.read() as connection:
            for table in tables:
                query = select(table.c.seq).where(table.c.seq <= last)
                if kind is not None and table is events:
                    query = query.where(events.c.kind == kind)
                first += (await connection.execute(query.order_by(table.c.seq.desc()).limit(limit))).scalars().all()
        first = sorted(first)[-limit:]
        return await self.batch(first[0] - 1, last, limit, kind) if first else []

    async def strays(self) -> list[int]:
        """Numbers below 1, which were never given: some of them, the lowest first."""
        found: list[int] = []
        async with self._database.read() as connection:
            for table in (exchanges, events):
                query = select(table.c.seq).where(table.c.seq < 1).order_by(table.c.seq).limit(BATCH)
                found += (await connection.execute(query)).scalars().all()
        return sorted(found)[:BATCH]

    async def newest(self) -> int:
        """The number of the newest record, 0 for none."""
        async with self._database.read() as connection:
            found = [await connection.scalar(select(func.max(table.c.seq))) for table in (exchanges, events)]
        return max(int(seq or 0) for seq in found)

    async def given(self) -> int:
        """The highest number that the database remembers to have given, 0 where it does not remember any."""
        if not self._sqlite:
            return 0
        async with self._database.read() as connection:
            rows = await connection.exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name = 'exchanges'")
            return int(rows.scalar() or 0)

    async def anchor(self) -> Anchor | None:
        """Where the chain begins."""
        query = select(anchors.c.seq, anchors.c.hash, anchors.c.reason).order_by(anchors.c.seq.desc()).limit(1)
        async with self._database.read() as connection:
            found = (await connection.execute(query)).first()
        return None if found is None else Anchor(int(found.seq), bytes(found.hash), str(found.reason))

    async def notes(self, after: int, through: int) -> list[tuple[int | None, str]]:
        """The database's checkpoints of records after a number up to another, with their numbers."""
        query = select(checkpoints.c.seq, checkpoints.c.note).order_by(checkpoints.c.seq)
        query = query.where(checkpoints.c.seq > after, checkpoints.c.seq <= through)
        async with self._database.read() as connection:
            return [(int(row.seq), str(row.note)) for row in (await connection.execute(query)).all()]

    async def noted(self) -> int:
        """The newest record that the database has a checkpoint of, 0 for none."""
        async with self._database.read() as connection:
            return int(await connection.scalar(select(func.max(checkpoints.c.seq))) or 0)

    async def read(self, after: int, through: int) -> AsyncIterator[Sequence[Record]]:
        """All records after a number up to another, in batches."""
        while after < through and (records := await self.batch(after, through)):
            yield records
            after = records[-1].seq

    def _bare(self, column: Any) -> Any:
        """A column as it is stored, not as its type would have it."""
        if self._sqlite and isinstance(column.type, String):
            # A text that is no longer UTF-8 would fail the whole query.
            return cast(column, LargeBinary)
        return type_coerce(column, NullType())


def exchange_record(row: Sequence[Any]) -> Record:
    """The record of a row of `exchanges`: the columns, and the hash."""
    seq, digest = int(row[0]), _bytes(row[-1])
    try:
        values = tuple(_text(value) for value in row[:-1])
        body = exchange_body(values)
        # A row has one form only. Another one that comes to the same body is not what was written, either.
        again = flatten(seq, unflatten(values))
        # Of records from before there was a ledger nothing says what that was: times were not whole microseconds yet.
        same = digest is None or all(
            a == b and (type(a) is type(b) or i == _STREAM) for i, (a, b) in enumerate(zip(values, again, strict=True))
        )
    except (ValueError, TypeError, OverflowError, msgspec.MsgspecError):
        return Record(seq, EXCHANGE, b"", digest, "its columns hold what no exchange has")
    return Record(seq, EXCHANGE, body, digest, None if same else "its columns are not in the form that was written")


def event_record(row: Sequence[Any]) -> Record:
    """The record of a row of `events`: seq, kind, at_us, body, hash."""
    seq, digest = int(row[0]), _bytes(row[4])
    kind = "?"
    try:
        kind, text = str(_text(row[1])), str(_text(row[3]))
        own = _own.decode(text)
    except (ValueError, TypeError, msgspec.MsgspecError):
        return Record(seq, kind, b"", digest, "its body is not that of an event")
    if (own.seq, own.kind, own.at_us, own.type) != (seq, kind, row[2], "event"):
        return Record(seq, kind, text.encode(), digest, "its columns say something else than its body")
    return Record(seq, kind, text.encode(), digest)


def _bytes(value: Any) -> bytes | None:
    return value.encode() if isinstance(value, str) else None if value is None else bytes(value)


def _text(value: Any) -> Any:
    return bytes(value).decode() if isinstance(value, (bytes, memoryview)) else value


# --- verifying ---


async def verify_database(
    database: Database, data_dir: Path, key: PublicKey, *, elsewhere: Sequence[str] = ()
) -> Report:
    """Verify the ledger up to now, in bounded memory, beside a running gateway or without one.

    elsewhere: checkpoints that somebody kept outside this box. Raises RecordsUnavailable, OSError.
    """
    store = LedgerStore(database)
    for _ in range(_TRIES):
        anchor = await store.anchor()
        report = await _verify_once(store, anchor, CheckpointFile(data_dir), key, elsewhere)
        if report.ok or await store.anchor() == anchor:
            break
        # Retention has cut the beginning off meanwhile.
    return report


async def _verify_once(
    store: LedgerStore, anchor: Anchor | None, file: CheckpointFile, key: PublicKey, elsewhere: Sequence[str]
) -> Report:
    # Checkpoints first: what they name by now is on record by then, also beside a gateway that goes on.
    noted = await store.noted()
    in_file = _Peekable(file.notes(await asyncio.to_thread(lambda: file.size)))
    given_notes = _Peekable(iter(sorted(((claimed_seq(note), note) for note in elsewhere), key=lambda n: n[0] or 0)))
    given = await store.given()
    through = max(await store.newest(), given)
    verifier = Verifier(anchor, key)
    for stray in await store.strays():
        verifier.record(Record(stray, "?", b"", None))
    after = 0
    async for records in store.read(0, through):
        last = records[-1].seq
        for seq, note in await store.notes(after or -1, last):
            verifier.checkpoint(DATABASE, seq, note)
        for source, notes in ((FILE, in_file), (ELSEWHERE, given_notes)):
            for seq, note in await asyncio.to_thread(notes.take, last):
                verifier.checkpoint(source, seq, note)
        for record in records:
            verifier.record(record)
        after = last
        await asyncio.sleep(0)
    for seq, note in await store.notes(after or -1, noted):
        verifier.checkpoint(DATABASE, seq, note)
    for source, notes in ((FILE, in_file), (ELSEWHERE, given_notes)):
        for seq, note in await asyncio.to_thread(notes.take, None):
            verifier.checkpoint(source, seq, note)
    return verifier.end(given)


class _Peekable:
    """Notes in order, taken up to a number."""

    def __init__(self, notes: Iterator[tuple[int | None, str]]) -> None:
        self._notes = notes
        self._next: list[tuple[int | None, str]] = []

    def take(self, through: int | None) -> list[tuple[int | None, str]]:
        """Those of records up to `through`, None for all that are left."""
        taken: list[tuple[int | None, str]] = []
        for seq, note in itertools.chain(self._next, self._notes):
            if through is not None and seq is not None and seq > through:
                self._next = [(seq, note)]
                return taken
            taken.append((seq, note))
        self._next = []
        return taken
