"""Records in the order of their numbers, exchanges and events merged, a bounded number at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from sqlalchemy import func, select

from appliance.records.database import Database
from appliance.records.rows import COLUMNS, RecordedExchange, unflatten
from appliance.records.tables import events, exchanges

BATCH = 200
"""Records that are written out before others get a turn."""
_LAST = 253402300799.0
"""The last second that has a date."""
_MOST_SHOWN = 200


class RecordedEvent(msgspec.Struct, frozen=True):
    """Anything on the ledger that is no exchange. at: unix seconds. body: without seq, kind, time and type."""

    seq: int
    kind: str
    at: float
    body: dict[str, Any]


Record = RecordedExchange | RecordedEvent


class Window(msgspec.Struct, frozen=True):
    """Which records. after: a number that they follow. since, until: unix seconds, the latter excluded.
    organization: only those of one organisation."""

    after: int = 0
    since: float | None = None
    until: float | None = None
    organization: str | None = None

    @property
    def said(self) -> dict[str, int | str]:
        """As the ledger keeps it: whole microseconds, and nothing that was not asked for."""
        said: dict[str, int | str] = {"after": self.after}
        for name, moment in (("since_us", self.since), ("until_us", self.until)):
            if moment is not None:
                said[name] = round(moment * 1e6)
        return said if self.organization is None else {**said, "organization": self.organization}


def time_of(record: Record) -> float:
    """Unix seconds."""
    return record.started_at if isinstance(record, RecordedExchange) else record.at


def organization_of(record: Record) -> str | None:
    """Whose it is: that of the exchange, or of who made a change."""
    if isinstance(record, RecordedExchange):
        return record.organization_id
    actor = record.body.get("actor")
    found = record.body.get("organization", actor.get("organization") if isinstance(actor, dict) else None)
    return found if isinstance(found, str) else None


def within(record: Record, window: Window) -> bool:
    """Whether a record is of the window, its number apart."""
    moment = time_of(record)
    return (
        (window.since is None or moment >= window.since)
        and (window.until is None or moment < window.until)
        and (window.organization is None or organization_of(record) == window.organization)
    )


def exchange_of(values: Sequence[Any]) -> Record:
    """A row of `exchanges`, in the order of `COLUMNS`. One that somebody has damaged becomes an event that shows it:
    verifying the ledger names it, and an export goes on."""
    try:
        row = msgspec.convert(msgspec.structs.asdict(unflatten(values)), RecordedExchange)
        if 0.0 <= row.started_at <= _LAST:
            return row
    except (ValueError, TypeError, OverflowError, msgspec.MsgspecError):
        pass
    shown = {name: str(value)[:_MOST_SHOWN] for name, value in zip(COLUMNS, values, strict=True) if value is not None}
    return RecordedEvent(values[0], "exchange", 0.0, {"unreadable": shown})


def event_of(seq: int, kind: str, at_us: Any, text: str) -> RecordedEvent:
    """A row of `events`; as with `exchange_of`, what somebody has damaged is shown as it is."""
    try:
        body = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError:
        body = {"unreadable": text}
    at = at_us / 1e6 if isinstance(at_us, int) and 0 <= at_us <= _LAST * 1e6 else 0.0
    own = ("seq", "kind", "at_us", "type")
    return RecordedEvent(seq, kind, at, {name: value for name, value in body.items() if name not in own})


class Source:
    """Reads records. Every method may raise RecordsUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def batch(self, after: int, limit: int = BATCH) -> Sequence[Record]:
        """The next records after a number, at most `limit`."""
        row = select(*(exchanges.c[name] for name in COLUMNS)).where(exchanges.c.seq > after)
        event = select(events.c.seq, events.c.kind, events.c.at_us, events.c.body).where(events.c.seq > after)
        async with self._database.read() as connection:
            rows = (await connection.execute(row.order_by(exchanges.c.seq).limit(limit))).all()
            others = (await connection.execute(event.order_by(events.c.seq).limit(limit))).all()
        records: list[Record] = [exchange_of(each) for each in rows]
        records += [event_of(each.seq, each.kind, each.at_us, each.body) for each in others]
        return sorted(records, key=lambda record: record.seq)[:limit]

    async def read(self, window: Window) -> AsyncIterator[Sequence[Record]]:
        """The window's records up to now, in batches; what is written meanwhile is left to the next reader."""
        last, after = await self.newest(), window.after
        while after < last:
            records = [record for record in await self.batch(after) if record.seq <= last]
            if not records:
                return
            after = records[-1].seq
            chosen = [record for record in records if within(record, window)]
            if chosen:
                yield chosen

    async def newest(self) -> int:
        """The number of the newest record, 0 for none."""
        async with self._database.read() as connection:
            found = [await connection.scalar(select(func.max(table.c.seq))) for table in (exchanges, events)]
        return max(int(each or 0) for each in found)
