"""Verdicts on texts: one or more guard models and the patterns, together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from appliance.errors import GuardModelError
from appliance.guards import patterns
from appliance.guards.features import Pieces
from appliance.guards.manifest import Detector
from appliance.guards.model import Array, GuardModel, TextResult
from appliance.guards.nearness import strangeness
from appliance.guards.verdicts import Entity, Verdict, entities_of, merged, placed, probability, stitched
from appliance.guards.views import level, views

GROUNDEDNESS = "groundedness"
LONGEST_NAME = 60


def shipped_models() -> Path:
    """The guard models that come with Outpost: inside an installed package, or at the top of a source tree."""
    installed = Path(__file__).parent / "models"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "guard_models"


def model_folder(name: str, folders: Sequence[Path]) -> Path:
    """The folder of the model `name`: in the first of `folders` that has it, else shipped; raises GuardModelError."""
    if not name or "/" in name or "\\" in name or name.startswith(".") or len(name) > LONGEST_NAME:
        raise GuardModelError(f"{name!r} is no name of a guard model", param="model")
    places = [*folders, shipped_models()]
    for place in places:
        if (place / name / "manifest.yaml").is_file():
            return place / name
    looked = ", ".join(str(place) for place in places)
    raise GuardModelError(f"there is no guard model {name!r} in {looked}", param="model")


def known_models(folders: Sequence[Path]) -> list[Path]:
    """The folders of all guard models: those of `folders` come before shipped ones of the same name."""
    found: dict[str, Path] = {}
    for place in (*folders, shipped_models()):
        for path in sorted(place.glob("[!.]*/manifest.yaml")):
            found.setdefault(path.parent.name, path.parent)
    return [found[name] for name in sorted(found)]


def _key(pieces: Pieces) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(pieces.ids), tuple(pieces.shapes)


class Judge:
    """Judges texts with a model. Safe to use from several threads."""

    def __init__(
        self,
        model: GuardModel,
        *,
        use_patterns: bool = True,
        thresholds: Mapping[str, float] | None = None,
        replaced: Mapping[str, Detector] | None = None,
    ) -> None:
        """`thresholds`: the least probability of a span, by detector, in place of the manifest's; finds of patterns
        have none. `replaced`: detectors that stand in for those of the manifest."""
        self.model = model
        self._patterns = use_patterns
        detectors = {**model.manifest.detectors, **(replaced or {})}
        self._texts = {name: d for name, d in detectors.items() if d.kind == "text"}
        self._spans = {
            name: d.model_copy(update={"threshold": (thresholds or {}).get(name, d.threshold)})
            for name, d in detectors.items()
            if d.kind == "spans"
        }

    def verdict(self, text: str, *, detectors: Collection[str] | None = None) -> Verdict:
        """What is said of `text`: labels as `detector.label`, or just the detector's name where it has one label.

        `detectors`: the only ones to ask, by name; patterns belong to those of spans."""
        texts = {name: d for name, d in self._texts.items() if detectors is None or name in detectors}
        spans = {name: d for name, d in self._spans.items() if detectors is None or name in detectors}
        use_patterns = self._patterns and (detectors is None or bool(spans))
        verdict = Verdict()
        plain = level(text)
        result = self.model.run(plain.text)
        found: list[Entity] = []
        for detector in spans.values():
            logits = stitched(
                [(one.window, one.outputs[detector.output]) for one in result.windows], len(result.pieces)
            )
            found += (placed(one, plain) for one in entities_of(plain.text, result.pieces, logits, detector))
        verdict.entities = merged(patterns.found_in(plain), found) if use_patterns else merged(found)
        read = {name: detector for name, detector in texts.items() if detector.readings}
        best: dict[str, float] = {}
        for kind, one in self._read(text, result) if read else ():
            for name, detector in read.items():
                top = self._note(verdict, name, detector, one)
                if top > best.get(name, -1.0):
                    best[name], verdict.readings[name] = top, kind
        for name, detector in texts.items():
            if not detector.readings:
                self._note(verdict, name, detector, result)
        return verdict

    def _read(self, text: str, plain: TextResult) -> Iterator[tuple[str, TextResult]]:
        """The readings of `text` by kind; the model runs once for those that are the same word pieces."""
        known = {_key(plain.pieces): plain}
        for view in views(text):
            pieces = self.model.tokenizer.pieces(view.text)
            key = _key(pieces)
            if key not in known:
                known[key] = self.model.run_pieces(pieces)
            yield view.kind, known[key]

    @staticmethod
    def _note(verdict: Verdict, name: str, detector: Detector, result: TextResult) -> float:
        """Raise the scores of `detector` to those of `result`; the probability of its first label there."""
        first = 0.0
        for number, label in enumerate(detector.labels):
            key = name if len(detector.labels) == 1 else f"{name}.{label}"
            logit = max(float(one.outputs[detector.output][number]) for one in result.windows)
            score = probability(logit, detector, label)
            verdict.scores[key] = max(verdict.scores.get(key, 0.0), score)
            first = score if number == 0 else first
        return first


def unsupported(model: GuardModel, documents: Sequence[str], answer: str, *, name: str = GROUNDEDNESS) -> float:
    """The probability that `answer` says what none of `documents` does: of each part of the answer that of what
    supports it best, and of the parts the worst. 1 without documents. `name` is the detector of pairs to ask."""
    detector = model.manifest.detectors.get(name)
    if detector is None or detector.kind != "pair":
        raise GuardModelError(f"{model.folder}: has no detector {name!r} of kind pair")
    if not documents:
        return 1.0
    if model.manifest.reading.apart:
        read = [_vectors(model, document, detector.output) for document in documents]
        far = strangeness(_vectors(model, answer, detector.output), np.concatenate(read))
        return probability(far, detector, detector.labels[0])
    best: dict[int, float] = {}
    for document in documents:
        for part, results in enumerate(model.run_pair(document, answer)):
            logit = min(float(outputs[detector.output][0]) for outputs in results)
            best[part] = min(best.get(part, logit), logit)
    return max(probability(logit, detector, detector.labels[0]) for logit in best.values())


def _vectors(model: GuardModel, text: str, output: str) -> Array:
    """A vector for each piece of `text`: [pieces, width]."""
    result = model.run(text)
    return stitched([(one.window, one.outputs[output]) for one in result.windows], len(result.pieces))
