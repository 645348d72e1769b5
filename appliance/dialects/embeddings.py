"""POST /v1/embeddings: vectors for texts or token ids. Same rules as `chat`."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from appliance.dialects import parameters as p
from appliance.dialects.completions import TokenId
from appliance.dialects.wire import Wire, encode
from appliance.errors import BadRequest

MAX_INPUTS = 2048


class EmbeddingRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """An embedding request. `input` may hold one text, one list of token ids, or several of either."""

    model: p.ModelName
    input: str | Annotated[list[str | TokenId | Annotated[list[TokenId], Meta(min_length=1)]], Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    # A no-op.
    user: p.Label | None = None

    stream: ClassVar[bool] = False

    @property
    def choices(self) -> int:
        return len(self.inputs())

    def inputs(self) -> list[str | list[int]]:
        """The inputs in order, each a text or token ids."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]  # type: ignore[list-item]  # `check` has made sure that all are ids
        return self.input  # type: ignore[return-value]


HINTS = {
    **p.HINTS,
    "input": "Send a string, an array of strings, an array of token ids, or an array of such arrays.",
    "encoding_format": "Use float or base64.",
}

WIRE = Wire(EmbeddingRequest, refused={"stream": "embeddings are not streamed."}, hints=HINTS)


def parse(body: bytes, max_depth: int = 64) -> EmbeddingRequest:
    """The request in `body`, fully checked. Raises BadRequest or UnsupportedParameter."""
    request: EmbeddingRequest = WIRE.read(body, max_depth)
    check(request)
    return request


def check(request: EmbeddingRequest) -> None:
    """What the types of the fields cannot say. Raises BadRequest."""
    if not isinstance(request.input, str) and len({type(item) for item in request.input}) > 1:
        raise BadRequest("input mixes strings, token ids and arrays; use one kind.", param="input", code="invalid_type")
    inputs = request.inputs()
    if len(inputs) > MAX_INPUTS:
        raise BadRequest(f"input must hold at most {MAX_INPUTS} items, not {len(inputs)}.", param="input")
    for i, item in enumerate(inputs):
        if not item:
            path = "input" if isinstance(request.input, str) else f"input[{i}]"
            raise BadRequest(f"{path} must not be empty.", param=path)


def needs(request: EmbeddingRequest) -> Iterator[tuple[str, str, bool]]:
    """Abilities that a target must have: (feature, field that asks for it, whether it may be dropped)."""
    if not isinstance(request.input, str) and not isinstance(request.input[0], str):
        yield "token_prompts", "input", False


def render(model: str, vectors: list[bytes], prompt_tokens: int, *, as_base64: bool) -> bytes:
    """OpenAI's answer; each vector is little-endian float32 bytes.

    Takes some 80 µs a vector, in pieces of that length, so that a thread may do it beside an event loop.
    """
    data: list[dict[str, object]] = []
    for i, vector in enumerate(vectors):
        values: object
        if as_base64:
            values = base64.b64encode(vector).decode("ascii")
        else:
            values = msgspec.Raw(encode(struct.unpack(f"<{len(vector) // 4}f", vector)))
        data.append({"object": "embedding", "index": i, "embedding": values})
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return encode({"object": "list", "data": data, "model": model, "usage": usage})
