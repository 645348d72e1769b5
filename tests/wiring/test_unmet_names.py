"""A name in the settings file that nobody has is told at a start and at each reload, until somebody has it."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.app import App
from appliance.identity.key_store import NewKey
from appliance.identity.people_work import ORGANIZATION, SERVICE_ACCOUNT, TEAM, USER, Kind
from appliance.identity.principal import Principal
from appliance.identity.snapshot import KeyRecord, Organization, Snapshot, Team
from appliance.settings import Settings, load
from appliance.settings.shape import dotted
from appliance.unmet_names import unmet_names

OWNER = Principal("key_root", "root", "owner")
ENV = {"CI_KEY": "op-a-key-of-the-settings-0123456789"}
Doc = dict[str, Any]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of the file since last asked, in its order, without its name and the line."""
    found = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    caplog.clear()
    return [re.split(r"outpost\.yaml:\d+: ", each)[1] for each in found if "outpost.yaml:" in each]


def write(folder: Path, doc: Doc) -> Path:
    path = folder / "outpost.yaml"
    base = {
        "server": {"listen": "127.0.0.1:0"},
        "console": {"listen": "127.0.0.1:0"},
        "data_dir": str(folder / "data"),
        "log": {"access": False},
        "deployments": [],
        "providers": [],
        "routes": [],
    }
    path.write_text(yaml.safe_dump({**doc, **base}, sort_keys=False))
    return path


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[App]:
    app = App(load(path, ENV), ENV)
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


async def make(app: App, kind: Kind, name: str) -> None:
    role = {"role": "member"} if kind in (USER, SERVICE_ACCOUNT) else {}
    await app._office.ring.directory.create(OWNER, kind, {"name": name, **role})


async def test_a_start_and_each_reload_tell_of_them_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    doc = {
        "limits": [
            {"name": "money", "scope": "team", "match": {"team": ["ghost", "research"]}, "requests": "9/day"},
            {"scope": "box", "match": {"organization": "default"}, "requests": "9/day"},
        ],
        "records": {"content_rules": [{"team": "reserch", "content": "full"}]},
        "identity": {"keys": [{"name": "ci", "key": {"env": "CI_KEY"}, "team": "builders", "role": "member"}]},
    }
    limit = "limits[0].match.team: there is no team with the id or name {!r} yet; the limit money never applies to "
    ghost, research = (
        limit.format(name) + "it until there is one – correct the name, or make the team"
        for name in ("ghost", "research")
    )
    others = [
        "records.content_rules[0].team: there is no team with the id or name 'reserch' yet; the rule "
        "(content: full) never applies to it until there is one – correct the name, or make the team",
        "identity.keys[0].team: there is no team with the id or name 'builders' yet; the key ci lets nobody in "
        "until there is one – correct the name, or make the team",
    ]

    path = write(tmp_path, doc)
    async with running(path) as app:
        assert told(caplog) == [ghost, research, *others]
        await make(app, TEAM, "research")
        await app.reload()
        assert told(caplog) == [ghost, *others]
        for name in ("ghost", "builders", "reserch"):
            await make(app, TEAM, name)
        await app.reload()
        assert told(caplog) == []


async def test_everybody_whom_a_limit_may_name_is_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    match = {"organization": "acme", "team": "t", "user": "ann", "service_account": "bot", "key": "laptop"}
    doc = {"limits": [{"scope": "box", "match": match, "requests": "9/day"}]}
    async with running(write(tmp_path, doc)) as app:
        lines = told(caplog)
        assert [line.partition(":")[0] for line in lines] == [f"limits[0].match.{f}" for f in match]
        assert "there is no service account with the id or name 'bot' yet" in lines[3]
        for kind, name in ((ORGANIZATION, "acme"), (TEAM, "t"), (USER, "ann"), (SERVICE_ACCOUNT, "bot")):
            await make(app, kind, name)
        await app._office.ring.create(OWNER, NewKey("laptop", "member"))
        await app.reload()
        assert told(caplog) == []


# --- which names: pure --------------------------------------------------------------------------------

ACME = Organization("org_acme", "acme", 1.0)
SNAPSHOT = Snapshot(
    [
        Organization("org_default", "default", 1.0),
        ACME,
        Team("team_1", "org_acme", "theirs", 1.0),
        Team("team_2", "org_default", "ours", 1.0),
        KeyRecord(b"x", "key_1", "laptop", "member"),
    ]
)
ISSUER = {"name": "corp", "issuer": "https://login.example.com", "audience": "outpost"}


def paths(doc: Doc) -> list[str]:
    return [dotted(each.path) for each in unmet_names(Settings.model_validate(doc), SNAPSHOT)]


@pytest.mark.parametrize("name", ["ci", "fixed:ci", "jwt:corp", "mtls", "cron", "laptop", "key_1"])
def test_credentials_of_the_settings_are_known(name: str) -> None:
    identity = {
        "keys": [{"name": "ci", "key": {"env": "CI_KEY"}}],
        "oidc": [ISSUER],
        "client_certificates": [{"name": "cron", "dns": "cron.example.com"}],
    }
    limits = [{"scope": "key", "match": {"key": name}, "requests": "9/day"}]
    assert paths({"identity": identity, "limits": limits}) == []
    assert paths({"limits": limits}) == ([] if name in ("laptop", "key_1") else ["limits[0].match.key"])


@pytest.mark.parametrize(
    ("entry", "missing"),
    [
        ({"team": "ours"}, None),
        ({"team": "team_2"}, None),
        ({"team": "theirs"}, "team"),
        ({"team": "theirs", "organization": "acme"}, None),
        ({"team": "theirs", "organization": "org_acme"}, None),
        ({"team": "ours", "organization": "acme"}, "team"),
        ({"team": "ours", "organization": "nowhere"}, "organization"),
    ],
)
def test_keys_and_certificates_work_for_a_team_of_their_organization(entry: Doc, missing: str | None) -> None:
    found = [] if missing is None else [f"identity.keys[0].{missing}"]
    assert paths({"identity": {"keys": [{"name": "ci", "key": {"env": "CI_KEY"}, **entry}]}}) == found
    found = [each.replace("keys", "client_certificates") for each in found]
    certificate = {"name": "cron", "dns": "cron.example.com", **entry}
    assert paths({"identity": {"client_certificates": [certificate]}}) == found


@pytest.mark.parametrize(
    ("issuer", "found"),
    [
        ({"organization": "acme"}, []),
        ({"organization": "nowhere", "teams": {"x": "theirs"}}, ["organization"]),
        ({"organization": "acme", "teams": {"x": "theirs", "y": "ours"}}, ["teams.y"]),
        ({"teams": {"x": "theirs", "y": "ours"}}, ["teams.x"]),
        ({"teams": {"x": "theirs", "y": "none"}, "claims": {"organization": "tenant"}}, ["teams.y"]),
    ],
)
def test_an_issuer_leads_to_what_is_there(issuer: Doc, found: list[str]) -> None:
    assert paths({"identity": {"oidc": [{**ISSUER, **issuer}]}}) == [f"identity.oidc[0].{each}" for each in found]


def test_a_content_rule_names_a_team_of_any_organization() -> None:
    rules = [
        {"team": "theirs", "content": "full"},
        {"team": "team_2", "organization": "org_default", "content": "full"},
        {"route": "far", "content": "none"},
        {"organization": "acmee", "content": "full"},
    ]
    assert paths({"records": {"content_rules": rules}}) == ["records.content_rules[3].organization"]
