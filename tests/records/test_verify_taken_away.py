"""What was taken away so that nothing left over contradicts it: the ledger's beginning, and its checkpoints."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.records.chain import GENESIS, canonical, link
from appliance.records.notes import Checkpoint
from appliance.records.verify import (
    DATABASE,
    ELSEWHERE,
    EVERY,
    EXCHANGE,
    FILE,
    MOST_UNSIGNED,
    Anchor,
    Record,
    Report,
)
from tests.records.ledgers import ANCHOR, SIGNER, check, ledger, notes, verify


def test_the_beginning_must_be_vouched_for() -> None:
    records = ledger(20, {12: 10})
    signed = notes(records)
    anchor = Anchor(10, records[9].hash or b"", "retention")
    assert check(records[10:], signed[1:], anchor).ok
    assert verify(records[10:], {DATABASE: signed[1:], FILE: signed}, anchor, SIGNER.public).ok
    moved = Anchor(11, records[10].hash or b"")
    assert "no signed checkpoint" in check(records[11:], signed[2:], moved).problems[0].what
    other = Anchor(10, bytes(range(32)))
    assert {problem.seq for problem in check(records[10:], signed[1:], other).problems} == {10, 11}
    forged = [record for record in records[10:] if record.seq != 12]
    assert "no record says that retention" in check(forged, signed[1:], anchor).problems[0].what
    assert "anchor" in check(records, signed, None).problems[0].what
    assert [problem.seq for problem in check(records[9:], signed[1:], anchor).problems] == [10]
    older = [Record(seq, "exchange", b"", None) for seq in (1, 2)]
    behind = Anchor(2, GENESIS)
    digest = link(GENESIS, b"{}")
    report = verify([*older, Record(3, "x", b"{}", digest)], {}, behind, SIGNER.public)
    assert (report.ok, report.older, report.records) == (True, 2, 1)
    added = check([older[1], *records[10:]], signed[1:], anchor)
    assert [(problem.seq, "before the ledger" in problem.what) for problem in added.problems] == [(2, True)]


@given(st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_a_beginning_that_was_moved_is_named(cut: int, moved: int, older: bool) -> None:
    """Retention cut at a checkpoint, perhaps more than once; somebody moves the beginning to any other one, with or
    without the checkpoints before it, or takes a ledger that was never cut."""
    cut, moved = cut * 5, moved * 5
    cuts = {22: cut, 21: cut - 5} if older else {22: cut}
    records = ledger(25, cuts)
    signed = notes(records)
    behind = [note for note in signed if (note[0] or 0) >= moved]
    anchor = Anchor(moved, records[moved - 1].hash or b"")
    for database, file in ((behind, signed), (behind, behind)):
        report = verify(records[moved:], {DATABASE: database, FILE: file}, anchor, SIGNER.public)
        assert report.ok is (moved == cut)
        if moved != cut:
            assert [problem.seq for problem in report.problems] == [moved]
            assert f"the ledger begins after {moved}, and no record says" in report.problems[0].what
            assert f"of those up to {cut}" in report.problems[0].what
    never = ledger(25)
    anchor = Anchor(moved, never[moved - 1].hash or b"")
    report = check(never[moved:], [note for note in notes(never) if (note[0] or 0) >= moved], anchor)
    assert [problem.seq for problem in report.problems] == [moved]
    # What retention says counts only behind the beginning, and texts that it dropped say nothing of records.
    assert not check(ledger(25, {moved: moved})[moved:], [], anchor).ok


def test_a_checkpoint_that_only_somebody_elsewhere_has_is_not_asked_of_the_box() -> None:
    """Signed after a backup that had its record already: putting the backup back loses nothing."""
    records = ledger(12)
    signed = notes(records)
    kept: list[tuple[int | None, str]] = [(12, SIGNER.sign(Checkpoint(12, records[11].hash or b"")))]
    report = verify(records, {DATABASE: signed, FILE: signed, ELSEWHERE: kept}, ANCHOR, SIGNER.public)
    assert report.problems == []
    assert (report.signed_through, report.checkpoints) == (12, 3)
    # With another hash, or of a record that is not there, it is as loud as ever.
    other: list[tuple[int | None, str]] = [(12, SIGNER.sign(Checkpoint(12, bytes(32))))]
    report = verify(records, {DATABASE: signed, FILE: signed, ELSEWHERE: other}, ANCHOR, SIGNER.public)
    assert [problem.seq for problem in report.problems] == [12]
    assert "another hash" in report.problems[0].what
    assert not verify(records[:11], {DATABASE: signed, FILE: signed, ELSEWHERE: kept}, ANCHOR, SIGNER.public).ok
    # And what the file has, the database must have.
    assert not verify(records, {DATABASE: signed, FILE: [*signed, *kept]}, ANCHOR, SIGNER.public).ok


def requests(ends_s: list[int]) -> list[Record]:
    """Requests that ended at these moments (seconds), each after it had taken two minutes."""
    records, digest = [], GENESIS
    for seq, end in enumerate(ends_s, 1):
        said = {"duration_us": 120_000_000, "seq": seq, "started_at_us": (end - 120) * 1_000_000, "type": EXCHANGE}
        body = canonical(said)
        digest = link(digest, body)
        records.append(Record(seq, EXCHANGE, body, digest))
    return records


@pytest.mark.parametrize(
    ("records", "says"),
    [
        (ledger(0), None),
        (ledger(EVERY), None),
        (ledger(EVERY + 1), f"no checkpoint, though there are {EVERY + 1} records"),
        (requests([1000, 1600]), None),
        (requests([1000, 1200, 1660]), "no checkpoint, though there are requests of 11 minutes"),
        (requests([10**6, 1000]), None),
    ],
)
def test_much_that_nobody_has_signed_is_not_sound(records: list[Record], says: str | None) -> None:
    """The table's rows and the file taken away together leave nothing else to see."""
    report = check(records, [])
    assert report.ok is (says is None)
    if says is not None:
        [problem] = report.problems
        assert problem.seq == 1
        assert says in problem.what
    # Checkpoints of the end, and be they elsewhere, are a proof.
    if records:
        end: list[tuple[int | None, str]] = [
            (len(records), SIGNER.sign(Checkpoint(len(records), records[-1].hash or b"")))
        ]
        assert verify(records, {ELSEWHERE: end}, ANCHOR, SIGNER.public).ok


def test_much_behind_the_last_checkpoint_is_not_sound() -> None:
    """The newest checkpoints taken away, to forge what they covered; one is left so that there are some."""

    def signed(records: list[Record], *seqs: int) -> Report:
        return check(records, [(seq, SIGNER.sign(Checkpoint(seq, records[seq - 1].hash or b""))) for seq in seqs])

    many = ledger(MOST_UNSIGNED + 2)
    assert signed(many, 2).ok
    report = signed(many, 1)
    assert [problem.seq for problem in report.problems] == [2]
    assert report.problems[0].what.startswith("no checkpoint behind record 1, though there are 10001 records")
    long = requests([1000, 1100, 1701, 1800])
    assert signed(long, 1, 3).ok
    assert [problem.seq for problem in signed(long, 1).problems] == [2]
    assert "no checkpoint behind record 1, though there are requests of 11 minutes" in signed(long, 1).problems[0].what
    assert signed(long, 2).ok, "1701 to 1800 only"
