"""Refusals that belong to no exchange: a wrong credential, a missing permission. A flood of them is a few records.

The first refusal goes onto the ledger at once; those that follow within `every_s` are counted together by code, address
(of IPv6 the network: a stranger has as many addresses as he likes) and endpoint, and written as one record each. While
refusals keep coming the time doubles, up to `slowest_s`, so that nobody can make the ledger grow as he likes. Losing
power or the process costs the counts of that time at most.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any, Protocol

from appliance.records.transaction import Transaction

logger = logging.getLogger("outpost.records")

KIND = "refusal"
OTHERS = "others"
"""Stands for the addresses beyond the most that are told apart."""


class Writes(Protocol):
    def write(self, work: Callable[[Transaction], None], *, durable: bool = True) -> asyncio.Future[None]: ...


@dataclass(slots=True)
class _Count:
    count: int
    first_us: int
    last_us: int


class Refusals:
    """For the event loop that made it. wall: unix seconds."""

    def __init__(
        self,
        recorder: Writes,
        wall: Callable[[], float],
        *,
        every_s: float = 5.0,
        slowest_s: float = 320.0,
        most: int = 64,
    ) -> None:
        self._recorder = recorder
        self._wall = wall
        self._every_s = every_s
        self._slowest_s = slowest_s
        self._pause_s = every_s
        self._most = most
        self._counts: dict[tuple[str, str, str], _Count] = {}
        self._timer: asyncio.TimerHandle | None = None

    def note(self, code: str, address: str, endpoint: str) -> None:
        """Somebody was refused. `endpoint` must come from the table of endpoints, not from the caller."""
        now_us = round(self._wall() * 1_000_000)
        key = (code, network_of(address), endpoint)
        if key not in self._counts and len(self._counts) >= self._most:
            key = (code, OTHERS, endpoint)
        found = self._counts.get(key)
        if found is None:
            self._counts[key] = _Count(1, now_us, now_us)
        else:
            found.count += 1
            found.last_us = now_us
        if self._timer is None:
            self.flush()
            self._pause_s = self._every_s
            self._timer = asyncio.get_running_loop().call_later(self._pause_s, self._ring)

    def flush(self) -> asyncio.Future[None] | None:
        """Write what has been counted; None when there is nothing."""
        if not self._counts:
            return None
        counts, self._counts = self._counts, {}
        bodies = [
            {
                "code": code,
                "address": address,
                "endpoint": endpoint,
                "count": each.count,
                "first_us": each.first_us,
                "last_us": each.last_us,
            }
            for (code, address, endpoint), each in counts.items()
        ]
        written = self._recorder.write(_append(bodies))
        written.add_done_callback(_note_unwritten)
        return written

    async def close(self) -> None:
        """Write what is left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        written = self.flush()
        if written is not None:
            await asyncio.wait([written])

    def _ring(self) -> None:
        self._timer = None
        if self.flush() is not None:
            self._pause_s = min(2 * self._pause_s, self._slowest_s)
            self._timer = asyncio.get_running_loop().call_later(self._pause_s, self._ring)


def network_of(address: str) -> str:
    """The address of a client, of IPv6 its /64; what is no address stays as it is."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if not isinstance(found, IPv6Address):
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(IPv6Network((int(found) >> 64 << 64, 64)))


def _append(bodies: list[dict[str, Any]]) -> Callable[[Transaction], None]:
    def work(tx: Transaction) -> None:
        for body in bodies:
            tx.append(KIND, body)

    return work


def _note_unwritten(done: asyncio.Future[None]) -> None:
    if not done.cancelled() and done.exception() is not None:
        logger.warning("refusals_not_recorded")
