"""Stored responses in the database: what was asked and answered, sealed with the key of who asked.

    input items, response ▶ compressed ▶ AES-256-GCM under the subject's key ▶ one row

Only their owner finds them; whoever else asks is told the same as of one that was never there.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
from sqlalchemy import ColumnElement, and_, delete, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from appliance.identity.principal import Principal
from appliance.records.content import SealedContent, open_sealed, seal
from appliance.records.database import Database
from appliance.records.subject_keys import Random, SubjectKey, SubjectKeys, subject_name
from appliance.records.tables import responses
from appliance.records.transaction import Transaction

T = TypeVar("T")

LIVE = ("queued", "in_progress")
"""The states of a response that is still being worked on."""
MOST_TURNS = 500
"""Responses that one conversation may have."""
MOST_BYTES = 32 << 20
"""Of a conversation's items, as JSON; also of a single response with its input."""
_SMALL = 16 * 1024
"""Bytes that are sealed or opened at once; more goes to a thread."""


class Writes(Protocol):
    """The recorder, as far as it is needed here."""

    def write(self, work: Callable[[Transaction], T], *, durable: bool = True) -> asyncio.Future[T]: ...


class Owner(msgspec.Struct, frozen=True):
    """Whose a response is: the user, service account or key of a credential, in its organisation."""

    subject: str
    organization: str


def owner_of(principal: Principal) -> Owner:
    return Owner(subject_name(principal.subject), principal.organization)


class Stored(msgspec.Struct, frozen=True):
    """A stored response without its texts. created_at: unix seconds. size: bytes of its texts."""

    id: str
    owner: Owner
    route: str
    team: str | None = None
    previous_id: str | None = None
    status: str = "completed"
    background: bool = False
    size: int = 0
    created_at: float = 0.0
    reach: str | None = None
    """How far its data may go, see `reach`; None: nobody noted it."""


class Turn(msgspec.Struct, frozen=True):
    """A stored response with its texts, as JSON: a list of items, and the response."""

    stored: Stored
    input: bytes
    answer: bytes


class Chain(msgspec.Struct, frozen=True):
    """A response and those that it goes on from, oldest first. missing: the id at which it breaks off; that one is
    gone, or there are more than can be taken (`turns`, `size`)."""

    turns: Sequence[Turn] = ()
    missing: str | None = None
    too_large: bool = False


_COLUMNS = (
    responses.c.id,
    responses.c.subject,
    responses.c.organization_id,
    responses.c.route,
    responses.c.team_id,
    responses.c.previous_id,
    responses.c.status,
    responses.c.background,
    responses.c.size,
    responses.c.created_at,
    responses.c.reach,
)
_TEXTS = (responses.c.input_nonce, responses.c.input, responses.c.answer_nonce, responses.c.answer)


