"""What travels between the gateway and the engine process: length-prefixed msgpack, sans-I/O.

A frame is a 4-byte little-endian length and that many bytes of msgpack. Requests carry a number
chosen by the client; every reply names it. All events of one decode step travel in one frame.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from runtimes.engine import (
    ERRORS,
    CountRequest,
    Embeddings,
    EmbedRequest,
    EngineError,
    EngineStatus,
    Event,
    GenerateRequest,
)

MAX_FRAME = 64 * 1024 * 1024
_LENGTH = struct.Struct("<I")


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    id: int
    request: GenerateRequest


class Embed(msgspec.Struct, frozen=True, tag="embed"):
    id: int
    request: EmbedRequest


class Count(msgspec.Struct, frozen=True, tag="count"):
    id: int
    request: CountRequest


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Give up request `id`; nothing more is sent for it."""

    id: int


class Status(msgspec.Struct, frozen=True, tag="status"):
    id: int


Call = Generate | Embed | Count | Cancel | Status


class Events(msgspec.Struct, frozen=True, tag="events"):
    """Events of one step: (request id, its events in order)."""

    items: list[tuple[int, list[Event]]]


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    id: int
    result: Embeddings


class Counted(msgspec.Struct, frozen=True, tag="counted"):
    id: int
    tokens: int


class State(msgspec.Struct, frozen=True, tag="state"):
    id: int
    status: EngineStatus


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Request `id` ended with an error; nothing more is sent for it."""

    id: int
    code: str
    message: str
    param: str | None = None


Reply = Events | Embedded | Counted | State | Failed

_encoder = msgspec.msgpack.Encoder()
call_decoder = msgspec.msgpack.Decoder(Call)
reply_decoder = msgspec.msgpack.Decoder(Reply)


class FrameError(EngineError):
    """The other side broke the protocol; the connection is of no more use."""


def frame(message: Call | Reply) -> bytes:
    """The bytes of one message. Raises FrameError when it is larger than MAX_FRAME."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME:
        raise FrameError(f"a message of {len(body)} bytes exceeds the limit of {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Cuts a byte stream into frames, however it arrives."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Bodies of the frames completed by `data`. Raises FrameError on an oversized length."""
        self._buffer += data
        bodies: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= 4:
            (size,) = _LENGTH.unpack_from(self._buffer, start)
            if size > MAX_FRAME:
                raise FrameError(f"a frame of {size} bytes exceeds the limit of {MAX_FRAME}")
            if len(self._buffer) - start - 4 < size:
                break
            bodies.append(bytes(self._buffer[start + 4 : start + 4 + size]))
            start += 4 + size
        if start:
            del self._buffer[:start]
        return bodies


def failure(request_id: int, error: EngineError) -> Failed:
    """An error as it crosses the border."""
    return Failed(request_id, error.code, error.message, error.param)


def error_of(failed: Failed) -> EngineError:
    """The error that the other side raised."""
    kind: Any = ERRORS.get(failed.code, EngineError)
    error: EngineError = kind(failed.message, param=failed.param)
    return error
