"""Answers and errors as HTTP responses; each family of endpoints has its own shape of error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus

from aiohttp import web

from appliance.dialects import errors as openai_errors
from appliance.dialects.messages import errors as messages_errors
from appliance.dialects.wire import encode
from appliance.door.http import SERVER
from appliance.errors import MethodNotAllowed, OutpostError, Unauthenticated
from appliance.exchange import error_headers
from appliance.redact import redact_keys

ErrorRenderer = Callable[[OutpostError, str], web.Response]


def respond(
    body: bytes,
    request_id: str,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    content_type: str = "application/json",
) -> web.Response:
    """A whole answer with the headers that every answer has."""
    all_headers = {**SERVER, "Content-Type": content_type, "x-request-id": request_id}
    if headers:
        all_headers.update(headers)
    return web.Response(body=body, status=status, headers=all_headers)


def _headers(error: OutpostError) -> dict[str, str]:
    headers = error_headers(error)
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def openai_error(error: OutpostError, request_id: str) -> web.Response:
    """{"error": {…}}, for everything that OpenAI's clients talk to."""
    headers = {"x-outpost-target": "none", "x-outpost-attempts": "0", **_headers(error)}
    return respond(openai_errors.body(error), request_id, status=error.status, headers=headers)


def anthropic_error(error: OutpostError, request_id: str) -> web.Response:
    """{"type": "error", …}, for what Anthropic's clients talk to. They know the id by a header of its own."""
    headers = {"x-outpost-target": "none", "x-outpost-attempts": "0", "request-id": request_id, **_headers(error)}
    return respond(messages_errors.body(error, request_id), request_id, status=error.status, headers=headers)


def problem(error: OutpostError, request_id: str) -> web.Response:
    """RFC 9457, for the operator's API; without what looks like a credential, as in `dialects.errors.body`."""
    body = encode(
        {
            "type": "about:blank",
            "title": HTTPStatus(error.status).phrase,
            "status": error.status,
            "detail": redact_keys(error.message),
            "code": redact_keys(error.code),
            "param": error.param and redact_keys(error.param),
            "request_id": request_id,
        }
    )
    return respond(
        body, request_id, status=error.status, headers=_headers(error), content_type="application/problem+json"
    )


def not_allowed(method: str, path: str, allowed: list[str], render: ErrorRenderer, request_id: str) -> web.Response:
    """405 with the methods that the path knows."""
    error = MethodNotAllowed(f"{path} does not take {method}; use {' or '.join(allowed)}.")
    response = render(error, request_id)
    response.headers["Allow"] = ", ".join(allowed)
    return response
