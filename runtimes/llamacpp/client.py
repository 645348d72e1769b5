"""The gateway's end of the socket to an engine process: an `Engine` over one multiplexed connection."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

from runtimes.engine import (
    CountRequest,
    Embeddings,
    EmbedRequest,
    EngineError,
    EngineLost,
    EngineStatus,
    Event,
    GenerateRequest,
    InvalidRequest,
    Usage,
)
from runtimes.llamacpp import wire


class _Mailbox:
    """Events of one running request, and who waits for them. One reader."""

    __slots__ = ("error", "events", "waiter")

    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self.error: EngineError | None = None
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class LlamaClient(asyncio.Protocol):
    """Implements `runtimes.engine.Engine`. Made by `connect`; loses every request when the socket closes."""

    def __init__(self) -> None:
        self._frames = wire.Frames()
        self._ids = itertools.count(1)
        self._mailboxes: dict[int, _Mailbox] = {}
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._transport: asyncio.Transport | None = None
        self.lost = asyncio.get_running_loop().create_future()
        """Done when the connection is gone."""

    # --- asyncio.Protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._frames.feed(data):
                self._take(wire.reply_decoder.decode(body))
        except (wire.FrameError, ValueError) as error:
            self._end(EngineLost(f"the engine spoke nonsense: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(EngineLost("the engine process went away while it worked on this request"))

    def _end(self, error: EngineLost) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
        mailboxes, self._mailboxes = self._mailboxes, {}
        for mailbox in mailboxes.values():
            mailbox.error = error
            mailbox.wake()
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            if not answer.done():
                answer.set_exception(error)
        if not self.lost.done():
            self.lost.set_result(None)

    def _take(self, reply: wire.Reply) -> None:
        if isinstance(reply, wire.Events):
            for request_id, events in reply.items:
                mailbox = self._mailboxes.get(request_id)
                if mailbox is not None:  # else: cancelled while this was on its way
                    mailbox.events.extend(events)
                    mailbox.wake()
            return
        if isinstance(reply, wire.Failed):
            mailbox = self._mailboxes.get(reply.id)
            if mailbox is not None:
                mailbox.error = wire.error_of(reply)
                mailbox.wake()
                return
        answer = self._answers.pop(reply.id, None)
        if answer is None or answer.done():
            return
        if isinstance(reply, wire.Failed):
            answer.set_exception(wire.error_of(reply))
        elif isinstance(reply, wire.Embedded):
            answer.set_result(reply.result)
        elif isinstance(reply, wire.Counted):
            answer.set_result(reply.tokens)
        else:
            answer.set_result(reply.status)

    # --- Engine ---------------------------------------------------------------------------------

    async def generate(self, request: GenerateRequest) -> AsyncIterator[list[Event]]:
        """See `Engine.generate`. Closing the iterator sends a cancel unless the answer is complete."""
        request_id = next(self._ids)
        mailbox = _Mailbox()
        self._send(wire.Generate(request_id, request))
        self._mailboxes[request_id] = mailbox
        complete = False
        try:
            while not complete:
                if not mailbox.events:
                    if mailbox.error is not None:
                        complete = True
                        raise mailbox.error
                    mailbox.waiter = asyncio.get_running_loop().create_future()
                    await mailbox.waiter
                    continue
                events = list(mailbox.events)
                mailbox.events.clear()
                complete = isinstance(events[-1], Usage)
                if complete:
                    self._mailboxes.pop(request_id, None)
                yield events
        finally:
            self._mailboxes.pop(request_id, None)
            if not complete and self._transport is not None:
                self._send(wire.Cancel(request_id))

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """See `Engine.embed`."""
        request_id = next(self._ids)
        result: Embeddings = await self._ask(request_id, wire.Embed(request_id, request))
        return result

    async def count(self, request: CountRequest) -> int:
        """See `Engine.count`."""
        request_id = next(self._ids)
        result: int = await self._ask(request_id, wire.Count(request_id, request))
        return result

    async def status(self) -> EngineStatus:
        """See `Engine.status`."""
        request_id = next(self._ids)
        result: EngineStatus = await self._ask(request_id, wire.Status(request_id))
        return result

    async def close(self) -> None:
        """See `Engine.close`."""
        self._end(EngineLost("the connection to the engine was closed"))

    async def _ask(self, request_id: int, call: wire.Call) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._send(call)
        self._answers[request_id] = answer
        try:
            return await answer
        finally:
            if self._answers.pop(request_id, None) is not None and self._transport is not None:
                self._send(wire.Cancel(request_id))

    def _send(self, call: wire.Call) -> None:
        if self._transport is None:
            raise EngineLost("the engine process is gone")
        try:
            data = wire.frame(call)
        except wire.FrameError as error:
            raise InvalidRequest(f"the request is too large for the engine: {error.message}") from error
        except (ValueError, OverflowError, TypeError) as error:
            # Lone surrogates, numbers beyond 64 bits: no fault of the engine's.
            raise InvalidRequest(f"the request cannot be sent to the engine: {error}") from error
        self._transport.write(data)


async def connect(socket_path: Path) -> LlamaClient:
    """Open a connection. Raises EngineLost when nothing listens there."""
    loop = asyncio.get_running_loop()
    try:
        _, client = await loop.create_unix_connection(LlamaClient, str(socket_path))
    except OSError as error:
        raise EngineLost(f"no engine listens on {socket_path}: {error.strerror or error}") from error
    return client
