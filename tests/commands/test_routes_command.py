"""`outpost routes`, through a gateway's socket and without one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from appliance.commands import routes
from appliance.commands.router_here import NO_FILE
from appliance.door.admin_routes import DIALECTS, NO_GATEWAY
from tests.door.whole_desk import open_whole

SETTINGS: dict[str, Any] = {
    "deployments": [{"name": "small", "model": "smollm2-135m-instruct"}],
    "providers": [
        {"name": "lab", "base_url": "http://127.0.0.1:1/v1", "zone": "on_prem"},
        {"name": "openai", "kind": "openai", "api_key": {"env": "NOT_SET_HERE"}},
    ],
    "prices": [{"target": "openai/gpt-4o", "input": 5, "output": 15}],
    "routes": [
        {
            "model": "cheap",
            "strategy": "cost",
            "targets": [{"provider": "openai", "model": "gpt-4o"}, {"provider": "openai", "model": "gpt-4o-mini"}],
        },
        {
            "model": "chat",
            "aliases": ["gpt"],
            "targets": [
                {"provider": "lab", "model": "vip", "when": {"tags": ["vip"]}},
                {"route": "cheap"},
                {"deployment": "small"},
            ],
        },
    ],
    "identity": {
        "keys": [{"name": "ci", "key": {"env": "NOT_SET_EITHER"}, "role": "member", "zones": ["on_box", "on_prem"]}]
    },
}


def run(*args: str | Path, input: str | None = None) -> Result:
    return CliRunner().invoke(routes.app, [str(a) for a in args], input=input)


def data(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["data"]
    return found


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "outpost.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, "data_dir": str(tmp_path / "data")}), encoding="utf-8")
    return path


def order(config: Path, name: str, *args: str | Path) -> list[str]:
    (found,) = data(run("test", name, "-c", config, "--json", *args))
    return [each["target"] for each in found["considered"] if each["place"] is not None]


def test_the_dialects_are_those_that_there_are() -> None:
    assert {each.value for each in routes.DialectName} == set(DIALECTS)


def test_without_a_gateway_routes_are_those_of_the_file(config: Path) -> None:
    shown = run("list", "-c", config)
    assert shown.exit_code == 0, shown.output
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert lines[0] == ["ROUTE", "ALIASES", "STRATEGY", "TARGET", "ZONE", "STATE"]
    assert lines[1] == ["cheap", "cost", "openai/gpt-4o", "cloud", "not", "known"]
    assert lines[3] == ["chat", "gpt", "priority", "lab/vip", "on_prem", "not", "known"]
    assert lines[4][:3] == ["cheap", ">", "openai/gpt-4o"]
    chat = data(run("list", "-c", config, "--json"))[1]
    assert [each["ready"] for each in chat["targets"]] == [None] * 4
    assert not (config.parent / "data").exists()


def test_without_a_gateway_a_plan_is_explained(config: Path) -> None:
    assert order(config, "chat") == ["openai/gpt-4o-mini", "openai/gpt-4o", "small"]
    assert order(config, "gpt", "--tag", "vip", "--tag", "x")[0] == "lab/vip"
    assert order(config, "chat", "--key", "ci") == ["small"]
    assert order(config, "chat", "--key", "fixed:ci", "--dialect", "messages") == ["small"]
    shown = run("test", "chat", "-c", config, "--message", "Prove it step by step")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("Route chat, strategy priority\n")
    assert "complexity from" in shown.stdout
    assert "when: it is for requests with the tag vip" in shown.stdout
    assert shown.stdout.rstrip().endswith(NO_GATEWAY)
    assert not (config.parent / "data").exists()


def test_a_request_from_a_file(config: Path, tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    body = json.dumps({"messages": [{"role": "user", "content": [image]}]})
    file = tmp_path / "request.json"
    file.write_text(body, encoding="utf-8")
    assert order(config, "chat", "--file", file) == ["openai/gpt-4o-mini", "openai/gpt-4o"]
    piped = run("test", "chat", "-c", config, "--json", "--file", "-", input=body)
    assert data(piped) == data(run("test", "chat", "-c", config, "--json", "--file", file))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["test", "nope"], "There is: cheap, chat, gpt."),
        (["test", " "], "NAME: is empty"),
        (["test", "chat", "--key", "nobody"], "There is no key 'nobody' in the settings file"),
        (["test", "chat", "--file", "/nowhere/x.json"], "--file /nowhere/x.json: cannot be read"),
        (["test", "chat", "--file", "-"], "--file -: is not JSON"),
        (["test", "chat", "--tag", "a b"], "tags: a tag has"),
        (["test", "chat", "--dialect", "embeddings"], ""),
    ],
)
def test_errors_say_what_to_do(config: Path, args: list[str], says: str) -> None:
    result = run(*args, "-c", config, input="{")
    if says:
        assert (result.exit_code, says in result.stderr) == (1, True), result.stderr
    else:
        # What no target can do is a plan without candidates, and says why.
        assert result.exit_code == 0
        assert "-  small" in result.stdout


def test_a_file_that_is_no_request(config: Path) -> None:
    listed = run("test", "chat", "-c", config, "--file", "-", input="[1]")
    assert (listed.exit_code, "write a request's body" in listed.stderr) == (1, True)
    wrong = run("test", "chat", "-c", config, "--file", "-", input='{"messages": 5}')
    assert (wrong.exit_code, "request.messages" in wrong.stderr) == (1, True)


def test_a_model_that_the_catalogue_lacks(config: Path) -> None:
    wrong = {**SETTINGS, "deployments": [{"name": "small", "model": "no-such-model"}]}
    config.write_text(yaml.safe_dump({**wrong, "data_dir": str(config.parent / "data")}), encoding="utf-8")
    result = run("list", "-c", config)
    assert (result.exit_code, "deployment small: " in result.stderr) == (1, True), result.stderr


def test_overrides_that_are_none(config: Path) -> None:
    target = {"deployment": "small", "overrides": {"temprature": 1}}
    wrong = {**SETTINGS, "prices": [], "routes": [{"model": "m", "targets": [target]}]}
    config.write_text(yaml.safe_dump({**wrong, "data_dir": str(config.parent / "data")}), encoding="utf-8")
    result = run("test", "m", "-c", config)
    assert result.exit_code == 1
    assert "routes[0].targets[0].overrides.temprature" in result.stderr
    assert "did you mean temperature?" in result.stderr


def test_with_a_database_keys_are_found_there(config: Path) -> None:
    from appliance.identity.key_ring import KeyRing
    from appliance.identity.key_store import NewKey
    from appliance.identity.principal import Restrictions
    from appliance.records.database import Database
    from appliance.records.recorder import Recorder
    from tests.door.whole_desk import OWNER

    folder = config.parent / "data"
    folder.mkdir()

    async def make() -> None:
        database = await Database.open(folder / "outpost.db")
        recorder = Recorder(database)
        await recorder.start()
        ring = await KeyRing.open(database, folder, recorder=recorder)
        await ring.create(OWNER, NewKey("clouds", "member", restrictions=Restrictions(zones=("cloud",))))
        await recorder.close()
        await database.close()

    asyncio.run(make())
    assert order(config, "chat", "--key", "clouds") == ["openai/gpt-4o-mini", "openai/gpt-4o"]
    assert order(config, "chat", "--key", "ci") == ["small"]
    # With --data-dir alone no settings are read.
    (found,) = data(run("test", "smollm2-135m-instruct", "--data-dir", folder, "--json"))
    assert found["remarks"] == [NO_GATEWAY, NO_FILE]


async def test_through_a_running_gateway(tmp_path: Path) -> None:
    async with open_whole(tmp_path) as whole:
        config = tmp_path / "outpost.yaml"
        chat = {"model": "far", "messages": [{"role": "user", "content": "Hi"}]}
        for _ in range(3):
            status, _ = await whole.ask("POST", "/v1/chat/completions", chat, public=True)
            assert status >= 500
        shown = await asyncio.to_thread(run, "list", "-c", config)
        assert shown.exit_code == 0, shown.output
        assert "lab/x" in shown.stdout
        assert "failed" in shown.stdout
        assert "not known" not in shown.stdout
        (found,) = data(await asyncio.to_thread(run, "test", "far", "-c", config, "--json", "--key", "box-member"))
        assert found["request"]["asked by"] == "the key box-member"
        assert NO_GATEWAY not in found.get("remarks", [])
        missing = await asyncio.to_thread(run, "test", "nope", "-c", config)
        assert (missing.exit_code, "There is: far." in missing.stderr) == (1, True)
