"""Bodies that are no JSON, or JSON of an absurd shape or size: a 4xx that says where, and no harm done."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.contract.ask import CHAT_PATH, COMPLETION_PATH, EMBEDDING_PATH
from tests.contract.wrong import HI, VALID, post, refusal
from tests.gateway import CHAT, Gateway

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("healthy_after")]

# --- bodies that are no JSON ----------------------------------------------------------------------

NO_STRING: dict[str, bytes] = {
    "bad-escape": b'"\\x41"',
    "short-escape": b'"\\u12"',
    "escape-with-letters": b'"\\u00zz"',
    "capital-escape": b'"\\U0041"',
    "raw-newline": b'"a\nb"',
    "raw-null": b'"a\x00b"',
    "raw-tab": b'"a\tb"',
    "raw-control": b'"\x1f"',
    "invalid-utf-8": b'"\xff\xfe"',
    "continuation-alone": b'"\x80"',
    "overlong": b'"\xc0\xaf"',
    "surrogate-as-utf-8": b'"\xed\xa0\x80"',
    "beyond-unicode": b'"\xf4\x90\x80\x80"',
    "latin-1": '"é"'.encode("latin-1"),
    "single-quotes": b"'a'",
    "no-quotes": b"a",
    "true-in-capitals": b"True",
    "none": b"None",
    "undefined": b"undefined",
    "half-null": b"nul",
    "nothing": b"",
    "open": b'"a',
    "comment": b'/* a */ "a"',
    "line-comment": b'// a\n"a"',
}
NO_NUMBER: dict[str, bytes] = {
    "nan": b"NaN",
    "infinity": b"Infinity",
    "minus-infinity": b"-Infinity",
    "leading-zero": b"01",
    "minus-leading-zero": b"-01",
    "plus": b"+1",
    "hexadecimal": b"0x1",
    "octal": b"0o7",
    "underscores": b"1_000",
    "no-fraction": b"1.",
    "no-integer": b".5",
    "no-exponent": b"1e",
    "exponent-sign": b"1e+",
    "two-points": b"1.2.3",
    "double-minus": b"--1",
    "minus-alone": b"-",
    "letters": b"1a",
    "full-width": "\uff11".encode(),
}


def not_json(valid: bytes, number: bytes) -> Iterator[tuple[str, bytes]]:
    """A valid body, made invalid in one place; `number` is a field that takes whole numbers."""
    inside = valid[1:]
    for name, text in NO_STRING.items():
        yield name, b'{"user": ' + text + b", " + inside
    for name, text in NO_NUMBER.items():
        yield name, b'{"' + number + b'": ' + text + b", " + inside
    yield "empty", b""
    yield "blank", b" \n\t "
    yield "word", b"hello"
    yield "two-values", valid + b" {}"
    yield "trailing-word", valid + b"x"
    yield "trailing-null", valid + b"\x00"
    yield "trailing-brace", valid + b"}"
    yield "trailing-comma", valid[:-1] + b",}"
    yield "leading-comma", b"{," + inside
    yield "no-colon", b'{"user" "a", ' + inside
    yield "two-colons", b'{"user":: "a", ' + inside
    yield "no-comma", b'{"user": "a" ' + inside
    yield "two-commas", b'{"user": "a",, ' + inside
    yield "no-key", b'{: "a", ' + inside
    yield "number-key", b'{1: "a", ' + inside
    yield "bare-key", b'{user: "a", ' + inside
    yield "wrong-bracket", valid[:-1] + b"]"
    yield "null-between", b'{"user"\x00: "a", ' + inside
    yield "form-feed-between", b'{"user":\x0c "a", ' + inside
    yield "hard-space-between", b'{"user":\xc2\xa0"a", ' + inside
    yield "byte-order-mark", b"\xef\xbb\xbf" + valid
    yield "utf-16", valid.decode().encode("utf-16")
    yield "utf-32", valid.decode().encode("utf-32")
    yield "gzip", gzip.compress(valid)
    yield "yaml", b"model: a\nprompt: b\n"
    for at in range(1, len(valid)):
        yield f"cut-at-{at}", valid[:at]


NOT_AN_OBJECT = (b"null", b"true", b"0", b"-1.5e3", b'"text"', b"[]", b"[{}]", b'[["a"]]', b"[")
NUMBERS = {CHAT_PATH: b"seed", COMPLETION_PATH: b"seed", EMBEDDING_PATH: b"dimensions"}


@pytest.mark.parametrize("path", VALID)
def test_a_body_that_is_no_json_is_told_where(http: httpx.Client, path: str) -> None:
    for name, body in not_json(json.dumps(VALID[path]).encode(), NUMBERS[path]):
        error = refusal(post(http, path, body))
        if name in NO_NUMBER and error["code"] != "invalid_json":
            # The number's beginning was one, and of the wrong kind; the rest was not looked at.
            assert error["param"] == NUMBERS[path].decode(), name
            continue
        assert error["code"] == "invalid_json", name
        assert error["message"].startswith("The body"), name
    for body in NOT_AN_OBJECT:
        error = refusal(post(http, path, body))
        assert error["code"] == "invalid_type" and "an object" in error["message"], body


@pytest.mark.parametrize(
    "start",
    [
        b' \r\n\t{ "user" : "a" , ',
        b'{"user": "\\u00e9\\ud83d\\ude00\\/\\"\\\\\\b\\f\\n\\r\\t\\u0000", ',
        b'{"\\u0075ser": "\xf4\x8f\xbf\xbf\x7f\xe2\x80\xa8", ',
        b'{"temperature": 1E0, "top_p": 1e-1, "seed": -0, ',
        b'{"temperature": 0.10000000000000000000000000000000000001, "top_p": 1e-400, ',
        b'{"seed": 9223372036854775807, "temperature": 2, "metadata": {"": ""}, ',
        b'{"user": null, "stop": [ ], "metadata": { }, ',
    ],
)
def test_json_as_it_may_be_written_is_read(http: httpx.Client, start: bytes) -> None:
    valid = json.dumps({"model": "fake-ok", "messages": HI}).encode()
    assert post(http, CHAT_PATH, start + valid[1:] + b" \n").status_code == 200


def test_numbers_beyond_what_is_counted_with_are_refused_by_name(http: httpx.Client) -> None:
    for number in (b"1e400", b"-1e400", b"123123e100000", b"1" * 400):
        for field in ("temperature", "presence_penalty", "seed", "top_logprobs"):
            body = b'{"%b": %b, ' % (field.encode(), number) + json.dumps(VALID[CHAT_PATH]).encode()[1:]
            assert refusal(post(http, CHAT_PATH, body))["param"] == field


@pytest.mark.parametrize("path", VALID)
def test_deep_nesting_is_refused(http: httpx.Client, path: str) -> None:
    for depth in (65, 1_000, 10_000, 1_000_000):
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")):
            middle = b"1"
            for body in (
                opening * depth + middle + closing * depth,
                b'{"model": "a", "metadata": ' + opening * depth + middle + closing * depth + b"}",
                opening * depth,
            ):
                if len(body) <= 20 << 20:
                    error = refusal(post(http, path, body))
                    assert error["code"] == "json_too_deep" and "64" in error["message"]


# --- bodies that are too large, too slow to read, or of another kind ------------------------------


@pytest.mark.parametrize("path", VALID)
def test_fifty_megabytes_are_refused(http: httpx.Client, path: str) -> None:
    body = json.dumps({**VALID[path], "user": "x" * (50 << 20)}).encode()
    for content in (body, (body[at : at + (1 << 20)] for at in range(0, len(body), 1 << 20))):
        try:
            response = http.post(path, content=content, headers={"Content-Type": "application/json"})
        except (httpx.WriteError, httpx.ReadError):
            continue  # the gateway has hung up on an upload that it had refused; its answer was lost on the way
        error = refusal(response, 413)
        assert error["code"] == "request_too_large" and "20" in error["message"]


def test_a_large_body_is_refused_before_it_is_sent(gateway: Gateway) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = (
            f"POST {CHAT_PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.key}\r\n"
            "Content-Type: application/json\r\nContent-Length: 52428800\r\nExpect: 100-continue\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("path", VALID)
def test_forms_are_refused(http: httpx.Client, path: str) -> None:
    given = {"model": CHAT, "messages": "Hi"}
    for response in (
        http.post(path, data=given),
        http.post(path, files={"messages": b"Hi"}, data={"model": CHAT}),
        http.post(path, content=b"", headers={"Content-Type": "application/x-www-form-urlencoded"}),
    ):
        assert refusal(response)["code"] == "invalid_json"


def test_json_is_taken_by_any_name(http: httpx.Client) -> None:
    """As `curl -d` sends it: the credential is a header that no web page can add, so the type guards nothing."""
    for kind in (
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/x-www-form-urlencoded",
        "nonsense",
    ):
        for path, body in VALID.items():
            response = http.post(path, content=json.dumps(body), headers={"Content-Type": kind})
            assert response.status_code == 200


def test_a_compressed_body_is_refused_unread(http: httpx.Client) -> None:
    bomb = gzip.compress(b'{"model": "' + b"a" * (60 << 20) + b'"}')
    for body in (bomb, b"not gzip at all"):
        response = http.post(
            CHAT_PATH, content=body, headers={"Content-Type": "application/json", "Content-Encoding": "gzip"}
        )
        assert refusal(response, 415)["code"] == "unsupported_media_type"


def test_keys_that_come_twice_are_read_as_one(http: httpx.Client) -> None:
    said = json.dumps(HI).encode()
    body = b'{"model": "%b", "model": "gpt-9", "messages": %b, "max_tokens": 1}' % (CHAT.encode(), said)
    assert refusal(post(http, CHAT_PATH, body), 400, 404)["param"] == "model"
