"""Nobody gives more than they have: over random grantors and wishes."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from itertools import product
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.errors import BadRequest, PermissionDenied
from appliance.identity.grants import SIGNED_IN, check_grant, check_role, inherit
from appliance.identity.permissions import BOX_WIDE, PERMISSIONS, ROLES, Role, may_grant, within
from appliance.identity.principal import DEFAULT_ORGANIZATION, PRIORITIES, Principal, Priority, Restrictions, Zone
from appliance.identity.restrictions import admits, checked, exceeding, inherited, networks

roles = st.sampled_from(list(ROLES))
NAMES = ("a", "b", "c")
NETWORKS = ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0", "2001:db8::/32", "2001:db8:1::/48", "::/0")


def some(values: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...] | None]:
    return st.none() | st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True).map(tuple)


restrictions = st.builds(
    Restrictions,
    routes=some(NAMES),
    models=some(NAMES),
    zones=some(get_args(Zone)),
    addresses=some(NETWORKS),
    priority=st.none() | st.sampled_from(get_args(Priority)),
)
times = st.none() | st.sampled_from((100.0, 200.0, 300.0))
organizations = st.sampled_from((DEFAULT_ORGANIZATION, "org_a", "org_b"))
maybe = lambda *values: st.sampled_from((None, *values))  # noqa: E731
principals = st.builds(
    Principal,
    key_id=st.sampled_from(("key_1", SIGNED_IN)),
    key_name=st.just("grantor"),
    role=roles,
    organization=organizations,
    team=maybe("team_1", "team_2"),
    user=maybe("user_1", "user_2"),
    restrictions=restrictions,
    expires_at=times,
)
wishes = st.fixed_dictionaries(
    {
        "role": roles,
        "organization": organizations,
        "team": maybe("team_1", "team_2"),
        "user": maybe("user_1", "user_2"),
        "service_account": maybe("sa_1"),
        "restrictions": restrictions,
        "expires_at": times,
    }
)


def granted(grantor: Principal, wish: dict) -> Principal | None:  # type: ignore[type-arg]
    """What the key would be, None where it is refused."""
    try:
        check_grant(grantor, **wish)
    except PermissionDenied as error:
        assert error.param is None or error.message.startswith(f"{error.param}: ")
        return None
    return Principal("key_2", "new", **wish)


ENDING = Principal("key_1", "grantor", "admin", expires_at=100.0)
WISH = {"role": "member", "organization": DEFAULT_ORGANIZATION}


@given(principals, wishes)
@example(ENDING, WISH | {"expires_at": None})
@example(ENDING, WISH | {"expires_at": 200.0})
def test_a_grant_never_exceeds_the_grantor(grantor: Principal, wish: dict) -> None:  # type: ignore[type-arg]
    made = granted(grantor, wish)
    if made is None:
        return
    assert {p for p in PERMISSIONS if made.may(p)} <= {p for p in PERMISSIONS if grantor.may(p)}
    assert grantor.oversees in (None, made.organization)
    assert allows_no_more(made.restrictions, grantor.restrictions)
    if grantor.expires_at is not None and grantor.key_id != SIGNED_IN:
        assert made.expires_at is not None
        assert made.expires_at <= grantor.expires_at
    if not grantor.may("keys.write"):
        assert made.user == grantor.user is not None
        assert made.service_account is None
        assert grantor.team in (None, made.team)


@given(principals, wishes, wishes)
def test_a_chain_of_grants_never_rises(first: Principal, one: dict, two: dict) -> None:  # type: ignore[type-arg]
    second = granted(first, one)
    third = None if second is None else granted(second, two)
    if third is not None:
        assert {p for p in PERMISSIONS if third.may(p)} <= {p for p in PERMISSIONS if first.may(p)}
        assert allows_no_more(third.restrictions, first.restrictions)


@given(principals, wishes)
def test_what_is_left_out_is_taken_from_the_grantor(grantor: Principal, wish: dict) -> None:  # type: ignore[type-arg]
    filled, expires_at = inherit(grantor, Restrictions(), None)
    assert filled == grantor.restrictions
    wish = {**wish, "restrictions": filled, "expires_at": expires_at, "role": grantor.role}
    wish |= {"organization": grantor.organization, "team": grantor.team, "user": grantor.user, "service_account": None}
    if grantor.may("keys.write") or grantor.user is not None:
        assert granted(grantor, wish) is not None


def allows_no_more(inner: Restrictions, outer: Restrictions) -> bool:
    """By trying every use, not by comparing lists."""
    for name, zone, priority in product(NAMES, get_args(Zone), PRIORITIES):
        for field, value in (("routes", name), ("models", name), ("zones", zone)):
            if _in(inner, field, value) and not _in(outer, field, value):
                return False
        if _may_ask(inner, priority) and not _may_ask(outer, priority):
            return False
    samples = ["10.1.2.3", "10.1.2.4", "10.2.0.0", "11.0.0.1", "2001:db8::1", "2001:db8:1::1", "2001:db9::1"]
    for address in samples:
        inside = inner.addresses is None or admits(networks(inner), address)
        if inside and outer.addresses is not None and not admits(networks(outer), address):
            return False
    return True


def _in(limits: Restrictions, field: str, value: str) -> bool:
    allowed = getattr(limits, field)
    return allowed is None or value in allowed


def _may_ask(limits: Restrictions, priority: Priority) -> bool:
    return limits.priority is None or PRIORITIES.index(priority) >= PRIORITIES.index(limits.priority)


def test_a_credential_that_ends_makes_none_that_does_not() -> None:
    for end in (None, 100.5):
        with pytest.raises(PermissionDenied, match="ends sooner") as caught:
            check_grant(ENDING, "member", organization=DEFAULT_ORGANIZATION, expires_at=end)
        assert caught.value.param == "expires_at"
    check_grant(ENDING, "member", organization=DEFAULT_ORGANIZATION, expires_at=100.0)


def test_a_token_of_ones_own_is_for_the_team_that_the_credential_works_for() -> None:
    own = Principal("key_1", "grantor", "member", team="team_1", user="user_1")
    for team in (None, "team_2"):
        with pytest.raises(PermissionDenied, match="must be for the same") as caught:
            check_grant(own, "member", organization=DEFAULT_ORGANIZATION, user="user_1", team=team)
        assert caught.value.param == "team"
    check_grant(own, "member", organization=DEFAULT_ORGANIZATION, user="user_1", team="team_1")


@pytest.mark.parametrize(
    ("inner", "outer", "field"),
    [
        (None, "batch", "priority"),
        ("interactive", "batch", "priority"),
        ("batch", "interactive", None),
        ("batch", "batch", None),
        ("batch", None, None),
    ],
)
def test_who_may_ask_in_a_batch_only_gives_no_more(
    inner: Priority | None, outer: Priority | None, field: str | None
) -> None:
    assert exceeding(Restrictions(priority=inner), Restrictions(priority=outer)) == field


@given(restrictions, restrictions)
def test_exceeding_is_exact(inner: Restrictions, outer: Restrictions) -> None:
    if exceeding(inner, outer) is None:
        assert allows_no_more(inner, outer)
    assert exceeding(outer, outer) is None
    assert exceeding(inner, Restrictions()) is None


@given(restrictions, restrictions)
def test_inheriting_keeps_what_was_said(wished: Restrictions, own: Restrictions) -> None:
    filled = inherited(wished, own)
    for field in wished.__struct_fields__:
        said, had = getattr(wished, field), getattr(own, field)
        assert getattr(filled, field) == (had if said is None else said)


# --- roles ---


@given(roles, roles)
def test_a_role_within_its_holders(role: Role, holder: Role) -> None:
    found = within(role, holder)
    if found is not None:
        assert ROLES[found] <= ROLES[role] & ROLES[holder]
    else:
        assert not any(ROLES[each] <= ROLES[role] & ROLES[holder] for each in ROLES)
    assert (found == role) == may_grant(holder, role)


@given(principals, roles, roles)
def test_nobody_raises_themselves(grantor: Principal, had: Role, role: Role) -> None:
    try:
        check_role(grantor, role, had=had, of=grantor.user)
    except PermissionDenied:
        return
    assert ROLES[role] <= ROLES[grantor.role]
    if grantor.user is not None:
        assert ROLES[role] <= ROLES[had]
    assert had != "owner" or grantor.role == "owner"


def test_only_owners_make_owners() -> None:
    assert [role for role in ROLES if may_grant(role, "owner")] == ["owner"]
    for role in ROLES:
        grantor = Principal("k", "k", role)
        if role != "owner":
            with pytest.raises(PermissionDenied, match=r"^(role|user): |keys\.own"):
                check_grant(grantor, "owner", organization=DEFAULT_ORGANIZATION)


def test_what_concerns_the_whole_box_is_for_those_who_oversee_it() -> None:
    assert {"status.read", "metrics.read", "settings.reload", "ledger.read"} == BOX_WIDE
    for role, permission in product(ROLES, BOX_WIDE):
        assert not Principal("k", "k", role, "org_a").may(permission)
        assert Principal("k", "k", role).may(permission) == (permission in ROLES[role])


# --- restrictions as they are written ---


@pytest.mark.parametrize(
    ("fields", "param", "cure"),
    [
        ({"routes": ()}, "restrictions.routes", "leave it out"),
        ({"models": ("",)}, "restrictions.models", "1 to 200"),
        ({"models": ("a\nb",)}, "restrictions.models", "printable"),
        ({"routes": tuple(map(str, range(101)))}, "restrictions.routes", "at most 100"),
        ({"addresses": ("10.0.0.1/8",)}, "restrictions.addresses", "write 10.0.0.0/8"),
        ({"addresses": ("host.example",)}, "restrictions.addresses", "e.g. 10.0.0.0/8"),
        ({"addresses": ("10.0.0.0/33",)}, "restrictions.addresses", "e.g. 10.0.0.0/8"),
    ],
)
def test_wrong_restrictions_name_field_and_cure(fields: dict, param: str, cure: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(BadRequest, match=cure) as caught:
        checked(Restrictions(**fields))
    assert caught.value.param == param


@given(st.ip_addresses())
@example(ip_address("10.0.0.1"))
@example(ip_address("::ffff:10.0.0.1"))
def test_an_address_is_in_its_own_network_only(address: object) -> None:
    own = checked(Restrictions(addresses=(str(address),)))
    assert admits(networks(own), str(address))
    other = ip_network("192.0.2.0/24") if "192.0.2." not in str(address) else ip_network("198.51.100.0/24")
    assert not admits((other,), str(address)) or str(address).startswith("::ffff:")


def test_mapped_networks_are_those_of_ipv4() -> None:
    limited = checked(Restrictions(addresses=("::ffff:10.0.0.0/104", "10.0.0.0/8")))
    assert limited.addresses == ("10.0.0.0/8",)
