"""Keys in every place that a caller reaches, on both listeners of a running gateway – and then nowhere else.

Each sending has a canary of its own. All hold `MARK`, which is what is looked for;
the number behind it makes it another text.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
import pytest

from appliance.dialects.chat import ChatRequest
from appliance.dialects.completions import CompletionRequest
from appliance.dialects.embeddings import EmbeddingRequest
from tests.fakes.issuer import ec, key_set, sign
from tests.fakes.upstream import Reply, Seen, chat_events, chat_whole
from tests.gateway import CHAT, UPSTREAM_KEY, Gateway, UpstreamThread, fake_routes, open_gateway
from tests.telemetry.canaries import Hunt
from tests.telemetry.collector import Collector, collecting

pytestmark = pytest.mark.timeout(300)

MARK = "Zq7CanaryKw3Xv9B"
FORMS = ("op-{}", "sk-proj-{}", "eyJ{}.eyJzdWIiOiJ4In0.c2lnbmF0dXJl", "ghp_{}")
FILL = "aB3dE6gH9jK2mN5pQ8sT1"
CLIENT_SECRET = "oidc-client-secret-without-looks"
COLLECTOR_TOKEN = "collector-token-without-looks"
ISSUER = "https://id.example"
CHAT_PATH, COMPLETIONS_PATH, EMBEDDINGS_PATH = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HELLO = [{"role": "user", "content": "Hi"}]


@dataclass
class Box:
    gateway: Gateway
    upstream: UpstreamThread
    collector: Collector


def theirs(seen: Seen) -> Reply:
    """A provider that tells all it knows: our key, and keys of its own."""
    told = f"{seen.headers.get('authorization')} is bad, ask op-{MARK}000001{FILL}"
    error = {"message": told, "code": f"sk-{MARK}{FILL}", "param": f"hf_{MARK}{FILL}{FILL}", "type": told}
    if seen.body.get("stream"):
        return Reply(events=[*chat_events()[:2], json.dumps({"error": error}).encode()])
    return Reply(400, {"WWW-Authenticate": told, "X-Key": told}, json.dumps({"error": error, "message": told}).encode())


def their_echo(seen: Seen) -> Reply:
    """An answer, not an error, that repeats the key which it was asked with."""
    told = f"You sent {seen.headers.get('authorization')}"
    if seen.body.get("stream"):
        return Reply(events=chat_events(["Hello", told, "!"]), pace_s=0.05)
    return Reply(body=chat_whole(told))


def their_reason(seen: Seen) -> Reply:
    answer = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": f"op-{MARK}{FILL}{FILL}"}
    return Reply(body=json.dumps({"id": "x", "object": "chat.completion", "choices": [answer]}).encode())


@pytest.fixture(scope="module")
def box(model_store: Path, upstream: UpstreamThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    folder = tmp_path_factory.mktemp("canaries")
    (folder / "keys.json").write_bytes(key_set(ec("canary")))
    upstream.call(lambda: upstream.fake.behave("theirs", theirs))
    upstream.call(lambda: upstream.fake.behave("their-reason", their_reason))
    upstream.call(lambda: upstream.fake.behave("their-echo", their_echo))
    with collecting() as collector:
        oidc = {
            "name": "corp",
            "issuer": ISSUER,
            "audience": ["outpost"],
            "jwks": {"file": str(folder / "keys.json")},
            "default_role": "member",
            "login": {
                "client_id": "outpost",
                "client_secret": {"env": "OIDC_SECRET"},
                "redirect_base": "http://127.0.0.1:1",
                "authorization_endpoint": f"{ISSUER}/authorize",
                "token_endpoint": f"{ISSUER}/token",
            },
        }
        headers = {"Authorization": {"env": "COLLECTOR_TOKEN"}}
        settings = {
            **fake_routes(upstream, "ok", "theirs", "their-reason", "their-echo", "401", "500", "cut-before-token"),
            "deployments": [{"name": CHAT, "model": CHAT, "engine": "llamacpp", "args": {"context": 512}}],
            "log": {"level": "debug"},
            "identity": {"oidc": [oidc]},
            "records": {"content": "full"},
            "telemetry": {"otlp": {"endpoint": collector.url, "interval": "50ms", "headers": headers}},
        }
        settings["routes"] = [route for route in settings["routes"] if "minilm" not in route["model"]]
        env = {"OIDC_SECRET": CLIENT_SECRET, "COLLECTOR_TOKEN": COLLECTOR_TOKEN}
        with open_gateway(folder, settings, store=model_store, env=env) as gateway:
            gateway.secrets.add(MARK)
            yield Box(gateway, upstream, collector)


# --- what is sent -----------------------------------------------------------------------------------


@dataclass
class Sending:
    place: str
    method: str
    target: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Canaries:
    """Makes canaries and remembers where each went."""

    def __init__(self) -> None:
        self.places: dict[int, str] = {}
        self._numbers = itertools.count(1)

    def new(self, place: str) -> str:
        number = next(self._numbers)
        self.places[number] = place
        return FORMS[number % len(FORMS)].format(f"{MARK}{number:06d}{FILL}")


def fields(canaries: Canaries, path: str, base: dict[str, Any], names: list[str]) -> Iterator[Sending]:
    """Each field in turn holds a key: as a text, in a list, as a value, as a name."""
    for name in [*names, None]:
        for shape in range(4):
            place = f"{path} field {name} shape {shape}"
            canary = canaries.new(place)
            value = (canary, [canary], {"type": canary}, {canary: [{canary: canary}]})[shape]
            body = base | {canary if name is None else name: value}
            yield Sending(place, "POST", path, json.dumps(body).encode())


def deeper(canaries: Canaries) -> Iterator[Sending]:
    """Keys inside of what a chat request is made of."""

    def key() -> str:
        return canaries.new("inside of a chat request")

    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for more in (
        {"messages": [{"role": key(), "content": "x"}]},
        {"messages": [{"role": "user", "content": "x", key(): 1}]},
        {"messages": [{"role": "user", "content": "x", "name": key()}]},
        {"messages": [{"role": "user", "content": key()}]},
        {"messages": [{"role": "user", "content": [{"type": key(), "text": "x"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": key()}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"format": key()}}]}]},
        {"messages": [*HELLO, {"role": "tool", "tool_call_id": key(), "content": "x"}]},
        {"messages": [*HELLO, {"role": "assistant", "tool_calls": [call | {"id": key()}]}]},
        {"messages": [*HELLO, {"role": "assistant", "tool_calls": [call | {"type": key()}]}]},
        {"messages": [*HELLO, {"role": "assistant", "tool_calls": [call | {"function": {"name": key()}}]}]},
        {"tools": [tool | {"type": key()}]},
        {"tools": [{"type": "function", "function": tool["function"] | {"name": key()}}]},  # type: ignore[operator]
        {"tools": [{"type": "function", "function": tool["function"] | {"description": key()}}]},  # type: ignore[operator]
        {"tools": [{"type": "function", "function": tool["function"] | {"parameters": {"type": key()}}}]},  # type: ignore[operator]
        {"tools": [{"type": "function", "function": tool["function"] | {"parameters": {key(): key()}}}]},  # type: ignore[operator]
        {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": key()}}},
        {"tools": [tool, tool], "tool_choice": key()},
        {"response_format": {"type": "json_schema", "json_schema": {"name": key(), "schema": {"type": "object"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": key()}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": f"#/{key()}"}}}},
        {"logit_bias": {key(): 1}},
        {"metadata": {key(): key()}, "user": key(), "safety_identifier": key(), "prompt_cache_key": key()},
        {"stop": [key()], "stream_options": {key(): True}, "stream": True},
        {"stream": True, "user": key()},
    ):
        for model in ("fake-ok", CHAT):
            body = {"model": model, "messages": HELLO, "max_tokens": 2, **more}
            yield Sending(f"inside of a chat request: {next(iter(more))}", "POST", CHAT_PATH, json.dumps(body).encode())


def headers(canaries: Canaries, targets: list[tuple[str, str, bytes]]) -> Iterator[Sending]:
    names = (
        "Authorization", "authorization: Bearer", "authorization: bearer", "authorization: Basic",
        "authorization: Basic64", "authorization: Token", "X-Api-Key", "Api-Key", "Cookie", "Proxy-Authorization",
        "X-Outpost-Tags", "X-Outpost-Priority", "Traceparent", "Tracestate", "X-Request-Id", "User-Agent", "Referer",
        "Origin", "X-Forwarded-For", "Forwarded", "Content-Type", "Content-Encoding", "Accept", "Expect", "Host",
        "OpenAI-Organization", "If-None-Match", "X-Csrf-Token",
    )  # fmt: skip
    for method, target, body in targets:
        for name in names:
            key = canaries.new(f"{method} {target} header {name}")
            head, _, scheme = name.partition(": ")
            if scheme == "Basic64":
                value = "Basic " + base64.b64encode(f"user:{key}".encode()).decode()
            else:
                value = f"{scheme} {key}" if scheme else f"session={key}; other=1" if head == "Cookie" else key
            yield Sending(f"{method} {target} header {name}", method, target, body, {head: value})
        key = canaries.new(f"{method} {target} name of a header")
        yield Sending(f"{method} {target} name of a header", method, target, body, {f"X-{key}"[:200]: "1"})


def targets(canaries: Canaries, paths: list[str]) -> Iterator[Sending]:
    """Keys in paths and query strings."""
    for path in paths:
        for form in ("{}?api_key={}", "{}?{}=1", "{}/{}", "{}/x?q=%2B{}", "{}#{}", "{}?limit={}", "{}%2F{}"):
            for method in ("GET", "POST", "DELETE", "PUT", "OPTIONS"):
                key = canaries.new(f"{method} {form} of {path}")
                yield Sending(f"{method} {form} of {path}", method, form.format(path, key))
    long = "x" * 3000
    yield Sending("a long path", "GET", f"/v1/{long}/{canaries.new('a long path')}")
    yield Sending("a path at the cut", "GET", f"/v1/{'x' * 170}/{canaries.new('a path at the cut')}")


def bodies(canaries: Canaries, path: str) -> Iterator[Sending]:
    """Bodies that are none."""
    for what, form, kind in (
        ("bad JSON", '{{"a": {}', None),
        ("bad JSON", '{{"{}": 1,,', None),
        ("text", "{}", "text/plain"),
        ("a form", "key={}&model=x", "application/x-www-form-urlencoded"),
        ("parts", '--b\r\nContent-Disposition: form-data; name="{}"\r\n\r\n1\r\n--b--', "multipart/form-data"),
        ("an array", '["{}"]', None),
        ("a text", '"{}"', None),
        ("too deep", '{{"{}": ' + "[" * 100, None),
        ("half a character", '{{"model": "{}\\ud800"}}', None),
        ("at the cut", '{{"' + "x" * 70 + '{}": 1}}', None),
    ):  # fmt: skip
        key = canaries.new(f"{path} body: {what}")
        yield Sending(
            f"{path} body: {what}", "POST", path, form.format(key).encode(), {"Content-Type": kind} if kind else {}
        )
    key = canaries.new(f"{path} oversize")
    yield Sending(f"{path} oversize", "POST", path, json.dumps({key: key * 30_000}).encode())
    yield Sending(f"{path} not UTF-8", "POST", path, b'{"model": "' + canaries.new("not UTF-8").encode() + b'\xff"}')


def public(canaries: Canaries) -> Iterator[Sending]:
    chat = {"model": "fake-ok", "messages": HELLO}
    yield from fields(canaries, CHAT_PATH, chat, list(ChatRequest.__struct_fields__))
    yield from fields(
        canaries, COMPLETIONS_PATH, {"model": "fake-ok", "prompt": "Hi"}, list(CompletionRequest.__struct_fields__)
    )
    yield from fields(
        canaries, EMBEDDINGS_PATH, {"model": "fake-ok", "input": "Hi"}, list(EmbeddingRequest.__struct_fields__)
    )
    yield from deeper(canaries)
    yield from headers(
        canaries, [("POST", CHAT_PATH, json.dumps(chat).encode()), ("GET", "/v1/models", b""), ("GET", "/nowhere", b"")]
    )
    yield from targets(canaries, ["/v1/models", CHAT_PATH, "/healthz", "", "/v1"])
    for path in (CHAT_PATH, EMBEDDINGS_PATH):
        yield from bodies(canaries, path)
    for model in ("fake-theirs", "fake-their-echo", "fake-401", "fake-500", "fake-cut-before-token"):
        for stream in (False, True):
            body = {"model": model, "messages": HELLO, "stream": stream, "user": canaries.new(model)}
            yield Sending(f"{model} {stream}", "POST", CHAT_PATH, json.dumps(body).encode())


def operator(canaries: Canaries, document: dict[str, Any]) -> Iterator[Sending]:
    """Every operation of the operator's API with keys in its path, its query and each of its fields."""
    schemas = document["components"]["schemas"]
    for path, ways in document["paths"].items():
        for method, operation in ways.items():
            way = method.upper()
            names = re.findall(r"{(\w+)}", path)
            target = path
            for name in names:
                target = target.replace(f"{{{name}}}", quote(canaries.new(f"{way} {path} {name}"), safe=""))
            queries = [each["name"] for each in operation.get("parameters", []) if each["in"] == "query"]
            for query in [*queries, None]:
                key = canaries.new(f"{way} {path} query {query}")
                yield Sending(f"{way} {path} query {query}", way, f"{target}?{query or key}={key}")
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content is None:
                yield Sending(f"{way} {path}", way, target, canaries.new(f"{way} {path} body").encode())
                continue
            schema = schemas[content["schema"]["$ref"].rpartition("/")[2]]
            base = dict.fromkeys(schema.get("required", []), "x")
            for sending in fields(canaries, target, base, list(schema["properties"])):
                sending.method = way
                yield sending
            yield Sending(f"{way} {path} bad JSON", way, target, b"{" + canaries.new(f"{way} {path} bad JSON").encode())


