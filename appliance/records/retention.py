"""What is dropped when: texts and stored responses before records, records in the order of the chain, and none before
its time.

`what_to_drop` decides one small step at a time, from plain data; `Retention` measures, does the step in a transaction
of its own through the recorder, and asks again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, Protocol

import msgspec
from sqlalchemy import Connection, delete, func, insert, select, tuple_

from appliance.errors import OutpostError
from appliance.records.database import Database
from appliance.records.disk import Usage, measure
from appliance.records.tables import anchors, checkpoints, contents, counters, events, exchanges, responses
from appliance.records.transaction import Transaction
from appliance.records.verify import DROPPED
from appliance.settings.recording import Records

logger = logging.getLogger("outpost.retention")

HIGH, LOW = 0.9, 0.8
"""Parts of the quota: dropping begins above the one and ends below the other."""
RESERVE = 256 << 20
"""Bytes that the disk must have left; with less, the database is treated as too large."""
_BATCH = 500
"""Rows of one step, so that no exchange waits long behind one."""
EXPORT = "export:"
"""Before the name of an exporter: the counter of the last record that it has delivered."""


# --- the decision: pure -----------------------------------------------------------------------------


class Oldest(msgspec.Struct, frozen=True):
    """When the oldest content was kept, the oldest record was made and the oldest response was stored (unix seconds);
    None: there is none."""

    content: float | None
    record: float | None
    response: float | None = None


class Rules(msgspec.Struct, frozen=True):
    """Seconds and bytes, as the settings have them."""

    metadata: float
    content: float
    minimum: float
    max_disk: int
    responses: float = 30 * 86400.0


class Drop(msgspec.Struct, frozen=True):
    """One step: the oldest of a class, as far as they are from before a moment (unix seconds)."""

    what: Literal["content", "responses", "metadata"]
    before: float
    why: Literal["age", "quota"]


class Stuck(msgspec.Struct, frozen=True):
    """The quota cannot be kept: all that is left is too young to be dropped, or waits for an export."""

    reason: Literal["minimum", "export"]
    over: int
    """Bytes above the mark."""


def rules_of(records: Records) -> Rules:
    kept = records.retention
    return Rules(kept.metadata, kept.content, kept.minimum, records.max_disk, kept.responses)


def quota(rules: Rules, usage: Usage) -> int:
    """Bytes that the database may have in use: the setting's, or less on a disk that is nearly full."""
    if usage.free is None:
        return rules.max_disk
    return min(rules.max_disk, max(0, usage.live + usage.free - RESERVE))


def what_to_drop(
    now: float, usage: Usage, oldest: Oldest, rules: Rules, *, relieving: bool = False, held: bool = False
) -> Drop | Stuck | None:
    """The next step, or None if there is nothing to do.

    relieving: dropping for the quota has begun and goes on to the low mark. held: the oldest record may not go yet,
    since an export has not had it.
    """
    if oldest.content is not None and oldest.content < now - rules.content:
        return Drop("content", now - rules.content, "age")
    if oldest.response is not None and oldest.response < now - rules.responses:
        return Drop("responses", now - rules.responses, "age")
    if oldest.record is not None and not held and oldest.record < now - max(rules.metadata, rules.minimum):
        return Drop("metadata", now - max(rules.metadata, rules.minimum), "age")
    most = quota(rules, usage)
    mark = most * (LOW if relieving else HIGH)
    if usage.live <= mark:
        return None
    if oldest.response is not None and (oldest.content is None or oldest.response < oldest.content):
        return Drop("responses", now + 1, "quota")
    if oldest.content is not None:
        return Drop("content", now + 1, "quota")
    young = oldest.record is None or oldest.record >= now - rules.minimum
    if not young and not held:
        return Drop("metadata", now - rules.minimum, "quota")
    # At the mark nothing is wrong yet; beyond the quota itself somebody has to know.
    over = usage.live - most
    return Stuck("minimum" if young else "export", over) if over > 0 else None


