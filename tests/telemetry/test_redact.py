"""Whatever a credential is put into, it does not come out; and what is none, does."""

from __future__ import annotations

import base64
import json
import re
import string
import time
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.identity.keys import new_key
from appliance.redact import (
    MIN_SECRET,
    REDACTED,
    Secrets,
    looks_secret,
    redact_keys,
    redact_looks,
    shown,
)

URLSAFE = string.ascii_letters + string.digits + "-_"
KEYS = st.binary(min_size=32, max_size=32).map(lambda raw: new_key(lambda _: raw))
JWTS = st.tuples(*[st.text(URLSAFE, min_size=12, max_size=60)] * 3).map(lambda p: f"eyJ{p[0]}.{p[1]}.{p[2]}")
PROVIDER_KEYS = st.sampled_from(["sk-", "sk-proj-", "sk-ant-api03-", "gsk_", "hf_", "AIza", "xai-", "nvapi-"]).flatmap(
    lambda prefix: st.text(string.ascii_letters + string.digits, min_size=40, max_size=60).map(prefix.__add__)
)
AROUND = st.text(max_size=30)
# A letter right before sk- makes it part of a word; the others are found anywhere.
EMBED = st.sampled_from(
    [
        "{}",
        "Bearer {}",
        "Authorization: Bearer {}",
        "{{'Authorization': 'Bearer {}'}}",
        "(b'Authorization', b'Bearer {}')",
        '{{"api_key": "{}"}}',
        '{{\\"api_key\\": \\"{}\\"}}',
        "https://example.test/v1?api_key={}&x=1",
        "https://user:{}@example.test/",
        "x-api-key: {}",
        "ValueError: bad key {}, sorry",
        "\x1b[31m{}\x1b[0m",
        "one\r\n{}\r\ntwo",
        "[{}]",
        "«{}»",
        "…{}\u2028",
        "curl -H 'Authorization: Bearer {}'",
        "/v1/models/{}/x",
    ]
)


@given(st.one_of(KEYS, JWTS, PROVIDER_KEYS), EMBED, AROUND, AROUND)
@settings(max_examples=500)
def test_what_looks_like_a_credential_never_comes_out(canary: str, how: str, before: str, after: str) -> None:
    text = redact_looks(f"{before} {how.format(canary)} {after}")
    assert canary not in text
    pieces = {canary[start : start + 12] for start in range(3, len(canary) - 12, 4)}
    assert [piece for piece in pieces if piece in text and piece not in before + " " + after] == []


@given(KEYS, st.text(max_size=20), st.text(max_size=20))
@settings(max_examples=300)
def test_our_keys_are_found_in_the_middle_of_words_and_encoded(key: str, before: str, after: str) -> None:
    assert key not in redact_looks(before + key + after)
    encoded = key.replace("-", "%2D")
    assert encoded not in redact_looks(f"{before}{encoded}{after}")
    assert key[:20] not in redact_looks(f"{key[:20]}")


@given(
    st.text(min_size=MIN_SECRET, max_size=40),
    st.sampled_from(
        [
            str,
            repr,
            json.dumps,
            lambda s: json.dumps(s, ensure_ascii=False),
            lambda s: quote(s, safe="", errors="surrogatepass"),
            lambda s: repr(s.encode("utf-8", "surrogatepass")),
        ]
    ),
    AROUND,
    AROUND,
)
@settings(max_examples=500)
def test_a_known_secret_never_comes_out_however_it_is_spelled(how_secret: str, spell: object, a: str, b: str) -> None:
    secrets = Secrets()
    secrets.add(how_secret)
    spelled = spell(how_secret)  # type: ignore[operator]
    inner = spelled.strip("'\"") if spelled != how_secret else spelled
    # What stands in place of a secret may hold the secret's own letters, and shows nothing by that.
    assert how_secret not in secrets.redact(a + spelled + b).replace(REDACTED, " ")
    if len(inner) >= MIN_SECRET and inner not in a + b and spelled in a + spelled + b:
        assert REDACTED in secrets.redact(a + spelled + b)


@given(st.text(URLSAFE, min_size=20, max_size=50), st.binary(max_size=7), st.binary(max_size=7))
def test_a_known_secret_never_comes_out_as_base64(secret: str, before: bytes, after: bytes) -> None:
    secrets = Secrets()
    secrets.add(secret)
    text = secrets.redact("x " + base64.b64encode(before + secret.encode() + after).decode())
    found = [
        base64.b64decode(piece[shift:] + "=" * (-len(piece[shift:]) % 4))
        for piece in re.findall(r"[A-Za-z0-9+/]{12,}", text)
        for shift in range(4)
        if len(piece[shift:]) % 4 != 1
    ]
    assert not any(secret[5:15].encode() in each for each in found)


@given(st.lists(st.text(URLSAFE, min_size=MIN_SECRET, max_size=30), min_size=1, max_size=8), AROUND)
def test_many_secrets_that_hold_each_other(values: list[str], around: str) -> None:
    secrets = Secrets()
    for value in values:
        secrets.add(value)
        secrets.add(value + value)
    text = secrets.redact(around + " ".join(values) + "".join(values) + around)
    assert not any(value in text.replace(REDACTED, " ") for value in values)


@given(st.text())
@settings(max_examples=300)
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    once = redact_looks(text)
    assert redact_looks(once) == once


