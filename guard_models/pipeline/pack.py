"""A trained network to a folder that can be shipped: graph, tokenizer, manifest, card."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from appliance.guards.judge import Judge
from appliance.guards.kinds import GROUPS
from appliance.guards.manifest import Detector, File, LabelScale, Manifest, Reading, Set, read_manifest, write_manifest
from appliance.guards.metrics import SpanCounts, compared, threshold_at
from appliance.guards.model import GuardModel
from appliance.guards.verdicts import Entity, Verdict, logit, probability
from guard_models.pipeline import batches, calibrate, export
from guard_models.pipeline.evaluate import judged
from guard_models.pipeline.rows import TAGS, TOXICITY, Row
from guard_models.pipeline.sources import SOURCES
from guard_models.pipeline.steps import Steps

OVERLAP = 64
AGREEMENT = "agreement: 8-bit and float: "
WRITTEN_LICENCE = "Apache-2.0"
WRITTEN_ORIGIN = "written for this project by its authors with a language model; guard_models/data/written"
MADE_ORIGIN = "made by the generators of guard_models/pipeline"


def arrays_of(state: Mapping[str, Any]) -> dict[str, export.Array]:
    return {key: np.asarray(value, dtype=np.float32) for key, value in state.items()}


def written_files(folder: Path, graph: bytes, tokenizer: Path) -> dict[str, File]:
    """Write the files of a model into `folder`; what a manifest says of them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"model.onnx": graph, "tokenizer.json": tokenizer.read_bytes()}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return {name: File(sha256=hashlib.sha256(data).hexdigest(), size=len(data)) for name, data in files.items()}


def training_sets(counts: Mapping[str, int]) -> list[Set]:
    """What trained the model, with licences; `counts` are the rows of each set in one epoch."""
    public = {source.name: source for source in SOURCES}
    found = []
    for name, rows in sorted(counts.items()):
        source = public.get(name)
        origin = source.origin if source else MADE_ORIGIN if name.startswith("made_") else WRITTEN_ORIGIN
        found.append(Set(name=name, licence=source.licence if source else WRITTEN_LICENCE, origin=origin, rows=rows))
    return found


def pack(
    state: Mapping[str, Any],
    tokenizer: Path,
    folder: Path,
    *,
    name: str,
    version: str,
    counts: Mapping[str, int],
    steps: Mapping[str, Steps] | None,
) -> Manifest:
    """Write `folder` without calibration: probabilities are those of the bare logits, thresholds 0.5."""
    files = written_files(folder, export.guard_graph(arrays_of(state), steps), tokenizer)
    manifest = Manifest(
        name=name,
        version=version,
        title="Outpost's guard: prompt injection, toxicity and personal data",
        description="One MiniLM encoder of 22.7 million parameters, three heads, 8-bit, for one processor core.",
        licence="Apache-2.0",
        base="all-MiniLM-L6-v2 (Apache-2.0)",
        reading=Reading(window=batches.WINDOW, overlap=OVERLAP),
        files=files,
        detectors={
            "injection": Detector(output="injection", kind="text", labels=["injection"], readings=True),
            "toxicity": Detector(output="toxicity", kind="text", labels=list(TOXICITY), readings=True),
            "pii": Detector(output="pii", kind="spans", labels=list(TAGS), threshold=0.4),
        },
        training=training_sets(counts),
    )
    write_manifest(folder, manifest)
    return manifest


# What share of the honest calibration rows of a kind may be told wrongly. They are two or three times as hard as what
# the goals speak of, since most were written to look like attacks. The strictest of these decides a detector's
# threshold. A kind is the beginning of the names of its sets; prompts in languages other than English are one of their
# own.
OTHER_LANGUAGES = "inj_lang"
ALLOWED: Mapping[str, Mapping[str, float]] = {
    "injection": {"inj_ordinary": 0.03, "inj_benign_triggers": 0.05, "inj_clean_mail": 0.04, OTHER_LANGUAGES: 0.08},
    "toxicity": {
        "tox_identity": 0.12,
        "tox_short": 0.12,
        "inj_ordinary": 0.01,
        "tox_comments": 0.05,
        "tox_net": 0.05,
        "tox_quiet": 0.15,
    },
}


