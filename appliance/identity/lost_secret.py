"""When the secret file is lost: what in the database hangs on it, how that is told, and how it is given up.

A new secret in the place of a lost one would look like a start that went well: no key lets anybody in any more, and
the kept texts of whoever asked before cannot be opened. So it is made only where nothing hangs on another.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update

from appliance.identity import key_store
from appliance.identity.directory import Directory
from appliance.identity.key_store import KeyInfo
from appliance.identity.keys import KeyHasher, hkdf
from appliance.identity.people_work import Changed, note
from appliance.identity.principal import Principal
from appliance.identity.secret import SECRET_BYTES, IdentityError, find_secret, load_secret, secret_path
from appliance.identity.snapshot import KeyRecord
from appliance.records.database import Database
from appliance.records.subject_keys import WRAPPING_PURPOSE, ContentKeyError, unwrap
from appliance.records.tables import api_keys, contents, responses, subject_keys
from appliance.records.transaction import Transaction


class GivenUp(msgspec.Struct, frozen=True):
    """What hung on a lost secret. keys: ended. subjects: whose texts, which nobody could read any more, are gone.
    contents: how many texts, stored responses among them."""

    keys: tuple[KeyInfo, ...] = ()
    subjects: int = 0
    contents: int = 0


async def missing(database: Database, data_dir: Path, now: float) -> IdentityError | None:
    """The error that tells that the secret file is not there; None where nothing in the database hangs on it. now: unix
    seconds. Raises RecordsUnavailable."""
    keys = select(func.count()).select_from(api_keys).where(_going_on(now))
    subjects = select(func.count()).select_from(subject_keys)
    async with database.read() as connection:
        counts = [int((await connection.execute(query)).scalar_one()) for query in (keys, subjects)]
    words = ("{} key{}", "the kept texts of {} caller{}")
    found = [text.format(count, "" if count == 1 else "s") for text, count in zip(words, counts, strict=True) if count]
    if not found:
        return None
    return IdentityError(
        f"{secret_path(data_dir)} is missing, though the database has what was made with it: {' and '.join(found)}. "
        "Restore it from the backup that goes with the database. Where it is lost for good, `outpost keys revoke-lost` "
        "ends such keys, erases such texts, which nobody can read any more, and makes a new one."
    )


async def give_up(
    directory: Directory, data_dir: Path, actor: Principal, random: Callable[[int], bytes] = secrets.token_bytes
) -> GivenUp:
    """End every key that was made under another secret than the file has, erase the texts that it does not open, and
    make the file if it is missing. Each is on the ledger. Raises IdentityError, RecordsUnavailable."""
    secret = await asyncio.to_thread(find_secret, data_dir)
    now = directory.clock()
    present = random(SECRET_BYTES) if secret is None else secret
    done = await directory.change(lambda tx: _give_up(tx, actor, present, now))
    # Afterwards: until then nothing may look as if all were well.
    await asyncio.to_thread(load_secret, data_dir, random=random)
    return done


def _going_on(now: float) -> ColumnElement[bool]:
    return and_(api_keys.c.revoked_at.is_(None), or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now))


def _give_up(tx: Transaction, actor: Principal, secret: bytes, now: float) -> Changed[GivenUp]:
    connection = tx.connection
    ended: list[KeyInfo] = []
    dropped: list[KeyRecord] = []
    lost = key_store.select_keys().where(_going_on(now), api_keys.c.secret_id != KeyHasher(secret).secret_id)
    for row in connection.execute(lost.order_by(api_keys.c.created_at, api_keys.c.id)).all():
        info, record = key_store.found_key(row)
        after = msgspec.structs.replace(info, revoked_at=now)
        connection.execute(update(api_keys).where(api_keys.c.id == info.id).values(revoked_at=now))
        note(tx, actor, "key.revoke", info.id, info, after)
        ended.append(after)
        dropped.append(record)
    wrapping = AESGCM(hkdf(secret, WRAPPING_PURPOSE))
    subjects = texts = 0
    for subject, wrapped in connection.execute(select(subject_keys.c.subject, subject_keys.c.wrapped_key)).all():
        try:
            unwrap(wrapping, subject, bytes(wrapped))
        except ContentKeyError:
            parts = connection.execute(delete(contents).where(contents.c.subject == subject)).rowcount
            stored = connection.execute(delete(responses).where(responses.c.subject == subject)).rowcount
            connection.execute(delete(subject_keys).where(subject_keys.c.subject == subject))
            body: dict[str, Any] = {"actor": actor.actor, "object": subject}
            before = {"contents": parts, "responses": stored, "key": True}
            body |= {"before": before, "after": {"contents": 0, "responses": 0}}
            tx.append("admin.content.erase", body)
            subjects, texts = subjects + 1, texts + parts + stored
    return Changed(GivenUp(tuple(ended), subjects, texts), (), tuple(dropped))
