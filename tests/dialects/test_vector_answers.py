"""Embeddings answers of OpenAI's dialect: one vector an input, or a failure of the target."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import errors
from appliance.dialects.embeddings import EmbeddingRequest
from appliance.dialects.tally import Tally, count_unreported
from appliance.dialects.vector_answers import read_whole

TWO = EmbeddingRequest(model="m", input=["a", "b"])
TWO_PACKED = EmbeddingRequest(model="m", input=["a", "b"], encoding_format="base64")


def packed(*values: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def answer(*embeddings: Any, places: tuple[int | None, ...] = (0, 1, 2, 3), **more: Any) -> bytes:
    data = [{"index": place, "embedding": each} for place, each in zip(places, embeddings, strict=False)]
    return json.dumps(
        {"object": "list", "data": data, "usage": {"prompt_tokens": 2, "total_tokens": 2}, **more}
    ).encode()


@pytest.mark.parametrize(
    ("body", "request_"),
    [
        (answer([0.1, -2e-8], [1, 0.0]), TWO),
        (answer([1], [2]), TWO),
        (answer([1], [2], places=(1, 0)), TWO),
        (answer([1], [2], places=(None, None)), TWO),
        (answer([1], [2], error=None), TWO),
        (answer([0.1, 0.2], [0.1, 0.2]), TWO_PACKED),
        (answer(packed(1), packed(2)), TWO_PACKED),
        (answer(packed(1, 2), packed(3, 4)), TWO_PACKED),
        (answer(packed(1, 2, 3), packed(3, 4, 5)), TWO_PACKED),
        (answer([1.0]), EmbeddingRequest(model="m", input=[1, 2, 3])),
        (answer([1.0], [2.0]), EmbeddingRequest(model="m", input=[[1, 2], [3]])),
    ],
)
def test_one_vector_an_input(body: bytes, request_: EmbeddingRequest) -> None:
    tally = Tally()
    read_whole(body, tally, "up", request_)
    assert (tally.prompt_tokens, tally.completion_tokens, tally.source) == (2, 0, "reported")


@pytest.mark.parametrize(
    ("body", "request_"),
    [
        (answer(), TWO),
        (answer([1]), TWO),
        (answer([1], [2], [3]), TWO),
        (answer([1], [2], places=(0, 0)), TWO),
        (answer([1], [2], places=(1, 2)), TWO),
        (answer([1], [2], places=(None, 0)), TWO),
        (answer([], []), TWO),
        (answer(None, None), TWO),
        (answer([None], [None]), TWO),
        (answer(["1"], ["2"]), TWO),
        (answer([True], [True]), TWO),
        (answer([[1]], [[2]]), TWO),
        (answer([1], [2, 3]), TWO),
        (answer(1, 2), TWO),
        (answer({"0": 1}, {"0": 1}), TWO),
        (answer(packed(1), packed(2)), TWO),
        (answer("", ""), TWO_PACKED),
        (answer("AAAA", "AAAA"), TWO_PACKED),
        (answer("****", "****"), TWO_PACKED),
        (answer("=AAAAAA=", "=AAAAAA="), TWO_PACKED),
        (answer("AAAAA", "AAAAA"), TWO_PACKED),
        (answer("AA==AA==", "AA==AA=="), TWO_PACKED),
        (answer("====", "===="), TWO_PACKED),
        (answer(packed(1), packed(2, 3)), TWO_PACKED),
        (answer(packed(1), [1.0]), TWO_PACKED),
        (answer([1.0], packed(1)), TWO_PACKED),
        (answer(packed(1), "Ü"), TWO_PACKED),
        (answer([1], [2]).replace(b'"object"', b'"\xff"'), TWO),
        (b"", TWO),
        (b"<html>", TWO),
        (b"[]", TWO),
        (b"{}", TWO),
        (b'{"data": 1}', TWO),
        (b'{"data": [1, 2]}', TWO),
        (b'{"data": [{"index": 0}, {"index": 1}]}', TWO),
        (b'{"error": {"message": "m"}}', TWO),
    ],
)
def test_what_is_no_vector_an_input_is_a_failure(body: bytes, request_: EmbeddingRequest) -> None:
    with pytest.raises(errors.UpstreamFailed):
        read_whole(body, Tally(), "up", request_)


def test_an_error_in_place_of_vectors_keeps_its_kind() -> None:
    with pytest.raises(errors.TargetLimited):
        read_whole(b'{"error": {"code": 429}}', Tally(), "up", TWO)


@pytest.mark.parametrize("usage", [None, {}, [], "x", {"prompt_tokens": 0}, {"prompt_tokens": "2"}])
def test_counts_that_say_nothing_are_none(usage: Any) -> None:
    tally = Tally()
    body = answer([1], [2], usage=usage)
    read_whole(body, tally, "up", TWO)
    count_unreported(tally, body, says=False)
    assert (tally.prompt_tokens, tally.completion_tokens, tally.source) == (0, 0, "estimated")


numbers = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
values = st.one_of(numbers, st.none(), st.booleans(), st.text(max_size=2), st.lists(numbers, max_size=1))


@given(st.lists(st.lists(values, max_size=3), min_size=2, max_size=2), st.sampled_from([None, 1]))
def test_the_look_from_afar_sees_what_reading_would(vectors: list[list[Any]], indent: int | None) -> None:
    sound = 0 < len(vectors[0]) == len(vectors[1])
    sound = sound and all(type(each) in (int, float) for vector in vectors for each in vector)
    data = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    body = json.dumps({"data": data}, indent=indent).encode()
    if sound:
        read_whole(body, Tally(), "up", TWO)
    else:
        with pytest.raises(errors.UpstreamFailed):
            read_whole(body, Tally(), "up", TWO)
