"""What a credential is limited to, it cannot get around: names, targets and zones, whatever the route offers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dialects.kinds import CHAT
from appliance.errors import ModelNotFound, PermissionDenied
from appliance.identity.principal import Restrictions
from appliance.providers.upstream import Readiness
from appliance.routing.plan import make_plan
from appliance.routing.routes import Route, Router, Target
from tests.routing.test_plan import Stub, chat

TARGETS = (Target(Stub("small")), Target(Stub("lab/llama"), zone="on_prem"), Target(Stub("openai/gpt"), zone="cloud"))
ROUTE = Route("m", TARGETS)


@given(
    st.none() | st.sets(st.sampled_from(["small", "lab/llama", "openai/gpt", "elsewhere"])),
    st.none() | st.sets(st.sampled_from(["on_box", "on_prem", "cloud"])),
)
def test_only_allowed_targets_are_tried(models: set[str] | None, zones: set[str] | None) -> None:
    limited = Restrictions(
        models=None if models is None else tuple(models),
        zones=None if zones is None else tuple(zones),  # type: ignore[arg-type]  # drawn from the zones
    )
    wanted = [
        target.name
        for target in TARGETS
        if (models is None or target.name in models) and (zones is None or target.zone in zones)
    ]
    if not wanted:
        with pytest.raises(PermissionDenied, match="may not use the model m"):
            make_plan(ROUTE, CHAT, chat(), limited)
        return
    plan = make_plan(ROUTE, CHAT, chat(), limited)
    assert [candidate.target.name for candidate in plan.candidates] == wanted
    assert len(plan.why) == len(TARGETS) - len(wanted)


def test_a_forbidden_target_does_not_become_the_larger_one_to_wait_for() -> None:
    down = Target(Stub("big", readiness=Readiness(False, "warming", loading=True)), zone="cloud")
    plan = make_plan(Route("m", (TARGETS[0], down)), CHAT, chat(), Restrictions(zones=("on_box",)))
    assert plan.larger is None


@pytest.mark.parametrize(
    ("only", "seen"),
    [
        (None, ["chat", "gpt-4o-mini", "other"]),
        (("chat",), ["chat", "gpt-4o-mini"]),
        (("gpt-4o-mini",), ["gpt-4o-mini"]),
        (("nothing",), []),
        ((), []),
    ],
)
def test_models_that_a_key_may_not_use_are_not_shown(only: tuple[str, ...] | None, seen: list[str]) -> None:
    router = Router([Route("chat", TARGETS, aliases=("gpt-4o-mini",)), Route("other", TARGETS)])
    assert [card.id for card in router.cards(1, only)] == seen
    for name in ("chat", "gpt-4o-mini", "other"):
        if name in seen:
            assert router.find(name, only)
            assert router.card(name, 1, only).id == name
            continue
        for look in (router.find, lambda model, names: router.card(model, 1, names)):
            with pytest.raises(ModelNotFound) as caught:
                look(name, only)
            hidden = {"chat", "gpt-4o-mini", "other"} - set(seen) - {name}
            assert not any(f" {each}" in caught.value.message.split("key.")[-1].split(". ", 1)[-1] for each in hidden)
