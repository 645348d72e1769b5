"""The process's own log: one event, one line, no credential in it – whoever wrote it and however.

Everything that Python has for telling of trouble ends here: loggers of all libraries, warnings, the event loop, and
exceptions that nobody caught. The formatter redacts, so that no logger can get around it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from appliance.redact import REDACTED, SENSITIVE, Secrets

Format = Literal["json", "text"]
Redact = Callable[[str], str]

MAX_TEXT = 16 * 1024
MAX_EXCEPTION = 64 * 1024
"""Characters of one text in a line; what is longer is cut, after it was redacted."""
_MAX_ITEMS = 64
_MAX_DEPTH = 4
_OWN = frozenset({*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"})
_RESERVED = frozenset({"time", "level", "logger", "event", "exception", "stack", "thread"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
QUIET = ("alembic.runtime.plugins", "opentelemetry")
"""Loggers that say less than they would like to: what matters of theirs is told by us."""


def fields(record: logging.LogRecord, redact: Redact) -> dict[str, Any]:
    """What a record says, redacted: plain values that JSON has."""
    line: dict[str, Any] = {
        "time": round(record.created, 3),
        "level": record.levelname.lower(),
        "logger": _cut(redact(record.name), MAX_TEXT),
        "event": _cut(redact(_message(record)), MAX_TEXT),
    }
    for name, value in record.__dict__.items():
        if name not in _OWN:
            # A field must not pass itself off as one of ours.
            line[f"{name}_" if name in _RESERVED else redact(name)] = _plain(name, value, redact)
    if record.exc_info and record.exc_info[1] is not None:
        line["exception"] = _middle_out(redact(_traceback(record.exc_info)))
    elif record.exc_text:
        line["exception"] = _middle_out(redact(record.exc_text))
    if record.stack_info:
        line["stack"] = _middle_out(redact(record.stack_info))
    if record.thread != threading.main_thread().ident:
        line["thread"] = redact(str(record.threadName))
    return line


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage().rstrip("\r\n")
    except Exception:  # noqa: BLE001 - a log line with wrong arguments must neither be lost nor break its writer
        return f"{record.msg!s} (its arguments do not fit)"


def _traceback(info: tuple[Any, Any, Any]) -> str:
    try:
        return "".join(traceback.format_exception(*info)).rstrip("\n")
    except Exception:  # noqa: BLE001 - an exception whose own text cannot be made
        return f"{info[0].__name__} (its text cannot be made)"


def _plain(name: str, value: Any, redact: Redact, depth: int = 0) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value if not isinstance(value, int) or abs(value) < 2**63 else str(value)[:64]
    if SENSITIVE.search(name):
        return REDACTED
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return _cut(redact(value), MAX_TEXT)
    if depth < _MAX_DEPTH and isinstance(value, Mapping):
        items = list(value.items())[:_MAX_ITEMS]
        return {redact(str(key)): _plain(str(key), member, redact, depth + 1) for key, member in items}
    if depth < _MAX_DEPTH and isinstance(value, (list, tuple, set, frozenset)):
        return [_plain("", member, redact, depth + 1) for member in list(value)[:_MAX_ITEMS]]
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - as above
        text = f"<{type(value).__name__}>"
    return _cut(redact(text), MAX_TEXT)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _middle_out(text: str) -> str:
    """Where an exception began and what it was stand at its two ends."""
    half = MAX_EXCEPTION // 2
    return text if len(text) <= MAX_EXCEPTION else f"{text[:half]}…{text[-half:]}"


class JsonLines(logging.Formatter):
    """One JSON object a line, ASCII only."""

    def __init__(self, redact: Redact) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(fields(record, self._redact), ensure_ascii=True).replace("\x7f", "\\u007f")


class TextLines(logging.Formatter):
    """For people at a terminal: time, level, logger, event, then the fields; one line as well."""

    def __init__(self, redact: Redact) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        line = fields(record, self._redact)
        at = datetime.fromtimestamp(line.pop("time"), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        level, logger, event = line.pop("level"), line.pop("logger"), line.pop("event")
        parts = [at, level.upper().ljust(7), logger, event]
        parts += [f"{name}={_word(value)}" for name, value in line.items()]
        return _CONTROL.sub(_escape, " ".join(parts))


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return json.dumps(text, ensure_ascii=False) if " " in text or "=" in text or '"' in text else text


def _escape(match: re.Match[str]) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(match[0], f"\\u{ord(match[0]):04x}")


FORMATS: dict[Format, Callable[[Redact], logging.Formatter]] = {"json": JsonLines, "text": TextLines}


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to a stream. What cannot be written breaks nobody; behind the first line that can stands how many could
    not, of which the stream may have kept and written some."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._failed = 0

    def emit(self, record: logging.LogRecord) -> None:
        failed = self._failed
        super().emit(record)
        if failed and self._failed == failed:
            told = {"name": "outpost.telemetry", "levelno": logging.WARNING, "levelname": "WARNING"}
            super().emit(logging.makeLogRecord({**told, "msg": "log_lines_failed", "count": failed}))
            if self._failed == failed:
                self._failed = 0

    def handleError(self, record: logging.LogRecord) -> None:
        self._failed += 1


@contextlib.contextmanager
def installed(level: str, format: Format, secrets: Secrets, stream: TextIO) -> Iterator[None]:
    """Send everything that the process tells to `stream`; at the end, as it was before."""
    undo = install(level, format, secrets, stream)
    try:
        yield
    finally:
        undo()


def install(level: str, format: Format, secrets: Secrets, stream: TextIO) -> Callable[[], None]:
    """Send everything that the process tells to `stream`, and nothing anywhere else. Gives what undoes it."""
    root = logging.getLogger()
    before, level_before = list(root.handlers), root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    handler = _Handler(stream)
    handler.setFormatter(FORMATS[format](secrets.redact))
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    quiet = {name: logging.getLogger(name).level for name in QUIET}
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL if name == "opentelemetry" else logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook, threading.excepthook, sys.unraisablehook = _uncaught, _uncaught_in_thread, _unraisable

    def undo() -> None:
        sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
        logging.captureWarnings(False)
        for name, was in quiet.items():
            logging.getLogger(name).setLevel(was)
        root.handlers[:] = before
        root.setLevel(level_before)

    return undo


def _uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("outpost").critical("uncaught_exception", exc_info=(kind, error, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is None or issubclass(args.exc_type, SystemExit):
        return
    name = args.thread.name if args.thread is not None else "unknown"
    logging.getLogger("outpost").critical(
        "uncaught_exception_in_thread",
        exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
        extra={"in_thread": name},
    )


def _unraisable(args: Any) -> None:
    # Not what `object` is: its representation may be anything.
    logging.getLogger("outpost").error(
        "unraisable_exception",
        exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
        extra={"reason": args.err_msg or "exception ignored"},
    )
