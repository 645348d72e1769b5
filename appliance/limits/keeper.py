"""The limits that there are: those of the settings file and, beside them, those that operators keep in the database.

A change goes through the recorder's thread into the database and onto the ledger first, then into the book, before
the call returns.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

import msgspec
from pydantic import ValidationError
from sqlalchemy import delete, insert, or_, select, update

from appliance.errors import BadRequest, NotFound, PermissionDenied, RecordsUnavailable
from appliance.identity.grants import check_organization
from appliance.identity.people_work import new_id, note
from appliance.identity.principal import DEFAULT_ORGANIZATION, Principal
from appliance.limits.book import Book
from appliance.limits.clock import Now
from appliance.limits.rules import Rule, rule_of
from appliance.limits.standing import Standing
from appliance.limits.unmet import declared_credentials, unmet
from appliance.records.database import Database
from appliance.records.tables import limits, organizations
from appliance.records.transaction import Transaction
from appliance.redact import looks_secret
from appliance.settings import Settings
from appliance.settings.checks_limiting import check_limit, limit_name
from appliance.settings.document import Finding
from appliance.settings.limiting import Limit
from appliance.settings.problems import from_pydantic
from appliance.settings.rates import format_usd
from appliance.settings.shape import dotted

logger = logging.getLogger("outpost.limits")

T = TypeVar("T")


class Recorder(Protocol):
    def write(self, work: Callable[[Transaction], T], *, durable: bool = True) -> asyncio.Future[T]: ...


class LimitInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """A limit as operators see it, in the words of the settings file."""

    id: str
    """Its name, where the file declares it."""
    name: str
    organization: str
    """Whose it is. A limit of the organisation that runs the box reaches everybody."""
    source: Literal["settings", "database"]
    scope: str
    match: Mapping[str, str | list[str]] = {}
    requests: str | list[str] | None = None
    input_tokens: str | list[str] | None = None
    output_tokens: str | list[str] | None = None
    tokens: str | list[str] | None = None
    usd: str | list[str] | None = None
    window: str | None = None
    timezone: str = "UTC"
    in_flight: int | None = None
    created_at: float | None = None
    """Unix seconds."""
    remarks: list[str] = []
    """What whoever has just made or changed it should know."""


class CounterInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """How much of a limit one owner has used. Counts; of usd, decimal text."""

    limit: str
    name: str
    scope: str
    whom: str
    measure: str
    amount: int | str
    used: int | str
    reserved: int | str
    remaining: int | str
    period: str = ""
    resets_in_s: float | None = None
    """Until nothing of it counts any longer, if nobody asks."""


class _Kept(msgspec.Struct, frozen=True):
    """A limit of the database made ready."""

    info: LimitInfo
    rule: Rule


class LimitKeeper:
    """For the event loop that owns the book. clock: this moment. wall: unix seconds. random: bytes for ids.
    again_s: how often is looked what became of a change that was given up.

    Every method that reads or writes the database may raise RecordsUnavailable.
    """

    def __init__(
        self,
        database: Database,
        recorder: Recorder,
        book: Book,
        clock: Callable[[], Now],
        *,
        wall: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = secrets.token_bytes,
        again_s: float = 1.0,
    ) -> None:
        self.book = book
        self.changed: Callable[[], None] = lambda: None
        """Called whenever the limits in force are others."""
        self._database = database
        self._recorder = recorder
        self._clock = clock
        self._wall = wall
        self._random = random
        self._settings = Settings()
        self._kept: dict[str, _Kept] = {}
        self._changing = asyncio.Lock()
        self._again_s = again_s
        self._looking: asyncio.Task[None] | None = None
        self._unsure = False
        """A change was given up since it was last looked."""

    async def close(self) -> None:
        """To be awaited before the recorder is closed."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def load(self, settings: Settings) -> None:
        """Take over the limits of the file and of the database."""
        self._settings = settings
        await self._read()

    def apply(self, settings: Settings) -> None:
        """Go by the file's limits as they are now; what was used stays used."""
        self._settings = settings
        self._use()

    async def _read(self) -> None:
        """Go by what the database has, and by the file's limits that are in force when it has been read."""
        async with self._changing:
            query = select(limits).order_by(limits.c.created_at, limits.c.id)
            async with self._database.read() as connection:
                rows = (await connection.execute(query)).all()
            self._kept = {}
            for row in rows:
                try:
                    limit = Limit.model_validate(json.loads(row.rule))
                except (ValidationError, ValueError) as error:
                    logger.error("limit_unreadable", extra={"limit": row.id, "cause": type(error).__name__})
                    continue
                self._kept[row.id] = _kept(row.id, row.name, row.organization_id, limit, row.created_at)
            self._use()

    def _use(self) -> None:
        declared = [rule_of(limit) for limit in self._settings.limits]
        self.book.change([*declared, *(kept.rule for kept in self._kept.values())], self._clock())
        self.changed()

    async def _write(self, work: Callable[[Transaction], T]) -> T:
        try:
            return await self._recorder.write(work)
        except (RecordsUnavailable, asyncio.CancelledError):
            # It may be written all the same, or have been.
            self._unsure = True
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look_again())
            raise

    async def _look_again(self) -> None:
        """Go by what is kept, once the writer has gone on and it is known what that is."""
        while self._unsure:
            self._unsure = False
            try:
                await self._recorder.write(lambda tx: None, durable=False)
                await self._read()
            except RecordsUnavailable:
                self._unsure = True
                await asyncio.sleep(self._again_s)

    # --- for operators -----------------------------------------------------------------------------

    def list(self, actor: Principal) -> list[LimitInfo]:
        """The file's, then those of the database, oldest first; of one organisation only its own."""
        kept = [each.info for each in self._kept.values()]
        if actor.oversees is not None:
            return [info for info in kept if info.organization == actor.oversees]
        return declared_limits(self._settings) + kept

    def show(self, actor: Principal, id_or_name: str) -> LimitInfo:
        """Raises NotFound."""
        for info in self.list(actor):
            if id_or_name in (info.id, info.name):
                return info
        raise _unknown(id_or_name)

    async def create(self, actor: Principal, wish: Mapping[str, Any]) -> LimitInfo:
        """wish: fields of a limit in the file's form, name and organization (id or name) beside them.

        Raises BadRequest that names the field, PermissionDenied.
        """
        given = dict(wish)
        organization = given.pop("organization", None) or actor.oversees or DEFAULT_ORGANIZATION
        limit = self._checked(given)
        name = limit_name(limit)
        limit_id, at = new_id("limit", self._random(10)), self._wall()

        def work(tx: Transaction) -> tuple[_Kept, list[str]]:
            owner = _organization(tx, actor, organization)
            _check_free(tx, name)
            kept = _kept(limit_id, name, owner, limit, at)
            row = {"id": limit_id, "organization_id": owner, "name": name, "rule": _text(limit), "created_at": at}
            tx.connection.execute(insert(limits).values(**row))
            note(tx, actor, "limit.create", limit_id, None, kept.info)
            return kept, unmet(tx, limit, owner, declared_credentials(self._settings))

        async with self._changing:
            self._check_undeclared(name)
            kept, remarks = await self._write(work)
            self._kept[limit_id] = kept
            self._use()
        return msgspec.structs.replace(kept.info, remarks=remarks)

    async def change(self, actor: Principal, id_or_name: str, wish: Mapping[str, Any]) -> LimitInfo:
        """wish: the fields that become different; None takes one away. What was used counts on where window and scope
        stay. Raises NotFound, BadRequest."""
        async with self._changing:
            before = self._mine(actor, id_or_name)

            def work(tx: Transaction) -> tuple[_Kept, list[str]]:
                row = tx.connection.execute(select(limits).where(limits.c.id == before.info.id)).one_or_none()
                if row is None:
                    raise _unknown(id_or_name)
                now = json.loads(row.rule)
                limit = self._checked({field: value for field, value in {**now, **wish}.items() if value is not None})
                name = limit_name(limit) if "name" in wish else row.name
                if name != row.name:
                    self._check_undeclared(name)
                    _check_free(tx, name)
                kept = _kept(row.id, name, row.organization_id, limit, row.created_at)
                tx.connection.execute(update(limits).where(limits.c.id == row.id).values(name=name, rule=_text(limit)))
                note(tx, actor, "limit.change", row.id, before.info, kept.info)
                return kept, unmet(tx, limit, row.organization_id, declared_credentials(self._settings))

            kept, remarks = await self._write(work)
            self._kept[kept.info.id] = kept
            self._use()
        return msgspec.structs.replace(kept.info, remarks=remarks)

    async def delete(self, actor: Principal, id_or_name: str) -> LimitInfo:
        """Raises NotFound; BadRequest for one that the settings file declares."""
        async with self._changing:
            kept = self._mine(actor, id_or_name)

            def work(tx: Transaction) -> None:
                tx.connection.execute(delete(limits).where(limits.c.id == kept.info.id))
                note(tx, actor, "limit.delete", kept.info.id, kept.info, None)

            await self._write(work)
            del self._kept[kept.info.id]
            self._use()
        return kept.info

    def usage(self, actor: Principal, limit: str | None = None) -> Sequence[CounterInfo]:
        """Every counter that holds something, the fullest first; of one limit (id or name) if it is given."""
        visible = {info.id for info in self.list(actor) if limit is None or limit in (info.id, info.name)}
        if limit is not None and not visible:
            raise _unknown(limit)
        now = self._clock()
        found = [
            (standing.remaining / max(1, standing.amount), _counter(rule, standing))
            for rule, standing in self.book.usage(now)
            if rule in visible
        ]
        for rule, name, scope, whom, cap, under_way in self.book.under_way(now):
            if rule in visible:
                left = max(0, cap - under_way)
                found.append((left / cap, CounterInfo(rule, name, scope, whom, "in_flight", cap, 0, under_way, left)))
        return [info for _, info in sorted(found, key=lambda each: each[0])]

    # --- checks ------------------------------------------------------------------------------------

    def _mine(self, actor: Principal, id_or_name: str) -> _Kept:
        info = self.show(actor, id_or_name)
        if info.source == "settings":
            raise BadRequest(f"The limit {info.name} is declared in the settings file (limits); change it there.")
        return self._kept[info.id]

    def _checked(self, given: Mapping[str, Any]) -> Limit:
        """The limit that was asked for. Raises BadRequest that names the field and the cure."""
        try:
            limit = Limit.model_validate(given)
        except ValidationError as error:
            errors = error.errors(include_url=False)
            for each in errors:
                each["loc"] = ("limits", 0, *each["loc"])
            raise _bad(from_pydantic(errors)[0], skip=2) from None
        for field, value in {"name": limit.name, **limit.match.model_dump()}.items():
            if value is not None and looks_secret(str(value)):
                raise BadRequest(
                    f"{field}: this looks like a key, and limits are kept and shown; choose another", param=field
                )
        for finding in check_limit(limit, self._settings):
            raise _bad(finding, skip=0)
        return limit

    def _check_undeclared(self, name: str) -> None:
        if any(limit_name(limit) == name for limit in self._settings.limits):
            raise BadRequest(
                f"name: the settings file declares a limit named {name!r}; give this one another name", param="name"
            )


