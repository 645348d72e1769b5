"""`outpost guard`: the guard models that are here, what they say of a text, how good they are on a labelled file."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.commands.place import ConfigOption, DataDirOption, find_place, told
from appliance.commands.terminal import table, visible
from appliance.errors import BadRequest, GuardModelError
from appliance.guards.names import SHIPPED

if TYPE_CHECKING:
    from appliance.guards.judge import Judge
    from appliance.guards.manifest import Manifest
    from appliance.guards.metrics import SpanCounts
    from appliance.guards.model import GuardModel
    from appliance.guards.trial import Case, Slice, Trial, Worst

app = typer.Typer(no_args_is_help=True)

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Name of a guard model, as `outpost guard list` shows it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MOST_SPANS = 20
"""How many wrong spans of one case are printed; JSON has all."""

ThreadsOption = Annotated[int, typer.Option("--threads", min=1, max=64, help="Threads of the model.")]


@app.command(name="list")
def list_(as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Show the guard models that are here: those that come with Outpost and those in DATA_DIR/guard_models."""
    with told():
        found = _manifests(_folders(config, data_dir))
    if as_json:
        typer.echo(_json({"data": [_about(folder, manifest) for folder, manifest in found]}))
        return
    rows = [
        (
            folder.name,
            m.version,
            ", ".join(m.detectors),
            f"{m.files['model.onnx'].size / 2**20:.0f} MiB",
            m.licence,
            folder,
        )
        if not isinstance(m, GuardModelError)
        else (folder.name, "-", "-", "-", "-", folder)
        for folder, m in found
    ]
    for line in table(("NAME", "VERSION", "DETECTORS", "SIZE", "LICENCE", "FOLDER"), rows, right=("SIZE",)):
        typer.echo(line)
    for folder, m in found:
        if isinstance(m, GuardModelError):
            typer.echo(f"{visible(folder.name)} cannot be used: {visible(m.message)}")


def _manifests(folders: Sequence[Path]) -> list[tuple[Path, Manifest | GuardModelError]]:
    """All models that are here, with what they say of themselves or why that cannot be read."""
    from appliance.guards.judge import known_models
    from appliance.guards.manifest import read_manifest

    found: list[tuple[Path, Manifest | GuardModelError]] = []
    for folder in known_models(folders):
        try:
            found.append((folder, read_manifest(folder)))
        except GuardModelError as failure:
            found.append((folder, failure))
    return found


def _about(folder: Path, manifest: Manifest | GuardModelError) -> dict[str, Any]:
    """A model for JSON, under the name that `--model` takes."""
    known = {"error": manifest.message} if isinstance(manifest, GuardModelError) else manifest.model_dump(mode="json")
    return {"folder": str(folder), **known, "name": folder.name}


def _json(data: object) -> str:
    """JSON that any terminal takes: half of a surrogate pair, which is no UTF-8, is escaped."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


@app.command()
def check(
    text: Annotated[str, typer.Argument(help="The text; `-` reads it from the standard input.")],
    model: ModelOption = SHIPPED,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Say what the detectors find in a text."""
    with told():
        judge = _judge(model, config, data_dir, threads=1)
        if all(one.kind == "pair" for one in judge.model.manifest.detectors.values()):
            raise BadRequest(
                f"{model} judges pairs of documents and an answer; try it with `outpost guard eval`", param="--model"
            )
        content = _read(Path("-")) if text == "-" else text
        verdict = judge.verdict(content)
    found = [
        {
            "type": one.type,
            "start": one.start,
            "end": one.end,
            "score": one.score,
            "source": one.source,
            "text": content[one.start : one.end],
        }
        for one in verdict.entities
    ]
    if as_json:
        typer.echo(_json({"scores": verdict.scores, "readings": verdict.readings, "entities": found}))
        return
    rows = [
        (name, f"{score:.3f}", "yes" if score >= _threshold(judge, name) else "")
        for name, score in verdict.scores.items()
    ]
    for line in table(("LABEL", "SCORE", "TOLD"), rows, right=("SCORE",)):
        typer.echo(line)
    for name, reading in verdict.readings.items():
        if reading != "clean":
            typer.echo(f"{name}: highest in the text as decoded by {reading}")
    if found:
        typer.echo("")
        for line in table(
            ("TYPE", "TEXT", "SCORE", "BY"),
            [(f["type"], visible(f["text"]), f"{f['score']:.2f}", f["source"]) for f in found],
        ):
            typer.echo(line)


