"""Erasing a person: no byte of the key or of the texts is left in the files, everybody else keeps theirs, the ledger
verifies."""

from __future__ import annotations

import dataclasses
import random
import sqlite3
import threading
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert, select

from appliance.errors import NotFound, PermissionDenied
from appliance.records.content import Keeper
from appliance.records.database import Database
from appliance.records.erase import Erased, erase
from appliance.records.export.source import RecordedEvent, Source
from appliance.records.recorder import Recorder
from appliance.records.retention import drop_content
from appliance.records.rows import ExchangeRow
from appliance.records.tables import api_keys, contents, organizations, subject_keys, users
from tests.records.ledger_walk import walk

WRAPPING = bytes(range(32))
ACTOR = {"key": "key_admin", "role": "admin", "organization": "org_default"}


@dataclasses.dataclass
class Box:
    database: Database
    recorder: Recorder
    keeper: Keeper

    async def keep(self, subject: str, exchange: str, text: bytes, organization: str = "org_default") -> None:
        kept = await self.keeper.keep(subject, exchange, "full", {"request": text})
        assert kept is not None
        written = self.recorder.write(self.keeper.insert_content(kept), durable=False)
        await self.recorder.submit(
            ExchangeRow(
                id=exchange,
                kind="chat",
                started_at=1.0,
                user_id=subject,
                organization_id=organization,
                content_digest=kept.digest,
            )
        )
        await written

    async def erase(self, subject: str, *, oversees: str | None = None, above: Collection[str] = ()) -> Erased:
        return await erase(
            self.recorder, self.database, self.keeper.keys, subject, ACTOR, oversees=oversees, above=above
        )

    async def read(self, exchange: str) -> list[str]:
        return [part.text for part in await Keeper(self.database, WRAPPING).read(exchange)]

    async def write(self, table: Any, **values: Any) -> None:
        await self.recorder.write(lambda transaction: transaction.connection.execute(insert(table).values(**values)))


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[Box]:
    recorder = Recorder(database)
    await recorder.start()
    yield Box(database, recorder, Keeper(database, WRAPPING))
    await recorder.close()


def files_with(folder: Path, needle: bytes) -> list[str]:
    return [path.name for path in sorted(folder.rglob("*")) if path.is_file() and needle in path.read_bytes()]


async def wrapped_keys(database: Database) -> dict[str, bytes]:
    async with database.read() as connection:
        rows = (await connection.execute(select(subject_keys.c.subject, subject_keys.c.wrapped_key))).all()
    return {row.subject: bytes(row.wrapped_key) for row in rows}


async def sealed_texts(database: Database, subject: str) -> Sequence[bytes]:
    async with database.read() as connection:
        return [
            bytes(d) for d in await connection.scalars(select(contents.c.data).where(contents.c.subject == subject))
        ]


class Careless(Database):
    """As an SQLite that was built without overwriting what is deleted; erasing must not rely on the build."""

    def writer_engine(self) -> Engine:
        engine = super().writer_engine()
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA secure_delete=OFF"))
        return engine


