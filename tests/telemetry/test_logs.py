"""One event, one line; and no credential, whichever way it tries to get out."""

from __future__ import annotations

import errno
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.identity.keys import new_key
from appliance.redact import REDACTED, Secrets
from appliance.telemetry.logs import MAX_EXCEPTION, MAX_TEXT, Format, JsonLines, TextLines, install

ROOT = Path(__file__).parents[2]
KEY = new_key(lambda count: bytes(range(count)))
SECRET = "wörd\"with\\odd'things"
HOSTILE = st.text(st.characters() | st.sampled_from("\r\n\x00\x1b\x7f\x85\u2028\u2029\u202e\ud800"), max_size=60)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What is written while the log is installed."""
    secrets, out = Secrets(), io.StringIO()
    secrets.add(SECRET)
    undo = install("debug", "json", secrets, out)
    yield out
    undo()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def record(message: object, args: tuple[object, ...] = (), **extra: object) -> logging.LogRecord:
    made = logging.getLogger("outpost.test").makeRecord(
        "outpost.test", logging.INFO, "file.py", 1, message, args, None, extra=extra
    )
    made.created = 1_700_000_000.25
    return made


@given(HOSTILE, HOSTILE, st.dictionaries(st.text("abcxyz_", min_size=1, max_size=8), HOSTILE, max_size=3))
@settings(max_examples=300)
@pytest.mark.parametrize("formatter", [JsonLines(str), TextLines(str)])
def test_whatever_is_told_is_one_line_without_control_characters(
    formatter: logging.Formatter, event: str, argument: str, extra: dict[str, str]
) -> None:
    made = record("%s: %s", (event, argument), **extra)
    line = formatter.format(made)
    assert len(line.splitlines()) == 1
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 or char in "\u2028\u2029\u202e" for char in line)
    line.encode()
    if isinstance(formatter, JsonLines):
        told = json.loads(line)
        assert told["event"] == f"{event}: {argument}".rstrip("\r\n")
        assert {name: told[name] for name in extra} == extra


def test_the_form_of_a_line() -> None:
    made = record("records_write_failed", rows=3, cause="disk full", ratio=float("nan"), parts=[1, {"a": None}])
    assert json.loads(JsonLines(str).format(made)) == {
        "time": 1_700_000_000.25,
        "level": "info",
        "logger": "outpost.test",
        "event": "records_write_failed",
        "rows": 3,
        "cause": "disk full",
        "ratio": "nan",
        "parts": [1, {"a": None}],
    }
    assert TextLines(str).format(made) == (
        "2023-11-14T22:13:20.250Z INFO    outpost.test records_write_failed rows=3 "
        'cause="disk full" ratio=nan parts="[1, {\\"a\\": null}]"'
    )


def test_a_field_cannot_pass_itself_off_as_one_of_ours() -> None:
    told = json.loads(JsonLines(str).format(record("x", level="error", event="all is well", time=0)))
    assert (told["level"], told["event"], told["time"]) == ("info", "x", 1_700_000_000.25)
    assert told["event_"] == "all is well"


def test_wrong_arguments_lose_no_line_and_unprintable_objects_neither() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    told = json.loads(JsonLines(str).format(record("%d things", ("x",), odd=Odd())))
    assert told["event"].startswith("%d things")
    assert told["odd"] == "<Odd>"


def test_long_texts_are_cut_after_they_were_redacted(stream: io.StringIO) -> None:
    filler = "x " * (MAX_TEXT // 2 - 10)
    logging.getLogger("outpost").warning("%s%s", filler, KEY)
    try:
        raise ValueError("first " + "y " * MAX_EXCEPTION + KEY + " last")
    except ValueError:
        logging.getLogger("outpost").exception("deep")
    one, two = lines(stream)
    assert len(one["event"]) <= MAX_TEXT
    assert len(two["exception"]) <= MAX_EXCEPTION + 1
    assert two["exception"].startswith("Traceback")
    assert two["exception"].endswith(f"{REDACTED} last")
    assert KEY[:12] not in stream.getvalue()


@pytest.mark.parametrize("canary", [KEY, SECRET])
def test_no_way_of_telling_gets_a_credential_out(stream: io.StringIO, canary: str) -> None:
    logger = logging.getLogger("outpost.test")
    logger.info(canary)
    logger.info("%s and %r", canary, canary)
    logger.info("in a structure", extra={"where": {"deep": [canary, {canary: canary}]}, "object": Path(canary)})
    logger.info("named", extra={"api_key": "x", "Authorization": "Basic abc", "session_token": "t"})
    try:
        try:
            raise KeyError(canary)
        except KeyError as error:
            error.add_note(f"while asking with {canary}")
            raise RuntimeError(f"again {canary!r}") from error
    except RuntimeError:
        logger.exception("failed with %s", canary)
        logger.error("group", exc_info=ExceptionGroup("both", [ValueError(canary), TypeError(canary)]))
    logging.getLogger(f"odd.{canary}").error("x", stack_info=True)
    logger.info("the name of a field", extra={canary: 1})
    text = stream.getvalue()
    for form in (canary, json.dumps(canary)[1:-1], json.dumps(json.dumps(canary)[1:-1])[1:-1], repr(canary)[1:-1]):
        assert form not in text
    told = lines(stream)
    assert len(told) == 8
    assert (told[3]["api_key"], told[3]["Authorization"], told[3]["session_token"]) == (REDACTED,) * 3
    assert "direct cause" in told[4]["exception"]


@given(st.binary(min_size=32, max_size=32), st.text(max_size=20), st.text(max_size=20))
def test_a_key_in_any_company_does_not_reach_the_sink(raw: bytes, before: str, after: str) -> None:
    key, out, secrets = new_key(lambda _: raw), io.StringIO(), Secrets()
    undo = install("info", "json", secrets, out)
    try:
        logging.getLogger("x").warning("%s", before + key + after, extra={"field": {before: before + key + after}})
        logging.getLogger("x").warning(before + key + after)
    finally:
        undo()
    assert key not in out.getvalue()
    assert len(out.getvalue().splitlines()) == 2


SCRIPT = """
import asyncio, logging, sys, threading, warnings
from appliance.telemetry.logs import install
from appliance.redact import Secrets
key = sys.argv[1]
secrets = Secrets()
secrets.add("hunter2-hunter2")
install("debug", sys.argv[2], secrets, sys.stderr)

