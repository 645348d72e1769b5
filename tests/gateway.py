"""The real gateway as a process: `outpost serve` with its engines, for the suites that look at it from outside.

A test takes the session's `gateway` (conftest.py), or starts one of its own with `open_gateway`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import yaml

from appliance.commands.control import Control, ControlError
from tests.fakes.upstream import FakeUpstream
from tests.telemetry.canaries import Hunt, secrets_of

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

ROOT = Path(__file__).parents[1]
CHAT = "smollm2-135m-instruct"
EMBEDDER = "all-minilm-l6-v2"
MODELS = (CHAT, EMBEDDER)
ADMIN_KEY = "op-contract-admin-0123456789abcdef"
USER_KEY = "op-contract-user-0123456789abcdef"
UPSTREAM_KEY = "sk-upstream-key"
"""The gateway's key at the fake upstream, which repeats it in its errors."""
FIXED_ENV = {"CONTRACT_ADMIN_KEY": ADMIN_KEY, "CONTRACT_USER_KEY": USER_KEY, "FAKE_UPSTREAM_KEY": UPSTREAM_KEY}
_GREETING = re.compile(rb"(First admin key, shown this once:  |-H \"Authorization: Bearer )op-[A-Za-z0-9_-]{43}")
"""The one place where a key is told: the terminal, at the first start of a box without any."""
START_S = 120.0
"""Enough for a machine that has much else to do; a quiet one takes 3 s."""
STOP_S = 30.0
POLL_S = 0.05


class GatewayFailed(AssertionError):
    """The process ended, or did not get where it should in time; the message holds the end of its log."""


