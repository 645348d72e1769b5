"""Reading exchanges back, in the order in which they were written."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Select, select

from appliance.records.database import Database
from appliance.records.rows import COLUMNS, RecordedExchange, unflatten
from appliance.records.tables import exchanges

MAX_LIMIT = 1000
_SELECT = select(*(exchanges.c[name] for name in COLUMNS))


class ExchangeStore:
    """Every method raises RecordsUnavailable when the file cannot be read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def tail(self, limit: int = 20, *, organization: str | None = None) -> Sequence[RecordedExchange]:
        """The newest `limit` rows (at most `MAX_LIMIT`), oldest of them first; `organization`: only its own."""
        newest = _of(organization).order_by(exchanges.c.seq.desc()).limit(_bounded(limit))
        return (await self._fetch(newest))[::-1]

    async def list(
        self, after_seq: int | None = None, limit: int = 100, *, organization: str | None = None
    ) -> Sequence[RecordedExchange]:
        """The next `limit` rows after a sequence number, in order; without one, the same as `tail`."""
        if after_seq is None:
            return await self.tail(limit, organization=organization)
        following = _of(organization).where(exchanges.c.seq > after_seq).order_by(exchanges.c.seq)
        return await self._fetch(following.limit(_bounded(limit)))

    async def find(self, exchange_id: str) -> RecordedExchange | None:
        """The row of an exchange's id, the newest should there be two; None if there is none."""
        if not (exchange_id.isascii() and exchange_id.isprintable()):
            return None
        matching = _SELECT.where(exchanges.c.id == exchange_id).order_by(exchanges.c.seq.desc()).limit(1)
        found = await self._fetch(matching)
        return found[0] if found else None

    async def _fetch(self, query: Select[tuple[object, ...]]) -> Sequence[RecordedExchange]:
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [unflatten(row) for row in rows]


def _of(organization: str | None) -> Select[tuple[object, ...]]:
    return _SELECT if organization is None else _SELECT.where(exchanges.c.organization_id == organization)


def _bounded(limit: int) -> int:
    return min(max(limit, 1), MAX_LIMIT)