# --- sending and looking ----------------------------------------------------------------------------


def send(url: str, sending: Sending, key: str | None) -> bytes:
    """All that comes back, head and body."""
    host = urlsplit(url)
    head = {"Host": "box", "Content-Length": str(len(sending.body)), "Content-Type": "application/json"}
    if key is not None:
        head["Authorization"] = f"Bearer {key}"
    for name, value in sending.headers.items():
        head = {known: old for known, old in head.items() if known.lower() != name.lower()} | {name: value}
    lines = [f"{sending.method} {sending.target or '/'} HTTP/1.1", *(f"{n}: {v}" for n, v in head.items())]
    with socket.create_connection((host.hostname, host.port), timeout=60) as connection:
        try:
            connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + sending.body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was refused before its end
        got = b""
        try:
            while data := connection.recv(1 << 16):
                got += data
        except ConnectionResetError:
            pass
    return got


def ask_all(url: str, sendings: Iterator[Sending], key: str | None, canaries: Canaries) -> list[int]:
    """The status of each answer. Raises AssertionError when an answer holds a canary."""
    statuses, hits = [], []
    hunt = Hunt([MARK, UPSTREAM_KEY, CLIENT_SECRET])
    for sending in sendings:
        got = send(url, sending, key)
        before = len(hunt.hits)
        hunt.text(sending.place, got)
        if len(hunt.hits) > before:
            hits.append(f"{sending.place}: …{got[-300:]!r}")
        assert got, sending.place
        statuses.append(int(got.split(b" ", 2)[1]))
    assert hits == []
    return statuses


