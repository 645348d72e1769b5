"""Right tokens are read; forged ones are refused, each for its own reason, and no answer helps to forge."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import warnings
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st
from joserfc import jwk
from joserfc.errors import SecurityWarning

from appliance.errors import Unauthenticated
from appliance.identity.jwt import MAX_TOKEN, BadToken, Policy, Trusted, UnknownKey, looks_like_token, verify
from appliance.identity.key_set import ALGORITHMS, parse_key_set
from tests.fakes.issuer import b64, ec, ed, key_set, rsa, sign

NOW = 1_800_000_000.0
ISSUER = "https://login.example.com/realms/lab"
OTHER = "https://other.example.com/"
POLICY = Policy(
    name="corp",
    issuer=ISSUER,
    audience=("outpost", "api"),
    algorithms=frozenset({"RS256", "ES256", "EdDSA"}),
)
KEYS = parse_key_set(key_set(rsa(), ec(), ed(), ec("ec-384", "P-384"), rsa("rsa-2")))
OTHER_POLICY = Policy(name="other", issuer=OTHER, audience=("outpost",), algorithms=frozenset({"RS256"}))
OTHER_KEYS = parse_key_set(key_set(rsa("other")))
ISSUERS = {ISSUER: Trusted(POLICY, KEYS), OTHER: Trusted(OTHER_POLICY, OTHER_KEYS)}
CLAIMS: dict[str, Any] = {"iss": ISSUER, "aud": "outpost", "sub": "ann", "iat": NOW - 10, "exp": NOW + 300}


def claims(**changes: Any) -> dict[str, Any]:
    """The right claims with changes; `...` leaves one out."""
    return {name: value for name, value in {**CLAIMS, **changes}.items() if value is not ...}


def check(token: str, now: float = NOW) -> Any:
    return verify(token, ISSUERS, now)


# --- what is accepted ---


@pytest.mark.parametrize(
    ("key", "alg"),
    [(rsa(), "RS256"), (rsa("rsa-2"), "RS256"), (ec(), "ES256"), (ed(), "EdDSA")],
    ids=["rsa", "another-rsa", "ec", "ed"],
)
def test_right_tokens(key: jwk.Key, alg: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SecurityWarning)
        found = check(sign_quietly(claims(groups=["a"]), key, alg, typ="at+jwt"))
    assert (found.issuer, found.subject, found.expires_at) == (ISSUER, "ann", NOW + 300)
    assert found.all["groups"] == ["a"]


def sign_quietly(body: Any, key: jwk.Key, alg: str, **header: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)
        return sign(body, key, alg, **header)


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["x", "api"]},
        {"exp": NOW - 59},
        {"nbf": NOW + 59},
        {"iat": NOW + 59},
        {"iat": ...},
        {"nbf": NOW - 1, "exp": NOW + 1.5},
        {"sub": "a" * 255},
        {"sub": "Ünï 名"},
    ],
    ids=str,
)
def test_what_is_within_bounds(changes: dict[str, Any]) -> None:
    check(sign(claims(**changes), rsa()))


@pytest.mark.parametrize("typ", [None, "JWT", "jwt", "at+jwt", "application/at+jwt"])
def test_types(typ: str | None) -> None:
    check(sign(claims(), rsa(), typ=typ))


def test_a_token_without_kid_finds_the_only_key_of_its_issuer() -> None:
    token = sign(claims(iss=OTHER), rsa("other"), kid=None)
    assert check(token).issuer == OTHER
    for wrong in (sign(claims(), rsa(), kid=None), sign(claims(iss=OTHER), rsa(), kid=None)):
        with pytest.raises(UnknownKey):
            check(wrong)


def test_max_age() -> None:
    strict = {ISSUER: Trusted(msgspec.structs.replace(POLICY, max_age=3600.0), KEYS)}
    verify(sign(claims(iat=NOW - 3600), rsa()), strict, NOW)
    for iat in (NOW - 3661, ...):
        with pytest.raises(BadToken) as refused:
            verify(sign(claims(iat=iat), rsa()), strict, NOW)
        assert refused.value.reason == "max_age"


# --- forged ---


def parts(token: str) -> list[str]:
    return token.split(".")


def tampered(**changes: Any) -> str:
    head, _, signature = parts(sign(claims(), rsa()))
    return f"{head}.{b64(claims(**changes))}.{signature}"


def reheaded(**changes: Any) -> str:
    head, body, signature = parts(sign(claims(), rsa()))
    header = {**json.loads(base64.urlsafe_b64decode(head + "==")), **changes}
    return f"{b64(header)}.{body}.{signature}"


def unsigned(alg: str, signature: str = "") -> str:
    return f"{b64({'alg': alg, 'kid': 'rsa-1'})}.{b64(claims())}.{signature}"


def mac(secret: bytes, alg: str = "HS256", **header: Any) -> str:
    text = f"{b64({'alg': alg, 'kid': 'rsa-1', **header})}.{b64(claims())}"
    return f"{text}.{b64(hmac.digest(secret, text.encode(), getattr(hashlib, 'sha' + alg[2:])))}"


def public_pem(key: jwk.Key) -> bytes:
    return key.as_pem(private=False)  # type: ignore[union-attr]


def raw_ecdsa(r: int, s: int) -> str:
    text = f"{b64({'alg': 'ES256', 'kid': 'ec-1'})}.{b64(claims())}"
    return f"{text}.{b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def der_ecdsa() -> str:
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    token = sign(claims(), ec(), "ES256")
    raw = base64.urlsafe_b64decode(parts(token)[2] + "==")
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    return f"{token.rpartition('.')[0]}.{b64(der)}"


def flipped() -> str:
    token = sign(claims(), rsa())
    raw = bytearray(base64.urlsafe_b64decode(parts(token)[2] + "=="))
    raw[0] ^= 1
    return f"{token.rpartition('.')[0]}.{b64(bytes(raw))}"


def malleated() -> str:
    """The same signature, written with other unused bits."""
    head, _, signature = sign(claims(), rsa()).rpartition(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return f"{head}.{signature[:-1]}{alphabet[alphabet.index(signature[-1]) ^ 1]}"


EVIL = jwk.RSAKey.generate_key(2048, {"kid": "rsa-1"})
CURVE_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
HUGE = b'{"a":' * 1500 + b"1" + b"}" * 1500

FORGED: dict[str, Callable[[], str]] = {
    "empty": lambda: "",
    "two dots": lambda: "..",
    "no signature": lambda: sign(claims(), rsa()).rpartition(".")[0] + ".",
    "two parts": lambda: sign(claims(), rsa()).rpartition(".")[0],
    "four parts": lambda: sign(claims(), rsa()) + ".x",
    "five parts": lambda: "a.b.c.d.e",
    "alg none": lambda: unsigned("none"),
    "alg None": lambda: unsigned("None"),
    "alg NONE with a signature": lambda: unsigned("NONE", "AAAA"),
    "alg none with a signature": lambda: unsigned("none", "AAAA"),
    "alg missing": lambda: f"{b64({'kid': 'rsa-1'})}.{b64(claims())}.AAAA",
    "alg a list": lambda: f"{b64({'kid': 'rsa-1', 'alg': ['RS256']})}.{b64(claims())}.AAAA",
    "alg unknown": lambda: unsigned("RS257", "AAAA"),
    "HS256 with the public key as PEM": lambda: mac(public_pem(rsa())),
    "HS256 with the public key as PEM without its end": lambda: mac(public_pem(rsa()).strip()),
    "HS256 with the public key as JSON": lambda: mac(json.dumps(rsa().as_dict(private=False)).encode()),
    "HS256 with the modulus": lambda: mac(base64.urlsafe_b64decode(str(rsa()["n"]) + "==")),
    "HS384": lambda: mac(public_pem(rsa()), "HS384"),
    "HS512": lambda: mac(public_pem(rsa()), "HS512"),
    "HS256 with an empty secret": lambda: mac(b""),
    "PS256, which the issuer does not use": lambda: sign(claims(), rsa(), "PS256"),
    "a PSS signature under RS256": lambda: sign(claims(), rsa(), "PS256").replace(
        parts(sign(claims(), rsa(), "PS256"))[0], parts(sign(claims(), rsa()))[0]
    ),
    "RS512, which the issuer does not use": lambda: sign(claims(), rsa(), "RS512"),
    "ES384, which the issuer does not use": lambda: sign(claims(), ec("ec-384", "P-384"), "ES384"),
    "ES256 with a P-384 key": lambda: reheaded(alg="ES256", kid="ec-384"),
    "ES256 with an RSA key": lambda: reheaded(alg="ES256"),
    "RS256 with an EC key": lambda: reheaded(kid="ec-1"),
    "EdDSA with an RSA key": lambda: reheaded(alg="EdDSA"),
    "EdDSA with Ed448": lambda: sign_quietly(claims(), ed("ed-1", "Ed448"), "EdDSA"),
    "r = s = 0": lambda: raw_ecdsa(0, 0),
    "r = s = 1": lambda: raw_ecdsa(1, 1),
    "r = s = the order": lambda: raw_ecdsa(CURVE_ORDER, CURVE_ORDER),
    "ECDSA in DER": der_ecdsa,
    "an RSA signature of zeros": lambda: f"{sign(claims(), rsa()).rpartition('.')[0]}.{b64(bytes(256))}",
    "an RSA signature of ones": lambda: f"{sign(claims(), rsa()).rpartition('.')[0]}.{b64(bytes([255]) * 256)}",
    "an empty RSA signature": lambda: f"{sign(claims(), rsa()).rpartition('.')[0]}.AA",
    "a bit flipped": flipped,
    "bits beyond the end": malleated,
    "padding": lambda: sign(claims(), rsa()) + "==",
    "a line break at the end": lambda: sign(claims(), rsa()) + "\n",
    "spaces inside": lambda: sign(claims(), rsa()).replace(".", ". "),
    "standard base64": lambda: sign(claims(), rsa()).replace(".", ".+/", 1),
    "a stranger's key under a known kid": lambda: sign(claims(), EVIL),
    "another issuer's key": lambda: sign(claims(), rsa("other")),
    "another issuer's key under our kid": lambda: sign(claims(), rsa("other"), kid="rsa-1"),
    "another issuer's key and kid of the other": lambda: sign(claims(iss=OTHER), rsa()),
    "an unknown kid": lambda: sign(claims(), rsa(), kid="rsa-9"),
    "a path as kid": lambda: sign(claims(), rsa(), kid="../../dev/null"),
    "SQL as kid": lambda: sign(claims(), rsa(), kid="' UNION SELECT 'x"),
    "a number as kid": lambda: reheaded(kid=1),
    "an object as kid": lambda: reheaded(kid={"a": 1}),
    "an empty kid": lambda: reheaded(kid=""),
    "an endless kid": lambda: reheaded(kid="k" * 300),
    "jwk in the header": lambda: sign(claims(), EVIL, jwk=EVIL.as_dict(private=False)),
    "jku in the header": lambda: sign(claims(), EVIL, jku="https://evil.example.com/jwks"),
    "x5u in the header": lambda: sign(claims(), EVIL, x5u="https://evil.example.com/x5c"),
    "x5c in the header": lambda: sign(claims(), EVIL, x5c=["AAAA"]),
    "jwk beside a right signature": lambda: sign(claims(), rsa(), jwk=rsa().as_dict(private=False)),
    "crit": lambda: reheaded(crit=["exp"], exp=1),
    "an empty crit": lambda: reheaded(crit=[]),
    "an unencoded payload": lambda: reheaded(b64=False, crit=["b64"]),
    "b64 without crit": lambda: reheaded(b64=False),
    "compressed": lambda: sign(claims(), rsa(), zip="DEF"),
    "a token in a token": lambda: sign(sign(claims(), rsa()).encode(), rsa(), cty="JWT"),
    "a token in a token without cty": lambda: sign(sign(claims(), rsa()).encode(), rsa()),
    "a logout token": lambda: sign(claims(), rsa(), typ="logout+jwt"),
    "a proof": lambda: sign(claims(), rsa(), typ="dpop+jwt"),
    "a number as type": lambda: reheaded(typ=1),
    "payload tampered": lambda: tampered(sub="root"),
    "expiry tampered": lambda: tampered(exp=NOW + 9999),
    "payload a list": lambda: sign(b"[1]", rsa()),
    "payload text": lambda: sign(b'"ann"', rsa()),
    "payload no JSON": lambda: sign(b"ann", rsa()),
    "payload not UTF-8": lambda: sign(b'{"sub": "\xff"}', rsa()),
    "payload UTF-16": lambda: sign(json.dumps(claims()).encode("utf-16"), rsa()),
    "payload with a name twice": lambda: sign(json.dumps(claims()).encode()[:-1] + b', "sub": "root"}', rsa()),
    "a nested name twice": lambda: sign(json.dumps(claims()).encode()[:-1] + b', "a": {"b": 1, "b": 2}}', rsa()),
    "header with a name twice": lambda: ".".join(
        [b64(b'{"alg": "none", "alg": "RS256", "kid": "rsa-1"}'), *parts(sign(claims(), rsa()))[1:]]
    ),
    "header a list": lambda: ".".join([b64(b"[]"), *parts(sign(claims(), rsa()))[1:]]),
    "nested too deep": lambda: f"{b64(HUGE)}.{b64(claims())}.AAAA",
    "too large": lambda: sign(claims(x="y" * MAX_TOKEN), rsa()),
    "not ASCII": lambda: sign(claims(), rsa())[:-1] + "é",
    "a lone surrogate": lambda: sign(claims(), rsa())[:-1] + "\ud800",
    "expired": lambda: sign(claims(exp=NOW - 60), rsa()),
    "long expired": lambda: sign(claims(exp=1), rsa()),
    "no expiry": lambda: sign(claims(exp=...), rsa()),
    "expiry null": lambda: sign(claims(exp=None), rsa()),
    "expiry text": lambda: sign(claims(exp=str(NOW + 300)), rsa()),
    "expiry true": lambda: sign(claims(exp=True), rsa()),
    "expiry infinite": lambda: sign(json.dumps(claims()).encode()[:-1] + b', "nbf": 1e999}', rsa()),
    "expiry NaN": lambda: sign(json.dumps(claims(exp=float("nan"))).encode(), rsa()),
    "expiry beyond all": lambda: sign(claims(exp=10**300), rsa()),
    "not yet valid": lambda: sign(claims(nbf=NOW + 61), rsa()),
    "made in the future": lambda: sign(claims(iat=NOW + 61), rsa()),
    "made at no time": lambda: sign(claims(iat="now"), rsa()),
    "issuer missing": lambda: sign(claims(iss=...), rsa()),
    "issuer unknown": lambda: sign(claims(iss="https://evil.example.com"), rsa()),
    "issuer with a slash more": lambda: sign(claims(iss=ISSUER + "/"), rsa()),
    "issuer in capitals": lambda: sign(claims(iss=ISSUER.upper()), rsa()),
    "issuer a list": lambda: sign(claims(iss=[ISSUER]), rsa()),
    "audience missing": lambda: sign(claims(aud=...), rsa()),
    "audience another": lambda: sign(claims(aud="outpost2"), rsa()),
    "audience part of ours": lambda: sign(claims(aud="outpos"), rsa()),
    "audience empty": lambda: sign(claims(aud=[]), rsa()),
    "audience mixed": lambda: sign(claims(aud=["outpost", 1]), rsa()),
    "audience an object": lambda: sign(claims(aud={"outpost": 1}), rsa()),
    "audiences without end": lambda: sign(claims(aud=["outpost", *map(str, range(64))]), rsa()),
    "subject missing": lambda: sign(claims(sub=...), rsa()),
    "subject empty": lambda: sign(claims(sub=""), rsa()),
    "subject a number": lambda: sign(claims(sub=7), rsa()),
    "subject endless": lambda: sign(claims(sub="a" * 256), rsa()),
    "subject with a line break": lambda: sign(claims(sub="ann\nroot"), rsa()),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_forged_tokens(forge: Callable[[], str]) -> None:
    token = forge()
    with pytest.raises(Unauthenticated) as refused:
        check(token)
    assert refused.value.status == 401
    assert isinstance(refused.value, BadToken)
    text = refused.value.message + refused.value.reason
    assert not any(len(piece) > 8 and piece in text for piece in token.split("."))
    for secret in ("ann", "rsa-1", "evil", ISSUER):
        assert secret not in text


def test_there_are_forties_of_them_and_each_differs_from_a_right_one() -> None:
    assert len(FORGED) >= 40
    right = sign(claims(), rsa())
    assert all(forge() != right for forge in FORGED.values())


BEFORE_THE_SIGNATURE = [
    "alg none",
    "a stranger's key under a known kid",
    "payload tampered",
    "an unknown kid",
    "crit",
    "issuer unknown",
    "HS256 with the modulus",
    "expiry tampered",
    "too large",
    "payload no JSON",
]


def test_who_cannot_sign_learns_nothing() -> None:
    """All refusals before the signature say the same."""
    said = set()
    for name in BEFORE_THE_SIGNATURE:
        with pytest.raises(BadToken) as refused:
            check(FORGED[name]())
        said.add((refused.value.message, refused.value.code))
    assert len(said) == 1


def test_an_allowed_symmetric_algorithm_is_refused_all_the_same() -> None:
    """Even if somebody built a policy in code that allows it."""
    open_door = {ISSUER: Trusted(msgspec.structs.replace(POLICY, algorithms=frozenset({"HS256", "none"})), KEYS)}
    for token in (mac(public_pem(rsa())), unsigned("none", "AAAA")):
        with pytest.raises(BadToken):
            verify(token, open_door, NOW)
    assert not {"none", "HS256", "HS384", "HS512"} & ALGORITHMS


# --- properties ---

GOOD = sign(claims(), ec(), "ES256")


@bounds(deadline=None, max_examples=200)
@given(at=st.integers(0, len(GOOD) - 1), by=st.characters(min_codepoint=32, max_codepoint=126))
def test_no_character_can_be_changed(at: int, by: str) -> None:
    if GOOD[at] == by:
        check(GOOD)
        return
    with pytest.raises(BadToken):
        check(GOOD[:at] + by + GOOD[at + 1 :])


@bounds(deadline=None, max_examples=200)
@given(text=st.one_of(st.text(max_size=60), st.lists(st.binary(max_size=40), min_size=3, max_size=3).map(
    lambda three: ".".join(b64(each) for each in three))))  # fmt: skip
def test_nonsense_is_refused_without_a_crash(text: str) -> None:
    with pytest.raises(BadToken):
        check(text)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@bounds(deadline=None, max_examples=150)
@given(
    changes=st.dictionaries(st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "iat"]), JSON, min_size=1, max_size=3)
)
def test_signed_nonsense_is_read_or_refused(changes: dict[str, Any]) -> None:
    """Whatever an issuer signs: claims with our audience and a subject, or BadToken."""
    try:
        found = check(sign({**CLAIMS, **changes}, ec(), "ES256"))
    except BadToken:
        return
    assert found.issuer == ISSUER
    assert isinstance(found.subject, str)
    assert found.expires_at > NOW - 60


@bounds(deadline=None, max_examples=100)
@given(exp=st.integers(-200, 200), now=st.integers(-200, 200))
def test_expiry_is_exact_to_the_skew(exp: int, now: int) -> None:
    token = sign(claims(exp=NOW + exp, iat=...), ec(), "ES256")
    if exp + 60 > now:
        check(token, NOW + now)
    else:
        with pytest.raises(BadToken):
            check(token, NOW + now)


@pytest.mark.parametrize(
    ("text", "looks"),
    [
        (GOOD, True),
        ("op-" + "a" * 43, False),
        ("eyJa.b", False),
        ("eyJa.b.c.d", False),
        ("a.b.c", False),
        ("eyJhbGciOiJub25lIn0..", True),
    ],
)
def test_what_looks_like_a_token(text: str, looks: bool) -> None:
    assert looks_like_token(text) is looks
