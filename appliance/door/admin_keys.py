"""/admin/v1/keys for those who administer keys, /admin/v1/me and /me/keys for everybody's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from appliance.door.admin_people import Reference
from appliance.door.endpoint import Query
from appliance.door.operation import PAGE, Asked, Operation, Page, page
from appliance.errors import BadRequest, PermissionDenied
from appliance.identity.key_ring import KeyRing
from appliance.identity.key_store import FILTERS, KeyInfo, NewKey
from appliance.identity.permissions import ROLES, Permission, Role
from appliance.identity.principal import UNRESTRICTED, Restrictions
from appliance.settings.units import BadForm, parse_duration

KeyName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Moment = Annotated[float, msgspec.Meta(gt=0, le=1e11, description="Unix seconds.")]
Span = Annotated[
    str, msgspec.Meta(min_length=1, max_length=32, description="A duration with its unit, e.g. 30d, 12h, 90m.")
]


class CreateKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`expires_at` or `expires_in`: when the key ends; without, it does not. What `restrictions` leaves out is taken
    from the credential that makes the key."""

    name: KeyName
    role: Role | UnsetType = UNSET
    organization: Reference | UnsetType = UNSET
    team: Reference | UnsetType = UNSET
    user: Reference | UnsetType = UNSET
    service_account: Reference | UnsetType = UNSET
    restrictions: Restrictions = UNRESTRICTED
    expires_at: Moment | UnsetType = UNSET
    expires_in: Span | UnsetType = UNSET


class CreateOwnKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A personal access token."""

    name: KeyName
    role: Role | UnsetType = UNSET
    team: Reference | UnsetType = UNSET
    restrictions: Restrictions = UNRESTRICTED
    expires_at: Moment | UnsetType = UNSET
    expires_in: Span | UnsetType = UNSET


class RotateKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`overlap`: how long the old key goes on; 0s ends it at once. Without `expires_at` and `expires_in` the new one
    lives as long as the old one was meant to."""

    overlap: Span = "24h"
    expires_at: Moment | UnsetType = UNSET
    expires_in: Span | UnsetType = UNSET


class MadeKey(KeyInfo, frozen=True, kw_only=True):
    """A key with its text, which is shown this once."""

    key: str


class Me(msgspec.Struct, frozen=True):
    """What the presented credential is and may do."""

    key_id: str
    key_name: str
    role: Role
    organization: str
    team: str | None
    user: str | None
    service_account: str | None
    restrictions: Restrictions
    expires_at: float | None
    permissions: Sequence[Permission]


_FILTERS = tuple(Query(name, f"Only those of this {name.replace('_', ' ')}, by id or name.") for name in FILTERS)


def operations(ring: KeyRing) -> tuple[Operation, ...]:
    return (*_keys(ring, "/admin/v1/keys", own=False), *_keys(ring, "/admin/v1/me/keys", own=True), _me())


def _me() -> Operation:
    async def me(asked: Asked) -> Me:
        actor = asked.actor
        return Me(
            key_id=actor.key_id,
            key_name=actor.key_name,
            role=actor.role,
            organization=actor.organization,
            team=actor.team,
            user=actor.user,
            service_account=actor.service_account,
            restrictions=actor.restrictions,
            expires_at=actor.expires_at,
            permissions=sorted(permission for permission in ROLES[actor.role] if actor.may(permission)),
        )

    return Operation("GET", "/admin/v1/me", "keys.own", me, "Who asks, and what they may do.", Me)


def _keys(ring: KeyRing, many: str, *, own: bool) -> tuple[Operation, ...]:
    """The same for all keys that one administers, and for one's own personal access tokens."""
    one = many + "/{id}"
    read: Permission = "keys.own" if own else "keys.read"
    write: Permission = "keys.own" if own else "keys.write"
    what = "personal access token of one's own" if own else "key"

    async def list_all(asked: Asked) -> Page:
        only = {name: value for name in FILTERS if (value := asked.query.get(name)) is not None}
        rows = await ring.list(asked.actor, after=asked.after, limit=asked.limit + 1, only=only, own=own)
        return page(asked, rows)

    async def create(asked: Asked) -> MadeKey:
        body = asked.body
        wish = {
            name: value
            for name in NewKey.__struct_fields__
            if name != "expires_at" and (value := getattr(body, name, UNSET)) is not UNSET
        }
        if own:
            if asked.actor.user is None:
                raise BadRequest("This credential belongs to no person; only people have personal access tokens.")
            wish |= {"user": asked.actor.user, "organization": asked.actor.organization}
            if asked.actor.team is not None:
                wish.setdefault("team", asked.actor.team)
        wanted = NewKey(**wish, expires_at=end_of(body, ring.directory.clock()))
        with _end_as_written(body):
            return _made(*await ring.create(asked.actor, wanted))

    async def show(asked: Asked) -> KeyInfo:
        return await ring.show(asked.actor, asked.parameters["id"], own=own)

    async def rotate(asked: Asked) -> MadeKey:
        body: RotateKey = asked.body
        with _end_as_written(body):
            return _made(
                *await ring.rotate(
                    asked.actor,
                    asked.parameters["id"],
                    overlap_s=span(body.overlap, "overlap"),
                    expires_at=end_of(body, ring.directory.clock()),
                    own=own,
                )
            )

    async def revoke(asked: Asked) -> KeyInfo:
        return await ring.revoke(asked.actor, asked.parameters["id"], own=own)

    return (
        Operation(
            "GET",
            many,
            read,
            list_all,
            f"Every {what}, those of the settings file first, ended ones included; never their texts.",
            list[KeyInfo],
            query=PAGE if own else (*PAGE, *_FILTERS),
        ),
        Operation(
            "POST",
            many,
            write,
            create,
            f"Make a {what}; its text is shown this once.",
            MadeKey,
            CreateOwnKey if own else CreateKey,
            status=201,
        ),
        Operation("GET", one, read, show, f"One {what}, by id or name.", KeyInfo),
        Operation("DELETE", one, write, revoke, f"End a {what} at once and for good.", KeyInfo),
        Operation(
            "POST",
            one + "/rotate",
            write,
            rotate,
            f"A new key with the rights and the name of a {what}; the old one ends after the overlap.",
            MadeKey,
            RotateKey,
            status=201,
        ),
    )


def _made(info: KeyInfo, key: str) -> MadeKey:
    fields: dict[str, Any] = {name: getattr(info, name) for name in info.__struct_fields__}
    return MadeKey(**fields, key=key)


def end_of(body: Any, now: float) -> float | None:
    """When a key is to end, in unix seconds; None: it was not said. Raises BadRequest."""
    if body.expires_in is UNSET:
        return None if body.expires_at is UNSET else float(body.expires_at)
    if body.expires_at is not UNSET:
        raise BadRequest("expires_in: give either expires_at or expires_in, not both", param="expires_in")
    return now + span(body.expires_in, "expires_in")


@contextmanager
def _end_as_written(body: Any) -> Iterator[None]:
    """An error about the end of a key names the field that the caller wrote."""
    try:
        yield
    except (BadRequest, PermissionDenied) as error:
        if error.param != "expires_at" or body.expires_in is UNSET:
            raise
        message = error.message.replace("expires_at", "expires_in", 1)
        raise type(error)(message, param="expires_in") from None


def span(text: str, name: str) -> float:
    """Seconds of a duration. Raises BadRequest."""
    try:
        return parse_duration(text)
    except BadForm as error:
        raise BadRequest(f"{name}: {error.message}; {error.cure}", param=name) from None
