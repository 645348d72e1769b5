"""`outpost organizations|teams|users|service-accounts`: who there is, through the running gateway or the database.

What can be done with every kind of thing is said once; the table KINDS says what differs.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

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
OfOrganization = Annotated[
    str | None, typer.Option("--organization", help="Only those of this organization: id or name.")
]
Role = Annotated[RoleName, typer.Option(help="What keys of theirs may do at most.")]
OfTeam = Annotated[str | None, typer.Option("--team", help="The team that its keys work for: id or name.")]
New = Annotated[bool, typer.Option("--new", help="Make the data folder if there is none yet, before the first start.")]


class Kind(NamedTuple):
    """path: its place in the API and among the commands. word: one of it. making: the help of `create`. asks: what
    `create` takes beside a name, in the API's words; who has a role can be given another."""

    path: str
    word: str
    making: str
    asks: tuple[str, ...] = ()

    @property
    def one(self) -> str:
        return f"an {self.word}" if self.word[0] in "aeio" else f"a {self.word}"


KINDS = (
    Kind("organizations", "organization", "Make an organization."),
    Kind("teams", "team", "Make a team.", ("organization",)),
    Kind(
        "users",
        "user",
        "Make a user known. Who signs in through an identity provider becomes known by that.",
        ("role", "organization"),
    ),
    Kind("service-accounts", "service account", "Make a service account.", ("role", "organization", "team")),
)


def _commands(kind: Kind) -> typer.Typer:
    """What can be done with every kind of thing."""
    app = typer.Typer(no_args_is_help=True)
    path, word, one = kind.path, kind.word, kind.one

    def create(
        name: NewName,
        role: Role = RoleName.member,
        organization: InOrganization = None,
        team: OfTeam = None,
        new: New = False,
        as_json: JsonOption = False,
        config: ConfigOption = None,
        data_dir: DataDirOption = None,
    ) -> None:
        wish = {"role": role, "organization": organization, "team": team}
        body = given(name=name, **{each: wish[each] for each in kind.asks})
        with told():
            desk = Desk(find_place(config, data_dir), new=new)
            found = desk.ask("POST", f"/{path}", body=body)
        done(found, f"{found[0]['id']} {visible(found[0]['name'])} was made", desk, as_json)

    app.command(help=kind.making)(_without(create, {"role", "organization", "team"}.difference(kind.asks)))

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
            found = desk.all(f"/{path}", query)
        show_all(found, desk, path, as_json, narrowed=organization is not None)

    @app.command(help=f"Show one {word}.")
    def show(
        which: Which, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None
    ) -> None:
        with told():
            desk = Desk(find_place(config, data_dir))
            found = desk.ask("GET", f"/{path}/{escaped(which)}")
        show_all(found, desk, path, as_json)

    def change(
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
        done(found, f"The {word} {visible(which)} is {what}", desk, as_json)

    @app.command(help=f"Give {one} another name.")
    def rename(
        which: Which,
        name: NewName,
        as_json: JsonOption = False,
        config: ConfigOption = None,
        data_dir: DataDirOption = None,
    ) -> None:
        change(which, {"name": name}, f"now named {visible(name)}", as_json, config, data_dir)

    @app.command(help=f"Disable {one}: all keys that belong to it end at once, until it is enabled.")
    def disable(
        which: Which, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None
    ) -> None:
        change(which, {"disabled": True}, "disabled", as_json, config, data_dir)

    @app.command(help=f"Enable {one} again, with its keys.")
    def enable(
        which: Which, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None
    ) -> None:
        change(which, {"disabled": False}, "enabled", as_json, config, data_dir)

    @app.command(help=f"Delete {one} that is disabled and that nothing on record refers to.")
    def delete(
        which: Which, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None
    ) -> None:
        with told():
            desk = Desk(find_place(config, data_dir))
            found = desk.ask("DELETE", f"/{path}/{escaped(which)}")
        done(found, f"The {word} {visible(which)} is deleted", desk, as_json)

    if "role" in kind.asks:

        @app.command(help=f"Give {one} another role; keys that were made earlier have no more than that.")
        def role(
            which: Which,
            role: Annotated[RoleName, typer.Argument(help="The new role.")],
            as_json: JsonOption = False,
            config: ConfigOption = None,
            data_dir: DataDirOption = None,
        ) -> None:
            change(which, {"role": role}, f"now {role}", as_json, config, data_dir)

    return app


def _without(function: Callable[..., None], names: set[str]) -> Callable[..., None]:
    """The same command without these options, which then have their defaults."""
    signature = inspect.signature(function, eval_str=True)
    kept = [each for name, each in signature.parameters.items() if name not in names]
    function.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return function


organizations, teams, users, service_accounts = map(_commands, KINDS)


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


def done(found: list[dict[str, Any]], what: str, desk: Desk, as_json: bool) -> None:
    typer.echo(json.dumps({"data": found}) if as_json else f"{what} in {desk.where}.")


def show_all(found: list[dict[str, Any]], desk: Desk, path: str, as_json: bool, *, narrowed: bool = False) -> None:
    """narrowed: it is not everything that there is."""
    if as_json:
        typer.echo(json.dumps({"data": found}))
        return
    if not found and narrowed:
        typer.echo(f"There are no such {path.replace('-', ' ')} in {desk.where}.", err=True)
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
