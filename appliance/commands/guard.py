"""`outpost guard`: the guard models that are here, what they say of a text, how good they are on a labelled file."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.commands.place import ConfigOption, DataDirOption, find_place, told
from appliance.commands.terminal import table, visible
from appliance.errors import BadRequest

if TYPE_CHECKING:
    from appliance.guards.judge import Judge
    from appliance.guards.model import GuardModel
    from appliance.guards.trial import Trial

app = typer.Typer(no_args_is_help=True)

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Name of a guard model, as `outpost guard list` shows it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, max=64, help="Threads of the model.")]


@app.command(name="list")
def list_(as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Show the guard models that are here: those that come with Outpost and those in DATA_DIR/guard_models."""
    from appliance.guards.judge import known_models
    from appliance.guards.manifest import read_manifest

    with told():
        found = [(folder, read_manifest(folder)) for folder in known_models(_folders(config, data_dir))]
    if as_json:
        data = [{"folder": str(folder), **manifest.model_dump(mode="json")} for folder, manifest in found]
        typer.echo(json.dumps({"data": data}, indent=2, ensure_ascii=False))
        return
    rows = [
        (m.name, m.version, ", ".join(m.detectors), f"{m.files['model.onnx'].size / 2**20:.0f} MiB", m.licence, folder)
        for folder, m in found
    ]
    for line in table(("NAME", "VERSION", "DETECTORS", "SIZE", "LICENCE", "FOLDER"), rows, right=("SIZE",)):
        typer.echo(line)