def kind_of(row: Row) -> str:
    """What ALLOWED knows a row by."""
    return OTHER_LANGUAGES if row.set.startswith("inj_") and row.lang != "en" else row.set


def chosen_threshold(detector: str, kinds: Sequence[str], chances: Sequence[float], goals: Sequence[float]) -> float:
    """The lowest threshold at which no kind of honest rows is told wrongly more often than ALLOWED, and not one in
    twenty of all of them: with too few rows of a kind nothing would hold it up."""
    values, labels = np.array(chances), np.array(goals)
    least = threshold_at(values[labels < 0.5], 0.05)
    for kind, rate in ALLOWED[detector].items():
        honest = values[(labels < 0.5) & np.array([name.startswith(kind) for name in kinds])]
        if len(honest):
            least = max(least, threshold_at(honest, rate))
    return min(least, 1.0)


def calibrated(folder: Path, rows: Sequence[Row], report: Callable[[str], None]) -> Manifest:
    """Give the model of `folder` its scales and thresholds, from `rows`; writes its manifest."""
    model = GuardModel(folder, threads=2)
    judge = Judge(model, use_patterns=False)
    manifest = model.manifest
    asked = [row for row in rows if row.injection is not None or row.toxicity is not None]
    verdicts = judged(judge, asked, report)
    detectors: dict[str, Detector] = {}
    first_of: dict[str, tuple[list[str], list[float], list[float]]] = {}
    for name, detector in manifest.detectors.items():
        if detector.kind != "text":
            detectors[name] = span_calibrated(judge.model, name, rows)
            report(f"{name}: spans from {detectors[name].threshold:.2f} on, {detectors[name].scales}")
            continue
        scales: dict[str, LabelScale] = {}
        for label in detector.labels:
            key = name if len(detector.labels) == 1 else f"{name}.{label}"
            known = [
                (kind_of(row), logit(verdict.scores[key]), goal)
                for row, verdict in zip(asked, verdicts, strict=True)
                if (goal := row.injection if name == "injection" else (row.toxicity or {}).get(label)) is not None
            ]
            logits, goals = np.array([one[1] for one in known]), np.array([one[2] for one in known])
            scales[label] = calibrate.scaled(logits, goals)
            if label == detector.labels[0]:
                chances = [
                    probability(value, detector.model_copy(update={"scales": scales}), label) for value in logits
                ]
                first_of[name] = ([one[0] for one in known], chances, list(goals))
            told = scales[label].thresholds
            report(f"{key}: {len(known)} rows, {Counter(bool(g >= 0.5) for g in goals)}, thresholds {told}")
        threshold = chosen_threshold(name, *first_of[name])
        report(f"{name}: told from {threshold:.3f} on")
        detectors[name] = detector.model_copy(update={"scales": scales, "threshold": threshold})
    manifest = manifest.model_copy(update={"detectors": detectors})
    write_manifest(folder, manifest)
    return manifest


ENOUGH = 30
"""Finds of a type that its scale is worked out from; with fewer the scale of all types together is taken."""


