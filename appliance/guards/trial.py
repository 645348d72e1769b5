"""A detector tried on a labelled file: how much it catches, how often it is wrong, where, and the worst cases.

One JSON object a line. Texts: `{"text": …, "label": 0 or 1}`; personal data: `{"text": …,
"spans": [[begin, end, type], …]}`; groundedness: `{"documents": [… or one text], "answer": …, "label": 0 or 1}`,
1 for an answer that they do not support.
Every other field can be a slice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from appliance.errors import BadRequest
from appliance.guards import metrics
from appliance.guards.manifest import Kind
from appliance.guards.metrics import Confusion, Span, SpanCounts
from appliance.guards.verdicts import Entity

MAX_LINE = 16 << 20
TEXT = "text"
"""The field that holds the text if none is named; of a pair it is `answer`."""
RATES = (0.001, 0.005, 0.01, 0.05)


@dataclass(frozen=True, slots=True)
class Case:
    """One labelled line."""

    line: int
    text: str
    label: bool | None
    spans: list[Span] | None
    documents: list[str]
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Slice:
    """The result on a part of the file."""

    name: str
    texts: int
    attacks: int
    """For personal data the spans."""
    confusion: Confusion | None = None
    auc: float = float("nan")
    spans: SpanCounts | None = None


@dataclass(frozen=True, slots=True)
class Worst:
    """A case that was judged wrongly."""

    score: float
    """The probability; for personal data the number of spans."""
    case: Case
    spans: Sequence[Span] = ()
    """Those that were missed, or made up."""


@dataclass(slots=True)
class Trial:
    """All results of one detector on one file."""

    detector: str
    threshold: float
    texts: int = 0
    attacks: int = 0
    model: str = ""
    """The model that was tried, by name and version."""
    auc: float = float("nan")
    calibration_error: float = float("nan")
    confusion: Confusion | None = None
    at_rates: dict[float, tuple[float, float]] = field(default_factory=dict)
    """Share of honest texts told wrongly → (threshold for it on this file, share of attacks caught)."""
    slices: list[Slice] = field(default_factory=list)
    missed: list[Worst] = field(default_factory=list)
    wrong: list[Worst] = field(default_factory=list)
    spans: SpanCounts | None = None


def cases(
    lines: Iterable[str],
    *,
    kind: Kind = "text",
    text: str = TEXT,
    label: str = "label",
    positive: Sequence[str] = (),
) -> list[Case]:
    """The cases of a file. Raises BadRequest that names the line and the field.

    `kind` of the detector: only the fields that it needs are looked at. `positive`: the values of the label field that
    are attacks, where they are not 0/1, true/false.
    """
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if len(line) > MAX_LINE:
            raise BadRequest(f"line {number}: longer than {MAX_LINE} characters", param=text)
        try:
            raw = json.loads(line)
        except RecursionError:
            raise BadRequest(f"line {number}: nested too deeply", param="file") from None
        except ValueError as failure:
            raise BadRequest(f"line {number}: not JSON: {failure}", param="file") from failure
        if not isinstance(raw, dict):
            raise BadRequest(f'line {number}: expected an object such as {{"{text}": …, "{label}": 1}}', param="file")
        field_name = "answer" if kind == "pair" and text == TEXT else text
        content = raw.get(field_name)
        if not isinstance(content, str):
            raise BadRequest(
                f"line {number}: the field {field_name!r} has to be a text; name another one with --text",
                param=field_name,
            )
        documents = raw.get("documents", []) if kind == "pair" else []
        documents = [documents] if isinstance(documents, str) else documents
        if not isinstance(documents, list) or not all(isinstance(one, str) for one in documents):
            raise BadRequest(f"line {number}: documents has to be a text or a list of texts", param="documents")
        spans = _spans(raw, number, len(content)) if kind == "spans" else None
        told = None if kind == "spans" else _label(raw, number, label, positive)
        found.append(Case(number, content, told, spans, documents, raw))
    if not found:
        raise BadRequest("the file has no cases", param="file")
    if kind != "spans":
        _all_occur(positive, {_spelled(case.fields[label]) for case in found}, label)
    return found


def _all_occur(positive: Sequence[str], values: Collection[str], label: str) -> None:
    """Raises BadRequest for a value that no line has: with it mistyped, every attack would count as honest."""
    if unknown := [one for one in positive if one not in values]:
        known = ", ".join(sorted(values)[:20])
        raise BadRequest(f"no line has {unknown[0]!r} as its {label}; there are {known}", param="--positive")


def _spelled(value: Any) -> str:
    """A value as --positive names it: as JSON writes it, whole numbers without a point."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value)


def _label(raw: Mapping[str, Any], number: int, name: str, positive: Sequence[str]) -> bool:
    if name not in raw:
        raise BadRequest(f"line {number}: there is no field {name!r}; name another one with --label", param=name)
    value = raw[name]
    if isinstance(value, list | dict):
        raise BadRequest(
            f"line {number}: {name} is a {'list' if isinstance(value, list) else 'table'}, expected one value",
            param=name,
        )
    if positive:
        return _spelled(value) in positive
    if isinstance(value, bool):
        return value
    if value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("0", "1", "true", "false"):
        return value.strip().lower() in ("1", "true")
    raise BadRequest(
        f"line {number}: {name} is {value!r}, expected 0 or 1; say with --positive which values are attacks", param=name
    )


