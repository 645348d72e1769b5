"""Organisations, teams, users, members and service accounts in the database: what is read, and the work of each change.

A change is a function of an open transaction. It checks what is in the database at that moment, writes, and puts an
event with before and after onto the ledger; what it gives back goes into the snapshot. One table (`KINDS`) says what
each kind of thing has; the functions are the same for all.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Select, Table, and_, delete, insert, or_, select, tuple_, update

from appliance.errors import BadRequest, NotFound, PermissionDenied
from appliance.identity.grants import check_organization, check_owner, check_role
from appliance.identity.permissions import ROLES
from appliance.identity.principal import DEFAULT_ORGANIZATION, Principal
from appliance.identity.snapshot import Member, Organization, ServiceAccount, Team, Thing, User
from appliance.records.tables import (
    api_keys,
    counters,
    exchanges,
    limits,
    organizations,
    service_accounts,
    subject_keys,
    team_members,
    teams,
    users,
)
from appliance.records.transaction import Transaction
from appliance.redact import looks_secret

EPOCH = "identity_epoch"
T = TypeVar("T")


class Changed(msgspec.Struct, Generic[T]):
    """What a work gives back: its answer, and what it means for the snapshot."""

    value: T
    put: tuple[Thing, ...] = ()
    drop: tuple[Thing, ...] = ()


class Kind(msgspec.Struct, frozen=True):
    """How one kind of thing is kept. `columns`: field → column where the two differ. `refers`: where records may name
    it, with the column; such a thing cannot be deleted."""

    word: str
    prefix: str
    struct: type[Any]
    table: Table
    longest: int
    columns: Mapping[str, str] = {}
    refers: tuple[ColumnElement[Any], ...] = ()

    def column(self, field: str) -> ColumnElement[Any]:
        found: ColumnElement[Any] = self.table.c[self.columns.get(field, field)]
        return found

    def select(self) -> Select[Any]:
        return select(*(self.column(field) for field in self.struct.__struct_fields__))

    def values(self, thing: Any) -> dict[str, Any]:
        return {self.columns.get(f, f): getattr(thing, f) for f in self.struct.__struct_fields__}

    def made(self, row: Row[Any]) -> Any:
        return self.struct(*row)


_IN = {"organization": "organization_id"}
ORGANIZATION = Kind(
    "organization", "org", Organization, organizations, 64, {},
    (
        teams.c.organization_id, users.c.organization_id, service_accounts.c.organization_id,
        api_keys.c.organization_id, limits.c.organization_id, exchanges.c.organization_id,
    ),
)  # fmt: skip
TEAM = Kind(
    "team", "team", Team, teams, 64, _IN,
    (service_accounts.c.team_id, api_keys.c.team_id, exchanges.c.team_id),
)  # fmt: skip
USER = Kind(
    "user", "user", User, users, 128, _IN,
    (api_keys.c.user_id, subject_keys.c.subject, exchanges.c.user_id),
)  # fmt: skip
SERVICE_ACCOUNT = Kind(
    "service account", "sa", ServiceAccount, service_accounts, 64, {**_IN, "team": "team_id"},
    (api_keys.c.service_account_id, subject_keys.c.subject, exchanges.c.service_account_id),
)  # fmt: skip
KINDS = (ORGANIZATION, TEAM, USER, SERVICE_ACCOUNT)

_ID = re.compile(r"(?:org|team|user|sa|key|limit)_[a-z2-7]{16}|org_default")


def new_id(prefix: str, random: bytes) -> str:
    """`PREFIX_` and 16 characters of base 32, which are 80 bits of `random`."""
    return f"{prefix}_{base64.b32encode(random[:10]).decode().lower()}"


def check_name(name: str, longest: int) -> str:
    """The name in its composed Unicode form. Raises BadRequest."""
    name = unicodedata.normalize("NFC", name)
    if not 0 < len(name) <= longest or not name.isprintable() or name != name.strip() or "/" in name:
        raise BadRequest(
            f"name: use 1 to {longest} printable characters without / and without spaces at the ends", param="name"
        )
    if _ID.fullmatch(name):
        raise BadRequest("name: this looks like an id; choose a name that is none", param="name")
    if looks_secret(name):
        raise BadRequest("name: this looks like a key, and names are kept and shown; choose another", param="name")
    return name


def presentable(name: str, longest: int) -> str:
    """The nearest name that `check_name` takes, for one that somebody else chose; empty where there is none."""
    text = "".join(c if c.isprintable() and c != "/" else "_" for c in unicodedata.normalize("NFC", name))
    text = text[:longest].strip()
    return f"{text[: longest - 1]}_" if _ID.fullmatch(text) else text


def raise_epoch(connection: Connection) -> int:
    """Tell other processes that something changed; the new epoch."""
    found = connection.execute(select(counters.c.value).where(counters.c.name == EPOCH)).scalar()
    if found is None:
        connection.execute(insert(counters).values(name=EPOCH, value=1))
        return 1
    connection.execute(update(counters).where(counters.c.name == EPOCH).values(value=int(found) + 1))
    return int(found) + 1


# --- the ledger -------------------------------------------------------------------------------------


def ledger_form(thing: msgspec.Struct | None) -> dict[str, Any] | None:
    """A thing as the ledger keeps it: no null, nothing of a key's text, times as integer microseconds (`…_at_us`)."""
    if thing is None:
        return None
    plain: dict[str, Any] = msgspec.to_builtins(thing)
    form: dict[str, Any] = {}
    for name, value in plain.items():
        if value is None or name == "prefix":
            continue
        if name.endswith("_at"):
            form[f"{name}_us"] = round(value * 1_000_000)
        else:
            form[name] = value
    return form


