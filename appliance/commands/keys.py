"""`outpost keys`: make, show and end API keys, through the running gateway or straight in the database."""

from __future__ import annotations

import asyncio
import json
from enum import StrEnum
from typing import Annotated, Any, cast
from urllib.parse import quote

import msgspec
import typer

from appliance.commands.control import Control, NotRunning
from appliance.commands.place import ConfigOption, DataDirOption, Place, find_place, told
from appliance.commands.terminal import command, moment, table, visible
from appliance.errors import BadRequest, NotFound
from appliance.identity.key_ring import KeyRing
from appliance.identity.key_store import KeyInfo, KeyStore
from appliance.identity.principal import Role
from appliance.records.database import Database

app = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke.")

PATH = "/admin/v1/keys"
JsonOption = Annotated[bool, typer.Option("--json", help='Print JSON: {"data": [...]}.')]


class RoleName(StrEnum):
    owner = "owner"
    admin = "admin"
    operator = "operator"
    auditor = "auditor"
    member = "member"


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the key, as records show it.")],
    role: Annotated[RoleName, typer.Option(help="admin may use the admin API as well.")] = RoleName.member,
    new: Annotated[
        bool, typer.Option("--new", help="Make the data folder if there is none yet, before the first start.")
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a key and print it, this once."""
    with told():
        place = find_place(config, data_dir)
        made, running = _create(place, name, role.value, new=new)
    if as_json:
        typer.echo(json.dumps({"data": [made]}))
        return
    typer.echo(made["key"])
    typer.echo(
        f"Key {visible(made['name'])} ({made['role']}) was made in {_where(place, running)}. "
        "It is not shown again: keep it now.",
        err=True,
    )


@app.command(name="list")
def list_(as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Show every key, without its text."""
    with told():
        place = find_place(config, data_dir)
        found, running = _list(place)
    if as_json:
        typer.echo(json.dumps({"data": found}))
        return
    if not found:
        typer.echo(
            f"There are no keys in {_where(place, running)}. Make one: {command()} keys create NAME --role admin",
            err=True,
        )
        return
    rows = []
    for key in found:
        state = "from the settings" if key["source"] == "settings" else "valid"
        if key["revoked_at"] is not None:
            state = f"revoked {moment(key['revoked_at'])}"
        shown = f"{key['prefix']}…" if key["prefix"] else ""
        rows.append((key["id"], key["name"], key["role"], shown, moment(key["created_at"]), state))
    # The id comes first: however narrow a terminal is, it stays in one piece.
    for line in table(("ID", "NAME", "ROLE", "KEY", "CREATED", "STATE"), rows):
        typer.echo(line)


@app.command()
def revoke(
    id_or_name: Annotated[str, typer.Argument(help="Id or name of the key.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """End a key. Through a running gateway this works at once, otherwise at its next start."""
    with told():
        place = find_place(config, data_dir)
        ended, running = _revoke(place, id_or_name)
    if as_json:
        typer.echo(json.dumps({"data": [ended]}))
        return
    typer.echo(f"Key {visible(ended['name'])} ({ended['id']}) is revoked in {_where(place, running)}.")


# --- through the gateway if one runs, else in the database; True beside the answer: one runs ---


def _create(place: Place, name: str, role: str, *, new: bool) -> tuple[dict[str, Any], bool]:
    try:
        return Control(place.control_socket).call("POST", PATH, body={"name": name, "role": role})[0], True
    except NotRunning:
        if any(key.name == name for key in place.declared):
            raise BadRequest(f"name: the settings file declares a key named {name!r}; choose another") from None
        if not new:
            _must_exist(place, ", or make it with --new before the first start")
        return asyncio.run(_create_in_database(place, name, cast(Role, role))), False


def _list(place: Place) -> tuple[list[dict[str, Any]], bool]:
    try:
        return Control(place.control_socket).call("GET", PATH), True
    except NotRunning:
        return [_plain(key) for key in [*place.declared, *asyncio.run(_list_in_database(place))]], False


def _revoke(place: Place, id_or_name: str) -> tuple[dict[str, Any], bool]:
    try:
        return Control(place.control_socket).call("DELETE", f"{PATH}/{quote(id_or_name, safe='')}")[0], True
    except NotRunning:
        if any(id_or_name in (key.name, key.id) for key in place.declared):
            raise BadRequest(
                f"{id_or_name!r} is declared in the settings file (identity.keys); remove it there"
            ) from None
        _must_exist(place)
        return _plain(asyncio.run(_revoke_in_database(place, id_or_name))), False


def _must_exist(place: Place, otherwise: str = "") -> None:
    """Keys in a folder that no gateway has used would be keys that no gateway knows. Raises NotFound."""
    if not place.database.exists():
        raise NotFound(
            f"there is no gateway's data in {visible(place.data_dir.absolute())}: go to the folder in which the "
            f"gateway is started, or name its data with --data-dir FOLDER or its settings with --config FILE{otherwise}"
        )


def _where(place: Place, running: bool) -> str:
    """The data folder, and whether the change reaches anybody before the next start."""
    return f"{visible(place.data_dir.absolute())}, where {'a' if running else 'no'} gateway is running"


async def _create_in_database(place: Place, name: str, role: Role) -> dict[str, Any]:
    database = await Database.open(place.database)
    try:
        ring = await KeyRing.open(database, place.data_dir)
        info, key = await ring.create(name, role)
    finally:
        await database.close()
    return {**_plain(info), "key": key}


async def _list_in_database(place: Place) -> list[KeyInfo]:
    if not place.database.exists():
        return []
    database = await Database.open(place.database)
    try:
        return list(await KeyStore(database).list())
    finally:
        await database.close()


async def _revoke_in_database(place: Place, id_or_name: str) -> KeyInfo:
    # The store, not the ring: a key made under a lost secret must still be revocable.
    database = await Database.open(place.database)
    try:
        return await KeyStore(database).revoke(id_or_name)
    finally:
        await database.close()


def _plain(info: KeyInfo) -> dict[str, Any]:
    return cast(dict[str, Any], msgspec.to_builtins(info))
