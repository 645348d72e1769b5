"""The `outpost` command: thin, one function or sub-command table a command."""

from __future__ import annotations

from typing import Annotated

import typer

from appliance import __version__
from appliance.commands import config, content, export, keys, ledger, limits, models, people, requests, usage
from appliance.commands.chat import chat
from appliance.commands.serve import serve

app = typer.Typer(
    name="outpost",
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


app.command()(serve)
app.command()(chat)
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.add_typer(people.organizations, name="organizations")
app.add_typer(people.teams, name="teams")
app.add_typer(people.users, name="users")
app.add_typer(people.service_accounts, name="service-accounts")
app.add_typer(limits.app, name="limits")
app.add_typer(usage.app, name="usage")
app.add_typer(requests.app, name="requests")
app.add_typer(content.app, name="content")
app.command("erase")(content.erase_subject)
app.add_typer(ledger.app, name="ledger")
app.command("export")(export.export)
app.add_typer(config.app, name="config")


def main() -> None:
    """Entry point of the command."""
    app()


if __name__ == "__main__":
    main()
