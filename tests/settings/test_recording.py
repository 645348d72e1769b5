"""The section `records`: its defaults, and what is refused with which cure."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.settings import Settings, SettingsError, from_mapping
from appliance.settings.checks_recording import check, warn
from appliance.settings.recording import DAY
from appliance.settings.shape import dotted

SIEM = {"name": "siem", "host": "siem.example.org"}


def build(**records: Any) -> Settings:
    return Settings.model_validate({"records": records})


def test_defaults() -> None:
    records = Settings().records
    kept = records.retention
    assert (records.content, records.content_rules, records.export) == ("none", (), ())
    assert (kept.metadata, kept.content, kept.minimum) == (400 * DAY, 30 * DAY, 180 * DAY)
    assert (records.max_disk, records.max_content) == (50 << 30, 1 << 20)
    assert list(check(Settings())) == list(warn(Settings())) == []


def test_an_exporter_by_default_speaks_cef_over_tls() -> None:
    exporter = build(export=[SIEM]).records.export[0]
    assert (exporter.kind, exporter.format, exporter.transport, exporter.port, exporter.facility) == (
        "syslog",
        "cef",
        "tls",
        6514,
        13,
    )


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("SIEM.Example.org", "siem.example.org"),
        ("10.0.0.1", "10.0.0.1"),
        ("::1", "::1"),
        ("[2001:DB8::1]", "2001:db8::1"),
    ],
)
def test_hosts_are_read(text: str, host: str) -> None:
    assert build(export=[{**SIEM, "host": text}]).records.export[0].host == host


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ({"content": "all"}, "records.content: expected one of none, redacted, full, found 'all'"),
        ({"content_rules": [{"content": "full"}]}, "records.content_rules[0]: names nobody – add team, route or"),
        ({"content_rules": [{"team": "a"}]}, "records.content_rules[0].content: is required"),
        ({"retention": {"content": "1s"}}, "records.retention.content: must be at least 1m"),
        ({"retention": {"metadata": "1h"}}, "records.retention.metadata: must be at least 1d"),
        ({"max_disk": "1MiB"}, "records.max_disk: must be at least 16MiB"),
        ({"max_content": "1GiB"}, "records.max_content: must be at most 64MiB"),
        ({"export": [{"name": "a"}]}, "records.export[0].host: is required"),
        ({"export": [{**SIEM, "host": "a b"}]}, "records.export[0].host: expected a host name or address, found 'a b'"),
        ({"export": [{**SIEM, "host": "siem:6514"}]}, "records.export[0].host: expected a host name or address"),
        ({"export": [{**SIEM, "port": 0}]}, "records.export[0].port: must be at least 1"),
        ({"export": [{**SIEM, "format": "xml"}]}, "records.export[0].format: expected one of cef, ocsf"),
        ({"export": [{**SIEM, "transport": "udp"}]}, "records.export[0].transport: expected one of tls, tcp"),
        ({"export": [{**SIEM, "facility": 24}]}, "records.export[0].facility: must be at most 23"),
    ],
)
def test_what_is_refused_says_where_and_what_to_write(records: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        from_mapping({"records": records})
    assert any(problem in str(each) for each in caught.value.problems), caught.value.message


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ({"retention": {"metadata": 180 * DAY}}, []),
        (
            {"retention": {"metadata": 90 * DAY}},
            ["records.retention.metadata: 90d is less than the 180d of records.retention.minimum"],
        ),
        ({"retention": {"metadata": 90 * DAY, "minimum": 30 * DAY}}, []),
        ({"retention": {"content": 500 * DAY}}, ["records.retention.content: texts would outlive the records"]),
        ({"content_rules": [{"route": "nothing", "content": "full"}]}, ["records.content_rules[0].route: there is no"]),
        ({"content_rules": [{"route": "smollm2-135m-instruct", "content": "full"}]}, []),
        (
            {"content_rules": [{"team": "a", "content": "full"}, {"team": "a", "content": "none"}]},
            ["records.content_rules[1]: is for the same requests as entry 0"],
        ),
        ({"export": [SIEM, SIEM]}, ["records.export[1].name: there are two of the exporter 'siem'"]),
        ({"export": [{**SIEM, "name": "x" * 49}]}, ["records.export[0].name: is longer than 48"]),
        ({"export": [{**SIEM, "transport": "tcp", "ca": "/c"}]}, ["records.export[0].ca: has no use without tls"]),
        ({"export": [{**SIEM, "key": "/k"}]}, ["records.export[0].key: belongs to no certificate"]),
    ],
)
def test_what_cannot_hold_between_keys(records: dict[str, Any], expected: list[str]) -> None:
    found = [f"{dotted(each.path)}: {each.message}" for each in check(build(**records))]
    assert len(found) == len(expected)
    for message, wanted in zip(found, expected, strict=True):
        assert message.startswith(wanted)
    assert all(each.cure for each in check(build(**records)))


def test_a_rule_for_an_alias_names_the_route() -> None:
    routes = [{"model": "chat", "aliases": ["gpt"], "targets": [{"deployment": "smollm2-135m-instruct"}]}]
    settings = Settings.model_validate(
        {"routes": routes, "records": {"content_rules": [{"route": "gpt", "content": "full"}]}}
    )
    assert [(each.message, each.cure) for each in check(settings)] == [
        ("'gpt' is an alias", "write the route's model: chat")
    ]


@pytest.mark.parametrize(("host", "warned"), [("10.0.0.9", 1), ("127.0.0.1", 0), ("localhost", 0)])
def test_records_in_the_clear_are_warned_of(host: str, warned: int) -> None:
    found = list(warn(build(export=[{**SIEM, "host": host, "transport": "tcp"}])))
    assert len(found) == warned
