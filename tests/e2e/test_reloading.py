"""New settings for a running gateway: all or nothing, and nobody who is being answered notices."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from appliance.commands.control import ControlError
from tests.e2e.clients import Answer, Client, chat, engine_of, post
from tests.e2e.test_stopping import release, until_held, with_held_streams
from tests.gateway import CHAT, EMBEDDER, Gateway, UpstreamThread

pytestmark = pytest.mark.timeout(240)

STREAMS = 50
NewGateway = Callable[..., Gateway]


@pytest.fixture
def upstream() -> Iterator[UpstreamThread]:
    with UpstreamThread() as upstream:
        yield upstream


def reload(gateway: Gateway) -> dict[str, Any]:
    answer: dict[str, Any] = gateway.control.call("POST", "/admin/v1/reload")[0]
    return answer


async def models(gateway: Gateway, key: str | None = None) -> Answer:
    async with Client(gateway.url, key or gateway.key) as one:
        await one.send("/v1/models", {}, method="GET")
        await one.head()
        return await one.rest()


async def names(gateway: Gateway) -> set[str]:
    return {model["id"] for model in (await models(gateway)).json["data"]}


async def test_streams_run_through_reloads_of_every_kind(new_gateway: NewGateway, upstream: UpstreamThread) -> None:
    settings = with_held_streams(upstream)
    gateway = new_gateway(settings)
    streams = [asyncio.ensure_future(post(gateway, chat("Hi", model="fake-held"))) for _ in range(STREAMS)]
    await until_held(upstream, STREAMS)
    added = {"model": "added", "targets": [{"provider": "fake", "model": "ok"}]}

    # By command: the route that the streams use goes, another comes.
    others = [route for route in settings["routes"] if route["model"] != "fake-held"]
    gateway.write_settings({**settings, "routes": [*others, added]})
    assert "routes" in reload(gateway)["changed"]
    assert await names(gateway) == {"fake-ok", "fake-silent", "added"}
    assert (await post(gateway, chat("Hi", model="added"))).done
    assert (await post(gateway, chat("Hi", model="fake-held"))).status == 404

    # A file with a mistake changes nothing, and says what is wrong with it.
    bad = {"model": "bad", "targets": [{"provider": "nowhere", "model": "x"}]}
    gateway.write_settings({**settings, "routes": [bad]})
    with pytest.raises(ControlError, match="nowhere"):
        reload(gateway)
    gateway.config.write_text("server: [", encoding="utf-8")
    with pytest.raises(ControlError):
        reload(gateway)
    os.kill(gateway.pid, signal.SIGHUP)
    await asyncio.to_thread(
        gateway.wait_for, lambda: "settings not reloaded, the old ones stay in force" in gateway.log(), "the refusal"
    )
    assert await names(gateway) == {"fake-ok", "fake-silent", "added"}

    # By signal: back to the first file.
    gateway.write_settings(settings)
    os.kill(gateway.pid, signal.SIGHUP)
    for _ in range(600):
        if await names(gateway) == {"fake-ok", "fake-held", "fake-silent"}:
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail("SIGHUP did not put the new file in force")

    assert not any(stream.done() for stream in streams)
    release(upstream)
    for answer in await asyncio.gather(*streams):
        assert answer.done
        assert answer.error is None
        assert answer.text() == "x" * 20
    assert gateway.status()["running"] == 0


async def test_new_limits_count_from_the_next_request(new_gateway: NewGateway, upstream: UpstreamThread) -> None:
    settings = with_held_streams(upstream)
    gateway = new_gateway(settings)
    large = chat("x" * 2_000_000, model="fake-ok", stream=False)
    assert (await post(gateway, large)).status == 200
    gateway.write_settings({**settings, "server": {"max_body": "1MiB"}, "log": {"access": False}})
    answer = reload(gateway)
    assert answer == {"changed": ["server", "log"], "applied": ["server", "log"], "needs_restart": []}
    assert (await post(gateway, large)).status == 413
    assert (await post(gateway, chat("x", model="fake-ok", stream=False))).status == 200
    await asyncio.sleep(0.5)  # several times what the log gathers lines for
    assert [line["status"] for line in gateway.access_log() if line["path"].startswith("/v1/")] == [200]

    # A manifest that cannot be used is the operator's mistake, and changes nothing.
    folder = gateway.folder / "more"
    folder.mkdir()
    (folder / "bad.yaml").write_text("id: bad", encoding="utf-8")
    gateway.write_settings({**settings, "catalogue": {"paths": [str(folder)]}})
    with gateway.http() as http:
        refused = http.post(f"{gateway.operator_url}/admin/v1/reload")
    assert refused.status_code == 400
    assert f"catalogue.paths[0]: {folder}/bad.yaml: title: Field required" in refused.json()["detail"]
    assert (await post(gateway, large)).status == 413
    (folder / "bad.yaml").unlink()
    reload(gateway)
    assert (await post(gateway, large)).status == 200


async def test_fixed_keys_are_renewed(new_gateway: NewGateway, upstream: UpstreamThread) -> None:
    settings = with_held_streams(upstream)
    gateway = new_gateway(settings)
    secret = gateway.folder / "key"
    old, new = "op-rotated-key-0123456789-old", "op-rotated-key-0123456789-new"

    def put(key: str) -> None:
        secret.write_text(key, encoding="utf-8")
        secret.chmod(0o600)

    put(old)
    robot = {"name": "robot", "key": {"file": str(secret)}, "role": "member"}
    gateway.write_settings({**settings, "identity": {"keys": [robot]}})
    assert (await models(gateway, old)).status == 401
    reload(gateway)
    assert (await models(gateway, old)).status == 200
    put(new)
    assert (await models(gateway, old)).status == 200, "a file that changes is read at the next reload"
    reload(gateway)
    assert [(await models(gateway, key)).status for key in (old, new)] == [401, 200]
    secret.unlink()
    with pytest.raises(ControlError, match="key"):
        reload(gateway)
    assert (await models(gateway, new)).status == 200
    gateway.write_settings(settings)
    reload(gateway)
    assert (await models(gateway, new)).status == 401


async def test_deployments_come_go_and_change(new_gateway: NewGateway) -> None:
    def deployment(name: str, model: str, **args: Any) -> dict[str, Any]:
        return {"name": name, "model": model, "engine": "llamacpp", "args": args}

    embedder = deployment(EMBEDDER, EMBEDDER)
    gateway = new_gateway({"deployments": [deployment(CHAT, CHAT, context=512)]})
    [first] = gateway.replicas()

    async def ready(expected: set[str]) -> dict[str, dict[str, Any]]:
        def found() -> dict[str, dict[str, Any]] | None:
            replicas = {replica["deployment"]: replica for replica in gateway.replicas()}
            done = replicas.keys() == expected and all(r["state"] == "ready" for r in replicas.values())
            return replicas if done else None

        replicas: dict[str, dict[str, Any]] = await asyncio.to_thread(gateway.wait_for, found, f"{expected}", 120)
        return replicas

    # One more: the one that is there goes on without a break.
    gateway.write_settings({"deployments": [deployment(CHAT, CHAT, context=512), embedder]})
    stream = asyncio.ensure_future(post(gateway, chat("A story", max_tokens=60, temperature=0)))
    reload(gateway)
    replicas = await ready({CHAT, EMBEDDER})
    assert replicas[CHAT]["pid"] == first["pid"]
    assert (await stream).done
    assert (await post(gateway, {"model": EMBEDDER, "input": "Hi"}, "/v1/embeddings")).status == 200

    # A changed one is drained before it is restarted; meanwhile there is an honest 503.
    stream = asyncio.ensure_future(post(gateway, chat("Another story", max_tokens=60, temperature=0)))
    async with engine_of(gateway) as engine:
        while not (await engine.status()).busy:
            await asyncio.sleep(0.01)
    gateway.write_settings({"deployments": [deployment(CHAT, CHAT, context=640), embedder]})
    reload(gateway)
    answer = await stream
    assert answer.done
    assert answer.error is None
    while (early := await post(gateway, chat("Hi", stream=False, max_tokens=2))).status != 200:
        assert early.status == 503, early.body
        assert "retry-after" in early.headers
        await asyncio.sleep(0.05)
    changed = await ready({CHAT, EMBEDDER})
    assert changed[CHAT]["pid"] != first["pid"]
    assert changed[EMBEDDER]["pid"] == replicas[EMBEDDER]["pid"]
    async with engine_of(gateway) as engine:
        assert (await engine.status()).context_length == 640

    # One that goes takes its route along.
    gateway.write_settings({"deployments": [embedder]})
    reload(gateway)
    await ready({EMBEDDER})
    assert await names(gateway) == {EMBEDDER}
    assert (await post(gateway, chat("Hi"))).status == 404
    assert '"level":"error"' not in gateway.log()