def look(box: Box) -> None:
    """Logs, database, metrics, pages, traces."""
    hunt = box.gateway.hunt()
    assert hunt.hits == []
    answers = box.gateway.hunt_answers()
    assert answers.hits == []
    traces = Hunt([*box.gateway.secrets - {COLLECTOR_TOKEN}], forms=True)
    traces.text("traces", box.collector.raw)
    assert traces.hits == []


def test_the_public_listener(box: Box) -> None:
    canaries, gateway = Canaries(), box.gateway
    statuses = ask_all(gateway.url, public(canaries), gateway.user_key, canaries)
    # What a provider answers passes as it is, but only to its caller.
    odd = Sending("reason", "POST", CHAT_PATH, json.dumps({"model": "fake-their-reason", "messages": HELLO}).encode())
    assert MARK.encode() in send(gateway.url, odd, gateway.user_key)
    asked = {"model": "fake-their-echo", "messages": HELLO}
    assert b" 502 " in send(gateway.url, Sending("e", "POST", CHAT_PATH, json.dumps(asked).encode()), gateway.user_key)
    streamed = json.dumps({**asked, "stream": True}).encode()
    told = send(gateway.url, Sending("echo", "POST", CHAT_PATH, streamed), gateway.user_key)
    assert b"Hello" in told
    assert b"repeated the gateway's credential" in told
    assert b"[DONE]" not in told
    # Enough of them went the whole way, and enough were refused.
    assert statuses.count(200) > 20
    assert sum(400 <= status < 500 for status in statuses) > 300
    assert 500 not in statuses
    rows = [row for row in gateway.rows() if row["outcome"] == "completed"]
    assert len(rows) >= 20
    assert any(row["content_digest"] for row in rows)
    spans = len(rows)
    box.collector.wait(lambda: len(box.collector.spans) >= spans)
    look(box)
    assert "other" in {reason for row in gateway.rows() for reason in row["finish_reasons"]}
    # What the provider saw: its own key and the texts, no key of a caller's.
    seen = Hunt([MARK, *(gateway.secrets - {UPSTREAM_KEY})])
    for request in box.upstream.call(lambda: list(box.upstream.fake.seen)):
        seen.text("headers at the provider", repr(request.headers))
    assert seen.hits == []
    assert seen.looked_at > 20


