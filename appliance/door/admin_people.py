"""/admin/v1/organizations, /teams, /users, /service-accounts: who there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from appliance.door.endpoint import Query
from appliance.door.operation import PAGE, Asked, Operation, Page, page
from appliance.errors import BadRequest
from appliance.identity.directory import Directory
from appliance.identity.people_work import ORGANIZATION, SERVICE_ACCOUNT, TEAM, USER, Kind
from appliance.identity.permissions import Role
from appliance.identity.snapshot import Member, User

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
LongName = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Reference = Annotated[str, msgspec.Meta(min_length=1, max_length=128, description="An id or a name.")]


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a caller may write; every field is listed."""


class CreateOrganization(_Body, frozen=True):
    name: Name


class ChangeOrganization(_Body, frozen=True):
    name: Name | UnsetType = UNSET
    disabled: bool | UnsetType = UNSET


class CreateTeam(_Body, frozen=True):
    name: Name
    organization: Reference | UnsetType = UNSET


class ChangeTeam(_Body, frozen=True):
    name: Name | UnsetType = UNSET
    disabled: bool | UnsetType = UNSET


class CreateUser(_Body, frozen=True):
    name: LongName
    role: Role = "member"
    organization: Reference | UnsetType = UNSET


class ChangeUser(_Body, frozen=True):
    name: LongName | UnsetType = UNSET
    role: Role | UnsetType = UNSET
    disabled: bool | UnsetType = UNSET


class CreateServiceAccount(_Body, frozen=True):
    name: Name
    role: Role = "member"
    organization: Reference | UnsetType = UNSET
    team: Reference | UnsetType = UNSET


class ChangeServiceAccount(_Body, frozen=True):
    name: Name | UnsetType = UNSET
    role: Role | UnsetType = UNSET
    team: Reference | UnsetType | None = UNSET
    disabled: bool | UnsetType = UNSET


_KINDS = (
    ("organizations", ORGANIZATION, CreateOrganization, ChangeOrganization),
    ("teams", TEAM, CreateTeam, ChangeTeam),
    ("users", USER, CreateUser, ChangeUser),
    ("service-accounts", SERVICE_ACCOUNT, CreateServiceAccount, ChangeServiceAccount),
)
IN_ORGANIZATION = Query("organization", "Only those of this organization, by id or name.")


def operations(directory: Directory) -> tuple[Operation, ...]:
    found: list[Operation] = []
    for path, kind, create, change in _KINDS:
        found += _of(directory, path, kind, create, change)
    return (*found, *_members(directory))


def _of(
    directory: Directory, path: str, kind: Kind, create: type[msgspec.Struct], change: type[msgspec.Struct]
) -> tuple[Operation, ...]:
    """List, create, show, change, delete: the same for every kind."""
    many, one = f"/admin/v1/{path}", f"/admin/v1/{path}/{{id}}"
    words = path.replace("-", " ")
    a_word = f"an {kind.word}" if kind.word[0] in "aeio" else f"a {kind.word}"

    async def list_all(asked: Asked) -> Page:
        rows = await directory.list(
            asked.actor,
            kind,
            after=asked.after,
            limit=asked.limit + 1,
            organization=asked.query.get("organization"),
        )
        return page(asked, rows)

    async def make(asked: Asked) -> Any:
        return await directory.create(asked.actor, kind, written(asked.body))

    async def show(asked: Asked) -> Any:
        return await directory.show(asked.actor, kind, asked.parameters["id"])

    async def alter(asked: Asked) -> Any:
        wish = written(asked.body)
        if not wish:
            raise BadRequest(f"Nothing is to be changed; name at least one of {', '.join(change.__struct_fields__)}.")
        return await directory.alter(asked.actor, kind, asked.parameters["id"], wish)

    async def remove(asked: Asked) -> Any:
        return await directory.delete(asked.actor, kind, asked.parameters["id"])

    rows_of: Any = list[kind.struct]  # type: ignore[name-defined]
    narrowed = PAGE if kind is ORGANIZATION else (*PAGE, IN_ORGANIZATION)
    return (
        Operation("GET", many, "people.read", list_all, f"All {words}, oldest first.", rows_of, query=narrowed),
        Operation("POST", many, "people.write", make, f"Make {a_word}.", kind.struct, create, status=201),
        Operation("GET", one, "people.read", show, f"One {kind.word}, by id or name.", kind.struct),
        Operation(
            "PATCH",
            one,
            "people.write",
            alter,
            f"Change {a_word}. `disabled` ends all keys that belong to it at once, and gives them back.",
            kind.struct,
            change,
        ),
        Operation(
            "DELETE",
            one,
            "people.write",
            remove,
            f"Delete {a_word} that is disabled and that nothing on record refers to.",
            kind.struct,
        ),
    )


def _members(directory: Directory) -> tuple[Operation, ...]:
    many, one = "/admin/v1/teams/{id}/members", "/admin/v1/teams/{id}/members/{user}"

    async def list_all(asked: Asked) -> Page:
        rows = await directory.members(asked.actor, asked.parameters["id"], after=asked.after, limit=asked.limit + 1)
        return page(asked, rows)

    async def put(asked: Asked) -> Member:
        return await directory.set_member(asked.actor, asked.parameters["id"], asked.parameters["user"], inside=True)

    async def drop(asked: Asked) -> Member:
        return await directory.set_member(asked.actor, asked.parameters["id"], asked.parameters["user"], inside=False)

    return (
        Operation("GET", many, "people.read", list_all, "The users of a team.", list[User], query=PAGE),
        Operation("PUT", one, "people.write", put, "Make a user a member of a team.", Member),
        Operation("DELETE", one, "people.write", drop, "Take a user out of a team; their tokens for it end.", Member),
    )


def written(body: msgspec.Struct) -> Mapping[str, Any]:
    """The fields of a body that its caller wrote, or that have a default."""
    return {name: value for name in body.__struct_fields__ if (value := getattr(body, name)) is not UNSET}
