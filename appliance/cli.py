"""The `outpost` command: one table of what there is; each command is loaded when it is called."""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import typer

from appliance import __version__
from appliance.commands.listed import Listed, ListedGroup

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Commands(ListedGroup):
    listed = {
        "serve": Listed(
            "serve:serve", "Run the appliance until SIGINT or SIGTERM; SIGHUP applies the settings file anew."
        ),
        "chat": Listed("chat:chat", "Talk to a model through the gateway."),
        "models": Listed("models:app", "Models: list, show, import, verify, remove."),
        "keys": Listed("keys:app", "API keys: create, list, rotate, revoke."),
        "organizations": Listed(
            "people:organizations", "Organizations: they share a box and see nothing of each other."
        ),
        "teams": Listed("people:teams", "Teams: whom work and cost are counted for."),
        "users": Listed("people:users", "People, and the role that each has."),
        "service-accounts": Listed(
            "people:service_accounts", "Service accounts: programs that ask with keys of their own."
        ),
        "routes": Listed("routes:app", "Routes: list them, and have one explain what it would do with a request."),
        "limits": Listed("limits:app", "Limits and budgets: create, list, show, delete."),
        "usage": Listed("usage:app", "Who used how much."),
        "requests": Listed("requests:app", "The record of requests."),
        "content": Listed("content:app", "What is kept of requests' texts."),
        "erase": Listed(
            "content:erase_subject",
            "Erase a person for good: the key to their texts, the texts, and their name. The ledger still verifies.",
        ),
        "ledger": Listed("ledger:app", "The ledger: verify, export, sign."),
        "export": Listed(
            "export:export", "Write the record of requests and changes, one record a line, the oldest first."
        ),
        "guard": Listed(
            "guard:app", "Guard models: list them, ask one about a text, try a detector on a labelled file."
        ),
        "config": Listed("config:app", "Check, show and explain the settings."),
    }


app = typer.Typer(
    name="outpost",
    cls=Commands,
    help="Outpost: a self-hosted AI gateway appliance.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"outpost {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """One OpenAI-compatible endpoint in front of the models of this box."""


def main() -> None:
    """Entry point of the command."""
    try:
        app()
    except OSError as error:
        # Without a name it is no file that a command has opened: those it tells of by itself.
        if error.errno not in _FULL or error.filename is not None:
            raise
        from appliance.commands.output import drop_stdout

        drop_stdout()
        sys.stderr.write(
            f"outpost: the standard output cannot be written: {error.strerror}; what is there is not whole\n"
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