@pytest.mark.parametrize("credential", ["none", "wrong", "forged", "right"])
def test_credentials_of_every_kind(box: Box, credential: str) -> None:
    """Keys of the right and of wrong people, tokens of the right and of wrong issuers."""
    canaries, gateway = Canaries(), box.gateway
    claims = {"iss": ISSUER, "aud": "outpost", "sub": f"op-{MARK}000009{FILL}"[:40], "preferred_username": "Ada"}
    claims |= {"iat": int(time.time()), "exp": int(time.time()) + 600}
    tokens = {
        "none": None,
        "wrong": canaries.new("a wrong key"),
        "forged": sign(claims, ec("canary-forged"), "ES256"),
        "right": sign(claims | {"sub": "ada"}, ec("canary"), "ES256"),
    }
    token = tokens[credential]
    if token is not None:
        gateway.secrets.add(token)
    chat = {"model": "fake-ok", "messages": HELLO, "user": canaries.new("user")}
    sendings = [
        Sending("chat", "POST", CHAT_PATH, json.dumps(chat).encode()),
        Sending("models", "GET", "/v1/models"),
        Sending("me", "GET", f"/admin/v1/me?token={token}"),
        Sending("login", "GET", f"/login/corp?state={canaries.new('state')}"),
        Sending("callback", "GET", f"/login/callback?code={canaries.new('code')}&state={canaries.new('state')}"),
        Sending("refusal", "GET", f"/login/callback?error={canaries.new('x')}&error_description={canaries.new('y')}"),
    ]  # fmt: skip
    public_ones = ask_all(gateway.url, iter(sendings[:2]), token, canaries)
    assert set(public_ones) == ({200} if credential == "right" else {401})
    ask_all(gateway.operator_url, iter(sendings), token, canaries)
    if token is not None:
        gateway.control.call("GET", "/admin/v1/requests")
    look(box)


