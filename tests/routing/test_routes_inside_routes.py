"""What a route inside a route is to the strategy of the outer one: the target that it would ask first."""

from __future__ import annotations

import random
from typing import Any

import pytest

from appliance.dialects.kinds import CHAT
from appliance.errors import TargetResting
from appliance.routing.board import Board
from appliance.routing.plan import make_plan
from appliance.routing.routes import Nested, Route, Target
from appliance.routing.situation import Situation
from appliance.routing.strategies import Unpriced
from tests.routing.test_plan import Stub, chat

NOW = 100.0


def target(name: str, **more: Any) -> Target:
    return Target(Stub(name), **more)


def order(route: Route, board: Board, *, seed: int = 1, **more: Any) -> list[str]:
    situation = Situation(board, NOW, 1_700_000_000.0, random.Random(seed).random, lambda: 50, **more)
    return [each.target.name for each in make_plan(route, CHAT, chat(), None, situation).candidates]


def busy(board: Board, name: str, tokens: int) -> None:
    assert board.began(name, tokens, NOW) is not None


def took(board: Board, name: str, seconds: float) -> None:
    """Answers that began and ended after so long."""
    for _ in range(5):
        flight = board.began(name, 1, NOW - 2 * seconds)
        assert flight is not None
        flight.first_token(NOW - seconds)
        flight.ended("ok", NOW, tokens_out=100)


def rest(board: Board, name: str) -> None:
    for _ in range(6):
        flight = board.began(name, 1, NOW - 1)
        if flight is not None:
            flight.ended("failed", NOW, code="upstream_error")


def outer(strategy: str, inner: Route, *others: Target, **more: Any) -> Route:
    return Route("outer", (Nested(inner), *others), strategy=strategy, **more)


def test_the_least_busy_is_found_inside_too() -> None:
    inner = Route("inner", (target("a"), target("b")), strategy="least_busy")
    board = Board(lambda: 0.5)
    busy(board, "a", 500)
    busy(board, "b", 300)
    busy(board, "c", 400)
    assert order(outer("least_busy", inner, target("c")), board) == ["b", "a", "c"]
    busy(board, "b", 300)
    assert order(outer("least_busy", inner, target("c")), board) == ["c", "a", "b"]


def test_times_are_learnt_of_what_is_inside() -> None:
    board = Board(lambda: 0.5)
    took(board, "a", 8.0)
    took(board, "c", 1.0)
    route = outer("latency", Route("inner", (target("a"),)), target("c"))
    for seed in range(20):
        assert order(route, board, seed=seed) == ["c", "a"], "both are known, so none is only tried"


def test_prices_count_through_a_route() -> None:
    dear, cheap = target("a", price=Unpriced(output=10_000_000)), target("c", price=Unpriced(output=1_000_000))
    assert order(outer("cost", Route("inner", (dear,)), cheap), Board()) == ["c", "a"]


def test_what_rests_inside_is_passed_over() -> None:
    """The next one inside is what counts; where all rest, the route is none of the choices."""
    inner, board = Route("inner", (target("a"), target("b"))), Board(lambda: 0.5)
    rest(board, "a")
    busy(board, "b", 900)
    assert order(outer("least_busy", inner, target("c")), board) == ["c", "b"]
    rest(board, "b")
    assert order(outer("weighted", inner, target("c")), board, session="s") == ["c"]
    with pytest.raises(TargetResting):
        order(outer("weighted", inner), board)


def test_a_session_stays_where_it_is_in_every_route_on_the_way() -> None:
    inner = Route("inner", tuple(target(name) for name in "abc"), strategy="weighted", sticky=True)
    route = outer("weighted", inner, target("d"), target("e"), sticky=True)
    for session in map(str, range(30)):
        assert len({tuple(order(route, Board(), seed=seed, session=session)) for seed in range(5)}) == 1
