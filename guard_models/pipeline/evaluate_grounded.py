"""What the groundedness model is worth, measured as it ships. There is no goal; its card says what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray

from appliance.guards.judge import GROUNDEDNESS, unsupported
from appliance.guards.metrics import auc
from appliance.guards.model import GuardModel
from guard_models.pipeline.evaluate import Line
from guard_models.pipeline.statements import Statement, with_made

MADE = frozenset({"altered", "copied", "other_document"})


def scored(model: GuardModel, rows: Sequence[Statement]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(the probability that each answer is not supported, whether it is not)."""
    scores = np.array([unsupported(model, [row.document], row.answer) for row in rows])
    return scores, np.array([not row.supported for row in rows])


def table(model: GuardModel, held: Mapping[str, Sequence[Statement]]) -> list[Line]:
    """The lines of the sets that judge: people's own wording apart from what is made of it."""
    at = model.manifest.detectors[GROUNDEDNESS].threshold
    lines: list[Line] = []
    for name, written in held.items():
        # Drawn a few times: few of the simple pairs are made at once.
        drawn = [one for number in range(4) for one in with_made(written, Random(f"held/{number}"))]
        rows = list(dict.fromkeys(drawn))
        scores, labels = scored(model, rows)
        made = np.array([row.kind in MADE for row in rows])
        for what, chosen in (("as written", ~made), ("simple ones", made)):
            value = auc(scores[chosen], labels[chosen])
            lines.append(Line("grounded", f"{name}: AUC, {what}", "", value, True, int(chosen.sum())))
        for kind in sorted({row.kind for row in rows}):
            mine = np.array([row.kind == kind for row in rows])
            what = "caught" if labels[mine].all() else "told wrongly"
            told = float((scores[mine] >= at).mean())
            lines.append(Line("grounded", f"{name}: {what}, {kind}", "", told, True, int(mine.sum())))
    return lines
