"""What is kept of an exchange's texts: the policy of the settings over the keeper of the records."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Protocol, TypeVar

from appliance.identity.principal import Principal
from appliance.records.content import Keeper, choose_content
from appliance.records.rows import ExchangeRow
from appliance.records.transaction import Transaction
from appliance.settings.recording import Content, Records

T = TypeVar("T")

Names = Callable[[str, str], str | None]
"""(team or organization, id) → name."""


class Writes(Protocol):
    def write(self, work: Callable[[Transaction], T], *, durable: bool = True) -> asyncio.Future[T]: ...


class Contents:
    """See appliance.exchange.Contents. `change` the settings at a reload."""

    def __init__(self, keeper: Keeper, recorder: Writes, settings: Records, names: Names) -> None:
        self._keeper = keeper
        self._recorder = recorder
        self._names = names
        self.change(settings)

    def change(self, settings: Records) -> None:
        """Go by these from now on."""
        self._settings = settings
        self._keeper.max_content = settings.max_content
        self._simple = not settings.content_rules

    @property
    def most(self) -> int:
        """Bytes of one part."""
        return self._keeper.max_content

    def policy(self, principal: Principal, route: str) -> Content:
        """What is kept of this principal's exchanges on a route."""
        if self._simple:
            return self._settings.content
        return choose_content(
            self._settings,
            route=route,
            team=self._both("team", principal.team),
            organization=self._both("organization", principal.organization),
        )

    def _both(self, scope: str, id: str | None) -> Collection[str]:
        if id is None:
            return ()
        name = self._names(scope, id)
        return (id,) if name is None else (id, name)

    async def keep(
        self, principal: Principal, row: ExchangeRow, policy: Content, request: bytes, answer: bytes
    ) -> asyncio.Future[int] | None:
        """Raises RecordsUnavailable, ContentKeyError."""
        kept = await self._keeper.keep(principal.subject, row.id, policy, {"request": request, "answer": answer})
        if kept is None:
            return None
        row.content_digest = kept.digest
        return self._recorder.write(self._keeper.insert_content(kept))
