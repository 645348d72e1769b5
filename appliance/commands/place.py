"""Where a command finds its box: the data folder, the database and what the settings declare."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.commands.terminal import visible
from appliance.errors import NotFound, OutpostError

if TYPE_CHECKING:
    from appliance.identity.key_store import KeyInfo
    from appliance.limits.keeper import LimitInfo
    from appliance.records.database import Where
    from appliance.settings import Settings

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Settings file; else $OUTPOST_CONFIG, else ./outpost.yaml.", dir_okay=False),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Data folder, in place of the one that the settings name.", file_okay=False),
]


class Place:
    """data_dir: the folder. given: the settings, None for the built-in ones. env: where a password may be.

    What no command needs that finds a gateway running is found out when it is asked for: it takes modules to load.
    """

    def __init__(self, data_dir: Path, given: Settings | None = None, env: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self._given = given
        self._env = os.environ if env is None else env

    @cached_property
    def database(self) -> Where:
        """The file or the server. Raises DatabaseError."""
        from appliance.records.database import database_path, locate

        if self._given is None:
            return database_path("sqlite", self.data_dir)
        return locate(self._given.database, self.data_dir, self._env)

    @property
    def has_settings(self) -> bool:
        """Whether a settings file was read, if there is one."""
        return self._given is not None

    @property
    def settings(self) -> Settings:
        from appliance.settings import Settings

        return self._given or Settings()

    @cached_property
    def declared_keys(self) -> list[KeyInfo]:
        """The fixed keys of the settings, for showing; organization and team as they are named there."""
        from appliance.identity.key_store import KeyInfo
        from appliance.identity.principal import DEFAULT_ORGANIZATION
        from appliance.identity.restrictions import restrictions_of

        return [
            KeyInfo(
                id=f"fixed:{key.name}",
                name=key.name,
                role=key.role,
                source="settings",
                organization=key.organization or DEFAULT_ORGANIZATION,
                team=key.team,
                restrictions=restrictions_of(key),
            )
            for key in (self._given.identity.keys if self._given else ())
        ]

    @cached_property
    def declared_limits(self) -> list[LimitInfo]:
        """The limits of the settings, for showing."""
        from appliance.limits.keeper import declared_limits

        return declared_limits(self._given) if self._given else []

    @property
    def has_database(self) -> bool:
        """A server's may be empty, but it is there; a file has to be made first."""
        return not isinstance(self.database, Path) or self.database.exists()

    def must_have_database(self) -> None:
        """Raises NotFound: what is done in a folder that no gateway has used is known to no gateway."""
        if not self.has_database:
            raise NotFound(
                f"there is no gateway's data in {visible(self.data_dir.absolute())}: go to the folder in which the "
                "gateway is started, or name its data with --data-dir FOLDER or its settings with --config FILE"
            )

    @property
    def control_socket(self) -> Path:
        return self.data_dir / "run" / "control.sock"


def find_place(config: Path | None, data_dir: Path | None, env: Mapping[str, str] | None = None) -> Place:
    """The box that the options, the environment and the settings mean. Raises SettingsError.

    A given `data_dir` takes the place of the settings' one, database included.
    """
    env = os.environ if env is None else env
    if data_dir is not None and config is None:
        return Place(data_dir)
    from appliance.settings import Database, choose_file, load

    # Secrets and certificates are the server's business; a shell need not have them to list keys.
    settings = load(choose_file(config, env, Path.cwd()), env, machine=False).settings
    if data_dir is not None:
        settings = settings.model_copy(update={"database": Database()})
    return Place(data_dir or settings.data_dir, settings, env)


@contextmanager
def told() -> Iterator[None]:
    """Ends the command with the message of an error of ours on stderr and exit status 1."""
    try:
        yield
    except OutpostError as error:
        sys.stderr.write(f"outpost: {error.message}\n")
        raise typer.Exit(1) from error
