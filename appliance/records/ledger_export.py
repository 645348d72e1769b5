"""The ledger as lines of JSON that can be verified anywhere with the public key alone.

First a line {"anchor": {"seq", "hash"}}, then {"seq", "kind", "body", "hash"} for each record, and {"checkpoint": NOTE}
behind the record that it names. What stands in `body` is, byte for byte, what was hashed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import msgspec

from appliance.errors import BadRequest
from appliance.records.chain import GENESIS
from appliance.records.ledger_store import EXCHANGE, LedgerStore
from appliance.records.notes import PublicKey, claimed_seq
from appliance.records.verify import ELSEWHERE, Anchor, Record, Report, Verifier

EXPORT = "the export"


class _AnchorLine(msgspec.Struct):
    seq: int
    hash: str


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """What a line may have when it is read."""

    anchor: _AnchorLine | None = None
    checkpoint: str | None = None
    seq: int | None = None
    kind: str | None = None
    body: msgspec.Raw = msgspec.Raw(b"null")
    hash: str | None = None
    fault: str | None = None


class _Body(msgspec.Struct):
    seq: int
    kind: str
    type: str


_encode = msgspec.json.Encoder().encode
_line = msgspec.json.Decoder(_Line)
_body = msgspec.json.Decoder(_Body)


async def export_lines(store: LedgerStore, after: int = 0) -> AsyncIterator[bytes]:
    """Lines, some at a time, up to the newest record of now. after: the record that the export begins behind.

    Raises BadRequest for a number that is not in the ledger, RecordsUnavailable.
    """
    anchor = await store.anchor() or Anchor(0, GENESIS)
    if after > anchor.seq:
        found = await store.batch(after - 1, after)
        if not found or found[0].hash is None:
            raise BadRequest(f"after: there is no record {after}; use a number from {anchor.seq} on", param="after")
        anchor = Anchor(after, found[0].hash)
    yield _encode({"anchor": _AnchorLine(anchor.seq, anchor.hash.hex())}) + b"\n"
    through, last = await store.newest(), anchor.seq
    notes = dict(await store.notes(anchor.seq - 1, anchor.seq))
    yield b"".join(_note(note) for note in notes.values())
    async for records in store.read(anchor.seq, through):
        notes = dict(await store.notes(last, records[-1].seq))
        lines = []
        for record in records:
            lines.append(record_line(record))
            if (note := notes.pop(record.seq, None)) is not None:
                lines.append(_note(note))
        # Of records that are missing: whoever verifies the export is to learn of it.
        lines += map(_note, notes.values())
        last = records[-1].seq
        yield b"".join(lines)
    yield b"".join(_note(note) for _, note in await store.notes(last, await store.noted()))


def record_line(record: Record) -> bytes:
    """A record as a line. One that cannot be read has no body, but says why."""
    body = msgspec.Raw(record.body) if record.fault is None else None
    digest = None if record.hash is None else record.hash.hex()
    line = {"seq": record.seq, "kind": record.kind, "body": body, "hash": digest}
    return _encode(line if record.fault is None else {**line, "fault": record.fault}) + b"\n"


def _note(note: str) -> bytes:
    return _encode({"checkpoint": note}) + b"\n"


def verify_export(
    lines: Iterable[bytes], key: PublicKey, *, elsewhere: Iterable[str] = (), named: str = "the file"
) -> Report:
    """Verify an export, line by line. Raises BadRequest for what is no export; `named` is what it is called then.

    That the export begins where it says cannot be told from it; the report says after which record.
    """
    numbered = enumerate(lines, 1)
    anchor = _anchor(next(numbered, (1, b""))[1], named)
    verifier = Verifier(anchor, key, (), begins_anywhere=True)
    for note in elsewhere:
        verifier.checkpoint(ELSEWHERE, claimed_seq(note), note)
    waiting: Record | None = None
    for number, text in numbered:
        line = _parsed(text, f"{named}, line {number}")
        if line.checkpoint is not None:
            verifier.checkpoint(EXPORT, claimed_seq(line.checkpoint), line.checkpoint)
            continue
        # Checkpoints of a record follow it, and the verifier wants them before it.
        if waiting is not None:
            verifier.record(waiting)
        waiting = _record(line, f"{named}, line {number}")
    if waiting is not None:
        verifier.record(waiting)
    return verifier.end()


def _anchor(text: bytes, named: str) -> Anchor:
    line = _parsed(text, f"{named}, line 1")
    if line.anchor is None:
        raise BadRequest(f'{named} does not begin with a line {{"anchor": …}}: use what `outpost ledger export` wrote')
    return Anchor(line.anchor.seq, _hex(line.anchor.hash) or b"")


def _parsed(text: bytes, place: str) -> _Line:
    try:
        return _line.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRequest(f"{place} is not a line of an export: {error}") from error


def _record(line: _Line, place: str) -> Record:
    if line.seq is None or line.kind is None:
        raise BadRequest(f"{place} is not a record: it needs seq, kind, body and hash")
    body = bytes(line.body)
    fault = line.fault
    if fault is None:
        try:
            own = _body.decode(body)
            kind = EXCHANGE if own.type == EXCHANGE else own.kind
            if (own.seq, kind) != (line.seq, line.kind):
                fault = "the line says something else than its body"
        except (msgspec.MsgspecError, UnicodeDecodeError):
            fault = "its body is not that of a record"
    return Record(line.seq, line.kind, body, _hex(line.hash), fault)


def _hex(text: str | None) -> bytes | None:
    try:
        return None if text is None else bytes.fromhex(text)
    except ValueError:
        return None