# --- doing it: works for the writer's transaction ---------------------------------------------------------


class Dropped(msgspec.Struct, frozen=True):
    """What a step has done. rows: contents or records. through: the ledger's new beginning, for its records."""

    rows: int
    through: int | None = None


def drop_content(before: float, limit: int = _BATCH) -> Callable[[Transaction], Dropped]:
    """Delete the oldest contents from before a moment, at most `limit` parts. The event that says so is of the same
    transaction, so that no text goes untold."""

    def work(transaction: Transaction) -> Dropped:
        connection = transaction.connection
        _overwrite(connection)
        oldest = (
            select(contents.c.exchange_id, contents.c.part)
            .where(contents.c.created_at < before)
            .order_by(contents.c.created_at)
            .limit(limit)
        )
        found = connection.execute(oldest).all()
        if not found:
            return Dropped(0)
        same = tuple_(contents.c.exchange_id, contents.c.part).in_([tuple(row) for row in found])
        rows = connection.execute(delete(contents).where(same)).rowcount
        transaction.append(DROPPED, {"contents": rows})
        return Dropped(rows)

    return work


def drop_responses(before: float, limit: int = _BATCH) -> Callable[[Transaction], Dropped]:
    """Delete the oldest stored responses from before a moment, and say so; as `drop_content`."""

    def work(transaction: Transaction) -> Dropped:
        connection = transaction.connection
        _overwrite(connection)
        query = select(responses.c.id).where(responses.c.created_at < before)
        found = list(connection.scalars(query.order_by(responses.c.created_at).limit(limit)))
        if not found:
            return Dropped(0)
        rows = connection.execute(delete(responses).where(responses.c.id.in_(found))).rowcount
        transaction.append(DROPPED, {"responses": rows})
        return Dropped(rows)

    return work


def drop_metadata(before: float, through: int | None, limit: int = 2 * _BATCH) -> Callable[[Transaction], Dropped]:
    """Cut the beginning off the ledger: records that are all from before a moment, up to a signed checkpoint that
    then vouches for the new beginning. Records from before there was a ledger go first.
    through: the last number that may go, None for any.

    The event that says so is of the same transaction: a beginning that no event behind it speaks of was not made by
    retention, and verifying the ledger says so. It stands at the end, so no cut takes it before the next one is said.
    """

    def work(transaction: Transaction) -> Dropped:
        connection = transaction.connection
        if rows := _drop_unchained(connection, before, through, limit):
            transaction.append(DROPPED, {"records": rows})
            return Dropped(rows)
        last = _last_droppable(connection, before, through, limit)
        if last is None:
            return Dropped(0)
        seq, digest = last
        rows = 0
        begin = _beginning(connection)
        for table in (exchanges, events):
            rows += connection.execute(delete(table).where(table.c.seq > begin, table.c.seq <= seq)).rowcount
        connection.execute(delete(checkpoints).where(checkpoints.c.seq < seq))
        connection.execute(delete(anchors))
        anchor = {"seq": seq, "hash": digest, "at": transaction.at, "reason": "older records were dropped (retention)"}
        connection.execute(insert(anchors), anchor)
        transaction.append(DROPPED, {"records": rows, "through": seq})
        return Dropped(rows, seq)

    return work


def _drop_unchained(connection: Connection, before: float, through: int | None, limit: int) -> int:
    query = select(exchanges.c.seq).where(
        exchanges.c.seq <= _beginning(connection), exchanges.c.hash.is_(None), exchanges.c.started_at < before
    )
    if through is not None:
        query = query.where(exchanges.c.seq <= through)
    old = list(connection.scalars(query.order_by(exchanges.c.seq).limit(limit)))
    return connection.execute(delete(exchanges).where(exchanges.c.seq.in_(old))).rowcount if old else 0


