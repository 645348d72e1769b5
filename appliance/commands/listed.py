"""Commands that are loaded when they are called: listing them, or calling another one, does not need their modules.

Together they need the database, the operator's API, cryptography and the whole gateway, which costs seconds.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class Listed(NamedTuple):
    """`where`: module of this package and what of it, a Typer app or a function, as "keys:app". `help`: what the
    list of commands says, and the help of a group; a function's own help is its docstring, which begins the same."""

    where: str
    help: str

    def load(self, name: str) -> TyperCommand | TyperGroup:
        """The command itself, with its module."""
        module, _, attribute = self.where.partition(":")
        found = getattr(import_module(f"appliance.commands.{module}"), attribute)
        around = typer.Typer(add_completion=False)
        around.callback()(lambda: None)
        if isinstance(found, typer.Typer):
            around.add_typer(found, name=name, help=self.help)
        else:
            around.command(name)(found)
        loaded: Any = typer.main.get_group(around).commands[name]
        return loaded  # type: ignore[no-any-return]


class _Loading(UserDict[str, Any]):
    """Name → command, loaded when it is taken out."""

    def __getitem__(self, name: str) -> TyperCommand | TyperGroup:
        found = super().__getitem__(name)
        if isinstance(found, Listed):
            self.data[name] = found = found.load(name)
        command: TyperCommand | TyperGroup = found
        return command


class ListedGroup(TyperGroup):
    """A group whose commands are those of the table `listed`, in its order."""

    listed: ClassVar[Mapping[str, Listed]]

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Loading(self.listed)

    def list_commands(self, ctx: Any) -> list[str]:
        return [*self.listed]

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """A name and its one line, which is all that help and a shell's completion look at."""
        found = self.listed.get(cmd_name)
        return None if found is None else TyperCommand(cmd_name, help=found.help)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that is called, or whose own words are completed."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else self.commands[name], rest
