"""AWS event streams: bytes in, whole messages out, however the bytes are cut. Sans-I/O.

A message is a prelude (its length, the length of its headers, a CRC of both), headers, a payload and a CRC of it all.
botocore reads and checks it; the bytes are gathered here, as botocore copies all it has with each piece it gets.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

STREAM_TYPE = "application/vnd.amazon.eventstream"
"""The Content-Type of such a stream."""
MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes."""
_PRELUDE = 12
_LEAST = _PRELUDE + 4


class BadFrame(ValueError):
    """What came is no event stream, or was damaged on its way."""


class Message(NamedTuple):
    headers: dict[str, Any]
    payload: bytes


class Framer:
    """Cuts what a connection gave into messages."""

    __slots__ = ("_buffer", "_errors", "_have", "_need", "_parts")

    def __init__(self) -> None:
        # Only who asks Bedrock pays for the import.
        from botocore.eventstream import EventStreamBuffer, ParserError  # type: ignore[import-untyped]

        self._buffer = EventStreamBuffer()
        self._errors = (ParserError, struct.error, LookupError, UnicodeDecodeError)
        self._parts: list[bytes] = []
        self._have = 0
        self._need = _PRELUDE
        """Bytes from the beginning of the message, at which there is something to do."""

    def feed(self, read: bytes) -> list[Message]:
        """The messages that `read` completes. Raises BadFrame."""
        self._parts.append(read)
        self._have += len(read)
        if self._have < self._need:
            return []
        data = b"".join(self._parts)
        self._parts.clear()
        try:
            return list(self._messages(data))
        except self._errors as error:
            raise BadFrame(type(error).__name__) from None

    def _messages(self, data: bytes) -> Iterator[Message]:
        at = 0
        while len(data) - at >= self._need:
            if self._need == _PRELUDE:
                self._need = self._length(data[at : at + _PRELUDE])
                continue
            self._buffer.add_data(data[at + _PRELUDE : at + self._need])
            found = next(self._buffer)
            at += self._need
            self._need = _PRELUDE
            yield Message(found.headers, found.payload)
        rest = data[at:]
        self._have = len(rest)
        if rest:
            self._parts.append(rest)

    def _length(self, prelude: bytes) -> int:
        """Of the message that begins with `prelude`, whose checksum is looked at before anything is waited for."""
        length, headers = struct.unpack("!II", prelude[:8])
        self._buffer.add_data(prelude)
        if next(self._buffer, None) is not None or not _LEAST + headers <= length <= MAX_MESSAGE:
            raise BadFrame("length")
        return int(length)