@pytest.mark.parametrize("kind", [Database, Careless])
async def test_nothing_of_the_key_or_the_texts_is_left_in_the_files(tmp_path: Path, kind: type[Database]) -> None:
    """Many subjects in an order that splits and joins pages of the tables, some of them erased in between."""
    database = await kind.open(tmp_path / "outpost.db")
    recorder = Recorder(database)
    await recorder.start()
    box = Box(database, recorder, Keeper(database, WRAPPING))
    order = random.Random(5)
    people = [f"user_{order.getrandbits(60):015x}" for _ in range(200)]
    texts = {person: f"the secret of {person} is {order.getrandbits(200):x}".encode() * 3 for person in people}
    for number, person in enumerate(people):
        await box.keep(person, f"req_{number}", texts[person])
    keys = await wrapped_keys(database)
    gone = order.sample(people, 8)
    plain = {person: (await box.keeper.keys.get(person)).mac for person in gone}
    stored = {person: await sealed_texts(database, person) for person in gone}
    # The search finds what is there, so that finding nothing means something.
    assert files_with(tmp_path, keys[gone[0]])
    assert files_with(tmp_path, stored[gone[0]][0])

    for person in gone:
        done = await box.erase(person)
        assert (done.subject, done.contents, done.key, done.remarks) == (person, 1, True, ())
    for person in gone:
        wrapped = keys[person]
        # The ciphertext of the key and any half of it, the derived keys, what was said.
        needles = [wrapped[1:], wrapped[13:29], wrapped[29:45], plain[person], texts[person][:30]]
        if kind is Database:
            # And what was sealed, which without its key is noise: a careless build leaves some of that.
            needles += [piece for sealed in stored[person] for piece in (sealed, sealed[20:36])]
        for needle in needles:
            assert files_with(tmp_path, needle) == []
    for number, person in enumerate(people):
        expected = [] if person in gone else [texts[person].decode()]
        assert await box.read(f"req_{number}") == expected
    assert len(await walk(database)) == 200 + len(gone)
    await recorder.close()
    await database.close()
    for person in gone:
        assert files_with(tmp_path, keys[person][1:29]) == []
    assert sqlite3.connect(tmp_path / "outpost.db").execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_nothing_of_texts_that_were_dropped_for_their_age_is_left_in_the_files(tmp_path: Path) -> None:
    database = await Careless.open(tmp_path / "outpost.db")
    recorder = Recorder(database)
    await recorder.start()
    box = Box(database, recorder, Keeper(database, WRAPPING))
    for number in range(20):
        await box.keep("user_a", f"req_{number}", f"the secret number {number} ".encode() * 4)
    sealed = await sealed_texts(database, "user_a")
    assert all(files_with(tmp_path, each) for each in sealed)
    assert (await recorder.write(drop_content(float("inf")))).rows == 20
    await recorder.close()
    await database.close()
    assert [files_with(tmp_path, each[20:36]) for each in sealed] == [[]] * 20


async def test_the_others_and_the_ledger_stay(any_box: Box) -> None:
    for number, person in enumerate(["user_a", "user_b", "user_a"]):
        await any_box.keep(person, f"req_{number}", f"text {number}".encode())
    done = await any_box.erase("user_a")
    assert (done.contents, done.key, done.person) == (2, True, False)
    assert [await any_box.read(f"req_{number}") for number in range(3)] == [[], ["text 1"], []]
    assert await wrapped_keys(any_box.database) == {"user_b": (await wrapped_keys(any_box.database))["user_b"]}
    assert len(await walk(any_box.database)) == 4


async def test_the_ledger_says_who_erased_whom_and_no_more(box: Box) -> None:
    await box.keep("user_a", "req_1", b"private words")
    done = await box.erase("user_a")
    found = next(r for r in await Source(box.database).batch(0) if r.seq == done.seq)
    assert isinstance(found, RecordedEvent)
    assert found.kind == "admin.content.erase"
    assert found.body == {
        "actor": ACTOR,
        "object": "user_a",
        "before": {"contents": 1, "responses": 0, "key": True},
        "after": {"contents": 0, "responses": 0},
    }


async def test_the_directory_forgets_the_name(any_box: Box) -> None:
    for name in ("a", "b"):
        await any_box.write(
            users,
            id=f"user_{name}",
            organization_id="org_default",
            name=f"{name}@example.org",
            role="member",
            issuer="https://issuer.example",
            subject=f"sub-{name}",
            created_at=1.0,
        )
    # Nobody has asked anything yet: erasing is about the person, not about texts.
    done = await any_box.erase("user_a")
    assert (done.contents, done.key, done.person) == (0, False, True)
    async with any_box.database.read() as connection:
        rows = (
            await connection.execute(select(users.c.name, users.c.issuer, users.c.subject).order_by(users.c.id))
        ).all()
    assert [tuple(row) for row in rows] == [
        ("erased-a", None, None),
        ("b@example.org", "https://issuer.example", "sub-b"),
    ]
    assert (await any_box.erase("user_a")).person, "erasing again is no error"


async def test_a_key_without_an_owner_is_a_subject_too(box: Box) -> None:
    await box.write(
        api_keys,
        id="key_1",
        name="ci",
        role="member",
        prefix="op-abcd",
        digest=bytes(32),
        secret_id="x",
        created_at=1.0,
    )
    await box.keep("key_1", "req_1", b"x")
    assert (await box.erase("key_1")).contents == 1


async def test_nobody_known_is_refused_with_what_an_id_looks_like(box: Box) -> None:
    with pytest.raises(NotFound, match="user_…"):
        await box.erase("user_nobody")
    assert await walk(box.database) == []


