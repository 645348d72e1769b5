"""A streamed message whose beginning another target has sent: which of its blocks stand at the client. Sans-I/O."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from appliance.dialects.answer import Frame
from appliance.dialects.sse import NamedFramer


class Resumed(Frame, frozen=True):
    """The frame of a message that has begun. `MessagesStream` takes what it is fed first for what was sent."""

    index: int = -1
    """Of the last block that was sent."""
    open: str = ""
    """The type of that block, where its end was not sent."""
    empty: bool = False
    """Nothing of it was sent but its beginning."""


class _Id(msgspec.Struct, frozen=True):
    id: str = ""


class _Type(msgspec.Struct, frozen=True):
    type: str = ""


class _Sent(msgspec.Struct, frozen=True):
    type: str
    index: int = -1
    message: _Id | None = None
    content_block: _Type | None = None


_decode = msgspec.json.Decoder(_Sent).decode


def refit(frame: Frame, pieces: Iterable[bytes]) -> Resumed:
    """The frame for going on after `pieces`, whole events that a client was sent. They may be another target's own
    bytes, which have blocks that events do not show: empty ones, two texts in a row."""
    id, index, kind, empty = frame.id, -1, "", False
    for data in NamedFramer().feed(b"".join(pieces))[0]:
        item = _decode(data)
        if item.type == "message_start" and item.message is not None:
            id = item.message.id or id
        elif item.type == "content_block_start" and item.content_block is not None:
            index, kind, empty = item.index, item.content_block.type, True
        elif item.type == "content_block_delta":
            empty = False
        elif item.type == "content_block_stop":
            kind = ""
    return Resumed(id, frame.created, frame.model, frame.request, frame.native, index, kind, empty)
