"""What was used outlives the process.

Three things in the database say what a counter holds after any death of the process:

- `state`: what the exchanges up to the sequence number `as_of` have charged, written every few seconds;
- `exchanges.charges` of the rows after that, committed with each row;
- `held`: the most that dispatched requests without a row may have used. At a start it counts as used.

Nothing is dispatched before `held` covers it. So that most requests need no write for that, it is raised by more than
is needed where there is room enough, and lowered later: soon where what it covers in vain is much beside what is left
of the limit, and otherwise with a checkpoint. What a start finds in it is told on the ledger.

A raise is committed without a sync of its own: it survives the end of the process (kill -9), and a power cut once
anything durable was committed after it, which the next exchange's row is. A power cut in between forgets requests
that were under way at that moment.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

import msgspec
from sqlalchemy import func, select

from appliance.errors import OutpostError
from appliance.limits.clock import Now
from appliance.limits.counters import Counter, Reservation
from appliance.limits.rules import read_key
from appliance.limits.store_work import Row, lower, replace, tell, written
from appliance.limits.windows import SMALL_STEP_S, Calendar, Usage
from appliance.records.chain import micro
from appliance.records.database import Database
from appliance.records.rows import plain_charges
from appliance.records.tables import exchanges, limit_counters
from appliance.records.transaction import Transaction

logger = logging.getLogger("outpost.limits")

T = TypeVar("T")

GRAIN = 64
"""How many requests' worth `held` is raised by at once …"""
ROOM = 16
"""… where that fits this many times into what is left of the limit. What is held beyond need and does not fit as many
times is lowered soon."""
SOON_S = 0.05
"""Between what makes lowering possible and the write; between two such writes, too."""
SHORT_S = 10
"""Windows that are over before the next start has opened the doors: what is held of them does no harm."""
LEAST_VALID_S = 60.0
UNREADABLE = (ValueError, ArithmeticError, OSError)
"""What windows raise for lengths and moments that only somebody who damaged a row can have put there."""
_MARK = "*"
"""The row whose `as_of` says up to where all states go; no counter's name."""
_CHUNK = 256
_SOMETIMES = 5000


class Recorder(Protocol):
    def write(self, work: Callable[[Transaction], T], *, durable: bool = True) -> asyncio.Future[T]: ...


