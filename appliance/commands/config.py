"""`outpost config`: look at the settings without starting anything."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from appliance import preflight
from appliance.settings.loader import BUILT_IN, Loaded, choose_file, load
from appliance.settings.problems import Problem, SettingsError
from appliance.settings.render import as_plain, as_yaml, did_you_mean, json_schema
from appliance.settings.render import explain as explain_text

app = typer.Typer(no_args_is_help=True)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="Settings file. Left out: $OUTPOST_CONFIG, else outpost.yaml here, else the defaults."
    ),
]


@app.command()
def check(config: ConfigOption = None) -> None:
    """Read the file and tell everything that is wrong with it; exit code 1 if anything is."""
    loaded = _load(config, machine=True)
    problems, warnings = _against_catalogue(loaded)
    if problems:
        _fail(problems)
    for warning in (*loaded.warnings, *warnings):
        typer.echo(f"warning: {warning}", err=True)
    settings = loaded.settings
    counts = ", ".join(
        f"{len(entries)} {word if len(entries) != 1 else word[:-1]}"
        for word, entries in (
            ("deployments", settings.deployments),
            ("providers", settings.providers),
            ("routes", settings.routes),
        )
    )
    typer.echo(f"{loaded.path or BUILT_IN}: ok ({counts})")


@app.command()
def show(
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of YAML.")] = False,
) -> None:
    """Print every key with its effective value. Secrets stay references."""
    loaded = _load(config, machine=False)
    if as_json:
        _print_json(as_plain(loaded.settings))
    else:
        typer.echo(f"# {loaded.path or BUILT_IN}\n{as_yaml(loaded.settings)}", nl=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the file, for editors and pipelines."""
    _print_json(json_schema())


@app.command()
def explain(key: Annotated[str, typer.Argument(help="A key, e.g. server.max_body or routes.deadlines.")]) -> None:
    """Say what a key means, its form, default and bounds."""
    text = explain_text(key)
    if text is None:
        meant = did_you_mean(key)
        cure = f"did you mean {meant}?" if meant else "see `outpost config show` for all keys"
        typer.echo(f"there is no key {key!r} – {cure}", err=True)
        raise typer.Exit(1)
    typer.echo(text)


def _load(config: Path | None, *, machine: bool) -> Loaded:
    try:
        return load(choose_file(config, os.environ, Path.cwd()), os.environ, machine=machine)
    except SettingsError as error:
        _fail(error.problems)


def _fail(problems: Sequence[Problem]) -> NoReturn:
    for problem in problems:
        typer.echo(str(problem), err=True)
    raise typer.Exit(1)


def _against_catalogue(loaded: Loaded) -> tuple[Sequence[Problem], Sequence[Problem]]:
    """What a start would refuse, and what has to be done before it; both empty when all is well."""
    settings = loaded.settings
    catalogue = preflight.catalogue_of(settings, settings.data_dir)
    try:
        faults = preflight.check(settings, catalogue)
        missing = [] if faults else preflight.missing(settings, catalogue)
    except OSError as error:
        # Whoever checks a file need not have the gateway's rights to its data.
        faults, missing = [], [preflight.unreadable(error)]
    return loaded.locate(faults), loaded.locate(missing)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
