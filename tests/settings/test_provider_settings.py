"""Providers in the settings: what each kind needs, what it has no use for, and how their secrets are looked after."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from appliance.providers.catalogue import kinds, row
from appliance.redact import Secrets
from appliance.settings import Provider, SettingsError, from_mapping
from appliance.settings.checks import warn
from appliance.settings.machine import warn_machine
from appliance.settings.providers import _SIGNERS, ANY, KINDS, OPTIONS, TAKES_BETAS
from appliance.telemetry.known import learn

KEY = {"env": "KEY"}
NEEDED: dict[str, dict[str, Any]] = {
    ANY: {"base_url": "http://127.0.0.1:1/v1", "zone": "on_box"},
    "azure": {"resource": "lab-east", "api_key": KEY},
    "vertex": {"project": "p", "api_key": KEY},
    "bedrock": {"region": "eu-central-1", "api_key": KEY},
}


def provider(**keys: Any) -> Provider:
    return Provider.model_validate({"name": "p", **keys})


def told(env: dict[str, str] | None = None, **keys: Any) -> list[str]:
    """What is wrong with a provider that has these keys."""
    data = {"deployments": [], "routes": [], "providers": [{"name": "p", **keys}]}
    try:
        from_mapping(data, env)
    except SettingsError as error:
        return [str(problem).removeprefix("(settings): ") for problem in error.problems]
    return []


def test_the_kinds_and_their_options_are_those_of_the_rows() -> None:
    assert set(KINDS) == set(kinds())
    for kind in KINDS:
        found = row(kind)
        assert tuple(found.options) == OPTIONS.get(kind, ())
        assert (found.base_url is None) == (kind == ANY)
        assert found.zone == (None if kind == ANY else "cloud")
        assert (found.auth_without_key != "none") == (kind in _SIGNERS)
        assert bool(found.betas) == (kind in TAKES_BETAS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_with_what_it_needs(kind: str) -> None:
    assert told(kind=kind, **NEEDED.get(kind, {"api_key": KEY})) == []
    found = provider(kind=kind, **NEEDED.get(kind, {"api_key": KEY}))
    assert found.zone == ("on_box" if kind == ANY else "cloud")


def test_a_kind_that_is_left_out() -> None:
    assert provider(base_url="http://lab/v1", zone="on_prem").kind == ANY
    assert provider().kind == "openai"
    assert provider(base_url="http://lab/v1", kind="openai").kind == "openai"


AWS = {"kind": "bedrock", "region": "r"}
BOTH = {"access_key": KEY, "secret_key": KEY}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"kind": "opnai"}, "kind: expected one of"),
        ({"kind": "openai", "api_key": KEY, "betas": ["*"]}, "betas has no use with kind openai – remove it"),
        ({"kind": ANY, "zone": "on_prem"}, "kind openai_compatible needs base_url – add e.g. base_url"),
        ({"base_url": "http://lab/v1"}, "zone is required – add zone"),
        ({"kind": "azure"}, "kind azure needs resource – add resource, or base_url"),
        ({"kind": "vertex", "api_key": KEY}, "kind vertex needs project"),
        ({"kind": "vertex", "project": "p"}, "kind vertex needs service_account"),
        ({"kind": "bedrock", "api_key": KEY}, "kind bedrock needs region"),
        (AWS, "kind bedrock needs a key – add api_key, or access_key and secret_key"),
        ({**AWS, "access_key": KEY}, "kind bedrock needs secret_key – add secret_key, or write api_key alone"),
        ({**AWS, "secret_key": KEY}, "kind bedrock needs access_key"),
        ({**AWS, "session_token": KEY}, "kind bedrock needs access_key"),
        ({**AWS, **BOTH, "api_key": KEY}, "both access_key and a key are given"),
        ({"region": "r"}, "region has no use with kind openai – remove it, or write kind: bedrock"),
        ({"kind": "azure", "resource": "r", "project": "p"}, "project has no use with kind azure"),
        ({"service_account": KEY}, "service_account has no use with kind openai"),
        ({"api_key": KEY, "keys": [{"name": "a", "key": KEY}]}, "both api_key and keys are given"),
        ({"keys": [{"name": "a", "key": KEY}, {"name": "a", "key": KEY}]}, "there are two keys 'a'"),
        ({"keys": [{"name": "a", "key": "sk-secret"}]}, "providers[0].keys[0].key: a secret is not written"),
        ({"keys": [{"name": "a", "key": KEY, "weight": 0}]}, "weight: must be at least 1"),
        ({"headers": {"authorization": "Bearer x"}}, "authorization is for a key – remove it and use api_key"),
        ({"headers": {"Host": "x"}}, "sets the header Host, which the gateway sets by itself"),
        ({"headers": {"a b": "x"}}, "holds a name that no header can have"),
        ({"headers": {"a": "x", "A": "y"}}, "sets the header A twice"),
        ({"headers": {"a": "é"}}, "a holds what no header can carry"),
        ({"headers": "x"}, "expected a mapping of header names"),
        ({"max_requests_per_minute": 0}, "must be at least 1"),
        ({"cool_down": "0s"}, "must be at least 1s"),
        ({"kind": "mistral", "zone": "on_prem"}, "p is said to be on_prem, but its address is that of mistral itself"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_cure(keys: dict[str, Any], says: str) -> None:
    found = told(**keys)
    assert len(found) == 1, found
    assert says in found[0]
    assert "sk-secret" not in found[0]


def test_an_offline_box_takes_no_maker() -> None:
    data = {"deployments": [], "routes": [], "offline": True, "providers": [{"name": "p", "kind": "groq"}]}
    with pytest.raises(SettingsError) as caught:
        from_mapping(data)
    assert "p is in a cloud, but offline is true" in str(caught.value.problems[0])


def test_keys_however_they_are_written() -> None:
    assert [each.name for each in provider(api_key=KEY).all_keys] == ["api_key"]
    two = provider(keys=[{"name": "a", "key": KEY, "weight": 3}, {"name": "b", "key": KEY}])
    assert [(each.name, each.weight) for each in two.all_keys] == [("a", 3), ("b", 1)]
    assert provider().all_keys == ()
    signed = provider(**AWS, **BOTH)
    assert (signed.all_keys, set(signed.signers), signed.options) == ((), {"access_key", "secret_key"}, {"region": "r"})


ACCOUNT = json.dumps({"client_email": "a@b", "private_key": "pem", "token_uri": "https://t"})


@pytest.mark.parametrize(
    ("env", "keys", "says"),
    [
        ({}, {"keys": [{"name": "a", "key": KEY}]}, "keys[0].key: the environment variable KEY is not set"),
        ({"KEY": "a b"}, {"keys": [{"name": "a", "key": KEY}]}, "keys[0].key: the environment variable KEY holds a"),
        (
            {"KEY": "k"},
            {**AWS, "access_key": KEY, "secret_key": {"env": "NO"}},
            "secret_key: the environment variable NO",
        ),
        (
            {"KEY": "{}"},
            {"kind": "vertex", "project": "p", "service_account": KEY},
            "holds no key of a service account",
        ),
        ({"KEY": "x"}, {"kind": "vertex", "project": "p", "service_account": KEY}, "holds no key of a service account"),
        ({"KEY": ACCOUNT}, {"kind": "vertex", "project": "p", "service_account": KEY}, None),
        ({"KEY": "k"}, {"keys": [{"name": "a", "key": KEY}]}, None),
    ],
)
def test_secrets_are_there_and_can_be_sent(env: dict[str, str], keys: dict[str, Any], says: str | None) -> None:
    found = told(env, **keys)
    assert found == [] if says is None else says in found[0]


def test_every_secret_of_a_provider_is_kept_out_of_logs() -> None:
    env = {name: f"sk-of-{name}-0123456789" for name in ("A", "B", "C", "D", "E", "F", "G")}
    settings = from_mapping(
        {
            "deployments": [],
            "routes": [],
            "providers": [
                {"name": "one", "api_key": {"env": "A"}},
                {"name": "two", "keys": [{"name": "b", "key": {"env": "B"}}, {"name": "c", "key": {"env": "C"}}]},
                {
                    "name": "three",
                    **AWS,
                    "access_key": {"env": "D"},
                    "secret_key": {"env": "E"},
                    "session_token": {"env": "F"},
                },
                {"name": "four", "kind": "vertex", "project": "p", "service_account": {"env": "G"}},
            ],
        }
    )
    secrets = Secrets()
    learn(secrets, settings, env)
    for text in env.values():
        assert text not in secrets.redact(f"seen {text} there")


def test_files_that_everybody_reads_are_told(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("k")
    path.chmod(0o644)
    keys = [{"name": "a", "key": {"file": str(path)}}]
    settings = from_mapping({"deployments": [], "routes": [], "providers": [{"name": "p", "keys": keys}]})
    assert [finding.path for finding in warn_machine(settings)] == [("providers", 0, "keys", 0, "key", "file")]


def test_a_maker_without_a_key_is_told() -> None:
    def told(**keys: Any) -> bool:
        settings = from_mapping({"deployments": [], "routes": [], "providers": [{"name": "p", **keys}]})
        return any("p has no key, which" in finding.message for finding in warn(settings))

    assert told(kind="groq")
    assert not told(kind="groq", api_key=KEY)
    assert not told(kind="groq", base_url="http://127.0.0.1:1/v1")
    assert not told(**AWS, **BOTH)
    assert not told(base_url="http://127.0.0.1:1/v1", zone="on_box")


def test_a_key_in_the_clear_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    keys = {"base_url": "http://lab/v1", "zone": "on_prem", "keys": [{"name": "a", "key": KEY}]}
    settings = from_mapping({"deployments": [], "routes": [], "providers": [{"name": "p", **keys}]})
    assert any("crosses the network unencrypted" in finding.message for finding in warn(settings))
