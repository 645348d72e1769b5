"""Where a command finds its box: the data folder, the database and what the settings declare."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from appliance.errors import OutpostError
from appliance.identity.key_store import KeyInfo
from appliance.records.database import Where, database_path, locate
from appliance.settings import choose_file, load

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Settings file; else $OUTPOST_CONFIG, else ./outpost.yaml.", dir_okay=False),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Data folder, in place of the one that the settings name.", file_okay=False),
]


class Place:
    """data_dir: the folder; database: the file or the server; declared: the fixed keys of the settings, for showing."""

    def __init__(self, data_dir: Path, database: Where, declared: tuple[KeyInfo, ...] = ()) -> None:
        self.data_dir = data_dir
        self.database = database
        self.declared = declared

    @property
    def has_database(self) -> bool:
        """A server's may be empty, but it is there; a file has to be made first."""
        return not isinstance(self.database, Path) or self.database.exists()

    @property
    def control_socket(self) -> Path:
        return self.data_dir / "run" / "control.sock"


def find_place(config: Path | None, data_dir: Path | None, env: Mapping[str, str] | None = None) -> Place:
    """The box that the options, the environment and the settings mean. Raises SettingsError, DatabaseError.

    A given `data_dir` takes the place of the settings' one, database included.
    """
    env = os.environ if env is None else env
    if data_dir is not None and config is None:
        return Place(data_dir, database_path("sqlite", data_dir))
    # Secrets and certificates are the server's business; a shell need not have them to list keys.
    settings = load(choose_file(config, env, Path.cwd()), env, machine=False).settings
    declared = tuple(
        KeyInfo(id=f"fixed:{key.name}", name=key.name, role=key.role, source="settings")
        for key in settings.identity.keys
    )
    folder = data_dir or settings.data_dir
    where = database_path("sqlite", folder) if data_dir is not None else locate(settings.database, folder, env)
    return Place(folder, where, declared)


@contextmanager
def told() -> Iterator[None]:
    """Ends the command with the message of an error of ours on stderr and exit status 1."""
    try:
        yield
    except OutpostError as error:
        sys.stderr.write(f"outpost: {error.message}\n")
        raise typer.Exit(1) from error
