"""What tokens say of people, over time: memberships that come and go with it, and older tokens that change nothing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import pytest

from appliance.errors import PermissionDenied, Unauthenticated
from appliance.identity.authenticator import Authenticator, sign_in
from appliance.identity.claims import Person
from appliance.identity.key_ring import KeyRing
from appliance.identity.oidc import build_providers
from appliance.identity.people_work import TEAM, USER
from appliance.identity.principal import Principal
from appliance.identity.snapshot import Member, User
from appliance.settings import from_mapping
from tests.fakes.issuer import open_issuer, sign
from tests.identity.conftest import OWNER, Box

ISSUER = "https://id.example"


async def token_says(
    box: Box, issued: float | None, *teams: str, role: Any = "member", name: str = "Ada", ring: KeyRing | None = None
) -> Principal:
    """Somebody signs in; the first team is the one that the token works for."""
    directory = (ring or box.ring).directory
    team = teams[0] if teams else None
    return await directory.signed_in(ISSUER, "42", name, role, team, teams=frozenset(teams), issued=issued)


async def teams_made(box: Box, *names: str) -> dict[str, str]:
    """id → name."""
    return {(await box.directory.create(OWNER, TEAM, {"name": name})).id: name for name in names}


async def restarted(box: Box) -> KeyRing:
    """The ring of a process that begins with what the database says; it must be what memory says."""
    ring = await KeyRing.open(box.database, box.folder, recorder=box.recorder)
    there, here = ring.directory.snapshot, box.directory.snapshot
    assert (there.all(Member), there.all(User)) == (here.all(Member), here.all(User))
    return ring


def member_of(box: Box, names: dict[str, str]) -> dict[str, bool]:
    """Names of the teams that there are members of, and whether a token said so."""
    return {names[each.team]: each.claimed for each in box.directory.snapshot.all(Member).values()}


async def test_a_membership_goes_with_the_claim_that_it_came_from(any_box: Box) -> None:
    box, names = any_box, await teams_made(any_box, "one", "two")
    first = await token_says(box, 100.0, "one")
    assert (names[first.team or ""], member_of(box, names)) == ("one", {"one": True})
    _, key = await box.key("hers", "member", user=first.user, team="one")
    assert box.ring.identify(key) is not None
    before = len(await box.events())

    moved = await token_says(box, 200.0, "two")
    assert (names[moved.team or ""], member_of(box, names)) == ("two", {"two": True})
    assert moved.user == first.user
    with pytest.raises(Unauthenticated, match="not a member of"):
        box.ring.identify(key)
    ids = {name: id for id, name in names.items()}
    (joined, left) = (await box.events())[before:]
    assert [joined[0], left[0]] == ["admin.team.add_member", "admin.team.remove_member"]
    assert joined[1]["actor"]["key"] == left[1]["actor"]["key"] == f"jwt:{ISSUER}"
    assert joined[1]["after"] == {"team": ids["two"], "user": first.user, "claimed": True}
    assert left[1]["before"] == {"team": ids["one"], "user": first.user, "claimed": True}
    assert (left[1]["object"], "after" in left[1]) == (ids["one"], False)

    events = await box.events()
    assert await token_says(box, 300.0, "two") == moved
    assert await box.events() == events, "no news, no change"
    await restarted(box)
    assert (await token_says(box, 400.0)).team is None
    assert member_of(box, names) == {}
    await restarted(box)


async def test_a_membership_given_by_hand_stays(any_box: Box) -> None:
    box, names = any_box, await teams_made(any_box, "one", "two", "hand")
    user = (await token_says(box, 100.0, "one")).user
    assert user is not None
    await box.directory.set_member(OWNER, "hand", user, inside=True)
    await token_says(box, 200.0, "hand", "one")
    await token_says(box, 300.0, "two")
    assert member_of(box, names) == {"hand": False, "two": True}
    # What a token said first is theirs for good, too, once somebody says so by hand.
    given = await box.directory.set_member(OWNER, "two", user, inside=True)
    kind, event = (await box.events())[-1]
    assert (kind, event["before"]["claimed"]) == ("admin.team.add_member", True)
    assert "claimed" not in event["after"]
    events = await box.events()
    assert await box.directory.set_member(OWNER, "two", user, inside=True) == given
    assert await box.events() == events
    await token_says(box, 400.0)
    assert member_of(box, names) == {"hand": False, "two": False}
    await restarted(box)


async def test_a_team_that_the_token_names_among_others_stays(box: Box) -> None:
    """By name or id. Only the team that the token works for is joined."""
    names = await teams_made(box, "one", "two", "three")
    await token_says(box, 100.0, "one")
    assert (await token_says(box, 200.0, "two", "one", "three", "nowhere")).team != (
        await token_says(box, 300.0, "one", "two")
    ).team
    assert member_of(box, names) == {"one": True, "two": True}
    ids = {name: id for id, name in names.items()}
    await token_says(box, 400.0, ids["three"], ids["one"])
    assert member_of(box, names) == {"one": True, "three": True}


async def test_the_settings_word_is_never_old(box: Box) -> None:
    """As a client certificate's, whose entry in the settings names the team."""
    names = await teams_made(box, "one", "two")
    for team in ("one", "two", "one"):
        found = await token_says(box, None, team)
        assert (names[found.team or ""], member_of(box, names)) == (team, {team: True})


