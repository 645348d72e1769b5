"""`python -m benchmarks [NAMES] [--quick] [--json]`: run, print tables, write docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import engine, failover, gateway, guards
from benchmarks.installs import Installer, cache_folder, say
from benchmarks.processes import ROOT
from benchmarks.report import Plan, Table, machine, write_page

PAGE = ROOT / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Benchmark:
    name: str
    title: str
    measure: Callable[[Plan, Installer, Path, Table], None]
    quick_s: float
    full_s: float
    """Seconds of measuring after which nothing further is begun; installing and starting is not counted."""
    goals: dict[str, str] = field(default_factory=dict)


BENCHMARKS = (
    Benchmark(
        "gateway",
        "What the gateway costs",
        gateway.measure,
        quick_s=45,
        full_s=900,
        goals={
            "CPU per whole request": "≤ 350",
            "CPU per chunk, burst": "≤ 10",
            "CPU per chunk, paced (20 ms)": "≤ 35",
            "added time to first token at half load, p50": "≤ 2",
            "added time to first token at half load, p99": "≤ 10",
        },
    ),
    Benchmark(
        "streams",
        "1,000 streams at once",
        gateway.measure_many,
        quick_s=15,
        full_s=150,
        goals={"resident memory": "≤ 600", "health check while they run, p99 (loop lag)": "≤ 20"},
    ),
    Benchmark("failover", "What a failover costs", failover.measure, quick_s=30, full_s=120),
    Benchmark(
        "guards",
        "What a verdict costs",
        guards.measure,
        quick_s=20,
        full_s=60,
        goals={"128 word pieces": "≤ 10", "256 word pieces": "≤ 22"},
    ),
    Benchmark(
        "engine",
        "SmolLM2-135M-Instruct (Q4_1) over HTTP",
        engine.measure,
        quick_s=40,
        full_s=1200,
        goals={
            engine.START: "≤ 5",
            **{f"{n} chat{'s' if n > 1 else ''} of 64 tokens": "≥ 1.00 × the C++ server" for n in engine.CHATS},
        },
    ),
)


def main() -> int:
    names = [b.name for b in BENCHMARKS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run: {', '.join(names)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="one short round of what is installed; writes no page")
    parser.add_argument("--json", action="store_true", help="print the values as JSON instead of tables")
    parser.add_argument("--subject", action="append", default=[], help="only this one (repeatable); writes no page")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    # A thousand streams need two thousand descriptors in the gateway.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    load = os.getloadavg()[0]
    say(machine())
    installer = Installer(cache_folder(), may_install=not arguments.quick)
    tables: list[Table] = []
    for benchmark in BENCHMARKS:
        if arguments.names and benchmark.name not in arguments.names:
            continue
        say(f"{benchmark.title} …")
        table = Table(benchmark.name, benchmark.title, goals=benchmark.goals)
        limit_s = benchmark.quick_s if arguments.quick else benchmark.full_s
        plan = Plan(arguments.quick, limit_s, set(arguments.subject))
        with tempfile.TemporaryDirectory(prefix="outpost-bench-") as scratch:
            benchmark.measure(plan, installer, Path(scratch), table)
        if plan.cut:
            table.cut = f"{plan.cut} measurements were left out to stay within {limit_s:.0f} s."
        tables.append(table)
        if not arguments.json:
            print(table.text(), flush=True)
    if arguments.json:
        print(json.dumps({"machine": machine(), "benchmarks": {t.name: t.data() for t in tables}}, indent=2))
    if not arguments.quick and not arguments.subject:
        write_page(PAGE, tables, load)
        say(f"written to {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
