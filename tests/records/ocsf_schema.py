"""What OCSF 1.5.0 asks of an event of the class API Activity (6003), as a JSON Schema.

Written from the standard's definitions: api_activity (extends application, base_event) with its required attributes,
and the objects that we use with their required attributes, constraints (at_least_one) and enumerations.
"""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}


def one_of(*names: str) -> list[dict[str, Any]]:
    """A constraint at_least_one."""
    return [{"required": [name]} for name in names]


USER = {
    "type": "object",
    "properties": {
        "uid": TEXT,
        "name": TEXT,
        "type": TEXT,
        "type_id": {"enum": [0, 1, 2, 3, 4, 99]},
        "org": {"type": "object", "properties": {"uid": TEXT, "name": TEXT}, "anyOf": one_of("uid", "name")},
    },
    "anyOf": one_of("account", "name", "uid"),
    "additionalProperties": False,
}
ENDPOINT = {
    "type": "object",
    "properties": {"ip": {"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}, "name": TEXT},
    "anyOf": one_of("ip", "uid", "name", "hostname", "svc_name", "instance_uid", "interface_uid", "interface_name"),
    "additionalProperties": False,
}
API = {
    "type": "object",
    "required": ["operation"],
    "properties": {
        "operation": TEXT,
        "request": {"type": "object", "required": ["uid"], "properties": {"uid": TEXT}, "additionalProperties": False},
        "response": {
            "type": "object",
            "properties": {"code": {"type": "integer"}, "error": TEXT, "message": TEXT, "error_message": TEXT},
            "anyOf": one_of("code", "error", "error_message", "message"),
            "additionalProperties": False,
        },
        "service": {"type": "object", "properties": {"name": TEXT, "uid": TEXT}, "anyOf": one_of("name", "uid")},
    },
    "additionalProperties": False,
}
METADATA = {
    "type": "object",
    "required": ["product", "version"],
    "properties": {
        "version": {"const": "1.5.0"},
        "product": {
            "type": "object",
            "required": ["vendor_name"],
            "properties": {"name": TEXT, "vendor_name": TEXT, "version": TEXT},
            "anyOf": one_of("name", "uid"),
            "additionalProperties": False,
        },
        "uid": TEXT,
        "sequence": COUNT,
    },
    "additionalProperties": False,
}
ACTIVITIES = {1: "Create", 2: "Read", 3: "Update", 4: "Delete", 99: "Other"}

API_ACTIVITY: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": [
        "activity_id", "actor", "api", "category_uid", "class_uid", "metadata", "severity_id", "src_endpoint", "time",
        "type_uid",
    ],
    "properties": {
        "activity_id": {"enum": list(ACTIVITIES)},
        "activity_name": TEXT,
        "actor": {"type": "object", "properties": {"user": USER}, "required": ["user"], "additionalProperties": False},
        "api": API,
        "category_uid": {"const": 6},
        "category_name": {"const": "Application Activity"},
        "class_uid": {"const": 6003},
        "class_name": {"const": "API Activity"},
        "duration": COUNT,
        "metadata": METADATA,
        "resources": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {"uid": TEXT, "name": TEXT, "type": TEXT},
                "anyOf": one_of("uid", "name"),
                "additionalProperties": False,
            },
        },
        "severity": {"enum": ["Informational", "Low", "Medium"]},
        "severity_id": {"enum": [0, 1, 2, 3, 4, 5, 6, 99]},
        "src_endpoint": ENDPOINT,
        "status": {"enum": ["Success", "Failure"]},
        "status_code": TEXT,
        "status_detail": TEXT,
        "status_id": {"enum": [0, 1, 2, 99]},
        "time": COUNT,
        "type_name": TEXT,
        "type_uid": {"enum": [600300 + activity for activity in ACTIVITIES]},
        "unmapped": {"type": "object"},
    },
    "additionalProperties": False,
    "allOf": [
        {
            "if": {"properties": {"activity_id": {"const": activity}}},
            "then": {
                "properties": {
                    "type_uid": {"const": 600300 + activity},
                    "activity_name": {"const": name},
                    "type_name": {"const": f"API Activity: {name}"},
                }
            },
        }
        for activity, name in ACTIVITIES.items()
    ],
}  # fmt: skip
