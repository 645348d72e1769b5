"""Group commit: what the event loop submits, one thread writes, and a future says when it is durable.

    submit ──queue──▶ thread: take all that waits ▶ write ▶ commit ──▶ loop: settle the futures

There is no timer on the way in: an idle writer takes a row at once, a busy one finds a batch when
its commit returns. While writing fails, `available` is False and the thread tries again by itself.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVarTuple

from appliance.errors import RecordsUnavailable
from appliance.records.database import Database, unavailable
from appliance.records.rows import ExchangeRow
from appliance.records.writer import ROW_ERRORS, RowWriter

logger = logging.getLogger("outpost.records")

T = TypeVarTuple("T")


class _Entry:
    __slots__ = ("deadline", "expired", "future", "row")

    def __init__(self, row: ExchangeRow, future: asyncio.Future[int], deadline: float) -> None:
        self.row = row
        self.future = future
        self.deadline = deadline
        self.expired = False


class Recorder:
    """Makes exchanges durable. All methods are for the event loop that called `start`.

    capacity: most rows that may wait; beyond it `submit` refuses. patience_s: longest wait of a row
    before its future fails, whatever the disk does. probe_s: how often a failed writer tries again.
    clock: monotonic seconds.
    """

    def __init__(
        self,
        database: Database,
        *,
        capacity: int = 8192,
        max_batch: int = 256,
        patience_s: float = 2.0,
        probe_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._writer = RowWriter(database.writer_engine())
        self._capacity = capacity
        self._max_batch = max_batch
        self._patience_s = patience_s
        self._probe_s = probe_s
        self._clock = clock
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._pending: deque[_Entry] = deque()
        self._depth = 0
        self._sweep: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended = asyncio.Event()
        self._closing = False
        self._working = asyncio.Event()

    @property
    def available(self) -> bool:
        """False while the last try to write has failed: refuse work before it starts."""
        return self._working.is_set() and not self._closing

    async def wait_available(self) -> None:
        """Return when writing works (again)."""
        await self._working.wait()

    @property
    def depth(self) -> int:
        """Rows submitted and not yet settled by the writer."""
        return self._depth

    async def start(self) -> None:
        """Open the file and show that it can be written. Raises RecordsUnavailable."""
        self._loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self._writer.probe)
        except Exception as error:
            raise unavailable(error) from error
        self._working.set()
        # A daemon: a disk that never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def submit(self, row: ExchangeRow) -> asyncio.Future[int]:
        """Queue a row. The future gives its sequence number after the commit was synced to disk, or
        raises RecordsUnavailable within `patience_s`. A cancelled future's row is written all the same;
        a row whose future failed may or may not have reached the disk."""
        loop = self._loop
        if loop is None:
            raise RuntimeError("Recorder.submit before start")
        future: asyncio.Future[int] = loop.create_future()
        if self._closing or self._depth >= self._capacity:
            reason = "is closing" if self._closing else f"has {self._depth} entries waiting"
            future.set_exception(RecordsUnavailable(f"The recorder {reason}; try again.", retry_after_s=1.0))
            return future
        entry = _Entry(row, future, self._clock() + self._patience_s)
        self._depth += 1
        self._pending.append(entry)
        if self._sweep is None:
            self._sweep = loop.call_later(self._patience_s, self._expire)
        self._queue.put(entry)
        return future

    async def close(self) -> None:
        """Refuse new rows, write what waits, close the file. Bounded: a stuck disk fails what is left."""
        if self._closing:
            await self._ended.wait()
            return
        self._closing = True
        if self._thread is not None:
            self._queue.put(None)
            try:
                await asyncio.wait_for(self._ended.wait(), 2 * self._patience_s)
            except TimeoutError:
                logger.error("recorder_stuck", extra={"waiting": self._depth})
        if self._sweep is not None:
            self._sweep.cancel()
        for entry in self._pending:
            self._fail(entry)
        self._pending.clear()
        self._ended.set()

    # --- on the event loop ---

    def _expire(self) -> None:
        """Fail rows that have waited too long: the writer may hang in a sync that nobody can interrupt."""
        assert self._loop is not None
        now = self._clock()
        pending = self._pending
        while pending and (pending[0].future.done() or pending[0].deadline <= now):
            entry = pending.popleft()
            if not entry.future.done():
                self._working.clear()
                entry.expired = True
                self._fail(entry)
        self._sweep = self._loop.call_later(pending[0].deadline - now, self._expire) if pending else None

    def _fail(self, entry: _Entry) -> None:
        if not entry.future.done():
            message = f"The record of this request could not be written within {self._patience_s:g} s."
            entry.future.set_exception(RecordsUnavailable(message, retry_after_s=1.0))

    def _settle(self, entries: list[_Entry], first: int) -> None:
        self._working.set()
        self._depth -= len(entries)
        for seq, entry in enumerate(entries, first):
            if not entry.future.done():
                entry.future.set_result(seq)
        self._forget_done()

    def _reject(self, entries: list[_Entry], error: BaseException) -> None:
        self._depth -= len(entries)
        for entry in entries:
            if not entry.future.done():
                entry.future.set_exception(unavailable(error))
        self._forget_done()

    def _forget_done(self) -> None:
        pending = self._pending
        while pending and pending[0].future.done():
            pending.popleft()

    # --- in the writer's thread ---

    def _run(self) -> None:
        working = True
        ending = False
        while not ending:
            batch: list[_Entry] = []
            try:
                entry = self._queue.get(timeout=None if working else self._probe_s)
                while True:
                    if entry is None:
                        ending = True
                        break
                    batch.append(entry)
                    if len(batch) == self._max_batch:
                        break
                    entry = self._queue.get_nowait()
            except queue.Empty:
                pass
            works = self._write(batch) if batch else ending or self._probe()
            if works is not working:
                logger.log(*((logging.INFO, "records_available") if works else (logging.ERROR, "records_unavailable")))
                working = works
        self._writer.close()
        self._tell(self._ended.set)

    def _write(self, batch: list[_Entry]) -> bool:
        """Write a batch and settle it; False when the file cannot be written."""
        fresh = [entry for entry in batch if not entry.expired]
        if len(fresh) < len(batch):
            # Their futures have failed already; the client was told that there is no record.
            self._tell(self._reject, [entry for entry in batch if entry.expired], TimeoutError())
        if not fresh:
            return self._probe()
        try:
            first = self._writer.write([entry.row for entry in fresh])
        except ROW_ERRORS as error:
            logger.warning("records_batch_split", extra={"rows": len(fresh), "cause": type(error).__name__})
            return self._write_singly(fresh)
        except Exception as error:  # noqa: BLE001 - a writer that dies of a surprise would take every later row along
            self._report(error, len(fresh))
            self._tell(self._working.clear)
            self._tell(self._reject, fresh, error)
            return False
        self._tell(self._settle, fresh, first)
        return True

    def _write_singly(self, entries: list[_Entry]) -> bool:
        """One bad row must not cost the others theirs."""
        for index, entry in enumerate(entries):
            try:
                first = self._writer.write_alone(entry.row)
            except ROW_ERRORS as error:
                self._report(error, 1)
                self._tell(self._reject, [entry], error)
            except Exception as error:  # noqa: BLE001 - as above
                self._report(error, len(entries) - index)
                self._tell(self._working.clear)
                self._tell(self._reject, entries[index:], error)
                return False
            else:
                self._tell(self._settle, [entry], first)
        return True

    def _probe(self) -> bool:
        try:
            self._writer.probe()
        except Exception as error:  # noqa: BLE001 - as above
            self._report(error, 0)
            return False
        self._tell(self._working.set)
        return True

    def _report(self, error: BaseException, rows: int) -> None:
        logger.error("records_write_failed", extra={"cause": f"{type(error).__name__}: {error}", "rows": rows})

    def _tell(self, callback: Callable[[*T], None], *args: *T) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            # The loop was closed without close(): nobody is left to be told.
            logger.warning("records_loop_gone")
