"""What the gateway asks of anything that can answer: the protocol of an upstream, and the call it is given."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol

import msgspec

from appliance.dialects.adapting import adapted
from appliance.dialects.answer import Frame, StreamRenderer, WholeRenderer
from appliance.dialects.kinds import Kind, Request
from appliance.dialects.messages.betas import NONE, Betas
from appliance.dialects.tally import Tally
from appliance.errors import OutpostError


class Capabilities(msgspec.Struct, frozen=True):
    """What a target can do. `kinds` are operations, `features` those of the dialects' `needs`."""

    kinds: frozenset[str]
    features: frozenset[str] = frozenset()
    refuses: frozenset[str] = frozenset()
    """Further request fields that it has no notion for, and without which it answers all the same."""
    context_length: int | None = None
    """Most tokens (prompt and answer) of one request; None = not known here."""
    dimensions: int | None = None
    """Length of its vectors; None = not known here."""
    betas: Betas = NONE
    """Of Anthropic's, those that it may be asked for."""


class Readiness(msgspec.Struct, frozen=True):
    """Whether a target can answer now, and if not, why, and when it may be worth another try."""

    ready: bool
    reason: str = ""
    loading: bool = False
    retry_after_s: float | None = None


READY = Readiness(True)


def _nothing() -> None:
    pass


class Call(msgspec.Struct):
    """One attempt: the canonical request for one target, and where to count what it used."""

    id: str
    """Unique part of the answer's id, without its prefix."""
    created: int
    """Unix seconds."""
    kind: Kind
    request: Request
    model: str
    """The model's name as the client is told."""
    partition: str
    """Prefix reuse and caches never cross partitions."""
    connect_s: float
    tally: Tally
    native: Any = None
    """The client's own body, where its dialect is not the canonical one; see appliance.dialects.asked."""
    render: StreamRenderer | None = None
    """What writes a streamed answer that others have begun; None: this call begins it."""
    drop: bool = False
    """The route wants fields left out that the target refuses, where the answer is possible without."""
    whole_events: bool = False
    """Read and write the stream again, although its bytes could pass."""
    response: Any = None
    """A whole answer as data, for kinds that are stored."""
    queued: Callable[[], None] = _nothing
    """To be called when the target has taken the call but lets it wait: the time to the first token stands still."""
    started: Callable[[], None] = _nothing
    """To be called when the waiting is over."""
    alive: Callable[[], None] = _nothing
    """To be called when the target is seen to be at work, although it has nothing to say yet."""
    ended: Callable[[], None] = _nothing
    """To be called for each choice that is complete: the target has room for another one."""

    traceparent: str | None = None
    """What a provider is to be told of the trace that the call belongs to."""

    @property
    def answer_id(self) -> str:
        return self.kind.id_prefix + self.id

    def frame(self) -> Frame:
        """What the answer tells of its request, where it is written here."""
        return Frame(self.answer_id, self.created, self.model, self.request, self.native)

    def renderer(self) -> StreamRenderer:
        """What writes the stream for the client."""
        return adapted(self.render or self.kind.make_stream(self.frame(), self.tally), self.request)

    def whole_renderer(self) -> WholeRenderer:
        """What writes the answer in one piece for the client."""
        return adapted(self.kind.make_whole(self.frame(), self.tally), self.request)


class Sink(Protocol):
    """Where the pieces of a stream go."""

    def send(self, data: bytes) -> bool:
        """Take one piece, of whole events; False when no more may follow before `drained` has returned."""
        ...

    async def drained(self) -> None: ...


class Stream(Protocol):
    """A streamed answer from its first token on: whole server-sent events in the client's dialect, without its end."""

    @property
    def first(self) -> bytes:
        """The events up to that with the first token."""
        ...

    async def pump(self, sink: Sink) -> None:
        """Hand each piece to `sink` as soon as it has come. Returns only after the target has said that it is done;
        a stream that breaks off raises."""
        ...

    def end(self) -> bytes:
        """The last events, once `pump` has returned."""
        ...

    def fail(self, error: OutpostError) -> bytes:
        """The last events of an answer that failed."""
        ...

    def response(self) -> Any:
        """The complete answer as data, for kinds that are stored; None for others."""
        ...

    async def aclose(self) -> None:
        """Cancel what is left of it. To be awaited in any case."""
        ...


class Upstream(Protocol):
    """A target: a deployment on this box or a provider's model. Cancelling a call cancels the work behind it.

    Both calls raise errors of `appliance.errors` only (and CancelledError).
    """

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    def readiness(self) -> Readiness: ...

    async def whole(self, call: Call) -> bytes:
        """The answer's body in the client's dialect."""
        ...

    async def stream(self, call: Call) -> Stream:
        """The answer from its first token on."""
        ...


class GeneratedStream:
    """A stream whose pieces come from a generator."""

    __slots__ = ("_pieces", "_renderer", "first")

    def __init__(self, first: bytes, pieces: AsyncGenerator[bytes, None], renderer: StreamRenderer) -> None:
        self.first = first
        self._pieces = pieces
        self._renderer = renderer

    async def pump(self, sink: Sink) -> None:
        async for data in self._pieces:
            if not sink.send(data):
                await sink.drained()

    def end(self) -> bytes:
        return self._renderer.end()

    def fail(self, error: OutpostError) -> bytes:
        return self._renderer.fail(error)

    def response(self) -> Any:
        return told_by(self._renderer)

    async def aclose(self) -> None:
        await self._pieces.aclose()


def told_by(writer: Any) -> Any:
    """What the writer of an answer knows of it as data; None where it knows nothing."""
    response = getattr(writer, "response", None)
    return None if response is None else response()