class LimitStore:
    """For the event loop that owns the book."""

    def __init__(self, recorder: Recorder, database: Database) -> None:
        self._recorder = recorder
        self._database = database
        self._folded: dict[str, Usage] = {}
        """By counter: what the rows up to `_as_of` have charged, as `state` will say it."""
        self._as_of = 0
        self._marked = 0
        self._dirty: set[str] = set()
        self._gone: set[str] = set()
        self._holding: dict[str, Counter] = {}
        self._wanted: dict[str, Counter] = {}
        self._group: asyncio.Future[None] | None = None
        self._loose: dict[Counter, int] = {}
        """Of which too much is held; with what was covered when that was noticed."""
        self._soon: asyncio.TimerHandle | None = None
        self._lost: list[tuple[Reservation, str]] = []
        self._owed: list[Reservation] = []
        """Of the lost those whose charges are in the states, once these are written."""
        self._turn: Iterator[str] = iter(())
        self._lock = asyncio.Lock()
        self._epoch = Now(0.0, 0.0)

    # --- at the start ------------------------------------------------------------------------------

    async def load(self, now: Now) -> dict[str, Usage]:
        """What was used before, by counter, for `Book.restore`. What a process that died had not settled counts as
        used from here on, and the ledger says so. Raises RecordsUnavailable."""
        self._epoch = now
        async with self._database.read() as connection:
            rows = (await connection.execute(select(limit_counters))).all()
        as_of: dict[str, int] = {}
        held: dict[str, tuple[float, int]] = {}
        for row in rows:
            if row.counter == _MARK:
                self._as_of = row.as_of
                continue
            try:
                usage = read_key(row.counter).window.usage()
                usage.fill(json.loads(row.state), now.wall)
                start, amount, seq = float(row.window_start), int(row.held), int(row.as_of)
            except (*UNREADABLE, TypeError) as error:
                logger.warning("limit_counter_unreadable", extra={"counter": row.counter, "cause": str(error)})
                continue
            self._folded[row.counter] = usage
            as_of[row.counter] = seq
            if amount:
                held[row.counter] = (start, amount)
        await self._fold(now.wall, as_of)
        taken: list[Row] = []
        for key, (start, amount) in held.items():
            usage = self._folded[key]
            try:
                at = _latest(usage, read_key(key).window.seconds, start, now.wall)
                bucket = usage.add(at, amount)
            except UNREADABLE as error:
                logger.warning("limit_counter_unreadable", extra={"counter": key, "cause": str(error)})
                continue
            usage.advance(now.wall)
            if usage.has(bucket):
                taken.append({"counter": key, "amount": amount, "counts_from_us": micro(at)})
        for key, usage in list(self._folded.items()):
            usage.advance(now.wall)
            if not usage.total:
                del self._folded[key]
        kept = [self._row(key, 0.0, 0) for key in self._folded]
        before = [row.counter for row in rows]
        put = replace(before, [*kept, self._mark()])

        def work(tx: Transaction) -> None:
            put(tx)
            tell(tx, taken)

        await self._recorder.write(work)
        self._marked = self._as_of
        self._dirty.clear()
        states = {}
        for key, usage in self._folded.items():
            states[key] = copy = read_key(key).window.usage()
            copy.fill(usage.plain(), now.wall)
        return states

    # --- a request's way ---------------------------------------------------------------------------

    async def ensure(self, reservation: Reservation, now: Now) -> None:
        """Return when the database allows for all that is reserved; to be awaited before each dispatch, after
        `reserve` and `move` alike. Raises RecordsUnavailable; then nothing may be dispatched.
        """
        needy: list[Counter] | None = None
        for hold in reservation.holds:
            counter = hold.counter
            if hold.covered < hold.amount:
                counter.covered += hold.amount - hold.covered
                hold.covered = hold.amount
                if counter.covered > counter.peak:
                    counter.peak = counter.covered
            if hold.amount and not counter.allows(now):
                counter.step = hold.amount
                needy = needy or []
                needy.append(counter)
        if needy is not None:
            await self._raise(needy, now)

    def release(self, reservation: Reservation) -> None:
        """Nothing has to be allowed for any longer: it was given back, or its charges are on record."""
        for hold in (*reservation.holds, *reservation.closed):
            counter = hold.counter
            counter.covered -= hold.covered
            hold.covered = 0
            if _too_much(counter):
                self._loosened(counter)

    def lost(self, reservation: Reservation, exchange_id: str) -> None:
        """Nobody knows whether the row with the charges was written. If it was not, they go into the counters' state
        instead; they are allowed for until they are there."""
        self._lost.append((reservation, exchange_id))

    # --- raising -----------------------------------------------------------------------------------

    async def _raise(self, counters: Iterable[Counter], now: Now) -> None:
        loop = asyncio.get_running_loop()
        for counter in counters:
            if counter.key not in self._wanted:
                self._wanted[counter.key] = self._holding[counter.key] = counter
                counter.raising += 1
        if self._group is None:
            # All that ask in this turn of the loop share one write.
            self._group = loop.create_future()
            self._group.add_done_callback(_seen)
            loop.call_soon(self._send, now)
        await asyncio.shield(self._group)

    def _send(self, now: Now) -> None:
        group, self._group = self._group, None
        wanted, self._wanted = self._wanted, {}
        assert group is not None
        rows, raised = [], []
        for counter in wanted.values():
            grain = GRAIN * counter.step
            # What a first request leaves behind of it, which is one step more, must not be too much at once.
            if counter.amount - counter.usage.total < ROOM * (grain + counter.step):
                grain = 0
            # Writes come to pass in their order: a later one must not allow for less than one that was waited for.
            target = max(counter.covered + grain, counter.aim if counter.raising > 1 else 0)
            start = counter.usage.start if isinstance(counter.usage, Calendar) else now.wall
            counter.aim, counter.aim_start = target, start
            rows.append(self._row(counter.key, start, target))
            valid = max(counter.window.seconds, LEAST_VALID_S)
            raised.append((counter, target, start, (now.wall + valid, now.monotonic + valid)))

        def done(future: asyncio.Future[None]) -> None:
            error = None if future.cancelled() else future.exception()
            for counter, target, start, until in raised:
                counter.raising -= 1
                if error is None and not future.cancelled():
                    counter.held, counter.held_start, counter.held_until = target, start, until
                    # Those who needed it may have gone meanwhile.
                    if _too_much(counter):
                        self._loosened(counter)
            if group.done():
                return
            if error is not None:
                group.set_exception(error)
            elif future.cancelled():
                group.cancel()
            else:
                group.set_result(None)

        self._recorder.write(replace(list(wanted), rows), durable=False).add_done_callback(done)

    # --- lowering soon -----------------------------------------------------------------------------

    def _loosened(self, counter: Counter) -> None:
        """More is held than may stay: look at it soon, and whether anybody needs it until then."""
        if counter not in self._loose:
            self._loose[counter] = counter.peak = counter.covered
            if self._soon is None:
                self._soon = asyncio.get_running_loop().call_later(SOON_S, self._tighten)

    def _tighten(self) -> None:
        """Lower, with one write, what is held too much of. Where requests come and go, to what they lately needed at
        once, and not before that is half of it: each raise afterwards makes somebody wait.

        Like that of a checkpoint this write comes after all that was asked of the recorder before, and what is
        lowered counts as lowered before it is written. So a request that needs more from here on waits for a raise
        that comes after it.
        """
        self._soon = None
        lowered = []
        for counter, noticed in list(self._loose.items()):
            peak, counter.peak = counter.peak, counter.covered
            self._loose[counter] = counter.covered
            if counter.raising:
                continue
            if _too_much(counter):
                if peak <= noticed:
                    peak = counter.covered
                elif counter.held <= 2 * peak:
                    continue
                counter.held = peak
                lowered.append(counter)
            if not _too_much(counter):
                del self._loose[counter]
        if lowered:
            keys = [counter.key for counter in lowered]

            def done(future: asyncio.Future[None]) -> None:
                if future.cancelled() or future.exception() is not None:
                    self._dirty.update(keys)  # the next checkpoint's business

            self._recorder.write(lower(lowered), durable=False).add_done_callback(done)
        if self._loose:
            self._soon = asyncio.get_running_loop().call_later(SOON_S, self._tighten)

    # --- checkpoints -------------------------------------------------------------------------------

    async def run(self, clock: Callable[[], Now], interval_s: float = 2.0) -> None:
        """A checkpoint every `interval_s` until it is cancelled. Trouble is logged and outlived."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.checkpoint(clock())
            except OutpostError as error:
                logger.warning("limits_not_written", extra={"cause": error.message})
            except Exception:
                logger.exception("limits_not_written")

    async def close(self, now: Now) -> None:
        """The last checkpoint: to be awaited when nothing is under way, before the recorder is closed. Raises
        RecordsUnavailable."""
        # What the first one puts into the states need not be held any longer by the second one.
        for _ in range(2):
            for counter in self._holding.values():
                counter.peak = counter.covered
            await self.checkpoint(now)

    async def checkpoint(self, now: Now) -> None:
        """Bring the states up to the newest row, and lower what is held. Raises RecordsUnavailable; then the next one
        does it."""
        async with self._lock:
            await self._decide()
            await self._fold(now.wall, {})
            lowered = self._lower()
            self._forget(now)
            dirty, self._dirty = self._dirty, set()
            gone, self._gone = self._gone - dirty, set()
            owed, self._owed = self._owed, []
            as_of = self._as_of
            if not (dirty or lowered or gone or owed) and as_of - self._marked < _SOMETIMES:
                return
            changed = dirty | lowered
            try:
                rows = []
                for key in changed:
                    start, held = _allowed(self._holding.get(key))
                    if held or key in self._folded:
                        rows.append(self._row(key, start, held))
                keys = [*changed, *gone, _MARK]
                await self._recorder.write(replace(keys, [*rows, self._mark()]), durable=False)
            except BaseException:
                self._dirty |= changed
                self._gone |= gone
                self._owed = owed
                raise
            self._marked = as_of
            for reservation in owed:
                self.release(reservation)

    async def _decide(self) -> None:
        """Tell the lost rows that were written all the same from the others. The writer does one thing after the
        other, so whatever became of them has happened when it gets to this question."""
        lost, self._lost = self._lost, []
        if not lost:
            return
        try:
            found = await self._recorder.write(written([each for _, each in lost]), durable=False)
        except BaseException:
            self._lost = lost + self._lost
            raise
        for reservation, exchange_id in lost:
            if exchange_id in found or not reservation.charges:
                self.release(reservation)
                continue
            for charge in reservation.charges:
                self._add(charge.counter, charge.at, charge.amount)
            self._owed.append(reservation)

    def _lower(self) -> set[str]:
        """Hold less where much less is under way. What is lowered counts as lowered before it is written."""
        lowered = set()
        for key, counter in list(self._holding.items()):
            peak, counter.peak = counter.peak, counter.covered
            if counter.raising:
                continue
            room = counter.amount - counter.usage.total >= ROOM * GRAIN * counter.step
            if not peak:
                counter.held = 0
                del self._holding[key]
                lowered.add(key)
            elif counter.held > 2 * (peak + (GRAIN * counter.step if room else 0)):
                counter.held = peak
                lowered.add(key)
        return lowered

    def _forget(self, now: Now) -> None:
        """Look after some states whose windows may be over; all of them in turn."""
        # By the slower of the clocks: one that jumps ahead and back must not have cost anything.
        t = min(now.wall, self._epoch.wall + now.monotonic - self._epoch.monotonic)
        for key in list(itertools.islice(self._turn, _CHUNK)):
            usage = self._folded.get(key)
            if usage is None:
                continue
            usage.advance(t)
            if not usage.total and key not in self._holding and key not in self._wanted:
                del self._folded[key]
                self._dirty.discard(key)
                self._gone.add(key)
        upcoming = next(self._turn, None)
        if upcoming is None:
            self._turn = iter(list(self._folded))
        else:
            self._turn = itertools.chain([upcoming], self._turn)

    async def _fold(self, wall: float, as_of: dict[str, int]) -> None:
        """Add what the rows since `_as_of` have charged. as_of: by counter, where a state is newer than that."""
        while True:
            after = self._as_of
            async with self._database.read() as connection:
                newest = (await connection.execute(select(func.max(exchanges.c.seq)))).scalar() or 0
                query = (
                    select(exchanges.c.seq, exchanges.c.charges)
                    .where(exchanges.c.seq > after, exchanges.c.charges != "[]")
                    .order_by(exchanges.c.seq)
                    .limit(_CHUNK)
                )
                rows = (await connection.execute(query)).all()
            for seq, text in rows:
                for amount, at_us, counter in _charges(seq, text):
                    if seq > as_of.get(counter, 0):
                        self._add(counter, min(at_us / 1e6, wall), amount)
            if len(rows) < _CHUNK:
                self._as_of = max(after, newest)
                return
            self._as_of = rows[-1].seq

    def _add(self, key: str, at: float, amount: int) -> None:
        try:
            usage = self._folded.get(key) or read_key(key).window.usage()
            usage.add(at, amount)
        except UNREADABLE as error:
            logger.warning("charge_unreadable", extra={"counter": key, "cause": str(error)})
            return
        self._folded[key] = usage
        self._dirty.add(key)
        self._gone.discard(key)

    # --- rows --------------------------------------------------------------------------------------

    def _row(self, key: str, window_start: float, held: int) -> Row:
        usage = self._folded.get(key)
        state = [] if usage is None else usage.plain()
        return {
            "counter": key,
            "window_start": window_start,
            "state": json.dumps(state, separators=(",", ":")),
            "held": held,
            "as_of": self._as_of,
        }

    def _mark(self) -> Row:
        return {"counter": _MARK, "window_start": 0.0, "state": "[]", "held": 0, "as_of": self._as_of}


def _charges(seq: int, text: str) -> list[tuple[int, int, str]]:
    """What a row has charged; nothing, if somebody has damaged it: verifying the ledger names it."""
    try:
        return plain_charges(text)
    except msgspec.MsgspecError as error:
        logger.warning("charges_unreadable", extra={"seq": seq, "cause": str(error)})
        return []


def _too_much(counter: Counter) -> bool:
    """Whether what is held in vain is much beside what is left of the limit: a process that died now would leave that
    much less to all who come after."""
    spare = counter.held - counter.covered
    left = counter.amount - counter.usage.total
    return spare > 0 and spare * ROOM > left and counter.window.seconds > SHORT_S


def _allowed(counter: Counter | None) -> tuple[float, int]:
    """`window_start` and `held` as they have to stand in the database, writes under way included."""
    if counter is None:
        return 0.0, 0
    if counter.raising:
        return counter.aim_start, max(counter.held, counter.aim)
    return counter.held_start, counter.held


def _latest(usage: Usage, seconds: int, start: float, wall: float) -> float:
    """The latest moment at which something that was held may have been dispatched."""
    if isinstance(usage, Calendar):
        return start if start <= wall + SMALL_STEP_S else wall
    return min(start + max(seconds, LEAST_VALID_S), wall)


def _seen(future: asyncio.Future[None]) -> None:
    """Everybody who waited for it may have gone; its error is nobody's then."""
    if not future.cancelled():
        future.exception()
