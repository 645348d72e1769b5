"""A reload does what it says: every key that is not marked Restart changes what the running appliance goes by.

The appliance is the real one, less its engines: what they would be started with is looked at instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import yaml

from appliance.app import App
from appliance.errors import BadRequest, OutpostError
from appliance.providers.http import HttpUpstream
from appliance.routing.routes import Nested, Route, Target
from appliance.settings import SettingsError, load
from appliance.settings.shape import leaves
from runtimes.catalogue.gguf import read_header
from runtimes.supervisor import ReplicaSpec
from tests.wiring.live_values import CERTIFICATES, CHAT, ELSEWHERE, ENV, KEYS, STEPS, VALUES, Doc, base


def put(doc: Doc, key: str, value: Any) -> None:
    at: Any = doc
    *parents, last = key.replace("[]", ".0").split(".")
    for part in parents:
        at = at[int(part)] if part.isdecimal() else at.setdefault(part, {})
    at[last] = value


DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""In C where PyYAML has been built with it."""


class Replicas:
    """Stands in for the supervisor: remembers what it should run, and runs nothing."""

    def __init__(self) -> None:
        self.specs: list[ReplicaSpec] = []

    async def start(self, specs: list[ReplicaSpec]) -> None:
        self.specs = specs

    replace = start

    async def stop(self, *, drain: bool = True) -> None:
        pass

    def replicas(self, deployment: str | None = None) -> list[Any]:
        return []

    async def subscribe(self) -> AsyncIterator[Any]:
        """Nothing ever happens."""
        await asyncio.Event().wait()
        yield


class Box:
    """A running appliance and its file."""

    def __init__(self, folder: Path, doc: Doc) -> None:
        self.doc = doc
        self.path = folder / "outpost.yaml"
        self.write(doc)
        self.app = App(load(self.path, ENV), ENV)
        self.replicas = Replicas()
        self.app._supervisor = self.replicas  # type: ignore[assignment]

    def write(self, doc: Doc) -> None:
        self.path.write_text(yaml.dump(doc, Dumper=DUMPER))

    async def reload(self, doc: Doc) -> dict[str, Any]:
        self.write(doc)
        answer = await self.app.reload()
        for task in list(self.app._changing):
            await task
        return answer

    async def ask(self, body: Any) -> tuple[int, str]:
        """Status and error code of a chat request."""
        headers = {"Authorization": f"Bearer {KEYS[0]}"}
        url = f"http://127.0.0.1:{self.app.public_port}/v1/chat/completions"
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(url, data=msgspec.json.encode(body)) as response,
        ):
            return response.status, (await response.json())["error"]["code"]

    def owner(self, key: str) -> Any:
        """Whose a key is, or why it is nobody's."""
        try:
            return self.app._office.authenticator.identify_now(key)
        except OutpostError as error:
            return error.message

    def in_force(self) -> dict[str, Any]:
        """Everything that the running parts go by, as data."""
        app = self.app
        terms, gateway = app._doors._terms, app.gateway
        return {
            "limits": terms.limits,
            "depth": gateway.max_json_depth,
            "patience": gateway.write_timeout_s,
            "access": terms.log is not None,
            "level": logging.getLogger().level,
            "offline": app.status()["offline"],
            "keys": [self.owner(key) for key in KEYS],
            "issuers": [(each.settings, each.__dict__.get("_secret")) for each in gateway.authenticator.providers],
            "rules": gateway.limits.book.rules,
            "prices": vars(gateway.limits.prices),
            "priorities": (gateway.max_priority, gateway.default_priority),
            "queues": (app._gates._rules, sorted(app._gates._openings.items())),
            "records": app._office.retention.records,
            "contents": (gateway.contents._settings, gateway.contents.most),
            "exports": sorted(map(str, app._office.exporters._tasks)),
            "replicas": list(self.replicas.specs),
            "routes": [_route(route) for route in gateway.router.routes],
        }


def _route(route: Route) -> Any:
    """All of a route, its targets by what they ask."""
    told = {name: getattr(route, name) for name in route.__struct_fields__ if name not in ("targets", "shadows")}
    targets = [_target(each) for each in route.targets]
    return told, targets, [(_target(each.target), each.share) for each in route.shadows]


def _target(target: Target | Nested) -> Any:
    told = (target.name, dict(target.overrides), target.weight, target.share, target.when)
    if isinstance(target, Nested):
        return told
    return (*told, target.prefill, _connection(target.upstream))


