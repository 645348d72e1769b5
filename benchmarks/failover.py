"""What a failover costs in time: requests whose first target fails, beside the same requests without a failure.

Every request of a kind goes to a route, and a first target, of its own: a breaker that has opened would spare it what
is to be measured. What a request waits that finds the breaker open is measured too.
"""

from __future__ import annotations

import json
import secrets
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks.gateway import TOKENS_WHOLE, body
from benchmarks.gateways import outpost_command
from benchmarks.installs import Installer
from benchmarks.load import Job, Lane, Result
from benchmarks.processes import Child, free_port, run_load
from benchmarks.report import Plan, Table, percentile

ROUTES = 60
"""For each kind of failure, and requests of it in a round."""
NONE = "no failure"
OPEN = "breaker open"
KINDS: dict[str, str] = {"connection refused": "refused", "503": "mock-503", "stream cut at half": "mock-cut"}
"""What fails, and the model of the mock that does it."""
WARM_UP = 8


def measure(plan: Plan, _installer: Installer, scratch: Path, table: Table) -> None:
    """The `failover` benchmark: one request after another."""
    table.reference = NONE
    table.describe(NONE, "the first target answers (mock upstream, at once)")
    table.describe(OPEN, "the first target has failed five times in a row before, and is left alone")
    for name in KINDS:
        table.describe(name, "the first target fails like this, the second answers")
    rounds = 1 if plan.quick else 3
    for _ in range(rounds):
        with ExitStack() as stack:
            port, headers = _start(stack, scratch)
            run_load(_job(port, headers, ["plain"] * WARM_UP, stream=True))
            plan.begin()
            for name, model in {NONE: "plain", **KINDS, OPEN: "refused-0"}.items():
                routes = [model] * ROUTES if name in (NONE, OPEN) else [f"{model}-{i}" for i in range(1, ROUTES + 1)]
                if name == OPEN:
                    run_load(_job(port, headers, [model] * WARM_UP, stream=True))
                for stream in (True, False):
                    if not stream and model == "mock-cut":
                        continue
                    _add(table, name, run_load(_job(port, headers, _mine(routes, stream), stream=stream)), stream)


def _mine(routes: list[str], stream: bool) -> list[str]:
    """Half of the routes for streams and half for whole answers, so that none fails twice."""
    return routes[::2] if stream else routes[1::2]


def _add(table: Table, name: str, result: Result, stream: bool) -> None:
    what = "time to first token" if stream else "whole answer"
    times = result.ttft_s if stream else result.latency_s
    for share, label in ((0.5, "p50"), (0.99, "p99")):
        table.add(f"{what}, {label}", "ms", name, percentile(times, share) * 1e3, result)
    if stream:
        table.add("stream from start to end, p50", "ms", name, percentile(result.latency_s, 0.5) * 1e3, result)


def _job(port: int, headers: dict[str, str], routes: list[str], *, stream: bool) -> Job:
    lane = Lane([body(route, TOKENS_WHOLE, stream) for route in routes], requests=len(routes))
    return Job(
        port,
        [lane],
        headers=headers,
        stream=stream,
        duration_s=60.0,
        limit_s=90.0,
        expect_pieces=TOKENS_WHOLE,
        expect_usage=True,
    )


def _start(stack: ExitStack, scratch: Path) -> tuple[int, dict[str, str]]:
    """A mock and a gateway before it; gives the gateway's port and what to send it."""
    mock_port, port, dead = free_port(), free_port(), free_port()
    mock = stack.enter_context(
        Child([sys.executable, "-m", "benchmarks.mock_upstream", "--port", str(mock_port)], log=scratch / "mock.txt")
    )
    mock.wait_listening(mock_port, 20.0)
    key, home = "op-" + secrets.token_urlsafe(32), scratch / secrets.token_hex(4)
    home.mkdir()
    good = {"provider": "mock", "model": "mock-burst"}
    providers = [{"name": "mock", "base_url": f"http://127.0.0.1:{mock_port}/v1", "zone": "on_box"}]
    routes: list[dict[str, object]] = [{"model": "plain", "rescue": "resume", "targets": [good]}]
    for model in KINDS.values():
        for i in range(ROUTES + 1):
            name = f"{model}-{i}"
            where = dead if model == "refused" else mock_port
            providers.append({"name": name, "base_url": f"http://127.0.0.1:{where}/v1", "zone": "on_box"})
            targets = [{"provider": name, "model": model}, good]
            routes.append({"model": name, "rescue": "resume", "targets": targets})
    settings = {
        "server": {"listen": f"127.0.0.1:{port}"},
        "console": {"listen": f"127.0.0.1:{free_port()}"},
        "data_dir": str(home / "data"),
        "identity": {"keys": [{"name": "bench", "key": {"env": "OUTPOST_BENCH_KEY"}, "role": "member"}]},
        "deployments": [],
        "providers": providers,
        "routes": routes,
    }
    config = home / "outpost.yaml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    argv = [*outpost_command(), "serve", "-c", config]
    child = stack.enter_context(Child(argv, log=home / "log.txt", env={"OUTPOST_BENCH_KEY": key}))
    child.wait_listening(port, 60.0, "/healthz")
    return port, {"authorization": f"Bearer {key}"}
