"""The public listener: keys, paths, bodies, headers, the access log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.door.http import Limits
from appliance.providers.upstream import Readiness
from tests.fakes import openai_schema as schema
from tests.fakes.house import ADMIN_KEY, UPSTREAM_KEY, USER_KEY, FakeKeys, House, open_house
from tests.fakes.raw_client import RawClient, request_bytes


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path, Limits(max_body=100_000, drain_timeout=5.0)) as opened:
        yield opened


CHAT = {"model": "local", "messages": [{"role": "user", "content": "Hi"}]}


async def test_models(house: House) -> None:
    auth = {"Authorization": f"Bearer {USER_KEY}"}
    async with house.session.get(f"{house.url}/v1/models", headers=auth) as response:
        body = await response.json()
        assert response.headers["x-request-id"]
    assert schema.complaints(schema.MODELS, body) == []
    assert [card["id"] for card in body["data"]] == ["local", "gpt-4o-mini", "embedder", "remote"]
    assert body["data"][0]["context_length"] == 8192
    assert body["data"][1]["alias_of"] == "local"
    async with house.session.get(f"{house.url}/v1/models/gpt-4o-mini?x=1", headers=auth) as response:
        card = await response.json()
    assert schema.complaints(schema.MODEL, card) == []
    assert card["id"] == "gpt-4o-mini"
    async with house.session.get(f"{house.url}/v1/models/org%2Fnope", headers=auth) as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "model_not_found"
    assert house.recorder.rows == []


async def test_health_and_readiness(house: House) -> None:
    async def get(path: str) -> tuple[int, Any]:
        async with house.session.get(house.url + path) as response:
            return response.status, await response.json()

    assert await get("/healthz") == (200, {"status": "ok"})
    assert (await get("/readyz"))[0] == 200
    house.recorder.noticed = True
    assert await get("/readyz") == (503, {"status": "not ready", "reason": "records cannot be written"})
    house.recorder.noticed = False
    house.gateway.router = type(house.gateway.router)(house.gateway.router.routes[:1])
    house.readiness.append(Readiness(False, "starting"))
    assert (await get("/readyz"))[1]["reason"] == "no route can answer yet"
    assert (await get("/healthz"))[0] == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
@pytest.mark.parametrize("auth", [None, "Bearer", "Bearer ", "Bearer op-wrong", "Basic abc", USER_KEY, "Bearer é"])
async def test_strangers(house: House, path: str, auth: str | None) -> None:
    headers = {"Authorization": auth} if auth is not None else {}
    async with house.session.post(house.url + path, data=b"{broken", headers=headers) as response:
        body = await response.json()
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert schema.complaints(schema.ERROR, body) == []
    assert (body["error"]["type"], body["error"]["code"]) == ("authentication_error", "invalid_api_key")
    assert "op-wrong" not in json.dumps(body)


async def test_a_strangers_key_is_looked_up_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(FakeKeys, "identify", lambda self, presented, address=None: asked.append(presented))
    for url in (f"{house.url}/v1/models", f"{house.url}/v1/chat/completions", f"{house.operator_url}/admin/v1/me"):
        method, key = "POST" if "chat" in url else "GET", f"op-stranger-{len(asked)}"
        async with house.session.request(method, url, headers={"Authorization": f"Bearer {key}"}) as response:
            assert response.status == 401
        assert asked[-1] == key
    assert len(asked) == 3


async def test_unknown_paths_and_methods(house: House) -> None:
    auth = {"Authorization": f"Bearer {USER_KEY}"}
    for method, path, status, code in (
        ("GET", "/v1/nothing", 404, "not_found"),
        ("POST", "/", 404, "not_found"),
        ("POST", "/v1/models/", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/admin/v1/keys", 404, "not_found"),
        ("GET", "/v1/%0d%0aSet-Cookie:%20a=b", 404, "not_found"),
    ):
        async with house.session.request(method, house.url + path, headers=auth) as response:
            body = await response.json()
            assert (response.status, body["error"]["code"]) == (status, code), path
            assert schema.complaints(schema.ERROR, body) == []
            assert "Set-Cookie" not in response.headers
            if status == 405:
                assert response.headers["Allow"] in ("POST", "GET")
    async with house.session.head(f"{house.url}/healthz") as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"[" * 10_000, 400, None),
        (b'{"a":' * 10_000, 400, None),
        (b'{"model":"\xff"}', 400, None),
        (b'{"model":"\\ud800","messages":[]}', 400, "model"),
        (b'{"messages":[{"role":"user","content":"x"}]}', 400, "model"),
        (b'{"model":"local","messages":[]}', 400, "messages"),
        (b'{"model":"local","messages":[{"role":"user","content":"x"}],"max_tokens":-1}', 400, "max_tokens"),
        (b'{"model":"nope","messages":[{"role":"user","content":"x"}]}', 404, "model"),
        (b'{"model":"embedder","messages":[{"role":"user","content":"x"}]}', 400, "model"),
        (b"x" * 200_000, 413, None),
    ],
    ids=lambda v: repr(v[:20]) if isinstance(v, bytes) else None,
)
async def test_bad_bodies_are_4xx_that_name_the_field(
    house: House, body: bytes, status: int, param: str | None
) -> None:
    response = await house.post("/v1/chat/completions", body)
    error = (await response.json())["error"]
    assert (response.status, error["param"]) == (status, param)
    assert response.headers["x-request-id"] == (await house.recorder.wait_for(1)).id
    assert (await house.chat("local")).status == 200


async def test_a_body_without_length_is_capped_as_well(house: House) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b" " * 1000

    auth = {"Authorization": f"Bearer {USER_KEY}"}
    async with house.session.post(f"{house.url}/v1/chat/completions", data=endless(), headers=auth) as response:
        assert response.status == 413


async def test_a_body_in_pieces(house: House) -> None:
    whole = request_bytes("/v1/chat/completions", CHAT)
    async with RawClient(house.doors.public_port) as client:
        for i in range(0, len(whole), 7):
            await client.send(whole[i : i + 7])
            await asyncio.sleep(0)
        assert (await client.until(b"\r\n")).startswith(b"HTTP/1.1 200")


async def test_compressed_bodies_are_refused(house: House) -> None:
    for encoding in ("gzip", "br", "zstd", "deflate"):
        response = await house.post("/v1/chat/completions", b"\x1f\x8b\x08\x00", **{"Content-Encoding": encoding})
        assert response.status == 415
    assert (await house.post("/v1/chat/completions", CHAT, **{"Content-Encoding": "identity"})).status == 200


async def test_expect_continue(house: House) -> None:
    data = json.dumps(CHAT).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer {USER_KEY}\r\n"
        f"Expect: 100-continue\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    async with RawClient(house.doors.public_port) as client:
        await client.send(head.encode())
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(data)
        assert (await client.until(b"\r\n")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "garbage",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: y\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-Many: a\r\n" * 500 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["line", "header", "smuggling", "length", "long-path", "long-header", "many-headers", "tls"],
)
async def test_what_is_no_http_is_400_in_our_shape(house: House, garbage: bytes) -> None:
    async with RawClient(house.doors.public_port) as client:
        await client.send(garbage)
        answer = await client.rest()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.partition(b" ")[2].startswith(b"400")
    assert json.loads(body)["error"]["message"] == "This is not valid HTTP."
    assert b"aiohttp" not in answer
    assert (await house.chat("local")).status == 200


async def test_http_1_0_streams_without_chunks(house: House) -> None:
    whole = request_bytes("/v1/chat/completions", {**CHAT, "stream": True}).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    async with RawClient(house.doors.public_port) as client:
        await client.send(whole)
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


async def test_several_requests_on_one_connection(house: House) -> None:
    one = request_bytes("/v1/chat/completions", {**CHAT, "stream": True})
    async with RawClient(house.doors.public_port) as client:
        await client.send(one + one + one)
        for _ in range(3):
            assert (await client.until(b"0\r\n\r\n")).count(b"[DONE]") == 1


async def test_every_answer_has_its_headers(house: House) -> None:
    for response in (
        await house.chat("local"),
        await house.chat("local", stream=True),
        await house.chat("nope"),
        await house.post("/v1/chat/completions", {}, key=None),
        await house.post("/v1/nothing", {}),
    ):
        assert response.headers["x-request-id"]
        assert response.headers["x-outpost-target"]
        assert response.headers["x-outpost-attempts"] in ("0", "1")
        assert response.headers["Server"] == "outpost"
        assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_the_access_log_is_one_clean_line_a_request(house: House) -> None:
    await house.chat("local", said="a very private question")
    await house.chat("remote", stream=True)
    auth = {"Authorization": f"Bearer {USER_KEY}"}
    async with house.session.get(f"{house.url}/v1/models/%1b%5b31m%0d%0a%e2%80%a8?secret=1", headers=auth):
        pass
    await house.post("/v1/chat/completions", CHAT, key="op-unknown-key")
    await house.doors.close(0.1)
    text = b"".join(house.log)
    assert text.isascii()
    lines = text.decode().split("\n")
    assert lines.pop() == ""
    assert all(c.isprintable() for line in lines for c in line)
    entries = [json.loads(line) for line in lines]
    assert [entry["status"] for entry in entries] == [200, 200, 404, 401]
    first = entries[0]
    assert (first["key"], first["route"], first["target"], first["outcome"]) == ("user", "local", "local", "completed")
    assert (first["method"], first["path"], first["client"]) == ("POST", "/v1/chat/completions", "127.0.0.1")
    for secret in (USER_KEY, ADMIN_KEY, UPSTREAM_KEY, "op-unknown-key", "private question", "secret=1"):
        assert secret not in text.decode()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.fixed_dictionaries(
        {"model": st.sampled_from(["local", "embedder", "remote"]) | json_values},
        optional={
            "messages": st.just(CHAT["messages"]) | json_values,
            "prompt": json_values,
            "input": json_values,
            "tools": json_values,
            "n": st.integers(-1, 3),
            "response_format": json_values,
            "stop": json_values,
        },
    )
)
def test_no_json_makes_a_5xx(tmp_path_factory: pytest.TempPathFactory, path: str, body: dict[str, Any]) -> None:
    async def ask() -> None:
        async with open_house(tmp_path_factory.mktemp("house", numbered=True)) as house:
            response = await house.post(path, body)
            assert response.status < 500
            if response.status >= 400:
                assert schema.complaints(schema.ERROR, await response.json()) == []

    asyncio.run(ask())