def note(
    tx: Transaction,
    actor: Principal,
    kind: str,
    object_id: str,
    before: msgspec.Struct | None,
    after: msgspec.Struct | None,
) -> None:
    """Put an administrative change on the ledger: who, what, before, after."""
    body: dict[str, Any] = {"actor": actor.actor, "object": object_id}
    if (form := ledger_form(before)) is not None:
        body["before"] = form
    if (form := ledger_form(after)) is not None:
        body["after"] = form
    tx.append(f"admin.{kind.replace(' ', '_')}", body)


# --- finding ----------------------------------------------------------------------------------------


def wanted(kind: Kind, id_or_name: str, organization: str | None) -> Select[Any]:
    """The things that an id or a name may mean, within one organisation or (None) everywhere."""
    query = kind.select().where(or_(kind.table.c.id == id_or_name, kind.table.c.name == id_or_name))
    if organization is not None:
        query = query.where((kind.table.c.id if kind is ORGANIZATION else kind.column("organization")) == organization)
    return query.limit(3)


def chosen(kind: Kind, id_or_name: str, rows: Sequence[Row[Any]], field: str | None = None) -> Any:
    """The one among `rows`. `field`: of a body, which the error then names. Raises NotFound, BadRequest."""
    found = [kind.made(row) for row in rows]
    exact = [thing for thing in found if thing.id == id_or_name]
    if len(exact or found) == 1:
        return (exact or found)[0]
    shown = ascii(id_or_name[:80])
    path = kind.word.replace(" ", "-") + "s"
    if found:
        raise BadRequest(f"{field or kind.word}: several are named {shown}; give the id, see `outpost {path} list`",
                         param=field)  # fmt: skip
    if field is not None:
        raise BadRequest(f"{field}: there is no {kind.word} {shown}; see `outpost {path} list`", param=field)
    raise NotFound(f"There is no {kind.word} with the id or name {shown}; see `outpost {path} list`.")