def _connection(upstream: Any) -> Any:
    """Where a provider is asked, with which keys and how often; nothing of a deployment."""
    if not isinstance(upstream, HttpUpstream):
        return None
    keys = upstream._credentials._keys
    return (
        (upstream._base, dict(upstream._headers), upstream._outbound.name, upstream._native),
        upstream.capabilities.features,
        [(key.name, key.text, key.weight) for key in keys.all],
        (keys.longest_rest_s, keys.pace and keys.pace._most, type(upstream._auth)),
    )


@pytest.fixture
def folder(tmp_path: Path, model_store: Path) -> Iterator[Path]:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "models").symlink_to(model_store.resolve(), target_is_directory=True)
    level = logging.getLogger().level
    logging.getLogger().setLevel("INFO")  # as the command does at its start
    yield tmp_path
    logging.getLogger().setLevel(level)


@contextlib.asynccontextmanager
async def running(folder: Path, doc: Doc | None = None) -> AsyncIterator[Box]:
    box = Box(folder, doc or base(folder))
    await box.app.start()
    try:
        yield box
    finally:
        await box.app.stop()


LIVE = [
    shape.key
    for shape in leaves()
    # A key with one value so far has no other to change to.
    if not shape.restart
    and len(shape.choices) != 1
    and shape.key not in ELSEWHERE
    and not shape.key.startswith(CERTIFICATES)
]


