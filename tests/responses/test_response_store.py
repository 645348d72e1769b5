"""Stored responses in both kinds of database: only their owner finds them, none outlives its time or an erasure."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st
from sqlalchemy import select

from appliance.errors import BadRequest, RecordsUnavailable
from appliance.identity.principal import Principal
from appliance.records.content import ContentDamaged, Keeper
from appliance.records.database import Database, Where
from appliance.records.erase import erase
from appliance.records.recorder import Recorder
from appliance.records.subject_keys import SubjectKey
from appliance.records.tables import events, responses
from appliance.responses import store as store_module
from appliance.responses.sealing import MARK, open_text, seal_text
from appliance.responses.store import Owner, ResponseStore, Stored, owner_of
from appliance.settings.recording import DAY
from tests.postgres import Cluster
from tests.records.ledger_walk import walk

NOW = 1_000 * DAY
ANN, BOB = Owner("user_ann", "org_a"), Owner("user_bob", "org_a")
ACTOR = {"key": "key_admin", "role": "admin", "organization": "org_default"}


@dataclasses.dataclass
class Box:
    database: Database
    recorder: Recorder
    keeper: Keeper
    store: ResponseStore
    now: float = NOW

    async def add(self, id: str, owner: Owner = ANN, *, previous: str | None = None, **fields: Any) -> bool:
        stored = Stored(id, owner, "chat", previous_id=previous, **{"created_at": self.now, **fields})
        return await (await self.store.add(stored, f"in of {id}".encode(), f"out of {id}".encode()))

    async def ids(self) -> list[str]:
        async with self.database.read() as connection:
            return list(await connection.scalars(select(responses.c.id).order_by(responses.c.id)))

    async def chain(self, id: str, owner: Owner = ANN) -> tuple[list[str], str | None, bool]:
        found = await self.store.chain(id, owner)
        return [turn.stored.id for turn in found.turns], found.missing, found.too_large


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Where]:
    if request.param == "sqlite":
        yield tmp_path / "outpost.db"
        return
    cluster: Cluster = request.getfixturevalue("postgres")
    name = cluster.new_database(cluster.template)
    yield cluster.server(name, backups=tmp_path / "backups")
    cluster.drop(name)


@asynccontextmanager
async def opened(where: Where) -> AsyncIterator[Box]:
    database = await Database.open(where)
    recorder = Recorder(database, wall=lambda: NOW)
    await recorder.start()
    keeper = Keeper(database, bytes(32), clock=lambda: NOW)
    box = Box(database, recorder, keeper, None)  # type: ignore[arg-type]
    box.store = ResponseStore(database, recorder, keeper.keys, kept_s=30 * DAY, clock=lambda: box.now)
    yield box
    await recorder.close()
    await database.close()


@pytest.fixture
async def any_box(where: Where) -> AsyncIterator[Box]:
    async with opened(where) as box:
        yield box


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    async with opened(tmp_path / "outpost.db") as made:
        yield made


async def test_what_is_stored_is_read_again_by_its_owner_alone(any_box: Box) -> None:
    assert await any_box.add("resp_1", team="team_x", status="incomplete", background=True)
    turn = await any_box.store.read("resp_1", ANN)
    assert turn is not None
    assert (turn.input, turn.answer) == (b"in of resp_1", b"out of resp_1")
    wanted = Stored("resp_1", ANN, "chat", "team_x", None, "incomplete", True, 25, NOW)
    assert turn.stored == wanted == await any_box.store.find("resp_1", ANN)
    for owner in (BOB, Owner("user_ann", "org_b"), Owner("", "")):
        assert await any_box.store.read("resp_1", owner) is None
        assert await any_box.store.find("resp_1", owner) is None
        assert await any_box.chain("resp_1", owner) == ([], "resp_1", False)
        assert await any_box.store.delete("resp_1", owner, ACTOR) is False
    for odd in ("resp_2", "", "resp_1 ", "resp_1\0", "ü", "x" * 200, "' OR 1=1 --"):
        assert await any_box.store.read(odd, ANN) is None
        assert await any_box.chain(odd) == ([], odd, False)
    assert await any_box.ids() == ["resp_1"]


async def test_texts_are_sealed(any_box: Box) -> None:
    big = bytes(range(32, 127)) * 1000
    assert await (await any_box.store.add(Stored("resp_1", ANN, "chat", created_at=NOW), b"a secret", big))
    async with any_box.database.read() as connection:
        row = (await connection.execute(select(responses))).one()
    assert b"secret" not in bytes(row.input)
    assert len(row.answer) < len(big) / 10
    turn = await any_box.store.read("resp_1", ANN)
    assert turn is not None
    assert (turn.input, turn.answer) == (b"a secret", big)


@pytest.mark.parametrize("change", [{"id": "resp_2"}, {"input": b"x" * 40}, {"input_nonce": bytes(12)}, "swap"])
async def test_what_is_altered_or_moved_does_not_open(box: Box, change: Any) -> None:
    await box.add("resp_1")
    async with box.database.read() as connection:
        row = (await connection.execute(select(responses))).one()
    if change == "swap":
        change = {"input": row.answer, "input_nonce": row.answer_nonce}
    await box.recorder.write(lambda tx: tx.connection.execute(responses.update().values(change)))
    with pytest.raises(ContentDamaged):
        await box.store.read(change.get("id", "resp_1"), ANN)


async def test_a_chain_is_walked_to_its_beginning(any_box: Box) -> None:
    previous = None
    for number in range(5):
        await any_box.add(f"resp_{number}", previous=previous)
        previous = f"resp_{number}"
    await any_box.add("resp_side", previous="resp_1")
    assert await any_box.chain("resp_4") == ([f"resp_{n}" for n in range(5)], None, False)
    assert await any_box.chain("resp_side") == (["resp_0", "resp_1", "resp_side"], None, False)
    turns = (await any_box.store.chain("resp_2", ANN)).turns
    assert [turn.input for turn in turns] == [b"in of resp_0", b"in of resp_1", b"in of resp_2"]
    assert await any_box.store.delete("resp_2", ANN, ACTOR)
    assert await any_box.chain("resp_4") == (["resp_3", "resp_4"], "resp_2", False)
    # Another's is as one that is not there, even in the middle.
    await any_box.add("resp_5", previous="resp_bob")
    await any_box.add("resp_bob", BOB)
    assert await any_box.chain("resp_5") == (["resp_5"], "resp_bob", False)


async def test_a_chain_is_bounded(any_box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MOST_TURNS", 4)
    for number in range(6):
        await any_box.add(f"resp_{number}", previous=f"resp_{number - 1}" if number else None)
    assert await any_box.chain("resp_3") == ([f"resp_{n}" for n in range(4)], None, False)
    assert (await any_box.chain("resp_4"))[2]
    assert (await any_box.chain("resp_5"))[2]
    size = len(b"in of resp_0" + b"out of resp_0")
    monkeypatch.setattr(store_module, "MOST_BYTES", 3 * size)
    assert not (await any_box.chain("resp_2"))[2]
    assert (await any_box.chain("resp_3"))[2]


async def test_a_circle_ends(box: Box) -> None:
    """Only somebody who writes into the database can make one."""
    await box.add("resp_1", previous="resp_2")
    await box.add("resp_2", previous="resp_1")
    assert (await box.chain("resp_1"))[2]


async def test_a_response_ends_once(any_box: Box) -> None:
    for first, second in itertools.permutations(["completed", "cancelled", "failed"], 2):
        id = f"resp_{first}_{second}"
        await any_box.add(id, status="queued", background=True)
        stored = await any_box.store.find(id, ANN)
        assert stored is not None
        assert await (await any_box.store.settle(stored, first, b"the first"))
        assert not await (await any_box.store.settle(stored, second, b"the second"))
        turn = await any_box.store.read(id, ANN)
        assert turn is not None
        assert (turn.stored.status, turn.input, turn.answer) == (first, f"in of {id}".encode(), b"the first")
    assert not await (await any_box.store.settle(Stored("resp_gone", ANN, "chat"), "completed", b"x"))


async def test_a_start_fails_what_was_left_unfinished(any_box: Box) -> None:
    for status in ("queued", "in_progress", "completed", "cancelled"):
        await any_box.add(f"resp_{status}", status=status)
    assert await any_box.store.fail_unfinished() == 2
    assert await any_box.store.fail_unfinished() == 0
    found = {id: await any_box.store.find(id, ANN) for id in await any_box.ids()}
    assert {id: stored.status for id, stored in found.items() if stored} == {
        "resp_queued": "failed",
        "resp_in_progress": "failed",
        "resp_completed": "completed",
        "resp_cancelled": "cancelled",
    }


async def test_who_deletes_is_on_the_ledger(any_box: Box) -> None:
    await any_box.add("resp_1")
    assert await any_box.store.delete("resp_1", ANN, ACTOR)
    assert not await any_box.store.delete("resp_1", ANN, ACTOR)
    async with any_box.database.read() as connection:
        (row,) = (await connection.execute(select(events.c.kind, events.c.body))).all()
    assert row.kind == "responses.delete"
    assert {"actor": ACTOR, "object": "resp_1"}.items() <= msgspec.json.decode(row.body).items()
    assert len(await walk(any_box.database)) == 1


async def test_nothing_is_read_past_its_time(box: Box) -> None:
    await box.add("resp_1")
    await box.add("resp_2", previous="resp_1", created_at=NOW + DAY)
    box.now = NOW + 30 * DAY
    assert await box.chain("resp_2") == (["resp_1", "resp_2"], None, False)
    box.now += 1
    assert await box.store.read("resp_1", ANN) is None
    assert await box.store.find("resp_1", ANN) is None
    assert not await box.store.delete("resp_1", ANN, ACTOR)
    assert await box.chain("resp_2") == (["resp_2"], "resp_1", False)
    box.store.kept_s = 31 * DAY
    assert await box.store.read("resp_1", ANN) is not None


async def test_erasing_takes_them_along(any_box: Box) -> None:
    await any_box.add("resp_1")
    await any_box.add("resp_2", BOB)
    key = await any_box.keeper.keys.get(ANN.subject)
    done = await erase(any_box.recorder, any_box.database, any_box.keeper.keys, ANN.subject, ACTOR, oversees="org_a")
    assert (done.contents, done.responses, done.key) == (0, 1, True)
    assert await any_box.ids() == ["resp_2"]
    assert await any_box.store.read("resp_2", BOB) is not None
    # What was sealed just before is not written behind it; what comes later is, under a new key.
    assert key.erased
    assert await any_box.add("resp_3")
    assert await any_box.store.read("resp_3", ANN) is not None


async def test_what_is_under_way_while_its_owner_is_erased_is_not_kept(box: Box) -> None:
    await box.add("resp_0")
    await box.add("resp_1", status="queued", background=True)
    stored = await box.store.find("resp_1", ANN)
    assert stored is not None
    gone = await box.keeper.keys.get(ANN.subject)
    get = box.store.keys.get

    async def erased_meanwhile(subject: str) -> SubjectKey:
        key = await get(subject)
        if key is gone:
            await erase(box.recorder, box.database, box.keeper.keys, subject, ACTOR)
        return key

    box.store.keys.get = erased_meanwhile  # type: ignore[method-assign]
    assert not await box.add("resp_2")
    box.store.keys.get = get  # type: ignore[method-assign]
    assert not await (await box.store.settle(stored, "completed", b"late"))
    assert await box.ids() == []


async def test_a_key_that_is_gone_leaves_nothing_to_read(box: Box) -> None:
    """As in a database that was put together from backups."""
    await box.add("resp_1")
    await box.recorder.write(lambda tx: tx.connection.exec_driver_sql("DELETE FROM subject_keys").close())
    again = ResponseStore(
        box.database, box.recorder, Keeper(box.database, bytes(32)).keys, kept_s=DAY, clock=lambda: NOW
    )
    assert await again.read("resp_1", ANN) is None
    assert (await again.chain("resp_1", ANN)).missing == "resp_1"


async def test_a_database_that_cannot_be_written_says_so(box: Box) -> None:
    await box.recorder.close()
    with pytest.raises(RecordsUnavailable):
        await box.add("resp_1")


def test_owners() -> None:
    person = Principal("jwt:x", "jwt:x", "member", "org_a", user="user_ann")
    other_key = Principal("key_2", "b", "member", "org_a", user="user_ann", service_account=None)
    account = Principal("key_3", "c", "member", "org_a", service_account="sa_1")
    lone = Principal("key_4", "d", "member", "org_a")
    assert owner_of(person) == owner_of(other_key) == ANN
    assert owner_of(account) == Owner("sa_1", "org_a")
    assert owner_of(lone) == Owner("key_4", "org_a")
    long = owner_of(Principal("fixed:" + "x" * 300, "e", "member", "org_a")).subject
    assert len(long) < 128


# --- texts that a caller keeps itself ---

KEY = SubjectKey("user_ann", bytes(32), b"", fresh=False)


@bounds(deadline=None, max_examples=50)
@given(st.text(max_size=300))
def test_a_sealed_text_opens_again(text: str) -> None:
    sealed = seal_text(KEY, text, "on_box on_prem", lambda size: bytes(size))
    assert sealed.isascii()
    assert sealed.startswith(MARK)
    opened = open_text(KEY, sealed)
    assert opened == (text.encode("utf-8", "replace").decode(), "on_box on_prem")


@bounds(deadline=None, max_examples=100)
@given(st.data())
def test_an_altered_text_does_not_open(data: st.DataObject) -> None:
    sealed = seal_text(KEY, "what was said", "cloud cloud", lambda size: bytes(size))
    assert sealed.endswith("==")
    at = data.draw(st.integers(len(MARK), len(sealed) - 4))  # of the character after it four bits mean nothing
    other = data.draw(st.characters(codec="ascii").filter(lambda each: each != sealed[at]))
    altered = sealed[:at] + other + sealed[at + 1 :]
    with pytest.raises(BadRequest, match="does not open"):
        open_text(KEY, altered)


def test_what_an_earlier_version_sealed_opens_and_has_no_reach() -> None:
    sealed = (
        "outpost1." + base64.urlsafe_b64encode(
            bytes(12) + KEY.cipher.encrypt(bytes(12), zlib.compress(b"on_box on_box\0said"), b"compaction\0user_ann")
        ).decode()
    )  # fmt: skip
    assert open_text(KEY, sealed) == ("on_box on_box\0said", None)
    with pytest.raises(BadRequest, match="does not open"):
        open_text(KEY, sealed.replace("outpost1.", MARK))


def test_only_ones_own_opens() -> None:
    sealed = seal_text(KEY, "said", "cloud cloud", lambda size: bytes(size))
    others = [SubjectKey("user_bob", bytes(32), b"", fresh=False), SubjectKey("user_ann", b"1" * 32, b"", fresh=False)]
    for key in (*others, None):
        with pytest.raises(BadRequest, match="somebody else's"):
            open_text(key, sealed)
    for foreign in ("", "gAAAA", "what another gateway made"):
        assert open_text(KEY, foreign) is None
