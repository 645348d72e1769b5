"""A record in ArcSight's Common Event Format, CEF:0. Pure.

Source: Implementing ArcSight Common Event Format (CEF), version 26: in the head `|` and `\\` are escaped, in values
`=`, `\\` and line ends; keys are the standard's own.
"""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.records.export.source import Record, RecordedEvent
from appliance.records.rows import RecordedExchange

_MOST = 1023
"""Characters of a text value; the standard's limit for most keys."""


Parts = tuple[str, str, int, dict[str, Any]]
"""Signature id, name, severity (0 to 10) and the extension's pairs."""


def cef(record: Record, version: str) -> str:
    """One line, without its end. version: the gateway's own."""
    signature, name, severity, values = _event(record) if isinstance(record, RecordedEvent) else _exchange(record)
    return _line(version, signature, name, severity, values)


def _exchange(row: RecordedExchange) -> Parts:
    severity = 1 if row.outcome == "completed" else 4 if row.outcome == "refused" else 5
    name = f"{row.kind} {row.outcome}"
    six = ":" in row.client
    return (
        f"exchange.{row.outcome}",
        name,
        severity,
        {
            "rt": int(row.started_at * 1000),
            "externalId": row.seq,
            "src": None if six or row.client == "unix" else row.client or None,
            "c6a2": row.client if six else None,
            "c6a2Label": "Source IPv6 Address",
            "suid": row.user_id or row.service_account_id or row.key_id,
            "suser": row.key_name,
            "request": row.route,
            "act": row.kind,
            "outcome": row.outcome,
            "reason": row.error_code,
            "requestContext": row.id,
            "destinationServiceName": row.target,
            "cn1": row.prompt_tokens,
            "cn1Label": "promptTokens",
            "cn2": row.completion_tokens,
            "cn2Label": "completionTokens",
            "cn3": row.status,
            "cn3Label": "httpStatus",
            "cs1": row.organization_id,
            "cs1Label": "organization",
            "cs2": row.team_id,
            "cs2Label": "team",
            "cs3": ",".join(row.tags) or None,
            "cs3Label": "tags",
            "cs4": row.content_digest,
            "cs4Label": "contentDigest",
            "cs5": str(row.cost_nanousd),
            "cs5Label": "costNanoUsd",
            "flexNumber1": round(row.duration_s * 1000),
            "flexNumber1Label": "durationMs",
        },
    )


def _event(event: RecordedEvent) -> Parts:
    actor = event.body.get("actor")
    who: dict[str, Any] = actor if isinstance(actor, dict) else {}
    return (
        event.kind,
        event.kind.replace(".", " "),
        6 if event.kind.startswith("admin.") else 3,
        {
            "rt": int(event.at * 1000),
            "externalId": event.seq,
            "suid": who.get("key"),
            "spriv": who.get("role"),
            "act": event.kind,
            "duid": event.body.get("object"),
            "cs1": who.get("organization"),
            "cs1Label": "organization",
            "msg": msgspec.json.encode(event.body).decode(),
        },
    )


def _line(version: str, signature: str, name: str, severity: int, values: dict[str, Any]) -> str:
    head = "|".join(
        ("CEF:0", "Outpost", "Outpost", head_text(version), head_text(signature), head_text(name), str(severity))
    )
    given = {key: value for key, value in values.items() if value is not None}
    pairs = [
        f"{key}={value_text(str(value))}"
        for key, value in given.items()
        if not key.endswith("Label") or key.removesuffix("Label") in given
    ]
    return f"{head}|{' '.join(pairs)}"


def head_text(text: str) -> str:
    """A text of the head: one line, `\\` and `|` escaped."""
    return _plain(text.replace("\r", " ").replace("\n", " ")).replace("\\", "\\\\").replace("|", "\\|")


def value_text(text: str) -> str:
    """A value: `\\` and `=` escaped, line ends as `\\n` and `\\r`, other controls written out. At most 1,023 characters
    before that."""
    lines = _plain(text[:_MOST], keep="\r\n").replace("\\", "\\\\").replace("=", "\\=")
    return lines.replace("\r", "\\r").replace("\n", "\\n")


def _plain(text: str, keep: str = "") -> str:
    """Control, direction and separator characters written out."""
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode() for char in text
    )
