"""Verdicts on texts: one or more guard models and the patterns, together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from appliance.errors import GuardModelError
from appliance.guards import patterns
from appliance.guards.manifest import Detector
from appliance.guards.model import GuardModel, TextResult
from appliance.guards.verdicts import Entity, Verdict, entities_of, merged, probability, stitched
from appliance.guards.views import views

SHIPPED = "outpost-guard"
GROUNDEDNESS = "groundedness"


def shipped_models() -> Path:
    """The guard models that come with Outpost: inside an installed package, or at the top of a source tree."""
    installed = Path(__file__).parent / "models"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "guard_models"


def model_folder(name: str, folders: Sequence[Path]) -> Path:
    """The folder of the model `name`: in the first of `folders` that has it, else shipped; raises GuardModelError."""
    if not name or "/" in name or "\\" in name or name.startswith("."):
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
        for path in sorted(place.glob("*/manifest.yaml")):
            found.setdefault(path.parent.name, path.parent)
    return [found[name] for name in sorted(found)]


class Judge:
    """Judges texts with a model. Safe to use from several threads."""

    def __init__(self, model: GuardModel, *, use_patterns: bool = True) -> None:
        self.model = model
        self._patterns = use_patterns
        self._texts = {name: d for name, d in model.manifest.detectors.items() if d.kind == "text"}
        self._spans = {name: d for name, d in model.manifest.detectors.items() if d.kind == "spans"}

    def verdict(self, text: str) -> Verdict:
        """What is said of `text`: labels as `detector.label`, or just the detector's name where it has one label."""
        verdict = Verdict()
        plain = self.model.run(text)
        found: list[Entity] = []
        for detector in self._spans.values():
            logits = stitched([(one.window, one.outputs[detector.output]) for one in plain.windows], len(plain.pieces))
            found += entities_of(text, plain.pieces, logits, detector)
        verdict.entities = merged(patterns.find(text), found) if self._patterns else merged(found)
        best = -1.0
        for view in views(text) if any(detector.readings for detector in self._texts.values()) else []:
            result = plain if view.text == text else self.model.run(view.text)
            for name, detector in self._texts.items():
                if not detector.readings:
                    continue
                top = self._note(verdict, name, detector, result)
                if top > best:
                    best, verdict.reading = top, view.kind
        for name, detector in self._texts.items():
            if not detector.readings:
                self._note(verdict, name, detector, plain)
        return verdict

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


def unsupported(model: GuardModel, documents: Sequence[str], answer: str) -> float:
    """The probability that `answer` says what none of `documents` does; that of the window which supports it best.
    1 without documents."""
    detector = model.manifest.detectors.get(GROUNDEDNESS)
    if detector is None or detector.kind != "pair":
        raise GuardModelError(f"{model.folder}: has no detector {GROUNDEDNESS!r} of kind pair")
    logits = [float(found[0]) for document in documents for found in model.run_pair(document, answer)]
    return min((probability(logit, detector, detector.labels[0]) for logit in logits), default=1.0)
