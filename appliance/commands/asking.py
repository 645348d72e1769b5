"""Asking the operator's API: of the gateway if one runs, else the same operations in this process.

Who may open the box's files may do what an owner may do; so may who opens its control socket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from appliance.commands.control import Control, NotRunning
from appliance.commands.place import Place
from appliance.commands.terminal import visible

PAGE = 1000
"""Rows that are asked for at once; the API gives no more."""


class Desk:
    """One box. `running` tells after a question whether a gateway has answered it."""

    def __init__(self, place: Place, *, new: bool = False) -> None:
        self.place = place
        self.running = False
        self._new = new

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int | None] | None = None,
        body: Mapping[str, Any] | None = None,
        declared: Callable[[], list[dict[str, Any]]] | None = None,
    ) -> list[dict[str, Any]]:
        """The `data` of the answer, one thing as a list of one. `path`: what follows /admin/v1. `declared`: for a list
        that has entries of the settings too, which are there before there is any data. Raises OutpostError; without
        data, NotFound."""
        whole = f"/admin/v1{path}"
        try:
            answer = Control(self.place.control_socket).call(method, whole, query=query, body=body)
        except NotRunning:
            if declared is not None and not self.place.has_database:
                return declared()
            if not self._new:
                # What is made in a folder that no gateway has used is known to no gateway.
                self.place.must_have_database()
            # The database and the operator's API, which nobody needs to load who has a gateway to ask.
            from appliance.commands.here import answered

            return answered(self.place, method, whole, query or {}, body)
        self.running = True
        return answer

    def all(
        self,
        path: str,
        query: Mapping[str, str | None] | None = None,
        *,
        declared: Callable[[], list[dict[str, Any]]] | None = None,
    ) -> list[dict[str, Any]]:
        """Everything of a list, page after page. declared: as in `ask`."""
        found: list[dict[str, Any]] = []
        while True:
            after = str(found[-1]["id"]) if found else None
            page = {**(query or {}), "after": after, "limit": PAGE}
            rows = self.ask("GET", path, query=page, declared=declared)
            found += rows
            if len(rows) < PAGE or not (self.running or self.place.has_database):
                return found

    @property
    def where(self) -> str:
        """The data folder, and whether a change reaches anybody before the next start."""
        running = "a" if self.running else "no"
        return f"{visible(self.place.data_dir.absolute())}, where {running} gateway is running"


def escaped(id_or_name: str) -> str:
    """An id or a name as one piece of a path."""
    return quote(id_or_name, safe="")
