"""What a guard model says of itself: `manifest.yaml` beside its weights, checked before anything is loaded.

A site may put a model of its own beside the one that comes with Outpost: the same manifest, no code.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from appliance.errors import GuardModelError

MAX_BYTES = 1 << 20

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$")]
DetectorName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?$")]
"""Without dots: `detector.label` is how scores are named."""
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,62}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,98}$")]
Line = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Rate = Literal["0.1%", "0.5%", "1%"]
Kind = Literal["text", "spans", "pair"]
"""What a detector judges: a text as a whole, spans within it, or an answer beside a document."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Table):
    sha256: Sha256
    size: Annotated[int, Field(ge=1, le=1 << 34)]


class Reading(_Table):
    """How a text becomes input."""

    window: Annotated[int, Field(ge=16, le=8190)]
    """Word pieces that are read at once, without special tokens."""
    overlap: Annotated[int, Field(ge=0, le=4096)]
    shapes: bool = True
    """Whether the input `shapes` says how each word is written; otherwise it is BERT's token type, all 0."""
    segments: bool = False
    """Whether it reads pairs of texts at once, told apart by the input `shapes` (0 and 1)."""
    apart: bool = False
    """Whether it reads the texts of a pair by themselves: the output is then a vector for each piece, and `nearness`
    compares them."""

    @model_validator(mode="after")
    def _fits(self) -> Reading:
        if self.overlap >= self.window:
            raise ValueError(f"overlap {self.overlap} has to be smaller than window {self.window}")
        return self


class LabelScale(_Table):
    """Logit to probability: 1 / (1 + exp(-(slope * logit + offset)))."""

    slope: Annotated[float, Field(gt=0, le=100)] = 1.0
    offset: Annotated[float, Field(ge=-100, le=100)] = 0.0
    thresholds: dict[Rate, Annotated[float, Field(ge=0, le=1)]] = {}
    """The probability from which this label is told, by the share of honest texts that are then told wrongly."""


class Detector(_Table):
    """One output of the model."""

    output: Label
    """The name of the graph's output: [texts, labels], or [texts, tokens, tags] for spans; [texts, tokens, width] for
    pairs whose texts are read apart."""
    kind: Kind
    labels: Annotated[list[Label], Field(min_length=1, max_length=512)]
    """The classes of the output, in its order; for spans `O`, `B-…` and `I-…`."""
    scales: dict[Label, LabelScale] = {}
    """By label; the scale of spans of type X is that of `B-X`."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """What `outpost guard eval` and policies without a threshold use, for the first label; for spans the least
    probability of a span."""
    readings: bool = False
    """Whether texts are also judged decoded and without tricks of writing."""

    @model_validator(mode="after")
    def _labels_fit(self) -> Detector:
        known = set(self.labels)
        if len(known) < len(self.labels):
            twice = next(label for label in self.labels if self.labels.count(label) > 1)
            raise ValueError(f"labels: {twice} is there twice; name every label once")
        if unknown := self.scales.keys() - known:
            raise ValueError(f"scales: {min(unknown)} is none of the labels")
        if self.kind == "spans":
            _paired(known)
        return self


def _paired(labels: set[str]) -> None:
    """Raises ValueError unless `labels` are `O` and, of every type X, both `B-X` and `I-X`."""
    if "O" not in labels:
        raise ValueError("labels: spans need the label O, for pieces that belong to none")
    for label in sorted(labels - {"O"}):
        sign, kind = label[:2], label[2:]
        if sign not in ("B-", "I-") or not kind:
            raise ValueError(f"labels: {label} is no label of spans; they are O, B-X and I-X")
        other = ("I-" if sign == "B-" else "B-") + kind
        if other not in labels:
            raise ValueError(f"labels: {label} without {other}; spans need both")


class Set(_Table):
    """One set that the model learned from."""

    name: Line
    licence: Line
    origin: Line
    rows: Annotated[int, Field(ge=0)]


class Manifest(_Table):
    name: Name
    version: Line
    title: Line
    description: Annotated[str, StringConstraints(max_length=4000)]
    licence: Line
    base: Line
    experimental: bool = False
    reading: Reading
    files: dict[FileName, File]
    detectors: Annotated[dict[DetectorName, Detector], Field(min_length=1)]
    training: list[Set]
    scores: dict[str, Annotated[float, Field(allow_inf_nan=False)] | str] = {}
    """Measured with these very files, by the training and by `make guard-eval ARGS=--record`."""
    sizes: dict[str, Annotated[int, Field(ge=0)]] = {}
    """How many texts or spans a score is of, by the score's name."""

    @model_validator(mode="after")
    def _complete(self) -> Manifest:
        for name in ("model.onnx", "tokenizer.json"):
            if name not in self.files:
                raise ValueError(f"files: {name} is missing")
        if self.reading.apart and self.reading.segments:
            raise ValueError("reading.apart: a pair is read at once (segments) or text by text, not both")
        for name, detector in self.detectors.items():
            if detector.kind == "pair" and not (self.reading.segments or self.reading.apart):
                raise ValueError(f"detectors.{name}: kind pair needs reading.segments or reading.apart: true")
        return self


class _Loader(yaml.SafeLoader):
    """YAML without aliases: forty lines of them can stand for more than a machine holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read in a manifest; write the value out")
        return super().compose_node(parent, index)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`; raises GuardModelError that names the field at fault."""
    path = folder / "manifest.yaml"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise GuardModelError(f"{path}: larger than {MAX_BYTES} bytes")
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise GuardModelError(f"{path}: no such file; a guard model is a folder with a manifest.yaml") from None
    except OSError as failure:
        raise GuardModelError(f"{path}: {failure.strerror or failure}") from failure
    except RecursionError:
        raise GuardModelError(f"{path}: nested too deeply for a manifest") from None
    except UnicodeDecodeError as failure:
        raise GuardModelError(f"{path}: not UTF-8 at byte {failure.start}") from failure
    except GuardModelError:
        raise
    except Exception as failure:
        # Besides its own errors the loader lets through what dates, numbers and tags raise: ValueError, KeyError,
        # IndexError, AttributeError, OverflowError.
        raise GuardModelError(f"{path}: not YAML that can be read: {failure}") from failure
    try:
        return Manifest.model_validate(raw)
    except ValidationError as failure:
        first = failure.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the manifest"
        raise GuardModelError(f"{path}: {where}: {first['msg']}") from failure


def verified(folder: Path, manifest: Manifest, name: str) -> bytes:
    """The bytes of a file of the model, once they are known to be those of the manifest; raises GuardModelError.

    What is loaded are the bytes that were hashed, not the file once more: it might have been exchanged in between.
    """
    path, wanted = folder / name, manifest.files[name]
    try:
        with path.open("rb") as file:
            data = file.read(wanted.size + 1)
    except OSError as failure:
        raise GuardModelError(f"{path}: {failure.strerror or failure}") from failure
    if len(data) != wanted.size:
        more = "more" if len(data) > wanted.size else f"{len(data)}"
        raise GuardModelError(f"{path}: has {more} bytes, its manifest says {wanted.size}; it is not loaded")
    found = hashlib.sha256(data).hexdigest()
    if found != wanted.sha256:
        raise GuardModelError(f"{path}: sha256 is {found}, its manifest says {wanted.sha256}; it is not loaded")
    return data


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `folder`'s manifest.yaml."""
    text = yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=118)
    (folder / "manifest.yaml").write_text(text, encoding="utf-8")
