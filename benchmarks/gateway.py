"""What a gateway costs: CPU per request and per chunk, and the time it adds, against a mock upstream."""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.gateways import DIRECT, GATEWAYS, RELAY, Running, start
from benchmarks.installs import Installer
from benchmarks.load import Job, Lane, Result
from benchmarks.processes import Child, Unavailable, cpu_seconds, free_port, http_status, rss_bytes, run_load
from benchmarks.report import Plan, Table, percentile

TOKENS_WHOLE = 40
TOKENS_STREAM = 100
MANY_STREAMS = 1000


def body(model: str, tokens: int, stream: bool) -> str:
    request: dict[str, object] = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Write a short text about the sea, the wind and the light on the water."},
        ],
        "max_tokens": tokens,
        "temperature": 0.7,
    }
    if stream:
        request |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(request)


def whole_job(subject: Running, duration_s: float, connections: int, rate: float = 0.0) -> Job:
    lanes = [Lane([body("mock-burst", TOKENS_WHOLE, False)])] * connections
    return Job(
        subject.port,
        lanes,
        headers=dict(subject.headers),
        duration_s=duration_s,
        limit_s=duration_s + 20,
        rate=rate,
        expect_pieces=TOKENS_WHOLE,
        expect_usage=True,
    )


def burst_job(subject: Running, duration_s: float, connections: int) -> Job:
    lanes = [Lane([body("mock-burst", TOKENS_STREAM, True)])] * connections
    return Job(
        subject.port,
        lanes,
        headers=dict(subject.headers),
        stream=True,
        duration_s=duration_s,
        limit_s=duration_s + 30,
        expect_pieces=TOKENS_STREAM,
        expect_usage=True,
    )


def paced_job(subject: Running, streams: int, rounds: int, interval_ms: int, tokens: int) -> Job:
    """`streams` connections, started evenly over the length of one stream, each reading `rounds` streams."""
    length_s = tokens * interval_ms / 1000
    text = body(f"mock-{interval_ms}ms", tokens, True)
    lanes = [Lane([text], start_s=length_s * i / streams, requests=rounds) for i in range(streams)]
    return Job(
        subject.port,
        lanes,
        headers=dict(subject.headers),
        stream=True,
        limit_s=length_s * (rounds + 1) * 2 + 20,
        expect_pieces=tokens,
        expect_usage=True,
    )


@contextmanager
def running(plan: Plan, scratch: Path, installer: Installer, table: Table) -> Iterator[list[Running]]:
    """The mock and every gateway that can be had; those that cannot are noted with the reason."""
    with ExitStack() as stack:
        port = free_port()
        mock = stack.enter_context(
            Child(
                [sys.executable, "-m", "benchmarks.mock_upstream", "--port", str(port)],
                log=scratch / "mock.txt",
            )
        )
        mock.wait_listening(port, 20.0)
        subjects: list[Running] = []
        for gateway in GATEWAYS:
            if plan.subjects and gateway.name not in plan.subjects:
                continue
            if gateway.slow and plan.quick and not plan.subjects:
                table.skip(gateway.name, "too slow for --quick")
                continue
            try:
                home = scratch / gateway.name.replace(" ", "-").lower()
                subjects.append(start(gateway, f"http://127.0.0.1:{port}", home, installer, stack))
                table.describe(gateway.name, gateway.does)
            except Unavailable as error:
                table.skip(gateway.name, str(error))
        subjects.append(Running(DIRECT, port, 0, {}, 200, False, "/health"))
        yield subjects