def test_the_operators_listener(box: Box) -> None:
    canaries, gateway = Canaries(), box.gateway
    with gateway.http() as http:
        document = http.get(f"{gateway.operator_url}/admin/v1/openapi.json").raise_for_status().json()
    statuses = ask_all(gateway.operator_url, operator(canaries, document), gateway.key, canaries)
    assert len(statuses) > 200
    assert 500 not in statuses
    assert sum(400 <= status < 500 for status in statuses) > 150
    paths = ["/admin/v1/keys", "/metrics", "/admin", "/login"]
    statuses = ask_all(gateway.operator_url, targets(canaries, paths), gateway.key, canaries)
    assert 500 not in statuses
    post = ("POST", "/admin/v1/keys", b'{"name": "fine name"}')
    ask_all(gateway.operator_url, headers(canaries, [post, ("GET", "/admin/v1/me", b"")]), gateway.key, canaries)
    ask_all(gateway.operator_url, bodies(canaries, "/admin/v1/keys"), gateway.key, canaries)
    look(box)


def test_engines_are_given_no_secret(box: Box) -> None:
    """Arguments and environment of everything that the gateway has started."""
    gateway = box.gateway
    kept = [path.read_text().strip() for path in (gateway.data_dir / "secrets").iterdir()]
    hunt = Hunt([*gateway.secrets, *kept], forms=True)
    process, *others = gateway.processes()
    hunt.text("the gateway's arguments", Path(f"/proc/{process.pid}/cmdline").read_bytes())
    assert UPSTREAM_KEY.encode() in Path(f"/proc/{process.pid}/environ").read_bytes()
    known = 0  # the engine's environment and its keeper's; helpers of the engine have none
    for each in others:
        for name in ("cmdline", "environ"):
            data = Path(f"/proc/{each.pid}/{name}").read_bytes()
            known += b"PATH=" in data
            hunt.text(f"{name} of {each.pid}", data)
    assert known >= 2
    assert hunt.hits == []
    assert CLIENT_SECRET in gateway.secrets
    assert len(kept) >= 2


def test_the_hunt_of_this_file_finds_what_is_sent(box: Box) -> None:
    """A place that echoes is told by its name."""
    canaries = Canaries()
    echo = Sending("an echo", "POST", CHAT_PATH, msgspec.json.encode({"model": "fake-echo"}))
    hunt = Hunt([MARK])
    hunt.text(echo.place, canaries.new("an echo"))
    hunt.text(echo.place, base64.b64encode(f"user:{canaries.new('an echo')}".encode()))
    assert [hit.partition(":")[0] for hit in hunt.hits] == ["an echo", "an echo"]
