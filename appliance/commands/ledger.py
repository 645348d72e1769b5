"""`outpost ledger`: verify, export and sign the record of everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from appliance.commands.output import Write, to_file, to_stdout
from appliance.commands.place import ConfigOption, DataDirOption, find_place, told
from appliance.commands.terminal import command, visible

if TYPE_CHECKING:
    from appliance.records.verify import Report

# Cryptography and the database are loaded by the commands that need them, in `ledger_work`.

app = typer.Typer(no_args_is_help=True)

KeyOption = Annotated[
    Path | None,
    typer.Option("--public-key", help="File with the ledger's public key; else the data folder's.", dir_okay=False),
]


@app.command()
def verify(
    source: Annotated[
        Path | None, typer.Option("--from", help="An export to verify, in place of the database.", dir_okay=False)
    ] = None,
    public_key: KeyOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Checkpoints that were kept elsewhere, which the ledger must fit.", dir_okay=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Check every record and every signature. Ends with status 1, and names the first bad record, if one is found."""
    from appliance.commands import ledger_work as work

    with told():
        # Whoever has an export and its key needs no box.
        place = None if source is not None and public_key is not None else find_place(config, data_dir)
        key = work.public_key(place, public_key)
        kept = [] if checkpoint is None else work.checkpoints_of(checkpoint)
        if source is not None:
            report = work.verify_file(source, key, kept)
        else:
            assert place is not None
            report = work.verify(place, key, kept)
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(report)))
    else:
        for line in told_of(report):
            typer.echo(line)
    if not report.ok:
        raise typer.Exit(1)


def told_of(report: Report) -> list[str]:
    """A report as lines of text."""
    first = report.begins_after + 1
    what = _count(report.records, "record") + (f" ({first} to {report.last})" if report.records else "")
    signed = _count(report.checkpoints, "signed checkpoint")
    if report.signed_through:
        signed += f", the last one of record {report.signed_through}"
    lines = []
    if report.ok:
        lines.append(f"The ledger is sound: {what}, {signed}.")
    else:
        lines.append(f"THE LEDGER IS NOT SOUND: {_count(report.problem_count, 'problem')} in {what}, {signed}.")
        lines += [f"record {problem.seq}: {visible(problem.what)}" for problem in report.problems]
        lines.append(f"The first bad record is {report.problems[0].seq}.")
    newer = report.last - max(report.signed_through, report.begins_after)
    if newer > 0 and not report.signed_through:
        lines.append("No checkpoint: no signature covers any record yet. A running gateway signs one within a minute.")
    elif newer > 0:
        lines.append(f"{_count(newer, 'record')} behind the last checkpoint: no signature covers what is there yet.")
    if report.older:
        lines.append(f"{_count(report.older, 'record')} from before there was a ledger: no hash covers what is there.")
    if report.begins_after and not report.older:
        lines.append(f"It begins after record {report.begins_after}.")
    return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@app.command()
def export(
    after: Annotated[int, typer.Option(min=0, help="Begin after the record with this number.")] = 0,
    to: Annotated[Path | None, typer.Option("--to", help="File to write; else the standard output.")] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Write every record with its hash, and the checkpoints, one JSON object a line. `verify --from` reads it."""
    from appliance.commands import ledger_work as work

    with told():
        place = find_place(config, data_dir)

        def fill(write: Write) -> None:
            work.export(place, after, write)

        if to is None:
            to_stdout(fill)
            return
        to_file(to, fill)
    typer.echo(f"Written to {visible(to)}. Verify it with: {command()} ledger verify --from FILE", err=True)


@app.command()
def checkpoint(
    as_json: Annotated[bool, typer.Option("--json", help='Print JSON: {"data": {...}}.')] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Sign the newest record now and print the checkpoint, to be kept where nobody changes it along with this box."""
    from appliance.commands import ledger_work as work

    with told():
        made = work.checkpoint(find_place(config, data_dir))
    typer.echo(json.dumps({"data": made}) if as_json else made["note"], nl=as_json)


@app.command()
def key(config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Print the public key that checkpoints are verified with."""
    from appliance.commands import ledger_work as work

    with told():
        typer.echo(work.public_key(find_place(config, data_dir), None).text)