class Gateway:
    """One `outpost serve` on ports of its own choice. `start` may be called again after `stop` or `kill`.

    settings: the settings file, less the addresses, the data folder and the two fixed keys, which are added.
    store: a folder with the imported models; it is only read.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any] | None = None,
        *,
        store: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.config = folder / "outpost.yaml"
        self.key, self.user_key = ADMIN_KEY, USER_KEY
        self.stdout_path, self.stderr_path = folder / "stdout.log", folder / "stderr.log"
        self.url = self.operator_url = ""
        """Without a path; known once `start` has returned."""
        self._env = {**FIXED_ENV, **(env or {})}
        self.secrets = {ADMIN_KEY, USER_KEY}
        """What must be found nowhere; those that the settings lead to are added by themselves."""
        self._process: subprocess.Popen[bytes] | None = None
        self._family: dict[int, psutil.Process] = {}
        self.data_dir.mkdir(parents=True, exist_ok=True)
        if store is not None and not (self.data_dir / "models").exists():
            (self.data_dir / "models").symlink_to(store.resolve(), target_is_directory=True)
        self.write_settings(settings or {})

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write the file; a running gateway reads it at `reload`."""
        self.secrets.update(secrets_of(dict(settings), self._env))
        keys = [
            {"name": "contract-admin", "key": {"env": "CONTRACT_ADMIN_KEY"}, "role": "admin"},
            {"name": "contract-user", "key": {"env": "CONTRACT_USER_KEY"}, "role": "member"},
        ]
        document = {
            "data_dir": str(self.data_dir),
            **settings,
            "server": {"listen": "127.0.0.1:0", **settings.get("server", {})},
            "console": {"listen": "127.0.0.1:0", **settings.get("console", {})},
            "identity": {
                **settings.get("identity", {}),
                "keys": [*keys, *settings.get("identity", {}).get("keys", [])],
            },
        }
        self.config.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")

    # --- the process --------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self._process is not None, "the gateway was not started"
        return self._process.pid

    def start(self, *, ready: bool = True, timeout: float = START_S) -> Gateway:
        """Start it and return when its doors are open, with `ready` when every model answers."""
        env = {**os.environ, **self._env}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (env.get("PYTHONPATH"), str(ROOT))))
        with self.stdout_path.open("ab") as out, self.stderr_path.open("ab") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "appliance.cli", "serve", "-c", str(self.config)],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        try:
            self.wait_for(self._listening, "the doors to open", timeout)
            if ready:
                self.wait_ready(timeout)
        except BaseException:
            self.kill()
            raise
        return self

    def _listening(self) -> bool:
        found = self.status().get("listening")
        if not found:
            return False
        self.url, self.operator_url = found["public"], found["operator"]
        return True

    def wait_ready(self, timeout: float = START_S) -> None:
        """Until every replica of every deployment is ready."""
        self.wait_for(lambda: all(r["state"] == "ready" for r in self.replicas()), "the models to load", timeout)

    def wait_for(self, condition: Callable[[], Any], what: str, timeout: float = 30.0) -> Any:
        """The first true value of `condition`; a gateway that cannot be asked yet counts as false."""
        end = time.monotonic() + timeout
        while True:
            with contextlib.suppress(ControlError, httpx.TransportError):
                if value := condition():
                    return value
            if self._process is not None and self._process.poll() is not None:
                raise GatewayFailed(f"the gateway ended with {self._process.returncode}:\n{self.log()[-4000:]}")
            if time.monotonic() > end:
                raise GatewayFailed(f"waited {timeout:g} s for {what}:\n{self.log()[-4000:]}")
            time.sleep(POLL_S)

    def wait(self, timeout: float = STOP_S) -> int:
        """The exit status, once it has ended for whatever reason."""
        assert self._process is not None
        return self._process.wait(timeout)

    def stop(self, timeout: float = STOP_S) -> int:
        """End it as an operator would (SIGTERM) and give its exit status. Fails if it or an engine stays."""
        assert self._process is not None
        self._note_family()
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise GatewayFailed(f"the gateway did not stop within {timeout:g} s:\n{self.log()[-4000:]}") from None
        finally:
            left = self._end_family(grace_s=5.0)
        assert not left, f"processes outlived the gateway: {left}"
        return status

    def kill(self) -> None:
        """SIGKILL the gateway, and wait until it and its engines are gone. May be called at any time."""
        if self._process is None:
            return
        self._note_family()
        self._process.kill()
        self._process.wait(STOP_S)
        self._end_family(grace_s=5.0)

    def processes(self) -> list[psutil.Process]:
        """The gateway and everything that it has started, engines and their helpers included."""
        try:
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _note_family(self) -> None:
        for process in self.processes():
            self._family[process.pid] = process

    def _end_family(self, grace_s: float) -> list[int]:
        """Kill what is left of the family after a grace; give the process ids that had to be killed."""
        members, self._family = list(self._family.values()), {}
        _, alive = psutil.wait_procs(members, timeout=grace_s)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=grace_s)
        return [process.pid for process in alive]

    # --- what it says of itself ---------------------------------------------------------------------

    @property
    def control(self) -> Control:
        return Control(self.data_dir / "run" / "control.sock", timeout_s=30.0)

    def status(self) -> dict[str, Any]:
        """The operator's status. Raises ControlError while nobody listens."""
        return self.control.call("GET", "/admin/v1/status")[0]

    def replicas(self, deployment: str | None = None) -> list[dict[str, Any]]:
        """Deployment, index, state, reason, pid, restarts, in_flight, status (of the engine) of each replica."""
        found: list[dict[str, Any]] = self.status()["replicas"]
        return [replica for replica in found if deployment in (None, replica["deployment"])]

    def rows(self, after: int | None = None) -> list[dict[str, Any]]:
        """The recorded exchanges, oldest first, at most 1000; `after` a sequence number."""
        return self.control.call("GET", "/admin/v1/requests", query={"after_seq": after, "limit": 1000})

    def log(self) -> str:
        """What it wrote to stderr so far: its process log."""
        return self.stderr_path.read_text(encoding="utf-8", errors="replace")

    def hunt(self) -> Hunt:
        """Every file that it has written, searched for credentials; the master key and the ledger's included."""
        kept = self.data_dir / "secrets"
        own = [path.read_text(encoding="ascii").strip() for path in sorted(kept.glob("*")) if path.is_file()]
        hunt = Hunt([*sorted(self.secrets), *own], forms=True)
        for path in (self.stdout_path, self.config, *sorted(self.folder.glob("*/*.log"))):
            if path.is_file():
                hunt.file(path)
        hunt.text(str(self.stderr_path), _GREETING.sub(rb"\1", self.stderr_path.read_bytes()))
        hunt.folder(self.data_dir, leave=kept)
        return hunt

    def hunt_answers(self) -> Hunt:
        """Whatever can be read at the operator's listener without naming a thing, the page of metrics included."""
        hunt = Hunt(sorted(self.secrets), forms=True)
        with httpx.Client(base_url=self.operator_url, headers=self.headers, timeout=60.0, trust_env=False) as http:
            paths = http.get("/admin/v1/openapi.json").raise_for_status().json()["paths"]
            assert "/metrics" in paths
            for path in [name for name, ways in paths.items() if "get" in ways and "{" not in name]:
                answer = http.get(path)
                hunt.text(path, answer.content)
                hunt.text(f"headers of {path}", repr(answer.headers.multi_items()))
        return hunt

    def access_log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout_path.read_bytes().splitlines() if line.startswith(b"{")]

    def engine_log(self, deployment: str, index: int = 0) -> str:
        path = self.data_dir / "logs" / f"{deployment}.{index}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    # --- clients ------------------------------------------------------------------------------------

    @property
    def base_url(self) -> str:
        """What goes into an OpenAI client."""
        return f"{self.url}/v1"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def http(self, **options: Any) -> httpx.Client:
        """A client for paths below the public address; close it. It may be made in any thread: the environment, which
        pytest changes between tests, is not asked for proxies."""
        options = {"timeout": 120.0, "headers": self.headers, "trust_env": False, **options}
        return httpx.Client(base_url=self.url, **options)

    def async_http(self, **options: Any) -> httpx.AsyncClient:
        options = {"timeout": 120.0, "headers": self.headers, "trust_env": False, **options}
        return httpx.AsyncClient(base_url=self.url, **options)

    def openai(self, **options: Any) -> OpenAI:
        """OpenAI's client, without retries unless asked for; close it."""
        from openai import OpenAI  # takes a second, and few tests need it

        return OpenAI(**{"base_url": self.base_url, "api_key": self.key, "max_retries": 0, **options})

    def async_openai(self, **options: Any) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        return AsyncOpenAI(**{"base_url": self.base_url, "api_key": self.key, "max_retries": 0, **options})


