"""An explanation says what the plan decides, of every target, whatever the route."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dialects.kinds import CHAT, EMBEDDINGS, MESSAGES, RESPONSES
from appliance.errors import OutpostError, PermissionDenied, Unavailable
from appliance.providers.upstream import READY, Capabilities, Readiness
from appliance.routing.board import Board
from appliance.routing.complexity import assess
from appliance.routing.conditions import Condition
from appliance.routing.plan import explain_plan, make_plan
from appliance.routing.residency import Demand
from appliance.routing.routes import Nested, Route, Target
from appliance.routing.situation import Situation
from appliance.routing.strategies import STRATEGIES
from tests.fakes.house import CHAT_MODEL, EMBEDDER
from tests.routing.test_plan import Stub, chat

CONDITIONS = st.none() | st.sampled_from(
    [
        Condition(tags=("vip",)),
        Condition(teams=("team-secret",)),
        Condition(min_prompt_tokens=100),
        Condition(max_complexity=20),
        Condition(keys=("ci",)),
    ]
)
NAMES = [f"t{number}" for number in range(40)]


@st.composite
def routes(draw: st.DrawFn, names: list[str] | None = None, depth: int = 0) -> Route:
    names = [*NAMES] if names is None else names
    made: list[Target | Nested] = []
    for _ in range(draw(st.integers(1, 4))):
        when, share = draw(CONDITIONS), draw(st.none() | st.just(0.3))
        if depth < 2 and draw(st.integers(0, 3)) == 0:
            made.append(Nested(draw(routes(names, depth + 1)), when=when, share=share))
            continue
        stub = Stub(
            names.pop(),
            draw(st.sampled_from([CHAT_MODEL, CHAT_MODEL, EMBEDDER, Capabilities(CHAT_MODEL.kinds)])),
            draw(st.sampled_from([READY, READY, Readiness(False, "out of memory")])),
        )
        zone = draw(st.sampled_from(["on_box", "on_prem", "cloud"]))
        made.append(Target(stub, zone=zone, when=when, share=share))  # type: ignore[arg-type]
    return Route(f"r{len(names)}", tuple(made), strategy=draw(st.sampled_from(sorted(STRATEGIES))))


def situation(seed: int, board: Board, **more: Any) -> Situation:
    return Situation(board, 100.0, 1_700_000_000.0, random.Random(seed).random, lambda: 50, **more)


def resting(board: Board, name: str) -> None:
    for _ in range(6):
        flight = board.began(name, 1, 99.0)
        if flight is not None:
            flight.ended("failed", 99.0, code="upstream_error")


@given(
    route=routes(),
    seed=st.integers(0, 1000),
    tags=st.sampled_from([(), ("vip",)]),
    keep=st.sampled_from(["any", "on_prem"]),
    tools=st.booleans(),
    down=st.sets(st.sampled_from(NAMES[-6:])),
)
def test_it_is_what_the_plan_decides(
    route: Route, seed: int, tags: tuple[str, ...], keep: Any, tools: bool, down: set[str]
) -> None:
    board = Board(random.Random(1).random)
    for name in down:
        resting(board, name)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    asked = chat(**({"tools": [tool]} if tools else {}))
    more = {"tags": tags, "demands": (Demand(keep, "the key ci"),)}
    told = explain_plan(route, CHAT, asked, None, situation(seed, board, **more))
    try:
        plan = make_plan(route, CHAT, asked, None, situation(seed, board, **more))
    except OutpostError as error:
        assert all(each.place is None for each in told.considered)
        assert told.remarks == (error.message,)
        planned = []
    else:
        planned = [candidate.target.name for candidate in plan.candidates]
        assert told.remarks == ()
    placed = [each for each in told.considered if each.place is not None]
    assert [each.target for each in placed] == planned
    assert [each.place for each in placed] == list(range(1, len(planned) + 1))
    assert Counter(each.target for each in told.considered) == Counter(each.name for each in route.all_targets())
    assert all(each.why for each in told.considered)


def test_a_refusal_for_conditions_names_nobody() -> None:
    names = ("board-room", "vip-tag", "merger-key", "merger-org")
    conditions = [Condition(teams=names[:1]), Condition(tags=names[1:2]), Condition(keys=names[2:3])]
    inner = Nested(Route("inner", (Target(Stub("d")),)), when=Condition(organizations=names[3:]))
    route = Route("m", (*[Target(Stub(f"t{at}"), when=each) for at, each in enumerate(conditions)], inner))
    with pytest.raises(Unavailable) as caught:
        make_plan(route, CHAT, chat(), None, situation(1, Board()))
    assert not any(name in caught.value.message for name in names)
    assert all(any(name in note for note in caught.value.__notes__) for name in names)
    assert caught.value.__notes__[-1] == "d: the route inner is left out: when: it is for the organization merger-org"


def test_the_facts_say_what_a_request_is() -> None:
    route = Route("m", (Target(Stub("a")),))
    asked = chat(messages=[{"role": "user", "content": "Prove it step by step. Why? What follows?"}])
    more = {"demands": (Demand("on_prem", "the key ci"),), "tags": ("x", "y"), "session": "s"}
    told = explain_plan(route, CHAT, asked, None, situation(1, Board(), **more)).request
    complexity = assess(asked.request)
    assert complexity.score > 0
    assert told == {
        "operation": "chat.completions",
        "prompt_tokens": 50,
        "complexity": complexity.score,
        "complexity from": dict(complexity.parts),
        "tags": "x, y",
        "session": "s",
        "data stays": "on_prem, for the key ci",
    }


def test_every_dialect_of_a_chat_has_a_complexity_and_nothing_else_has() -> None:
    route = Route("m", (Target(Stub("a")),))
    asked = MESSAGES.parse(b'{"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}', 64)
    assert explain_plan(route, MESSAGES, asked, None, situation(1, Board())).request["complexity"] == 0
    asked = EMBEDDINGS.parse(b'{"model": "m", "input": "x"}', 64)
    assert "complexity" not in explain_plan(route, EMBEDDINGS, asked, None, situation(1, Board())).request


def test_what_a_target_does_not_get_is_told() -> None:
    tools = [{"type": "web_search"}, {"type": "function", "name": "f"}, {"type": "custom", "name": "c"}]
    body = {"model": "m", "input": "Hi", "tools": tools, "service_tier": "flex", "truncation": "auto"}
    asked = RESPONSES.parse(json.dumps(body).encode(), 64)
    route = Route(
        "m", (Target(Stub("a", Capabilities(CHAT_MODEL.kinds, frozenset({"tools"})))),), drop_unsupported=True
    )
    (target,) = explain_plan(route, RESPONSES, asked, None, situation(1, Board())).considered
    assert target.without == ("service_tier", "tools[0]", "truncation")


def test_what_a_route_inside_demands_holds_for_its_targets() -> None:
    """And for no others; what the route around it, or the request, demands still holds inside."""
    anywhere = Condition(zones=("cloud",))
    near = Target(Stub("b"), zone="on_prem", when=anywhere)  # conditions go by what the request itself demands
    inner = Nested(Route("patients", (Target(Stub("a"), zone="cloud"), near), keep="on_prem"))
    route = Route("m", (Target(Stub("c"), zone="cloud"), inner, Target(Stub("d"), zone="cloud", when=anywhere)))
    plan = make_plan(route, CHAT, chat(), None, situation(1, Board()))
    assert [candidate.target.name for candidate in plan.candidates] == ["c", "b", "d"]
    assert plan.why == ("a: it is off the premises, and the route patients keeps data on the premises",)
    bound = situation(1, Board(), demands=(Demand("on_box", "a verdict"),))
    told = explain_plan(route, CHAT, chat(), None, bound)
    assert all(each.place is None for each in told.considered)
    assert len(told.considered) == 4
    assert told.request["data stays"] == "on_box, for a verdict"
    loose = Route("m", (Nested(Route("open", (Target(Stub("a"), zone="cloud"),))),), keep="on_prem")
    with pytest.raises(PermissionDenied, match="the route m keeps data on the premises"):
        make_plan(loose, CHAT, chat(), None, situation(1, Board()))
