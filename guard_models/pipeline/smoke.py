"""A thousand rows through the whole pipeline: data, training, interruption, packing, calibration, judging."""

from __future__ import annotations

import datetime
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import time_machine
import torch

from appliance.guards.features import PieceTokenizer
from appliance.guards.judge import Judge
from appliance.guards.model import GuardModel
from guard_models.pipeline import (
    dataset,
    evaluate,
    evaluate_grounded,
    pack,
    pack_grounded,
    statements,
    vocabulary,
    written,
)
from guard_models.pipeline.fit import Recipe
from guard_models.pipeline.training_run import trained

ROWS = 1000
ANOTHER_DAY = datetime.datetime(2031, 5, 17, tzinfo=datetime.UTC)


class SmokeFailed(AssertionError):
    """The pipeline does not do what it says."""


def must(true: bool, what: str) -> None:
    if not true:
        raise SmokeFailed(what)


def run(base: Path, public: Path, report: Callable[[str], None]) -> None:
    """Raises SmokeFailed, or whatever went wrong."""
    data = dataset.load(public, limit=60)
    recipe = Recipe(seed=7, epochs=1, tokens=1024)
    whole = dataset.epoch(data, 0, seed=7, scale=1.0)
    recipe = replace(recipe, scale=ROWS / len(whole))
    rows = dataset.epoch(data, 0, seed=7, scale=recipe.scale)
    with time_machine.travel(ANOTHER_DAY):
        again = dataset.epoch(dataset.load(public, limit=60), 0, seed=7, scale=recipe.scale)
    must([row.text for row in rows] == [row.text for row in again], "the same seed gave other rows on another day")
    must(0.8 * ROWS < len(rows) < 1.2 * ROWS, f"{len(rows)} rows instead of about {ROWS}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        fresh = vocabulary.write_tokenizer(base, folder, [row.text for row in rows])
        tokenizer = PieceTokenizer(folder / "tokenizer.json")
        one = trained([rows], tokenizer, base, recipe, folder / "one", report, fresh=fresh)
        # Interrupted in its middle and gone on with, a run has to come to what one comes to that was not.
        few = rows[: ROWS // 6]
        whole_run = trained([few], tokenizer, base, recipe, folder / "two", report, fresh=fresh)
        half = whole_run.batches // 2
        must(half > 0, "too few batches to interrupt")
        trained([few], tokenizer, base, recipe, folder / "three", report, fresh=fresh, stop_after=half)
        gone_on = trained([few], tokenizer, base, recipe, folder / "three", report, fresh=fresh)
        apart = max(float((whole_run.state[name] - gone_on.state[name]).abs().max()) for name in one.state)
        must(apart < 1e-4, f"an interrupted run ended {apart} away from one that was not")
        must(all(bool(torch.isfinite(value).all()) for value in one.state.values()), "weights that are no numbers")
        state = {name: value.numpy() for name, value in one.state.items()}
        counts = Counter(row.set for row in rows)
        for name, steps in (("eight", one.steps), ("float", None)):
            pack.pack(
                state, folder / "tokenizer.json", folder / name, name=name, version="0", counts=counts, steps=steps
            )
            pack.calibrated(folder / name, data.calibrate[:300], report)
        judges = {name: Judge(GuardModel(folder / name, threads=2), use_patterns=False) for name in ("eight", "float")}
        shares = pack.agreement(judges["eight"], judges["float"], data.calibrate[:200])
        report(f"8-bit and float agree on {shares}")
        # After so little training scores crowd round the thresholds; the shipped model is held to more.
        must(min(shares["injection"], shares["toxicity"]) >= 0.9, f"8-bit and float agree on {shares} of decisions")
        lines = evaluate.table(judges["eight"], {}, {"dev": data.calibrate[:50]}, report)
        must(bool(lines) and all(0 <= line.value <= 1 or np.isnan(line.value) for line in lines), "no table")
        _grounded(base, folder / "grounded", report)


def _grounded(base: Path, folder: Path, report: Callable[[str], None]) -> None:
    """A hundred pairs through the making of the groundedness model."""
    (path, *_) = written.written(written.HERE / "written", "grounded*.txt")
    rows = statements.statements(path)[:100]
    told = {}
    for name, eight_bit in (("eight", True), ("float", False)):
        pack_grounded.pack(rows, base, folder / name, version="0", seed=7, eight_bit=eight_bit)
        told[name], _ = evaluate_grounded.scored(GuardModel(folder / name, threads=2), rows)
    apart = float(np.abs(told["eight"] - told["float"]).mean())
    must(apart < 0.02, f"the groundedness of 8-bit and float is {apart} apart")
    pack_grounded.calibrated(folder / "eight", rows, report)
    lines = evaluate_grounded.table(GuardModel(folder / "eight", threads=2), {"some": rows})
    must(all(0 <= line.value <= 1 for line in lines), "no table of groundedness")
