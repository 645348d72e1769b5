"""Sessions end when they should, and nothing but the right cookie opens one."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st

from appliance.identity.principal import Principal
from appliance.identity.sessions import (
    ABSOLUTE_S,
    IDLE_S,
    LOGIN_S,
    MAX_COOKIE,
    MAX_USED,
    Logins,
    Session,
    Sessions,
    digest,
)

ANN = Principal("session", "ann", "admin", user="user_ann")
BOB = Principal("session", "bob", "member", user="user_bob")
ISSUER = "https://login.example.com"


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def counting() -> Callable[[int], bytes]:
    numbers = itertools.count(1)
    return lambda size: next(numbers).to_bytes(size, "big")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    return Sessions(clock, counting())


def test_a_session(sessions: Sessions, clock: Clock) -> None:
    id, session = sessions.begin(ANN, ISSUER, "Ann")
    assert len(id) == 43
    assert session.csrf != id
    assert sessions.find(id) is session
    assert sessions.left_s(session) == ABSOLUTE_S
    for wrong in ("", id[:-1], id + "A", id.swapcase(), id[:20], "x" * 10_000, "\ud800"):
        assert sessions.find(wrong) is None
    assert sessions.end(id)
    assert not sessions.end(id)
    assert sessions.find(id) is None


def test_the_id_is_not_kept(sessions: Sessions) -> None:
    id, session = sessions.begin(ANN, ISSUER, "Ann")
    assert id not in repr(vars(sessions)) + repr(sessions._kept) + repr(session)
    assert list(sessions._kept) == [digest(id)]


def test_idle_sessions_end_and_used_ones_end_too(sessions: Sessions, clock: Clock) -> None:
    id, _ = sessions.begin(ANN, ISSUER, "Ann")
    clock.now += IDLE_S
    assert sessions.find(id) is None
    assert len(sessions) == 0
    id, session = sessions.begin(ANN, ISSUER, "Ann")
    uses = 0
    while sessions.find(id) is not None:
        clock.now += IDLE_S - 1
        uses += 1
    assert uses == ABSOLUTE_S // (IDLE_S - 1) + 1
    assert sessions.left_s(session) == 0.0


def test_a_login_takes_the_place_of_the_session_before(sessions: Sessions) -> None:
    old, _ = sessions.begin(ANN, ISSUER, "Ann")
    new, _ = sessions.begin(ANN, ISSUER, "Ann", replaces=digest(old))
    assert new != old
    assert sessions.find(old) is None
    assert sessions.find(new) is not None


def test_there_are_never_too_many(clock: Clock) -> None:
    sessions = Sessions(clock, counting(), most=5, most_each=2)
    ids = [sessions.begin(ANN, ISSUER, "Ann")[0] for _ in range(3)]
    assert [sessions.find(id) is not None for id in ids] == [False, True, True]
    for number in range(10):
        sessions.begin(Principal("session", "x", "member", user=f"user_{number}"), ISSUER, "x")
    assert len(sessions) == 5


def test_many_end_at_once(sessions: Sessions) -> None:
    ann, _ = sessions.begin(ANN, ISSUER, "Ann")
    bob, _ = sessions.begin(BOB, "https://other.example.com", "Bob")
    assert sessions.end_where(lambda session: session.issuer == ISSUER) == 1
    assert sessions.find(ann) is None
    assert sessions.find(bob) is not None


class Model:
    """What sessions promise, the slow way."""

    def __init__(self) -> None:
        self.live: dict[str, tuple[float, float]] = {}

    def lives(self, id: str, now: float) -> bool:
        began, seen = self.live[id]
        return now - seen < IDLE_S and now - began < ABSOLUTE_S


@bounds(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(["begin", "find", "end"]), st.integers(0, 5), st.floats(0, 4000)), max_size=60)
)
def test_any_order_of_events(steps: list[tuple[str, int, float]]) -> None:
    clock, model, ids = Clock(), Model(), list[str]()
    sessions = Sessions(clock, counting())
    for what, which, later in steps:
        clock.now += later
        if what == "begin":
            id, session = sessions.begin(ANN, ISSUER, "Ann")
            assert isinstance(session, Session)
            model.live[id] = (clock.now, clock.now)
            ids.append(id)
        elif ids:
            id = ids[which % len(ids)]
            if what == "end":
                sessions.end(id)
                model.live.pop(id, None)
            else:
                expected = id in model.live and model.lives(id, clock.now)
                assert (sessions.find(id) is not None) == expected or len(ids) > 20
                if expected:
                    model.live[id] = (model.live[id][0], clock.now)
                else:
                    model.live.pop(id, None)


# --- logins under way ---


def test_a_login_answers_once(clock: Clock) -> None:
    logins = Logins(clock, counting())
    cookie, login = logins.begin("corp", "/x", replaces=b"\0\xff")
    assert (login.provider, login.goal, login.replaces) == ("corp", "/x", b"\0\xff")
    assert len({login.state, login.nonce, login.verifier}) == 3
    assert logins.take(cookie, login.state) == login
    assert logins.take(cookie, login.state) is None
    assert logins.take(f"{cookie}==", login.state) is None, "however the cookie is written"


def test_a_wrong_state_does_not_count(clock: Clock) -> None:
    logins = Logins(clock, counting())
    cookie, login = logins.begin("corp", "/")
    for wrong in (login.state[:-1], login.state + "A", login.state.swapcase(), "", "\ud800", "x" * 100_000):
        assert logins.take(cookie, wrong) is None
    assert len(logins) == 0
    assert logins.take(cookie, login.state) == login


def test_a_state_of_another_browser_does_not_count(clock: Clock) -> None:
    logins = Logins(clock, counting())
    mine, _ = logins.begin("corp", "/")
    _, theirs = logins.begin("corp", "/")
    assert logins.take(mine, theirs.state) is None


def test_logins_end(clock: Clock) -> None:
    logins = Logins(clock, counting())
    cookie, login = logins.begin("corp", "/")
    clock.now += LOGIN_S
    assert logins.take(cookie, login.state) is None
    cookie, login = logins.begin("corp", "/")
    clock.now += LOGIN_S - 1
    assert logins.take(cookie, login.state) == login


def test_logins_that_nobody_answers_cost_nobody_anything(clock: Clock) -> None:
    """Whoever is nobody may begin any number of them: that pushes out none and fills no memory."""
    logins = Logins(clock, counting())
    mine, login = logins.begin("corp", "/")
    for _ in range(MAX_USED + 1):
        logins.begin("corp", "/" + "x" * 1023)
    assert len(logins) == 0
    assert logins.take(mine, login.state) == login


def test_answers_are_remembered_while_they_could_come_again_and_never_too_many(clock: Clock) -> None:
    logins = Logins(clock, counting(), most=3)
    begun = [logins.begin("corp", "/") for _ in range(5)]
    assert all(logins.take(cookie, login.state) for cookie, login in begun)
    assert len(logins) == 3
    assert [logins.take(cookie, login.state) for cookie, login in begun[2:]] == [None] * 3
    clock.now += LOGIN_S
    cookie, login = logins.begin("corp", "/")
    assert logins.take(cookie, login.state) == login
    assert len(logins) == 1, "those that have ended need no remembering"


def test_a_cookie_shows_nothing_and_fits(clock: Clock) -> None:
    logins = Logins(clock, counting())
    cookie, login = logins.begin("c" * 64, "/" + "x" * 1023, replaces=bytes(32))
    again, _ = logins.begin("c" * 64, "/" + "x" * 1023, replaces=bytes(32))
    assert len(cookie) < MAX_COOKIE / 2
    inside = base64.urlsafe_b64decode(cookie + "=" * (-len(cookie) % 4))
    for secret in (login.state, login.nonce, login.verifier, "xxxx", "cccc"):
        assert secret not in cookie
        assert secret.encode() not in inside
    # No two are sealed with the same nonce: that would give both away.
    assert cookie[:16] != again[:16]


def test_a_cookie_of_another_process_is_worth_nothing(clock: Clock) -> None:
    """Of the one before a restart, say: it does not know which were answered."""
    cookie, login = Logins(clock, lambda size: b"a" * size).begin("corp", "/")
    assert Logins(clock, lambda size: b"b" * size).take(cookie, login.state) is None
    assert Logins(clock, lambda size: b"a" * size).take(cookie, login.state) == login


@bounds(deadline=None)
@given(st.data())
def test_a_cookie_that_was_changed_is_worth_nothing(data: st.DataObject) -> None:
    logins = Logins(Clock(), counting())
    cookie, login = logins.begin("corp", "/x")
    raw = bytearray(base64.urlsafe_b64decode(cookie + "=" * (-len(cookie) % 4)))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    assert logins.take(base64.urlsafe_b64encode(raw).decode(), login.state) is None
    cut = cookie[: data.draw(st.integers(0, len(cookie) - 1))]
    assert logins.take(cut, login.state) is None
    assert logins.take(data.draw(st.text()), login.state) is None
    assert logins.take("A" * (MAX_COOKIE + 1), login.state) is None
    assert len(logins) == 0
