from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from appliance.dialects.kinds import CHAT, COMPLETIONS, EMBEDDINGS, KINDS
from appliance.errors import BadRequest, ModelLoading, ModelNotFound, OutpostError, Unavailable, UnsupportedParameter
from appliance.identity.principal import Restrictions
from appliance.providers.upstream import READY, Call, Capabilities, Readiness
from appliance.routing.board import Board
from appliance.routing.build import build_router, check_overrides
from appliance.routing.plan import make_plan, plain_plan
from appliance.routing.routes import Deadlines, Route, Router, Target
from appliance.routing.situation import Situation
from appliance.routing.strategies import STRATEGIES
from appliance.settings.routing import Deadlines as DeadlineSettings
from appliance.settings.routing import DeploymentTarget, ProviderTarget, Strategy
from appliance.settings.routing import Route as RouteSettings
from tests.fakes.house import CHAT_MODEL, EMBEDDER


class Stub:
    """An upstream that is only looked at."""

    def __init__(self, name: str, capabilities: Capabilities = CHAT_MODEL, readiness: Readiness = READY) -> None:
        self.name = name
        self.capabilities = capabilities
        self._readiness = readiness

    def readiness(self) -> Readiness:
        return self._readiness

    async def whole(self, call: Call) -> bytes:
        raise NotImplementedError

    def stream(self, call: Call) -> Any:
        raise NotImplementedError


def route(*targets: Stub, **options: Any) -> Route:
    return Route("m", tuple(Target(target) for target in targets), **options)


def chat(**fields: Any) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return CHAT.parse(json.dumps(body).encode(), 64)


LINKED = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://canary/x.png"}}]}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}


def test_candidates_keep_the_order_of_the_file() -> None:
    plan = make_plan(route(Stub("a"), Stub("b"), Stub("c")), CHAT, chat())
    assert [candidate.target.name for candidate in plan.candidates] == ["a", "b", "c"]
    assert plan.why == ()


def test_a_target_that_is_down_is_left_out_with_the_reason() -> None:
    down = Stub("a", readiness=Readiness(False, "failed: out of memory"))
    plan = make_plan(route(down, Stub("b")), CHAT, chat())
    assert [candidate.target.name for candidate in plan.candidates] == ["b"]
    assert plan.why == ("a: failed: out of memory",)


@pytest.mark.parametrize(
    ("lengths", "larger"),
    [((100, 4000), True), ((4000, 100), False), ((100, 100), False), ((100, None), True), ((None, None), False)],
)
def test_a_larger_target_that_is_not_up_is_noted(lengths: tuple[int | None, int | None], larger: bool) -> None:
    up, down = (Capabilities(CHAT_MODEL.kinds, CHAT_MODEL.features, context_length=length) for length in lengths)
    loading = Readiness(False, "warming", loading=True)
    plan = make_plan(route(Stub("a", up), Stub("b", down, loading)), CHAT, chat())
    assert plan.larger == (loading if larger else None)


