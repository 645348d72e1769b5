"""Where data may go: all demands hold together, in any order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.routing.residency import DISTANCE, UNBOUND, Demand, allowed, strictest
from appliance.routing.strategies import Zone

ZONES: tuple[Zone, ...] = ("on_box", "on_prem", "cloud")
DEMANDS = st.builds(
    Demand,
    st.sampled_from(["on_box", "on_prem", "any"]),
    st.sampled_from(["the key ci", "the route chat", "the verdict pii"]),
    st.sampled_from(["drop", "pseudonymise"]),
)
REACH = {"on_box": 0, "on_prem": 1, "any": 2}


def test_without_demands_everything_is_allowed() -> None:
    assert strictest([]) is UNBOUND
    for zone in ZONES:
        assert allowed(zone, UNBOUND) == (True, False, "")


@pytest.mark.parametrize(
    ("keep", "action", "verdicts"),
    [
        ("any", "drop", "yyy"),
        ("on_prem", "drop", "yyn"),
        ("on_box", "drop", "ynn"),
        ("any", "pseudonymise", "yyy"),
        ("on_prem", "pseudonymise", "yyp"),
        ("on_box", "pseudonymise", "ypp"),
    ],
)
def test_one_demand(keep: str, action: str, verdicts: str) -> None:
    residency = strictest([Demand(keep, "the key ci", action)])  # type: ignore[arg-type]
    for zone, wanted in zip(ZONES, verdicts, strict=True):
        verdict = allowed(zone, residency)
        assert ("n" if not verdict.allowed else "p" if verdict.pseudonymise else "y") == wanted
        assert ("the key ci" in verdict.why) == (wanted != "y")


def test_a_verdict_says_who_demands_it() -> None:
    residency = strictest([Demand("on_prem", "the key ci"), Demand("on_box", "the verdict pii", "pseudonymise")])
    assert allowed("cloud", residency).why == "it is off the premises, and the key ci keeps data on the premises"
    assert allowed("on_prem", residency) == (
        True,
        True,
        "it is on the premises, and the verdict pii keeps data on the box, so it gets pseudonyms",
    )
    assert allowed("on_box", residency) == (True, False, "")


@given(st.lists(DEMANDS, max_size=5), st.sampled_from(ZONES))
@settings(deadline=None)
def test_every_demand_holds(demands: list[Demand], zone: Zone) -> None:
    """Pseudonyms that one demand is content with never lift another one."""
    verdict = allowed(zone, strictest(demands))
    beyond = [demand for demand in demands if DISTANCE[zone] > REACH[demand.keep]]
    assert verdict.allowed == all(demand.action != "drop" for demand in beyond)
    assert verdict.pseudonymise == (verdict.allowed and bool(beyond))
    assert bool(verdict.why) == bool(beyond)


@given(st.lists(DEMANDS, max_size=4))
@settings(deadline=None)
def test_the_order_of_demands_does_not_matter(demands: list[Demand]) -> None:
    verdicts = {
        tuple((allowed(zone, strictest(order)).allowed, allowed(zone, strictest(order)).pseudonymise) for zone in ZONES)
        for order in itertools.permutations(demands)
    }
    assert len(verdicts) == 1


@given(st.lists(DEMANDS, max_size=4), DEMANDS, st.sampled_from(ZONES))
@settings(deadline=None)
def test_one_more_demand_never_allows_more(demands: list[Demand], more: Demand, zone: Zone) -> None:
    before, after = allowed(zone, strictest(demands)), allowed(zone, strictest([*demands, more]))
    assert after.allowed <= before.allowed
    if after.allowed:
        assert after.pseudonymise >= before.pseudonymise