async def test_every_live_key_changes_what_is_in_force(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The files of the models stay as they are. To read their vocabularies at each reload is most of the time.
    monkeypatch.setattr("runtimes.catalogue.importer.read_header", functools.cache(read_header))
    dead = []
    async with running(folder) as box:
        before = box.in_force()
        for key in LIVE:
            doc = copy.deepcopy(box.doc)
            if key in STEPS:
                STEPS[key](doc)
            else:
                put(doc, key, VALUES[key])
            answer = await box.reload(doc)
            assert (answer["applied"], answer["needs_restart"]) == (answer["changed"], []), key
            if box.in_force() == before:
                dead.append(key)
            await box.reload(box.doc)
            assert box.in_force() == before, key
    assert dead == []


async def test_new_limits_count_for_the_next_request(folder: Path) -> None:
    large = {"model": "none", "messages": [{"role": "user", "content": "x" * 2_000_000}]}
    deep: Any = {"model": "none", "messages": [{"role": "user", "content": "x"}], "metadata": {"a": "b"}}
    for _ in range(20):
        deep["metadata"] = {"a": deep["metadata"]}
    async with running(folder) as box:
        assert await box.ask(large) == (404, "model_not_found")
        assert (await box.ask(deep))[1] == "invalid_type"
        doc = copy.deepcopy(box.doc)
        doc["server"] |= {"max_body": "1MiB", "max_json_depth": 10}
        answer = await box.reload(doc)
        assert answer == {"changed": ["server"], "applied": ["server"], "needs_restart": []}
        assert await box.ask(large) == (413, "request_too_large")
        assert await box.ask(deep) == (400, "json_too_deep")
        await box.reload(box.doc)
        assert await box.ask(large) == (404, "model_not_found")


async def test_a_key_that_needs_a_restart_is_not_said_to_be_applied(folder: Path) -> None:
    async with running(folder) as box:
        before = box.in_force()
        doc = copy.deepcopy(box.doc)
        doc["server"]["listen"] = "127.0.0.1:1"
        answer = await box.reload(doc)
        assert answer == {"changed": ["server"], "applied": [], "needs_restart": ["server.listen"]}
        assert box.in_force() == before


async def test_an_offline_box_takes_no_cloud_at_a_reload(folder: Path) -> None:
    doc = base(folder)
    doc["offline"] = True
    async with running(folder, doc) as box:
        changed = copy.deepcopy(doc)
        changed["providers"][0]["zone"] = "cloud"
        with pytest.raises(BadRequest, match=r"providers\[0\]\.zone: lab is in a cloud"):
            await box.reload(changed)


MANIFEST = {
    "id": "tiny", "title": "Tiny", "task": "generate", "format": "gguf", "architecture": "llama",
    "licence": "MIT", "attribution": "nobody", "context_length": 1024, "capabilities": ["chat"],
    "memory": {"weights_bytes": 1, "kv_bytes_per_token": 0}, "defaults": {"context": 512},
    "files": [{"path": "tiny.gguf", "sha256": "0" * 64, "size": 1}],
}  # fmt: skip


def models_folder(folder: Path, **files: Any) -> Path:
    path = folder / "more"
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (path / f"{name}.yaml").write_text(text)
    return path


async def test_a_folder_of_models_comes_with_a_reload(folder: Path) -> None:
    async with running(folder) as box:
        doc = copy.deepcopy(box.doc)
        doc["deployments"][0]["model"] = "tiny"
        with pytest.raises(BadRequest, match=r"deployments\[0\]\.model: the catalogue has no model 'tiny'"):
            await box.reload(doc)
        doc["catalogue"] = {"paths": [str(models_folder(folder, tiny=MANIFEST))]}
        # Known now, although its files are nowhere.
        with pytest.raises(BadRequest, match=r"outpost\.yaml:\d+: deployments\[0\]\.model: tiny: is not imported"):
            await box.reload(doc)


BROKEN = {
    "no yaml": ("a: [", "bad.yaml, line"),
    "a wrong field": ("id: bad\nsize: 3\n", "bad.yaml: title: Field required"),
    "an id that is taken": ({**MANIFEST, "id": CHAT}, f"bad.yaml: has the id {CHAT}, as "),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_manifest_is_named_and_nothing_changes(folder: Path, name: str) -> None:
    content, says = BROKEN[name]
    async with running(folder) as box:
        before = box.in_force()
        doc = copy.deepcopy(box.doc)
        doc["catalogue"] = {"paths": [str(models_folder(folder, bad=content))]}
        doc["server"]["max_body"] = "1MiB"
        with pytest.raises(BadRequest) as caught:
            await box.reload(doc)
        assert caught.value.status == 400
        assert f"catalogue.paths[0]: {folder}/more/{says}" in caught.value.message
        assert " – " in caught.value.message, "with a cure"
        assert box.in_force() == before
    refused = Box(folder, doc)
    with pytest.raises(SettingsError, match=r"outpost\.yaml:\d+: catalogue\.paths\[0\]: .*bad\.yaml"):
        await refused.app.start()


async def test_a_start_that_is_refused_names_the_line_and_whom_it_is_about(folder: Path) -> None:
    doc = base(folder)
    doc["deployments"][0]["args"] = {"context": 100_000}
    doc["routes"][0]["targets"][0]["overrides"] = {"temprature": 1, "max_tokens": "many"}
    box = Box(folder, doc)
    lines = box.path.read_text().splitlines()
    with pytest.raises(SettingsError) as caught:
        await box.app.start()
    found = {problem.key: problem for problem in caught.value.problems}
    assert set(found) == {
        "deployments[0].args.context",
        "routes[0].targets[0].overrides.temprature",
        "routes[0].targets[0].overrides.max_tokens",
    }
    for key, problem in found.items():
        assert problem.line is not None
        assert f"{key.rpartition('.')[2]}:" in lines[problem.line - 1]
        assert ("(deployment spare)" if "deployments" in key else "(route far)") in problem.message
        assert problem.cure


async def test_a_catalogue_that_the_disk_refuses_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any) -> Any:
        raise PermissionError(13, "Permission denied", "models/imported/x.json")

    async with running(folder) as box:
        monkeypatch.setattr("runtimes.catalogue.Catalogue.list", refuse)
        with pytest.raises(BadRequest, match=r"models/imported/x\.json: permission denied\) – correct"):
            await box.reload(box.doc)


async def test_a_reload_does_not_wait_for_one_that_it_overrules(folder: Path) -> None:
    async with running(folder) as box:
        begun: list[list[ReplicaSpec]] = []
        ended: list[str] = []

        async def replace(specs: list[ReplicaSpec]) -> None:
            begun.append(specs)
            try:
                if len(begun) == 1:
                    await asyncio.Event().wait()  # an answer that never ends
                ended.append("done")
            except asyncio.CancelledError:
                ended.append("overruled")
                raise

        box.replicas.replace = replace  # type: ignore[method-assign]
        for slots in (2, 3):
            put(box.doc, "deployments[].args.slots", slots)
            box.write(box.doc)
            await box.app.reload()
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await asyncio.gather(*box.app._changing, return_exceptions=True)
        assert ended == ["overruled", "done"]
        assert begun[0] != begun[1]


async def test_a_file_that_is_written_after_the_start_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    box = Box(folder, base(folder))
    box.path.rename(folder / "later.yaml")
    box.app = App(replace(load(folder / "later.yaml", ENV), path=None), ENV)
    box.app._supervisor = box.replicas  # type: ignore[assignment]
    await box.app.start()
    try:
        assert box.app.status()["config"] is None
        wrong = copy.deepcopy(box.doc)
        wrong["limits"] = [{"scope": "nothing"}]
        with pytest.raises(BadRequest):
            await box.reload(wrong)
        assert box.app.status()["config"] is None
        wrong["limits"] = [{"scope": "box", "requests": "7/minute"}]
        assert (await box.reload(wrong))["applied"] == ["limits"]
        assert box.app.status()["config"] == str(folder / "outpost.yaml")
    finally:
        await box.app.stop()
