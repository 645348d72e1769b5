"""`outpost keys`: make, show, rotate and end API keys, through the running gateway or straight in the database."""

from __future__ import annotations

import asyncio
import json
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from appliance.commands.asking import Desk, escaped
from appliance.commands.leaving import gateway_runs
from appliance.commands.place import ConfigOption, DataDirOption, Place, find_place, told
from appliance.commands.terminal import command, moment, table, visible
from appliance.data_dir import DataDirInUse
from appliance.errors import NotFound

if TYPE_CHECKING:
    from appliance.identity.lost_secret import GivenUp

app = typer.Typer(no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help='Print JSON: {"data": [...]}.')]
NameOrId = Annotated[str, typer.Argument(help="Id or name of the key.")]
RESTRICTIONS = ("routes", "models", "zones", "addresses", "priority")


class RoleName(StrEnum):
    owner = "owner"
    admin = "admin"
    operator = "operator"
    auditor = "auditor"
    member = "member"


class PriorityName(StrEnum):
    interactive = "interactive"
    normal = "normal"
    batch = "batch"


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the key, as records show it.")],
    role: Annotated[
        RoleName | None, typer.Option(help="What it may do. Left out: member, which only asks models.")
    ] = None,
    organization: Annotated[str | None, typer.Option(help="Id or name. Left out: the one that runs the box.")] = None,
    team: Annotated[str | None, typer.Option(help="The team that the key works for: id or name.")] = None,
    user: Annotated[str | None, typer.Option(help="The person whose access token it is: id or name.")] = None,
    service_account: Annotated[str | None, typer.Option(help="The service account it belongs to: id or name.")] = None,
    expires_in: Annotated[str | None, typer.Option(help="When it ends, e.g. 30d, 12h. Left out: never.")] = None,
    route: Annotated[list[str] | None, typer.Option(help="A model name it may ask for; may be repeated.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A target that may answer; may be repeated.")] = None,
    zone: Annotated[
        list[str] | None, typer.Option(help="Where targets may be: on_box, on_prem, cloud; may be repeated.")
    ] = None,
    address: Annotated[
        list[str] | None, typer.Option(help="A network it may be used from, e.g. 10.0.0.0/8; may be repeated.")
    ] = None,
    priority: Annotated[PriorityName | None, typer.Option(help="The most urgent class it may ask for.")] = None,
    new: Annotated[
        bool, typer.Option("--new", help="Make the data folder if there is none yet, before the first start.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a key and print it, this once."""
    limited = dict(zip(RESTRICTIONS, (route, model, zone, address, priority), strict=True))
    body = given(
        name=name,
        role=role,
        organization=organization,
        team=team,
        user=user,
        service_account=service_account,
        expires_in=expires_in,
        restrictions=given(**limited),
    )
    with told():
        desk = Desk(find_place(config, data_dir), new=new)
        try:
            (made,) = desk.ask("POST", "/keys", body=body)
        except NotFound as error:
            if desk.place.has_database:
                raise
            raise NotFound(f"{error.message}, or make it with --new before the first start") from error
    _show_made(made, desk, as_json, "was made")


@app.command(name="list")
def list_(
    organization: Annotated[str | None, typer.Option(help="Only those of this organization: id or name.")] = None,
    team: Annotated[str | None, typer.Option(help="Only those of this team: id or name.")] = None,
    user: Annotated[str | None, typer.Option(help="Only those of this user: id or name.")] = None,
    service_account: Annotated[str | None, typer.Option(help="Only those of this service account: id or name.")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show every key, without its text."""
    with told():
        desk = Desk(find_place(config, data_dir))
        only = given(organization=organization, team=team, user=user, service_account=service_account)
        # The keys of the settings are there before any data is; whom they belong to only the data can tell.
        found = desk.all("/keys", only, declared=None if only else lambda: declared(desk))
    if as_json:
        typer.echo(json.dumps({"data": found}))
        return
    if not found and only:
        typer.echo(f"There are no such keys in {desk.where}.", err=True)
        return
    if not found:
        typer.echo(
            f"There are no keys in {desk.where}. Make one: {command()} keys create NAME --role admin",
            err=True,
        )
        return
    rows = [
        (
            key["id"],
            key["name"],
            key["role"],
            f"{key['prefix']}…" if key["prefix"] else "",
            key["organization"],
            key["user"] or key["service_account"] or "",
            key["team"] or "",
            moment(key["created_at"]),
            state_of(key),
        )
        for key in found
    ]
    # The id comes first: however narrow a terminal is, it stays in one piece.
    for line in table(("ID", "NAME", "ROLE", "KEY", "ORGANIZATION", "OF", "TEAM", "CREATED", "STATE"), rows):
        typer.echo(line)


@app.command()
def rotate(
    id_or_name: NameOrId,
    overlap: Annotated[str, typer.Option(help="How long the old key goes on, e.g. 24h; 0s ends it at once.")] = "24h",
    expires_in: Annotated[
        str | None, typer.Option(help="When the new one ends. Left out: it lives as long as the old one was meant to.")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a key with the rights and the name of another, which ends after the overlap; print it, this once."""
    with told():
        desk = Desk(find_place(config, data_dir))
        body = given(overlap=overlap, expires_in=expires_in)
        (made,) = desk.ask("POST", f"/keys/{escaped(id_or_name)}/rotate", body=body)
    _show_made(made, desk, as_json, f"follows {visible(made['replaces'])}, which ends in {visible(overlap)},")


@app.command()
def revoke(
    id_or_name: NameOrId,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """End a key. Through a running gateway this works at once, otherwise at its next start."""
    with told():
        desk = Desk(find_place(config, data_dir))
        (ended,) = desk.ask("DELETE", f"/keys/{escaped(id_or_name)}")
    if as_json:
        typer.echo(json.dumps({"data": [ended]}))
        return
    typer.echo(f"Key {visible(ended['name'])} ({ended['id']}) is revoked in {desk.where}.")


@app.command(name="revoke-lost")
def revoke_lost(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """After secrets/master.key was lost for good: end the keys that were made under it, erase the texts that nobody can
    read any more, and begin with a new one. No gateway may run."""
    with told():
        place = find_place(config, data_dir)
        place.must_have_database()
        if gateway_runs(place):
            raise DataDirInUse(f"a gateway is running in {visible(place.data_dir.absolute())}: stop it first", "")
        if not yes:
            question = "End every key and erase every kept text that needs a master.key which is not here?"
            typer.confirm(f"{question} It cannot be undone, not even by putting the old file back", abort=True)
        done = asyncio.run(_give_up_lost(place))
    if as_json:
        typer.echo(json.dumps({"data": [msgspec.to_builtins(done)]}))
        return
    for key in done.keys:
        typer.echo(f"Key {visible(key.name)} ({key.id}) is revoked.")
    typer.echo(
        f"Keys revoked: {len(done.keys)}. Texts erased: {done.contents}. New keys are made under the "
        f"secrets/master.key in {visible(place.data_dir.absolute())}: {command()} keys create NAME --role owner"
    )


async def _give_up_lost(place: Place) -> GivenUp:
    # Only where no gateway runs.
    from appliance.commands.database import COMMAND_LINE, writing
    from appliance.identity import lost_secret
    from appliance.identity.key_ring import KeyRing

    async with writing(place) as (database, recorder):
        ring = await KeyRing.open(database, place.data_dir, recorder=recorder, strict=False)
        return await lost_secret.give_up(ring.directory, place.data_dir, COMMAND_LINE)


def given(**fields: Any) -> dict[str, Any]:
    """The fields that were given. An empty text is one: a variable that a script has not set must not make a key that
    never ends, or that belongs to nobody."""
    return {name: value for name, value in fields.items() if value is not None and value != [] and value != {}}


def state_of(key: dict[str, Any], now: float | None = None) -> str:
    """What has become of a key, in words. now: unix seconds."""
    if key["source"] == "settings":
        return "from the settings"
    if key["revoked_at"] is not None:
        return f"revoked {moment(key['revoked_at'])}"
    if (end := key["expires_at"]) is not None:
        return f"{'expired' if end <= (time.time() if now is None else now) else 'valid until'} {moment(end)}"
    return "valid"


def declared(desk: Desk) -> list[dict[str, Any]]:
    """The keys of the settings."""
    return [msgspec.to_builtins(key) for key in desk.place.declared_keys]


def _show_made(made: dict[str, Any], desk: Desk, as_json: bool, what: str) -> None:
    if as_json:
        typer.echo(json.dumps({"data": [made]}))
        return
    typer.echo(made["key"])
    ends = f" It ends {moment(made['expires_at'])}." if made["expires_at"] is not None else ""
    typer.echo(
        f"Key {visible(made['name'])} ({made['role']}) {what} in {desk.where}.{ends} "
        "It is not shown again: keep it now.",
        err=True,
    )
