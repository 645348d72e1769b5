from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import OutpostError
from appliance.providers.http_errors import clean, from_status, retry_after

SECRET = "sk-very-secret-value"


def error(status: int, message: str = "m", code: str | None = None) -> OutpostError:
    body = json.dumps({"error": {"message": message, "code": code, "param": "p", "type": "t"}}).encode()
    return from_status("up", status, {}, body, now=0.0, secret=SECRET)


@pytest.mark.parametrize(
    ("status", "shown", "code", "elsewhere", "again"),
    [
        (400, 400, "invalid_request", False, False),
        (422, 400, "invalid_request", False, False),
        (413, 413, "request_too_large", False, False),
        (401, 502, "upstream_credentials", True, False),
        (403, 502, "upstream_credentials", True, False),
        (404, 502, "upstream_not_found", True, False),
        (408, 504, "upstream_timeout", True, True),
        (429, 429, "rate_limit_exceeded", True, True),
        (500, 502, "upstream_error", True, True),
        (502, 502, "upstream_error", True, True),
        (503, 503, "upstream_unavailable", True, True),
        (504, 504, "upstream_timeout", True, True),
        (529, 503, "upstream_unavailable", True, True),
        (307, 502, "upstream_error", True, False),
        (204, 502, "upstream_error", True, False),
    ],
)
def test_each_status(status: int, shown: int, code: str, elsewhere: bool, again: bool) -> None:
    found = error(status)
    assert (found.status, found.code, found.retryable, found.again) == (shown, code, elsewhere, again)


def test_a_request_that_is_too_large_for_one_may_fit_another() -> None:
    assert error(413).elsewhere
    assert not error(400).elsewhere


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 429, 500, 502, 503, 504, 529])
def test_the_gateways_credential_never_shows(status: int) -> None:
    assert SECRET not in error(status, f"key {SECRET} is bad").message


THEIRS = "sk-proj-" + "a1B2c3D4" * 5


@pytest.mark.parametrize("field", ["message", "param", "code"])
@pytest.mark.parametrize("whole", [{}, {"error": "text"}, {"detail": "text"}, {"message": "text"}])
@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize(
    "secret",
    [
        SECRET,
        THEIRS,
        SECRET.encode().hex(),
        base64.b64encode(f"user:{SECRET}".encode()).decode(),
        f"postgresql://svc:{SECRET}@db/x",
        "-----BEGIN PRIVATE KEY-----\nMIIEvg",
    ],
)
def test_nothing_of_a_refusal_holds_a_secret(secret: str, status: int, whole: dict[str, str], field: str) -> None:
    if whole:
        body = {next(iter(whole)): f"seen {secret}"}
    else:
        body = {"error": {"message": "no", "code": "bad", "param": "p", field: f"seen {secret}"}}  # type: ignore[dict-item]
    found = from_status("up", status, {}, json.dumps(body).encode(), now=0.0, secret=SECRET)
    for told in (found.message, found.param or "", found.code):
        assert secret not in told
        assert SECRET not in told
        assert "MIIEvg" not in told


@pytest.mark.parametrize("pad", range(960, 1001, 5))
def test_a_secret_at_the_cut_does_not_show_its_beginning(pad: int) -> None:
    assert SECRET[:6] not in error(400, "x" * pad + " " + SECRET).message


def test_a_code_that_is_a_word_is_kept_and_no_other() -> None:
    assert error(400, "m", "model_overloaded.v2").code == "model_overloaded.v2"
    for code in ("Not A Word", "x" * 65, "sk-abcdefghijklmnop", "op-0123456789abcdef", "a\nb"):
        assert error(400, "m", code).code == "invalid_request"


def test_only_the_callers_own_mistakes_are_repeated_in_the_targets_words() -> None:
    assert error(400, "temperature too high").message == "temperature too high"
    for status in (401, 403, 404, 429, 500, 503):
        assert "internal" not in error(status, "internal host db-7").message


@pytest.mark.parametrize(
    "message", ["This model's maximum context length is 8", "the request exceeds the available context size"]
)
def test_a_full_context_is_recognised_by_its_words(message: str) -> None:
    assert error(400, message).code == "context_length_exceeded"


def test_a_full_context_is_recognised_by_its_code() -> None:
    assert error(400, "too long", "context_length_exceeded").code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("nan", None),
        ("1e9", 3600.0),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 90.0),
        ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, 10.0) == seconds


@given(st.text(max_size=20))
def test_any_retry_after_is_harmless(value: str) -> None:
    found = retry_after(value, 0.0)
    assert found is None or 0.0 <= found <= 3600.0


@given(st.integers(100, 599), st.binary(max_size=60))
def test_any_answer_becomes_an_error(status: int, body: bytes) -> None:
    found = from_status("up", status, {}, body, now=0.0)
    assert 400 <= found.status < 600
    assert found.message


@given(st.text(max_size=50))
def test_repeated_words_are_one_printable_line(text: str) -> None:
    shown = clean(text + SECRET + "\x1b[31m\n" + text, SECRET)
    assert SECRET not in shown
    assert shown == "" or shown.isprintable()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"error": "plain words"}', "plain words"),
        (b'{"detail": "of fastapi"}', "of fastapi"),
        (b"<html>", "did not say"),
    ],
)
def test_other_shapes_of_errors(body: bytes, says: str) -> None:
    assert says in from_status("up", 400, {}, body, now=0.0).message
