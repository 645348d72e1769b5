"""What the groundedness model is worth, measured as it ships. There is no goal; its card says what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from appliance.guards.judge import GROUNDEDNESS, unsupported
from appliance.guards.metrics import auc, confusion
from appliance.guards.model import GuardModel
from guard_models.pipeline.evaluate import Line
from guard_models.pipeline.statements import Statement


def scored(model: GuardModel, rows: Sequence[Statement]) -> tuple[np.ndarray, np.ndarray]:
    scores = np.array([unsupported(model, [row.document], row.answer) for row in rows])
    return scores, np.array([not row.supported for row in rows])


def table(model: GuardModel, held: Mapping[str, Sequence[Statement]]) -> list[Line]:
    """The lines of the sets that judge."""
    lines: list[Line] = []
    for name, rows in held.items():
        scores, labels = scored(model, rows)
        counts = confusion(scores, labels, model.manifest.detectors[GROUNDEDNESS].threshold)
        for what, value, of in (
            ("AUC", auc(scores, labels), len(rows)),
            ("balanced accuracy", counts.balanced_accuracy, len(rows)),
            ("caught", counts.recall, counts.caught + counts.missed),
            ("told wrongly", counts.false_positive_rate, counts.wrong + counts.passed),
        ):
            lines.append(Line("grounded", f"{name}: {what}", "", value, True, of))
        for kind in sorted({row.kind for row in rows}):
            mine = np.array([row.kind == kind for row in rows])
            told = scores[mine] >= model.manifest.detectors[GROUNDEDNESS].threshold
            lines.append(Line("grounded", f"{name}: told, {kind}", "", float(told.mean()), True, int(mine.sum())))
    return lines
