"""The OpenAPI 3.1 document of the operator's API, made from the table of endpoints that answers the requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, get_origin

import msgspec
from aiohttp import web

from appliance.dialects.wire import encode
from appliance.door.endpoint import Endpoint, Visit
from appliance.door.render import respond

PATH = "/admin/v1/openapi.json"
VERSION = "3.1.0"
API_VERSION = "1.0.0"
"""Of what is described; rises with the paths' `v1` or with what they take and give."""
_REF = "#/components/schemas/{name}"


class Problem(msgspec.Struct, frozen=True):
    """RFC 9457. `code` is stable; `param` names the field at fault."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    param: str | None
    request_id: str


_ERRORS = {
    "400": "A field or parameter is wrong; `param` names it, `detail` says how to mend it.",
    "401": "No credential, or one that is not known or has ended.",
    "403": "The credential may not do this.",
    "404": "There is no such thing, or it belongs to another organization.",
    "503": "The database cannot be written or read right now.",
}


def endpoint(others: Sequence[Endpoint]) -> Endpoint:
    """The way to the document; it tells of `others` and of itself."""
    body = b""

    async def handler(visit: Visit) -> web.StreamResponse:
        nonlocal body
        body = body or encode(document([*others, own]))
        return respond(body, visit.id)

    # For everybody who may sign in: there is no secret in what can be asked, only in who may.
    own = Endpoint("GET", PATH, "keys.own", handler, summary="This document.", gives=None)
    return own


def document(endpoints: Sequence[Endpoint], version: str = API_VERSION) -> dict[str, Any]:
    """Pure: the document as plain data."""
    types: list[Any] = [Problem]
    for each in endpoints:
        types += [found for found in (each.takes, each.gives) if found is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    shapes = iter(schemas)
    problem = next(shapes)
    paths: dict[str, dict[str, Any]] = {}
    for each in endpoints:
        takes = None if each.takes is None else next(shapes)
        gives = None if each.gives is None else next(shapes)
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, takes, gives, problem)
    return {
        "openapi": VERSION,
        "info": {
            "title": "Outpost: operator's API",
            "version": version,
            "description": "Who may ask, how much, and what is on record. Every answer is `{data: …}`; a list that has "
            "more says in `next` what `after` must be for the rest.",
        },
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key or token."}},
        },
        "security": [{"key": []}],
    }


def _operation(each: Endpoint, takes: Any, gives: Any, problem: Any) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in each.names
    ]
    parameters += [
        {"name": query.name, "in": "query", "description": query.help, "schema": {"type": query.kind}}
        for query in each.query
    ]
    status = str(each.status)
    found: dict[str, Any] = {
        "operationId": operation_id(each),
        "summary": each.summary or each.path,
        "x-permission": each.permission,
        "responses": {
            status: {
                "description": HTTPStatus(each.status).phrase,
                "content": _answers(each, gives),
            },
            **{
                code: {"description": text, **_content("application/problem+json", problem)}
                for code, text in _ERRORS.items()
            },
        },
    }
    if parameters:
        found["parameters"] = parameters
    if takes is not None:
        found["requestBody"] = {"required": True, **_content("application/json", takes)}
    if each.permission == "anyone":
        found["security"] = []
    return found


def _content(media_type: str, schema: Any) -> dict[str, Any]:
    return {"content": {media_type: {"schema": schema}}}


def _answers(each: Endpoint, gives: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if each.gives is not None or not each.media:
        found["application/json"] = {"schema": _envelope(each, gives)}
    return found | {media: {"schema": {"type": "string"}} for media in each.media}


def _envelope(each: Endpoint, gives: Any) -> dict[str, Any]:
    if gives is None:
        return {"type": "object"}
    properties = {"data": gives}
    if get_origin(each.gives) is list and any(query.name == "after" for query in each.query):
        properties["next"] = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    return {"type": "object", "properties": properties, "required": ["data"]}


def operation_id(each: Endpoint) -> str:
    """A name for clients that are made from the document: get_teams_id_members."""
    words = re.findall(r"\w+", each.path.removeprefix("/admin/v1"))
    return "_".join([each.method.lower(), *words]).replace("-", "_")