@app.command(name="eval")
def eval_(
    file: Annotated[
        Path, typer.Argument(help="Labelled cases, one JSON object a line; `-` for the standard input.", dir_okay=False)
    ],
    detector: Annotated[
        str, typer.Option("--detector", "-d", help="injection, toxicity, toxicity.LABEL, pii, groundedness …")
    ] = "injection",
    model: Annotated[
        str, typer.Option("--model", "-m", help="Name of a guard model; by default the one that has the detector.")
    ] = "",
    threshold: Annotated[
        float | None, typer.Option("--threshold", min=0, max=1, help="By default the model's own.")
    ] = None,
    text_field: Annotated[str, typer.Option("--text", help="The field with the text.")] = "text",
    label_field: Annotated[
        str, typer.Option("--label", help="The field with the label: 1 (an attack) or 0.")
    ] = "label",
    positive: Annotated[
        list[str] | None, typer.Option("--positive", help="A value of the label that is an attack; may be repeated.")
    ] = None,
    slices: Annotated[list[str] | None, typer.Option("--slice", help="A field to report by; may be repeated.")] = None,
    patterns: Annotated[
        bool, typer.Option(help="Personal data: patterns and model together, or the model alone.")
    ] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="Personal data: only spans with the very same ends count.")
    ] = False,
    worst: Annotated[
        int, typer.Option("--worst", min=0, max=10_000, help="How many of the worst cases to show of each kind.")
    ] = 5,
    threads: ThreadsOption = 1,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Try a detector on a labelled file of your own traffic."""
    with told():
        asked = Asked(
            detector, model, threshold, text_field, label_field, positive or [], slices or [], patterns, strict, worst
        )
        trial = _trial(_lines(file), asked, threads, _folders(config, data_dir))
    if as_json:
        typer.echo(_json(_plain(trial)))
        return
    for line in _report(trial):
        typer.echo(line)


def _lines(file: Path) -> list[str]:
    """The lines of JSON of a file. They end at line feeds alone: JSON may hold what else ends lines, as U+2028 does."""
    return _read(file).split("\n")


def _read(file: Path) -> str:
    """The text of a file, or of the standard input for `-`; raises BadRequest."""
    name = "the standard input" if str(file) == "-" else visible(file)
    try:
        if str(file) != "-":
            data = file.read_bytes()
        elif sys.stdin is None:
            raise BadRequest("the standard input is closed; give the text or a file instead", param="FILE")
        else:
            data = sys.stdin.buffer.read()
        return data.decode("utf-8-sig")
    except OSError as failure:
        raise BadRequest(f"{name}: {failure.strerror}", param="FILE") from failure
    except UnicodeDecodeError as failure:
        raise BadRequest(f"{name}: not UTF-8 at byte {failure.start}", param="FILE") from failure


def _folders(config: Path | None, data_dir: Path | None) -> list[Path]:
    return [find_place(config, data_dir).data_dir / "guard_models"]


def _judge(model: str, config: Path | None, data_dir: Path | None, *, threads: int) -> Judge:
    from appliance.guards.judge import Judge, model_folder
    from appliance.guards.model import GuardModel

    return Judge(GuardModel(model_folder(model, _folders(config, data_dir)), threads=threads))


def _threshold(judge: Judge, key: str) -> float:
    name, _, label = key.partition(".")
    detector = judge.model.manifest.detectors[name]
    if not label or label == detector.labels[0]:
        return detector.threshold
    scale = detector.scales.get(label)
    return scale.thresholds.get("0.5%", detector.threshold) if scale else detector.threshold


def _with_detector(name: str, wanted: str, folders: Sequence[Path], threads: int) -> GuardModel:
    """The model `wanted`, or else the shipped one or the first by name that has the detector `name`."""
    from appliance.guards.judge import model_folder
    from appliance.guards.manifest import read_manifest
    from appliance.guards.model import GuardModel

    found: list[tuple[Path, Manifest | GuardModelError]]
    if wanted:
        place = model_folder(wanted, folders)
        found = [(place, read_manifest(place))]
    else:
        found = sorted(_manifests(folders), key=lambda pair: (pair[0].name != SHIPPED, pair[0].name))
    known: set[str] = set()
    for place, manifest in found:
        if isinstance(manifest, GuardModelError):
            typer.echo(f"outpost: a guard model is passed over: {visible(manifest.message)}", err=True)
        elif name in manifest.detectors:
            return GuardModel(place, threads=threads)
        else:
            known |= manifest.detectors.keys()
    others = f"known are {', '.join(sorted(known))}" if known else "there is no guard model that can be used"
    raise BadRequest(f"no detector {name!r}; {others}", param="--detector")


@dataclass(frozen=True, slots=True)
class Asked:
    """What `outpost guard eval` was asked for."""

    detector: str
    model: str
    threshold: float | None
    text_field: str
    label_field: str
    positive: Sequence[str]
    slices: Sequence[str]
    patterns: bool
    strict: bool
    worst: int


def _trial(lines: Sequence[str], asked: Asked, threads: int, folders: Sequence[Path]) -> Trial:
    from appliance.guards.judge import Judge
    from appliance.guards.kinds import GROUPS
    from appliance.guards.trial import cases, tried, tried_spans

    name, _, label = asked.detector.partition(".")
    model = _with_detector(name, asked.model, folders, threads)
    about = model.manifest.detectors[name]
    if label and label not in about.labels:
        raise BadRequest(f"{name} has no label {label!r}; known are {', '.join(about.labels)}", param="--detector")
    found = cases(lines, kind=about.kind, text=asked.text_field, label=asked.label_field, positive=asked.positive)
    if about.kind == "spans":
        if all(case.spans is None for case in found):
            raise BadRequest('no line has spans; expected "spans": [[begin, end, type], …]', param="spans")
        least = about.threshold if asked.threshold is None else asked.threshold
        finder = Judge(model, use_patterns=asked.patterns, thresholds={name: least})
        trial = tried_spans(
            asked.detector,
            found,
            lambda case: finder.verdict(case.text, detectors=[name]).entities,
            least,
            groups=GROUPS,
            strict=asked.strict,
            slices=asked.slices,
            worst=asked.worst,
        )
    else:
        judge = Judge(model, use_patterns=False)
        at = asked.threshold if asked.threshold is not None else _threshold(judge, asked.detector)
        score = _scorer(judge, name, label, found)
        trial = tried(asked.detector, found, score, at, slices=asked.slices, worst=asked.worst)
    trial.model = f"{model.folder.name} {model.manifest.version}"
    return trial


def _scorer(judge: Judge, name: str, label: str, found: Sequence[Case]) -> Callable[[Case], float]:
    """How a case is scored; raises BadRequest where a pair lacks its documents."""
    from appliance.guards.judge import unsupported

    about = judge.model.manifest.detectors[name]
    if about.kind == "pair":
        for case in found:
            if "documents" not in case.fields:
                raise BadRequest(
                    f"line {case.line}: there are no documents; expected the text or the list of texts that the answer "
                    "goes by",
                    param="documents",
                )
        return lambda case: unsupported(judge.model, case.documents, case.text, name=name)
    key = name if len(about.labels) == 1 else f"{name}.{label or about.labels[0]}"
    return lambda case: judge.verdict(case.text, detectors=[name]).scores[key]


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def _report(trial: Trial) -> list[str]:
    lines = [
        f"model {visible(trial.model)}, detector {trial.detector}, threshold {trial.threshold:.4f}, {trial.texts} texts"
    ]
    if trial.spans is not None:
        counts = trial.spans
        kinds = sorted({*counts.found, *counts.missed, *counts.wrong})
        rows: list[tuple[object, ...]] = [
            (
                kind,
                counts.found[kind],
                counts.missed[kind],
                counts.wrong[kind],
                _share(counts.recall(kind)),
                _share(counts.precision(kind)),
                _share(counts.f1(kind)),
            )
            for kind in kinds
        ]
        rows.append(
            (
                "all",
                counts.found.total(),
                counts.missed.total(),
                counts.wrong.total(),
                _share(counts.recall()),
                _share(counts.precision()),
                _share(counts.f1()),
            )
        )
        heads = ("TYPE", "FOUND", "MISSED", "WRONG", "RECALL", "PRECISION", "F1")
        lines += ["", *table(heads, rows, right=heads[1:])]
    elif trial.confusion is not None:
        c = trial.confusion
        lines[0] += f", {trial.attacks} of them attacks"
        lines += [
            "",
            f"AUC {trial.auc:.4f}   calibration error {trial.calibration_error:.3f}",
            f"caught {c.caught} of {c.caught + c.missed} ({_share(c.recall)})   "
            f"told wrongly {c.wrong} of {c.wrong + c.passed} ({_share(c.false_positive_rate)})",
            f"precision {_share(c.precision)}   F1 {_share(c.f1)}   balanced accuracy {_share(c.balanced_accuracy)}",
        ]
        if trial.at_rates:
            rate_rows = [
                (_share(rate), f"{math.ceil(at * 1e4) / 1e4:.4f}", _share(caught))
                for rate, (at, caught) in trial.at_rates.items()
            ]
            lines += [
                "",
                *table(
                    ("TOLD WRONGLY", "THRESHOLD", "CAUGHT"), rate_rows, right=("TOLD WRONGLY", "THRESHOLD", "CAUGHT")
                ),
            ]
    if trial.slices:
        lines += ["", *_sliced(trial.slices)]
    for what, found in (("missed", trial.missed), ("told wrongly", trial.wrong)):
        if found:
            lines += ["", f"worst {what}:"]
        for one in found:
            lines += _shown(one, spans=trial.spans is not None)
    return lines


def _sliced(slices: Sequence[Slice]) -> list[str]:
    rows: list[tuple[object, ...]] = []
    heads: tuple[str, ...] = ()
    for one in slices:
        first = (visible(one.name), one.texts, one.attacks)
        if one.spans is not None:
            heads = ("SLICE", "TEXTS", "SPANS", "RECALL", "PRECISION", "F1")
            rows.append((*first, _share(one.spans.recall()), _share(one.spans.precision()), _share(one.spans.f1())))
        elif one.confusion is not None:
            heads = ("SLICE", "TEXTS", "ATTACKS", "CAUGHT", "TOLD WRONGLY", "AUC")
            c = one.confusion
            auc = "-" if math.isnan(one.auc) else f"{one.auc:.3f}"
            rows.append((*first, _share(c.recall), _share(c.false_positive_rate), auc))
    return table(heads, rows, right=heads[1:])


def _shown(one: Worst, *, spans: bool) -> list[str]:
    """A worst case: its line and score, or its spans, each with its text."""
    if not spans:
        return [f"  line {one.case.line}  {one.score:.3f}  {visible(one.case.text[:160])}"]
    shown = [
        f"    {visible(kind)} {start}-{end}  {visible(one.case.text[start : min(end, start + 160)])}"
        for start, end, kind in one.spans[:MOST_SPANS]
    ]
    if len(one.spans) > MOST_SPANS:
        shown.append(f"    and {len(one.spans) - MOST_SPANS} more; --json prints all")
    return [f"  line {one.case.line}  {visible(one.case.text[:160])}", *shown]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 5)


def _rates(counts: SpanCounts, kind: str | None = None) -> dict[str, float | None]:
    return {
        "recall": _number(counts.recall(kind)),
        "precision": _number(counts.precision(kind)),
        "f1": _number(counts.f1(kind)),
    }


def _plain(trial: Trial) -> dict[str, Any]:
    """A trial for JSON."""
    plain: dict[str, Any] = {
        "model": trial.model,
        "detector": trial.detector,
        "threshold": trial.threshold,
        "texts": trial.texts,
    }
    if trial.spans is not None:
        counts = trial.spans
        plain["types"] = {
            kind: {
                "found": counts.found[kind], "missed": counts.missed[kind], "wrong": counts.wrong[kind],
                **_rates(counts, kind),
            }
            for kind in sorted({*counts.found, *counts.missed, *counts.wrong})
        }  # fmt: skip
        plain |= _rates(counts)
    elif trial.confusion is not None:
        c = trial.confusion
        plain |= {
            "attacks": trial.attacks, "auc": _number(trial.auc), "calibration_error": _number(trial.calibration_error),
            "confusion": {"caught": c.caught, "missed": c.missed, "wrong": c.wrong, "passed": c.passed},
            "recall": _number(c.recall), "false_positive_rate": _number(c.false_positive_rate),
            "precision": _number(c.precision), "f1": _number(c.f1),
            "balanced_accuracy": _number(c.balanced_accuracy),
            "at_false_positive_rate": [
                {"rate": rate, "threshold": at, "recall": _number(caught)}
                for rate, (at, caught) in trial.at_rates.items()
            ],
        }  # fmt: skip
    plain["slices"] = [_plain_slice(one) for one in trial.slices]
    plain["worst_missed"] = [_plain_worst(one) for one in trial.missed]
    plain["worst_wrong"] = [_plain_worst(one) for one in trial.wrong]
    return plain


def _plain_slice(one: Slice) -> dict[str, Any]:
    plain: dict[str, Any] = {"slice": one.name, "texts": one.texts}
    if one.spans is not None:
        return {**plain, "spans": one.attacks, **_rates(one.spans)}
    plain |= {"attacks": one.attacks, "auc": _number(one.auc)}
    if one.confusion is not None:
        plain |= {
            "recall": _number(one.confusion.recall),
            "false_positive_rate": _number(one.confusion.false_positive_rate),
        }
    return plain


def _plain_worst(one: Worst) -> dict[str, Any]:
    text = one.case.text
    plain: dict[str, Any] = {"line": one.case.line, "score": round(one.score, 5), "text": text}
    if one.spans:
        plain["spans"] = [
            {"type": kind, "start": start, "end": end, "text": text[start:end]} for start, end, kind in one.spans
        ]
    return plain