@app.command()
def check(
    text: Annotated[str, typer.Argument(help="The text; `-` reads it from the standard input.")],
    model: ModelOption = "outpost-guard",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Say what the detectors find in a text."""
    with told():
        judge = _judge(model, config, data_dir, threads=1)
        content = sys.stdin.read() if text == "-" else text
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
        typer.echo(
            json.dumps(
                {"scores": verdict.scores, "reading": verdict.reading, "entities": found}, indent=2, ensure_ascii=False
            )
        )
        return
    rows = [
        (name, f"{score:.3f}", "yes" if score >= _threshold(judge, name) else "")
        for name, score in verdict.scores.items()
    ]
    for line in table(("LABEL", "SCORE", "TOLD"), rows, right=("SCORE",)):
        typer.echo(line)
    if verdict.reading != "clean":
        typer.echo(f"highest in the text as decoded by: {verdict.reading}")
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
        typer.echo(json.dumps(_plain(trial, worst), indent=2, ensure_ascii=False))
        return
    for line in _report(trial, worst):
        typer.echo(line)


def _lines(file: Path) -> list[str]:
    try:
        return (sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")).splitlines()
    except OSError as failure:
        raise BadRequest(f"{file}: {failure.strerror}", param="FILE") from failure
    except UnicodeDecodeError as failure:
        raise BadRequest(f"{file}: not UTF-8 at byte {failure.start}", param="FILE") from failure


def _folders(config: Path | None, data_dir: Path | None) -> list[Path]:
    return [find_place(config, data_dir).data_dir / "guard_models"]


def _judge(model: str, config: Path | None, data_dir: Path | None, *, threads: int, patterns: bool = True) -> Judge:
    from appliance.guards.judge import Judge, model_folder
    from appliance.guards.model import GuardModel

    return Judge(GuardModel(model_folder(model, _folders(config, data_dir)), threads=threads), use_patterns=patterns)


def _threshold(judge: Judge, key: str) -> float:
    name, _, label = key.partition(".")
    detector = judge.model.manifest.detectors[name]
    if not label or label == detector.labels[0]:
        return detector.threshold
    scale = detector.scales.get(label)
    return scale.thresholds.get("0.5%", detector.threshold) if scale else detector.threshold


def _with_detector(name: str, wanted: str, folders: Sequence[Path], threads: int) -> GuardModel:
    """The model `wanted`, or the first that has the detector `name`."""
    from appliance.guards.judge import known_models, model_folder
    from appliance.guards.manifest import read_manifest
    from appliance.guards.model import GuardModel

    places = [model_folder(wanted, folders)] if wanted else known_models(folders)
    for place in places:
        if name in read_manifest(place).detectors:
            return GuardModel(place, threads=threads)
    known = sorted({one for place in places for one in read_manifest(place).detectors})
    raise BadRequest(f"no detector {name!r}; known are {', '.join(known)}", param="--detector")


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
    from appliance.guards.judge import Judge, unsupported
    from appliance.guards.kinds import GROUPS
    from appliance.guards.trial import Case, cases, tried, tried_spans

    found = cases(lines, text=asked.text_field, label=asked.label_field, positive=asked.positive)
    name, _, label = asked.detector.partition(".")
    model = _with_detector(name, asked.model, folders, threads)
    about = model.manifest.detectors[name]
    if label and label not in about.labels:
        raise BadRequest(f"{name} has no label {label!r}; known are {', '.join(about.labels)}", param="--detector")
    judge = Judge(model, use_patterns=asked.patterns and about.kind == "spans")
    if about.kind == "spans":
        if all(case.spans is None for case in found):
            raise BadRequest('no line has spans; expected "spans": [[begin, end, type], …]', param="spans")
        least = about.threshold if asked.threshold is None else asked.threshold
        return tried_spans(
            asked.detector,
            found,
            lambda case: [e for e in judge.verdict(case.text).entities if e.score >= least],
            least,
            groups=GROUPS,
            strict=asked.strict,
        )
    if all(case.label is None for case in found):
        raise BadRequest(f"no line has the field {asked.label_field!r}", param=asked.label_field)
    if about.kind == "pair":

        def score(case: Case) -> float:
            return unsupported(model, case.documents, case.text)
    else:
        key = name if len(about.labels) == 1 else f"{name}.{label or about.labels[0]}"

        def score(case: Case) -> float:
            return judge.verdict(case.text).scores[key]

    at = asked.threshold if asked.threshold is not None else _threshold(judge, asked.detector)
    return tried(asked.detector, found, score, at, slices=asked.slices, worst=asked.worst)


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def _report(trial: Trial, worst: int) -> list[str]:
    lines = [f"detector {trial.detector}, threshold {trial.threshold:.4f}, {trial.texts} texts"]
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
            rate_rows = [(_share(rate), f"{at:.4f}", _share(caught)) for rate, (at, caught) in trial.at_rates.items()]
            lines += [
                "",
                *table(
                    ("TOLD WRONGLY", "THRESHOLD", "CAUGHT"), rate_rows, right=("TOLD WRONGLY", "THRESHOLD", "CAUGHT")
                ),
            ]
        if trial.slices:
            slice_rows: list[tuple[object, ...]] = [
                (
                    visible(s.name),
                    s.texts,
                    s.attacks,
                    _share(s.confusion.recall),
                    _share(s.confusion.false_positive_rate),
                    "-" if math.isnan(s.auc) else f"{s.auc:.3f}",
                )
                for s in trial.slices
            ]
            slice_heads = ("SLICE", "TEXTS", "ATTACKS", "CAUGHT", "TOLD WRONGLY", "AUC")
            lines += ["", *table(slice_heads, slice_rows, right=slice_heads[1:])]
    for what, found in (("missed", trial.missed), ("told wrongly", trial.wrong)):
        if found[:worst]:
            lines += ["", f"worst {what}:"]
            lines += [f"  line {case.line}  {score:.3f}  {visible(case.text[:160])}" for score, case in found[:worst]]
    return lines


def _plain(trial: Trial, worst: int) -> dict[str, Any]:
    def number(value: float) -> float | None:
        return None if math.isnan(value) else round(value, 5)

    plain: dict[str, Any] = {"detector": trial.detector, "threshold": trial.threshold, "texts": trial.texts}
    if trial.spans is not None:
        counts = trial.spans
        plain["types"] = {
            kind: {
                "found": counts.found[kind], "missed": counts.missed[kind], "wrong": counts.wrong[kind],
                "recall": number(counts.recall(kind)), "precision": number(counts.precision(kind)),
                "f1": number(counts.f1(kind)),
            }
            for kind in sorted({*counts.found, *counts.missed, *counts.wrong})
        }  # fmt: skip
        plain |= {"recall": number(counts.recall()), "precision": number(counts.precision()), "f1": number(counts.f1())}
    elif trial.confusion is not None:
        c = trial.confusion
        plain |= {
            "attacks": trial.attacks, "auc": number(trial.auc), "calibration_error": number(trial.calibration_error),
            "confusion": {"caught": c.caught, "missed": c.missed, "wrong": c.wrong, "passed": c.passed},
            "recall": number(c.recall), "false_positive_rate": number(c.false_positive_rate),
            "precision": number(c.precision), "f1": number(c.f1),
            "balanced_accuracy": number(c.balanced_accuracy),
            "at_false_positive_rate": [
                {"rate": rate, "threshold": number(at), "recall": number(caught)}
                for rate, (at, caught) in trial.at_rates.items()
            ],
            "slices": [
                {"slice": s.name, "texts": s.texts, "attacks": s.attacks, "recall": number(s.confusion.recall),
                 "false_positive_rate": number(s.confusion.false_positive_rate), "auc": number(s.auc)}
                for s in trial.slices
            ],
        }  # fmt: skip
    for what, found in (("missed", trial.missed), ("wrong", trial.wrong)):
        plain[f"worst_{what}"] = [
            {"line": case.line, "score": round(score, 5), "text": case.text} for score, case in found[:worst]
        ]
    return plain