def _bad(finding: Finding, *, skip: int) -> BadRequest:
    param = dotted(finding.path[skip:])
    head = f"{param}: " if param else "The limit "
    return BadRequest(f"{head}{finding.message}; {finding.cure}.", param=param or None)


def _unknown(id_or_name: str) -> NotFound:
    return NotFound(f"There is no limit with the id or name {id_or_name[:80]!a}; see `outpost limits list`.")


def _check_free(tx: Transaction, name: str) -> None:
    if tx.connection.execute(select(limits.c.id).where(limits.c.name == name)).first() is not None:
        raise BadRequest(
            f"name: there is a limit named {name!r} already, perhaps another organization's (names are unique on the "
            "whole box); choose another name",
            param="name",
        )


def _organization(tx: Transaction, actor: Principal, wanted: str) -> str:
    """The id of an organisation that the actor may set limits for. Raises PermissionDenied, BadRequest."""
    query = select(organizations.c.id).where(or_(organizations.c.id == wanted, organizations.c.name == wanted))
    found = tx.connection.execute(query.order_by(organizations.c.id != wanted)).first()
    if found is None:
        if actor.oversees is not None:
            raise PermissionDenied("organization: only your own; leave it out.", param="organization")
        raise BadRequest(f"organization: there is none with the id or name {wanted!r}", param="organization")
    check_organization(actor, found.id)
    return str(found.id)


