"""`limits` and `prices`: how they are written, shown again, and refused."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import settings as bounds_of
from hypothesis import strategies as st

from appliance.limits.rules import MEASURES as ORDER
from appliance.limits.rules import rule_of
from appliance.settings import Settings, SettingsError, from_mapping
from appliance.settings.checks_limiting import check, check_limit, limit_name
from appliance.settings.document import parse
from appliance.settings.limiting import MEASURES, Limit
from appliance.settings.rates import UNITS, Quota, format_quota, format_usd, parse_quota, parse_usd
from appliance.settings.render import as_plain, json_schema
from appliance.settings.shape import dotted
from appliance.settings.units import BadForm

HOUSE = {
    "providers": [{"name": "lab", "zone": "on_prem", "base_url": "http://127.0.0.1:1/v1"}],
    "deployments": [{"name": "small", "model": "m"}],
    "routes": [
        {
            "model": "chat",
            "aliases": ["gpt"],
            "targets": [{"deployment": "small"}, {"provider": "lab", "model": "llama"}],
        },
        {"model": "local", "targets": [{"deployment": "small"}]},
    ],
}


def load(text: str) -> Settings:
    """Settings of a file that holds these limits and prices beside the house."""
    return from_mapping({**HOUSE, **parse(text).data})


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("600/minute", Quota(600, 60, "minute")),
        ("2_000_000 / day", Quota(2_000_000, 86_400, "day")),
        ("10 per second", Quota(10, 1, "second")),
        ("10/Seconds", Quota(10, 1, "second")),
        ("100/5m", Quota(100, 300)),
        ("100/1h30m", Quota(100, 5400)),
        ("0/month", Quota(0, 2_592_000, "month")),
    ],
)
def test_quotas_are_read(text: str, quota: Quota) -> None:
    assert parse_quota(text, money=False) == quota
    assert parse_quota(format_quota(quota, money=False), money=False) == quota


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("600", "not an amount per time"),
        ("600/", "not an amount per time"),
        ("-5/day", "not an amount per time"),
        ("1.5/day", "not a whole number"),
        ("_5/day", "not a whole number"),
        ("5/fortnight", "not a period"),
        ("5/500ms", "not a period"),
        ("5/0s", "not a period"),
        ("5/400d", "not a period"),
        ("5/60", "not a period"),
        ("9" * 17 + "/day", "not a whole number"),
        ("9999999999999999/day", "more than"),
        ("5/day/day", "not an amount per time"),
        ("5/" + "9" * 30, "not an amount per time"),
    ],
)
def test_other_texts_are_refused_with_a_cure(text: str, says: str) -> None:
    with pytest.raises(BadForm) as caught:
        parse_quota(text, money=False)
    assert says in caught.value.message
    assert "e.g." in caught.value.cure or "write a" in caught.value.cure


@given(st.integers(0, 10**18))
def test_money_survives_being_shown(nanousd: int) -> None:
    assert parse_usd(format_usd(nanousd)) == nanousd


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_in_our_words(text: str) -> None:
    for money in (False, True):
        try:
            quota = parse_quota(text, money=money)
        except BadForm:
            continue
        assert parse_quota(format_quota(quota, money=money), money=money) == quota


AMOUNTS = st.lists(
    st.tuples(st.integers(0, 10**9), st.sampled_from([*UNITS, "5m", "2h"])),
    min_size=1,
    max_size=3,
    unique_by=lambda each: each[1],
).map(lambda quotas: [f"{amount}/{period}" for amount, period in quotas])


@bounds_of(deadline=None, max_examples=60)
@given(
    scope=st.sampled_from(["organization", "team", "user", "service_account", "key", "model", "route", "tag", "box"]),
    measures=st.dictionaries(st.sampled_from(MEASURES), AMOUNTS, min_size=1),
    match=st.fixed_dictionaries(
        {}, optional={"team": st.just("a"), "tag": st.just(["x", "y"]), "route": st.just("chat")}
    ),
    in_flight=st.none() | st.integers(1, 10**6),
    zone=st.sampled_from(["UTC", "Europe/Berlin"]),
)
def test_any_limit_survives_being_shown(
    scope: str, measures: dict[str, list[str]], match: dict[str, Any], in_flight: int | None, zone: str
) -> None:
    limit = {"scope": scope, "match": match, **measures, "in_flight": in_flight, "timezone": zone}
    settings = from_mapping({**HOUSE, "limits": [limit]})
    again = Settings.model_validate(as_plain(settings))
    assert again.limits == settings.limits
    rule = rule_of(settings.limits[0])
    assert [bound.amount for bound in rule.bounds] == [
        int(text.partition("/")[0]) * (10**9 if measure == "usd" else 1)
        for measure in MEASURES
        for text in measures.get(measure, [])
    ]


def test_the_measures_stand_in_the_order_of_the_vectors() -> None:
    assert ORDER is MEASURES


def test_windows_are_chosen_by_their_length() -> None:
    (one, two, three) = load(
        """
