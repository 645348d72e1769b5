"""What claims make of somebody, whatever stands in them."""

from __future__ import annotations

import unicodedata
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import BadRequest, PermissionDenied
from appliance.identity.claims import BY_POWER, Person, Rules, find, person_of, shown_name
from appliance.identity.jwt import BadToken, Claims, Policy
from appliance.identity.people_work import check_name
from appliance.identity.permissions import ROLES, Role
from appliance.settings.people import ROLE_NAMES

POLICY = Policy("corp", "https://login.example.com", ("outpost",), frozenset({"RS256"}))
RULES = Rules(
    role="realm_access.roles",
    team="groups",
    roles={"outpost-admins": "admin", "outpost-auditors": "auditor", "outpost-users": "member"},
    teams={"lab-users": "lab", "ops-users": "ops"},
    default_role="member",
)


def person(rules: Rules = RULES, **claims: Any) -> Person:
    return person_of(Claims(POLICY, "u-1", 1.0, {"sub": "u-1", **claims}), rules)


def test_the_lists_of_roles_agree() -> None:
    assert set(BY_POWER) == set(ROLES) == set(get_args(Role)) == set(ROLE_NAMES)
    assert BY_POWER == ROLE_NAMES


def test_a_person() -> None:
    found = person(
        preferred_username="ann", realm_access={"roles": ["x", "outpost-auditors"]}, groups=["ops-users", "lab-users"]
    )
    both = frozenset({"lab", "ops"})
    assert found == Person("https://login.example.com", "u-1", "ann", "auditor", "lab", teams=both)


@pytest.mark.parametrize(
    ("value", "role"),
    [
        (["outpost-users", "outpost-auditors", "outpost-admins"], "admin"),
        (["outpost-users"], "member"),
        ("outpost-admins", "admin"),
        (["admin", "owner"], "member"),
        ("owner", "member"),
        (["OUTPOST-ADMINS"], "member"),
        ({"outpost-admins": True}, "member"),
        ([["outpost-admins"]], "member"),
        (None, "member"),
        (7, "member"),
        (["x"] * 1000 + ["outpost-admins"], "member"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_roles(value: Any, role: str) -> None:
    """Only what the settings list counts, and of several the most powerful."""
    assert person(realm_access={"roles": value}).role == role


def test_without_a_role_and_a_default_nobody_comes_in() -> None:
    with pytest.raises(PermissionDenied, match="no role"):
        person(Rules(role="groups", roles={"a": "admin"}), groups=["b"])
    with pytest.raises(PermissionDenied):
        person(Rules())


@pytest.mark.parametrize(
    ("teams", "value", "named"),
    [
        ({"b": "two", "a": "one", "c": "three"}, ["a", "b", "z"], ["two", "one"]),
        ({"a": "one"}, ["b"], []),
        ({"a": "one"}, "a", ["one"]),
        ({}, ["x", "y"], ["x", "y"]),
        ({}, "x", ["x"]),
        ({}, [], []),
        ({}, [7, None, "x"], ["x"]),
        ({}, None, []),
    ],
)
def test_teams(teams: dict[str, str], value: Any, named: list[str]) -> None:
    found = person(Rules(team="groups", teams=teams, default_role="member"), groups=value)
    assert found.team == (named[0] if named else None)
    assert found.teams == set(named)


def test_an_organization_is_never_the_boxs_own_by_omission() -> None:
    rules = Rules(organization="tenant", default_role="member")
    for tenant in ("acme", ["acme"]):
        found = person(rules, tenant=tenant)
        assert (found.organization, found.organization_claimed) == ("acme", True)
    for wrong in (None, "", [], ["acme", "other"], 7, {"acme": 1}):
        with pytest.raises(PermissionDenied, match="one organization"):
            person(rules, tenant=wrong)
    own = Rules(organization="tenant", fixed_organization="default", default_role="member")
    found = person(own, tenant="acme")
    assert (found.organization, found.organization_claimed) == ("default", False), "the settings may"
    found = person(Rules(default_role="member"))
    assert (found.organization, found.organization_claimed) == (None, False)
    fixed = Rules(organization="tenant", fixed_organization="lab", default_role="member")
    assert person(fixed, tenant="acme").organization == "lab"


def test_an_address_counts_only_when_it_is_verified() -> None:
    rules = Rules(user="email", default_role="member")
    assert person(rules, email="ann@example.com", email_verified=True).subject == "ann@example.com"
    for wrong in (False, None, "true", 1):
        with pytest.raises(BadToken, match="not verified"):
            person(rules, email="ann@example.com", email_verified=wrong)
    with pytest.raises(BadToken, match="not verified"):
        person(rules, email="ann@example.com")


@pytest.mark.parametrize("wrong", [None, "", 7, ["ann"], "a" * 256, "a\nb"])
def test_a_user_claim_that_says_nothing(wrong: Any) -> None:
    with pytest.raises(BadToken, match="does not say whose"):
        person(Rules(user="uid", default_role="member"), uid=wrong)


def test_claims_are_found_by_name_first_and_by_path_then() -> None:
    claims = {"a.b": 1, "a": {"b": 2, "c": {"d": 3}}, "https://x.example.com/roles": ["r"]}
    assert find(claims, "a.b") == 1
    assert find(claims, "a.c.d") == 3
    assert find(claims, "https://x.example.com/roles") == ["r"]
    assert find(claims, "a.c.d.e") is None
    assert find(claims, "b") is None


@given(st.text(max_size=300))
def test_every_name_is_one_that_the_directory_takes(name: str) -> None:
    """And stays the same when it is read again, so that a known person is no news."""
    shown = shown_name(name)
    assert shown_name(shown) == shown
    if shown:
        try:
            assert check_name(shown, 128) == shown
        except BadRequest as error:
            assert "looks like an id" in error.message
    assert unicodedata.is_normalized("NFC", shown)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.just("outpost-admins")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["preferred_username", "realm_access", "groups", "tenant"]), JSON))
def test_any_claims_make_a_person_or_a_refusal(claims: dict[str, Any]) -> None:
    rules = Rules(role="realm_access.roles", roles={"outpost-admins": "admin"}, team="groups", organization="tenant")
    try:
        found = person(rules, **claims)
    except PermissionDenied:
        return
    assert found.role == "admin"
    assert "outpost-admins" in str(claims["realm_access"])
    assert found.subject == "u-1"
    assert found.name
