"""The access log's way out: a reader that stops reading costs lines, never time."""

from __future__ import annotations

import errno
import json
import os
import select
import time
from pathlib import Path

import pytest

from appliance.door.line_writer import LineWriter


def test_lines_arrive_in_order_and_close_writes_the_rest() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as stream, os.fdopen(reading, "rb") as reader:
        writer = LineWriter(stream.fileno())
        for number in range(100):
            writer(b"%d\n" % number)
        writer.close()
        stream.close()
        assert reader.read().split() == [b"%d" % n for n in range(100)]


def test_a_full_pipe_drops_lines_and_says_how_many() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as stream, os.fdopen(reading, "rb") as reader:
        writer = LineWriter(stream.fileno())
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


def test_a_reader_that_has_gone_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as stream, caplog.at_level("WARNING"):
        writer = LineWriter(stream.fileno())
        writer(b"a\n")
        writer.close()
        writer(b"b\n")
        assert not writer.alive
    assert [record.message for record in caplog.records] == ["access_log_ended"]


def until_told(caplog: pytest.LogCaptureFixture) -> None:
    end = time.monotonic() + 20
    while not caplog.records:
        assert time.monotonic() < end
        time.sleep(0.001)


LINE = b"x" * 99 + b"\n"


def test_a_disk_that_was_full_costs_lines_and_says_how_many(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    writer = LineWriter(fd)
    for _ in range(3):
        writer(LINE * 2)
    until_told(caplog)
    assert writer.alive
    with (tmp_path / "access.log").open("wb") as file:
        os.dup2(file.fileno(), fd)  # room again
    writer(LINE)
    writer(LINE)
    writer.close()
    os.close(fd)
    lines = (tmp_path / "access.log").read_bytes().splitlines(keepends=True)
    told = [json.loads(line)["count"] for line in lines if line != LINE]
    assert len(told) == 1
    assert 2 <= told[0] <= 6
    assert lines.count(LINE) + told[0] == 8
    (record,) = caplog.records
    assert (record.message, record.cause) == ("access_log_not_written", os.strerror(errno.ENOSPC))  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [2, 99, 100, 101, 997, 4097, 40_000])
def test_no_line_is_torn(size: int, caplog: pytest.LogCaptureFixture) -> None:
    reading, writing = os.pipe()
    # A pipe that does not wait takes a part of what it is given and refuses the rest.
    os.set_blocking(writing, False)
    writer = LineWriter(writing)
    line = b"x" * (size - 1) + b"\n"
    given = 200_000 // size * 2
    for _ in range(given // 2):
        writer(line * 2)
    until_told(caplog)
    received = bytearray()
    os.set_blocking(reading, False)
    while True:
        while select.select([reading], [], [], 0.05)[0]:
            received += os.read(reading, 50_000)
        lines = bytes(received).splitlines(keepends=True)
        told = sum(json.loads(each)["count"] for each in lines if each.startswith(b"{") and each.endswith(b"\n"))
        if lines.count(line) + told == given:
            break
        writer(line)  # which has behind it what was dropped
        given += 1
    writer.close()
    for end in (reading, writing):
        os.close(end)
    assert received.endswith(b"\n")
    assert all(each == line or each.startswith(b"{") for each in lines)
