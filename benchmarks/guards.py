"""What a verdict costs: all three detectors on one core, beside llama.cpp running the same encoder in 16 bits.

Processor time of one thread, texts of a given number of word pieces; each value is the median of many texts.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from appliance.guards.judge import Judge, shipped_models
from appliance.guards.model import GuardModel
from appliance.guards.names import SHIPPED
from benchmarks.installs import Installer
from benchmarks.load import Result
from benchmarks.processes import ROOT
from benchmarks.report import Plan, Table

OURS = "Outpost"
PEER = "llama.cpp, the same encoder"
ENCODER = "all-minilm-l6-v2"
SIZES = (16, 64, 128, 256)
TEXTS = 12
_SENTENCE = (
    "The harbour master wrote that boat number twelve, owned by Mr Keller of Graz, must leave before Friday noon. "
)


def texts(judge: Judge, size: int) -> list[str]:
    """Texts of about `size` word pieces, all different."""
    found = []
    for number in range(TEXTS):
        words = f"{number} {_SENTENCE * (1 + size // 15)}".split(" ")
        while len(judge.model.tokenizer.pieces(" ".join(words))) > size - 2:
            words.pop()
        found.append(" ".join(words))
    return found


def measure(plan: Plan, _installer: Installer, _scratch: Path, table: Table) -> None:
    """The `guards` benchmark."""
    table.reference = PEER
    judge = Judge(GuardModel(shipped_models() / SHIPPED, threads=1))
    table.describe(OURS, "injection, toxicity and personal data of a text, patterns and decoding included, one thread")
    table.describe(
        PEER, "an embedding of the text by llama-cpp-python, F16, one thread: a single pass of an encoder of this size"
    )
    subjects: list[tuple[str, Callable[[str], object]]] = [(OURS, judge.verdict)]
    if encoder := _encoder():
        subjects.append((PEER, encoder))
    else:
        table.skip(PEER, "its weights are not here; `make serve` fetches them")
    for _, call in subjects:
        call(_SENTENCE)
    plan.begin()
    for size in SIZES:
        mine = texts(judge, size)
        for _, (name, call) in plan.turns(subjects):
            spent = []
            for text in mine:
                began = time.process_time()
                call(text)
                spent.append(time.process_time() - began)
            table.add(f"{size} word pieces", "ms", name, 1000 * statistics.median(spent), Result(completed=len(spent)))


def _encoder() -> Callable[[str], object] | None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.model_files", ENCODER], cwd=ROOT, capture_output=True, text=True, check=False
    )
    path = json.loads(done.stdout).get(ENCODER) if done.returncode == 0 else None
    if path is None:
        return None
    from llama_cpp import Llama

    model = Llama(path, embedding=True, n_ctx=512, n_batch=512, n_threads=1, n_threads_batch=1, verbose=False)
    return lambda text: model.embed(text)
