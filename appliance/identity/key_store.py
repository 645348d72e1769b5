"""Keys in the database: hashes, names, rights and dates, never a key. The work of each change, and what is read."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import Select, and_, insert, or_, select, update

from appliance.errors import BadRequest, NotFound
from appliance.identity.grants import check_grant, check_owner, check_role, inherit
from appliance.identity.keys import ROTATED_DIGITS, ROTATED_NAME
from appliance.identity.people_work import (
    SERVICE_ACCOUNT,
    TEAM,
    USER,
    Changed,
    beyond,
    find,
    note,
    organization_of,
    storable_text,
)
from appliance.identity.permissions import ROLES, Role, may_grant, within
from appliance.identity.principal import DEFAULT_ORGANIZATION, UNRESTRICTED, Principal, Restrictions
from appliance.identity.restrictions import checked, networks
from appliance.identity.snapshot import KeyRecord, Member, ServiceAccount, Team, User
from appliance.records.tables import api_keys, team_members
from appliance.records.transaction import Transaction
from appliance.redact import looks_secret

logger = logging.getLogger("outpost.identity")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
NOTHING = Restrictions(routes=(), models=(), zones=())
"""What is shown of restrictions that cannot be read. Nobody can wish for these: see `checked`."""
LONGEST_S = 100 * 366 * 86400.0
MOST_OVERLAP_S = 90 * 86400.0
FILTERS = {
    "organization": "organization_id",
    "team": "team_id",
    "user": "user_id",
    "service_account": "service_account_id",
}


class KeyInfo(msgspec.Struct, frozen=True):
    """What may be shown of a key. Times are unix seconds; a key from the settings has none and no prefix."""

    id: str
    name: str
    role: Role
    prefix: str = ""
    created_at: float | None = None
    revoked_at: float | None = None
    source: Literal["database", "settings"] = "database"
    organization: str = DEFAULT_ORGANIZATION
    team: str | None = None
    user: str | None = None
    service_account: str | None = None
    restrictions: Restrictions = UNRESTRICTED
    expires_at: float | None = None
    created_by: str | None = None
    """Id of the credential that made it."""
    replaces: str | None = None
    """Id of the key that it was made to follow."""
    last_used_at: float | None = None
    """Since this process started."""


class NewKey(msgspec.Struct, frozen=True):
    """A wish for a key. Organisation, team, user and service account by id or name."""

    name: str
    role: Role | None = None
    organization: str | None = None
    team: str | None = None
    user: str | None = None
    service_account: str | None = None
    restrictions: Restrictions = UNRESTRICTED
    expires_at: float | None = None


class Fresh(msgspec.Struct, frozen=True):
    """What is decided outside of the database about a new key: its id, what is kept of its text, and the time."""

    id: str
    prefix: str
    digest: bytes
    secret_id: str
    now: float


_COLUMNS = {
    "id": "id", "name": "name", "role": "role", "prefix": "prefix", "created_at": "created_at",
    "revoked_at": "revoked_at", **FILTERS, "restrictions": "restrictions", "expires_at": "expires_at",
    "created_by": "created_by", "replaces": "replaces",
}  # fmt: skip


def select_keys() -> Select[Any]:
    return select(*(api_keys.c[column] for column in _COLUMNS.values()), api_keys.c.digest, api_keys.c.secret_id)


def info_of(row: Sequence[Any]) -> KeyInfo:
    """A row of `select_keys`."""
    values = dict(zip(_COLUMNS, row, strict=False))
    values["restrictions"] = _read_restrictions(values["restrictions"])
    return KeyInfo(**values)


def _read_restrictions(text: Any) -> Restrictions:
    """What a column says; NOTHING for what cannot be read: such a key must still be shown and revoked."""
    try:
        found = msgspec.json.decode(text, type=Restrictions)
        networks(found)
    except (msgspec.MsgspecError, ValueError, TypeError):
        return NOTHING
    return found


def records_of(rows: Iterable[Sequence[Any]]) -> list[KeyRecord]:
    """The keys of these rows that can be used. A damaged one lets nobody in, and keeps no gateway from starting."""
    found = []
    for row in rows:
        info = info_of(row)
        if info.restrictions == NOTHING:
            cure = f"outpost keys revoke {info.id}, and make another"
            logger.error("key_damaged", extra={"key": info.id, "field": "restrictions", "cure": cure})
        else:
            found.append(_record(info, row))
    return found


def _record(info: KeyInfo, row: Sequence[Any]) -> KeyRecord:
    """row: one of `select_keys`, or what its last two columns say."""
    return KeyRecord(
        digest=bytes(row[-2]),
        id=info.id,
        name=info.name,
        role=info.role,
        organization=info.organization,
        team=info.team,
        user=info.user,
        service_account=info.service_account,
        restrictions=info.restrictions,
        expires_at=info.expires_at,
        secret_id=row[-1],
    )


def valid_keys() -> Select[Any]:
    return select_keys().where(api_keys.c.revoked_at.is_(None))


def page_of_keys(after: str | None, limit: int, only: Mapping[str, str]) -> Select[Any]:
    """Every key ever made, the revoked ones too, oldest first. `only`: field of FILTERS → id."""
    query = select_keys().order_by(api_keys.c.created_at, api_keys.c.id).limit(limit)
    for field, value in only.items():
        query = query.where(api_keys.c[FILTERS[field]] == value)
    return query if after is None else query.where(beyond(api_keys, after))


def wanted_keys(id_or_name: str, only: Mapping[str, str]) -> Select[Any]:
    """The key with this id, the valid ones with this name. See `chosen_key`."""
    query = select_keys().where(
        or_(api_keys.c.id == id_or_name, and_(api_keys.c.name == id_or_name, api_keys.c.revoked_at.is_(None)))
    )
    for field, value in only.items():
        query = query.where(api_keys.c[FILTERS[field]] == value)
    return query.order_by(api_keys.c.id != id_or_name).limit(3)


def chosen_key(id_or_name: str, rows: Sequence[Sequence[Any]]) -> Sequence[Any]:
    """The one among rows of `wanted_keys`: an id counts before a name. Raises NotFound, BadRequest for a name that keys
    of several organisations have."""
    if rows and (len(rows) == 1 or rows[0][0] == id_or_name):
        return rows[0]
    shown = ascii(id_or_name[:80])
    if rows:
        raise BadRequest(f"key: several are named {shown}; give the id, see `outpost keys list`")
    raise NotFound(f"There is no key with the id or name {shown}; see `outpost keys list`.")


def reach(actor: Principal, *, own: bool) -> dict[str, str]:
    """Which keys somebody may touch: all, those of their organisation, or (`own`) their personal access tokens."""
    only = {} if actor.oversees is None else {"organization": actor.oversees}
    return {**only, "user": actor.user or ""} if own else only


def _find(tx: Transaction, id_or_name: str, only: Mapping[str, str]) -> tuple[KeyInfo, KeyRecord]:
    rows: Sequence[Sequence[Any]] = []
    if storable_text(id_or_name) and len(id_or_name) <= 64:
        rows = tx.connection.execute(wanted_keys(id_or_name, only)).all()
    return found_key(chosen_key(id_or_name, rows))


def found_key(row: Sequence[Any]) -> tuple[KeyInfo, KeyRecord]:
    """A row of `select_keys` as it is shown, and as the snapshot has it."""
    info = info_of(row)
    return info, _record(info, row)


# --- changes ----------------------------------------------------------------------------------------


def create(tx: Transaction, actor: Principal, wish: NewKey, fresh: Fresh) -> Changed[KeyInfo]:
    """Keep a new key. Raises BadRequest and PermissionDenied, which name the field."""
    if not _NAME.fullmatch(wish.name):
        raise BadRequest(
            "name: use 1 to 64 letters, digits and . _ @ + - , beginning with a letter or digit", param="name"
        )
    if looks_secret(wish.name):
        raise BadRequest("name: this looks like a key, and names are kept and shown; choose another", param="name")
    if wish.role is not None and wish.role not in ROLES:
        raise BadRequest(f"role: must be one of {', '.join(ROLES)}", param="role")
    info = _settled(tx, actor, wish, fresh)
    ended = _free_name(tx, actor, info, fresh.now)
    return _insert(tx, actor, info, fresh, "key.create", ended)


def _settled(tx: Transaction, actor: Principal, wish: NewKey, fresh: Fresh) -> KeyInfo:
    """The wish with ids for names and defaults filled in, checked against the directory and the grantor."""
    connection, scope = tx.connection, actor.oversees
    if wish.user is not None and wish.service_account is not None:
        raise BadRequest("user, service_account: a key belongs to one of them at most", param="service_account")
    if wish.organization is not None:
        scope = organization_of(connection, actor, wish.organization).id
    user: User | None = None
    account: ServiceAccount | None = None
    if wish.user is not None:
        user = find(connection, USER, wish.user, scope, "user")
    if wish.service_account is not None:
        account = find(connection, SERVICE_ACCOUNT, wish.service_account, scope, "service_account")
    holder = user or account
    if holder is not None:
        scope = holder.organization
        _check_holder(actor, holder)
    team: Team | None = None
    if wish.team is not None:
        team = find(connection, TEAM, wish.team, scope, "team")
        scope = team.organization
    elif account is not None and account.team is not None:
        team = find(connection, TEAM, account.team, scope, "team")
    organization = organization_of(connection, actor, scope).id
    for thing, word in ((holder, "service_account" if account else "user"), (team, "team")):
        if thing is not None and thing.disabled_at is not None:
            raise BadRequest(f"{word}: {thing.name} is disabled; enable it first", param=word)
    if user is not None and team is not None and not _is_member(tx, Member(team.id, user.id)):
        raise BadRequest(f"team: {user.name} is not a member of {team.name}; make them one first", param="team")
    role = wish.role
    if role is None:
        # The least, but for those whose holder may not even ask models.
        role = "member" if holder is None else within("member", holder.role) or holder.role
    elif holder is not None and not may_grant(holder.role, role):
        raise BadRequest(
            f"role: {holder.name} is {holder.role} and cannot have a key with the role {role}", param="role"
        )
    restrictions, expires_at = inherit(actor, checked(wish.restrictions), wish.expires_at)
    if expires_at is not None and not fresh.now < expires_at <= fresh.now + LONGEST_S:
        raise BadRequest("expires_at: the key must end in the future, within 100 years", param="expires_at")
    info = KeyInfo(
        id=fresh.id,
        name=wish.name,
        role=role,
        prefix=fresh.prefix,
        created_at=fresh.now,
        organization=organization,
        team=None if team is None else team.id,
        user=None if user is None else user.id,
        service_account=None if account is None else account.id,
        restrictions=restrictions,
        expires_at=expires_at,
        created_by=actor.key_id[:64],
    )
    _check(actor, info)
    return info


def _check_holder(actor: Principal, holder: User | ServiceAccount) -> None:
    """Whoever has a person's token sees that person's other tokens, so an owner's are the owners' matter."""
    if holder.role == "owner" and holder.id not in (actor.user, actor.service_account):
        check_owner(actor)


def _check_holder_of(tx: Transaction, actor: Principal, info: KeyInfo) -> None:
    """The same for a key that is there. Raises PermissionDenied."""
    for kind, holder in ((USER, info.user), (SERVICE_ACCOUNT, info.service_account)):
        if holder is not None:
            _check_holder(actor, find(tx.connection, kind, holder, info.organization))


def _check(actor: Principal, info: KeyInfo) -> None:
    check_grant(
        actor,
        info.role,
        organization=info.organization,
        team=info.team,
        user=info.user,
        service_account=info.service_account,
        restrictions=info.restrictions,
        expires_at=info.expires_at,
    )


def _is_member(tx: Transaction, member: Member) -> bool:
    query = select(team_members.c.team_id).where(
        team_members.c.team_id == member.team, team_members.c.user_id == member.user
    )
    return tx.connection.execute(query).first() is not None


def _free_name(tx: Transaction, actor: Principal, new: KeyInfo, now: float) -> tuple[KeyRecord, ...]:
    """A key of the same organisation that has expired gives its name up; one that is valid keeps it. Raises
    BadRequest."""
    named = valid_keys().where(api_keys.c.organization_id == new.organization, api_keys.c.name == new.name)
    row = tx.connection.execute(named).first()
    if row is None:
        return ()
    info = info_of(row)
    if info.expires_at is None or info.expires_at > now:
        raise BadRequest(
            f"name: there is a key named {new.name!r} already; choose another name or revoke it first", param="name"
        )
    ended = msgspec.structs.replace(info, revoked_at=info.expires_at)
    tx.connection.execute(update(api_keys).where(api_keys.c.id == info.id).values(revoked_at=ended.revoked_at))
    note(tx, actor, "key.expire", info.id, info, ended)
    return (_record(info, row),)


def _insert(
    tx: Transaction, actor: Principal, info: KeyInfo, fresh: Fresh, kind: str, ended: tuple[KeyRecord, ...] = ()
) -> Changed[KeyInfo]:
    values = {column: getattr(info, field) for field, column in _COLUMNS.items()}
    values["restrictions"] = msgspec.json.encode(info.restrictions).decode()
    tx.connection.execute(insert(api_keys).values(**values, digest=fresh.digest, secret_id=fresh.secret_id))
    note(tx, actor, kind, info.id, None, info)
    return Changed(info, (_record(info, (fresh.digest, fresh.secret_id)),), ended)


def rotate(
    tx: Transaction,
    actor: Principal,
    id_or_name: str,
    fresh: Fresh,
    *,
    overlap_s: float,
    expires_at: float | None = None,
    own: bool = False,
) -> Changed[KeyInfo]:
    """A new key with the rights and the name of an old one, which ends after `overlap_s`.

    Without `expires_at` the new one lives as long as the old one was meant to, at most as long as the grantor's own.
    Raises NotFound, BadRequest, PermissionDenied.
    """
    if not 0 <= overlap_s <= MOST_OVERLAP_S:
        raise BadRequest("overlap: must be from 0 to 90 days", param="overlap")
    old, record = _find(tx, id_or_name, reach(actor, own=own))
    now = fresh.now
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise BadRequest(f"{old.name} has ended already; make a new key")
    follower = tx.connection.execute(select(api_keys.c.name).where(api_keys.c.replaces == old.id)).scalar()
    if follower is not None:
        raise BadRequest(f"{old.name} has been replaced by {follower} already; rotate that one")
    _check_holder_of(tx, actor, old)
    if old.restrictions == NOTHING:
        raise BadRequest(f"{old.name}: what it is limited to cannot be read; revoke it, and make a new key")
    explicit = expires_at is not None
    if expires_at is None and old.expires_at is not None:
        expires_at = now + (old.expires_at - (old.created_at or now))
    ceiling = inherit(actor, UNRESTRICTED, None)[1]
    if ceiling is not None and not explicit:
        expires_at = min(expires_at or ceiling, ceiling)
    if expires_at is not None and not now < expires_at <= now + LONGEST_S:
        raise BadRequest("expires_at: the key must end in the future, within 100 years", param="expires_at")
    new = msgspec.structs.replace(
        old,
        id=fresh.id,
        prefix=fresh.prefix,
        created_at=now,
        expires_at=expires_at,
        created_by=actor.key_id[:64],
        replaces=old.id,
    )
    _check(actor, new)
    # The name goes to the one that stays; records know both by their ids.
    end = now + overlap_s if old.expires_at is None else min(old.expires_at, now + overlap_s)
    ending = msgspec.structs.replace(
        old,
        name=f"{old.name[:ROTATED_NAME]}+{old.id[-ROTATED_DIGITS:]}",
        expires_at=end,
        revoked_at=None if overlap_s else now,
    )
    values = {"name": ending.name, "expires_at": ending.expires_at, "revoked_at": ending.revoked_at}
    tx.connection.execute(update(api_keys).where(api_keys.c.id == old.id).values(**values))
    note(tx, actor, "key.rotate", old.id, old, ending)
    made = _insert(tx, actor, new, fresh, "key.create")
    left = msgspec.structs.replace(record, name=ending.name, expires_at=end)
    return Changed(made.value, (*made.put, left)) if overlap_s else Changed(made.value, made.put, (record,))


def revoke(tx: Transaction, actor: Principal, id_or_name: str, *, now: float, own: bool = False) -> Changed[KeyInfo]:
    """End a key for good; one that was ended before stays as it was. Raises NotFound, PermissionDenied."""
    info, record = _find(tx, id_or_name, reach(actor, own=own))
    _check_holder_of(tx, actor, info)
    if own:
        check_role(actor, info.role)
    elif info.role == "owner":
        check_owner(actor)
    if info.revoked_at is not None:
        return Changed(info)
    ended = msgspec.structs.replace(info, revoked_at=now)
    tx.connection.execute(update(api_keys).where(api_keys.c.id == info.id).values(revoked_at=now))
    note(tx, actor, "key.revoke", info.id, info, ended)
    return Changed(ended, (), (record,))
