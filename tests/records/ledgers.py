"""Ledgers made by hand, for tests of what verifies them."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.records.chain import GENESIS, event_body, link
from appliance.records.notes import Checkpoint, PublicKey, Signer
from appliance.records.verify import DATABASE, DROPPED, ELSEWHERE, FILE, Anchor, Record, Report, Verifier

SIGNER = Signer(bytes(range(32)))
ANCHOR = Anchor(0, GENESIS)


def ledger(count: int, cuts: dict[int, int] | None = None) -> list[Record]:
    """cuts: number → what retention says there that it has cut off."""
    records = []
    digest = GENESIS
    for seq in range(1, count + 1):
        kind, said = "test", {"n": seq * 7}
        if cuts and seq in cuts:
            kind, said = DROPPED, {"records": 1, "through": cuts[seq]}
        body = event_body(seq, kind, seq, said)
        digest = link(digest, body)
        records.append(Record(seq, kind, body, digest))
    return records


def notes(records: list[Record], every: int = 5) -> list[tuple[int | None, str]]:
    return [(r.seq, SIGNER.sign(Checkpoint(r.seq, r.hash or b""))) for r in records if r.seq % every == 0]


def check(records: list[Record], signed: list[tuple[int | None, str]], anchor: Anchor | None = ANCHOR) -> Report:
    return verify(records, {DATABASE: signed, FILE: signed}, anchor, SIGNER.public)


def verify(
    records: Iterable[Record],
    checkpoints: dict[str, list[tuple[int | None, str]]],
    anchor: Anchor | None,
    key: PublicKey,
    *,
    given: int = 0,
) -> Report:
    """All at once. checkpoints: source → (claimed number, note), in order."""
    verifier = Verifier(anchor, key, [source for source in checkpoints if source != ELSEWHERE])
    for source, notes in checkpoints.items():
        for seq, note in notes:
            verifier.checkpoint(source, seq, note)
    for record in records:
        verifier.record(record)
    return verifier.end(given)