def span_calibrated(model: GuardModel, name: str, rows: Sequence[Row]) -> Detector:
    """The detector `name` with a scale for each type of span, so that its probability is the share of such finds that
    are right, and with the threshold that gives the best F1 on these rows."""
    marked = [row for row in rows if row.entities is not None]
    bare = model.manifest.detectors[name].model_copy(update={"scales": {}, "threshold": 0.0})
    found = [verdict.entities for verdict in _finds(model, name, bare, marked)]
    told = [
        (one.type, logit(one.score), float(is_right(one, row)))
        for row, entities in zip(marked, found, strict=True)
        for one in entities
        if not any(begin < one.end and end > one.start for begin, end in row.ignored)
    ]
    scales: dict[str, LabelScale] = {}
    for kind in dict.fromkeys(label[2:] for label in bare.labels if label != "O"):
        mine = [one for one in told if one[0] == kind]
        mine = mine if len(mine) >= ENOUGH else told
        if mine:
            slope, offset = calibrate.platt(np.array([one[1] for one in mine]), np.array([one[2] for one in mine]))
            scales[f"B-{kind}"] = LabelScale(slope=slope, offset=offset)
    scaled = bare.model_copy(update={"scales": scales})
    found = [verdict.entities for verdict in _finds(model, name, scaled, marked)]
    return scaled.model_copy(update={"threshold": best_threshold(marked, found)})


def _finds(model: GuardModel, name: str, detector: Detector, rows: Sequence[Row]) -> list[Verdict]:
    judge = Judge(model, use_patterns=False, replaced={name: detector})
    return [judge.verdict(row.text, detectors=[name]) for row in rows]


def is_right(entity: Entity, row: Row) -> bool:
    """Whether there is personal data of this kind where `entity` is."""
    kind = GROUPS.get(entity.type, entity.type)
    return any(
        begin < entity.end and end > entity.start and GROUPS.get(what, what) == kind
        for begin, end, what in row.entities or []
    )


def best_threshold(rows: Sequence[Row], found: Sequence[Sequence[Entity]]) -> float:
    """How sure a span has to be for the best F1 on `rows`; 0.5 where nothing was found."""
    best, best_f1 = 0.5, 0.0
    for step in range(4, 17):
        threshold = step / 20
        counts = SpanCounts()
        for row, entities in zip(rows, found, strict=True):
            kept = [one for one in entities if one.score >= threshold]
            counts.add(compared(kept, row.entities or [], groups=GROUPS, ignored=row.ignored))
        if counts.f1() > best_f1:
            best, best_f1 = threshold, counts.f1()
    return best


def agreement(one: Judge, other: Judge, rows: Sequence[Row]) -> dict[str, float]:
    """The share of decisions on which two models agree: by detector, whether its first label is told of a text, and for
    personal data which spans are told (found by both, of all that either found)."""
    same: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for a, b in zip(judged(one, rows), judged(other, rows), strict=True):
        for name, detector in one.model.manifest.detectors.items():
            if detector.kind == "spans":
                mine, theirs = ({(e.start, e.end, e.type) for e in verdict.entities} for verdict in (a, b))
                same[name] += len(mine & theirs)
                total[name] += len(mine | theirs)
            else:
                key = name if len(detector.labels) == 1 else f"{name}.{detector.labels[0]}"
                same[name] += (a.scores[key] >= detector.threshold) == (b.scores[key] >= detector.threshold)
                total[name] += 1
    return {name: same[name] / total[name] if total[name] else 1.0 for name in one.model.manifest.detectors}


def with_agreement(
    folder: Path, state: Mapping[str, Any], rows: Sequence[Row], report: Callable[[str], None]
) -> Manifest:
    """Note in the manifest of `folder` how far it agrees about `rows` with the same weights in 32 bits."""
    model = GuardModel(folder, threads=2)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch)
        pack(state, folder / "tokenizer.json", whole, name=model.manifest.name, version="float", counts={}, steps=None)
        write_manifest(whole, read_manifest(whole).model_copy(update={"detectors": model.manifest.detectors}))
        other = GuardModel(whole, threads=2)
        shares = agreement(Judge(model, use_patterns=False), Judge(other, use_patterns=False), rows)
    for name, share in shares.items():
        report(f"8-bit and float agree on {100 * share:.2f} % of decisions of {name}")
    scores = {f"{AGREEMENT}{name}": round(share, 4) for name, share in shares.items()}
    manifest = model.manifest.model_copy(update={"scores": scores, "sizes": {}})
    write_manifest(folder, manifest)
    return manifest
