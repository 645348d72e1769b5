"""The ring over a real database, and other processes that change it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import string
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.errors import BadRequest, NotFound, RecordsUnavailable
from appliance.identity.key_ring import KeyRing, ensure_first_admin
from appliance.identity.key_store import KeyStore
from appliance.identity.keys import FixedKey, is_key
from appliance.identity.principal import Principal
from appliance.identity.secret import IdentityError, secret_path
from appliance.records.database import Database
from appliance.records.recorder import Recorder
from appliance.records.rows import ExchangeRow

FIXED = FixedKey("ci", "a-key-for-the-pipeline", "admin")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path / "outpost.db")
    yield opened
    await opened.close()


@pytest.fixture
async def ring(database: Database, tmp_path: Path) -> KeyRing:
    return await KeyRing.open(database, tmp_path)


async def test_a_made_key_is_known_until_it_is_revoked(ring: KeyRing, database: Database, tmp_path: Path) -> None:
    info, key = await ring.create("app", "member")
    assert is_key(key)
    assert info.prefix == key[:7]
    assert ring.identify(key) == Principal(info.id, "app", "member")
    again = await KeyRing.open(database, tmp_path)
    assert again.identify(key) == Principal(info.id, "app", "member")

    ended = await ring.revoke("app")
    assert ended.id == info.id
    assert ended.revoked_at is not None
    assert ring.identify(key) is None
    assert (await KeyRing.open(database, tmp_path)).identify(key) is None
    assert await ring.revoke(info.id) == ended


async def test_list_shows_all_and_no_key(ring: KeyRing, database: Database, tmp_path: Path) -> None:
    _, one = await ring.create("one", "admin")
    await ring.create("two", "member")
    await ring.revoke("one")
    ring = await KeyRing.open(database, tmp_path, [FIXED])
    shown = await ring.list()
    assert [(k.name, k.role, k.source, k.revoked_at is None) for k in shown] == [
        ("ci", "admin", "settings", True),
        ("one", "admin", "database", False),
        ("two", "member", "database", True),
    ]
    assert one[7:] not in repr(shown)
    assert FIXED.key not in repr(shown)


async def test_no_key_is_in_any_file(ring: KeyRing, tmp_path: Path, database: Database) -> None:
    await ring.reload([FIXED])
    keys = [FIXED.key, (await ring.create("one", "admin"))[1], (await ring.create("two", "member"))[1]]
    files = files_in(tmp_path)
    assert {"outpost.db", "outpost.db-wal", "master.key"} <= {p.name for p in files}
    for path in files:
        content = path.read_bytes()
        for key in keys:
            assert key.encode() not in content
            assert key[8:].encode() not in content


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_names(ring: KeyRing) -> None:
    await ring.reload([FIXED])
    first, _ = await ring.create("app", "member")
    with pytest.raises(BadRequest, match="named 'app' already"):
        await ring.create("app", "admin")
    with pytest.raises(BadRequest, match="settings file"):
        await ring.create("ci", "member")
    await ring.revoke("app")
    second, key = await ring.create("app", "member")
    assert second.id != first.id
    await ring.revoke(first.id)
    assert ring.identify(key) is not None
    await ring.revoke("app")
    assert ring.identify(key) is None
    for bad in ("", "-x", "a b", "a\n", "ключ", "x" * 65, "a'b", "\x1b[1m"):
        with pytest.raises(BadRequest, match="1 to 64") as caught:
            await ring.create(bad, "member")
        assert caught.value.param == "name"
    with pytest.raises(BadRequest, match="role"):
        await ring.create("other", "owner")  # type: ignore[arg-type]


async def test_revoking_nothing(ring: KeyRing) -> None:
    await ring.reload([FIXED])
    with pytest.raises(NotFound, match="'nobody'"):
        await ring.revoke("nobody")
    for name in ("ci", "fixed:ci"):
        with pytest.raises(BadRequest, match="settings file"):
            await ring.revoke(name)
    assert ring.identify(FIXED.key) is not None


async def test_fixed_keys_come_and_go_with_a_reload(ring: KeyRing) -> None:
    _, key = await ring.create("app", "member")
    await ring.reload([FIXED])
    assert ring.identify(FIXED.key) == Principal("fixed:ci", "ci", "admin")
    with pytest.raises(IdentityError, match="under 20"):
        await ring.reload([FixedKey("ci", "short", "admin")])
    assert ring.identify(FIXED.key) is not None
    await ring.reload([])
    assert ring.identify(FIXED.key) is None
    assert ring.identify(key) is not None


async def test_another_secret_is_told_and_curable(ring: KeyRing, database: Database, tmp_path: Path) -> None:
    info, _ = await ring.create("app", "member")
    secret_path(tmp_path).unlink()
    with pytest.raises(IdentityError, match=f"'app' was made under another secret.*{info.id}"):
        await KeyRing.open(database, tmp_path)
    await KeyStore(database).revoke(info.id)
    await KeyRing.open(database, tmp_path)


async def test_first_admin_once_in_a_lifetime(ring: KeyRing, database: Database, tmp_path: Path) -> None:
    key = await ensure_first_admin(ring)
    assert key is not None
    owner = ring.identify(key)
    assert owner is not None
    assert owner.role == "admin"
    assert await ensure_first_admin(ring) is None
    await ring.revoke(owner.key_id)
    assert await ensure_first_admin(await KeyRing.open(database, tmp_path)) is None


@pytest.mark.parametrize(("role", "made"), [("admin", False), ("member", True)])
async def test_a_fixed_admin_is_admin_enough(database: Database, tmp_path: Path, role: str, made: bool) -> None:
    fixed = FixedKey("ci", "a-key-for-the-pipeline", role)  # type: ignore[arg-type]
    ring = await KeyRing.open(database, tmp_path, [fixed])
    assert (await ensure_first_admin(ring) is not None) is made


async def until(condition) -> None:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def watching(ring: KeyRing) -> AsyncIterator[None]:
    task = asyncio.create_task(ring.watch(0.01))
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_changes_of_another_process_are_taken_in(ring: KeyRing, tmp_path: Path) -> None:
    # A second Database is what a second process has: connections of its own.
    elsewhere = await Database.open(tmp_path / "outpost.db")
    other = await KeyRing.open(elsewhere, tmp_path)
    async with watching(ring):
        _, key = await other.create("late", "member")
        await until(lambda: ring.identify(key) is not None)
        await other.revoke("late")
        await until(lambda: ring.identify(key) is None)
    await elsewhere.close()


async def test_records_do_not_make_the_watcher_read_keys(
    ring: KeyRing, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = 0
    load = KeyStore.load

    async def counted(self: KeyStore):  # type: ignore[no-untyped-def]
        nonlocal loads
        loads += 1
        return await load(self)

    polls = 0
    asked = KeyStore.epoch_if_changed

    async def polled(self: KeyStore) -> int | None:
        nonlocal polls
        polls += 1
        return await asked(self)

    monkeypatch.setattr(KeyStore, "load", counted)
    monkeypatch.setattr(KeyStore, "epoch_if_changed", polled)
    recorder = Recorder(database)
    await recorder.start()
    async with watching(ring):
        for number in range(10):
            await recorder.submit(ExchangeRow(id=str(number), kind="x", started_at=0.0))
            seen = polls
            await until(lambda seen=seen: polls > seen)
    await recorder.close()
    assert loads == 0


async def test_the_watcher_outlives_trouble(ring: KeyRing, database: Database, tmp_path: Path) -> None:
    elsewhere = await Database.open(tmp_path / "outpost.db")
    other = await KeyRing.open(elsewhere, tmp_path)
    file = secret_path(tmp_path)
    async with watching(ring):
        raw = sqlite3.connect(database.path, isolation_level=None)
        raw.execute("ALTER TABLE api_keys RENAME TO gone")
        raw.execute("UPDATE counters SET value = value + 1 WHERE name = 'identity_epoch'")
        raw.execute("INSERT INTO counters VALUES ('identity_epoch', 1) ON CONFLICT DO UPDATE SET value = value + 1")
        with pytest.raises(RecordsUnavailable):
            await ring.list()
        raw.execute("ALTER TABLE gone RENAME TO api_keys")
        raw.close()
        _, key = await other.create("late", "member")
        await until(lambda: ring.identify(key) is not None)
    assert file.exists()
    await elsewhere.close()


# --- injection ---

FRAGMENTS = [
    "' OR '1'='1", "'; DROP TABLE api_keys; --", '" OR ""="', "') OR ('1'='1", "1; DELETE FROM api_keys",
    "' UNION SELECT digest, id, name, role FROM api_keys --", "%27%20OR%201=1", "\\'; --", "/**/OR/**/1=1",
    "'; ATTACH DATABASE '/tmp/x' AS x; --", "'||(SELECT digest FROM api_keys)||'", "\x00' OR 1=1",
    "'; PRAGMA writable_schema=1; --", "%(name)s",
    "＇ OR 1=1", "\ud800' OR 1", "admin'--", "op-' OR digest IS NOT NULL --", ":1", "?1", "@name", "$1", "{0}", "%s",
]  # fmt: skip


def payloads(count: int) -> list[str]:
    dice = random.Random(1)
    found = list(FRAGMENTS)
    while len(found) < count:
        parts = dice.choices([*FRAGMENTS, *string.punctuation, "op-", "A" * 43], k=dice.randint(1, 4))
        found.append("".join(parts))
    return found


async def test_a_thousand_injections_as_key_find_nobody_and_change_nothing(ring: KeyRing, database: Database) -> None:
    _, key = await ring.create("app", "admin")
    before = dump(database.path)
    for payload in payloads(1000):
        assert ring.identify(payload) is None
        assert ring.identify(key + payload) is None
    assert dump(database.path) == before
    assert ring.identify(key) is not None


async def test_injections_where_the_database_is_asked(ring: KeyRing, database: Database) -> None:
    await ring.create("app", "admin")
    before = dump(database.path)
    for payload in FRAGMENTS:
        with pytest.raises(NotFound):
            await ring.revoke(payload)
        with pytest.raises(BadRequest):
            await ring.create(payload + " ", "member")
    assert dump(database.path) == before


def dump(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    lines = list(connection.iterdump())
    connection.close()
    return lines
