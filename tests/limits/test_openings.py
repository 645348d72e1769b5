"""How many requests a target is given at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.identity.principal import PRIORITIES
from appliance.limits.admission import Opening
from appliance.limits.fair_queue import Rules
from appliance.limits.openings import opening, openings, queue_rules
from appliance.settings import Deployment, LlamaCppArgs, Settings, SettingsError, from_mapping
from runtimes.llamacpp.bounds import check_room


def deployment(slots: int, max_waiting: int) -> Deployment:
    return Deployment(name="small", model="m", args=LlamaCppArgs(slots=slots, max_waiting=max_waiting))


@given(
    slots=st.integers(1, 256),
    max_waiting=st.integers(0, 1000),
    task=st.sampled_from(["generate", "embed"]),
    choices=st.lists(st.integers(1, 128), max_size=300),
)
def test_the_engine_never_has_to_refuse_what_the_gate_lets_in(
    slots: int, max_waiting: int, task: str, choices: list[int]
) -> None:
    given_to_it = opening(deployment(slots, max_waiting), task)
    inside = in_hand = 0
    for n in choices:
        if inside >= given_to_it.places or (inside and inside + n > given_to_it.most):
            continue
        if task == "embed":
            check_room(1, in_hand=in_hand, slots=1, max_waiting=max_waiting)
            in_hand += 1
        elif inside or n <= slots + max_waiting:  # else it is refused by name, however little there is to do
            check_room(n, in_hand=in_hand, slots=slots, max_waiting=max_waiting)
            in_hand += n
        inside += n


@given(slots=st.integers(1, 256))
def test_no_slot_waits_for_the_gateway_and_few_requests_for_a_slot(slots: int) -> None:
    assert 1 <= opening(deployment(slots, 256), "generate").places - slots <= max(1, (slots + 3) // 4)


def test_the_defaults_of_settings_and_queue_are_the_same() -> None:
    assert queue_rules(Settings()) == Rules()


def test_the_rules_come_from_the_settings() -> None:
    admission = {
        "max_waiting": 7,
        "max_wait": {"interactive": "5s", "batch": "1h"},
        "weights": {"interactive": 9, "normal": 3},
    }
    assert queue_rules(from_mapping({"admission": admission})) == Rules(
        max_waiting=7,
        max_wait=dict(zip(PRIORITIES, (5.0, 60.0, 3600.0), strict=True)),
        weights=dict(zip(PRIORITIES, (9, 3, 1), strict=True)),
    )


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"max_waiting": -1}, "admission.max_waiting"),
        ({"max_wait": {"interactive": "soon"}}, "admission.max_wait.interactive"),
        ({"weights": {"batch": 0}}, "admission.weights.batch"),
        ({"default_priority": "urgent"}, "admission.default_priority"),
        ({"max_priority": "none"}, "admission.max_priority"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, object], key: str) -> None:
    with pytest.raises(SettingsError) as told:
        from_mapping({"admission": wrong})
    (problem,) = told.value.problems
    assert problem.key == key
    assert problem.cure


def test_every_deployment_has_a_gate() -> None:
    settings = from_mapping(
        {
            "deployments": [
                {"name": "chat", "model": "m", "args": {"slots": 6}},
                {"name": "texts", "model": "e", "args": {"max_waiting": 10}},
            ],
        }
    )
    assert openings(settings, {"chat": "generate", "texts": "embed"}) == [
        Opening("chat", ("chat",), 8, replicated=True, most=6 + 256),
        Opening("texts", ("texts",), 11, replicated=True),
    ]


def test_a_bounded_provider_has_one_gate_for_all_its_models() -> None:
    base = from_mapping(
        {
            "deployments": [],
            "providers": [{"name": "lab", "zone": "cloud"}, {"name": "free", "zone": "cloud"}],
            "routes": [
                {"model": "a", "targets": [{"provider": "lab", "model": "x"}, {"provider": "free", "model": "x"}]},
                {"model": "b", "targets": [{"provider": "lab", "model": "y/z"}, {"provider": "lab", "model": "x"}]},
            ],
        }
    )
    lab, free = base.providers
    bounded = base.model_copy(update={"providers": (lab.model_copy(update={"max_in_flight": 3}), free)})
    assert openings(bounded, {}) == [Opening("lab/*", ("lab/x", "lab/y/z"), 3)]
