"""The groundedness model to a folder that can be shipped, calibrated and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from appliance.guards.judge import GROUNDEDNESS
from appliance.guards.manifest import Detector, Manifest, Reading, read_manifest, write_manifest
from appliance.guards.metrics import auc, threshold_at
from appliance.guards.model import GuardModel
from appliance.guards.names import GROUNDED
from appliance.guards.verdicts import logit
from guard_models.pipeline import calibrate, export
from guard_models.pipeline.evaluate_grounded import scored, with_made
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


TOLD_WRONGLY = 0.1
"""The share of supported answers of the calibration pairs that may be told."""


def calibrated(folder: Path, rows: Sequence[Statement], report: Callable[[str], None]) -> None:
    """Give the model its scale and its threshold, from written pairs and simple ones made of them."""
    rows = with_made(rows, "calibrate")
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