def storable_text(text: str) -> bool:
    """Whether a database can be asked for it: no NUL, no half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def find(
    connection: Connection, kind: Kind, id_or_name: str, organization: str | None, field: str | None = None
) -> Any:
    """See `chosen`."""
    rows: Sequence[Row[Any]] = []
    if storable_text(id_or_name):
        rows = connection.execute(wanted(kind, id_or_name, organization)).all()
    return chosen(kind, id_or_name, rows, field)


def page(kind: Kind, after: str | None, limit: int, organization: str | None = None) -> Select[Any]:
    """Things in the order of their making, `limit` after the one with the id `after`."""
    query = kind.select().order_by(kind.table.c.created_at, kind.table.c.id).limit(limit)
    if organization is not None:
        query = query.where((kind.table.c.id if kind is ORGANIZATION else kind.column("organization")) == organization)
    return query if after is None else query.where(beyond(kind.table, after))


def beyond(table: Table, after: str) -> ColumnElement[bool]:
    """Rows that come after the one with the id `after`, in the order of their making."""
    last = select(table.c.created_at).where(table.c.id == after).scalar_subquery()
    return tuple_(table.c.created_at, table.c.id) > tuple_(last, after)


# --- changes ----------------------------------------------------------------------------------------


def create(
    tx: Transaction, actor: Principal, kind: Kind, wish: Mapping[str, Any], *, now: float, id: str
) -> Changed[Any]:
    """Make a thing of the fields in `wish`; `organization` and `team` may be names. Raises BadRequest (names the
    field), PermissionDenied."""
    connection = tx.connection
    fields = {"id": id, "created_at": now, **wish, "name": check_name(wish["name"], kind.longest)}
    if kind is ORGANIZATION:
        _overseers_only(actor)
        owner = None
    else:
        owner = organization_of(connection, actor, wish.get("organization"))
        fields["organization"] = owner.id
        if wish.get("team") is not None:
            fields["team"] = find(connection, TEAM, wish["team"], owner.id, "team").id
    thing = kind.struct(**fields)
    if isinstance(thing, User | ServiceAccount):
        _check_role_name(thing.role)
        check_role(actor, thing.role)
    _check_free(connection, kind, thing)
    connection.execute(insert(kind.table).values(**kind.values(thing)))
    note(tx, actor, f"{kind.word}.create", thing.id, None, thing)
    return Changed(thing, (thing,))


def organization_of(connection: Connection, actor: Principal, wished: str | None) -> Organization:
    """The organisation that a body means; the actor's own where it names none. Raises BadRequest, PermissionDenied."""
    if wished is None or wished == actor.organization:
        wished = actor.organization
    elif actor.oversees is not None:
        # Also for one that is not there: what others there are is nobody's business.
        own = connection.execute(select(organizations.c.name).where(organizations.c.id == actor.oversees)).scalar()
        check_organization(actor, actor.oversees if wished == own else None)
        wished = actor.oversees
    found: Organization = find(connection, ORGANIZATION, wished, None, "organization")
    return found


def change(
    tx: Transaction, actor: Principal, kind: Kind, id_or_name: str, wish: Mapping[str, Any], *, now: float
) -> Changed[Any]:
    """Change what `wish` names: name, role, team (None: no team), disabled. Raises NotFound, BadRequest,
    PermissionDenied."""
    connection = tx.connection
    before = find(connection, kind, id_or_name, actor.oversees)
    if kind is ORGANIZATION:
        _overseers_only(actor)
    if getattr(before, "role", None) == "owner":
        check_owner(actor)
    fields: dict[str, Any] = {}
    if "name" in wish:
        fields["name"] = check_name(wish["name"], kind.longest)
    if "role" in wish:
        _check_role_name(wish["role"])
        if wish["role"] != before.role:
            check_role(actor, wish["role"], had=before.role, of=before.id)
        fields["role"] = wish["role"]
    if "team" in wish:
        team = wish["team"]
        fields["team"] = None if team is None else find(connection, TEAM, team, before.organization, "team").id
    if "disabled" in wish and wish["disabled"] != (before.disabled_at is not None):
        if before.id == DEFAULT_ORGANIZATION:
            raise BadRequest("disabled: the organization that runs the box cannot be disabled", param="disabled")
        if before.id in (actor.user, actor.service_account):
            raise BadRequest("disabled: you cannot disable yourself; ask somebody else who may", param="disabled")
        fields["disabled_at"] = now if wish["disabled"] else None
    after = msgspec.structs.replace(before, **fields)
    if after == before:
        return Changed(before)
    if after.name != before.name:
        _check_free(connection, kind, after)
    values = {kind.columns.get(f, f): value for f, value in fields.items()}
    connection.execute(update(kind.table).where(kind.table.c.id == before.id).values(**values))
    verb = "change"
    if set(fields) == {"disabled_at"}:
        verb = "enable" if after.disabled_at is None else "disable"
    note(tx, actor, f"{kind.word}.{verb}", before.id, before, after)
    return Changed(after, (after,))


