"""The rotated log: bounded, complete up to its bound, and never in the engine's way."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes.supervisor.logs import TAIL_LINE_CHARACTERS, TAIL_LINES, RotatedLog


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=300), max_size=30), st.integers(1, 200), st.integers(0, 3))
def test_what_is_kept_is_the_end_of_what_was_written(chunks: list[bytes], max_bytes: int, backups: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "engine.log")
        log = RotatedLog(path, max_bytes=max_bytes, backups=backups)
        for chunk in chunks:
            log.write(chunk)
        log.close()
        names = [path, *(path.with_name(f"engine.log.{n}") for n in range(1, backups + 1))]
        files = [name.read_bytes() for name in names if name.exists()]
        assert len(list(Path(directory).iterdir())) == len(files)
        assert all(len(file) <= max_bytes for file in files)
        written = b"".join(chunks)
        kept = b"".join(reversed(files))
        assert written.endswith(kept)
        assert len(kept) >= min(len(written), max_bytes * backups + 1)


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"])), st.data())
def test_the_tail_does_not_depend_on_how_the_output_was_cut(line: str, data: st.DataObject) -> None:
    text = "\n".join(f"{number} {line[:50]}" for number in range(30)).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    with tempfile.TemporaryDirectory() as directory:
        whole, pieces = RotatedLog(Path(directory, "a")), RotatedLog(Path(directory, "b"))
        whole.write(text)
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            pieces.write(text[start:end])
        assert pieces.tail() == whole.tail()
        assert len(whole.tail().split("\n")) == TAIL_LINES
        assert whole.tail().split("\n")[-1].startswith("29 ")
        whole.close()
        pieces.close()


def test_a_tail_is_fit_to_be_shown(tmp_path: Path) -> None:
    log = RotatedLog(tmp_path / "log")
    log.write(b"10 %\r50 %\r100 %\n\x1b[31mred\x1b[0m \xff\n\n" + b"y" * 2000 + b"\nrest")
    log.note("a note of ours")
    log.close()
    lines = log.tail().split("\n")
    assert lines[0] == "100 %"
    assert "\x1b" not in lines[1]
    assert len(lines[2]) == TAIL_LINE_CHARACTERS
    assert lines[3:] == ["rest"]
    assert log.path.read_bytes().endswith(b"rest\na note of ours\n")


def test_appends_to_what_is_there(tmp_path: Path) -> None:
    for text in (b"first\n", b"second\n"):
        log = RotatedLog(tmp_path / "log", max_bytes=8)
        log.write(text)
        log.close()
    assert (tmp_path / "log").read_bytes() == b"cond\n"
    assert (tmp_path / "log.1").read_bytes() == b"first\nse"


def test_a_disk_that_refuses_is_told_once_and_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "logs").write_text("in the way")
    log = RotatedLog(tmp_path / "logs" / "log")
    with caplog.at_level(logging.WARNING):
        log.write(b"one\n")
        log.write(b"two\n")
    assert len(caplog.records) == 1
    assert (log.dropped_bytes, log.tail()) == (8, "one\ntwo")
    (tmp_path / "logs").unlink()
    log.write(b"three\n")
    log.close()
    assert log.path.read_bytes() == b"three\n"