def _last_droppable(connection: Connection, before: float, through: int | None, limit: int) -> tuple[int, bytes] | None:
    """The last record that may go: all up to it are old enough, and a checkpoint was signed for it."""
    begin = _beginning(connection)
    young = _first_young(connection, begin, before, limit)
    query = select(func.max(checkpoints.c.seq)).where(checkpoints.c.seq > begin, checkpoints.c.seq < young)
    if through is not None:
        query = query.where(checkpoints.c.seq <= through)
    seq = connection.scalar(query)
    if seq is None:
        return None
    for table in (exchanges, events):
        digest = connection.scalar(select(table.c.hash).where(table.c.seq == seq))
        if digest is not None:
            return int(seq), bytes(digest)
    return None


def _beginning(connection: Connection) -> int:
    return int(connection.scalar(select(func.max(anchors.c.seq))) or 0)


def _first_young(connection: Connection, begin: int, before: float, limit: int) -> int:
    """The number of the first record that is not from before a moment, or of the first beyond `limit` records – but
    always with a checkpoint below it, if there is one to come: the batch grows up to that."""
    following = connection.scalar(select(func.min(checkpoints.c.seq)).where(checkpoints.c.seq > begin))
    end = max(begin + limit, int(following or 0)) + 1
    clocks: Sequence[tuple[Any, Any, Any]] = (
        (exchanges, exchanges.c.started_at, before),
        (events, events.c.at_us, before * 1e6),
    )
    for table, clock, moment in clocks:
        query = select(func.min(table.c.seq)).where(table.c.seq > begin, table.c.seq < end, clock >= moment)
        end = min(end, int(connection.scalar(query) or end))
    return end