class ResponseStore:
    """Rows of `responses`. Reading raises RecordsUnavailable, and ContentKeyError, ContentDamaged for what does not
    open.

    kept_s: seconds for which a response can be read; the sweep that deletes it may come later. clock: unix seconds.
    """

    def __init__(
        self,
        database: Database,
        recorder: Writes,
        keys: SubjectKeys,
        *,
        kept_s: float,
        random: Random = secrets.token_bytes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.kept_s = kept_s
        self.keys = keys
        self.clock = clock
        self._database = database
        self._recorder = recorder
        self._random = random

    # --- writing: each gives a future that is done once it is durable -----------------------------------

    async def add(self, stored: Stored, input: bytes, answer: bytes) -> asyncio.Future[bool]:
        """Gives False where the owner was erased meanwhile: then nothing is kept."""
        key = await self.keys.get(stored.owner.subject)
        parts = await self._sealed(key, stored.id, input=input, answer=answer)
        row = {
            "id": stored.id,
            "subject": stored.owner.subject,
            "organization_id": stored.owner.organization,
            "team_id": stored.team,
            "route": stored.route,
            "previous_id": stored.previous_id,
            "status": stored.status,
            "background": stored.background,
            "size": len(input) + len(answer),
            "created_at": stored.created_at,
            "reach": stored.reach,
            **parts,
        }

        def work(transaction: Transaction) -> bool:
            if not self.keys.store(transaction, key):
                return False
            transaction.connection.execute(insert(responses), row)
            return True

        return self._recorder.write(work)

    async def settle(self, stored: Stored, status: str, answer: bytes | None = None) -> asyncio.Future[bool]:
        """End a response that is being worked on, perhaps with its answer. Gives False where it had ended already, or
        is gone: then that stays."""
        values: dict[str, Any] = {"status": status}
        key = None
        if answer is not None:
            key = await self.keys.get(stored.owner.subject)
            values |= await self._sealed(key, stored.id, answer=answer)
        change = update(responses).where(responses.c.id == stored.id, responses.c.status.in_(LIVE)).values(values)

        def work(transaction: Transaction) -> bool:
            if key is not None and not self.keys.store(transaction, key):
                return False
            return bool(transaction.connection.execute(change).rowcount)

        return self._recorder.write(work)

    def delete(self, id: str, owner: Owner, actor: dict[str, Any]) -> asyncio.Future[bool]:
        """Gives False where there is none of that owner."""

        def work(transaction: Transaction) -> bool:
            connection = transaction.connection
            if connection.dialect.name == "sqlite":
                # Zeroes over what is deleted.
                connection.exec_driver_sql("PRAGMA secure_delete=ON").close()
            if not connection.execute(delete(responses).where(_is(id, owner, self._oldest()))).rowcount:
                return False
            transaction.append("responses.delete", {"actor": actor, "object": id})
            return True

        return self._recorder.write(work)

    def fail_unfinished(self) -> asyncio.Future[int]:
        """What an earlier process has left unfinished has failed; gives how many."""
        change = update(responses).where(responses.c.status.in_(LIVE)).values(status="failed")
        return self._recorder.write(lambda transaction: transaction.connection.execute(change).rowcount)

    def keep_key(self, key: SubjectKey) -> asyncio.Future[bool]:
        """See to it that a key that something was sealed with is in the database."""
        return self._recorder.write(lambda transaction: self.keys.store(transaction, key))

    # --- reading ----------------------------------------------------------------------------------------

    async def find(self, id: str, owner: Owner) -> Stored | None:
        """None where there is none of that owner."""
        if not _sound(id):
            return None
        async with self._database.read() as connection:
            row = (await connection.execute(select(*_COLUMNS).where(_is(id, owner, self._oldest())))).first()
        return None if row is None else _stored(row)

    async def read(self, id: str, owner: Owner) -> Turn | None:
        """None where there is none of that owner, or nobody can read it any more."""
        if not _sound(id):
            return None
        async with self._database.read() as connection:
            query = select(*_COLUMNS, *_TEXTS).where(_is(id, owner, self._oldest()))
            row = (await connection.execute(query)).first()
        opened = [] if row is None else await self._opened(owner, [row])
        return opened[0] if opened else None

    async def chain(self, id: str, owner: Owner) -> Chain:
        """The response and all that it goes on from."""
        if not _sound(id):
            return Chain(missing=id)
        async with self._database.read() as connection:
            links = await _links(connection, id, owner, self._oldest())
            missing = links[-1].previous_id if links else id
            taken = links[:MOST_TURNS]
            if len(links) > MOST_TURNS or sum(int(link.size) for link in taken) > MOST_BYTES:
                return Chain(missing=missing, too_large=True)
            query = select(*_COLUMNS, *_TEXTS).where(responses.c.id.in_([link.id for link in taken]))
            found = {row.id: row for row in (await connection.execute(query)).all()}
        turns = await self._opened(owner, [found[link.id] for link in reversed(taken)])
        return Chain(turns, missing if turns else id)

    # --- sealing ----------------------------------------------------------------------------------------

    async def _sealed(self, key: SubjectKey, id: str, **parts: bytes) -> dict[str, bytes]:
        """The columns of texts."""
        size = sum(map(len, parts.values()))

        def work() -> dict[str, bytes]:
            kept = seal(key, id, "full", parts, most=size, now=0.0, random=self._random)
            columns: dict[str, bytes] = {}
            for each in kept.contents:
                columns |= {each.part: each.data, f"{each.part}_nonce": each.nonce}
            return columns

        return work() if size <= _SMALL else await asyncio.to_thread(work)

    async def _opened(self, owner: Owner, rows: Sequence[Any]) -> list[Turn]:
        """Empty once the owner's key is gone."""
        key = await self.keys.find(owner.subject)
        if key is None:
            return []
        opening = key

        def work() -> list[Turn]:
            return [
                Turn(
                    _stored(row),
                    _open(opening, row, "input", row.input_nonce, row.input),
                    _open(opening, row, "answer", row.answer_nonce, row.answer),
                )
                for row in rows
            ]

        return work() if sum(int(row.size) for row in rows) <= _SMALL else await asyncio.to_thread(work)

    def _oldest(self) -> float:
        """The moment from before which nothing can be read any more."""
        return self.clock() - self.kept_s


def _open(key: SubjectKey, row: Any, part: str, nonce: bytes, data: bytes) -> bytes:
    sealed = SealedContent(row.id, part, row.subject, "full", bytes(nonce), bytes(data), row.created_at)
    return open_sealed(key, sealed).text.encode()


async def _links(connection: AsyncConnection, id: str, owner: Owner, oldest: float) -> list[Any]:
    """Id, previous_id and size of a response and of those before it, newest first; one more than can be taken."""
    table = responses
    first = select(table.c.id, table.c.previous_id, table.c.size, literal(0).label("depth"))
    links = first.where(_is(id, owner, oldest)).cte("links", recursive=True)
    following = select(table.c.id, table.c.previous_id, table.c.size, links.c.depth + 1)
    following = following.join(links, table.c.id == links.c.previous_id)
    links = links.union_all(following.where(_of(owner, oldest), links.c.depth < MOST_TURNS))
    return list((await connection.execute(select(links).order_by(links.c.depth))).all())


def _of(owner: Owner, oldest: float) -> ColumnElement[bool]:
    table = responses
    mine = and_(table.c.subject == owner.subject, table.c.organization_id == owner.organization)
    return and_(mine, table.c.created_at >= oldest)


def _is(id: str, owner: Owner, oldest: float) -> ColumnElement[bool]:
    return and_(responses.c.id == id, _of(owner, oldest))


def _sound(id: str) -> bool:
    """Whether a database can be asked for it at all."""
    return id.isascii() and id.isprintable() and len(id) <= 64


def _stored(row: Any) -> Stored:
    return Stored(
        row.id,
        Owner(row.subject, row.organization_id),
        row.route,
        row.team_id,
        row.previous_id,
        row.status,
        bool(row.background),
        int(row.size),
        float(row.created_at),
        row.reach,
    )
