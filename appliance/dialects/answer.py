"""What a client's dialect writes of an answer, and what is read of a target's: the two protocols between which answers
are translated. Sans-I/O.

In the middle are the events of `runtimes.engine`: `Delta`, `Finished` and `Usage`. A target that speaks another dialect
than the client is read into them by a `Reader`; a `StreamRenderer` or a `WholeRenderer` writes them for the client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from appliance.dialects.tally import Tally
from appliance.errors import OutpostError
from runtimes.engine import Event


class Frame(msgspec.Struct, frozen=True):
    """What an answer tells of its request. `id` is complete, with its dialect's prefix."""

    id: str
    created: int
    """Unix seconds."""
    model: str
    """The model's name as the client is told."""
    request: Any
    """The canonical request."""
    native: Mapping[str, Any] | None = None
    """The client's own body, where its dialect is not the canonical one."""


class StreamRenderer(Protocol):
    """One streamed answer for a client."""

    def feed(self, events: Sequence[Event]) -> bytes:
        """Whole server-sent events for what became known together; may be empty. Counts into the tally."""
        ...

    def end(self) -> bytes:
        """The last events, which say that the answer is complete. Call it once, after the last `feed`."""
        ...

    def fail(self, error: OutpostError) -> bytes:
        """The last events of an answer that failed; nothing that looks like a clean end."""
        ...


class WholeRenderer(Protocol):
    """One answer in one piece for a client."""

    def feed(self, events: Sequence[Event]) -> None: ...

    def body(self) -> bytes:
        """The answer's JSON; call it after the last event."""
        ...


class MakeStream(Protocol):
    def __call__(self, frame: Frame, tally: Tally) -> StreamRenderer: ...


class MakeWhole(Protocol):
    def __call__(self, frame: Frame, tally: Tally) -> WholeRenderer: ...


class Reader(Protocol):
    """A target's streamed answer, read.

    `done` is set once the target has said that its answer is complete, by its end marker or by all that an answer has
    to have. Raises UpstreamFailed for what is not sound, for what the target itself reports as an error, and for a
    connection that ends before the answer is complete.
    """

    done: bool

    def feed(self, read: bytes) -> list[Event]:
        """The events that `read` completes, however the bytes are cut; b"" means that the connection has ended.

        The `Usage` event is the last one, and comes once; not at all if the target does not say what it has used.
        """
        ...


class Ask(msgspec.Struct, frozen=True):
    """One request to a target, as its dialect writes it."""

    path: str
    """Behind the base URL, without a slash at its beginning; may have a query."""
    body: bytes
    headers: Mapping[str, str] = {}
    """Beside those that the provider always gets."""


class Outbound(Protocol):
    """A dialect that targets speak: how to ask in it, and how to read what comes back. Pure.

    A request that the dialect has no notion for is refused by name (UnsupportedParameter), unless the target's
    capabilities already say so.
    """

    name: str

    def unknown(self, model: str) -> frozenset[str]:
        """Fields that are refused whatever else is asked, and left out where the route says so."""
        ...

    def ask(self, request: Any, model: str, *, stream: bool) -> Ask:
        """The canonical request for a model of the target. Raises UnsupportedParameter."""
        ...

    def reader(self, target: str, request: Any) -> Reader:
        """For one streamed answer. `target` is its name, for messages; `request` the canonical one."""
        ...

    def read_whole(self, body: bytes, target: str, request: Any) -> list[Event]:
        """The events of a whole answer, `Usage` last, as in a stream. Raises UpstreamFailed."""
        ...
