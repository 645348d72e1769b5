"""The OpenAPI document, judged by JSON Schema's own validator and by the answers that it describes."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import msgspec
from jsonschema import Draft202012Validator

from appliance.door.endpoint import Endpoint, Query
from appliance.door.openapi import document
from tests.door.desk import Desk

TEXT = {"type": "string", "minLength": 1}
MEDIA = {
    "type": "object",
    "propertyNames": {"pattern": r"^[a-z]+/[a-z.+-]+$"},
    "additionalProperties": {
        "type": "object",
        "properties": {"schema": {"$ref": "#/$defs/schema"}},
        "required": ["schema"],
        "additionalProperties": False,
    },
    "minProperties": 1,
}
OPENAPI: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$defs": {
        "schema": {"$dynamicRef": "https://json-schema.org/draft/2020-12/schema"},
        "parameter": {
            "type": "object",
            "properties": {
                "name": TEXT,
                "in": {"enum": ["path", "query"]},
                "description": TEXT,
                "required": {"type": "boolean"},
                "schema": {"$ref": "#/$defs/schema"},
            },
            "required": ["name", "in", "schema"],
            "additionalProperties": False,
            "if": {"properties": {"in": {"const": "path"}}},
            "then": {"properties": {"required": {"const": True}}, "required": ["required"]},
        },
        "operation": {
            "type": "object",
            "properties": {
                "operationId": {"type": "string", "pattern": r"^[a-z][a-z0-9_]*$"},
                "summary": TEXT,
                "parameters": {"type": "array", "items": {"$ref": "#/$defs/parameter"}, "minItems": 1},
                "requestBody": {
                    "type": "object",
                    "properties": {"required": {"type": "boolean"}, "content": MEDIA},
                    "required": ["content"],
                    "additionalProperties": False,
                },
                "responses": {
                    "type": "object",
                    "propertyNames": {"pattern": "^[1-5][0-9][0-9]$"},
                    "additionalProperties": {
                        "type": "object",
                        "properties": {"description": TEXT, "content": MEDIA},
                        "required": ["description"],
                        "additionalProperties": False,
                    },
                    "minProperties": 2,
                },
                "security": {"type": "array", "maxItems": 0},
                "x-permission": TEXT,
            },
            "required": ["operationId", "summary", "responses", "x-permission"],
            "additionalProperties": False,
        },
    },
    "type": "object",
    "properties": {
        "openapi": {"pattern": r"^3\.1\.\d+$"},
        "info": {
            "type": "object",
            "properties": {"title": TEXT, "version": TEXT, "description": TEXT},
            "required": ["title", "version"],
            "additionalProperties": False,
        },
        "paths": {
            "type": "object",
            "propertyNames": {"pattern": r"^(/([\w.-]+|\{\w+\}))+$"},
            "additionalProperties": {
                "type": "object",
                "propertyNames": {"enum": ["get", "put", "post", "delete", "patch"]},
                "additionalProperties": {"$ref": "#/$defs/operation"},
            },
        },
        "components": {
            "type": "object",
            "properties": {
                "schemas": {"type": "object", "additionalProperties": {"$ref": "#/$defs/schema"}},
                "securitySchemes": {"type": "object"},
            },
            "required": ["schemas", "securitySchemes"],
            "additionalProperties": False,
        },
        "security": {"type": "array", "minItems": 1},
    },
    "required": ["openapi", "info", "paths", "components", "security"],
    "additionalProperties": False,
}
"""OpenAPI 3.1's objects as far as the document uses them; anything else in it is refused."""


async def test_the_document_is_openapi(desk: Desk) -> None:
    status, found = await desk.ask("GET", "/openapi.json", key=desk.theirs["member"])
    assert status == 200
    Draft202012Validator.check_schema(OPENAPI)
    Draft202012Validator(OPENAPI).validate(found)
    for schema in [*found["components"]["schemas"].values(), *schemas_in(found["paths"])]:
        Draft202012Validator.check_schema(schema)
    for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(found)):
        at: Any = found
        assert reference.startswith("#/")
        for piece in reference[2:].split("/"):
            at = at[piece]
    ids = [operation["operationId"] for path in found["paths"].values() for operation in path.values()]
    assert len(set(ids)) == len(ids)


async def test_it_tells_of_every_endpoint_with_its_parameters(desk: Desk) -> None:
    _, found = await desk.ask("GET", "/openapi.json")
    told = {(method.upper(), path) for path, item in found["paths"].items() for method in item}
    assert told == {(e.method, e.path) for e in desk.door.endpoints if e.path.startswith("/admin/")}
    for endpoint in desk.door.endpoints:
        if not endpoint.path.startswith("/admin/"):
            continue
        operation = found["paths"][endpoint.path][endpoint.method.lower()]
        assert operation["x-permission"] == endpoint.permission
        assert operation["summary"] != endpoint.path, f"{endpoint.path} has no summary"
        assert ("requestBody" in operation) == (endpoint.takes is not None)
        parameters = operation.get("parameters", [])
        in_path = [each["name"] for each in parameters if each["in"] == "path"]
        assert in_path == re.findall(r"{(\w+)}", endpoint.path)
        assert [each["name"] for each in parameters if each["in"] == "query"] == [q.name for q in endpoint.query]


