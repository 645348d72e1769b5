"""The directory: the one owner of the snapshot, and everything that may be asked about people and changed.

A change goes through the recorder's thread into the database and onto the ledger first, then into memory, before
the call returns. What other processes change is taken in by `reload`, when the epoch says so.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from appliance.errors import BadRequest, InternalError, PermissionDenied, Unauthenticated
from appliance.identity import key_store, people_work, vouching
from appliance.identity.claims import Forgotten
from appliance.identity.people_work import KINDS, ORGANIZATION, TEAM, USER, Changed, Kind
from appliance.identity.permissions import Role
from appliance.identity.principal import DEFAULT_ORGANIZATION, Principal
from appliance.identity.snapshot import KeyRecord, Member, Snapshot, Standing, User
from appliance.records.database import Database
from appliance.records.tables import counters, exchanges, team_members
from appliance.records.transaction import Transaction

T = TypeVar("T")


class Writer(Protocol):
    """The recorder, as far as the directory needs it."""

    def write(self, work: Callable[[Transaction], T], *, durable: bool = True) -> asyncio.Future[T]: ...


class Directory:
    """Who there is. Every method that reads or writes the database may raise RecordsUnavailable.

    recorder: None for one that only reads. clock: unix seconds. random: bytes for ids.
    """

    def __init__(
        self,
        database: Database,
        recorder: Writer | None,
        *,
        clock: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.database = database
        self.clock = clock
        self.random = random
        self.snapshot = Snapshot()
        self.changed: Callable[[], None] = lambda: None
        """Called after each change of the snapshot."""
        self._recorder = recorder
        self._changing = asyncio.Lock()
        self._under_way: set[asyncio.Task[Any]] = set()
        self._epoch = -1
        self._seen: object | None = None

    # --- the snapshot ---

    async def reload(self, fixed: Mapping[bytes, KeyRecord], check: Callable[[Sequence[KeyRecord]], None]) -> None:
        """Read everything again. `fixed`: the keys of the settings. `check` sees the keys before they count and may
        raise; then everything stays as it was."""
        async with self._changing:
            await self._reload(fixed, check)

    async def _reload(self, fixed: Mapping[bytes, KeyRecord], check: Callable[[Sequence[KeyRecord]], None]) -> None:
        async with self.database.read() as connection:
            epoch = await _epoch(connection)
            things: list[Any] = []
            for kind in KINDS:
                things += [kind.made(row) for row in (await connection.execute(kind.select())).all()]
            things += [Member(*row) for row in (await connection.execute(people_work.all_members())).all()]
            stored = key_store.records_of((await connection.execute(key_store.valid_keys())).all())
        check(stored)
        self.snapshot = Snapshot([*things, *fixed.values(), *stored])
        self.changed()
        self._fixed, self._check, self._epoch = fixed, check, epoch

    async def change(self, work: Callable[[Transaction], Changed[T]]) -> T:
        """Run a change in the recorder's thread and take it into memory. Raises what the work raises."""
        if self._recorder is None:
            raise InternalError("The directory was opened for reading only.")
        changing = asyncio.create_task(self._change(self._recorder, work))
        self._under_way.add(changing)
        changing.add_done_callback(self._done)
        # Whoever asked may leave; what has become true in the database must become true in memory all the same.
        return await asyncio.shield(changing)

    def _done(self, changing: asyncio.Task[Any]) -> None:
        self._under_way.discard(changing)
        if not changing.cancelled():
            changing.exception()  # nobody may be left to hear of it

    async def _change(self, recorder: Writer, work: Callable[[Transaction], Changed[T]]) -> T:
        def numbered(tx: Transaction) -> tuple[Changed[T], int | None]:
            changed = work(tx)
            touched = bool(changed.put or changed.drop)
            return changed, people_work.raise_epoch(tx.connection) if touched else None

        async with self._changing:
            changed, epoch = await recorder.write(numbered)
            if epoch is None:
                return changed.value
            if epoch == self._epoch + 1:
                self.snapshot = self.snapshot.with_(changed.put, changed.drop)
                self.changed()
                self._epoch = epoch
            else:
                # Somebody else has changed something in between, which this snapshot does not have yet.
                await self._reload(self._fixed, self._check)
        return changed.value

    async def changed_elsewhere(self) -> bool:
        """Whether the database has something of the directory that the snapshot has not."""
        seen = await self.database.changed_since(self._seen)
        if seen is None:
            return False
        async with self.database.read() as connection:
            epoch = await _epoch(connection)
        # Only now: an error above must leave the change to be seen by the next call.
        self._seen = seen
        return epoch != self._epoch

    def standing(self, principal: Principal) -> Principal:
        """A principal as things are now: with the role that its holder still has. Raises Unauthenticated when it, or
        whom it belongs to, has ended; Forgotten when they were erased since they signed in. Costs microseconds; for
        sessions and tokens that were checked earlier."""
        user = self.snapshot.get(User, principal.user) if principal.user is not None else None
        if user is not None and user.subject is None:
            raise Forgotten("The credential belongs to somebody who was erased; sign in again.")
        return admitted(self.snapshot.judge(principal), "The credential", self.clock)

    # --- people, for whoever administers them ---

    async def list(
        self,
        actor: Principal,
        kind: Kind,
        *,
        after: str | None = None,
        limit: int = 100,
        organization: str | None = None,
    ) -> Sequence[Any]:
        """Oldest first; `organization` (id or name) narrows it. Raises BadRequest, PermissionDenied."""
        wanted = await self.narrowed(actor, {} if organization is None else {"organization": organization})
        query = people_work.page(kind, after, limit, wanted.get("organization", actor.oversees))
        async with self.database.read() as connection:
            return [kind.made(row) for row in (await connection.execute(query)).all()]

    async def narrowed(self, actor: Principal, wish: Mapping[str, str]) -> dict[str, str]:
        """What a list is to be narrowed to, as ids: a field of key_store.FILTERS → id or name, within what `actor` sees
        and within the organisation, if that is given. Raises BadRequest that names the field, PermissionDenied."""
        found: dict[str, str] = {}
        place = actor.oversees
        for kind in KINDS:
            field = kind.word.replace(" ", "_")
            if field not in wish:
                continue
            try:
                found[field] = (await self._find(kind, wish[field], place, field)).id
            except BadRequest:
                if kind is ORGANIZATION and actor.oversees is not None:
                    # The same for one that is there and one that is not.
                    raise PermissionDenied(
                        f"organization: you may only look at your own, {actor.oversees}", param=field
                    ) from None
                raise
            place = found.get("organization", place)
        return found

    async def show(self, actor: Principal, kind: Kind, id_or_name: str) -> Any:
        """One thing, within what `actor` oversees. Raises NotFound, BadRequest."""
        return await self._find(kind, id_or_name, actor.oversees)

    async def _find(self, kind: Kind, id_or_name: str, organization: str | None, field: str | None = None) -> Any:
        """See people_work.chosen."""
        rows: Sequence[Any] = []
        if people_work.storable_text(id_or_name):
            async with self.database.read() as connection:
                rows = (await connection.execute(people_work.wanted(kind, id_or_name, organization))).all()
        return people_work.chosen(kind, id_or_name, rows, field)

    async def create(self, actor: Principal, kind: Kind, wish: Mapping[str, Any]) -> Any:
        """See people_work.create."""
        id = people_work.new_id(kind.prefix, self.random(10))
        now = self.clock()
        return await self.change(lambda tx: people_work.create(tx, actor, kind, wish, now=now, id=id))

    async def alter(self, actor: Principal, kind: Kind, id_or_name: str, wish: Mapping[str, Any]) -> Any:
        """Rename, give a role, disable (which ends all keys at once) or enable. See people_work.change."""
        now = self.clock()
        return await self.change(lambda tx: people_work.change(tx, actor, kind, id_or_name, wish, now=now))

    async def delete(self, actor: Principal, kind: Kind, id_or_name: str) -> Any:
        """Delete what is disabled and not on record. Raises NotFound, BadRequest, PermissionDenied."""
        thing = await self.show(actor, kind, id_or_name)
        column = next(column for column in kind.refers if column.table is exchanges)
        # Not in the writer's thread, where everybody would wait for it; a disabled thing gets no new records.
        async with self.database.read() as connection:
            if (await connection.execute(select(column).where(column == thing.id).limit(1))).first() is not None:
                raise people_work.referred(kind, thing, "exchanges")
        return await self.change(lambda tx: people_work.remove(tx, actor, kind, thing.id))

    async def set_member(self, actor: Principal, team: str, user: str, *, inside: bool) -> Member:
        """Put a user into a team, or take them out. Raises NotFound, BadRequest, PermissionDenied."""
        return await self.change(lambda tx: people_work.set_member(tx, actor, team, user, inside=inside))

    async def members(
        self, actor: Principal, team: str, *, after: str | None = None, limit: int = 100
    ) -> Sequence[User]:
        """The users of a team, oldest first. Raises NotFound."""
        found = await self.show(actor, TEAM, team)
        query = people_work.page(USER, after, limit).where(
            USER.table.c.id.in_(select(team_members.c.user_id).where(team_members.c.team_id == found.id))
        )
        async with self.database.read() as connection:
            return [USER.made(row) for row in (await connection.execute(query)).all()]

    # --- people who sign in ---

    async def signed_in(
        self,
        issuer: str,
        subject: str,
        name: str,
        role: Role,
        team: str | None = None,
        organization: str | None = None,
        *,
        teams: frozenset[str] = frozenset(),
        issued: float | None = None,
        organization_claimed: bool = False,
    ) -> Principal:
        """A person whom an identity provider vouches for, made known at the first time; teams and organisation by name
        or id. The provider's newest word on name, role and membership counts. Without news this touches no database.

        teams: all that are said; `team` is the one that the person works for. issued: unix seconds; None for what the
        settings say. organization_claimed: it is the provider that names the organisation, not the settings. Raises
        PermissionDenied for a team or organisation that is not there, Unauthenticated for somebody disabled.
        """
        if not people_work.storable_text(subject):
            raise PermissionDenied("The subject of this account has characters that no record can keep.")
        longest = USER.longest
        name = people_work.presentable(name, longest) or people_work.presentable(subject, longest) or "unnamed"
        place = self.snapshot.organization(organization or DEFAULT_ORGANIZATION)
        if place is None:
            raise PermissionDenied(f"The organization {organization!a} of this account is not known here.")
        if organization_claimed and place.id == DEFAULT_ORGANIZATION:
            # By its id, since it can be renamed. Whoever may name any organisation must not be able to name this one.
            raise PermissionDenied("A token cannot name the organization that runs the box.")
        group = None if team is None else self.snapshot.team(place.id, team)
        if team is not None and group is None:
            raise PermissionDenied(f"The team {team!a} of this account is not known here.")
        credential = f"jwt:{issuer}"[:64]
        whoever = Principal(
            key_id=credential,
            key_name=credential,
            role=role,
            organization=place.id,
            team=None if group is None else group.id,
        )
        self.standing(whoever)  # nothing is written about somebody who is not let in anyway
        word = vouching.Word(issuer, subject, name, role, place, group, teams, issued)
        user = self.snapshot.user_of(issuer, subject)
        if user is not None:
            vouching.check_place(user, place)
            self.standing(msgspec.structs.replace(whoever, team=None, role=user.role, user=user.id))
        if user is None or (not word.is_old(user) and word.is_news(self.snapshot, user)):
            id, now = people_work.new_id("user", self.random(10)), self.clock()
            user = await self.change(lambda tx: vouching.take(tx, word, id=id, now=now))
        vouching.check_place(user, place)
        known = msgspec.structs.replace(whoever, user=user.id)
        if word.is_old(user):
            team_id = vouching.newest_team(self.snapshot, user, group)
            known = msgspec.structs.replace(known, role=user.role, team=team_id)
        return self.standing(known)


def admitted(standing: Standing, what: str, clock: Callable[[], float]) -> Principal:
    """The principal of a standing. Raises Unauthenticated with the reason; only the holder of a right credential
    gets here, so it may be told."""
    if standing.principal is None:
        raise Unauthenticated(f"{what} {standing.refusal}; ask an admin of this gateway.")
    if standing.expires_at is not None and standing.expires_at <= clock():
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(standing.expires_at))
        raise Unauthenticated(f"{what} expired at {when}; get a new one.")
    return standing.principal


async def _epoch(connection: AsyncConnection) -> int:
    found = (await connection.execute(select(counters.c.value).where(counters.c.name == people_work.EPOCH))).scalar()
    return int(found or 0)
