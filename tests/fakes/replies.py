"""What the fake upstream is sent and what it sends: requests as they came, and replies with all that goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

End = Literal["clean", "no_marker", "cut", "reset", "bad_chunk"]


@dataclass
class Seen:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: dict[str, Any]
    model: str = "ok"
    """As the body or the path names it."""


def data_only(data: bytes, eol: bytes = b"\n") -> bytes:
    """A server-sent event without a name."""
    return b"data: " + data + eol + eol


def named(data: bytes, eol: bytes = b"\n") -> bytes:
    """A server-sent event with the name that its JSON has as `type`."""
    try:
        name = str(json.loads(data)["type"])
    except (ValueError, TypeError, KeyError):
        name = "nonsense"
    return b"event: " + name.encode() + eol + data_only(data, eol)


@dataclass
class Reply:
    """What to send: a whole answer (`body`), or a stream (`events`, each the data of one event)."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    events: list[bytes] = field(default_factory=list)
    end: End = "clean"
    after: int | None = None
    """The end comes after so many events (of `events`); None = after the last."""
    hold: bool = False
    """Send nothing before `FakeUpstream.release` is set."""
    hold_after: int | None = None
    """Send so many events, then wait for `release`. Of a whole answer: send half of it."""
    pause_after: int | None = None
    """Send so many events, then wait `pause_s`."""
    pause_s: float = 0.0
    slices: int | None = None
    """Send so many bytes at a time, each in its own write."""
    pace_s: float = 0.0
    line_end: bytes = b"\n"
    comments: bool = False
    close: bool = False
    """Close the connection without a word instead of answering; with `end` "reset", reset it."""
    content_type: str = "text/event-stream"
    frame: Callable[[bytes, bytes], bytes] = data_only
    """An event on the wire, from its data and the end of a line."""
    comment: bytes = b": keep-alive\n\n"
    marker: list[bytes] = field(default_factory=lambda: [b"[DONE]"])
    """The data of the events that say that the answer is complete."""
