"""Sessions end when they should, and nothing but the right cookie opens one."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st

from appliance.identity.principal import Principal
from appliance.identity.sessions import ABSOLUTE_S, IDLE_S, LOGIN_S, Logins, Session, Sessions, digest

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
    id, session = sessions.begin(ANN, ISSUER)
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
    id, session = sessions.begin(ANN, ISSUER)
    assert id not in repr(vars(sessions)) + repr(sessions._kept.things) + repr(session)
    assert list(sessions._kept.things) == [digest(id)]


def test_idle_sessions_end_and_used_ones_end_too(sessions: Sessions, clock: Clock) -> None:
    id, _ = sessions.begin(ANN, ISSUER)
    clock.now += IDLE_S
    assert sessions.find(id) is None
    assert len(sessions) == 0
    id, session = sessions.begin(ANN, ISSUER)
    uses = 0
    while sessions.find(id) is not None:
        clock.now += IDLE_S - 1
        uses += 1
    assert uses == ABSOLUTE_S // (IDLE_S - 1) + 1
    assert sessions.left_s(session) == 0.0


def test_a_login_takes_the_place_of_the_session_before(sessions: Sessions) -> None:
    old, _ = sessions.begin(ANN, ISSUER)
    new, _ = sessions.begin(ANN, ISSUER, replaces=digest(old))
    assert new != old
    assert sessions.find(old) is None
    assert sessions.find(new) is not None


def test_there_are_never_too_many(clock: Clock) -> None:
    sessions = Sessions(clock, counting(), most=5, most_each=2)
    ids = [sessions.begin(ANN, ISSUER)[0] for _ in range(3)]
    assert [sessions.find(id) is not None for id in ids] == [False, True, True]
    for number in range(10):
        sessions.begin(Principal("session", "x", "member", user=f"user_{number}"), ISSUER)
    assert len(sessions) == 5


def test_many_end_at_once(sessions: Sessions) -> None:
    ann, _ = sessions.begin(ANN, ISSUER)
    bob, _ = sessions.begin(BOB, "https://other.example.com")
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
            id, session = sessions.begin(ANN, ISSUER)
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
    id, login = logins.begin("corp", "/x")
    assert len({login.state, login.nonce, login.verifier, id}) == 4
    assert logins.take(id, login.state) == login
    assert logins.take(id, login.state) is None


def test_a_wrong_state_ends_the_login(clock: Clock) -> None:
    logins = Logins(clock, counting())
    id, login = logins.begin("corp", "/")
    assert logins.take(id, login.state[:-1]) is None
    assert logins.take(id, login.state) is None
    id, login = logins.begin("corp", "/")
    assert logins.take(id, "\ud800") is None


def test_a_state_of_another_browser_does_not_count(clock: Clock) -> None:
    logins = Logins(clock, counting())
    mine, _ = logins.begin("corp", "/")
    _, theirs = logins.begin("corp", "/")
    assert logins.take(mine, theirs.state) is None


def test_logins_end(clock: Clock) -> None:
    logins = Logins(clock, counting(), most=3)
    id, login = logins.begin("corp", "/")
    clock.now += LOGIN_S
    assert logins.take(id, login.state) is None
    ids = [logins.begin("corp", "/") for _ in range(5)]
    assert [logins.take(id, login.state) is not None for id, login in ids] == [False, False, True, True, True]
