"""Embeddings answers of OpenAI's dialect that come from elsewhere and pass as bytes: whether they are what was asked
for. Pure.

A vector is not read: that of 1,536 numbers takes 50 to 80 µs. Its JSON is known to be sound, so that taking out the
characters of numbers, in some 20 µs, leaves the commas and brackets; these have to be the same for every one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from appliance.dialects.embeddings import EmbeddingRequest
from appliance.dialects.passing import BAD_JSON, decoded
from appliance.dialects.reported import reported
from appliance.dialects.tally import Tally, WireUsage
from appliance.errors import OutpostError, UpstreamFailed

_OF_NUMBERS = b"0123456789+-.eE \t\r\n"
_OF_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


class _Vector(msgspec.Struct, frozen=True, gc=False):
    embedding: msgspec.Raw
    index: int | None = None


class _Answer(msgspec.Struct, frozen=True):
    data: list[_Vector] | None = None
    usage: WireUsage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Answer).decode
_decode_text = msgspec.json.Decoder(str).decode


def read_whole(body: bytes, tally: Tally, target: str, request: EmbeddingRequest) -> None:
    """Check a whole answer and count it. Raises UpstreamFailed for anything but one vector an input, and another of the
    tree for what the target itself reports as an error.

    Who asks for base64 may get numbers: some targets do not know that way, and clients take both.
    """
    try:
        answer = decoded(_decode, body)
    except BAD_JSON:
        raise _unsound(target) from None
    if answer.error is not None:
        raise reported(target, answer.error)
    if answer.data is None:
        raise _unsound(target)
    expected = request.choices
    if len(answer.data) != expected:
        raise UpstreamFailed(f"{target} gave {len(answer.data)} vectors for {expected} inputs.")
    places = {place if each.index is None else each.index for place, each in enumerate(answer.data)}
    if places != set(range(expected)):
        raise UpstreamFailed(f"{target} gave vectors that do not say which inputs they are of.")
    vectors = [bytes(each.embedding) for each in answer.data]
    packed = request.encoding_format == "base64" and vectors[0].startswith(b'"')
    if not (_are_packed(vectors) if packed else _are_numbers(vectors)):
        raise UpstreamFailed(f"{target} gave vectors that are none, or differ in length.")
    if answer.usage is not None:
        tally.take(answer.usage)
        tally.completion_tokens = 0
        tally.source = "reported" if tally.prompt_tokens else "none"


def _are_numbers(vectors: Sequence[bytes]) -> bool:
    """Whether all are JSON arrays of the same number of numbers."""
    first = vectors[0].translate(None, _OF_NUMBERS)
    commas = len(first) - 2
    if first != b"[%b]" % (b"," * commas) or any(vector.translate(None, _OF_NUMBERS) != first for vector in vectors):
        return False
    return commas > 0 or all(vector.strip(b"[] \t\r\n") for vector in vectors)


def _are_packed(vectors: Sequence[bytes]) -> bool:
    """Whether all are JSON strings of base64, of the same number of float32 values."""
    sizes = set()
    for vector in vectors:
        if not vector.startswith(b'"'):
            return False
        text = _decode_text(vector).encode()
        digits = text.rstrip(b"=")
        if digits.translate(None, _OF_BASE64) or len(text) % 4 or len(text) - len(digits) > 2:
            return False
        sizes.add(len(digits) * 6 // 8)
    size = sizes.pop()
    return not sizes and size > 0 and size % 4 == 0


def _unsound(target: str) -> OutpostError:
    return UpstreamFailed(f"{target} gave an answer that is not of the expected form.")
