"""Group commit: what the event loop submits, one thread writes, and a future says when it is durable.

    submit, write ──queue──▶ thread: take all that waits ▶ write ▶ commit ──▶ loop: settle the futures

What one turn of the loop submits is handed over together: a thread that wakes for the first of it would take the
interpreter from the rest, and commit it alone. There is no timer on the way in: an idle writer takes a row at once, a
busy one finds a batch when its commit returns. While writing fails, `available` is False and the thread tries again by
itself.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, TypeVarTuple, cast

from appliance.errors import RecordsUnavailable
from appliance.records.database import Database, unavailable
from appliance.records.rows import ExchangeRow
from appliance.records.transaction import Failed, Transaction, Work
from appliance.records.writer import Item, RowWriter

logger = logging.getLogger("outpost.records")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Entry:
    __slots__ = ("deadline", "expired", "future", "item")

    def __init__(self, item: Item, future: asyncio.Future[Any], deadline: float) -> None:
        self.item = item
        self.future = future
        self.deadline = deadline
        self.expired = False


class Recorder:
    """The one way into the database: exchanges (`submit`) and all other changes (`write`). All methods are for the
    event loop that called `start`.

    capacity: most entries that may wait; beyond it they are refused. patience_s: longest wait of an entry
    before its future fails, whatever the disk does. probe_s: how often a failed writer tries again.
    clock: monotonic seconds. wall: unix seconds, for events.
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
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._writer = RowWriter(database.writer_engine(), wall=wall)
        self._capacity = capacity
        self._max_batch = max_batch
        self._patience_s = patience_s
        self._probe_s = probe_s
        self._clock = clock
        self._queue: queue.SimpleQueue[list[_Entry] | None] = queue.SimpleQueue()
        self._gathered: list[_Entry] = []
        """Of the present turn of the loop."""
        self._pending: deque[_Entry] = deque()
        self._depth = 0
        self._sweep: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended = asyncio.Event()
        self._closing = False
        self._working = asyncio.Event()
        self._newest = 0
        self._watched: tuple[int, Callable[[], None]] | None = None

    @property
    def newest(self) -> int:
        """The number of the newest record, as far as this recorder knows."""
        return self._newest

    def notify(self, seq: int, callback: Callable[[], None]) -> None:
        """Call once when record `seq` is on record; takes the place of what was asked before."""
        self._watched = (seq, callback)
        self._note(self._newest)

    @property
    def available(self) -> bool:
        """False while the last try to write has failed: refuse work before it starts."""
        return self._working.is_set() and not self._closing

    async def wait_available(self) -> None:
        """Return when writing works (again)."""
        await self._working.wait()

    @property
    def depth(self) -> int:
        """Entries submitted and not yet settled by the writer."""
        return self._depth

    @property
    def waited_s(self) -> float:
        """Seconds that the oldest entry without an answer has waited, 0.0 for none."""
        for entry in self._pending:
            if not entry.future.done():
                return max(0.0, self._clock() - (entry.deadline - self._patience_s))
        return 0.0

    async def start(self) -> None:
        """Open the file and show that it can be written. Raises RecordsUnavailable."""
        self._loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self._writer.probe)
        except Exception as error:
            raise unavailable(error) from error
        self._working.set()
        self._newest = self._writer.newest
        # A daemon: a disk that never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def submit(self, row: ExchangeRow) -> asyncio.Future[int]:
        """Queue a row. The future gives its sequence number after the commit was synced to disk, or
        raises RecordsUnavailable within `patience_s`. A cancelled future's row is written all the same;
        a row whose future failed may or may not have reached the disk."""
        return self._put(row)

    def write(self, work: Callable[[Transaction], T], *, durable: bool = True) -> asyncio.Future[T]:
        """Queue a work, in one order with the rows. It runs in the writer's thread; the future gives what it returned
        after the commit, or raises what it raised (then nothing of it was kept), or RecordsUnavailable like `submit`.

        durable=False: the commit survives the end of the process; a power cut may cost it, unless something durable
        was committed after it. Works should take milliseconds: every request's record waits behind them.
        """
        return cast("asyncio.Future[T]", self._put(Work(work, durable)))

    def _put(self, item: Item) -> asyncio.Future[Any]:
        loop = self._loop
        if loop is None:
            raise RuntimeError("the recorder is used before its start")
        future: asyncio.Future[Any] = loop.create_future()
        if self._closing or self._depth >= self._capacity:
            reason = "is closing" if self._closing else f"has {self._depth} entries waiting"
            future.set_exception(RecordsUnavailable(f"The recorder {reason}; try again.", retry_after_s=1.0))
            return future
        entry = _Entry(item, future, self._clock() + self._patience_s)
        self._depth += 1
        self._pending.append(entry)
        if self._sweep is None:
            self._sweep = loop.call_later(self._patience_s, self._expire)
        if not self._gathered:
            loop.call_soon(self._hand_over)
        self._gathered.append(entry)
        return future

    async def close(self) -> None:
        """Refuse new entries, write what waits, close the file. Bounded: a stuck disk fails what is left."""
        if self._closing:
            await self._ended.wait()
            return
        self._closing = True
        if self._thread is not None:
            self._hand_over()
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

    def _hand_over(self) -> None:
        gathered, self._gathered = self._gathered, []
        if gathered:
            self._queue.put(gathered)

    def _expire(self) -> None:
        """Fail entries that have waited too long: the writer may hang in a sync that nobody can interrupt."""
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
            message = f"The record could not be written within {self._patience_s:g} s."
            entry.future.set_exception(RecordsUnavailable(message, retry_after_s=1.0))

    def _settle(self, entries: list[_Entry], results: Sequence[Any], newest: int) -> None:
        self._working.set()
        self._note(newest)
        self._depth -= len(entries)
        for entry, result in zip(entries, results, strict=True):
            if entry.future.done():
                continue
            if isinstance(result, Failed):
                entry.future.set_exception(result.error)
            else:
                entry.future.set_result(result)
        self._forget_done()

    def _note(self, newest: int) -> None:
        self._newest = newest
        if self._watched is not None and newest >= self._watched[0]:
            _, callback = self._watched
            self._watched = None
            callback()

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
                entries = self._queue.get(timeout=None if working else self._probe_s)
                while True:
                    if entries is None:
                        ending = True
                        break
                    batch += entries
                    if len(batch) >= self._max_batch:
                        break
                    entries = self._queue.get_nowait()
            except queue.Empty:
                pass
            works = True if batch else ending or self._probe()
            for at in range(0, len(batch), self._max_batch):
                works = self._write(batch[at : at + self._max_batch])
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
            results = self._write_together([entry.item for entry in fresh])
        except Exception as error:  # noqa: BLE001 - a writer that dies of a surprise would take every later row along
            if self._writer.is_row_error(error):
                logger.warning("records_batch_split", extra={"rows": len(fresh), "cause": type(error).__name__})
                return self._write_singly(fresh)
            self._report(error, len(fresh))
            self._tell(self._working.clear)
            self._tell(self._reject, fresh, error)
            return False
        self._tell(self._settle, fresh, results, self._writer.newest)
        return True

    def _write_together(self, items: list[Item]) -> Sequence[Any]:
        rows = [item for item in items if not isinstance(item, Work)]
        if len(rows) < len(items):
            return self._writer.write_mixed(items)
        first = self._writer.write(rows)
        return range(first, first + len(rows))

    def _write_singly(self, entries: list[_Entry]) -> bool:
        """One bad row must not cost the others theirs."""
        for index, entry in enumerate(entries):
            try:
                result = self._writer.write_alone(entry.item)
            except Exception as error:  # noqa: BLE001 - as above
                if self._writer.is_row_error(error):
                    self._report(error, 1)
                    self._tell(self._reject, [entry], error)
                    continue
                self._report(error, len(entries) - index)
                self._tell(self._working.clear)
                self._tell(self._reject, entries[index:], error)
                return False
            self._tell(self._settle, [entry], [result], self._writer.newest)
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

    def _tell(self, callback: Callable[[*Ts], None], *args: *Ts) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            # The loop was closed without close(): nobody is left to be told.
            logger.warning("records_loop_gone")
