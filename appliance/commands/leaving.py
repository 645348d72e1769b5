"""Records that leave the box by a command are on the ledger like those that leave through the API, where that can be.

The ledger has one writer. While a gateway runs that is the gateway, and a command that reads its database beside it
writes nothing; else the command is the writer for a moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from appliance.commands.control import Control, ControlError, NotRunning
from appliance.commands.place import Place
from appliance.commands.terminal import visible
from appliance.errors import NotFound, OutpostError

if TYPE_CHECKING:
    from appliance.records.database import Database
    from appliance.records.export.source import Window

KIND = "admin.ledger.export"


async def note(place: Place, database: Database, form: str, window: Window) -> None:
    """Put an event on the ledger before anything is read, so that the export has it. form: how records are written.

    A database that cannot be written is exported all the same, and stderr says what is missing: who takes evidence from
    a disk that is full or read-only needs it most.
    """
    if gateway_runs(place):
        return
    # Only where no gateway runs.
    from appliance.commands.database import COMMAND_LINE, alone, recording

    body = {"actor": COMMAND_LINE.actor, "object": form, "after": window.said}
    try:
        if not place.data_dir.is_dir():
            raise NotFound(f"there is no folder {visible(place.data_dir.absolute())}, which its writer has to hold")
        async with alone(place.data_dir), recording(database) as recorder:
            await recorder.write(lambda transaction: transaction.append(KIND, body))
    except (OutpostError, OSError) as error:
        why = error.message if isinstance(error, OutpostError) else error.strerror
        typer.echo(f"Note: that records leave could not be put on the ledger: {visible(why)}", err=True)


def gateway_runs(place: Place) -> bool:
    """Whether one listens on this data folder."""
    try:
        Control(place.control_socket).call("GET", "/admin/v1/status")
    except NotRunning:
        return False
    except ControlError:
        pass
    return True