def measure(plan: Plan, installer: Installer, scratch: Path, table: Table) -> None:
    """The `gateway` benchmark. Subjects take turns within each measurement."""
    table.reference = RELAY
    with running(plan, scratch, installer, table) as subjects:
        real = [s for s in subjects if s.pid]
        for subject in subjects:
            run_load(whole_job(subject, 0.5 if plan.quick else 3.0, 4))
            run_load(burst_job(subject, 0.5, 2))
        plan.begin()
        capacity: dict[str, list[float]] = {s.name: [] for s in real}
        for _, s in plan.turns(real):
            result, cpu_s = counted(s, whole_job(s, plan.seconds(4.0), 16))
            capacity[s.name].append(result.completed / max(result.elapsed_s, 1e-9))
            table.add("CPU per whole request", "µs", s.name, cpu_s / max(result.completed, 1) * 1e6, result)
        for _, s in plan.turns(real):
            result, cpu_s = counted(s, burst_job(s, plan.seconds(3.0), 8))
            table.add("CPU per chunk, burst", "µs", s.name, cpu_s / max(chunks(result), 1) * 1e6, result)
        paced: dict[str, list[float]] = {s.name: [] for s in real}
        for _, s in plan.turns(real):
            result, cpu_s = counted(s, paced_job(s, s.streams, 1 if plan.quick else 3, 20, TOKENS_STREAM))
            paced[s.name].append(cpu_s / max(chunks(result), 1))
            name = "CPU per chunk, paced (20 ms)"
            table.add(name, "µs", s.name, paced[s.name][-1] * 1e6, result, note=f"{s.streams} streams")
        direct = subjects[-1]
        for _, s in plan.turns([s for s in real if capacity[s.name] and paced[s.name]]):
            added_latency(s, direct, statistics.median(capacity[s.name]) / 2, plan.seconds(5.0), table)
            # Half of one core's worth of streams at 50 chunks a second each.
            streams = int(0.5 / max(50 * statistics.median(paced[s.name]), 1e-9))
            added_ttft(s, direct, max(2, min(300, streams)), 1 if plan.quick else 3, table)


def chunks(result: Result) -> int:
    """Chunks sent to the client: content, and per stream the role, the finish and the usage."""
    return result.pieces + 3 * result.completed


def counted(subject: Running, job: Job) -> tuple[Result, float]:
    """Result and CPU seconds of the subject's process tree, what it still does afterwards included."""
    before = cpu_seconds(subject.pid)
    result = run_load(job)
    time.sleep(0.3)
    return result, cpu_seconds(subject.pid) - before


def added_latency(subject: Running, direct: Running, rate: float, duration_s: float, table: Table) -> None:
    through = run_load(whole_job(subject, duration_s, 64, rate))
    straight = run_load(whole_job(direct, duration_s, 64, rate))
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        added = percentile(through.latency_s, share) - percentile(straight.latency_s, share)
        label = f"added latency of a whole answer at half load, {name}"
        table.add(label, "ms", subject.name, added * 1e3, through, note=f"{rate:.0f}/s")


def added_ttft(subject: Running, direct: Running, streams: int, rounds: int, table: Table) -> None:
    through = run_load(paced_job(subject, streams, rounds, 20, 50))
    straight = run_load(paced_job(direct, streams, rounds, 20, 50))
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        added = percentile(through.ttft_s, share) - percentile(straight.ttft_s, share)
        label = f"added time to first token at half load, {name}"
        table.add(label, "ms", subject.name, added * 1e3, through, note=f"{streams} streams")


def measure_many(plan: Plan, installer: Installer, scratch: Path, table: Table) -> None:
    """The `streams` benchmark: 1,000 streams of 20 tokens/s at once."""
    table.reference = RELAY
    streams = 300 if plan.quick else MANY_STREAMS
    with running(plan, scratch, installer, table) as subjects:
        plan.begin()
        note = f"{streams} streams × 20/s"
        for _, s in plan.turns([s for s in subjects if not s.slow], 2):
            with lag_probe(s) as waits:
                result, cpu_s = counted(s, paced_job(s, streams, 2, 50, 40 if plan.quick else 100))
            if s.pid:
                per_chunk = cpu_s / max(chunks(result), 1)
                table.add("CPU per chunk, 50 ms", "µs", s.name, per_chunk * 1e6, result, note=note)
                table.add("resident memory", "MB", s.name, rss_bytes(s.pid) / 1e6, result, note=note)
            late = [max(0.0, gap - 0.05) for gap in result.gaps_s]
            table.add("chunk later than paced, p99", "ms", s.name, percentile(late, 0.99) * 1e3, result, note=note)
            label = "health check while they run, p99 (loop lag)"
            table.add(label, "ms", s.name, percentile(waits, 0.99) * 1e3, result, note=note)


@contextmanager
def lag_probe(subject: Running) -> Iterator[list[float]]:
    """Ask the subject's health path every 50 ms: how long a request waits for its turn on a busy loop, seconds."""
    waits: list[float] = []
    stop = threading.Event()

    def probe() -> None:
        while not stop.wait(0.05):
            started = time.perf_counter()
            if http_status(subject.port, subject.health) == 200:
                waits.append(time.perf_counter() - started)

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    try:
        yield waits
    finally:
        stop.set()
        thread.join()
