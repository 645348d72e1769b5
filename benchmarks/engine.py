"""How fast a real model answers over HTTP: tokens per second, reading of prompts, and who waits for whom."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

from benchmarks.engines import CPP_SERVER, ENGINES, EngineSubject, Shape, model_file, start
from benchmarks.gateways import Running
from benchmarks.installs import Installer
from benchmarks.load import Job, Lane, Result
from benchmarks.processes import Child, Unavailable, run_load
from benchmarks.report import Plan, Table, percentile

CHATS = (1, 4, 8)
ANSWER_TOKENS = 64
START = "start to first answer"
LONG_PROMPT_WORDS = 1200
_PIECE = '"content": ?"[^"]'
_TEXT = """
river stone light wind house garden market street train letter music window winter summer morning paper glass table
bread water mountain forest island harbour bridge school doctor teacher painter sailor farmer writer
"""
_WORDS = _TEXT.split()


def chat(words: random.Random, tokens: int) -> str:
    """A short chat that no other request shares beyond its first words; it asks for more than fits `tokens`."""
    first, second, third = words.sample(_WORDS, 3)
    return request(f"Tell a long story about a {first}, a {second} and a {third}, number {words.random():.6f}.", tokens)


def long_prompt(words: random.Random, tokens: int = 1) -> str:
    """About 1,250 tokens to read (new ones each time), and so many to answer."""
    text = " ".join(words.choice(_WORDS) for _ in range(LONG_PROMPT_WORDS))
    return request(f"{words.random():.6f} {text} Tell a long story with these words.", tokens)


def request(text: str, tokens: int) -> str:
    return json.dumps(
        {
            "model": "bench",
            "messages": [{"role": "system", "content": "You tell stories."}, {"role": "user", "content": text}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )


def job(subject: Running, lanes: list[Lane], limit_s: float, *, duration_s: float = 0.0, detail: bool = False) -> Job:
    return Job(
        subject.port,
        lanes,
        headers=dict(subject.headers),
        stream=True,
        duration_s=duration_s,
        limit_s=limit_s,
        piece=_PIECE,
        expect_usage=True,
        detail=detail,
    )


def measure(plan: Plan, installer: Installer, scratch: Path, table: Table) -> None:
    """The `engine` benchmark. Subjects take turns within each measurement."""
    table.reference = CPP_SERVER
    try:
        model = model_file(installer)
    except Unavailable as error:
        table.skip("all engines", str(error))
        return
    shape = Shape(model, threads=min(2, len(os.sched_getaffinity(0))))
    with ExitStack() as stack:
        subjects: list[Running] = []
        for engine in ENGINES:
            if plan.subjects and engine.name not in plan.subjects:
                continue
            try:
                home = scratch / engine.name.replace(" ", "-").lower()
                subjects.append(_first_answer(engine, shape, home, installer, stack, table))
                table.describe(engine.name, engine.does)
            except Unavailable as error:
                table.skip(engine.name, str(error))
        plan.begin()
        # All subjects get the same prompts in a round, and nobody gets a prompt twice.
        for turn, subject in plan.turns(subjects):
            throughput(plan, subject, f"idle {turn}", CHATS, 1 if plan.quick else 2, table)
        for turn, subject in plan.turns(subjects, 2):
            long_chat(plan, subject, f"long {turn}", table)
        for turn, subject in plan.turns(subjects):
            stall(plan, subject, f"stall {turn}", table)
        for turn, subject in plan.turns(subjects):
            with neighbour(scratch):
                chats = (4,) if plan.quick else CHATS
                throughput(plan, subject, f"contended {turn}", chats, 1, table, ", beside a busy neighbour")


def _first_answer(
    engine: EngineSubject, shape: Shape, home: Path, installer: Installer, stack: ExitStack, table: Table
) -> Running:
    """Start an engine and ask it once. What has to be installed or built first does not count."""
    if engine.name == CPP_SERVER:
        installer.llama_server()
    began = time.monotonic()
    subject = start(engine, shape, home, installer, stack)
    ready_s = time.monotonic() - began
    result = run_load(job(subject, [Lane([chat(random.Random(-1), 1)], requests=1)], 20.0))
    table.add(START, "s", subject.name, ready_s + percentile(result.latency_s, 0.5), result)
    return subject


def throughput(
    plan: Plan, subject: Running, seed: str, sizes: Sequence[int], repeats: int, table: Table, where: str = ""
) -> None:
    words = random.Random(seed)
    for chats in sizes:
        count = repeats * (2 if chats == 1 else 1)
        lanes = [Lane([chat(words, ANSWER_TOKENS) for _ in range(count)], requests=count) for _ in range(chats)]
        result = run_load(job(subject, lanes, plan.limit_s(60)))
        speed = result.completion_tokens / max(result.elapsed_s, 1e-9)
        name = f"{chats} chat{'s' if chats > 1 else ''} of {ANSWER_TOKENS} tokens{where}"
        table.add(name, "tokens/s", subject.name, speed, result, higher_is_better=True)


def long_chat(plan: Plan, subject: Running, seed: str, table: Table) -> None:
    """A chat over a long prompt: how fast it is read, and how fast the answer comes from its first token on."""
    text = long_prompt(random.Random(seed), ANSWER_TOKENS)
    result = run_load(job(subject, [Lane([text], requests=1)], plan.limit_s(60), detail=True))
    reading = writing = 0.0
    note = ""
    only = result.requests[0] if result.requests else None
    if only is not None and only.arrivals_s:
        first, last = only.arrivals_s[0], only.arrivals_s[-1]
        reading = only.prompt_tokens / (first - only.start_s)
        writing = (only.completion_tokens - 1) / max(last - first, 1e-9)
        note = f"{only.prompt_tokens} tokens"
    for name, speed in (("reading a long prompt", reading), ("1 chat after a long prompt, while it answers", writing)):
        table.add(name, "tokens/s", subject.name, speed, result, note=note, higher_is_better=True)


def stall(plan: Plan, subject: Running, seed: str, table: Table) -> None:
    """Four chats run when a long prompt arrives: how long do their tokens stand still, how long does it wait?"""
    words = random.Random(seed)
    chats = [Lane([chat(words, 256) for _ in range(8)]) for _ in range(4)]
    late = Lane([long_prompt(words)], start_s=1.0, requests=1)
    result = run_load(job(subject, [*chats, late], plan.limit_s(60), duration_s=3.0, detail=True))
    reading = next((r for r in result.requests if r.lane == len(chats)), None)
    if reading is None:
        empty = Result(errors=result.errors or {"the long prompt was not answered": 1})
        table.add(_STALLS[0], "ms", subject.name, 0.0, empty)
        return
    gaps = [
        after - before
        for r in result.requests
        if r.lane < len(chats)
        for before, after in pairwise(r.arrivals_s)
        if after > reading.start_s and before < reading.end_s
    ]
    table.add(_STALLS[0], "ms", subject.name, percentile(gaps, 0.99) * 1e3, result)
    table.add(_STALLS[1], "ms", subject.name, max(gaps, default=0.0) * 1e3, result)
    table.add(_STALLS[2], "ms", subject.name, (reading.end_s - reading.start_s) * 1e3, result)


_STALLS = (
    "time between others' tokens while a long prompt is read, p99",
    "time between others' tokens while a long prompt is read, longest",
    "time to first token of a long prompt beside 4 chats",
)


@contextmanager
def neighbour(scratch: Path) -> Iterator[None]:
    """One process that keeps one core busy; it ends by itself after two minutes."""
    program = "import time\nend = time.monotonic() + 120\nwhile time.monotonic() < end: pass"
    with Child([sys.executable, "-c", program], log=scratch / "neighbour.txt"):
        yield