async def test_answers_and_problems_are_what_it_says(desk: Desk) -> None:
    _, told = await desk.ask("GET", "/openapi.json")
    await desk.house.chat("local")
    made: dict[str, str] = {}
    for kind in ("organizations", "teams", "users", "service-accounts"):
        path = f"/admin/v1/{kind}"
        body = {"name": "thing"}
        judge(told, path, "post", *await desk.ask("POST", f"/{kind}", body))
        status, found = await desk.ask("GET", f"/{kind}?limit=1")
        judge(told, path, "get", status, found)
        made[kind] = found["data"][0]["id"]
        judge(told, path + "/{id}", "get", *await desk.ask("GET", f"/{kind}/thing"))
        judge(told, path + "/{id}", "patch", *await desk.ask("PATCH", f"/{kind}/thing", {"disabled": True}))
        judge(told, path + "/{id}", "patch", *await desk.ask("PATCH", f"/{kind}/thing", {"disabled": 5}))
        judge(told, path + "/{id}", "get", *await desk.ask("GET", f"/{kind}/nobody"))
        judge(told, path, "post", *await desk.ask("POST", f"/{kind}", body, key=desk.keys["member"]))
        judge(told, path, "post", *await desk.ask("POST", f"/{kind}", body, key="op-nobody"))
    limited = {"name": "ci", "restrictions": {"addresses": ["127.0.0.1"], "zones": ["on_box"]}, "expires_in": "1h"}
    judge(told, "/admin/v1/keys", "post", *await desk.ask("POST", "/keys", limited))
    judge(told, "/admin/v1/keys/{id}/rotate", "post", *await desk.ask("POST", "/keys/ci/rotate", {}))
    for path in ("/keys", "/me", "/me/keys", "/status", "/requests"):
        judge(told, f"/admin/v1{path}", "get", *await desk.ask("GET", path))
    judge(told, "/admin/v1/reload", "post", *await desk.ask("POST", "/reload"))


async def test_bodies_that_it_allows_are_taken_and_others_refused(desk: Desk) -> None:
    _, told = await desk.ask("GET", "/openapi.json")
    bodies: list[Any] = [
        {"name": "a"},
        {"name": "b", "role": "operator", "expires_in": "30d"},
        {"name": "c", "restrictions": {"routes": ["x"], "priority": "batch"}},
        {"name": ""},
        {"name": 5},
        {"name": "d", "role": "root"},
        {"name": "e", "more": 1},
        {"name": "f", "restrictions": {"more": 1}},
        {"name": "g", "expires_at": 0},
        {},
        [],
    ]
    content = told["paths"]["/admin/v1/keys"]["post"]["requestBody"]["content"]
    validator = Draft202012Validator({**content["application/json"]["schema"], "components": told["components"]})
    for body in bodies:
        status, _ = await desk.ask("POST", "/keys", body)
        assert validator.is_valid(body) == (status == 201), body


def judge(told: dict[str, Any], path: str, method: str, status: int, found: Any) -> None:
    """Whether an answer has the shape that the document gives it."""
    response = told["paths"][path][method]["responses"][str(status)]
    (media,) = (said for kind, said in response["content"].items() if kind.endswith("json"))
    schema = {**media["schema"], "components": told["components"]}
    try:
        Draft202012Validator(schema).validate(found)
    except jsonschema.ValidationError as error:
        raise AssertionError(f"{method} {path}: {error.message}") from error


def schemas_in(node: Any) -> list[Any]:
    if isinstance(node, list):
        return [schema for each in node for schema in schemas_in(each)]
    if not isinstance(node, dict):
        return []
    found = [value for name, value in node.items() if name == "schema"]
    return found + [schema for value in node.values() for schema in schemas_in(value)]


def test_a_bare_endpoint_is_enough() -> None:
    """Parts that say nothing of their shapes are told of all the same."""

    async def handler(visit: object) -> Any:
        raise NotImplementedError

    class Thing(msgspec.Struct):
        name: str

    table = [
        Endpoint("GET", "/admin/v1/a/{id}/b/{other}", "status.read", handler),
        Endpoint("GET", "/admin/v1/c", "anyone", handler, gives=list[Thing], query=(Query("after", "Begin."),)),
        Endpoint("POST", "/admin/v1/c", "keys.own", handler, takes=Thing, gives=Thing, status=201),
    ]
    made = document(table, "1")
    Draft202012Validator(OPENAPI).validate(made)
    assert made["paths"]["/admin/v1/c"]["get"]["security"] == []
    assert "next" in json.dumps(made["paths"]["/admin/v1/c"]["get"])
    assert made["paths"]["/admin/v1/c"]["post"]["responses"]["201"]
