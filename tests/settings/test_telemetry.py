"""The section `telemetry`: its forms, its checks, its warnings, and where its secrets are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.settings import Settings, SettingsError, diff, from_mapping, keep_fixed, load
from appliance.settings.checks_telemetry import check, warn
from appliance.settings.references import references
from appliance.settings.render import as_yaml
from appliance.settings.secrets import SecretRef
from appliance.settings.shape import dotted

COLLECTOR = {"endpoint": "http://127.0.0.1:4318"}


def build(otlp: dict[str, Any] | None = None, **keys: Any) -> Settings:
    telemetry = keys.pop("telemetry", {})
    return from_mapping({**keys, "telemetry": {**telemetry, **({"otlp": otlp} if otlp else {})}})


def told(findings: Any) -> list[str]:
    return [f"{dotted(finding.path)}: {finding.message}" for finding in findings]


def test_nothing_is_sent_and_nothing_is_open_by_default() -> None:
    telemetry = Settings().telemetry
    assert telemetry.otlp is None
    assert telemetry.metrics.open is False


def test_a_collector_as_it_is_written_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "outpost.yaml"
    path.write_text(
        "telemetry:\n  metrics: {open: yes}\n  otlp:\n    endpoint: https://collector.example.org/otlp/\n"
        "    headers: {authorization: {env: AUTH}, x-tenant: {file: /etc/tenant}}\n"
        "    sample: 0.25\n    ca: ca.pem\n    propagate: true\n    interval: 10s\n"
    )
    settings = load(path, {}, machine=False).settings
    otlp = settings.telemetry.otlp
    assert otlp is not None
    assert otlp.endpoint == "https://collector.example.org/otlp"
    assert otlp.headers == {"authorization": SecretRef(env="AUTH"), "x-tenant": SecretRef(file=Path("/etc/tenant"))}
    assert (otlp.sample, otlp.ca, otlp.propagate, otlp.interval) == (0.25, Path("ca.pem"), True, 10.0)
    path.write_text(as_yaml(settings))
    assert load(path, {}, machine=False).settings == settings


@pytest.mark.parametrize(
    ("otlp", "key", "says"),
    [
        ({}, "telemetry.otlp.endpoint", "is required"),
        ({"endpoint": "collector:4317"}, "telemetry.otlp.endpoint", "http(s)"),
        ({"endpoint": "http://u:hunter2@c"}, "telemetry.otlp.endpoint", "credentials"),
        ({"endpoint": "http://c/v1/traces"}, "telemetry.otlp.endpoint", "added by itself"),
        ({**COLLECTOR, "protocol": "grpc"}, "telemetry.otlp.protocol", "http/protobuf"),
        ({**COLLECTOR, "sample": 1.5}, "telemetry.otlp.sample", "at most 1.0"),
        ({**COLLECTOR, "sample": "half"}, "telemetry.otlp.sample", "a share from 0 to 1"),
        ({**COLLECTOR, "sample": True}, "telemetry.otlp.sample", "a share from 0 to 1"),
        ({**COLLECTOR, "headers": "hunter2"}, "telemetry.otlp.headers", "a mapping"),
        ({**COLLECTOR, "headers": {"a": "hunter2"}}, "telemetry.otlp.headers.a", "not written into the file"),
        ({**COLLECTOR, "headers": {"a b": {"env": "X"}}}, "telemetry.otlp.headers", "no header can have"),
        ({**COLLECTOR, "headers": {"Host": {"env": "X"}}}, "telemetry.otlp.headers", "sets by itself"),
        (
            {**COLLECTOR, "headers": {"a": {"env": "X"}, "A": {"env": "Y"}}},
            "telemetry.otlp.headers.A",
            "the same header",
        ),
        ({**COLLECTOR, "ca": "ca.pem"}, "telemetry.otlp.ca", "not needed for http"),
        ({**COLLECTOR, "queue": 0}, "telemetry.otlp.queue", "at least 1"),
        ({**COLLECTOR, "endpiont": "x"}, "telemetry.otlp.endpiont", "unknown key"),
    ],
)
def test_what_cannot_work_is_refused_by_name_and_without_its_secret(otlp: dict[str, Any], key: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        from_mapping({"telemetry": {"otlp": otlp}})
    (problem,) = caught.value.problems
    assert problem.key == key
    assert says in f"{problem.message} {problem.cure}"
    assert problem.cure
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, []),
        ({"telemetry": {"metrics": {"open": True}}}, []),
        (
            {"telemetry": {"metrics": {"open": True}}, "console": {"listen": "0.0.0.0:8081"}},
            ["telemetry.metrics.open: everybody who reaches 0.0.0.0:8081"],
        ),
        ({"otlp": COLLECTOR, "offline": True}, []),
        ({"otlp": {"endpoint": "http://10.1.2.3:4318"}, "offline": True}, []),
        ({"otlp": {"endpoint": "http://[fd00::1]:4318"}, "offline": True}, []),
        ({"otlp": {"endpoint": "https://collector.example.org"}}, []),
        (
            {"otlp": {"endpoint": "https://collector.example.org"}, "offline": True},
            ["telemetry.otlp.endpoint: collector.example.org may be off the site"],
        ),
        (
            {"otlp": {"endpoint": "https://198.41.0.4"}, "offline": True},
            ["telemetry.otlp.endpoint: 198.41.0.4 may be off the site"],
        ),
        (
            {"otlp": {"endpoint": "http://10.1.2.3:4318", "headers": {"a": {"env": "X"}}}},
            ["telemetry.otlp.endpoint: the headers' secrets cross the network unencrypted"],
        ),
        ({"otlp": {**COLLECTOR, "headers": {"a": {"env": "X"}}}}, []),
    ],
)
def test_warnings(keys: dict[str, Any], expected: list[str]) -> None:
    settings = build(**keys)
    assert list(check(settings)) == []
    found = told(warn(settings))
    assert len(found) == len(expected)
    assert all(one.startswith(other) for one, other in zip(found, expected, strict=True))


def test_a_reload_keeps_the_collector() -> None:
    old, new = build(), build(COLLECTOR, telemetry={"metrics": {"open": True}})
    assert keep_fixed(old, new).telemetry == old.telemetry
    assert diff(old, new).restart == ("telemetry.metrics", "telemetry.otlp")


def test_every_reference_to_a_secret_is_found_wherever_it_stands() -> None:
    settings = build(
        {**COLLECTOR, "headers": {"authorization": {"env": "AUTH"}}},
        identity={"keys": [{"name": "ci", "key": {"env": "CI_KEY"}}]},
        providers=[{"name": "lab", "zone": "cloud", "api_key": {"file": "/k"}}, {"name": "x", "zone": "cloud"}],
    )
    found = {dotted(path): str(reference) for path, reference in references(settings)}
    assert found == {
        "identity.keys[0].key": "environment variable CI_KEY",
        "providers[0].api_key": "file /k",
        "telemetry.otlp.headers.authorization": "environment variable AUTH",
    }
