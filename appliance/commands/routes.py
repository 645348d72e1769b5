"""`outpost routes`: what there is to ask for, and what a route would do with a request, which is not sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from appliance.commands.asking import Desk, escaped
from appliance.commands.place import ConfigOption, DataDirOption, find_place, told
from appliance.commands.terminal import readable, seconds, table, visible
from appliance.errors import BadRequest
from appliance.routing.explain import Explanation, lines

app = typer.Typer(no_args_is_help=True)

PATH = "/routes"
MOST_BYTES = 20 << 20
"""Of a file: as much as a request may have."""
JsonOption = Annotated[bool, typer.Option("--json", help='Print JSON: {"data": [...]}.')]


class DialectName(StrEnum):
    chat = "chat"
    messages = "messages"
    responses = "responses"
    completions = "completions"
    embeddings = "embeddings"


@app.command(name="list")
def list_(as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Show the routes with their targets and, while a gateway runs, how each target fares."""
    with told():
        desk = Desk(find_place(config, data_dir))
        found = _ask(desk, "GET", PATH)
    if as_json:
        typer.echo(json.dumps({"data": found}))
        return
    rows = [
        (
            route["model"] if first else "",
            ", ".join(route["aliases"]) if first else "",
            route["strategy"] if first else "",
            " > ".join([*target["through"], target["name"]]),
            target["zone"],
            _state(target),
        )
        for route in found
        for first, target in zip([True, *[False] * len(route["targets"])], route["targets"], strict=False)
    ]
    for line in table(("ROUTE", "ALIASES", "STRATEGY", "TARGET", "ZONE", "STATE"), rows):
        typer.echo(line)


@app.command(name="test")
def explain(
    name: Annotated[str, typer.Argument(help="The route: its name or an alias.")],
    message: Annotated[str | None, typer.Option(help="What is asked; left out, a greeting.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="A whole request as JSON, instead of a message; - is the standard input.", allow_dash=True),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="As whom: id or name of a key. Left out: nobody, who is limited to nothing.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="As in x-outpost-tags; may be repeated.")] = None,
    session: Annotated[str | None, typer.Option(help="As in x-outpost-session.")] = None,
    dialect: Annotated[DialectName, typer.Option(help="How the request is put.")] = DialectName.chat,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Explain what a route would do with a request: who is asked, in which order, and why. Nothing is sent."""
    with told():
        if not name.strip():
            raise BadRequest("NAME: is empty; name a route, as `outpost routes list` shows them")
        wish = {
            "message": message,
            "request": None if file is None else _read(file),
            "key": key,
            "tags": tag or None,
            "session": session,
            "dialect": str(dialect),
        }
        body = {name: value for name, value in wish.items() if value is not None}
        desk = Desk(find_place(config, data_dir))
        (found,) = _ask(desk, "POST", f"{PATH}/{escaped(name)}/test", body)
    if as_json:
        typer.echo(json.dumps({"data": [found]}))
        return
    for line in lines(msgspec.convert(found, Explanation), table):
        typer.echo(readable(line))


def _ask(desk: Desk, method: str, path: str, body: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    def here() -> list[dict[str, Any]]:
        from appliance.commands.router_here import answered_without_data

        return answered_without_data(desk.place, method, f"/admin/v1{path}", body)

    return desk.ask(method, path, body=body, declared=here)


def _read(path: Path) -> dict[str, Any]:
    """Raises BadRequest."""
    try:
        if str(path) == "-":
            raw = typer.get_binary_stream("stdin").read(MOST_BYTES + 1)
        else:
            with path.open("rb") as opened:
                raw = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise BadRequest(f"--file {visible(path)}: cannot be read: {error.strerror}; name a file with JSON") from error
    if len(raw) > MOST_BYTES:
        raise BadRequest(f"--file {visible(path)}: is more than {MOST_BYTES} bytes, which no request may have")
    try:
        found = json.loads(raw)
    except ValueError as error:
        raise BadRequest(f"--file {visible(path)}: is not JSON ({error}); write a request's body") from error
    if not isinstance(found, dict):
        raise BadRequest(f'--file {visible(path)}: write a request\'s body, an object like {{"messages": [...]}}')
    return found


def _state(target: Mapping[str, Any]) -> str:
    """How a target fares, in a few words."""
    health = target["health"]
    if health is None:
        return "not known"
    if not target["ready"]:
        return f"not up: {target['reason']}"
    parts = ["ready" if health["usable"] else f"rests for {seconds(health['wait_s'])}"]
    if health["reason"]:
        parts.append(health["reason"])
    if health["in_flight"]:
        parts.append(f"{health['in_flight']} in flight")
    if health["ttft_s"] is not None:
        parts.append(f"first token after {seconds(health['ttft_s'])}")
    if health["failures"]:
        parts.append(f"{health['failures']} of {health['requests']} failed")
    return ", ".join(parts)