def _spans(raw: Mapping[str, Any], number: int, length: int) -> list[Span] | None:
    given = raw.get("spans", raw.get("entities"))
    if given is None:
        return None
    problem = f"line {number}: spans has to be a list of [begin, end, type] within the text"
    if not isinstance(given, list):
        raise BadRequest(problem, param="spans")
    found = []
    for one in given:
        if isinstance(one, dict):
            one = [
                one.get("start", one.get("begin")),
                one.get("end"),
                one.get("type", one.get("label", one.get("entity_type"))),
            ]
        if not (
            isinstance(one, list) and len(one) == 3 and all(type(n) is int for n in one[:2]) and isinstance(one[2], str)
        ):
            raise BadRequest(problem, param="spans")
        begin, end, kind = one
        if not 0 <= begin < end <= length:
            raise BadRequest(f"{problem}: {begin} to {end} of {length} characters", param="spans")
        found.append((begin, end, kind))
    return found


def tried(
    detector: str,
    found: Sequence[Case],
    score: Callable[[Case], float],
    threshold: float,
    *,
    slices: Sequence[str] = (),
    worst: int = 5,
) -> Trial:
    """A text or pair detector on cases with labels."""
    known = [case for case in found if case.label is not None]
    scores = np.array([score(case) for case in known])
    labels = np.array([bool(case.label) for case in known])
    trial = Trial(detector, threshold, len(known), int(labels.sum()))
    trial.auc = metrics.auc(scores, labels)
    trial.calibration_error = metrics.calibration_error(scores, labels)
    trial.confusion = metrics.confusion(scores, labels, threshold)
    if labels.any() and not labels.all():
        for rate in RATES:
            at = metrics.threshold_at(scores[~labels], rate)
            trial.at_rates[rate] = (at, float((scores[labels] >= at).mean()))
    for name, rows in _sliced(known, slices):
        trial.slices.append(
            Slice(
                name,
                len(rows),
                int(labels[rows].sum()),
                metrics.confusion(scores[rows], labels[rows], threshold),
                metrics.auc(scores[rows], labels[rows]),
            )
        )
    order = np.argsort(scores, kind="stable")
    missed = [i for i in order if labels[i] and scores[i] < threshold]
    wrong = [i for i in order[::-1] if not labels[i] and scores[i] >= threshold]
    trial.missed = [Worst(float(scores[i]), known[i]) for i in missed[:worst]]
    trial.wrong = [Worst(float(scores[i]), known[i]) for i in wrong[:worst]]
    return trial


def _sliced(known: Sequence[Case], names: Sequence[str]) -> list[tuple[str, list[int]]]:
    """The parts of `known` that have one value of a field, as `field=value`, with the numbers of their cases."""
    found = []
    for name in names:
        rows: dict[str, list[int]] = {}
        for number, case in enumerate(known):
            rows.setdefault(_shown(case.fields.get(name, "")), []).append(number)
        found += [(f"{name}={value}", rows[value]) for value in sorted(rows)]
    return found


def _shown(value: object) -> str:
    try:
        return str(value)
    except RecursionError:
        # A line is read with fewer calls around it than are around this one.
        return "nested too deeply"


def tried_spans(
    detector: str,
    found: Sequence[Case],
    entities: Callable[[Case], Sequence[Entity]],
    threshold: float,
    *,
    groups: Mapping[str, str],
    strict: bool = False,
    slices: Sequence[str] = (),
    worst: int = 5,
) -> Trial:
    """A span detector on cases with spans; the worst cases are those with most of them missed, or made up."""
    known = [case for case in found if case.spans is not None]
    total = SpanCounts()
    trial = Trial(detector, threshold, len(known), sum(len(case.spans or ()) for case in known), spans=total)
    each: list[SpanCounts] = []
    for case in known:
        result = metrics.aligned(entities(case), case.spans or [], groups=groups, strict=strict)
        each.append(metrics.counted(result, groups))
        total.add(each[-1])
        if result.missed:
            trial.missed.append(Worst(float(len(result.missed)), case, result.missed))
        if result.wrong:
            made_up = [(one.start, one.end, one.type) for one in result.wrong]
            trial.wrong.append(Worst(float(len(made_up)), case, made_up))
    for name, rows in _sliced(known, slices):
        counts = SpanCounts()
        for row in rows:
            counts.add(each[row])
        trial.slices.append(Slice(name, len(rows), sum(len(known[row].spans or ()) for row in rows), spans=counts))
    trial.missed = sorted(trial.missed, key=lambda one: -one.score)[:worst]
    trial.wrong = sorted(trial.wrong, key=lambda one: -one.score)[:worst]
    return trial
