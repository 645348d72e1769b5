"""A client that takes what a stream hands out."""

from __future__ import annotations

import asyncio

from appliance.providers.upstream import Stream


class Taker:
    """Keeps every piece. With `pace` it asks for patience after each, until `more` is released."""

    def __init__(self, *, pace: bool = False) -> None:
        self.pieces: list[bytes] = []
        self.came = asyncio.Semaphore(0)
        self.more = asyncio.Semaphore(0)
        self._pace = pace

    def send(self, data: bytes) -> bool:
        self.pieces.append(data)
        self.came.release()
        return not self._pace

    async def drained(self) -> None:
        await self.more.acquire()


async def taken(stream: Stream) -> bytes:
    """The whole of a stream, its first token included."""
    taker = Taker()
    try:
        await stream.pump(taker)
    finally:
        await stream.aclose()
    return stream.first + b"".join(taker.pieces)
