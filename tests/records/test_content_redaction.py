"""Redaction: what is found, what stays, and that no text takes long."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st

from appliance.records.redaction import redact_json, redact_secrets, redact_text

SECRETS = [
    "op-" + "a1B2" * 10 + "xyz",
    "sk-proj-abcdEFGH1234abcdEFGH",
    "sk-ant-api03-abcdEFGH1234_-abcd",
    "ghp_" + "a1b2c3d4" * 5,
    "github_pat_" + "a1b2c3d4" * 5,
    "glpat-abcdefghij0123456789",
    "xoxb-1234567890-abcdefghij",
    "AKIAIOSFODNN7EXAMPLE",
    "AIza" + "a1b2c" * 7,
    "hf_" + "aB3dE6gH9j" * 3,
    "sk_live_" + "a1b2c3d4" * 3,
    "npm_" + "a1b2c3d4" * 5,
    "SG." + "a" * 22 + "." + "b" * 43,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
]
PERSONAL = [
    ("max.mustermann+x@mail.example.co.uk", "[EMAIL]"),
    ("müller@exämple.de", "[EMAIL]"),
    ("DE89 3704 0044 0532 0130 00", "[IBAN]"),
    ("DE89370400440532013000", "[IBAN]"),
    ("gb82west12345698765432", "[IBAN]"),
    ("4111 1111 1111 1111", "[CARD]"),
    ("4111111111111111", "[CARD]"),
    ("3782-822463-10005", "[CARD]"),
    ("+49 (0)30 1234567", "[PHONE]"),
    ("+1-555-123-4567", "[PHONE]"),
    ("(555) 123-4567", "[PHONE]"),
    ("0171/1234567", "[PHONE]"),
    ("192.168.17.4", "[IP]"),
    ("2001:db8::8a2e:370:7334", "[IP]"),
    ("::ffff:10.0.0.1", "[IP]"),
]
AROUND = st.sampled_from(["", " ", "\n", "x ", "(", '"', "'", ": ", ", see ", "é ", "12 ", "\u2028"])


@pytest.mark.parametrize("secret", SECRETS)
@bounds(deadline=None, max_examples=30)
@given(before=AROUND, after=st.sampled_from(["", " ", "\n", ")", '"', "'", ", ", ". ", "\u2028"]))
def test_secrets_are_found_wherever_they_stand(secret: str, before: str, after: str) -> None:
    for redact in (redact_secrets, redact_text):
        shown = redact(f"{before}{secret}{after}")
        assert secret not in shown
        assert secret[-12:] not in shown
        assert "[SECRET]" in shown


@pytest.mark.parametrize(("text", "kind"), PERSONAL)
@pytest.mark.parametrize("frame", ["{}", "Write to {}, please.", "a\n{}\nb", "({})", "2024 {} 17 x", "x: {}; y"])
def test_personal_data_becomes_its_kind(text: str, kind: str, frame: str) -> None:
    shown = redact_text(frame.format(text))
    assert text not in shown
    assert kind in shown


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Authorization: Bearer abc.def-123456", "Authorization: Bearer [SECRET]"),
        ("use bearer abcdef0123456789 now", "use bearer [SECRET] now"),
        ("postgresql://bob:hun/ter2@db:5432/x", "postgresql://[SECRET]@db:5432/x"),
        ("postgresql://bob:p@ss@db:5432/x", "postgresql://[SECRET]@db:5432/x"),
        ("redis://:hunter22@cache/0", "redis://[SECRET]@cache/0"),
        ('{"password": "hunter22"}', '{"password": "[SECRET]"}'),
        ("DB_PASSWORD=hunter22;Server=x", "DB_PASSWORD=[SECRET];Server=x"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nrest", "[PRIVATE_KEY]\nrest"),
        ("a -----BEGIN PRIVATE KEY-----\nMIIE cut off", "a [PRIVATE_KEY]"),
        ("data:image/png;base64," + "iVBOR" * 40, "[DATA image/png]"),
    ],
)
def test_forms_with_a_place_of_their_own(text: str, wanted: str) -> None:
    assert redact_text(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox jumps over 13 lazy dogs at 10:30:45 on 2026-11-24.",
        "std::vector<int> a; version 1.2.3 or 10.15; see section 3.1.4.1.5",
        "card 4111 1111 1111 1112 has a wrong digit; IBAN DE00370400440532013000 too",
        "basic understanding of bearer bonds; the token count was 42",
        "sk-learn and op-amps; max_tokens=512; tokens: 12",
        "https://example.org/path?x=1#y",
        "1111 1111 1111 1111",
        "",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact_text(text) == text


SNIPPETS = st.one_of(st.text(max_size=12), st.sampled_from([*SECRETS, *(text for text, _ in PERSONAL), " ", "@", ":"]))


@bounds(deadline=None, max_examples=150)
@given(st.lists(SNIPPETS, max_size=8).map(" ".join))
def test_redacting_twice_changes_nothing(text: str) -> None:
    once = redact_text(text)
    assert redact_text(once) == once


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6) | SNIPPETS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def shape(value: object) -> object:
    if isinstance(value, dict):
        return {name: shape(member) for name, member in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return "text" if isinstance(value, str) else value


@bounds(deadline=None, max_examples=150)
@given(JSON)
def test_the_structure_of_json_stays_and_no_secret_does(value: object) -> None:
    redacted, cut = redact_json(json.dumps(value).encode(), 1 << 20)
    again = json.loads(redacted)
    assert shape(again) == shape(json.loads(json.dumps(value)))
    assert not cut
    texts = [text for text in _texts(value) if text in SECRETS]
    assert not any(text in redacted.decode() for text in texts)


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for member in value.values() for text in _texts(member)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def test_a_card_number_written_as_a_number_goes_too() -> None:
    assert redact_json(b'{"card":4111111111111111,"n":4111111111111112}', 100)[0] == (
        b'{"card":"[CARD]","n":4111111111111112}'
    )


@pytest.mark.parametrize("body", [b"not json: mail a@b.example", b"\xff\xfe a@b.example", b"[" * 100_000])
def test_what_is_no_json_is_redacted_as_text(body: bytes) -> None:
    redacted, _ = redact_json(body, 1 << 20)
    assert b"a@b.example" not in redacted


def test_beyond_the_bound_texts_are_left_out_and_no_half_secret_stays() -> None:
    text = "word " * 10 + SECRETS[0]
    redacted, cut = redact_json(json.dumps([text, "more", "and more"]).encode(), 60)
    assert cut
    assert json.loads(redacted) == ["word " * 10, "", ""]


UNITS = [
    "1 ", "eyJ.", "eyJaaaaaaaa.", "a@", "@", "a@a.", "DE89 ", "-----BEGIN PRIVATE KEY-----", "-----BEGIN ", "bearer a",
    "bearer ", "password=", "password = ", "x://", "x://a:", "a:", "::", "0:", "1.", "+1 ", "(555) ", "030 ", "data:",
    "sk-a ", "SG.", "authorization: bearer ", "ya29.", "\n", "0/ ", ". A", "4 4-", "4444 ", "4111-",
    "a", "-", "é", "data:a,", "1" * 40,
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_time_is_linear_in_the_text(unit: str) -> None:
    def took(size: int) -> float:
        text = (unit * (size // len(unit) + 1))[:size]
        began = time.process_time()
        redact_text(text)
        return time.process_time() - began

    small = min(took(1 << 15) for _ in range(3))
    # Eight times the text: 64 times as long if it were quadratic. The constant covers what a busy machine adds.
    assert took(1 << 18) < 8 * 3 * small + 0.25
