"""The groundedness model to a folder that can be shipped, calibrated and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from appliance.guards.judge import GROUNDEDNESS
from appliance.guards.manifest import Detector, Manifest, Reading, read_manifest, write_manifest
from appliance.guards.metrics import auc, confusion
from appliance.guards.model import GuardModel
from appliance.guards.names import GROUNDED
from appliance.guards.verdicts import logit
from guard_models.pipeline import calibrate, export
from guard_models.pipeline.evaluate_grounded import scored
from guard_models.pipeline.pack import arrays_of, training_sets, written_files
from guard_models.pipeline.statements import WINDOW, Statement
from guard_models.pipeline.steps import Steps

LABEL = "unsupported"


def pack(
    state: Mapping[str, Any],
    tokenizer: Path,
    folder: Path,
    *,
    version: str,
    counts: Mapping[str, int],
    steps: Mapping[str, Steps] | None,
) -> None:
    """Write `folder` without calibration; `counts` are the rows of each set."""
    files = written_files(folder, export.pair_graph(arrays_of(state), steps), tokenizer)
    manifest = Manifest(
        name=GROUNDED,
        version=version,
        title="Outpost's groundedness model (experimental)",
        description="Tells whether an answer says what the given documents do not. One MiniLM encoder, 8-bit.",
        licence="Apache-2.0",
        base="all-MiniLM-L6-v2 (Apache-2.0)",
        experimental=True,
        reading=Reading(window=WINDOW, overlap=64, shapes=False, segments=True, shared=True),
        files=files,
        detectors={GROUNDEDNESS: Detector(output=LABEL, kind="pair", labels=[LABEL])},
        training=training_sets(counts),
    )
    write_manifest(folder, manifest)


def calibrated(folder: Path, rows: Sequence[Statement], report: Callable[[str], None]) -> None:
    """Give the model its scale and its threshold: that of the best balanced accuracy, since here no side is rare."""
    scores, labels = scored(GuardModel(folder, threads=2), rows)
    logits = np.array([logit(score) for score in scores])
    scale = calibrate.scaled(logits, labels.astype(float))
    chances = 1 / (1 + np.exp(-(scale.slope * logits + scale.offset)))
    steps = np.unique(chances)
    # Between two scores, so that no rounding changes what is told.
    between = np.append(steps[:1], (steps[:-1] + steps[1:]) / 2)
    best = max(between, key=lambda at: confusion(chances, labels, float(at)).balanced_accuracy)
    manifest = read_manifest(folder)
    detector = manifest.detectors[GROUNDEDNESS].model_copy(update={"scales": {LABEL: scale}, "threshold": float(best)})
    write_manifest(folder, manifest.model_copy(update={"detectors": {GROUNDEDNESS: detector}}))
    report(f"groundedness: {len(rows)} rows, threshold {best:.3f}, AUC {auc(chances, labels):.3f}")
