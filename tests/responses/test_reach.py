"""What is noted of how far a conversation may go, and what that demands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.responses.reach import UNNOTED, demanded, noted
from appliance.routing.residency import DISTANCE, UNBOUND, Demand, Residency, allowed, strictest

ZONES = st.sampled_from(("on_box", "on_prem", "cloud"))
DEMANDS = st.lists(
    st.builds(
        Demand, st.sampled_from(("on_box", "on_prem", "any")), st.just("x"), st.sampled_from(("drop", "pseudonymise"))
    ),
    max_size=3,
)
LIMITED = st.none() | st.lists(ZONES, min_size=1, max_size=3).map(tuple)


def places(residency: Residency) -> list[tuple[bool, bool]]:
    return [allowed(zone, residency)[:2] for zone in DISTANCE]


@given(st.lists(DEMANDS, min_size=1, max_size=3), LIMITED)
def test_a_note_demands_what_was_demanded(each: list[list[Demand]], zones: tuple[str, ...] | None) -> None:
    within = [strictest(demands) for demands in each]
    found = strictest(demanded(noted(within, zones)))  # type: ignore[arg-type]
    for zone in DISTANCE:
        verdict = allowed(zone, found)
        reached = zones is None or DISTANCE[zone] <= max(DISTANCE[each] for each in zones)  # type: ignore[index]
        before = [allowed(zone, one) for one in within]
        assert verdict.allowed == (reached and any(one.allowed for one in before))
        if verdict.allowed:
            assert verdict.pseudonymise == all(one.pseudonymise or not one.allowed for one in before)


@given(DEMANDS, LIMITED)
def test_it_stays_the_same_however_often_it_is_gone_on_with(demands: list[Demand], zones: object) -> None:
    note = noted([strictest(demands)], zones)  # type: ignore[arg-type]
    again = demanded(note)
    assert noted([strictest(again)], None) == noted([UNBOUND], None, again) == note


def test_the_forms() -> None:
    assert noted([UNBOUND], None) == "cloud cloud"
    assert noted([Residency("on_box", "x", "on_prem", "x")], None) == "on_box on_prem"
    assert noted([UNBOUND], ("on_prem", "on_box")) == "on_prem on_prem"
    assert noted([UNBOUND], ()) == "on_box on_box"


@pytest.mark.parametrize("note", [None, "", "on_box", "far away"])
def test_what_is_no_note_stays_on_the_box(note: str | None) -> None:
    assert demanded(note) == [UNNOTED]
    assert places(strictest(demanded(note))) == [(True, False), (False, False), (False, False)]