@pytest.mark.parametrize(
    ("readiness", "error", "after"),
    [
        (Readiness(False, "quarantined"), Unavailable, 2.0),
        (Readiness(False, "warming", loading=True, retry_after_s=9.0), ModelLoading, 9.0),
    ],
)
def test_nothing_up_is_503_with_the_reason(readiness: Readiness, error: type[Unavailable], after: float) -> None:
    with pytest.raises(error) as caught:
        make_plan(route(Stub("a", readiness=readiness)), CHAT, chat())
    assert caught.value.status == 503
    assert caught.value.retry_after_s == after
    assert readiness.reason in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"messages": [IMAGE]}, "messages[0].content[0]", "cannot take images"),
        ({"messages": [LINKED]}, "messages[0].content[0]", "cannot take images"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "does not reason"),
        ({"reasoning": {"summary": "auto"}}, "reasoning", "does not reason"),
    ],
)
def test_what_no_target_can_do_is_refused_by_name(fields: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        make_plan(route(Stub("a")), CHAT, chat(**fields))
    assert caught.value.param == param
    assert says in caught.value.message


def test_addresses_of_images_are_not_fetched() -> None:
    able = Stub("b", Capabilities(CHAT_MODEL.kinds, CHAT_MODEL.features | {"images"}))
    with pytest.raises(UnsupportedParameter, match="only as data: URLs") as caught:
        make_plan(route(able), CHAT, chat(messages=[LINKED]))
    assert caught.value.param == "messages[0].content[0].image_url.url"


def test_a_target_that_can_is_used_where_another_cannot() -> None:
    able = Stub("b", Capabilities(CHAT_MODEL.kinds, CHAT_MODEL.features | {"images"}))
    plan = make_plan(route(Stub("a"), able), CHAT, chat(messages=[IMAGE]))
    assert [candidate.target.name for candidate in plan.candidates] == ["b"]
    assert "images" in plan.why[0]


def test_drop_unsupported_drops_what_only_shapes_the_answer() -> None:
    bare = Stub("a", Capabilities(frozenset(["chat.completions"])))
    fields = {"logprobs": True, "top_logprobs": 2, "reasoning_effort": "low", "top_k": 5, "temperature": 0.5}
    request = chat(**fields)
    plan = make_plan(route(bare, drop_unsupported=True), CHAT, request)
    fitted: Any = plan.candidates[0].request
    assert (fitted.logprobs, fitted.top_logprobs, fitted.reasoning_effort, fitted.top_k) == (None, None, None, None)
    assert fitted.temperature == 0.5
    with pytest.raises(UnsupportedParameter):
        make_plan(route(bare, drop_unsupported=True), CHAT, chat(messages=[IMAGE]))
    with pytest.raises(UnsupportedParameter):
        make_plan(route(bare), CHAT, request)


def test_an_operation_that_the_model_does_not_offer() -> None:
    with pytest.raises(BadRequest) as caught:
        make_plan(route(Stub("a", EMBEDDER)), CHAT, chat())
    assert caught.value.param == "model"
    assert "embeddings" in caught.value.message


def test_dimensions_must_be_those_of_the_model() -> None:
    for dimensions, fine in ((2, True), (3, False)):
        request = EMBEDDINGS.parse(json.dumps({"model": "m", "input": "x", "dimensions": dimensions}).encode(), 64)
        if fine:
            assert make_plan(route(Stub("a", EMBEDDER)), EMBEDDINGS, request).candidates
        else:
            with pytest.raises(UnsupportedParameter) as caught:
                make_plan(route(Stub("a", EMBEDDER)), EMBEDDINGS, request)
            assert caught.value.param == "dimensions"


def test_overrides_win_and_only_touch_fields_that_the_request_has() -> None:
    overrides = check_overrides({"temperature": 0.2, "max_tokens": 7, "tool_choice": "none"})
    made = Route("m", (Target(Stub("a"), overrides),))
    fitted: Any = make_plan(made, CHAT, chat(temperature=1.5, max_completion_tokens=100)).candidates[0].request
    assert (fitted.temperature, fitted.token_limit, fitted.tool_choice) == (0.2, 7, "none")
    request = COMPLETIONS.parse(b'{"model": "m", "prompt": "x"}', 64)
    plain: Any = make_plan(made, COMPLETIONS, request).candidates[0].request
    assert (plain.temperature, plain.max_tokens) == (0.2, 7)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"temprature": 1}, "overrides.temprature"),
        ({"model": "x"}, "overrides.model"),
        ({"temperature": 5}, "temperature"),
        ({"max_tokens": "many"}, "max_tokens"),
    ],
)
def test_wrong_overrides_are_named(overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_overrides(overrides)


def test_an_unknown_model_is_told_what_there_is() -> None:
    router = Router([Route("chat", (Target(Stub("a")),), aliases=("gpt-4o-mini",)), route(Stub("b"))])
    assert router.find("gpt-4o-mini").model == "chat"
    with pytest.raises(ModelNotFound) as caught:
        router.find("gpt-9\n")
    assert caught.value.status == 404
    assert "chat, gpt-4o-mini, m" in caught.value.message
    assert "\n" not in caught.value.message


def test_cards_tell_what_a_model_can_do_and_where_it_runs() -> None:
    router = Router([Route("chat", (Target(Stub("a")), Target(Stub("p/x"))), aliases=("alias",))])
    chat_card, alias = router.cards(5)
    assert (chat_card.id, chat_card.targets, chat_card.context_length) == ("chat", ["a", "p/x"], 8192)
    assert alias.alias_of == "chat"
    assert "chat.completions" in chat_card.capabilities


def test_ready_means_at_least_one_target() -> None:
    down = Stub("a", readiness=Readiness(False, "x"))
    assert not Router([route(down)]).ready()
    assert Router([route(down), Route("n", (Target(Stub("b")),))]).ready()


def test_a_router_from_settings() -> None:
    settings = [
        RouteSettings(
            model="chat",
            aliases=("a",),
            targets=(
                DeploymentTarget(deployment="small"),
                ProviderTarget(provider="p", model="x", overrides={"temperature": 0.1}),
            ),
            deadlines=DeadlineSettings(connect=1.0, first_token=2.0, idle=3.0, total=4.0),
            retries=1,
            drop_unsupported=True,
        )
    ]
    made = build_router(settings, lambda target: Stub(str(target))).find("a")
    assert [target.name for target in made.targets] == ["small", "p/x"]
    assert made.targets[1].overrides == {"temperature": 0.1}
    assert made.deadlines == Deadlines(1.0, 2.0, 3.0, 4.0)
    assert (made.retries, made.drop_unsupported) == (1, True)


def test_tables_hold_what_they_are_named_after() -> None:
    assert set(STRATEGIES) == set(get_args(Strategy))
    assert all(name == kind.name for name, kind in KINDS.items())


@pytest.mark.parametrize("down", [0, 1, 2])
@pytest.mark.parametrize("zones", [None, ("on_box",), ("cloud",)])
@pytest.mark.parametrize("fields", [{}, {"logprobs": True}, {"messages": [IMAGE]}])
@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("failed", [0, 5])
def test_the_plan_of_the_usual_case_is_the_plan(
    down: int, zones: Any, fields: dict[str, Any], drop: bool, failed: int
) -> None:
    """The short way to a plan, for requests that nothing stands against, leads to the same."""
    able = Capabilities(kinds=frozenset({"chat.completions"}), features=frozenset({"images", "logprobs"}))
    stubs = [Stub("a", able), Stub("b"), Stub("c", able)]
    if down:
        stubs[down - 1]._readiness = Readiness(False, "it is down")
    made = Route(
        "m",
        tuple(Target(stub, {"temperature": 0.5} if at else {}) for at, stub in enumerate(stubs)),
        drop_unsupported=drop,
    )
    board, limited = Board(lambda: 0.5), Restrictions(zones=zones)
    for _ in range(failed):
        flight = board.began("c", 1, 0.0)
        assert flight is not None
        flight.ended("failed", 0.0)
    asked = chat(**fields)
    short = plain_plan(made, CHAT, asked, limited, board, 0.0)
    situation = Situation(board, 0.0, 0.0, lambda: 0.5)
    try:
        whole = make_plan(made, CHAT, asked, limited, situation)
    except OutpostError:
        assert short is None
    else:
        assert short in (None, whole)
        assert (short is None) == bool(whole.why)
