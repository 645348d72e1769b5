"""`outpost organizations|teams|users|service-accounts`: who there is, through the running gateway or the database."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from appliance.commands.asking import Desk, escaped
from appliance.commands.keys import JsonOption, RoleName, given
from appliance.commands.place import ConfigOption, DataDirOption, find_place, told
from appliance.commands.terminal import command, moment, table, visible

Which = Annotated[str, typer.Argument(help="Id or name.")]
NewName = Annotated[str, typer.Argument(help="Its name.")]
InOrganization = Annotated[
    str | None, typer.Option("--organization", help="Id or name. Left out: the one that runs the box.")
]
OfOrganization = Annotated[str | None, typer.Option("--organization", help="Only those of this organization: its id.")]
Role = Annotated[RoleName, typer.Option(help="What keys of theirs may do at most.")]
OfTeam = Annotated[str | None, typer.Option("--team", help="The team that its keys work for: id or name.")]
New = Annotated[bool, typer.Option("--new", help="Make the data folder if there is none yet, before the first start.")]

organizations = typer.Typer(no_args_is_help=True, help="Organizations: they share a box and see nothing of each other.")
teams = typer.Typer(no_args_is_help=True, help="Teams: whom work and cost are counted for.")
users = typer.Typer(no_args_is_help=True, help="People, and the role that each has.")
service_accounts = typer.Typer(no_args_is_help=True, help="Service accounts: programs that ask with keys of their own.")


def _commands(app: typer.Typer, path: str, word: str) -> None:
    """What can be done with every kind of thing alike."""
    one = f"an {word}" if word[0] in "aeio" else f"a {word}"

    @app.command(name="list", help=f"Show every {word}.")
    def list_(
        organization: OfOrganization = None,
        as_json: JsonOption = False,
        config: ConfigOption = None,
        data_dir: DataDirOption = None,
    ) -> None:
        with told():
            desk = Desk(find_place(config, data_dir))
            query = {} if path == "organizations" else {"organization": organization}
            found = desk.all(f"/{path}", **query)
        show_all(found, desk, path, as_json)

    @app.command(help=f"Show one {word}.")
    def show(
        which: Which, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None
    ) -> None:
        with told():
            desk = Desk(find_place(config, data_dir))
            found = desk.ask("GET", f"/{path}/{escaped(which)}")
        show_all(found, desk, path, as_json)

    @app.command(help=f"Give {one} another name.")
    def rename(
        which: Which,
        name: NewName,
        as_json: JsonOption = False,
        config: ConfigOption = None,
        data_dir: DataDirOption = None,
    ) -> None:
        change(
            path,
            which,
            {"name": name},
            f"The {word} {visible(which)} is now named {visible(name)}",
            as_json,
            config,
            data_dir,
        )

    @app.command(help=f"Disable {one}: all keys that belong to it end at once, until it is enabled.")
    def disable(
        which: Which, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None
    ) -> None:
        change(path, which, {"disabled": True}, f"The {word} {visible(which)} is disabled", as_json, config, data_dir)

    @app.command(help=f"Enable {one} again, with its keys.")
    def enable(
        which: Which, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None
    ) -> None:
        change(path, which, {"disabled": False}, f"The {word} {visible(which)} is enabled", as_json, config, data_dir)

    @app.command(help=f"Delete {one} that is disabled and that nothing on record refers to.")
    def delete(
        which: Which, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None
    ) -> None:
        with told():
            desk = Desk(find_place(config, data_dir))
            found = desk.ask("DELETE", f"/{path}/{escaped(which)}")
        done(found, f"The {word} {visible(which)} is deleted", desk, as_json)


for _app, _path, _word in (
    (organizations, "organizations", "organization"),
    (teams, "teams", "team"),
    (users, "users", "user"),
    (service_accounts, "service-accounts", "service account"),
):
    _commands(_app, _path, _word)


@organizations.command(name="create")
def create_organization(
    name: NewName,
    new: New = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make an organization."""
    create("organizations", given(name=name), new, as_json, config, data_dir)