@pytest.mark.parametrize(
    "text",
    [
        "records_write_failed: OperationalError: database is locked",
        "task-queue, risk-assessment-of-something, stop-sequences-are-set, the loop-device",
        "GET /v1/chat/completions 200 in 0.123456 s",
        'File "appliance/door/door.py", line 66, in handle',
        "smollm2-135m-instruct is ready after 3.5 s; 12 tokens/s; first_token: 10.0",
        "https://collector.example:4318/v1/traces answered 503",
        "the basic idea; the bearer of news",
        "key op-AbCd is revoked",
        "eyJ",
        "request_id=0123456789abcdefghijklmn",
        "no keys: secrets are references",
    ],
)
def test_what_is_no_credential_stays(text: str) -> None:
    assert redact_looks(text) == text


def test_a_private_key_goes_whole_also_when_it_is_cut() -> None:
    begin, end = "-----BEGIN EC PRIVATE KEY-----", "-----END EC PRIVATE KEY-----"
    assert redact_looks(f"a {begin}\nMHcC\n{end} b {begin}\nMHcC\n{end} c") == f"a {REDACTED} b {REDACTED} c"
    assert redact_looks(f"a {begin}\nMHcC\nmore") == f"a {REDACTED}"


def test_words_are_no_secrets() -> None:
    secrets = Secrets()
    for word in ("", "none", "EMPTY", "dummy"):
        secrets.add(word)
    assert secrets.redact("none EMPTY dummy") == "none EMPTY dummy"


def test_what_is_remembered_is_forgotten_with_a_new_secret() -> None:
    secrets = Secrets()
    assert secrets.redact_again("/x/hunter2hunter2") == "/x/hunter2hunter2"
    secrets.add("hunter2hunter2")
    assert secrets.redact_again("/x/hunter2hunter2") == f"/x/{REDACTED}"
    for number in range(5000):
        secrets.redact_again(f"/{number}")
    assert len(secrets._cache) <= 1024


@pytest.mark.parametrize(
    "piece",
    [
        "op-",
        "eyJ",
        "eyJeyJ.",
        "sk-",
        "bearer ",
        "bearer:",
        "authorization: ",
        "authorization",
        "cookie=",
        "://",
        "://a:",
        "://a:b",
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN ",
        "a",
        " ",
        "%",
        "\\",
        "'\"",
        "password='",
        "hunter2hunter",
        "op-%2D",
    ],
)
def test_it_takes_linear_time(piece: str) -> None:
    secrets = Secrets()
    secrets.add("hunter2hunter2hunter2")

    def cost(size: int) -> float:
        text = piece * (size // len(piece))
        best = 1e9
        for _ in range(3):
            began = time.thread_time()
            secrets.redact(text)
            best = min(best, time.thread_time() - began)
        return best

    small, large = cost(1 << 14), cost(1 << 18)
    assert large < 16 * 4 * small + 0.05


BODY = "a1B2c3D4e5" * 5
SAMPLES = [
    *(prefix + BODY for prefix in ("op-", "op%2D", "op%2d", "sk-", "eyJ", "AIza", "ya29.", "ghp_", "gho_", "ghu_")),
    *(prefix + BODY for prefix in ("ghs_", "ghr_", "github_pat_", "glpat-", "gldt-", "glrt-", "glptt-", "hf_", "gsk_")),
    *(f"xox{kind}-{BODY}" for kind in "abeoprs"),
    *(prefix + BODY for prefix in ("xapp-", "xai-", "r8_", "pplx-", "nvapi-", "whsec_", "npm_", "pypi-", "dop_v1_")),
    *(f"{kind}k_{mode}_{BODY}" for kind in "srp" for mode in ("live", "test")),
    *(f"{kind}IOSFODNN7EXAMPLE" for kind in ("AKIA", "ASIA", "ABIA", "ACCA")),
    f"SG.{'a' * 22}.{'b' * 43}",
]


@pytest.mark.parametrize("key", SAMPLES)
@pytest.mark.parametrize("redact", [redact_looks, redact_keys])
def test_every_kind_of_key_is_known(redact: Callable[[str], str], key: str) -> None:
    assert redact(key) == REDACTED
    assert redact(f"the key {key} is here") == f"the key {REDACTED} is here"
    assert redact(f"/v1/%20{key}") == f"/v1/%20{REDACTED}"
    assert looks_secret(key)
    assert redact_looks(f"a/{key}", "[SECRET]") == "a/[SECRET]"


@pytest.mark.parametrize(
    "message",
    [
        "database.password: needs either env or file",
        "providers[0].api_key: needs either env or file; write {env: NAME}",
        "No API key was sent; send the header Authorization: Bearer YOUR_KEY.",
        "The key op-AbCd is revoked.",
        "client_secret: environment variable OIDC_SECRET is not set",
    ],
)
def test_our_own_messages_stay_as_they_are(message: str) -> None:
    assert redact_keys(message) == message


@given(KEYS, st.text("abc ", max_size=90), st.integers(10, 100))
def test_what_is_quoted_is_redacted_before_it_is_cut(key: str, before: str, most: int) -> None:
    text = shown(f"{before} {key}", most)
    assert len(text) <= most + 1
    assert key[: 1 + len("op-")] not in text


@pytest.mark.parametrize("name", ["ops-team", "op-amps", "sk-learn", "research/2026", "project:eyes", "gpt-4o-mini"])
def test_ordinary_names_are_no_secrets(name: str) -> None:
    assert not looks_secret(name)
