"""The access log's way out: a reader that stops reading costs lines, never time."""

from __future__ import annotations

import os

from appliance.door.line_writer import LineWriter


def test_lines_arrive_in_order_and_close_writes_the_rest() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as stream, os.fdopen(reading, "rb") as reader:
        writer = LineWriter(stream)
        for number in range(100):
            writer(b"%d\n" % number)
        writer.close()
        stream.close()
        assert reader.read().split() == [b"%d" % n for n in range(100)]


def test_a_full_pipe_drops_lines_and_says_how_many() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as stream, os.fdopen(reading, "rb") as reader:
        writer = LineWriter(stream)
        line = b"x" * 1023 + b"\n"
        for _ in range(40):
            writer(line * 1024)  # 40 MiB against a pipe of 64 KiB that nobody reads: returns at once
        told = 0
        received = 0
        while received + told < 40 * 1024:
            data = reader.readline()
            if data == line:
                received += 1
            else:
                assert data.startswith(b'{"event":"access_lines_dropped","count":')
                told += int(data.split(b":")[-1].rstrip(b"}\n"))
        assert told >= 20 * 1024
        assert received + told == 40 * 1024
        writer.close()


def test_a_reader_that_has_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as stream:
        writer = LineWriter(stream)
        writer(b"a\n")
        writer.close()
        writer(b"b\n")
        assert not writer.alive
