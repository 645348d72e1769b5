"""`outpost limits`: how much may be asked for, through the running gateway or straight in the database."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, get_args

import msgspec
import typer

from appliance.commands.asking import Desk, escaped
from appliance.commands.keys import given
from appliance.commands.place import ConfigOption, DataDirOption, find_place, told
from appliance.commands.terminal import command, table, visible
from appliance.errors import BadRequest
from appliance.settings.limiting import MEASURES, Match, Scope
from appliance.settings.units import spoken_wait

app = typer.Typer(no_args_is_help=True)

PATH = "/limits"
JsonOption = Annotated[bool, typer.Option("--json", help='Print JSON: {"data": [...]}.')]
Which = Annotated[str, typer.Argument(help="Id or name of the limit.")]
Quotas = list[str] | None
ScopeName = StrEnum("ScopeName", [(each, each) for each in get_args(Scope)])  # type: ignore[misc]


class WindowName(StrEnum):
    rolling = "rolling"
    calendar = "calendar"


@app.command()
def create(
    scope: Annotated[
        ScopeName, typer.Option(help="What has a counter of its own: each team, each key, …; box is one for all.")
    ],
    name: Annotated[str | None, typer.Argument(help="Name of the limit; else made from scope and match.")] = None,
    match: Annotated[
        list[str] | None,
        typer.Option(
            help="Whom it applies to, e.g. team=research; may be repeated. Left out: everybody.", metavar="WHAT=NAME"
        ),
    ] = None,
    requests: Annotated[Quotas, typer.Option(help="Most requests, e.g. 600/minute.")] = None,
    tokens: Annotated[Quotas, typer.Option(help="Most tokens, e.g. 2_000_000/day.")] = None,
    input_tokens: Annotated[Quotas, typer.Option(help="Most tokens of prompts.")] = None,
    output_tokens: Annotated[Quotas, typer.Option(help="Most tokens of answers.")] = None,
    usd: Annotated[Quotas, typer.Option(help="Most money, e.g. 200/month.")] = None,
    in_flight: Annotated[int | None, typer.Option(help="Most requests at the same time.")] = None,
    window: Annotated[
        WindowName | None,
        typer.Option(help="rolling or calendar. Left out: calendar for days, weeks and months, else rolling."),
    ] = None,
    timezone: Annotated[str | None, typer.Option(help="Where calendar windows begin, e.g. Europe/Berlin.")] = None,
    organization: Annotated[
        str | None, typer.Option(help="Whose limit it is: id or name. Left out: the one that runs the box.")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a limit beside those of the settings file."""
    wish: dict[str, Any] = {
        "name": name,
        "scope": str(scope),
        "requests": _quotas(requests),
        "tokens": _quotas(tokens),
        "input_tokens": _quotas(input_tokens),
        "output_tokens": _quotas(output_tokens),
        "usd": _quotas(usd),
        "in_flight": in_flight,
        "window": None if window is None else str(window),
        "timezone": timezone,
        "organization": organization,
    }
    with told():
        wish["match"] = _match(match or []) or None
        desk = Desk(find_place(config, data_dir))
        (made,) = desk.ask("POST", PATH, body=given(**wish))
    if as_json:
        typer.echo(json.dumps({"data": [made]}))
        return
    typer.echo(f"Limit {visible(made['name'])} ({made['id']}) was made in {desk.where}.")
    for remark in made.get("remarks", ()):
        typer.echo(f"Mind: {visible(remark)}; until then it never applies.", err=True)


@app.command(name="list")
def list_(as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Show every limit, those of the settings file too."""
    with told():
        desk = Desk(find_place(config, data_dir))
        found = desk.ask(
            "GET", PATH, declared=lambda: [msgspec.to_builtins(each) for each in desk.place.declared_limits]
        )
    if as_json:
        typer.echo(json.dumps({"data": found}))
        return
    if not found:
        typer.echo(
            f"There are no limits in {desk.where}. Make one: {command()} limits create --scope team "
            "--requests 600/minute",
            err=True,
        )
        return
    rows = [(each["id"], each["name"], each["scope"], _whom(each), _amounts(each), each["source"]) for each in found]
    for line in table(("ID", "NAME", "SCOPE", "FOR", "ALLOWS", "FROM"), rows):
        typer.echo(line)


@app.command()
def show(
    limit: Which, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None
) -> None:
    """Show a limit and, while a gateway runs, what has been used of it."""
    with told():
        desk = Desk(find_place(config, data_dir))
        (found,) = desk.ask("GET", f"{PATH}/{escaped(limit)}")
        counters = desk.ask("GET", f"{PATH}/usage", query={"limit": found["id"]}) if desk.running else None
    if as_json:
        typer.echo(json.dumps({"data": [found if counters is None else {**found, "usage": counters}]}))
        return
    typer.echo(f"{visible(found['name'])} ({found['id']}, from the {found['source']})")
    typer.echo(f"  for {_counted(found)}: {_amounts(found)}")
    if counters is None:
        typer.echo("What has been used is only known while a gateway runs.", err=True)
        return
    rows = [
        (
            visible(each["whom"]),
            f"{each['measure']}/{each['period']}" if each.get("period") else each["measure"],
            each["used"],
            each["reserved"],
            each["remaining"],
            spoken_wait(each["resets_in_s"]) if each.get("resets_in_s") else "-",
        )
        for each in counters
    ]
    for line in table(("WHO", "OF", "USED", "RESERVED", "LEFT", "RESETS IN"), rows, right=("USED", "RESERVED", "LEFT")):
        typer.echo(line)


@app.command()
def delete(
    limit: Which, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None
) -> None:
    """End a limit. What was used of it is forgotten with it."""
    with told():
        desk = Desk(find_place(config, data_dir))
        (gone,) = desk.ask("DELETE", f"{PATH}/{escaped(limit)}")
    if as_json:
        typer.echo(json.dumps({"data": [gone]}))
        return
    typer.echo(f"Limit {visible(gone['name'])} ({gone['id']}) is deleted in {desk.where}.")


def _quotas(given: Quotas) -> str | list[str] | None:
    if not given:
        return None
    return given[0] if len(given) == 1 else given


def _match(given: Sequence[str]) -> dict[str, list[str]]:
    """Raises BadRequest."""
    found: dict[str, list[str]] = {}
    for each in given:
        what, equals, name = each.partition("=")
        if not equals or not name or what not in Match.model_fields:
            known = ", ".join(Match.model_fields)
            raise BadRequest(f"--match {visible(each)}: write WHAT=NAME with one of {known}, e.g. team=research")
        found.setdefault(what, []).append(name)
    return found


def _whom(limit: Mapping[str, Any]) -> str:
    names = {what: value if isinstance(value, list) else [value] for what, value in limit.get("match", {}).items()}
    return " and ".join(f"{what} {' or '.join(value)}" for what, value in names.items()) or "everybody"


def _counted(limit: Mapping[str, Any]) -> str:
    """What shares one counter."""
    whom = _whom(limit) if limit.get("match") else None
    if limit["scope"] == "box":
        return "the whole box" if whom is None else f"all requests of {whom} together"
    each = f"each {limit['scope'].replace('_', ' ')}"
    return each if whom is None else f"{each} of {whom}"


def _amounts(limit: Mapping[str, Any]) -> str:
    parts = []
    for measure in MEASURES:
        value = limit.get(measure)
        for each in value if isinstance(value, list) else [value]:
            if each is not None:
                parts.append(f"{each.partition('/')[0]} {measure}/{each.partition('/')[2]}")
    if limit.get("in_flight"):
        parts.append(f"{limit['in_flight']} in flight")
    return ", ".join(parts)