async def test_one_persons_claims_are_nobody_elses(box: Box) -> None:
    names = await teams_made(box, "one", "two")
    await token_says(box, 100.0, "one")
    await box.directory.signed_in(ISSUER, "43", "Bea", "member", "two", teams=frozenset({"two"}), issued=200.0)
    assert member_of(box, names) == {"one": True, "two": True}


@pytest.mark.parametrize("restart", [False, True])
async def test_an_older_token_changes_nothing(any_box: Box, restart: bool) -> None:
    box, names = any_box, await teams_made(any_box, "one", "two")
    await token_says(box, 100.0, "one", role="admin", name="Ada")
    newest = await token_says(box, 200.0, "two", role="member", name="Ada L.")
    ring = await restarted(box) if restart else box.ring
    events = await box.events()
    for team in ((), ("one",), ("two",)):
        old = await token_says(box, 150.0, *team, role="admin", name="Ada", ring=ring)
        assert old == newest, "it is worth what the newest one says"
    assert await box.events() == events
    # Neither when two come in at once.
    await asyncio.gather(
        token_says(box, 400.0, "two", role="operator", ring=ring), token_says(box, 300.0, role="admin", ring=ring)
    )
    user = ring.directory.snapshot.user_of(ISSUER, "42")
    assert user is not None
    assert (user.role, user.vouched_at) == ("operator", 400.0)
    # The same token counts again, since what the settings make of it may have changed.
    assert (await token_says(box, 400.0, "two", role="auditor", ring=ring)).role == "auditor"
    last = await token_says(box, 500.0, "one", role="admin", ring=ring)
    assert (last.role, names[last.team or ""]) == ("admin", "one")


async def test_an_older_token_touches_no_database(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    await token_says(box, 200.0)
    monkeypatch.setattr(box.directory, "change", None)
    assert (await token_says(box, 100.0, role="admin")).role == "member"


async def test_an_older_token_works_for_no_team_by_guess(box: Box) -> None:
    """Whose team is not known must not get round the limits of all of them."""
    await teams_made(box, "one", "two")
    await token_says(box, 100.0, "one")
    await token_says(box, 200.0, "two", "one")
    with pytest.raises(Unauthenticated, match="older than what its identity provider has said since"):
        await token_says(box, 150.0)
    assert (await token_says(box, 150.0, "one")).team is not None


async def test_tokens_and_logins_say_when_they_were_made(box: Box) -> None:
    """A login's word is newer than that of a token from before, also after a restart: with a real directory."""
    now = time.time()
    names = await teams_made(box, "one", "two")
    async with open_issuer() as issuer, aiohttp.ClientSession() as session:
        entry = {
            "name": "corp", "issuer": issuer.url, "audience": "outpost", "claims": {"role": "groups", "team": "team"},
            "roles": {"admins": "admin", "users": "member"}, "teams": {"g-one": "one", "g-two": "two"},
        }  # fmt: skip
        providers = build_providers(from_mapping({"identity": {"oidc": [entry]}}).identity, {}, session, time.monotonic)

        def token(issued: float, group: str, *teams: str) -> str:
            body = {"iss": issuer.url, "aud": "outpost", "sub": "42", "exp": now + 300, "iat": issued}
            return sign({**body, "groups": [group], "team": teams, "preferred_username": "Ada"}, issuer.keys[0])

        who = Authenticator(box.ring, box.directory, providers, clock=time.time)
        old = token(now - 100, "admins", "g-one")
        assert (await who.identify(old)).role == "admin"
        await sign_in(
            box.directory,
            Person(issuer.url, "42", "Ada", "member", "two", None, frozenset({"two"})),
            "session",
            now + 9,
            now,
        )
        assert member_of(box, names) == {"two": True}
        ring = await restarted(box)
        again = Authenticator(ring, ring.directory, providers, clock=time.time)
        for each in (who, again):
            each.change(providers, ())
            for _ in range(2):
                found = await each.identify(old)
                assert (found.role, names[found.team or ""]) == ("member", "two")
        assert member_of(box, names) == {"two": True}
        both = await again.identify(token(now + 1, "users", "g-two", "g-one"))
        assert names[both.team or ""] == "one", "in the order of the settings"
        assert {names[team] for team, _ in ring.directory.snapshot.all(Member)} == {"one", "two"}


async def test_who_is_disabled_or_elsewhere_keeps_what_they_have(box: Box) -> None:
    """Nothing is written about somebody who is not let in."""
    names = await teams_made(box, "one", "two")
    user = (await token_says(box, 100.0, "one")).user
    assert user is not None
    with pytest.raises(PermissionDenied, match="not known here"):
        await token_says(box, 200.0, "nowhere")
    await box.directory.alter(OWNER, USER, user, {"disabled": True})
    with pytest.raises(Unauthenticated, match="disabled"):
        await token_says(box, 300.0, "two")
    assert member_of(box, names) == {"one": True}
