"""Sends every record to a receiver, at least once, from where the last run came to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec
from sqlalchemy import insert, select, update

from appliance.errors import OutpostError
from appliance.records.database import Database
from appliance.records.export.forms import forms
from appliance.records.export.source import Record, RecordedEvent, Source, time_of
from appliance.records.export.syslog import Delivery, Proof, Receiver, SyslogError, frame, message, tls_context
from appliance.records.retention import EXPORT
from appliance.records.tables import counters
from appliance.records.transaction import Transaction
from appliance.settings.recording import Exporter

logger = logging.getLogger("outpost.export")

_DOUBTS = 3
"""Times that a batch is sent to a receiver that never ends a connection in order, before that is taken for its way."""
_PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds between tries, the longer the more have failed."""


class Writes(Protocol):
    def write(self, work: Callable[[Transaction], Any], *, durable: bool = True) -> asyncio.Future[Any]: ...


class Progress(msgspec.Struct, frozen=True):
    """What the status page and the metrics say. delivered: the number of the last record that the receiver has read.
    trouble: why nothing goes through at the moment."""

    name: str
    delivered: int
    trouble: str | None = None


def set_delivered(name: str, seq: int) -> Callable[[Transaction], None]:
    """The work that keeps how far an exporter has come."""

    def work(transaction: Transaction) -> None:
        row = {"name": EXPORT + name, "value": seq}
        same = counters.c.name == row["name"]
        if not transaction.connection.execute(update(counters).where(same).values(value=seq)).rowcount:
            transaction.connection.execute(insert(counters), row)

    return work


class Forwarder:
    """One exporter's task. `run` goes on until cancelled.

    version: the gateway's own, which messages name. sleep: waits so many seconds. most: records of a batch.
    poll_s: how often new records are looked for.
    """

    def __init__(
        self,
        exporter: Exporter,
        database: Database,
        recorder: Writes,
        *,
        version: str,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        most: int = 1000,
        poll_s: float = 1.0,
        timeout_s: float = 10.0,
        hostname: str | None = None,
    ) -> None:
        self._exporter = exporter
        self._form = forms(version)[exporter.format]
        self._database = database
        self._recorder = recorder
        self._sleep = sleep
        self._most = most
        self._poll_s = poll_s
        self._timeout_s = timeout_s
        self._hostname = socket.gethostname() if hostname is None else hostname
        self._source = Source(database)
        self._doubts = 0
        self.progress = Progress(exporter.name, 0)

    async def run(self) -> None:
        """Trouble is logged once each time that it begins, and outlived."""
        failures = 0
        while True:
            try:
                sent = await self.step()
            except (OutpostError, SyslogError, OSError) as error:
                self._note(str(error))
            except Exception as error:  # noqa: BLE001 - nobody would miss an export that ended without a word
                self._note(f"a defect of the gateway ({type(error).__name__}); its log has it", error)
            else:
                failures = 0
                self._note(None)
                if not sent:
                    await self._sleep(self._poll_s)
                continue
            await self._sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
            failures += 1

    async def step(self) -> int:
        """Deliver the next batch; answer how many records. Raises SyslogError, RecordsUnavailable, OSError."""
        after = await self._delivered()
        self.progress = msgspec.structs.replace(self.progress, delivered=after)
        records = await self._source.batch(after, self._most)
        if not records:
            return 0
        proof = await self._deliver([self._frame(record) for record in records])
        if proof == "unsure":
            self._doubts += 1
            if self._doubts < _DOUBTS:
                raise SyslogError("the receiver did not end the connection in order, so that the batch is sent again")
            if self._doubts == _DOUBTS:
                logger.warning("export_receiver_ends_connections_out_of_order", extra={"exporter": self._exporter.name})
        else:
            self._doubts = 0
        last = records[-1].seq
        await self._recorder.write(set_delivered(self._exporter.name, last), durable=False)
        self.progress = msgspec.structs.replace(self.progress, delivered=last)
        return len(records)

    async def _deliver(self, frames: Sequence[bytes]) -> Proof:
        exporter = self._exporter
        context = None
        if exporter.transport == "tls":
            # Read anew each time, so that a renewed certificate needs no restart.
            context = await asyncio.to_thread(tls_context, exporter.ca, exporter.cert, exporter.key)
        delivery = Delivery(Receiver(exporter.host, exporter.port, context, self._timeout_s))
        try:
            return await _in_thread(lambda: delivery.deliver(frames))
        except asyncio.CancelledError:
            delivery.abort()
            raise

    def _frame(self, record: Record) -> bytes:
        exporter = self._exporter
        line = self._form.line(record).rstrip(b"\n")
        kind = record.kind if isinstance(record, RecordedEvent) else "exchange"
        head: dict[str, Any] = {"host": self._hostname, "process": os.getpid(), "facility": exporter.facility}
        return frame(message(line, moment=time_of(record), kind=kind, **head))

    async def _delivered(self) -> int:
        query = select(counters.c.value).where(counters.c.name == EXPORT + self._exporter.name)
        async with self._database.read() as connection:
            return int(await connection.scalar(query) or 0)

    def _note(self, trouble: str | None, defect: Exception | None = None) -> None:
        if trouble is not None and self.progress.trouble is None:
            logger.error("export_stopped", extra={"exporter": self._exporter.name, "cause": trouble}, exc_info=defect)
        elif trouble is None and self.progress.trouble is not None:
            logger.info("export_goes_on", extra={"exporter": self._exporter.name})
        self.progress = msgspec.structs.replace(self.progress, trouble=trouble)


async def _in_thread(function: Callable[[], Proof]) -> Proof:
    """As asyncio.to_thread, but a call that hangs does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Proof] = loop.create_future()

    def settle(set_it: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            set_it(value)

    def work() -> None:
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - it is raised again where it is awaited
            told = (future.set_exception, error)
        else:
            told = (future.set_result, result)  # type: ignore[assignment]
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(settle, *told)

    threading.Thread(target=work, name="export", daemon=True).start()
    return await future
