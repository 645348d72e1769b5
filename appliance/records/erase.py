"""Erasing a person: the key that opens their contents, the contents, and their name in the directory.

The ledger stays as it is. It holds no text of theirs, only digests under a key that is gone, and it says that they
were erased. What the file system or a backup keeps of overwritten blocks is out of this program's reach.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
from sqlalchemy import Connection, Engine, Row, delete, func, insert, select, update
from sqlalchemy.exc import DBAPIError

from appliance.errors import NotFound, PermissionDenied
from appliance.records.database import Database, unavailable
from appliance.records.subject_keys import SubjectKeys, subject_name
from appliance.records.tables import (
    api_keys,
    contents,
    counters,
    exchanges,
    responses,
    service_accounts,
    subject_keys,
    users,
)
from appliance.records.transaction import Transaction

Actor = dict[str, Any]
"""Who did it, as events name it: key, role, organization."""

_CHECKPOINT_TRIES = 50
_CHECKPOINT_PAUSE_S = 0.1
_BATCH = 500


class Writes(Protocol):
    """The recorder, as far as it is needed here."""

    def write(self, work: Callable[[Transaction], Any], *, durable: bool = True) -> asyncio.Future[Any]: ...


_COMES_BACK = (
    "They signed in through {}, and with it may come back as somebody new: bar them there, if they are to stay away."
)


class Erased(msgspec.Struct, frozen=True):
    """What erasing did. contents: parts deleted. responses: stored ones deleted. key: there was a key. person: their
    name in the directory was replaced. seq: the event on the ledger. remarks: what is left to do by hand."""

    subject: str
    contents: int
    key: bool
    person: bool
    seq: int
    remarks: tuple[str, ...] = ()
    responses: int = 0


async def erase(
    recorder: Writes,
    database: Database,
    keys: SubjectKeys | None,
    subject: str,
    actor: Actor,
    *,
    oversees: str | None = None,
    above: Collection[str] = (),
) -> Erased:
    """Erase a subject for good. keys: those that are open in this process, None where no gateway runs in it.
    oversees: the one organisation whose people may be erased; None = everybody. above: roles whose holders may not be.

    Raises NotFound for a subject that nothing is kept of, PermissionDenied for one with a role in `above`,
    RecordsUnavailable.
    """
    subject = subject_name(subject)

    def work(transaction: Transaction) -> Erased:
        _check(transaction.connection, subject, oversees, above)
        if keys is not None:
            # In this transaction: whoever sealed with the key before is written before it, or not at all.
            keys.mark_erased(subject)
        return _erase(transaction, subject, actor)

    done: Erased = await recorder.write(work)
    remarks = await asyncio.to_thread(_clean, database)
    return msgspec.structs.replace(done, remarks=(*done.remarks, *remarks))


def _erase(transaction: Transaction, subject: str, actor: Actor) -> Erased:
    connection = transaction.connection
    if connection.dialect.name == "sqlite":
        # Zeroes over what is deleted, in the main file and so in what the log carries there.
        connection.exec_driver_sql("PRAGMA secure_delete=ON").close()
    parts = connection.execute(delete(contents).where(contents.c.subject == subject)).rowcount
    stored = connection.execute(delete(responses).where(responses.c.subject == subject)).rowcount
    key = _delete_key(connection, subject)
    issuer = connection.scalar(select(users.c.issuer).where(users.c.id == subject))
    person = connection.execute(
        update(users)
        .where(users.c.id == subject)
        .values(name=f"erased-{subject.removeprefix('user_')}", issuer=None, subject=None)
    ).rowcount
    if person:
        # Whoever has the directory in memory, this process too, reads it again and forgets them.
        epoch = update(counters).where(counters.c.name == "identity_epoch")
        connection.execute(epoch.values(value=counters.c.value + 1))
    before = {"contents": parts, "responses": stored, "key": key}
    after = {"contents": 0, "responses": 0}
    body = {"actor": actor, "object": subject, "before": before, "after": after}
    seq = transaction.append("admin.content.erase", body)
    remarks = () if issuer is None else (_COMES_BACK.format(issuer),)
    return Erased(subject, parts, key, bool(person), seq, remarks, stored)


def _check(connection: Connection, subject: str, oversees: str | None, above: Collection[str]) -> None:
    """Raises NotFound, the same where there is no such subject and where it is another organisation's; PermissionDenied
    for a role in `above`."""
    organizations: set[str | None] = set()
    roles: set[str] = set()
    for table in (users, service_accounts, api_keys):
        for row in connection.execute(select(table.c.organization_id, table.c.role).where(table.c.id == subject)):
            organizations.add(row.organization_id)
            roles.add(row.role)
    if not organizations:
        held = connection.scalar(
            select(func.count()).select_from(subject_keys).where(subject_keys.c.subject == subject)
        )
        if held:
            organizations.add(_organization_of(connection, subject))
    if not organizations or (oversees is not None and organizations != {oversees}):
        raise NotFound(
            f"Nothing is kept of a subject {subject!r}. Give the id of a user (user_…, which `outpost users list` "
            "prints), a service account (sa_…) or a key (key_…), as requests show it. No name is taken, since nothing "
            "can be undone."
        )
    for role in sorted(roles.intersection(above)):
        raise PermissionDenied(
            f"subject: this is an {role}'s, which is above your own role; an {role} may erase it, or whoever runs "
            "`outpost erase` on the box",
            param="subject",
        )


def _organization_of(connection: Connection, subject: str) -> str | None:
    """Whose a subject is that stands in no directory: that of an exchange with a content of theirs, or of a stored
    response."""
    query = (
        select(exchanges.c.organization_id)
        .join(contents, contents.c.exchange_id == exchanges.c.id)
        .where(contents.c.subject == subject)
        .limit(1)
    )
    stored = select(responses.c.organization_id).where(responses.c.subject == subject).limit(1)
    return connection.scalar(query) or connection.scalar(stored)


def _delete_key(connection: Connection, subject: str) -> bool:
    found = connection.execute(delete(subject_keys).where(subject_keys.c.subject == subject)).rowcount
    if found and connection.dialect.name == "sqlite":
        # A page that was once split may hold a stale copy of the row in its unused part. So the few rows of the
        # table are written anew: the pages that they leave are overwritten whole.
        rows: Sequence[Row[Any]] = connection.execute(select(*subject_keys.c)).all()
        connection.execute(delete(subject_keys))
        for start in range(0, len(rows), _BATCH):
            connection.execute(insert(subject_keys), [row._asdict() for row in rows[start : start + _BATCH]])
    return bool(found)


def _clean(database: Database) -> list[str]:
    """After the commit: empty the log, which may hold the old pages; answer what is left to do by hand."""
    engine = database.writer_engine()
    try:
        if engine.dialect.name != "sqlite":
            return ["PostgreSQL keeps deleted rows until a vacuum: run VACUUM on subject_keys, contents and responses."]
        remarks = []
        if not _truncate_log(engine):
            remarks.append("The database's log could not be emptied, since somebody is reading. Erase again later.")
        path = getattr(database, "path", None)
        backups = sorted((path.parent / "backups").glob("*.db")) if isinstance(path, Path) else []
        if backups:
            remarks.append(f"Backups made before this hold the key still: {', '.join(each.name for each in backups)}.")
        return remarks
    except DBAPIError as error:
        raise unavailable(error) from error
    finally:
        engine.dispose()


def _truncate_log(engine: Engine) -> bool:

    for _ in range(_CHECKPOINT_TRIES):
        with engine.connect().execution_options(bare=True) as connection:
            busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]
        if not busy:
            return True
        time.sleep(_CHECKPOINT_PAUSE_S)
    return False
