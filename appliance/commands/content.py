"""`outpost erase` and `outpost content`: what was kept of people's texts, through the gateway or in the database."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import msgspec
import typer

from appliance.commands.control import Control, NotRunning
from appliance.commands.place import ConfigOption, DataDirOption, Place, find_place, told
from appliance.commands.terminal import moment, readable, visible

if TYPE_CHECKING:
    from appliance.records.erase import Erased

app = typer.Typer(no_args_is_help=True)

_TIMEOUT_S = 60.0


@app.callback()
def content() -> None:
    """What is kept of requests' texts."""


@app.command()
def show(
    request: Annotated[str, typer.Argument(help="Id of the request (x-request-id), or of its answer (chatcmpl-…).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show what was asked and answered, as far as it is kept. The gateway must run; it puts the reading on the
    ledger."""
    with told():
        place = find_place(config, data_dir)
        path = f"/admin/v1/requests/{quote(request, safe='')}/content"
        found = Control(place.control_socket).call("GET", path)[0]
    if as_json:
        typer.echo(json.dumps({"data": found}))
        return
    for part in found["parts"]:
        cut = ", cut" if part["cut"] else ""
        typer.echo(f"--- {visible(part['part'])} ({part['policy']}{cut}, kept {moment(part['kept_at'])})")
        typer.echo(readable(part["text"]))
    if not found["parts"]:
        why = "its texts were erased or have expired" if found["subject_erased"] else "its texts were not kept"
        typer.echo(f"Nothing is kept of {visible(found['id'])}: {why}.", err=True)


def erase_subject(
    subject: Annotated[
        str,
        typer.Option(
            "--subject",
            help="Id, not name, of a user, service account or key, as requests show it (user_…, sa_…, key_…).",
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Erase a person for good: the key to their texts, the texts, and their name. The ledger still verifies."""
    with told():
        place = find_place(config, data_dir)
        if not yes:
            typer.confirm(
                f"Erase everything that {visible(subject)} asked and was answered? It cannot be undone", abort=True
            )
        done = _erase(place, subject)
    if as_json:
        typer.echo(json.dumps({"data": done}))
        return
    typer.echo(
        f"{visible(done['subject'])} is erased: {done['contents']} texts, "
        f"{f'{stored} stored responses, ' if (stored := done['responses']) else ''}"
        f"{'their key' if done['key'] else 'no key'}{', their name' if done['person'] else ''}. "
        f"It stands on the ledger as record {done['seq']}."
    )
    for remark in done["remarks"]:
        typer.echo(f"Note: {visible(remark)}", err=True)


def _erase(place: Place, subject: str) -> dict[str, Any]:
    try:
        control = Control(place.control_socket, timeout_s=_TIMEOUT_S)
        return control.call("POST", "/admin/v1/erase", body={"subject": subject})[0]
    except NotRunning:
        done: dict[str, Any] = msgspec.to_builtins(asyncio.run(_erase_in_database(place, subject)))
        return done


async def _erase_in_database(place: Place, subject: str) -> Erased:
    place.must_have_database()
    # Only where no gateway can be asked.
    from appliance.commands.database import COMMAND_LINE, writing
    from appliance.records.erase import erase

    # No gateway may start meanwhile: it would go on with the key in its memory.
    async with writing(place) as (database, recorder):
        return await erase(recorder, database, None, subject, COMMAND_LINE.actor)
