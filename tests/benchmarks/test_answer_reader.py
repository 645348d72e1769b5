"""The load generator must not take a cut or shortened answer for a complete one."""

from __future__ import annotations

import re

import pytest

from benchmarks import mock_upstream
from benchmarks.wire import AnswerReader, BrokenAnswer

PIECE = re.compile(b" tok")
STREAM = mock_upstream.burst("mock-burst", 5, True)
WHOLE = mock_upstream.whole("mock-burst", 7)


def read(*parts: bytes) -> AnswerReader:
    reader = AnswerReader(PIECE)
    for part in parts:
        reader.feed(part)
    return reader


def test_stream_cut_in_two_at_every_byte() -> None:
    for cut in range(1, len(STREAM)):
        reader = read(STREAM[:cut], STREAM[cut:])
        assert reader.complete
        assert reader.done
        assert (reader.status, reader.pieces, reader.completion_tokens, reader.prompt_tokens) == (200, 5, 5, 24)


@pytest.mark.parametrize(("answer", "pieces"), [(STREAM, 5), (WHOLE, 7)])
def test_answer_fed_byte_by_byte(answer: bytes, pieces: int) -> None:
    reader = AnswerReader(PIECE)
    seen = sum(reader.feed(bytes([byte])) for byte in answer)
    assert seen == reader.pieces == pieces
    assert reader.complete


@pytest.mark.parametrize("answer", [STREAM, WHOLE])
def test_no_beginning_of_an_answer_is_complete(answer: bytes) -> None:
    for end in range(len(answer)):
        assert not read(answer[:end]).complete


def test_stream_without_its_terminator_is_not_done() -> None:
    terminator = b"e\r\ndata: [DONE]\n\n\r\n"
    assert terminator in STREAM
    reader = read(STREAM.replace(terminator, b""))
    assert reader.complete
    assert not reader.done


def test_answer_without_length_ends_with_the_connection() -> None:
    reader = read(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n", b" tok tok")
    assert not reader.complete
    reader.end_of_file()
    assert reader.complete
    assert reader.pieces == 2


@pytest.mark.parametrize(
    "parts",
    [
        (b"HTTP/2 200\r\n\r\n",),
        (WHOLE, b"HTTP/1.1 200 OK\r\n"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",),
    ],
)
def test_nonsense_is_named(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(BrokenAnswer):
        read(*parts)
