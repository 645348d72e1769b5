"""How a record is written for others: one line each, whatever a caller has put into it. Pure.

A form is one entry of `forms`; JSONL and CSV are here, OCSF and CEF in files of their own.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import msgspec

from appliance.records.export.cef import cef
from appliance.records.export.ocsf import ocsf
from appliance.records.export.source import Record, RecordedEvent
from appliance.records.rows import COLUMNS, RecordedExchange

Format = Literal["jsonl", "csv", "ocsf", "cef"]

_encode = msgspec.json.Encoder().encode
# Everything else that a terminal or a reader of lines could take for more than a letter is escaped by JSON itself.
_CONTROLS = re.compile(rb"\x7f|\xc2[\x80-\x9f]|\xe2\x80[\xa8-\xae]|\xe2\x81[\xa6-\xa9]")


class Form(msgspec.Struct, frozen=True):
    """head: what comes before the first record. line: a record, with its line end."""

    content_type: str
    suffix: str
    head: bytes
    line: Callable[[Record], bytes]


def json_line(value: Any) -> bytes:
    """JSON on one line that shows no control, direction or separator character as itself."""
    text = _encode(value)
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0].decode()):04x}".encode(), text) + b"\n"


def jsonl(record: Record) -> bytes:
    """{"seq", "type": "exchange" | "event", …}: an exchange with the fields of its row, an event with its body."""
    if isinstance(record, RecordedExchange):
        fields = msgspec.to_builtins(record)
        return json_line({"seq": fields.pop("seq"), "type": "exchange", **fields})
    return json_line({"seq": record.seq, "type": "event", "kind": record.kind, "at": record.at, "body": record.body})


CSV_COLUMNS = ("seq", "type", "time", *(name for name in COLUMNS if name not in ("seq", "started_at")), "body")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def csv_line(record: Record) -> bytes:
    """A row of `CSV_COLUMNS` (RFC 4180). Texts that a spreadsheet would take for a formula begin with an apostrophe."""
    fields: dict[str, Any] = {"seq": record.seq}
    if isinstance(record, RecordedEvent):
        body = _encode(record.body).decode()
        fields |= {"type": "event", "time": utc(record.at), "kind": record.kind, "body": body}
    else:
        fields |= msgspec.to_builtins(record)
        fields |= {"type": "exchange", "time": utc(record.started_at)}
        for name in ("finish_reasons", "attempts", "tags", "charges"):
            fields[name] = _encode(fields[name]).decode()
    return _csv([_cell(fields.get(name)) for name in CSV_COLUMNS])


def _cell(value: Any) -> str | int | float:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return value
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in value)
    return f"'{text}" if value.lstrip(" ").startswith(_FORMULA) else text


def _csv(cells: Any) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow(cells)
    return out.getvalue().encode("utf-8", "replace")


def utc(moment: float) -> str:
    """RFC 3339 with milliseconds."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


FORMATS: tuple[Format, ...] = get_args(Format)


def forms(version: str) -> dict[Format, Form]:
    """Every form. version: the gateway's own, which OCSF and CEF name."""
    return {
        "jsonl": Form("application/x-ndjson", "jsonl", b"", jsonl),
        "csv": Form("text/csv; charset=utf-8; header=present", "csv", _csv(CSV_COLUMNS), csv_line),
        "ocsf": Form("application/x-ndjson", "ocsf.jsonl", b"", lambda record: json_line(ocsf(record, version))),
        "cef": Form("text/plain; charset=utf-8", "cef", b"", lambda record: cef_line(record, version)),
    }


def cef_line(record: Record, version: str) -> bytes:
    """CEF in UTF-8, with its line end."""
    return cef(record, version).encode("utf-8", "replace") + b"\n"