class Odd:
    def __init__(self, text): self.text = text
    def __repr__(self): return self.text
    def __del__(self): raise ValueError(self.text)

async def lose():
    raise ValueError(f"lost {key} hunter2-hunter2\\nsecond line")

async def main():
    loop = asyncio.get_running_loop()
    task = loop.create_task(lose(), name=f"task {key}")
    await asyncio.wait([task])
    del task
    loop.call_soon(lambda: 1 / 0)
    loop.call_exception_handler({"message": f"odd {key}", "where": Odd(key)})
    await asyncio.sleep(0)

def threaded():
    raise ValueError(f"in a thread {key}")

warnings.warn(f"careful with {key}\\n\\x1b[31m hunter2-hunter2")
thread = threading.Thread(target=threaded, name=f"thread {key}")
thread.start()
thread.join()
asyncio.run(main())
logging.getLogger("aiohttp.server").error("Error handling request from %s", key)
logging.getLogger("late").error("bad arguments %d", key)
raise RuntimeError(f"the end {key}") from ValueError("hunter2-hunter2")
"""


@pytest.mark.parametrize("format", ["json", "text"])
def test_a_whole_process_in_trouble(format: Format) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, KEY, format], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert KEY not in ran.stderr
    assert "hunter2" not in ran.stderr
    assert "\x1b" not in ran.stderr
    told = ran.stderr.splitlines()
    if format == "json":
        events = [json.loads(line)["event"] for line in told]
        assert [event for event in events if event.startswith("uncaught_exception")] == [
            "uncaught_exception_in_thread",
            "uncaught_exception",
        ]
        assert sum(event == "unraisable_exception" for event in events) == 1
        assert any("Task exception was never retrieved" in event for event in events)
        assert any("careful with" in event for event in events)
        assert any("bad arguments" in event for event in events)
    assert sum("the end" in line for line in told) == 1
    assert REDACTED in ran.stderr


def test_undone_everything_is_as_before() -> None:
    root, hooks = logging.getLogger(), (sys.excepthook, sys.unraisablehook)
    before = (list(root.handlers), root.level)
    install("error", "text", Secrets(), io.StringIO())()
    assert (list(root.handlers), root.level) == before
    assert (sys.excepthook, sys.unraisablehook) == hooks


class Full(io.StringIO):
    """A stream whose disk has room for so many lines."""

    room = 0

    def write(self, text: str) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= 1
        return super().write(text)


def test_lines_that_cannot_be_written_break_nobody_and_are_counted(capfd: pytest.CaptureFixture[str]) -> None:
    out = Full()
    logger = logging.getLogger("outpost")
    undo = install("info", "json", Secrets(), out)
    try:
        for number in range(3):
            logger.error("lost", extra={"number": number})
        out.room = 1
        logger.error("kept")  # and the line that says how many fails, too
        out.room = 9
        logger.error("kept")
        logger.error("kept")
    finally:
        undo()
    assert [(line["event"], line.get("count")) for line in lines(out)] == [
        ("kept", None), ("kept", None), ("log_lines_failed", 4), ("kept", None),
    ]  # fmt: skip
    assert capfd.readouterr() == ("", ""), "where nothing but our lines may be"


def test_a_stream_that_is_closed_breaks_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    undo = install("info", "json", Secrets(), out)
    try:
        out.close()
        logging.getLogger("outpost").error("nobody reads this")
    finally:
        undo()
    assert capfd.readouterr() == ("", "")
