"""Keys as pure functions."""

from __future__ import annotations

import hashlib
import hmac

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.identity.keys import (
    KEY_BYTES,
    SHOWN,
    FixedKey,
    KeyHasher,
    fixed_entries,
    hkdf,
    new_key,
)
from appliance.identity.principal import DEFAULT_ORGANIZATION, Principal, Restrictions
from appliance.identity.snapshot import KeyRecord, Organization, ServiceAccount, Snapshot, User
from tests.fakes.keys import is_key

HOME = Organization(DEFAULT_ORGANIZATION, "default", 0.0)
SECRET = bytes(range(32))
ANY_TEXT = st.text(st.characters(exclude_categories=[]))


@given(st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES))
def test_a_new_key_has_the_form(random: bytes) -> None:
    key = new_key(lambda size: random[:size])
    assert is_key(key)
    assert len(key) == 46
    assert key.startswith("op-")
    assert key.isascii()


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_keys_differ_as_their_random_bytes_do(one: bytes, two: bytes) -> None:
    assert (new_key(lambda _: one) == new_key(lambda _: two)) == (one == two)


@pytest.mark.parametrize(
    ("secret", "salt", "info", "length", "wanted"),
    [  # RFC 5869, appendix A, test cases 1 to 3
        (
            "0b" * 22,
            "000102030405060708090a0b0c",
            "f0f1f2f3f4f5f6f7f8f9",
            42,
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            bytes(range(0x50)).hex(),
            bytes(range(0x60, 0xB0)).hex(),
            bytes(range(0xB0, 0x100)).hex(),
            82,
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
            "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (
            "0b" * 22,
            "",
            "",
            42,
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
)
def test_hkdf_vectors(secret: str, salt: str, info: str, length: int, wanted: str) -> None:
    assert hkdf(bytes.fromhex(secret), bytes.fromhex(info), length, bytes.fromhex(salt)).hex() == wanted


@given(st.binary(min_size=1, max_size=64), st.binary(max_size=32), st.integers(0, 200), st.integers(0, 200))
def test_a_shorter_hkdf_is_a_prefix_of_a_longer(secret: bytes, info: bytes, one: int, two: int) -> None:
    short, long = sorted((one, two))
    assert hkdf(secret, info, long)[:short] == hkdf(secret, info, short)
    assert len(hkdf(secret, info, long)) == long


@given(st.binary(min_size=1, max_size=64), st.binary(max_size=32), st.binary(max_size=32))
def test_purposes_do_not_share_keys(secret: bytes, one: bytes, two: bytes) -> None:
    assert (hkdf(secret, one) == hkdf(secret, two)) == (one == two)


def test_hkdf_has_an_end() -> None:
    assert len(hkdf(SECRET, b"", 8160)) == 8160
    with pytest.raises(ValueError, match="8160"):
        hkdf(SECRET, b"", 8161)


@given(ANY_TEXT, ANY_TEXT)
def test_the_whole_key_is_hashed(one: str, two: str) -> None:
    hasher = KeyHasher(SECRET)
    assert (hasher.digest(one) == hasher.digest(two)) == (one == two)
    assert len(hasher.digest(one)) == 32


def standing_of(hasher: KeyHasher, keys: dict[str, KeyRecord], presented: str) -> Principal | None:
    standing = Snapshot([HOME, *keys.values()]).standing(hasher.digest(presented))
    return None if standing is None else standing.principal


@given(st.text("abc", min_size=1, max_size=40), st.integers(0, 39))
def test_equal_prefixes_share_nothing(text: str, cut: int) -> None:
    hasher = KeyHasher(SECRET)
    keys = {text: KeyRecord(hasher.digest(text), "key_1", "one", "admin")}
    assert standing_of(hasher, keys, text) == Principal("key_1", "one", "admin")
    if cut < len(text):
        assert standing_of(hasher, keys, text[:cut]) is None
    assert standing_of(hasher, keys, text + "a") is None


@given(st.text(min_size=20, max_size=40), st.lists(st.text(max_size=8), min_size=2, max_size=8, unique=True))
def test_keys_that_begin_alike_have_owners_of_their_own(prefix: str, ends: list[str]) -> None:
    hasher = KeyHasher(SECRET)
    texts = [prefix + end for end in ends]
    keys = {t: KeyRecord(hasher.digest(t), f"key_{n}", str(n), "member") for n, t in enumerate(texts)}
    for number, text in enumerate(texts):
        found = standing_of(hasher, keys, text)
        assert found is not None
        assert found.key_id == f"key_{number}"


def test_a_key_of_somebody_of_another_organization_is_worth_nothing() -> None:
    digest = KeyHasher(SECRET).digest("x")
    key = KeyRecord(digest, "key_1", "one", "member", organization="org_a")
    people = [User("user_1", "org_b", "Ada", "member", 0.0), ServiceAccount("sa_1", "org_b", "bot", "member", 0.0)]
    snapshot = Snapshot([Organization("org_a", "a", 0.0), Organization("org_b", "b", 0.0), *people])
    for field, holder in zip(("user", "service_account"), people, strict=True):
        held = msgspec.structs.replace(key, **{field: holder.id})
        found = snapshot.resolve(held)
        assert found.principal is None
        assert "that is not there" in found.refusal
        home = msgspec.structs.replace(held, organization="org_b")
        assert snapshot.resolve(home).principal is not None


def test_the_digest_is_hmac_under_a_derived_key() -> None:
    derived = hkdf(SECRET, b"outpost api keys v1")
    assert KeyHasher(SECRET).digest("op-x") == hmac.new(derived, b"op-x", hashlib.sha256).digest()
    assert KeyHasher(SECRET).digest("op-x") != KeyHasher(SECRET[::-1]).digest("op-x")
    assert KeyHasher(SECRET).secret_id != KeyHasher(SECRET[::-1]).secret_id


def test_fixed_keys() -> None:
    hasher = KeyHasher(SECRET)
    entries = fixed_entries(hasher, [FixedKey("ci", "x" * 20, "admin"), FixedKey("bot", "y" * 20, "member")])
    digest = hasher.digest("x" * 20)
    assert entries[digest] == KeyRecord(digest, "fixed:ci", "ci", "admin")
    with pytest.raises(ValueError, match="'ci' has under 20"):
        fixed_entries(hasher, [FixedKey("ci", "x" * 19, "admin")])
    with pytest.raises(ValueError, match="'two' and 'one' have the same key"):
        fixed_entries(hasher, [FixedKey("one", "x" * 20, "member"), FixedKey("two", "x" * 20, "member")])
    limited = FixedKey("ci", "x" * 20, "admin", team="lab", restrictions=Restrictions(addresses=("10.0.0.1",)))
    (entry,) = fixed_entries(hasher, [limited]).values()
    assert (entry.team, entry.restrictions.addresses) == ("lab", ("10.0.0.1/32",))
    bad = FixedKey("ci", "x" * 20, "admin", restrictions=Restrictions(addresses=("10.0.0.1/8",)))
    with pytest.raises(ValueError, match=r"'ci': restrictions.addresses.*write 10.0.0.0/8"):
        fixed_entries(hasher, [bad])
    assert "xxxx" not in repr(FixedKey("ci", "x" * 20, "admin"))


def test_what_is_shown_of_a_key_is_seven_characters() -> None:
    assert SHOWN == 7
