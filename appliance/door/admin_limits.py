"""/admin/v1/limits: how much may be asked for, and how much has been used."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from appliance.door.admin_people import written
from appliance.door.endpoint import Query
from appliance.door.operation import Asked, Operation
from appliance.errors import BadRequest
from appliance.limits.keeper import CounterInfo, LimitInfo, LimitKeeper
from appliance.settings.limiting import Scope

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
Reference = Annotated[str, msgspec.Meta(min_length=1, max_length=128, description="An id or a name.")]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Names = _Text | Annotated[list[_Text], msgspec.Meta(min_length=1, max_length=100)]
Quota = Annotated[
    _Text | Annotated[list[_Text], msgspec.Meta(min_length=1, max_length=100)],
    msgspec.Meta(description="An amount per time such as 600/minute or 100/5m, or a list of these."),
]
InFlight = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Window = Literal["rolling", "calendar"]


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Whom a limit applies to, by names or ids. All fields that are given have to fit."""

    organization: Names | None = None
    team: Names | None = None
    user: Names | None = None
    service_account: Names | None = None
    key: Names | None = None
    model: Names | None = None
    route: Names | None = None
    provider: Names | None = None
    tag: Names | None = None


class CreateLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A limit in the words of the settings file; see `outpost config explain limits`."""

    scope: Scope
    name: Name | UnsetType = UNSET
    organization: Reference | UnsetType = UNSET
    match: Match | UnsetType = UNSET
    requests: Quota | UnsetType = UNSET
    input_tokens: Quota | UnsetType = UNSET
    output_tokens: Quota | UnsetType = UNSET
    tokens: Quota | UnsetType = UNSET
    usd: Quota | UnsetType = UNSET
    window: Window | UnsetType = UNSET
    timezone: _Text | UnsetType = UNSET
    in_flight: InFlight | UnsetType = UNSET


class ChangeLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be different; null takes a field away. What was used counts on where window and scope stay."""

    scope: Scope | UnsetType = UNSET
    name: Name | UnsetType = UNSET
    match: Match | UnsetType | None = UNSET
    requests: Quota | UnsetType | None = UNSET
    input_tokens: Quota | UnsetType | None = UNSET
    output_tokens: Quota | UnsetType | None = UNSET
    tokens: Quota | UnsetType | None = UNSET
    usd: Quota | UnsetType | None = UNSET
    window: Window | UnsetType | None = UNSET
    timezone: _Text | UnsetType | None = UNSET
    in_flight: InFlight | UnsetType | None = UNSET


def operations(keeper: LimitKeeper) -> tuple[Operation, ...]:
    many, one = "/admin/v1/limits", "/admin/v1/limits/{id}"

    async def list_all(asked: Asked) -> list[LimitInfo]:
        return keeper.list(asked.actor)

    async def make(asked: Asked) -> LimitInfo:
        return await keeper.create(asked.actor, _plain(asked.body))

    async def show(asked: Asked) -> LimitInfo:
        return keeper.show(asked.actor, asked.parameters["id"])

    async def alter(asked: Asked) -> LimitInfo:
        wish = _plain(asked.body)
        if not wish:
            names = ", ".join(ChangeLimit.__struct_fields__)
            raise BadRequest(f"Nothing is to be changed; name at least one of {names}.")
        return await keeper.change(asked.actor, asked.parameters["id"], wish)

    async def remove(asked: Asked) -> LimitInfo:
        return await keeper.delete(asked.actor, asked.parameters["id"])

    async def usage(asked: Asked) -> list[CounterInfo]:
        return list(keeper.usage(asked.actor, asked.query.get("limit")))

    only = Query("limit", "Only the counters of this limit, by its id or name.")
    return (
        Operation("GET", many, "limits.read", list_all, "All limits, those of the file first.", list[LimitInfo]),
        Operation("POST", many, "limits.write", make, "Make a limit.", LimitInfo, CreateLimit, status=201),
        Operation(
            "GET",
            f"{many}/usage",
            "limits.read",
            usage,
            "What has been used, reserved and is left of limits, the fullest first.",
            list[CounterInfo],
            query=(only,),
        ),
        Operation("GET", one, "limits.read", show, "One limit, by id or name.", LimitInfo),
        Operation("PATCH", one, "limits.write", alter, "Change a limit.", LimitInfo, ChangeLimit),
        Operation("DELETE", one, "limits.write", remove, "Delete a limit.", LimitInfo),
    )


def _plain(body: msgspec.Struct) -> dict[str, object]:
    return {
        name: msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else value
        for name, value in written(body).items()
    }
