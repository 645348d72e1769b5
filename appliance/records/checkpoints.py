"""Signed checkpoints of the ledger: made while the gateway runs, kept in the database and in a file beside it, and
compared at start with what is on record.

The file is what a database that was set back to an older state cannot take along.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select

from appliance.errors import RecordsUnavailable
from appliance.records.checkpoint_file import CheckpointFile
from appliance.records.database import Database
from appliance.records.ledger_key import LedgerError, load_signer, lost_key
from appliance.records.notes import Checkpoint, NoteError, PublicKey, Signer, claimed_seq
from appliance.records.recorder import Recorder
from appliance.records.tables import anchors, checkpoints, events, exchanges
from appliance.records.transaction import Transaction
from appliance.records.verify import EVERY

logger = logging.getLogger("outpost.records")

INTERVAL_S = 60.0
_COPIED_AT_ONCE = 1000


@dataclass(frozen=True)
class Made:
    """A checkpoint. new: it was not there before."""

    checkpoint: Checkpoint
    note: str
    new: bool


class Checkpointer:
    """Makes a checkpoint every `interval_s` seconds if there are new records, after every `every` records, and at the
    end. For the event loop of the recorder."""

    def __init__(
        self,
        recorder: Recorder,
        database: Database,
        data_dir: Path,
        signer: Signer,
        *,
        interval_s: float = INTERVAL_S,
        every: int = EVERY,
    ) -> None:
        self._recorder = recorder
        self._database = database
        self._file = CheckpointFile(data_dir)
        self._signer = signer
        self._interval_s = interval_s
        self._every = every
        self._last = 0
        self._copied = 0
        self._behind = False
        """Whether the file may lack something that the database has."""
        self._one_at_a_time = asyncio.Lock()
        self._due = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, recorder: Recorder, database: Database, data_dir: Path, **options: Any) -> Checkpointer:
        """With the data folder's key, made where nothing is signed yet. Raises LedgerError where its key is lost, and
        RecordsUnavailable."""
        signer = await asyncio.to_thread(load_signer, data_dir, make=False)
        if signer is None:
            if await _is_signed(database, data_dir):
                raise lost_key(data_dir)
            signer = await asyncio.to_thread(load_signer, data_dir)
        assert signer is not None
        return cls(recorder, database, data_dir, signer, **options)

    @property
    def public(self) -> PublicKey:
        return self._signer.public

    async def start(self) -> None:
        """Compare what is on record with what was signed, put down what is found, and begin.

        Raises RecordsUnavailable, LedgerError.
        """
        try:
            dropped = await asyncio.to_thread(self._file.repair)
            last = await asyncio.to_thread(self._file.last)
        except OSError as error:
            raise _unusable(self._file, error) from error
        found: Findings = await self._recorder.write(lambda tx: inspect(tx, self.public, last, dropped))
        for kind, body in found.events:
            level = logging.WARNING if kind == "ledger.repaired" else logging.CRITICAL
            logger.log(level, kind.replace(".", "_"), extra=body)
        self._last, self._copied = found.signed, found.copied
        await self._copy()
        self._task = asyncio.create_task(self._run())

    async def make(self) -> Made:
        """A checkpoint of the newest record: a new one, or the one that is there. Raises RecordsUnavailable, and
        LedgerError where there is nothing to sign or the file cannot be written."""
        # Whoever asked may leave; half a copy in the file would be worse than one that nobody waits for.
        return await asyncio.shield(asyncio.ensure_future(self._make()))

    async def _make(self) -> Made:
        async with self._one_at_a_time:
            self._behind = True
            made = await self._recorder.write(lambda tx: sign_tail(tx, self._signer))
            if made is None:
                self._behind = False
                raise LedgerError("There are no records yet, so there is nothing that a checkpoint could say.")
            self._last = made.checkpoint.seq
            await self._copy()
            return made

    async def close(self) -> None:
        """A last checkpoint, if there are new records and writing works."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        async with self._one_at_a_time:
            pass
        await self._make_if_new()

    async def _run(self) -> None:
        # What a run that was killed has left unsigned is signed at once: whoever verifies after a crash must not find
        # requests from long before it and from after it behind one checkpoint.
        wait = self._recorder.newest <= self._last
        while True:
            self._due.clear()
            self._recorder.notify(self._last + self._every, self._due.set)
            if wait:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval_s):
                        await self._due.wait()
            wait = True
            await self._recorder.wait_available()
            if not await self._make_if_new():
                # Not at once again, although as many records as ever are without one.
                await asyncio.sleep(min(1.0, self._interval_s))

    async def _make_if_new(self) -> bool:
        """False if it was tried and failed; the log says why."""
        if self._recorder.newest <= self._last and not self._behind:
            return True
        try:
            await self.make()
        except (RecordsUnavailable, LedgerError) as error:
            logger.error("ledger_checkpoint_failed", extra={"cause": error.message})
            return False
        except Exception:
            logger.exception("ledger_checkpoint_failed")
            return False
        return True

    async def _copy(self) -> None:
        """Add to the file what the database has beyond it: also a checkpoint whose commit nobody waited for."""
        query = select(checkpoints.c.seq, checkpoints.c.note).order_by(checkpoints.c.seq).limit(_COPIED_AT_ONCE)
        while True:
            async with self._database.read() as connection:
                rows = (await connection.execute(query.where(checkpoints.c.seq > self._copied))).all()
            if not rows:
                self._behind = False
                return
            try:
                await asyncio.to_thread(self._file.append, [str(row.note) for row in rows])
            except OSError as error:
                raise _unusable(self._file, error) from error
            self._copied = int(rows[-1].seq)


