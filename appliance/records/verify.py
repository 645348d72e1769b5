"""Verifying the ledger. Pure: records and checkpoints are fed in the order of their numbers, a report comes out.

What cannot be found out from the records alone: those behind the last checkpoint may have been forged or cut off by
somebody who can write to the database, and both the database and the file of checkpoints may have been set back
together. Against that, a checkpoint kept elsewhere can be fed as a source of its own. How much may stand behind the
last checkpoint is bounded by how often a gateway signs: more of it means that checkpoints are gone.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from appliance.records.chain import GENESIS, link
from appliance.records.notes import NoteError, PublicKey

MOST_PROBLEMS = 100
"""Problems that a report lists; the rest are counted."""

EVERY = 1000
"""A gateway signs a checkpoint after so many records, and after a minute in which there were new ones."""
MOST_UNSIGNED = 10 * EVERY
"""Records behind the last checkpoint that a busy gateway which was killed may have left."""
MOST_UNSIGNED_US = 600_000_000
"""Microseconds between the ends of the first and the last request behind the last checkpoint. Other records do not
count: a command makes them where no gateway runs, and signs nothing."""

DROPPED = "records.dropped"
"""The kind of the event with which retention says, in its `through`, which record was the last that it cut off."""

DATABASE = "the database"
FILE = "checkpoints.txt"
ELSEWHERE = "the checkpoint that was given"

EXCHANGE = "exchange"
"""The kind of a record that is an exchange, here and in exports."""


class Record(msgspec.Struct, frozen=True):
    """A record as it was found. fault: why its body could not even be made."""

    seq: int
    kind: str
    body: bytes
    hash: bytes | None
    fault: str | None = None


class Anchor(msgspec.Struct, frozen=True):
    """Where the chain begins: behind the record `seq`, which had this hash."""

    seq: int
    hash: bytes
    reason: str = ""


class Problem(msgspec.Struct, frozen=True):
    """Something that is not as it was written. seq: the first record that it is about."""

    seq: int
    what: str


class _Cut(msgspec.Struct):
    through: int = 0


class _Ended(msgspec.Struct):
    started_at_us: int
    duration_us: int


_cut = msgspec.json.Decoder(_Cut)
_ended = msgspec.json.Decoder(_Ended)


class Report(msgspec.Struct, kw_only=True):
    """What was found. `problems` are in the order of their numbers."""

    ok: bool
    records: int
    begins_after: int
    last: int
    hash: str
    """That of the last record, in hexadecimal."""
    older: int
    """Records from before there was a ledger: no hash covers them."""
    checkpoints: int
    """Signed checkpoints that fit."""
    signed_through: int
    """The last record that a checkpoint covers."""
    problems: list[Problem]
    problem_count: int


class Verifier:
    """Feed `checkpoint` with all notes up to a number before `record` with that number; then call `end`.

    sources: those that must each have every checkpoint. begins_anywhere: it may be a part of a ledger, so nothing has
    to vouch for its beginning.
    """

    def __init__(
        self,
        anchor: Anchor | None,
        key: PublicKey,
        sources: Iterable[str] = (DATABASE, FILE),
        *,
        begins_anywhere: bool = False,
    ) -> None:
        self._key = key
        self._sources = frozenset(sources)
        self._anchor = anchor
        self._last = anchor.seq if anchor else 0
        self._hashes: set[bytes] = {anchor.hash} if anchor else set()
        """What the next record may follow: the last one's hash as it stands there, and as it was worked out."""
        self._stored: bytes | None = anchor.hash if anchor else None
        self._part = begins_anywhere
        self._vouched = begins_anywhere or anchor is None or anchor.hash == GENESIS
        self._cut = 0
        """What the newest event of retention says was cut off, 0 for none."""
        self._unsigned: Record | None = None
        """The first request behind the last checkpoint that fits."""
        self._request: Record | None = None
        """The newest request."""
        self._pending: dict[int, dict[str, str]] = {}
        self._newest: dict[str, int] = {}
        self._lacking: dict[str, int] = {}
        self._problems: list[Problem] = []
        self._count = 0
        self._records = self._older = self._checkpoints = self._signed = 0
        if anchor is None:
            self._found(0, "the database does not say any more where the ledger begins (its anchor is gone)")

    def checkpoint(self, source: str, seq: int | None, note: str) -> None:
        """A note of a source. seq: what it claims to speak of, None where it has not even the form."""
        if seq is None:
            self._found(
                self._newest.get(source, self._last), f"{source} has a checkpoint that is not one: {note[:80]!r}"
            )
            return
        if seq <= self._newest.get(source, -1):
            self._found(seq, f"{source} has the checkpoint of record {seq} out of order")
            return
        self._newest[source] = seq
        if (lacking := self._lacking.pop(source, seq)) < seq:
            self._found(lacking, f"{source} lacks the checkpoint of record {lacking}, but has later ones")
        self._pending.setdefault(seq, {})[source] = note

    def record(self, record: Record) -> None:
        """The next record."""
        seq = record.seq
        begin = self._anchor.seq if self._anchor else 0
        if seq < 1:
            self._found(seq, f"record {seq} was put in by somebody: numbers begin at 1")
            return
        if seq <= begin:
            # Retention drops what is older than the ledger before it cuts anything off the ledger itself.
            if record.hash is None and self._anchor is not None and self._anchor.hash == GENESIS:
                self._older += 1
            else:
                self._found(seq, f"record {seq} lies before the ledger's beginning after {begin}")
            return
        if seq <= self._last:
            self._found(seq, f"the number {seq} was given twice")
            return
        self._close_pending(seq - 1)
        if self._anchor is None and not self._records:
            self._last = seq - 1
        if seq > self._last + 1:
            self._missing(self._last + 1, seq - 1)
            self._hashes.clear()
        self._records += 1
        self._check(record)
        self._last = seq
        self._stored = record.hash
        self._close_pending(seq)

    def end(self, given: int = 0) -> Report:
        """given: the highest number that the database remembers to have given."""
        self._close_pending(self._last)
        named, by = self._beyond()
        if named:
            self._missing(self._last + 1, named, f": {by} has a checkpoint of record {named}")
        elif given > self._last:
            self._missing(self._last + 1, given, ": the database remembers that their numbers were given")
        if FILE in self._lacking and FILE not in self._newest:
            self._found(self._lacking[FILE], f"{FILE} is missing or empty")
        if not self._vouched and self._anchor is not None:
            seq = self._anchor.seq
            self._found(seq, f"the ledger begins after record {seq}, and no signed checkpoint says that it was there")
        self._judge_beginning()
        self._judge_unsigned()
        problems = sorted(self._problems, key=lambda problem: problem.seq)
        return Report(
            ok=not self._count,
            records=self._records,
            begins_after=self._anchor.seq if self._anchor else 0,
            last=self._last,
            hash=(self._stored or b"").hex(),
            older=self._older,
            checkpoints=self._checkpoints,
            signed_through=self._signed,
            problems=problems,
            problem_count=self._count,
        )

    def _judge_beginning(self) -> None:
        """Whoever can write to the database can move its beginning to any checkpoint; retention says where it cut."""
        if self._part or self._anchor is None or self._anchor.hash == GENESIS or self._cut == self._anchor.seq:
            return
        seq = self._anchor.seq
        but = f"; the newest one says so of those up to {self._cut}" if self._cut else ""
        self._found(
            seq, f"the ledger begins after {seq}, and no record says that retention has dropped what stood before{but}"
        )

    def _judge_unsigned(self) -> None:
        """A gateway signs what it records: if much has no signature, checkpoints were taken away, and with them the
        proof."""
        signed = max(self._signed, self._anchor.seq if self._anchor else 0)
        behind = "no checkpoint" if not self._signed else f"no checkpoint behind record {self._signed}"
        hint = "; a running gateway signs one every minute: if one was started just now, verify again then"
        most = MOST_UNSIGNED if self._signed or self._part else EVERY
        count = self._last - signed
        first, last = _end_of(self._unsigned), _end_of(self._request)
        took = last - first if first and last else 0
        if count > most:
            self._found(signed + 1, f"{behind}, though there are {count} records{hint}")
        elif took > MOST_UNSIGNED_US:
            self._found(signed + 1, f"{behind}, though there are requests of {took // 60_000_000} minutes{hint}")

    def _beyond(self) -> tuple[int, str]:
        """The newest genuine checkpoint of a record behind the last one, 0 for none, and who has it."""
        named, by = 0, ""
        for seq, notes in sorted(self._pending.items()):
            for source, note in notes.items():
                try:
                    self._key.checkpoint(note)
                except NoteError as error:
                    self._found(seq, f"the checkpoint of record {seq} in {source} is not genuine: {error}")
                else:
                    named, by = seq, source
        return named, by

    # --- one record, one checkpoint ---

    def _check(self, record: Record) -> None:
        seq, stored = record.seq, record.hash
        if record.fault is not None:
            self._found(seq, f"record {seq} ({record.kind}): {record.fault}")
            self._hashes = {stored} if stored else set()
            return
        computed = {link(previous, record.body) for previous in self._hashes}
        if stored is None:
            self._found(seq, f"record {seq} ({record.kind}) has no hash")
        elif computed and stored not in computed:
            self._found(seq, f"record {seq} ({record.kind}) is not what was written: its hash differs")
        self._hashes = computed | ({stored} if stored else set())
        if record.kind == EXCHANGE:
            self._unsigned = self._unsigned or record
            self._request = record
        elif record.kind == DROPPED:
            self._cut = _through(record) or self._cut

    def _close_pending(self, through: int) -> None:
        """Check the checkpoints of records up to a number, which have all been seen."""
        for seq in sorted(seq for seq in self._pending if seq <= through):
            notes = self._pending.pop(seq)
            for note in dict.fromkeys(notes.values()):
                self._check_note(seq, _and(source for source in notes if notes[source] == note), note)
            if len(set(notes.values())) > 1:
                self._found(seq, f"{_and(notes)} have different checkpoints of record {seq}")
            if self._anchor is not None and seq <= self._anchor.seq:
                # Retention leaves them in the file.
                continue
            if notes.keys() == {ELSEWHERE}:
                # Made after a backup that was put back: what it speaks of is there, and the box never had the note.
                continue
            for source in self._sources - notes.keys():
                if source == FILE and self._newest.get(FILE, 0) < seq:
                    # The file is written after the database: it may be behind, but nothing may be missing inside it.
                    self._lacking.setdefault(source, seq)
                else:
                    self._found(seq, f"{source} lacks the checkpoint of record {seq}, which {_and(notes)} has")

    def _check_note(self, seq: int, source: str, note: str) -> None:
        try:
            said = self._key.checkpoint(note)
        except NoteError as error:
            self._found(seq, f"the checkpoint of record {seq} in {source} is not genuine: {error}")
            return
        begin = self._anchor.seq if self._anchor else 0
        if seq < begin:
            return
        if seq == begin and self._anchor is not None:
            self._vouched = self._vouched or said.hash == self._anchor.hash
            if said.hash != self._anchor.hash:
                self._found(seq, f"the checkpoint of record {seq} in {source} has another hash than the beginning")
                return
        elif seq == self._last:
            if said.hash != self._stored:
                after = f" after {self._signed}" if self._signed else ""
                self._found(seq, f"the checkpoint of record {seq} has another hash: it or a record{after} was changed")
                return
        else:
            # Its record is missing, which has been said.
            return
        self._checkpoints += 1
        self._signed = max(self._signed, seq)
        self._unsigned = None

    def _missing(self, first: int, last: int, why: str = "") -> None:
        what = f"record {first} is missing" if first == last else f"records {first} to {last} are missing"
        self._found(first, what + why)

    def _found(self, seq: int, what: str) -> None:
        self._count += 1
        if len(self._problems) < MOST_PROBLEMS:
            self._problems.append(Problem(seq, what))


def _through(record: Record) -> int:
    """What an event of retention says, 0 where it tells of no cut."""
    try:
        return _cut.decode(record.body).through
    except msgspec.MsgspecError:
        return 0


def _end_of(record: Record | None) -> int:
    """When a request was over and put on record (unix microseconds), 0 where nothing says it."""
    try:
        ended = _ended.decode(record.body if record else b"")
    except msgspec.MsgspecError:
        return 0
    return ended.started_at_us + ended.duration_us


def _and(names: Iterable[str]) -> str:
    return " and ".join(sorted(names))