def _plain(limit: Limit) -> dict[str, Any]:
    plain: dict[str, Any] = limit.model_dump(mode="json", exclude_none=True, exclude={"name"})
    return plain


def _text(limit: Limit) -> str:
    return json.dumps(_plain(limit), ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def declared_limits(settings: Settings) -> list[LimitInfo]:
    """Those of the settings file."""
    return [_info(limit_name(limit), limit_name(limit), DEFAULT_ORGANIZATION, limit, None) for limit in settings.limits]


def _info(limit_id: str, name: str, organization: str, limit: Limit, created_at: float | None) -> LimitInfo:
    source: Literal["settings", "database"] = "settings" if created_at is None else "database"
    return LimitInfo(limit_id, name, organization, source, created_at=created_at, **_plain(limit))


def _kept(limit_id: str, name: str, organization: str, limit: Limit, created_at: float) -> _Kept:
    only = None if organization == DEFAULT_ORGANIZATION else organization
    rule = rule_of(limit, id=limit_id, name=name, organization=only)
    return _Kept(_info(limit_id, name, organization, limit, created_at), rule)


def _counter(rule: str, standing: Standing) -> CounterInfo:
    def shown(amount: int) -> int | str:
        return format_usd(amount) if standing.measure == "usd" else amount

    return CounterInfo(
        rule,
        standing.limit,
        standing.scope,
        standing.whom,
        standing.measure,
        shown(standing.amount),
        shown(standing.used),
        shown(standing.reserved),
        shown(standing.remaining),
        standing.period,
        round(standing.reset_s, 3),
    )
