"""The exporters of the settings as tasks: started, replaced by a reload, stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from appliance.records.database import Database
from appliance.records.export.forwarder import Forwarder, Progress, Writes
from appliance.settings.recording import Exporter


class Exporters:
    """One task an exporter. version: the gateway's own. For one event loop; `close` before the recorder is closed."""

    def __init__(self, database: Database, recorder: Writes, version: str) -> None:
        self._version = version
        self._database = database
        self._recorder = recorder
        self._tasks: dict[Exporter, tuple[Forwarder, asyncio.Task[None]]] = {}

    async def change(self, exporters: Sequence[Exporter]) -> None:
        """Run these from now on. One that did not change goes on undisturbed; one that did goes on from where it had
        come to, since that is kept under its name."""
        gone = [exporter for exporter in self._tasks if exporter not in exporters]
        await self._stop(gone)
        for exporter in exporters:
            if exporter not in self._tasks:
                forwarder = Forwarder(exporter, self._database, self._recorder, version=self._version)
                task = asyncio.create_task(forwarder.run(), name=f"export-{exporter.name}")
                self._tasks[exporter] = (forwarder, task)

    async def close(self) -> None:
        """What is not delivered yet is sent after the next start."""
        await self._stop(list(self._tasks))

    def progress(self) -> list[Progress]:
        """How far each has come, by name."""
        return sorted((forwarder.progress for forwarder, _ in self._tasks.values()), key=lambda each: each.name)

    async def _stop(self, exporters: Sequence[Exporter]) -> None:
        tasks = [self._tasks.pop(exporter)[1] for exporter in exporters]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
