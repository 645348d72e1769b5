"""A record as an OCSF event of the class API Activity (6003), schema 1.5.0. Pure.

Source: schema.ocsf.io, class api_activity with the objects metadata, product, actor, user, api, request, response,
service and network_endpoint. What the class has no place for stands in `unmapped`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.records.export.source import Record, RecordedEvent
from appliance.records.rows import RecordedExchange, tries

OCSF_VERSION = "1.5.0"
_CLASS, _CATEGORY = 6003, 6
_ACTIVITIES = {
    "create": 1, "make": 1, "add": 1, "read": 2, "list": 2, "show": 2, "update": 3, "change": 3, "rotate": 3,
    "delete": 4, "erase": 4, "revoke": 4, "remove": 4, "end": 4,
}  # fmt: skip
_ACTIVITY_NAMES = {1: "Create", 2: "Read", 3: "Update", 4: "Delete", 99: "Other"}
_INFORMATIONAL, _LOW, _MEDIUM = 1, 2, 3
_SEVERITY_NAMES = {_INFORMATIONAL: "Informational", _LOW: "Low", _MEDIUM: "Medium"}


def ocsf(record: Record, version: str) -> dict[str, Any]:
    """The event as plain data. version: the gateway's own."""
    event = _event(record) if isinstance(record, RecordedEvent) else _exchange(record)
    event["metadata"]["product"]["version"] = version
    return event


def _exchange(row: RecordedExchange) -> dict[str, Any]:
    worked = row.outcome == "completed"
    subject = row.user_id or row.service_account_id or row.key_id
    used = {
        "kind": row.kind, "outcome": row.outcome, "target": row.target, "stream": row.stream, "team_id": row.team_id,
        "service_account_id": row.service_account_id, "tags": row.tags, "priority": row.priority,
        "finish_reasons": row.finish_reasons, "attempts": len(tries(row)), "prompt_tokens": row.prompt_tokens,
        "cached_tokens": row.cached_tokens, "completion_tokens": row.completion_tokens,
        "reasoning_tokens": row.reasoning_tokens, "usage_source": row.usage_source, "cost_nanousd": row.cost_nanousd,
        "content_digest": row.content_digest,
    }  # fmt: skip
    response = {"code": row.status, **({"error": row.error_code} if row.error_code else {})}
    address = {"ip": row.client} if row.client and row.client != "unix" else {"name": row.client or "unknown"}
    return {
        **_head(1, _INFORMATIONAL if worked else _LOW, row.seq, row.started_at, row.id or "unknown"),
        "status_id": 1 if worked else 2,
        "status": "Success" if worked else "Failure",
        "status_code": str(row.status),
        **({"status_detail": row.error_code} if row.error_code else {}),
        "duration": round(row.duration_s * 1000),
        "actor": {"user": _user(subject, row.key_name, row.organization_id)},
        "api": {
            "operation": row.kind or "unknown",
            "request": {"uid": row.id or "unknown"},
            "response": response,
            "service": {"name": row.route or "unknown"},
        },
        "src_endpoint": address,
        "unmapped": {name: value for name, value in used.items() if value is not None},
    }


def _event(event: RecordedEvent) -> dict[str, Any]:
    actor = event.body.get("actor")
    who: dict[str, Any] = actor if isinstance(actor, dict) else {}
    activity = _ACTIVITIES.get(event.kind.rpartition(".")[2], 99)
    severity = _MEDIUM if activity == 4 else _INFORMATIONAL if event.kind.startswith("admin.") else _LOW
    key = str(who.get("key") or "outpost")
    affected = event.body.get("object")
    thing = event.kind.removeprefix("admin.").partition(".")[0]
    return {
        **_head(activity, severity, event.seq, event.at, f"event-{event.seq}"),
        "status_id": 1,
        "status": "Success",
        "actor": {"user": {**_user(key, key, who.get("organization")), **_type(who.get("role"))}},
        "api": {"operation": event.kind, "request": {"uid": f"event-{event.seq}"}},
        "src_endpoint": {"name": "outpost"},
        **({} if affected in (None, "") else {"resources": [{"uid": str(affected), "type": thing}]}),
        "unmapped": {"body": msgspec.json.encode(event.body).decode()},
    }


def _head(activity: int, severity: int, seq: int, moment: float, uid: str) -> dict[str, Any]:
    return {
        "class_uid": _CLASS,
        "class_name": "API Activity",
        "category_uid": _CATEGORY,
        "category_name": "Application Activity",
        "activity_id": activity,
        "activity_name": _ACTIVITY_NAMES[activity],
        "type_uid": _CLASS * 100 + activity,
        "type_name": f"API Activity: {_ACTIVITY_NAMES[activity]}",
        "severity_id": severity,
        "severity": _SEVERITY_NAMES[severity],
        "time": int(moment * 1000),
        "metadata": {
            "version": OCSF_VERSION,
            "product": {"name": "Outpost", "vendor_name": "Outpost"},
            "uid": uid,
            "sequence": seq,
        },
    }


def _user(uid: str | None, name: str | None, organization: str | None) -> dict[str, Any]:
    user: dict[str, Any] = {"uid": uid or "unknown", "name": name or uid or "unknown"}
    return {**user, "org": {"uid": organization}} if organization else user


def _type(role: Any) -> dict[str, Any]:
    """An administrator where the role is one."""
    return {"type_id": 2, "type": "Admin"} if role in ("owner", "admin", "operator") else {}
