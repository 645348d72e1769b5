"""The groundedness model: the base encoder as it is, in 8 bits, calibrated and measured. Nothing of it is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from appliance.guards.features import PieceTokenizer, Window, batch_of
from appliance.guards.judge import GROUNDEDNESS
from appliance.guards.manifest import Detector, Manifest, Reading, read_manifest, write_manifest
from appliance.guards.metrics import auc, threshold_at
from appliance.guards.model import GuardModel
from appliance.guards.names import GROUNDED
from appliance.guards.verdicts import logit
from guard_models.pipeline import calibrate, export, ranges
from guard_models.pipeline.batches import WINDOW
from guard_models.pipeline.evaluate_grounded import scored
from guard_models.pipeline.network import Reader, Size, load_base
from guard_models.pipeline.pack import OVERLAP, arrays_of, written_files
from guard_models.pipeline.statements import Statement, with_made
from guard_models.pipeline.training_run import CHOOSING

LABEL = "unsupported"
CALIBRATING = 1500
"""Pairs that the scale and the threshold are taken from."""
TOLD_WRONGLY = 0.1
"""The share of supported answers of the calibration pairs that may be told."""


def pack(rows: Sequence[Statement], base: Path, folder: Path, *, version: str, seed: int, eight_bit: bool) -> None:
    """Write `folder` without calibration; `rows` have the texts that the 8-bit steps are chosen by."""
    reader = Reader(Size())
    load_base(reader.encoder, base / "model.safetensors")
    tokenizer = PieceTokenizer(base / "tokenizer.json")
    texts = sorted({text for row in rows for text in (row.document, row.answer)})
    chosen = Random(f"{seed}/grounded").sample(texts, min(CHOOSING, len(texts)))
    batches = []
    for text in chosen:
        pieces = tokenizer.pieces(text)
        batch = batch_of(tokenizer, [(pieces, Window(0, min(WINDOW, len(pieces))))])
        batch.shapes[:] = 0
        batches.append(batch)
    steps = ranges.steps(reader, batches, seed=seed) if eight_bit else None
    state = arrays_of({name: value.numpy() for name, value in reader.state_dict().items()})
    files = written_files(folder, export.reader_graph(state, steps), base / "tokenizer.json")
    manifest = Manifest(
        name=GROUNDED,
        version=version,
        title="Outpost's groundedness model (experimental)",
        description="Tells whether an answer speaks of what the given documents do not. One MiniLM encoder, 8-bit.",
        licence="Apache-2.0",
        base="all-MiniLM-L6-v2 (Apache-2.0)",
        experimental=True,
        reading=Reading(window=WINDOW, overlap=OVERLAP, shapes=False, apart=True),
        files=files,
        detectors={GROUNDEDNESS: Detector(output="vectors", kind="pair", labels=[LABEL])},
        training=[],
    )
    write_manifest(folder, manifest)


def calibrated(folder: Path, rows: Sequence[Statement], report: Callable[[str], None]) -> None:
    """Give the model its scale and its threshold, from written pairs and simple ones made of them."""
    random = Random("calibrate")
    made = with_made(rows, random)
    rows = random.sample(made, min(CALIBRATING, len(made)))
    _with(folder, {"scales": {}, "threshold": 0.5})
    scores, labels = scored(GuardModel(folder, threads=2), rows)
    scale = calibrate.scaled(np.array([logit(score) for score in scores]), labels.astype(float))
    _with(folder, {"scales": {LABEL: scale}})
    # As they are served: the last digit decides on which side of its threshold a score is.
    chances, _ = scored(GuardModel(folder, threads=2), rows)
    threshold = min(1.0, threshold_at(chances[~labels], TOLD_WRONGLY))
    _with(folder, {"threshold": threshold})
    report(f"groundedness: {len(rows)} rows, threshold {threshold:.3f}, AUC {auc(chances, labels):.3f}")


def _with(folder: Path, changes: Mapping[str, Any]) -> None:
    manifest = read_manifest(folder)
    detector = manifest.detectors[GROUNDEDNESS].model_copy(update=dict(changes))
    write_manifest(folder, manifest.model_copy(update={"detectors": {GROUNDEDNESS: detector}}))