limits:
  - {scope: team, name: a, tokens: [5/second, 5/hour, 5/day, 5/month, 5/12h], timezone: Europe/Berlin}
  - {scope: team, name: b, tokens: 5/day, window: rolling}
  - {scope: team, name: c, tokens: 5/minute, window: calendar}
"""
    ).limits
    codes = [bound.window.code for bound in rule_of(one).bounds]
    assert codes == ["r1", "r3600", "day@Europe/Berlin", "month@Europe/Berlin", "r43200"]
    assert [bound.window.code for bound in rule_of(two).bounds] == ["r86400"]
    assert [bound.window.code for bound in rule_of(three).bounds] == ["minute@UTC"]


@pytest.mark.parametrize(
    ("limit", "key", "says"),
    [
        ("{scope: box}", "limits[0]", "limits nothing – add one of requests"),
        ("{requests: 5/day}", "limits[0].scope", "is required"),
        ("{scope: bx, requests: 5/day}", "limits[0].scope", "did you mean box?"),
        ("{scope: box, requests: 5}", "limits[0].requests", "not an amount per time – write e.g. 600/minute"),
        ("{scope: box, requests: []}", "limits[0].requests", "is empty"),
        ("{scope: box, requests: {a: b}}", "limits[0].requests", "found a mapping"),
        ("{scope: box, requests: [5/minute, 6/60s]}", "limits[0].requests", "says twice"),
        ("{scope: box, usd: 1.2345678901/day}", "limits[0].usd", "more than nine decimals"),
        ("{scope: box, requests: 5/5m, window: calendar}", "limits[0]", "the calendar has no period of 5m"),
        ("{scope: box, requests: 5/day, timezone: Nowhere/X}", "limits[0].timezone", "knows no time zone"),
        ("{scope: box, requests: 5/day, timezone: ../../etc/passwd}", "limits[0].timezone", "is not a time zone"),
        ("{scope: box, in_flight: 0}", "limits[0].in_flight", "at least 1"),
        ("{scope: box, requests: 5/day, match: {route: gpt}}", "limits[0].match.route", "alias of 'chat' – write chat"),
        ("{scope: box, requests: 5/day, match: {route: chatt}}", "limits[0].match.route", "did you mean chat?"),
        ("{scope: box, requests: 5/day, match: {model: chat}}", "limits[0].match.model", "is a route, not a target"),
        ("{scope: box, requests: 5/day, match: {provider: small}}", "limits[0].match.provider", "write model: small"),
        (
            "{scope: box, requests: 5/day, match: {model: small, provider: lab}}",
            "limits[0].match",
            "can never fit: no route has such a target",
        ),
        (
            "{scope: box, requests: 5/day, match: {route: local, model: lab/llama}}",
            "limits[0].match",
            "can never fit: no route has such a target",
        ),
        ("{scope: provider, requests: 5/day, match: {model: small}}", "limits[0].match", "write scope: model"),
        ("{scope: box, requests: 5/day, name: limit_x}", "limits[0].name", "begins with 'limit_'"),
        ("{scope: box, requests: 5/day, match: {team: [a, a]}}", "limits[0].match.team", "names something twice"),
        ("{scope: box, requests: 5/day, match: {teem: a}}", "limits[0].match.teem", "did you mean team?"),
    ],
)
def test_what_cannot_work_is_refused_with_a_cure(limit: str, key: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(f"limits: [{limit}]")
    (problem,) = caught.value.problems
    assert problem.key == key
    assert says in str(problem)


def test_names_are_given_once() -> None:
    for limits, says in (
        ("[{scope: box, requests: 5/day}, {scope: box, tokens: 5/day}]", "give each a name"),
        ("[{scope: box, name: a, requests: 5/day}, {scope: team, name: a, tokens: 5/day}]", "two of the limit 'a'"),
    ):
        with pytest.raises(SettingsError, match=says):
            load(f"limits: {limits}")


@pytest.mark.parametrize(
    ("match", "name"),
    [
        ("{}", "team"),
        ("{team: [a, b], route: chat}", "team:team=a,b:route=chat"),
        ("{user: 'Zoë'}", None),
        ("{user: 'a|b'}", None),
        ("{user: '" + "x" * 90 + "'}", None),
    ],
)
def test_a_limit_without_a_name_gets_one_of_printable_ascii(match: str, name: str | None) -> None:
    made = limit_name(load(f"limits: [{{scope: team, requests: 5/day, match: {match}}}]").limits[0])
    assert name is None or made == name
    assert made.isascii()
    assert made.isprintable()
    assert len(made) <= 63
    assert '"' not in made
    assert "|" not in made


@pytest.mark.parametrize(
    ("prices", "says"),
    [
        ("[{target: lab/llama, input: 1}, {target: lab/llama, output: 1}]", "there are two prices of 'lab/llama'"),
        ("[{target: lab/lama, input: 1}]", "there is no target 'lab/lama' – did you mean lab/llama?"),
        ("[{target: chat, input: 1}]", "is a route, not a target"),
        ("[{target: lab/llama, gpu_second: 1}]", "does not run on this box"),
        ("[{target: small, input: -1}]", "is not an amount of US dollars"),
        ("[{target: small, input: 0.12345678901}]", "more than nine decimals"),
        ("[{target: small, input: [1]}]", "found a list"),
        ("[{target: small, input: ~}]", "found None"),
    ],
)
def test_prices_that_cannot_work_are_refused(prices: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(f"prices: {prices}")
    assert says in str(caught.value)


def test_prices_are_exact() -> None:
    (price,) = load("prices: [{target: lab/llama, input: 0.15, output: '0.60', cached: 0.075}]").prices
    assert (price.input, price.output, price.cached, price.reasoning) == (150_000_000, 600_000_000, 75_000_000, None)


def test_the_json_schema_takes_both_forms() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    good = {
        "limits": [{"scope": "team", "requests": ["5/minute", "9/day"], "usd": "1.5/month", "match": {"team": "a"}}]
    }
    assert list(validator.iter_errors({**good, "prices": [{"target": "small", "input": 0.15, "output": "0.6"}]})) == []
    for bad in ({"scope": "team", "requests": 5}, {"scope": "team", "requests": []}, {"scope": "team", "match": []}):
        assert not validator.is_valid({"limits": [bad]})


def test_a_limit_of_its_own_is_checked_alike() -> None:
    settings = from_mapping(HOUSE)
    assert list(check(settings)) == []
    (finding,) = check_limit(
        Limit.model_validate({"scope": "box", "requests": "5/day", "match": {"route": "x"}}), settings
    )
    assert dotted(finding.path) == "match.route"
