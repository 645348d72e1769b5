from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from unittest.mock import patch
from urllib.parse import quote

import aiohttp
import pytest
import yarl
from aiohttp import web
from aiohttp.test_utils import TestServer
from botocore import auth as botocore_auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from appliance.errors import UpstreamError
from appliance.providers.auth import kind_of, make
from appliance.providers.auth_base import Auth, Surroundings, header_value
from appliance.providers.auth_sigv4 import SigV4

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
AWS = {"access_key": "AKIDEXAMPLE", "secret_key": SECRET, "region": "us-east-1", "service": "service"}
"""The credentials of AWS's published examples."""
THEN = 1440938160.0
"""2015-08-30 12:36:00 UTC, the time of these examples."""


def around(wall: float = THEN) -> Surroundings:
    return Surroundings("cloud", wall=lambda: wall)


def signer(**changes: str) -> SigV4:
    made = make("sigv4", {**AWS, **changes}, around())
    assert isinstance(made, SigV4)
    return made


async def ask(auth: Auth, key: str | None) -> Mapping[str, str]:
    return await auth.headers("POST", yarl.URL("https://example.com/v1/chat"), b"{}", {}, key)


@pytest.mark.parametrize(
    ("kind", "headers"),
    [
        ("none", {}),
        ("bearer", {"Authorization": "Bearer sk-1"}),
        ("bedrock_api_key", {"Authorization": "Bearer sk-1"}),
        ("header:x-api-key", {"x-api-key": "sk-1"}),
        ("header:x-goog-api-key", {"x-goog-api-key": "sk-1"}),
    ],
)
async def test_a_key_makes_the_same_headers_for_every_request(kind: str, headers: dict[str, str]) -> None:
    made = make(kind, {}, around())
    assert not made.per_request
    assert kind_of(kind).keyed == bool(headers)
    assert await ask(made, "sk-1") == headers
    made.refused()
    assert await ask(made, "sk-1") == headers
    assert await ask(made, None) == await ask(made, "") == {}


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("basic", {}, "there is no such kind"),
        ("header:", {}, "no name of a header"),
        ("header:a b", {}, "no name of a header"),
        ("bearer", {"region": "r"}, "takes no region"),
        ("sigv4", {"access_key": "a", "region": ""}, "needs secret_key, region"),
        ("sigv4", {**AWS, "region": "us east"}, "region"),
        ("sigv4", {**AWS, "service": "../x"}, "service"),
        ("sigv4", {**AWS, "access_key": "a\nb"}, "access_key"),
        ("sigv4", {**AWS, "session_token": "a b"}, "session_token"),
        ("google_service_account", {}, "needs service_account"),
        ("google_service_account", {"service_account": "{}", "key": "k"}, "takes no key"),
    ],
)
def test_what_cannot_be_made_is_named(kind: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(kind, options, around())


@pytest.mark.parametrize("bad", ["sk-secret\r\nX-Admin: 1", "sk-secret\n", "sk- secret", "sk-secretä"])
@pytest.mark.parametrize("kind", ["bearer", "header:api-key", "bedrock_api_key"])
async def test_a_key_that_would_break_out_of_its_header_is_refused_unseen(kind: str, bad: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        await ask(make(kind, {}, around()), bad)
    assert caught.value.code == "upstream_credentials"
    assert "secret" not in caught.value.message
    with pytest.raises(ValueError, match="no header can carry") as early:
        header_value(bad)
    assert "secret" not in str(early.value)


def test_a_secret_is_in_no_repr() -> None:
    assert SECRET not in repr(signer())
    assert SECRET not in repr(vars(signer())["_signer"].credentials)


# --- AWS ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "url", "signature"),
    [
        ("GET", "https://example.amazonaws.com/", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ("POST", "https://example.amazonaws.com/", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        (
            "GET",
            "https://example.amazonaws.com/?Param2=value2&Param1=value1",
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
    ],
)
def test_the_published_examples(method: str, url: str, signature: str) -> None:
    headers = signer().sign(method, yarl.URL(url), b"", {})
    assert headers == {
        "X-Amz-Date": "20150830T123600Z",
        "Authorization": "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
        f"SignedHeaders=host;x-amz-date, Signature={signature}",
    }


@pytest.mark.parametrize("token", [None, "a-session-token"])
@pytest.mark.parametrize("model", ["anthropic.claude-opus-4-6-v1%3A0", "arn%3Aaws%3Abedrock%3Aeu%3A1%3Ax%2Fabc"])
async def test_a_signature_is_what_botocore_itself_makes(model: str, token: str | None) -> None:
    url = yarl.URL(f"https://bedrock-runtime.us-east-1.amazonaws.com/model/{model}/converse", encoded=True)
    body = b'{"messages":[]}'
    request = AWSRequest("POST", str(url), {"Content-Type": "application/json"}, body)
    credentials = Credentials(AWS["access_key"], SECRET, token)
    import datetime

    with patch.object(
        botocore_auth, "get_current_datetime", lambda: datetime.datetime.fromtimestamp(THEN, datetime.UTC)
    ):
        botocore_auth.SigV4Auth(credentials, "bedrock", "us-east-1").add_auth(request)
    made = signer(service="bedrock", **({"session_token": token} if token else {}))
    assert made.per_request
    sent = {"Content-Type": "application/json", "Accept": "text/event-stream", "traceparent": "00-1-2-01"}
    found = await made.headers("POST", url, body, sent, None)
    assert {**found, "Content-Type": "application/json"} == dict(request.headers.items())


def test_each_request_has_its_time_and_its_body() -> None:
    url = yarl.URL("https://example.com/model/m/converse")
    now = [THEN]
    made = make("sigv4", AWS, Surroundings("cloud", wall=lambda: now[0]))
    assert isinstance(made, SigV4)
    first = made.sign("POST", url, b"a", {})
    assert made.sign("POST", url, b"a", {}) == first
    assert made.sign("POST", url, b"b", {})["Authorization"] != first["Authorization"]
    now[0] += 1
    assert made.sign("POST", url, b"a", {})["X-Amz-Date"] == "20150830T123601Z"


def checked(request: web.BaseRequest, body: bytes) -> bool:
    """Whether a request as it came over the wire bears the signature that AWS would find for it."""

    def sign(key: bytes, text: str) -> bytes:
        return hmac.new(key, text.encode(), hashlib.sha256).digest()

    scheme, _, rest = request.headers["Authorization"].partition(" ")
    fields = dict(part.split("=", 1) for part in rest.split(", "))
    names = fields["SignedHeaders"].split(";")
    raw = request.raw_path.partition("?")[0]
    canonical = "\n".join(
        [
            request.method,
            quote(raw, safe="/~-_."),
            request.raw_path.partition("?")[2],
            *[f"{name}:{request.headers[name]}" for name in names],
            "",
            fields["SignedHeaders"],
            hashlib.sha256(body).hexdigest(),
        ]
    )
    scope = fields["Credential"].partition("/")[2]
    key = f"AWS4{SECRET}".encode()
    for part in scope.split("/"):
        key = sign(key, part)
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join([scheme, request.headers["X-Amz-Date"], scope, digest])
    return hmac.compare_digest(sign(key, text).hex(), fields["Signature"])


@pytest.mark.parametrize(
    "path", ["model/m/converse", "model/a.b-v1%3A0/converse-stream", "model/arn%3Aaws%3Ax%2Fy/converse", "model/a:0/x"]
)
@pytest.mark.parametrize("encoded", [True, False])
async def test_what_comes_over_the_wire_is_what_was_signed(path: str, encoded: bool) -> None:
    seen: list[bool] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        seen.append(checked(request, await request.read()))
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        url = yarl.URL(f"http://127.0.0.1:{server.port}/{path}", encoded=encoded)
        sent = {"Content-Type": "application/json"}
        for body, signed in ((b'{"a":1}', b'{"a":1}'), (b'{"a":2}', b'{"a":1}')):
            headers = {**sent, **await signer(service="bedrock").headers("POST", url, signed, sent, None)}
            async with session.post(url, data=body, headers=headers) as response:
                assert response.status == 200
    assert seen == [True, False]
