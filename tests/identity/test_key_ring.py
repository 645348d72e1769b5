"""The ring over a real database, and other processes that change it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import statistics
import string
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.errors import BadRequest, NotFound, PermissionDenied, RecordsUnavailable, Unauthenticated
from appliance.identity import key_store
from appliance.identity.directory import Directory
from appliance.identity.key_ring import KeyRing, ensure_first_admin
from appliance.identity.key_store import NewKey
from appliance.identity.keys import FixedKey
from appliance.identity.people_work import ORGANIZATION, SERVICE_ACCOUNT, TEAM, USER
from appliance.identity.principal import Principal, Restrictions
from appliance.identity.secret import IdentityError, load_secret, secret_path
from appliance.records.database import Database
from appliance.records.rows import ExchangeRow
from tests.fakes.keys import is_key
from tests.identity.conftest import OWNER, Box, open_box

FIXED = FixedKey("ci", "a-key-for-the-pipeline", "admin")


async def test_a_made_key_is_known_until_it_is_revoked(box: Box) -> None:
    info, key = await box.key("app", "member")
    assert is_key(key)
    assert info.prefix == key[:7]
    assert box.ring.identify(key) == Principal(info.id, "app", "member")
    again = await KeyRing.open(box.database, box.folder)
    assert again.identify(key) == Principal(info.id, "app", "member")

    ended = await box.ring.revoke(OWNER, "app")
    assert ended.id == info.id
    assert ended.revoked_at is not None
    assert box.ring.identify(key) is None
    assert (await KeyRing.open(box.database, box.folder)).identify(key) is None
    assert await box.ring.revoke(OWNER, info.id) == ended


async def test_list_shows_all_and_no_key(box: Box) -> None:
    _, one = await box.key("one", "admin")
    await box.key("two", "member")
    await box.ring.revoke(OWNER, "one")
    ring = await KeyRing.open(box.database, box.folder, [FIXED])
    shown = await ring.list(OWNER)
    assert [(k.name, k.role, k.source, k.revoked_at is None) for k in shown] == [
        ("ci", "admin", "settings", True),
        ("one", "admin", "database", False),
        ("two", "member", "database", True),
    ]
    assert one[7:] not in repr(shown)
    assert FIXED.key not in repr(shown)
    pages, after = [], None
    while page := await ring.list(OWNER, after=after, limit=1):
        pages += page
        after = page[-1].id
    assert pages == shown


async def test_no_key_is_in_any_file(box: Box) -> None:
    await box.ring.reload([FIXED])
    keys = [FIXED.key, (await box.key("one", "admin"))[1], (await box.key("two", "member"))[1]]
    keys.append((await box.ring.rotate(OWNER, "one"))[1])
    files = files_in(box.folder)
    assert {"outpost.db", "outpost.db-wal", "master.key"} <= {p.name for p in files}
    for path in files:
        content = path.read_bytes()
        for key in keys:
            assert key.encode() not in content
            assert key[8:].encode() not in content


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_names(box: Box) -> None:
    await box.ring.reload([FIXED])
    first, _ = await box.key("app", "member")
    with pytest.raises(BadRequest, match="named 'app' already"):
        await box.key("app", "admin")
    with pytest.raises(BadRequest, match="settings file"):
        await box.key("ci", "member")
    await box.ring.revoke(OWNER, "app")
    second, key = await box.key("app", "member")
    assert second.id != first.id
    await box.ring.revoke(OWNER, first.id)
    assert box.ring.identify(key) is not None
    await box.ring.revoke(OWNER, "app")
    assert box.ring.identify(key) is None
    for bad in ("", "-x", "a b", "a\n", "ключ", "x" * 65, "a'b", "\x1b[1m"):
        with pytest.raises(BadRequest, match="1 to 64") as caught:
            await box.key(bad, "member")
        assert caught.value.param == "name"
    with pytest.raises(BadRequest, match="role"):
        await box.key("other", "root")  # type: ignore[arg-type]


async def test_revoking_nothing(box: Box) -> None:
    await box.ring.reload([FIXED])
    with pytest.raises(NotFound, match="'nobody'"):
        await box.ring.revoke(OWNER, "nobody")
    for name in ("ci", "fixed:ci"):
        for change in (box.ring.revoke, box.ring.rotate):
            with pytest.raises(BadRequest, match="settings file"):
                await change(OWNER, name)
    assert box.ring.identify(FIXED.key) is not None


async def test_fixed_keys_come_and_go_with_a_reload(box: Box) -> None:
    _, key = await box.key("app", "member")
    await box.ring.reload([FIXED])
    assert box.ring.identify(FIXED.key) == Principal("fixed:ci", "ci", "admin")
    with pytest.raises(IdentityError, match="under 20"):
        await box.ring.reload([FixedKey("ci", "short", "admin")])
    assert box.ring.identify(FIXED.key) is not None
    await box.ring.reload([])
    assert box.ring.identify(FIXED.key) is None
    assert box.ring.identify(key) is not None


async def test_a_fixed_key_works_for_a_team_once_it_is_there(box: Box) -> None:
    fixed = FixedKey("lab", "a-key-for-the-laboratory", "member", team="lab", organization="acme")
    await box.ring.reload([fixed])
    with pytest.raises(Unauthenticated, match="organization acme, which is not there"):
        box.ring.identify(fixed.key)
    acme = await box.directory.create(OWNER, ORGANIZATION, {"name": "acme"})
    with pytest.raises(Unauthenticated, match="team lab, which is not there"):
        box.ring.identify(fixed.key)
    team = await box.directory.create(OWNER, TEAM, {"name": "lab", "organization": "acme"})
    assert box.ring.identify(fixed.key) == Principal("fixed:lab", "lab", "member", acme.id, team.id)


async def test_another_secret_is_told_and_curable(box: Box) -> None:
    info, _ = await box.key("app", "member")
    secret_path(box.folder).unlink()
    load_secret(box.folder)
    with pytest.raises(IdentityError, match=f"'app' was made under another secret.*{info.id}"):
        await KeyRing.open(box.database, box.folder)
    lenient = await KeyRing.open(box.database, box.folder, recorder=box.recorder, strict=False)
    with pytest.raises(IdentityError, match="another secret"):
        await lenient.create(OWNER, NewKey("more"))
    await lenient.revoke(OWNER, info.id)
    await KeyRing.open(box.database, box.folder)


async def test_first_admin_once_in_a_lifetime(box: Box) -> None:
    key = await ensure_first_admin(box.ring)
    assert key is not None
    owner = box.ring.identify(key)
    assert owner is not None
    assert owner.role == "owner"
    assert await ensure_first_admin(box.ring) is None
    await box.ring.revoke(OWNER, owner.key_id)
    assert await ensure_first_admin(await KeyRing.open(box.database, box.folder, recorder=box.recorder)) is None


@pytest.mark.parametrize(("role", "made"), [("admin", False), ("owner", False), ("operator", True), ("member", True)])
async def test_a_fixed_admin_is_admin_enough(tmp_path: Path, role: str, made: bool) -> None:
    async with open_box(tmp_path, [FixedKey("ci", "a-key-for-the-pipeline", role)]) as box:  # type: ignore[arg-type]
        assert (await ensure_first_admin(box.ring) is not None) is made


# --- whom a key belongs to, and for how long ---


async def test_a_key_ends_with_its_time_and_says_so_to_its_holder_alone(box: Box) -> None:
    box.as_of(1_000_000.0)
    _, key = await box.key("short", expires_at=1_000_060.0)
    assert box.ring.identify(key) is not None
    box.as_of(1_000_060.0)
    with pytest.raises(Unauthenticated, match="expired at 1970-01-12 13:47:40 UTC"):
        box.ring.identify(key)
    assert box.ring.identify(key + "x") is None
    # Its name is free again, and it is on record as ended when it did.
    again, _ = await box.key("short")
    shown = {info.id: info for info in await box.ring.list(OWNER)}
    assert sorted(info.revoked_at or 0 for info in shown.values()) == [0, 1_000_060.0]
    assert shown[again.id].expires_at is None
    with pytest.raises(BadRequest, match="in the future") as caught:
        await box.key("late", expires_at=1_000_060.0)
    assert caught.value.param == "expires_at"


async def test_rotation_overlaps(box: Box) -> None:
    box.as_of(1000.0)
    limited = Restrictions(routes=("chat",), addresses=("10.0.0.0/8",), priority="batch")
    old, first = await box.key("app", "operator", restrictions=limited, expires_at=5000.0)
    box.as_of(2000.0)
    new, second = await box.ring.rotate(OWNER, old.id, overlap_s=60.0)
    assert (new.name, new.role, new.restrictions, new.replaces) == ("app", "operator", limited, old.id)
    assert new.expires_at == 6000.0, "it lives as long as the old one was meant to"
    for key, info in ((first, old), (second, new)):
        found = box.ring.identify(key, "10.1.2.3")
        assert found is not None
        assert found.key_id == info.id
    with pytest.raises(BadRequest, match="replaced by app already"):
        await box.ring.rotate(OWNER, old.id)
    box.as_of(2060.0)
    with pytest.raises(Unauthenticated, match="expired"):
        box.ring.identify(first, "10.1.2.3")
    third, key = await box.ring.rotate(OWNER, "app", overlap_s=0.0, expires_at=9000.0)
    assert third.expires_at == 9000.0
    assert box.ring.identify(second, "10.1.2.3") is None
    assert box.ring.identify(key, "10.1.2.3") is not None
    again = await KeyRing.open(box.database, box.folder)
    again.directory.clock = lambda: 2060.0
    assert again.identify(key, "10.1.2.3") is not None
    assert again.identify(second, "10.1.2.3") is None
    for bad in (-1.0, float("nan"), 91 * 86400.0):
        with pytest.raises(BadRequest, match="overlap"):
            await box.ring.rotate(OWNER, "app", overlap_s=bad)
    kinds = [kind for kind, _ in await box.events()]
    assert kinds == ["admin.key.create", "admin.key.rotate", "admin.key.create", "admin.key.rotate", "admin.key.create"]


async def test_addresses(box: Box) -> None:
    _, key = await box.key("app", restrictions=Restrictions(addresses=("10.0.0.0/8", "2001:db8::/32")))
    for good in ("10.255.0.1", "2001:db8::1", "::ffff:10.0.0.1"):
        assert box.ring.identify(key, good) is not None
    for bad in ("11.0.0.1", "2001:db9::1", "::ffff:11.0.0.1", "unix", "", None, "10.0.0.1.evil", "fe80::1%eth0"):
        with pytest.raises(PermissionDenied, match="address"):
            box.ring.identify(key, bad)
    assert box.ring.identify(key[:-1], "10.0.0.1") is None


async def test_a_key_has_no_more_than_its_holder_has_now(box: Box) -> None:
    user = await box.directory.create(OWNER, USER, {"name": "Ada", "role": "operator"})
    bot = await box.directory.create(OWNER, SERVICE_ACCOUNT, {"name": "bot", "role": "operator"})
    held = [("user", user, USER), ("service_account", bot, SERVICE_ACCOUNT)]
    for field, holder, kind in held:
        _, key = await box.key(f"of-{field}", "operator", **{field: holder.id})
        assert role_of(box.ring, key) == "operator"
        await box.directory.alter(OWNER, kind, holder.id, {"role": "member"})
        assert role_of(box.ring, key) == "member"
        await box.directory.alter(OWNER, kind, holder.id, {"role": "owner"})
        assert role_of(box.ring, key) == "operator", "a key does not rise with its holder"
        await box.directory.alter(OWNER, kind, holder.id, {"role": "auditor"})
        with pytest.raises(Unauthenticated, match="role operator, which its .* has no longer"):
            box.ring.identify(key)
        with pytest.raises(BadRequest, match="cannot have a key with the role operator"):
            await box.key("too-much", "operator", **{field: holder.id})


def role_of(ring: KeyRing, key: str) -> str:
    principal = ring.identify(key)
    assert principal is not None
    return principal.role


@pytest.mark.parametrize("what", ["organization", "team", "user", "service account"])
async def test_disabling_ends_all_keys_at_once(box: Box, what: str) -> None:
    acme = await box.directory.create(OWNER, ORGANIZATION, {"name": "acme"})
    team = await box.directory.create(OWNER, TEAM, {"name": "lab", "organization": acme.id})
    user = await box.directory.create(OWNER, USER, {"name": "Ada", "role": "member", "organization": acme.id})
    account = await box.directory.create(
        OWNER, SERVICE_ACCOUNT, {"name": "bot", "role": "member", "organization": acme.id, "team": "lab"}
    )
    await box.directory.set_member(OWNER, team.id, user.id, inside=True)
    _, his = await box.key("his", user=user.id, team=team.id)
    info, its = await box.key("its", service_account=account.id)
    assert info.team == team.id
    _, free = await box.key("free")
    kind, thing, ended = {
        "organization": (ORGANIZATION, acme, (his, its)),
        "team": (TEAM, team, (his, its)),
        "user": (USER, user, (his,)),
        "service account": (SERVICE_ACCOUNT, account, (its,)),
    }[what]
    await box.directory.alter(OWNER, kind, thing.id, {"disabled": True})
    for key in (his, its, free):
        if key in ended:
            with pytest.raises(Unauthenticated, match="disabled"):
                box.ring.identify(key)
        else:
            assert box.ring.identify(key) is not None
    await box.directory.alter(OWNER, kind, thing.id, {"disabled": False})
    assert all(box.ring.identify(key) is not None for key in (his, its, free))


async def test_leaving_a_team_ends_the_tokens_for_it(box: Box) -> None:
    team = await box.directory.create(OWNER, TEAM, {"name": "lab"})
    user = await box.directory.create(OWNER, USER, {"name": "Ada", "role": "member"})
    with pytest.raises(BadRequest, match="not a member of lab"):
        await box.key("token", user="Ada", team="lab")
    await box.directory.set_member(OWNER, "lab", "Ada", inside=True)
    _, key = await box.key("token", user="Ada", team="lab")
    assert box.ring.identify(key) == Principal(
        (await box.ring.show(OWNER, "token")).id, "token", "member", team=team.id, user=user.id
    )
    await box.directory.set_member(OWNER, team.id, user.id, inside=False)
    with pytest.raises(Unauthenticated, match="not a member"):
        box.ring.identify(key)


async def test_last_use_is_shown(box: Box) -> None:
    info, key = await box.key("app")
    assert (await box.ring.show(OWNER, "app")).last_used_at is None
    box.as_of(7.0)
    box.ring.identify(key)
    assert [k.last_used_at for k in await box.ring.list(OWNER)] == [7.0]
    assert (await box.ring.show(OWNER, info.id)).last_used_at == 7.0


# --- other processes ---


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


async def test_changes_of_another_process_are_taken_in(box: Box) -> None:
    # A second Database is what a second process has: connections of its own.
    elsewhere = await Database.open(box.database.path)
    other = await KeyRing.open(elsewhere, box.folder, recorder=box.recorder)
    async with watching(box.ring):
        _, key = await other.create(OWNER, NewKey("late"))
        await until(lambda: box.ring.identify(key) is not None)
        await other.revoke(OWNER, "late")
        await until(lambda: box.ring.identify(key) is None)
    await elsewhere.close()


async def test_two_that_change_in_turns_miss_nothing_of_each_other(box: Box) -> None:
    other = await KeyRing.open(box.database, box.folder, recorder=box.recorder)
    keys = []
    for number in range(6):
        ring = (box.ring, other)[number % 2]
        keys.append((await ring.create(OWNER, NewKey(f"k{number}")))[1])
        # Whoever changes something has all that came before it, without having watched.
        assert all(ring.identify(key) is not None for key in keys)


async def test_records_do_not_make_the_watcher_read_keys(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    loads, polls = 0, 0
    load, asked = Directory.reload, Directory.changed_elsewhere

    async def counted(self, *args):  # type: ignore[no-untyped-def]
        nonlocal loads
        loads += 1
        return await load(self, *args)

    async def polled(self: Directory) -> bool:
        nonlocal polls
        polls += 1
        return await asked(self)

    monkeypatch.setattr(Directory, "reload", counted)
    monkeypatch.setattr(Directory, "changed_elsewhere", polled)
    async with watching(box.ring):
        for number in range(10):
            await box.recorder.submit(ExchangeRow(id=str(number), kind="x", started_at=0.0))
            seen = polls
            await until(lambda seen=seen: polls > seen)
    assert loads == 0


async def test_the_watcher_outlives_trouble(box: Box) -> None:
    async with watching(box.ring):
        raw = sqlite3.connect(box.database.path, isolation_level=None)
        raw.execute("ALTER TABLE api_keys RENAME TO gone")
        raw.execute("INSERT INTO counters VALUES ('identity_epoch', 1) ON CONFLICT DO UPDATE SET value = value + 1")
        with pytest.raises(RecordsUnavailable):
            await box.ring.list(OWNER)
        raw.execute("ALTER TABLE gone RENAME TO api_keys")
        raw.close()
        other = await KeyRing.open(box.database, box.folder, recorder=box.recorder)
        _, key = await other.create(OWNER, NewKey("late"))
        await until(lambda: box.ring.identify(key) is not None)


async def test_a_change_that_fails_leaves_no_trace(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    _, key = await box.key("app")
    before, events = dump(box.database.path), await box.events()

    def note(*args: object) -> None:
        raise BadRequest("the last step of the work fails")

    monkeypatch.setattr(key_store, "note", note)
    for attempt in (box.key("other"), box.ring.revoke(OWNER, "app"), box.ring.rotate(OWNER, "app")):
        with pytest.raises(BadRequest, match="last step"):
            await attempt
    assert dump(box.database.path) == before
    assert await box.events() == events
    assert box.ring.identify(key) is not None


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


async def test_a_thousand_injections_as_key_find_nobody_and_change_nothing(box: Box) -> None:
    _, key = await box.key("app", "admin")
    before = dump(box.database.path)
    for payload in payloads(1000):
        assert box.ring.identify(payload) is None
        assert box.ring.identify(key + payload) is None
    assert dump(box.database.path) == before
    assert box.ring.identify(key) is not None


async def test_the_time_tells_nothing(box: Box) -> None:
    """A wrong key that begins like a right one takes as long as any other of its length."""
    _, key = await box.key("app", "admin")
    like, unlike = key[:-1] + ("A" if key[-1] != "A" else "B"), "zz-" + "q" * 43
    taken: dict[str, list[int]] = {like: [], unlike: []}
    for _ in range(400):
        for text in (like, unlike):
            begun = time.perf_counter_ns()
            for _ in range(5):
                box.ring.identify(text)
            taken[text].append(time.perf_counter_ns() - begun)
    # The least of many is what the work takes; everything above it is the machine.
    fast, slow = sorted(statistics.quantiles(times, n=10)[0] for times in taken.values())
    assert slow < 1.5 * fast


async def test_injections_where_the_database_is_asked(box: Box) -> None:
    await box.key("app", "admin")
    before = dump(box.database.path)
    for payload in FRAGMENTS:
        for ask in (box.ring.revoke, box.ring.rotate, box.ring.show):
            with pytest.raises(NotFound):
                await ask(OWNER, payload)
        with pytest.raises(BadRequest):
            await box.key(payload + " ", "member")
        with pytest.raises(BadRequest, match=r"^team: there is no team"):
            await box.key("other", team=payload)
        for kind in (ORGANIZATION, TEAM, USER, SERVICE_ACCOUNT):
            with pytest.raises(NotFound):
                await box.directory.alter(OWNER, kind, payload, {"name": "x"})
            with pytest.raises(NotFound):
                await box.directory.show(OWNER, kind, payload)
    assert dump(box.database.path) == before


def dump(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    lines = list(connection.iterdump())
    connection.close()
    return lines