def _overwrite(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA secure_delete=ON").close()


def give_back(pages: int = 2000) -> Callable[[Transaction], Dropped]:
    """Hand unused pages at the end of an SQLite file back to the disk, where the file was made for that."""

    def work(transaction: Transaction) -> Dropped:
        connection = transaction.connection
        if connection.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA auto_vacuum").scalar_one() == 2:
            # Every step gives a row, and none where nothing is free: only the driver's own cursor takes both.
            cursor = connection.connection.cursor()
            cursor.execute(f"PRAGMA incremental_vacuum({pages})")
            cursor.fetchall()
            cursor.close()
        return Dropped(0)

    return work


# --- the task ----------------------------------------------------------------------------------------


class Writes(Protocol):
    def write(self, work: Callable[[Transaction], Any], *, durable: bool = True) -> asyncio.Future[Any]: ...


class State(msgspec.Struct, frozen=True):
    """What the status page and the metrics say. Bytes. stuck: why the quota cannot be kept, None if it is."""

    total: int = 0
    live: int = 0
    free: int | None = None
    quota: int = 0
    stuck: Literal["minimum", "export"] | None = None
    contents_dropped: int = 0
    responses_dropped: int = 0
    records_dropped: int = 0
    begins_after: int = 0
    """The number of the last record that was dropped."""


class Retention:
    """The background task. Times come from `clock` (unix seconds), waiting from `sleep`.

    records, exporters: the settings and the names of the exporters that there are; replaced by a reload.
    measure: how much room the database takes, told exactly above so many bytes.
    """

    def __init__(
        self,
        database: Database,
        recorder: Writes,
        records: Records,
        *,
        clock: Callable[[], float] = time.time,
        measure: Callable[[Database, int], Awaitable[Usage]] = measure,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        interval_s: float = 30.0,
    ) -> None:
        self.records = records
        self.state = State()
        self._database = database
        self._recorder = recorder
        self._clock = clock
        self._measure = measure
        self._sleep = sleep
        self._interval_s = interval_s
        self._relieving = False

    async def run(self) -> None:
        """Go on until cancelled. Trouble is logged and outlived."""
        while True:
            try:
                await self.sweep()
            except OutpostError as error:
                logger.warning("retention_failed", extra={"cause": error.message})
            except Exception:
                # A disk that cannot be asked how full it is, say: the next sweep may be luckier.
                logger.exception("retention_failed")
            await self._sleep(self._interval_s)

    async def sweep(self) -> State:
        """Drop all that is to be dropped now. Raises RecordsUnavailable."""
        before, dropped = self.state.stuck, {"content": 0, "responses": 0, "metadata": 0}
        begins, stuck = self.state.begins_after, None
        while True:
            now, rules = self._clock(), rules_of(self.records)
            usage = await self._measure(self._database, int(rules.max_disk * LOW))
            oldest, first, acknowledged, begin = await self._look()
            held = acknowledged is not None and acknowledged < first
            step = what_to_drop(now, usage, oldest, rules, relieving=self._relieving, held=held)
            self._relieving = isinstance(step, Drop) and step.why == "quota"
            if not isinstance(step, Drop):
                stuck = step
                break
            done: Dropped = await self._recorder.write(_work(step, acknowledged))
            if not done.rows:
                # Nothing signed to begin from yet, or a clock that ran backwards: the next sweep sees more.
                over = usage.live - quota(rules, usage)
                stuck = Stuck("export" if acknowledged is not None else "minimum", over) if over > 0 else None
                break
            dropped[step.what] += done.rows
            begins = done.through or begins
        if any(dropped.values()):
            # The file's end is handed back to the disk.
            await self._recorder.write(give_back(), durable=False)
            usage = await self._measure(self._database, int(rules.max_disk * LOW))
        self.state = State(
            total=usage.total,
            live=usage.live,
            free=usage.free,
            quota=quota(rules, usage),
            stuck=stuck.reason if stuck else None,
            contents_dropped=self.state.contents_dropped + dropped["content"],
            responses_dropped=self.state.responses_dropped + dropped["responses"],
            records_dropped=self.state.records_dropped + dropped["metadata"],
            begins_after=max(begins, begin),
        )
        if stuck is not None and before != stuck.reason:
            logger.error("records_quota_exceeded", extra={"reason": _STUCK[stuck.reason], "bytes_over": stuck.over})
        elif stuck is None and before is not None:
            logger.info("records_quota_kept_again")
        return self.state

    async def _look(self) -> tuple[Oldest, int, int | None, int]:
        """The oldest of each class; the oldest record's number; the last one that every exporter has delivered (None:
        there are no exporters); and the number after which the ledger begins."""
        names = [EXPORT + exporter.name for exporter in self.records.export]
        exchange = select(exchanges.c.seq, exchanges.c.started_at).order_by(exchanges.c.seq).limit(1)
        event = select(events.c.seq, events.c.at_us / 1e6).order_by(events.c.seq).limit(1)
        async with self._database.read() as connection:
            content = await connection.scalar(select(func.min(contents.c.created_at)))
            response = await connection.scalar(select(func.min(responses.c.created_at)))
            begin = int(await connection.scalar(select(func.max(anchors.c.seq))) or 0)
            found = [(await connection.execute(query)).first() for query in (exchange, event)]
            rows = (await connection.execute(select(counters.c.name, counters.c.value))).all()
        delivered = {name: int(value) for name, value in rows}
        seq, made = min(((int(row[0]), float(row[1])) for row in found if row is not None), default=(0, None))
        acknowledged = min((delivered.get(name, 0) for name in names), default=None)
        return Oldest(content, made, response), seq, acknowledged, begin


def _work(step: Drop, acknowledged: int | None) -> Callable[[Transaction], Dropped]:
    match step.what:
        case "content":
            return drop_content(step.before)
        case "responses":
            return drop_responses(step.before)
        case "metadata":
            return drop_metadata(step.before, acknowledged)


_STUCK = {
    "minimum": "what is left must be kept by law (records.retention.minimum); give it more room (records.max_disk)",
    "export": "records wait for an export; see to its receiver, or remove it from records.export",
}
