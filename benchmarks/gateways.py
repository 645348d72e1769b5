"""The gateways that are compared: one entry each, all relaying to the same mock upstream."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.installs import Installer
from benchmarks.mock_upstream import PACES_MS
from benchmarks.processes import ROOT, Child, Unavailable, free_port

OUTPOST = "Outpost"
RELAY = "bare aiohttp relay"
DIRECT = "mock directly"


@dataclass(frozen=True)
class Launch:
    """How to start one gateway on `port`; `health` answers 200 when it can serve."""

    argv: Sequence[str | Path]
    health: str
    env: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gateway:
    """One subject. `streams` = how many paced streams of 50 chunks/s it is asked to carry."""

    name: str
    does: str
    """What it does for a request, in words for the report."""
    prepare: Callable[[int, str, Path, Installer], Launch]
    """(port, upstream base URL without /v1, scratch folder, installer) → launch. Raises Unavailable."""
    streams: int = 200
    slow: bool = False
    """Costs milliseconds a request: left out of quick runs and of the run with 1,000 streams."""


@dataclass(frozen=True)
class Running:
    """A subject that answers; `pid` is 0 for the mock itself, whose CPU is not counted."""

    name: str
    port: int
    pid: int
    headers: Mapping[str, str]
    streams: int
    slow: bool
    health: str


def outpost_command() -> list[str | Path]:
    """The `outpost` command of this Python's environment. Raises Unavailable."""
    command = Path(sys.executable).with_name("outpost")
    if command.exists():
        return [command]
    if (ROOT / "appliance" / "cli.py").exists():
        return [sys.executable, "-m", "appliance.cli"]
    raise Unavailable("the outpost command is not installed beside this Python")


def _outpost(port: int, upstream: str, scratch: Path, installer: Installer) -> Launch:
    key = "op-" + secrets.token_urlsafe(32)
    routes = "\n".join(f"  - {{model: {m}, targets: [{{provider: mock, model: {m}}}]}}" for m in PACES_MS)
    config = scratch / "outpost.yaml"
    config.write_text(
        f"""server: {{listen: "127.0.0.1:{port}"}}
console: {{listen: "127.0.0.1:{free_port()}"}}
data_dir: {scratch / "data"}
identity: {{keys: [{{name: bench, key: {{env: OUTPOST_BENCH_KEY}}, role: member}}]}}
deployments: []
providers:
  - {{name: mock, kind: openai, base_url: "{upstream}/v1", zone: on_box}}
routes:
{routes}
limits:
  - {{scope: key, requests: [100_000/second, 1_000_000/minute]}}
  - {{scope: organization, tokens: 10_000_000_000/day, usd: 100_000/month, in_flight: 10_000}}
prices:
  - {{target: mock/{next(iter(PACES_MS))}, input: 0.15, output: 0.6}}
"""
    )
    return Launch(
        [*outpost_command(), "serve", "-c", config],
        "/healthz",
        env={"OUTPOST_BENCH_KEY": key},
        headers={"authorization": f"Bearer {key}"},
    )


def _relay(port: int, upstream: str, scratch: Path, installer: Installer) -> Launch:
    argv = [sys.executable, "-m", "benchmarks.peers.relay", "--port", str(port), "--upstream", upstream]
    return Launch(argv, "/health")


def _vllm_router(port: int, upstream: str, scratch: Path, installer: Installer) -> Launch:
    python = installer.environment("vllm-router", "vllm-router==0.1.17")
    argv: list[str | Path] = [
        python.with_name("vllm-router"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--worker-urls",
        upstream,
    ]
    argv += ["--policy", "round_robin", "--log-level", "error"]
    argv += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    return Launch(argv, "/health")


def _litellm(port: int, upstream: str, scratch: Path, installer: Installer) -> Launch:
    python = installer.environment("litellm", "litellm[proxy]==1.106.2")
    models = "\n".join(
        f"  - {{model_name: {m}, litellm_params: {{model: openai/{m}, api_base: '{upstream}/v1', api_key: none}}}}"
        for m in PACES_MS
    )
    key = "sk-" + secrets.token_urlsafe(24)
    config = scratch / "litellm.yaml"
    config.write_text(f"model_list:\n{models}\ngeneral_settings: {{master_key: {key}}}\n")
    argv: list[str | Path] = [
        python.with_name("litellm"),
        "--config",
        config,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    # Its own advice for production: no debug output; and no price list from the network.
    env = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    env |= {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    return Launch(argv, "/health/liveliness", env=env, headers={"authorization": f"Bearer {key}"})


GATEWAYS = (
    Gateway(OUTPOST, "key, limits and budgets, routing, one durable record in the ledger a request, metrics", _outpost),
    Gateway(RELAY, "nothing but relaying (Python, benchmarks/peers/relay.py)", _relay),
    Gateway("vllm-router", "load balancing only (Rust, PyPI 0.1.17)", _vllm_router),
    Gateway("LiteLLM", "key, routing, no database (Python, PyPI 1.106.2)", _litellm, streams=8, slow=True),
)


def start(gateway: Gateway, upstream: str, scratch: Path, installer: Installer, stack: ExitStack) -> Running:
    """Start a gateway and wait until it answers; the stack stops it. Raises Unavailable."""
    port = free_port()
    scratch.mkdir(parents=True, exist_ok=True)
    launch = gateway.prepare(port, upstream, scratch, installer)
    child = stack.enter_context(Child(launch.argv, log=scratch / "log.txt", env=launch.env))
    child.wait_listening(port, 120.0, launch.health)
    return Running(gateway.name, port, child.pid, launch.headers, gateway.streams, gateway.slow, launch.health)
