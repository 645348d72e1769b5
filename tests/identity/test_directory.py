"""The directory over a real database: what may be changed, by whom, and what the ledger says of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import BadRequest, InternalError, NotFound, OutpostError, PermissionDenied, Unauthenticated
from appliance.identity.directory import Directory
from appliance.identity.key_ring import KeyRing
from appliance.identity.key_store import NewKey
from appliance.identity.people_work import (
    KINDS,
    ORGANIZATION,
    SERVICE_ACCOUNT,
    TEAM,
    USER,
    Kind,
    check_name,
    ledger_form,
    presentable,
)
from appliance.identity.principal import DEFAULT_ORGANIZATION, Principal
from appliance.identity.snapshot import Member, Organization, ServiceAccount, Team, User
from appliance.records.rows import ExchangeRow
from tests.identity.conftest import OWNER, Box, open_box


@pytest.fixture
def box(any_box: Box) -> Box:
    """On either kind of database."""
    return any_box


ADMIN = Principal("key_admin", "admin", "admin")
ROLE = {"role": "member"}
WISHES: list[tuple[Kind, dict[str, Any]]] = [(ORGANIZATION, {}), (TEAM, {}), (USER, ROLE), (SERVICE_ACCOUNT, ROLE)]
kinds = pytest.mark.parametrize(("kind", "extra"), WISHES, ids=[kind.word for kind, _ in WISHES])


@kinds
async def test_a_thing_from_its_making_to_its_end(box: Box, kind: Kind, extra: dict[str, Any]) -> None:
    directory = box.directory
    made = await directory.create(OWNER, kind, {"name": "first", **extra})
    assert made.id.startswith(f"{kind.prefix}_")
    assert await directory.show(OWNER, kind, "first") == made == await directory.show(OWNER, kind, made.id)
    assert directory.snapshot.get(kind.struct, made.id) == made
    renamed = await directory.alter(OWNER, kind, "first", {"name": "second"})
    assert renamed == msgspec.structs.replace(made, name="second")
    assert await directory.alter(OWNER, kind, made.id, {"name": "second"}) == renamed, "no change is no event"
    with pytest.raises(BadRequest, match="disable it first"):
        await directory.delete(OWNER, kind, "second")
    box.as_of(5.0)
    ended = await directory.alter(OWNER, kind, "second", {"disabled": True})
    assert ended.disabled_at == 5.0
    assert await directory.alter(OWNER, kind, "second", {"disabled": True}) == ended
    await directory.alter(OWNER, kind, "second", {"disabled": False})
    await directory.alter(OWNER, kind, "second", {"disabled": True})
    await directory.delete(OWNER, kind, made.id)
    assert directory.snapshot.get(kind.struct, made.id) is None
    with pytest.raises(NotFound, match="second"):
        await directory.show(OWNER, kind, "second")
    word = kind.word.replace(" ", "_")
    found = await box.events()
    verbs = ["create", "change", "disable", "enable", "disable", "delete"]
    assert [name for name, _ in found] == [f"admin.{word}.{verb}" for verb in verbs]
    assert all(body["object"] == made.id for _, body in found)
    assert all(
        body["actor"] == {"key": "key_root", "role": "owner", "organization": DEFAULT_ORGANIZATION} for _, body in found
    )
    assert "before" not in found[0][1]
    assert found[1][1]["before"]["name"] == "first"
    assert found[1][1]["after"]["name"] == "second"
    assert found[2][1]["after"]["disabled_at_us"] == 5_000_000
    assert "after" not in found[-1][1]
    # Another process sees the same.
    other = await KeyRing.open(box.database, box.folder)
    for each in KINDS:
        assert other.directory.snapshot.all(each.struct) == directory.snapshot.all(each.struct)


@kinds
async def test_names_are_one_of_a_kind(box: Box, kind: Kind, extra: dict[str, Any]) -> None:
    await box.directory.create(OWNER, kind, {"name": "taken", **extra})
    other = await box.directory.create(OWNER, kind, {"name": "Größe & Co.", **extra})
    for attempt in (
        box.directory.create(OWNER, kind, {"name": "taken", **extra}),
        box.directory.alter(OWNER, kind, other.id, {"name": "taken"}),
    ):
        with pytest.raises(BadRequest, match="named 'taken' already") as caught:
            await attempt
        assert caught.value.param == "name"
    for bad in ("", " a", "a ", "a\nb", "x" * 129, "a/b", "team_" + "a" * 16, "org_default", "\u202eevil"):
        with pytest.raises(BadRequest, match=r"^name: ") as caught:
            await box.directory.create(OWNER, kind, {"name": bad, **extra})
        assert caught.value.param == "name"


def test_a_name_is_kept_in_its_composed_form() -> None:
    assert check_name("Zoe\u0308", 64) == "Zoë"


async def test_pages_show_everything_once(box: Box) -> None:
    box.as_of(1.0)  # all made at the same moment
    made = [(await box.directory.create(OWNER, TEAM, {"name": f"t{n}"})).id for n in range(7)]
    seen, after = [], None
    while rows := await box.directory.list(OWNER, TEAM, after=after, limit=3):
        seen += [row.id for row in rows]
        after = rows[-1].id
    assert sorted(seen) == sorted(made)
    assert len(set(seen)) == 7


# --- organisations keep to themselves ---


async def test_an_admin_of_one_organization_sees_and_changes_only_it(box: Box) -> None:
    directory = box.directory
    acme = await directory.create(OWNER, ORGANIZATION, {"name": "acme"})
    await directory.create(OWNER, ORGANIZATION, {"name": "other"})
    theirs = Principal("key_acme", "acme", "admin", acme.id)
    for kind, extra in WISHES[1:]:
        foreign = await directory.create(OWNER, kind, {"name": "same", "organization": "other", **extra})
        mine = await directory.create(theirs, kind, {"name": "same", **extra})
        assert mine.organization == acme.id
        assert await directory.list(theirs, kind) == [mine]
        assert await directory.show(theirs, kind, "same") == mine
        with pytest.raises(BadRequest, match="several are named 'same'; give the id"):
            await directory.show(OWNER, kind, "same")
        for attempt in (
            directory.show(theirs, kind, foreign.id),
            directory.alter(theirs, kind, foreign.id, {"name": "x"}),
            directory.delete(theirs, kind, foreign.id),
        ):
            with pytest.raises(NotFound):
                await attempt
        for place in ("other", foreign.organization, "nowhere", DEFAULT_ORGANIZATION):
            with pytest.raises(PermissionDenied, match="only act in your own") as caught:
                await directory.create(theirs, kind, {"name": "new", "organization": place, **extra})
            assert caught.value.param == "organization"
            assert place not in caught.value.message, "what others there are is nobody's business"
        with pytest.raises(PermissionDenied, match="only look at your own"):
            await directory.list(theirs, kind, organization=foreign.organization)
        named = await directory.create(theirs, kind, {"name": "by name", "organization": "acme", **extra})
        assert named.organization == acme.id
    assert await directory.list(theirs, ORGANIZATION) == [acme]
    for attempt in (
        directory.create(theirs, ORGANIZATION, {"name": "mine too"}),
        directory.alter(theirs, ORGANIZATION, acme.id, {"disabled": True}),
        directory.delete(theirs, ORGANIZATION, acme.id),
    ):
        with pytest.raises(PermissionDenied, match="run the box"):
            await attempt
    with pytest.raises(NotFound):
        await directory.alter(theirs, ORGANIZATION, "other", {"name": "x"})


async def test_teams_and_members_stay_within_an_organization(box: Box) -> None:
    directory = box.directory
    for name in ("one", "two"):
        await directory.create(OWNER, ORGANIZATION, {"name": name})
        await directory.create(OWNER, TEAM, {"name": f"team-{name}", "organization": name})
        await directory.create(OWNER, USER, {"name": f"user-{name}", "organization": name, **ROLE})
    with pytest.raises(NotFound):
        await directory.set_member(OWNER, "team-one", "user-two", inside=True)
    with pytest.raises(BadRequest, match=r"^team: ") as caught:
        await directory.create(OWNER, SERVICE_ACCOUNT, {"name": "b", "organization": "one", "team": "team-two", **ROLE})
    assert caught.value.param == "team"
    bot = await directory.create(OWNER, SERVICE_ACCOUNT, {"name": "b", "organization": "one", **ROLE})
    with pytest.raises(BadRequest, match=r"^team: "):
        await directory.alter(OWNER, SERVICE_ACCOUNT, bot.id, {"team": "team-two"})
    moved = await directory.alter(OWNER, SERVICE_ACCOUNT, bot.id, {"team": "team-one"})
    assert (await directory.show(OWNER, TEAM, "team-one")).id == moved.team
    assert (await directory.alter(OWNER, SERVICE_ACCOUNT, bot.id, {"team": None})).team is None
    member = await directory.set_member(OWNER, "team-one", "user-one", inside=True)
    assert await directory.set_member(OWNER, "team-one", "user-one", inside=True) == member
    assert [user.name for user in await directory.members(OWNER, "team-one")] == ["user-one"]
    await directory.set_member(OWNER, "team-one", "user-one", inside=False)
    assert await directory.members(OWNER, "team-one") == []
    assert directory.snapshot.all(Member) == {}
    names = [name for name, _ in await box.events("admin.team.") if "member" in name]
    assert names == ["admin.team.add_member", "admin.team.remove_member"]


# --- roles ---


async def test_owners_are_made_and_changed_by_owners_only(box: Box) -> None:
    directory = box.directory
    boss = await directory.create(OWNER, USER, {"name": "Boss", "role": "owner"})
    team = await directory.create(OWNER, TEAM, {"name": "lab"})
    info, key = await box.key("boss", "owner", user=boss.id)
    await box.key("boss-laptop", "member", user=boss.id)
    for attempt in (
        box.ring.rotate(ADMIN, "boss-laptop"),
        directory.create(ADMIN, USER, {"name": "Me", "role": "owner"}),
        directory.alter(ADMIN, USER, boss.id, {"role": "member"}),
        directory.alter(ADMIN, USER, boss.id, {"name": "Fool"}),
        directory.alter(ADMIN, USER, boss.id, {"disabled": True}),
        directory.set_member(ADMIN, team.id, boss.id, inside=True),
        box.ring.revoke(ADMIN, info.id),
        box.ring.revoke(ADMIN, "boss-laptop"),
        box.ring.rotate(ADMIN, info.id),
        box.ring.create(ADMIN, NewKey("lesser", "member", user=boss.id)),
    ):
        with pytest.raises(PermissionDenied, match="owner"):
            await attempt
    assert box.ring.identify(key) is not None
    await directory.alter(OWNER, USER, boss.id, {"disabled": True})
    with pytest.raises(PermissionDenied, match="owner"):
        await directory.delete(ADMIN, USER, boss.id)
    await directory.alter(OWNER, USER, boss.id, {"disabled": False})
    # Their own they end with whatever credential they have.
    assert (await box.ring.revoke(msgspec.structs.replace(ADMIN, user=boss.id), "boss-laptop")).revoked_at is not None


async def test_nobody_raises_their_own_role_or_shuts_themselves_out(box: Box) -> None:
    user = await box.directory.create(OWNER, USER, {"name": "Ada", "role": "operator"})
    # Somebody whose credential has more than the person on record, as a token of an identity provider may.
    herself = Principal("jwt:x", "Ada", "admin", user=user.id)
    with pytest.raises(PermissionDenied, match="nobody raises their own role"):
        await box.directory.alter(herself, USER, user.id, {"role": "admin"})
    with pytest.raises(BadRequest, match="disable yourself"):
        await box.directory.alter(herself, USER, user.id, {"disabled": True})
    assert (await box.directory.alter(herself, USER, user.id, {"role": "member"})).role == "member"
    with pytest.raises(BadRequest, match="cannot be disabled"):
        await box.directory.alter(OWNER, ORGANIZATION, "default", {"disabled": True})


# --- what is on record stays ---


@pytest.mark.parametrize("what", ["organization", "team", "user", "service account"])
@pytest.mark.parametrize("by", ["key", "exchange"])
async def test_what_records_refer_to_cannot_be_deleted(box: Box, what: str, by: str) -> None:
    acme = await box.directory.create(OWNER, ORGANIZATION, {"name": "acme"})
    inside = {"organization": "acme"}
    team = await box.directory.create(OWNER, TEAM, {"name": "lab", **inside})
    user = await box.directory.create(OWNER, USER, {"name": "Ada", **inside, **ROLE})
    bot = await box.directory.create(OWNER, SERVICE_ACCOUNT, {"name": "bot", **inside, **ROLE})
    await box.directory.set_member(OWNER, team.id, user.id, inside=True)
    things = {"organization": acme, "team": team, "user": user, "service account": bot}
    (kind,) = [kind for kind in KINDS if kind.word == what]
    if by == "key":
        await box.key("his", user=user.id, team=team.id)
        await box.key("its", service_account=bot.id)
        for name in ("his", "its"):
            await box.ring.revoke(OWNER, name)
    else:
        row = ExchangeRow(id="x", kind="chat", started_at=0.0)
        row.organization_id, row.team_id = acme.id, team.id
        row.user_id, row.service_account_id = user.id, bot.id
        await box.recorder.submit(row)
    thing = things[what]
    await box.directory.alter(OWNER, kind, thing.id, {"disabled": True})
    with pytest.raises(BadRequest, match=r"cannot be deleted: .* refer to this"):
        await box.directory.delete(OWNER, kind, thing.id)
    assert await box.directory.show(OWNER, kind, thing.id)


async def test_members_leave_with_what_is_deleted(box: Box) -> None:
    for gone in (TEAM, USER):
        team = await box.directory.create(OWNER, TEAM, {"name": "lab"})
        user = await box.directory.create(OWNER, USER, {"name": "Ada", **ROLE})
        await box.directory.set_member(OWNER, team.id, user.id, inside=True)
        for kind, thing in ((TEAM, team), (USER, user)):
            await box.directory.alter(OWNER, kind, thing.id, {"disabled": True})
        await box.directory.delete(OWNER, gone, {TEAM.word: team, USER.word: user}[gone.word].id)
        assert box.directory.snapshot.all(Member) == {}
        rest = USER if gone is TEAM else TEAM
        await box.directory.delete(OWNER, rest, {TEAM.word: team, USER.word: user}[rest.word].id)


# --- people who sign in ---


async def test_somebody_who_signs_in_becomes_known_once(box: Box) -> None:
    team = await box.directory.create(OWNER, TEAM, {"name": "Data Science"})
    first = await box.directory.signed_in("https://id.example", "42", "Ada", "operator", "Data Science")
    user = box.directory.snapshot.user_of("https://id.example", "42")
    assert user is not None
    assert first == Principal(
        "jwt:https://id.example", "jwt:https://id.example", "operator", team=team.id, user=user.id
    )
    before = await box.events()
    assert [name for name, _ in before][1:] == ["admin.user.create", "admin.team.add_member"]
    assert await box.directory.signed_in("https://id.example", "42", "Ada", "operator", "Data Science") == first
    assert await box.events() == before, "no news, no change"
    # The provider's word counts from then on, for tokens made earlier too.
    _, key = await box.key("hers", "operator", user=user.id)
    changed = await box.directory.signed_in("https://id.example", "42", "Ada L.", "member")
    assert (changed.role, changed.team) == ("member", None)
    assert box.ring.identify(key).role == "member"  # type: ignore[union-attr]
    assert [name for name, _ in await box.events()][-2:] == ["admin.user.change", "admin.team.remove_member"]


async def test_people_with_one_name_are_told_apart(box: Box) -> None:
    await box.directory.create(OWNER, USER, {"name": "Ada", **ROLE})
    found = [await box.directory.signed_in("https://id.example", subject, "Ada", "member") for subject in "123"]
    assert len({principal.user for principal in found}) == 3
    events = await box.events()
    again = [await box.directory.signed_in("https://id.example", subject, "Ada", "member") for subject in "123"]
    assert again == found
    assert await box.events() == events


ODD = ["Zoe\u0308", "a/b", "x" * 500, " spaces ", "line\nbreak", "\ud800", "", "team_" + "a" * 16, "\u202eevil"]


async def test_odd_names_are_made_presentable_and_settle(box: Box) -> None:
    for number, odd in enumerate(ODD):
        first = await box.directory.signed_in("https://id.example", f"s{number}", odd, "member")
        events = await box.events()
        user = box.directory.snapshot.user_of("https://id.example", f"s{number}")
        assert user is not None
        assert check_name(user.name, 128) == user.name
        assert await box.directory.signed_in("https://id.example", f"s{number}", odd, "member") == first
        assert await box.events() == events, odd


@given(st.text(), st.integers(1, 128))
def test_a_presentable_name_is_a_name(text: str, longest: int) -> None:
    found = presentable(text, longest)
    assert found == presentable(found, longest)
    if found:
        assert check_name(found, longest) == found


async def test_signing_in_at_once_makes_one_person(box: Box) -> None:
    found = await asyncio.gather(*(box.directory.signed_in("i", "s", "Ada", "member") for _ in range(20)))
    assert len({principal.user for principal in found}) == 1
    assert len(await box.events("admin.user.")) == 1


async def test_who_may_not_sign_in(box: Box) -> None:
    acme = await box.directory.create(OWNER, ORGANIZATION, {"name": "acme"})
    sign_in = box.directory.signed_in
    with pytest.raises(PermissionDenied, match="no record can keep"):
        await sign_in("i", "\ud800", "Ada", "member")
    with pytest.raises(PermissionDenied, match="team 'nowhere'"):
        await sign_in("i", "s", "Ada", "member", "nowhere")
    with pytest.raises(PermissionDenied, match="organization 'nowhere'"):
        await sign_in("i", "s", "Ada", "member", None, "nowhere")
    assert (await sign_in("i", "s", "Ada", "member", None, "acme")).organization == acme.id
    events = await box.events()
    with pytest.raises(PermissionDenied, match="another organization"):
        await sign_in("i", "s", "Ada", "owner")
    known = box.directory.snapshot.user_of("i", "s")
    assert known is not None
    assert known.role == "member", "what is said of somebody elsewhere gives them nothing here"
    assert await box.events() == events
    principal = await sign_in("i", "s", "Ada", "member", None, "acme")
    assert principal.user is not None
    await box.directory.alter(OWNER, USER, principal.user, {"disabled": True})
    events = await box.events()
    with pytest.raises(Unauthenticated, match="disabled"):
        await sign_in("i", "s", "Ada", "owner", None, "acme")
    await box.directory.alter(OWNER, ORGANIZATION, "acme", {"disabled": True})
    with pytest.raises(Unauthenticated, match="organization that is disabled"):
        await sign_in("i", "new", "Bea", "member", None, "acme")
    assert box.directory.snapshot.user_of("i", "new") is None
    assert len(await box.events()) == len(events) + 1
    with pytest.raises(Unauthenticated, match="disabled"):
        box.directory.standing(principal)


async def test_a_session_ends_with_its_time(box: Box) -> None:
    box.as_of(10.0)
    principal = Principal("session", "Ada", "member", expires_at=10.0)
    with pytest.raises(Unauthenticated, match="expired"):
        box.directory.standing(principal)
    assert box.directory.standing(msgspec.structs.replace(principal, expires_at=11.0)).expires_at == 11.0


async def test_other_processes_learn_of_changes_and_keys_end(box: Box) -> None:
    """The life of a key where the statements of either database count."""
    other = await KeyRing.open(box.database, box.folder, recorder=box.recorder)
    assert await other.directory.changed_elsewhere() is False
    _, key = await box.key("app")
    assert await other.directory.changed_elsewhere()
    await other.reload()
    assert other.identify(key) is not None
    assert not await other.directory.changed_elsewhere()
    info, rotated = await box.ring.rotate(OWNER, "app", overlap_s=0.0)
    assert [k.id for k in await box.ring.list(OWNER, after=info.replaces)] == [info.id]
    await other.reload()
    assert other.identify(key) is None
    assert other.identify(rotated) is not None
    assert (await box.ring.revoke(OWNER, "app")).revoked_at is not None
    assert box.ring.identify(rotated) is None


# --- the ledger ---


async def test_a_reader_changes_nothing(box: Box) -> None:
    reader = await KeyRing.open(box.database, box.folder)
    with pytest.raises(InternalError, match="reading only"):
        await reader.directory.create(OWNER, TEAM, {"name": "x"})


async def test_the_ledger_holds_no_part_of_a_key(box: Box) -> None:
    info, key = await box.key("app")
    await box.ring.rotate(OWNER, "app")
    await box.ring.revoke(OWNER, "app")
    assert info.prefix not in str(await box.events())
    assert key[3:] not in str(await box.events())


numbers = st.floats(0, 1e10)
people = st.one_of(
    st.builds(Organization, st.text(), st.text(), numbers, st.none() | numbers),
    st.builds(Team, st.text(), st.text(), st.text(), numbers, st.none() | numbers),
    st.builds(User, st.text(), st.text(), st.text(), st.just("member"), numbers, st.none() | numbers),
    st.builds(ServiceAccount, st.text(), st.text(), st.text(), st.just("member"), numbers),
)


@given(people)
def test_the_ledger_knows_no_fraction_and_no_null(thing: msgspec.Struct) -> None:
    form = ledger_form(thing)
    assert form is not None
    assert not any(value is None or isinstance(value, float) for value in form.values())
    assert form["created_at_us"] == round(thing.created_at * 1e6)  # type: ignore[attr-defined]


# --- memory and database never drift apart ---

steps = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=1, max_size=25
)


@given(steps)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_any_changes_memory_is_what_the_database_says(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[int, int, int, bool]]
) -> None:
    asyncio.run(live(tmp_path_factory.mktemp("box"), story))


async def live(folder: Path, story: list[tuple[int, int, int, bool]]) -> None:
    async with open_box(folder) as box:
        for verb, one, two, flag in story:
            try:
                await step(box, verb, one, two, flag)
            except OutpostError as error:
                assert error.status in (400, 401, 403, 404), error
        other = await KeyRing.open(box.database, folder)
        for kind in (Organization, Team, User, ServiceAccount, Member):
            assert other.directory.snapshot.all(kind) == box.directory.snapshot.all(kind)
        assert key_ids(other.directory) == key_ids(box.directory)


def key_ids(directory: Directory) -> set[Any]:
    from appliance.identity.snapshot import KeyRecord

    return {(key.id, key.name, key.expires_at) for key in directory.snapshot.all(KeyRecord).values()}


async def step(box: Box, verb: int, one: int, two: int, flag: bool) -> None:
    directory, name = box.directory, f"n{one}"
    kind, extra = WISHES[two]
    if verb == 0:
        await directory.create(OWNER, kind, {"name": name, **extra})
    elif verb == 1:
        await directory.alter(OWNER, kind, name, {"name": f"n{two}", "disabled": flag})
    elif verb == 2:
        await directory.delete(OWNER, kind, name)
    elif verb == 3:
        await directory.set_member(OWNER, name, f"n{two}", inside=flag)
    elif verb == 4:
        holder = {} if two == 0 else {"user": f"n{two}"} if flag else {"service_account": f"n{two}"}
        await box.key(name, **holder)
    elif verb == 5:
        await box.ring.revoke(OWNER, name)
    elif verb == 6:
        await box.ring.rotate(OWNER, name, overlap_s=100.0 if flag else 0.0)
    elif verb == 7:
        await directory.signed_in("i", name, f"n{two}", "member" if flag else "operator")
    else:
        said = frozenset({f"n{two}", "n0"} if flag else {f"n{two}"})
        await directory.signed_in("i", "ada", "Ada", "member", f"n{two}", teams=said, issued=float(one))
