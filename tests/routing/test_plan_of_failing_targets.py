"""Where targets that fail stand in a plan: those that fail often last, those that are down not at all."""

from __future__ import annotations

import random
from typing import Any

import pytest

from appliance.dialects.kinds import CHAT
from appliance.errors import TargetResting
from appliance.routing.board import Board
from appliance.routing.breaker import BACK_LEAST, FAILURES_IN_A_ROW, MOST_TRIALS, WINDOW_LEAST
from appliance.routing.plan import explain_plan, make_plan, plain_plan
from appliance.routing.routes import Nested, Route, Target
from appliance.routing.situation import Situation
from appliance.routing.strategies import STRATEGIES
from tests.routing.test_plan import Stub, chat, route


def attempts(board: Board, name: str, outcomes: str, now: float = 0.0) -> None:
    """`f` failed, `o` answered."""
    for each in outcomes:
        flight = board.began(name, 0, now)
        assert flight is not None
        flight.ended("failed" if each == "f" else "ok", now)


def down(board: Board, name: str) -> None:
    attempts(board, name, "f" * FAILURES_IN_A_ROW)


def failing_often(board: Board, name: str) -> None:
    attempts(board, name, "of" * (WINDOW_LEAST // 2))


def failing_a_little(board: Board, name: str) -> None:
    attempts(board, name, "ooof" * (BACK_LEAST + 1))


def situation(board: Board, now: float = 0.0) -> Situation:
    return Situation(board, now, 0.0, random.Random(1).random)


def names(made: Route, board: Board, now: float = 0.0) -> list[str]:
    plan = make_plan(made, CHAT, chat(), None, situation(board, now))
    explained = explain_plan(made, CHAT, chat(), None, situation(board, now))
    placed = [each.target for each in sorted(explained.considered, key=lambda each: each.place or 0) if each.place]
    found = [candidate.target.name for candidate in plan.candidates]
    assert sorted(placed) == sorted(found)
    assert len({each.target for each in explained.considered}) == len(explained.considered), "each is told of once"
    return found


@pytest.mark.parametrize("fails", [failing_often, failing_a_little])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_who_fails_often_comes_after_all_others(strategy: Any, fails: Any) -> None:
    board = Board(lambda: 0.5)
    fails(board, "a")
    made = route(Stub("a"), Stub("b"), Stub("c"), strategy=strategy)
    found = names(made, board)
    assert (len(found), found[-1]) == (3, "a")
    assert plain_plan(made, CHAT, chat(), None, board, 0.0) is None
    why = {each.target: each.why for each in explain_plan(made, CHAT, chat(), None, situation(board)).considered}
    assert "fail" in why["a"]
    assert "fail" not in why["b"]


@pytest.mark.parametrize("fails", [failing_often, failing_a_little])
def test_where_all_fail_often_all_are_asked_in_their_order(fails: Any) -> None:
    board = Board(lambda: 0.5)
    for name in "abc":
        fails(board, name)
    assert names(route(Stub("a"), Stub("b"), Stub("c")), board) == ["a", "b", "c"]


def test_a_route_inside_comes_last_where_all_of_it_fails_often() -> None:
    board = Board(lambda: 0.5)
    failing_often(board, "a")
    inner = Route("inner", (Target(Stub("a")), Target(Stub("b"))))
    made = Route("m", (Nested(inner), Target(Stub("c"))))
    assert names(made, board) == ["b", "a", "c"]
    failing_often(board, "b")
    assert names(made, board) == ["c", "a", "b"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_trial_of_one_that_was_down_is_asked_in_its_place_and_others_go_elsewhere(strategy: Any) -> None:
    board = Board(lambda: 0.5)
    down(board, "a")
    made = route(Stub("a"), Stub("b"), strategy=strategy)
    assert names(made, board) == ["b"]
    later = 2.0
    assert "a" in names(made, board, later)
    trial = board.began("a", 0, later)
    assert trial is not None and trial.trial
    assert names(made, board, later) == ["b"]
    trial.ended("ok", later)
    assert "a" in names(made, board, later)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_where_there_is_nobody_else_a_few_share_the_trial(strategy: Any) -> None:
    board = Board(lambda: 0.5)
    down(board, "a")
    down(board, "b")
    made = route(Stub("a"), Stub("b"), strategy=strategy)
    with pytest.raises(TargetResting):
        make_plan(made, CHAT, chat(), None, situation(board))
    later = 2.0
    assert sorted(names(made, board, later)) == ["a", "b"]
    for name in "ab":
        assert board.began(name, 0, later) is not None
        assert board.began(name, 0, later) is None, "somebody else could be asked"
    for _ in range(MOST_TRIALS - 1):
        assert sorted(names(made, board, later)) == ["a", "b"]
        assert all(board.began(name, 0, later, alone=True) is not None for name in "ab")
    with pytest.raises(TargetResting, match="left alone for now: one trial"):
        make_plan(made, CHAT, chat(), None, situation(board, later))