@teams.command(name="create")
def create_team(
    name: NewName,
    organization: InOrganization = None,
    new: New = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a team."""
    create("teams", given(name=name, organization=organization), new, as_json, config, data_dir)


@users.command(name="create")
def create_user(
    name: NewName,
    role: Role = RoleName.member,
    organization: InOrganization = None,
    new: New = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a user known. Who signs in through an identity provider becomes known by that."""
    create("users", given(name=name, role=role, organization=organization), new, as_json, config, data_dir)


@service_accounts.command(name="create")
def create_service_account(
    name: NewName,
    role: Role = RoleName.member,
    organization: InOrganization = None,
    team: OfTeam = None,
    new: New = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a service account."""
    body = given(name=name, role=role, organization=organization, team=team)
    create("service-accounts", body, new, as_json, config, data_dir)


@users.command()
def role(
    which: Which,
    role: Annotated[RoleName, typer.Argument(help="The new role.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Give a user another role; keys that were made earlier have no more than that."""
    change("users", which, {"role": role}, f"The user {visible(which)} is now {role}", as_json, config, data_dir)


@service_accounts.command(name="role")
def account_role(
    which: Which,
    role: Annotated[RoleName, typer.Argument(help="The new role.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Give a service account another role; keys that were made earlier have no more than that."""
    what = f"The service account {visible(which)} is now {role}"
    change("service-accounts", which, {"role": role}, what, as_json, config, data_dir)


@teams.command()
def members(
    team: Which, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None
) -> None:
    """Show the users of a team."""
    with told():
        desk = Desk(find_place(config, data_dir))
        found = desk.all(f"/teams/{escaped(team)}/members")
    show_all(found, desk, "users", as_json)


@teams.command()
def add(
    team: Which,
    user: Annotated[str, typer.Argument(help="Id or name of the user.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Put a user into a team."""
    with told():
        desk = Desk(find_place(config, data_dir))
        found = desk.ask("PUT", f"/teams/{escaped(team)}/members/{escaped(user)}")
    done(found, f"The user {visible(user)} is a member of {visible(team)}", desk, as_json)


@teams.command()
def remove(
    team: Which,
    user: Annotated[str, typer.Argument(help="Id or name of the user.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Take a user out of a team; their tokens for it end at once."""
    with told():
        desk = Desk(find_place(config, data_dir))
        found = desk.ask("DELETE", f"/teams/{escaped(team)}/members/{escaped(user)}")
    done(found, f"The user {visible(user)} is no member of {visible(team)} any more", desk, as_json)


# --- what the commands share ---


def create(
    path: str, body: dict[str, Any], new: bool, as_json: bool, config: ConfigOption, data_dir: DataDirOption
) -> None:
    with told():
        desk = Desk(find_place(config, data_dir), new=new)
        found = desk.ask("POST", f"/{path}", body=body)
    done(found, f"{found[0]['id']} {visible(found[0]['name'])} was made", desk, as_json)


def change(
    path: str,
    which: str,
    body: dict[str, Any],
    what: str,
    as_json: bool,
    config: ConfigOption,
    data_dir: DataDirOption,
) -> None:
    with told():
        desk = Desk(find_place(config, data_dir))
        found = desk.ask("PATCH", f"/{path}/{escaped(which)}", body=body)
    done(found, what, desk, as_json)


def done(found: list[dict[str, Any]], what: str, desk: Desk, as_json: bool) -> None:
    typer.echo(json.dumps({"data": found}) if as_json else f"{what} in {desk.where}.")


def show_all(found: list[dict[str, Any]], desk: Desk, path: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"data": found}))
        return
    if not found:
        typer.echo(f"There are none in {desk.where}. Make one: {command()} {path} create NAME", err=True)
        return
    columns = [name for name in ("organization", "team", "role") if name in found[0]]
    rows = [
        (
            thing["id"],
            thing["name"],
            *(thing[name] or "" for name in columns),
            moment(thing["created_at"]),
            "enabled" if thing["disabled_at"] is None else f"disabled {moment(thing['disabled_at'])}",
        )
        for thing in found
    ]
    for line in table(("ID", "NAME", *(name.upper() for name in columns), "CREATED", "STATE"), rows):
        typer.echo(line)