async def test_an_organisation_erases_its_own_people_only(any_box: Box) -> None:
    await any_box.write(organizations, id="org_b", name="b", created_at=1.0)
    for organization, person in (("org_default", "user_a"), ("org_b", "user_b")):
        await any_box.write(users, id=person, organization_id=organization, name=person, role="member", created_at=1.0)
        await any_box.keep(person, f"req_{person}", b"x")
    await any_box.keep("jwt:somebody", "req_3", b"x", organization="org_b")
    with pytest.raises(NotFound):
        await any_box.erase("user_a", oversees="org_b")
    assert await any_box.read("req_user_a") == ["x"]
    assert (await any_box.erase("user_b", oversees="org_b")).contents == 1
    # In no directory: then the exchange says whose it is.
    with pytest.raises(NotFound):
        await any_box.erase("jwt:somebody", oversees="org_c")
    assert (await any_box.erase("jwt:somebody", oversees="org_b")).contents == 1


async def test_whoever_has_a_role_above_is_not_erased(any_box: Box) -> None:
    await any_box.write(organizations, id="org_b", name="b", created_at=1.0)
    for person, role in (("user_boss", "owner"), ("user_a", "member")):
        await any_box.write(users, id=person, organization_id="org_b", name=person, role=role, created_at=1.0)
        await any_box.keep(person, f"req_{person}", b"x", organization="org_b")
    events = len(await walk(any_box.database))
    with pytest.raises(PermissionDenied, match=r"^subject: this is an owner's") as caught:
        await any_box.erase("user_boss", oversees="org_b", above={"owner"})
    assert caught.value.param == "subject"
    with pytest.raises(NotFound):
        await any_box.erase("user_boss", oversees="org_c", above={"owner"})
    assert await any_box.read("req_user_boss") == ["x"]
    assert len(await walk(any_box.database)) == events
    assert (await any_box.erase("user_a", oversees="org_b", above={"owner"})).contents == 1
    assert (await any_box.erase("user_boss")).contents == 1


async def test_an_erasure_that_is_refused_takes_nothing_from_what_is_being_kept(box: Box) -> None:
    """Texts that were sealed before it and are written after it."""
    await box.write(users, id="user_a", organization_id="org_default", name="a", role="owner", created_at=1.0)
    for number, (oversees, above) in enumerate([("org_b", ()), (None, {"owner"})]):
        exchange = f"req_{number}"
        kept = await box.keeper.keep("user_a", exchange, "full", {"request": b"x"})
        assert kept is not None
        with pytest.raises((NotFound, PermissionDenied)):
            await box.erase("user_a", oversees=oversees, above=above)
        await box.recorder.write(box.keeper.insert_content(kept))
        assert await box.read(exchange) == ["x"]


async def test_backups_are_told_of(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "outpost.db")
    recorder = Recorder(database)
    await recorder.start()
    box = Box(database, recorder, Keeper(database, WRAPPING))
    await box.keep("user_a", "req_1", b"x")
    (tmp_path / "backups").mkdir()
    (tmp_path / "backups" / "outpost-schema-0002.db").write_bytes(b"")
    done = await box.erase("user_a")
    assert len(done.remarks) == 1
    assert "outpost-schema-0002.db" in done.remarks[0]
    await recorder.close()
    await database.close()


async def test_whoever_may_come_back_as_somebody_new_is_told_of(any_box: Box) -> None:
    row = {"organization_id": "org_default", "name": "Ann", "role": "member", "created_at": 1.0}
    await any_box.write(users, id="user_known", issuer="https://login.example", subject="ann", **row)
    await any_box.write(users, id="user_made", **{**row, "name": "Bob"})
    told = [remark for who in ("user_known", "user_made") for remark in (await any_box.erase(who)).remarks]
    told = [remark for remark in told if "come back" in remark]
    assert len(told) == 1
    assert "signed in through https://login.example" in told[0]
    assert "bar them there" in told[0]


async def test_a_reader_that_ends_in_time_does_not_keep_the_old_pages(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "outpost.db", busy_timeout_s=0.05)
    recorder = Recorder(database)
    await recorder.start()
    box = Box(database, recorder, Keeper(database, WRAPPING))
    await box.keep("user_a", "req_1", b"x")
    wrapped = (await wrapped_keys(database))["user_a"]
    reader = sqlite3.connect(tmp_path / "outpost.db", isolation_level=None, check_same_thread=False)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM subject_keys").fetchone()
    timer = threading.Timer(0.3, lambda: reader.execute("ROLLBACK"))
    timer.start()
    assert (await box.erase("user_a")).remarks == ()
    assert files_with(tmp_path, wrapped[1:29]) == []
    timer.join()
    reader.close()
    await recorder.close()
    await database.close()