@contextlib.contextmanager
def open_gateway(
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    store: Path | None = None,
    env: Mapping[str, str] | None = None,
    ready: bool = True,
) -> Iterator[Gateway]:
    """A gateway that ends with the block, however the block ends. Raises SecretFound when it has left a credential."""
    gateway = Gateway(folder, settings, store=store, env=env)
    try:
        yield gateway.start(ready=ready)
    finally:
        gateway.kill()
        if gateway.stderr_path.exists():
            gateway.hunt().check()


class UpstreamThread:
    """The fake upstream on a loop of its own, for tests that are not on one. `call` runs code on that loop."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake-upstream", daemon=True)
        self.fake: FakeUpstream

    def __enter__(self) -> UpstreamThread:
        self._thread.start()

        async def begin() -> FakeUpstream:
            return await FakeUpstream().__aenter__()

        self.fake = asyncio.run_coroutine_threadsafe(begin(), self._loop).result(30)
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _end(self) -> None:
        await self.fake.__aexit__(None, None, None)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    @property
    def url(self) -> str:
        return self.fake.url

    def call(self, function: Callable[[], Any]) -> Any:
        """The result of `function`, run on the upstream's loop."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    def begin(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> concurrent.futures.Future[Any]:
        """Start a coroutine on that loop, for a caller that may wait for it in any way it likes."""
        return asyncio.run_coroutine_threadsafe(work(), self._loop)


def fake_routes(upstream: UpstreamThread, *behaviours: str) -> dict[str, Any]:
    """Settings with the two bundled models, and one route `fake-BEHAVIOUR` to the fake upstream for each behaviour.

    The route `second-name` leads to the chat model too; `refused` leads to an address where nobody listens.
    """
    # Port 1 (tcpmux) needs a privilege that nobody uses for it; a connection there is refused at once.
    nobody = {"name": "nobody", "kind": "openai", "zone": "on_box", "base_url": "http://127.0.0.1:1/v1"}
    key = {"env": "FAKE_UPSTREAM_KEY"}
    fake = {"name": "fake", "kind": "openai", "zone": "on_box", "base_url": upstream.url, "api_key": key}
    return {
        "deployments": [{"name": name, "model": name, "engine": "llamacpp"} for name in MODELS],
        "providers": [fake, nobody],
        "routes": [
            {"model": CHAT, "aliases": ["gpt-4o-mini"], "targets": [{"deployment": CHAT}]},
            {"model": "second-name", "targets": [{"deployment": CHAT}]},
            {"model": EMBEDDER, "targets": [{"deployment": EMBEDDER}]},
            *(
                {"model": f"fake-{name}", "retries": 0, "targets": [{"provider": "fake", "model": name}]}
                for name in behaviours
            ),
            {"model": "refused", "retries": 0, "targets": [{"provider": "nobody", "model": "any"}]},
        ],
    }
