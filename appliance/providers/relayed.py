"""A provider's stream on its way to the client, taken where its bytes come in: no task is woken for each piece."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import aiohttp

from appliance import errors
from appliance.dialects.kinds import Passing
from appliance.providers.posting import Reply
from appliance.providers.upstream import Sink, told_by

GRACE_S = 0.5
"""How long a target that has said all may be silent before it says that it has: some never do, and keep the
connection."""
COUNTS_S = 2.0
"""The same for one that has not told yet what it has used, though it was asked to."""


class RelayedStream:
    """One streamed answer of a provider. `open` it, `pump` it, and `aclose` it in any case."""

    def __init__(
        self,
        target: str,
        response: Reply,
        reader: Passing,
        leave: Callable[[Reply, bool], None],
    ) -> None:
        """`leave` gives the response back, told whether it was read to its end."""
        self._target = target
        self._response = response
        self._content = response.content
        self._reader = reader
        self._leave = leave
        self._send: Callable[[bytes], bool] | None = None
        self._taken = 0
        """Bytes of the answer so far."""
        self._full = False
        """`_send` has asked for a pause."""
        self._turn: asyncio.Future[None] | None = None
        """Done when the task has to act: at the end, at an error, at a pause. Nothing is taken without it."""
        self._over = False
        """The target has said all, and has had time to say that it has: the connection counts as ended."""
        self._ended = False
        """The reader knows of it."""
        self._complete = False
        """All that may still come are counts and the end marker; the grace runs."""
        self._grace: asyncio.TimerHandle | None = None
        self._silent_s = 0.0
        """Of the grace."""
        self.first = b""

    async def open(self) -> None:
        """Take what comes up to the first token. Raises UpstreamFailed."""
        if (line := self._response.line) is not None:
            line.tell(self._arrived)
        await self._take(self._keep)

    async def pump(self, sink: Sink) -> None:
        while not self._done:
            await self._take(sink.send)
            if self._full:
                await sink.drained()

    def end(self) -> bytes:
        return self._reader.end()

    def fail(self, error: errors.OutpostError) -> bytes:
        return self._reader.fail(error)

    def response(self) -> Any:
        return told_by(self._reader)

    async def aclose(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        if (line := self._response.line) is not None:
            line.hush()
        self._leave(self._response, self._reader.done)

    @property
    def _done(self) -> bool:
        return self._reader.done or self._ended

    def _wait(self) -> None:
        """Have some of the grace pass."""
        loop = asyncio.get_running_loop()
        self._grace = loop.call_later(GRACE_S, self._waited, self._content.total_bytes)

    def _waited(self, had: int) -> None:
        """Some of the grace has passed, at whose beginning so many bytes had come."""
        if self._content.total_bytes > min(had, self._taken):
            self._silent_s = 0.0  # it speaks, or has spoken while the client was slow
        else:
            self._silent_s += GRACE_S
        if self._silent_s >= (GRACE_S if getattr(self._reader, "counted", True) else COUNTS_S):
            self._over = True
            self._arrived()
        else:
            self._wait()

    def _keep(self, data: bytes) -> bool:
        self.first = data
        return False

    async def _take(self, send: Callable[[bytes], bool]) -> None:
        """Hand `send` what comes, until it asks for a pause or the target is done."""
        self._full = False
        self._send = send
        self._turn = turn = asyncio.get_running_loop().create_future()
        try:
            self._arrived()
            await turn
        except aiohttp.ClientError as error:
            raise errors.UpstreamFailed(f"{self._target} broke off its answer.") from error
        finally:
            self._turn = self._send = None
            if turn.done() and not turn.cancelled():
                turn.exception()  # who was cancelled at the same time does not ask for it
            del turn  # its error holds this frame

    def _arrived(self) -> None:
        """Something has come. Called by the connection, and at the beginning of each turn for what came in between."""
        turn, send = self._turn, self._send
        if turn is None or send is None or turn.done():
            return
        try:
            self._pass_on(send)
        except Exception as error:  # noqa: BLE001 - it is raised again where the turn is awaited
            turn.set_exception(error)
            del turn  # as above
        else:
            if self._full or self._done:
                turn.set_result(None)
            elif not self._complete and getattr(self._reader, "complete", False):
                self._complete = True
                self._wait()

    def _left_behind(self) -> bytes:
        """What had come before the connection broke, of which the HTTP client only tells that it did."""
        content, broken = self._content, self._content.exception()
        content.set_exception(cast(BaseException, None))
        try:
            return content.read_nowait(-1)
        finally:
            content.set_exception(cast(BaseException, broken))

    def _pass_on(self, send: Callable[[bytes], bool]) -> None:
        content, reader = self._content, self._reader
        # Taking what is there may let the HTTP client parse more of what it had put aside.
        while not self._done:
            if content.total_bytes > self._taken:
                data = content.read_nowait(-1) if content.exception() is None else self._left_behind()
            elif self._over:
                break
            elif content.exception() is not None:
                if not getattr(reader, "complete", False):
                    raise cast(BaseException, content.exception())  # in no variable: it holds this frame
                self._over = True  # however it ends, nothing of the answer is missing
                break
            elif content.is_eof():
                data = b""
            else:
                return
            self._taken += len(data)
            out = reader.feed(data)
            if out and not send(out):
                self._full = True
                return
        if self._over and not self._done:
            # It has counts to tell, and knows whether there was anything in the answer at all.
            self._ended = True
            if (out := reader.feed(b"")) and not send(out):
                self._full = True