def _unusable(file: CheckpointFile, error: OSError) -> LedgerError:
    return LedgerError(f"{file.path} cannot be read or written: {error.strerror or error}; see `data_dir`")


async def _is_signed(database: Database, data_dir: Path) -> bool:
    """Whether a key has signed anything of this ledger: a lost one leaves its checkpoints, in one place at least."""
    file = CheckpointFile(data_dir)
    try:
        if await asyncio.to_thread(lambda: file.size):
            return True
    except OSError as error:
        raise _unusable(file, error) from error
    async with database.read() as connection:
        return (await connection.execute(select(checkpoints.c.seq).limit(1))).first() is not None


def sign_tail(tx: Transaction, signer: Signer) -> Made | None:
    """Sign the newest record's hash; the checkpoint that it has already, if it has one; None without records."""
    seq, digest = tx.tail.last, tx.tail.hash
    if not seq:
        return None
    found = tx.connection.scalar(select(checkpoints.c.note).where(checkpoints.c.seq == seq))
    if found is not None:
        return Made(Checkpoint(seq, digest), str(found), False)
    checkpoint = Checkpoint(seq, digest)
    note = signer.sign(checkpoint)
    tx.connection.execute(insert(checkpoints), {"seq": seq, "at": tx.at, "note": note})
    return Made(checkpoint, note, True)


@dataclass(frozen=True)
class Findings:
    """What the comparison at start has found. events: put onto the ledger. signed: the newest record with a checkpoint.
    copied: the newest one that the file knows."""

    events: list[tuple[str, dict[str, Any]]]
    signed: int
    copied: int


def inspect(tx: Transaction, key: PublicKey, in_file: str | None, dropped: int) -> Findings:
    """Compare the records with the newest checkpoints and put what is wrong onto the ledger, so that it stays said.

    in_file: the last note of checkpoints.txt. dropped: bytes that were cut off it.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    row = tx.connection.execute(
        select(checkpoints.c.seq, checkpoints.c.note).order_by(checkpoints.c.seq.desc()).limit(1)
    ).first()
    if dropped:
        found.append(("ledger.repaired", {"file": "checkpoints.txt", "dropped_bytes": dropped}))
    elif in_file is None and row is not None:
        found.append(("ledger.repaired", {"file": "checkpoints.txt", "missing": True}))
    signed = [("checkpoints.txt", in_file), ("the database's checkpoints", None if row is None else str(row.note))]
    named: dict[str, Checkpoint] = {}
    for source, note in signed:
        if note is None:
            continue
        try:
            named[source] = key.checkpoint(note)
        except NoteError as error:
            found.append(("ledger.altered", {"where": source, "why": str(error)}))
    last, given = tx.tail.last, tx.tail.seq
    for source, checkpoint in named.items():
        if checkpoint.seq > last:
            given = max(given, checkpoint.seq)
        elif not _holds(tx, checkpoint):
            found.append(
                ("ledger.altered", {"where": f"record {checkpoint.seq}", "why": f"{source} have another hash"})
            )
    if given > last:
        by = [source for source, checkpoint in named.items() if checkpoint.seq == given] or ["the database's count"]
        found.append(("ledger.tail_missing", {"last_on_record": last, "missing_through": given, "named_by": by[0]}))
    tx.skip_to(given)
    for kind, body in found:
        tx.append(kind, body)
    copied = named["checkpoints.txt"].seq if "checkpoints.txt" in named else claimed_seq(in_file or "") or 0
    # A file of somebody else's may claim anything; what the database has by now is not written behind that once more.
    copied = min(copied, int(row.seq) if row is not None else copied)
    return Findings(found, max((each.seq for each in named.values() if each.seq <= last), default=0), copied)


def _holds(tx: Transaction, checkpoint: Checkpoint) -> bool:
    """Whether the record of a checkpoint has its hash – or is older than what retention has left."""
    begin = tx.connection.execute(select(anchors.c.seq, anchors.c.hash).order_by(anchors.c.seq.desc()).limit(1)).first()
    if begin is not None and checkpoint.seq <= int(begin.seq):
        return checkpoint.seq < int(begin.seq) or checkpoint.hash == bytes(begin.hash)
    found = (
        tx.connection.scalar(select(table.c.hash).where(table.c.seq == checkpoint.seq)) for table in (exchanges, events)
    )
    return checkpoint.hash in found