def remove(tx: Transaction, actor: Principal, kind: Kind, id_or_name: str) -> Changed[Any]:
    """Delete a disabled thing that nothing on record refers to. `Directory.delete` has looked through the exchanges
    before: that takes too long for the writer. Raises NotFound, BadRequest, PermissionDenied."""
    connection = tx.connection
    thing = find(connection, kind, id_or_name, actor.oversees)
    if kind is ORGANIZATION:
        _overseers_only(actor)
    if getattr(thing, "role", None) == "owner":
        check_owner(actor)
    if thing.disabled_at is None:
        raise BadRequest(f"{thing.name!a} is in use: disable it first, then delete it")
    for column in kind.refers:
        table = column.table
        if table is exchanges:
            continue
        if connection.execute(select(column).where(column == thing.id).limit(1)).first() is not None:
            raise referred(kind, thing, table.name)
    members = []
    for field, mine in (("team_id", TEAM), ("user_id", USER)):
        if kind is mine:
            clause = team_members.c[field] == thing.id
            members = [Member(*row) for row in connection.execute(all_members().where(clause)).all()]
            connection.execute(delete(team_members).where(clause))
    connection.execute(delete(kind.table).where(kind.table.c.id == thing.id))
    note(tx, actor, f"{kind.word}.delete", thing.id, thing, None)
    return Changed(thing, (), (thing, *members))


def referred(kind: Kind, thing: Any, table: str) -> BadRequest:
    where = table.replace("_", " ").replace("exchanges", "requests on record")
    return BadRequest(f"{thing.name!a} cannot be deleted: {where} refer to this {kind.word}; it stays disabled")


def _check_free(connection: Connection, kind: Kind, thing: Any) -> None:
    clause = and_(kind.table.c.name == thing.name, kind.table.c.id != thing.id)
    if kind is not ORGANIZATION:
        clause = and_(clause, kind.column("organization") == thing.organization)
    if connection.execute(select(kind.table.c.id).where(clause)).first() is not None:
        raise BadRequest(f"name: there is a {kind.word} named {thing.name!r} already; choose another", param="name")


def _check_role_name(role: str) -> None:
    if role not in ROLES:
        raise BadRequest(f"role: must be one of {', '.join(ROLES)}", param="role")


def _overseers_only(actor: Principal) -> None:
    if actor.oversees is not None:
        raise PermissionDenied("Organizations are made and changed by those who run the box.")


# --- members ----------------------------------------------------------------------------------------


def all_members() -> Select[Any]:
    """Rows with the fields of a Member."""
    return select(team_members.c.team_id, team_members.c.user_id, team_members.c.claimed)


def set_member(
    tx: Transaction, actor: Principal, team: str, user: str, *, inside: bool, claimed: bool = False
) -> Changed[Member]:
    """Put a user into a team, or take them out; what is so already stays so, but a membership that somebody gives by
    hand is no token's any more. Raises NotFound, BadRequest."""
    connection = tx.connection
    found: Team = find(connection, TEAM, team, actor.oversees)
    person: User = find(connection, USER, user, found.organization)
    if person.role == "owner":
        check_owner(actor)
    member = Member(found.id, person.id, claimed)
    clause = and_(team_members.c.team_id == member.team, team_members.c.user_id == member.user)
    row = connection.execute(all_members().where(clause)).first()
    before = None if row is None else Member(*row)
    if not inside:
        if before is None:
            return Changed(member)
        connection.execute(delete(team_members).where(clause))
        note(tx, actor, "team.remove_member", found.id, before, None)
        return Changed(before, (), (before,))
    if before is not None and (claimed or not before.claimed):
        return Changed(before)
    if before is None:
        values = {"team_id": member.team, "user_id": member.user, "claimed": claimed}
        connection.execute(insert(team_members).values(**values))
    else:
        connection.execute(update(team_members).where(clause).values(claimed=False))
    note(tx, actor, "team.add_member", found.id, before, member)
    return Changed(member, (member,))
