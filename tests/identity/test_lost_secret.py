"""A secret file that is lost: nothing is made in its place unasked, and there is one way to go on without it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from sqlalchemy import func, select

from appliance.app import App
from appliance.identity import lost_secret
from appliance.identity.key_ring import KeyRing
from appliance.identity.key_store import NewKey
from appliance.identity.keys import hkdf
from appliance.identity.people_work import USER
from appliance.identity.secret import IdentityError, load_secret, secret_path
from appliance.records.content import Keeper
from appliance.records.subject_keys import WRAPPING_PURPOSE
from appliance.records.tables import contents, subject_keys
from appliance.settings import load
from tests.identity.conftest import OWNER, Box, open_box


def keeper(box: Box) -> Keeper:
    return Keeper(box.database, hkdf(load_secret(box.folder), WRAPPING_PURPOSE))


async def keep(box: Box, subject: str, exchange: str) -> None:
    kept = keeper(box)
    sealed = await kept.keep(subject, exchange, "full", {"request": b"asked", "answer": b"said"})
    assert sealed is not None
    await box.recorder.write(kept.insert_content(sealed))


async def rows(box: Box) -> tuple[int, int]:
    """How many keys of callers and texts there are."""
    async with box.database.read() as connection:
        counts = [
            (await connection.execute(select(func.count()).select_from(table))).scalar_one()
            for table in (subject_keys, contents)
        ]
    return counts[0], counts[1]


async def test_a_missing_file_is_told_and_not_replaced(any_box: Box) -> None:
    box = any_box
    await box.key("one")
    brief, _ = await box.key("brief", expires_at=box.directory.clock() + 60)
    path = secret_path(box.folder)
    path.unlink()
    said = rf"{path} is missing, though .* made with it: 2 keys. Restore it from the backup.*keys revoke-lost"
    for recorder in (None, box.recorder):
        with pytest.raises(IdentityError, match=said):
            await KeyRing.open(box.database, box.folder, recorder=recorder)
    # A process that identifies nobody may still show keys and end them; it makes none, and no file.
    lenient = await KeyRing.open(box.database, box.folder, recorder=box.recorder, strict=False)
    assert [key.name for key in await lenient.list(OWNER)] == ["one", "brief"]
    await lenient.directory.create(OWNER, USER, {"name": "ann", "role": "member"})
    await lenient.revoke(OWNER, "one")
    for make in (lenient.create(OWNER, NewKey("more")), lenient.rotate(OWNER, brief.id)):
        with pytest.raises(IdentityError, match="is missing, though"):
            await make
    assert not path.exists()


async def test_what_has_ended_hangs_on_no_secret(any_box: Box) -> None:
    box = any_box
    await box.key("one")
    await box.ring.revoke(OWNER, "one")
    secret_path(box.folder).unlink()
    again = await KeyRing.open(box.database, box.folder, recorder=box.recorder)
    end = box.directory.clock() + 60
    _, key = await again.create(OWNER, NewKey("next", expires_at=end))
    assert (await KeyRing.open(box.database, box.folder)).identify(key) is not None
    assert await lost_secret.missing(box.database, box.folder, end - 1) is not None
    assert await lost_secret.missing(box.database, box.folder, end) is None


async def test_texts_hang_on_it_too(any_box: Box) -> None:
    box = any_box
    await keep(box, "user_a", "req_1")
    secret_path(box.folder).unlink()
    with pytest.raises(IdentityError, match="made with it: the kept texts of 1 caller. Restore"):
        await KeyRing.open(box.database, box.folder, recorder=box.recorder)
    lenient = await KeyRing.open(box.database, box.folder, recorder=box.recorder, strict=False)
    with pytest.raises(IdentityError, match="is missing"):
        await lenient.create(OWNER, NewKey("more"))


async def test_one_way_to_go_on(any_box: Box) -> None:
    """Keys are revoked and texts erased, each on the ledger; what was made under the new one is left alone."""
    box = any_box
    old = [(await box.key(name))[0] for name in ("one", "two")]
    await keep(box, "user_a", "req_1")
    await keep(box, "user_b", "req_2")
    secret_path(box.folder).unlink()
    count = len(await box.events())
    lenient = await KeyRing.open(box.database, box.folder, recorder=box.recorder, strict=False)
    done = await lost_secret.give_up(lenient.directory, box.folder, OWNER)
    assert ([key.id for key in done.keys], done.subjects, done.contents) == ([key.id for key in old], 2, 4)
    assert await rows(box) == (0, 0)
    told = [(kind, body["object"]) for kind, body in (await box.events())[count:]]
    assert sorted(told) == sorted(
        [*(("admin.key.revoke", key.id) for key in old), *(("admin.content.erase", f"user_{x}") for x in "ab")]
    )
    ring = await KeyRing.open(box.database, box.folder, recorder=box.recorder)
    _, key = await ring.create(OWNER, NewKey("one"))
    await keep(box, "user_a", "req_3")
    again = await lost_secret.give_up(ring.directory, box.folder, OWNER)
    assert again == lost_secret.GivenUp()
    ring = await KeyRing.open(box.database, box.folder)
    assert ring.identify(key) is not None
    assert await rows(box) == (1, 2)
    assert [part.text for part in await keeper(box).read("req_3")] != []


async def test_another_file_in_its_place_is_given_up_the_same_way(box: Box) -> None:
    await box.key("one")
    await box.key("two")
    await keep(box, "user_a", "req_1")
    secret_path(box.folder).unlink()
    load_secret(box.folder)
    with pytest.raises(IdentityError, match=r"The key 'one', and 1 more, was made under another.*keys revoke-lost"):
        await KeyRing.open(box.database, box.folder)
    lenient = await KeyRing.open(box.database, box.folder, recorder=box.recorder, strict=False)
    done = await lost_secret.give_up(lenient.directory, box.folder, OWNER)
    assert (len(done.keys), done.subjects, done.contents) == (2, 1, 2)
    await KeyRing.open(box.database, box.folder)


async def test_a_gateway_does_not_start_without_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    async with open_box(folder) as box:
        await box.key("one")
    secret_path(folder).unlink()
    path = tmp_path / "outpost.yaml"
    listen = {"server": {"listen": "127.0.0.1:0"}, "console": {"listen": "127.0.0.1:0"}}
    path.write_text(yaml.safe_dump({"data_dir": str(folder), "deployments": [], **listen}), encoding="utf-8")
    with pytest.raises(IdentityError, match=r"master\.key is missing"):
        await App(load(path, {}), {}).start()
    assert not secret_path(folder).exists()
