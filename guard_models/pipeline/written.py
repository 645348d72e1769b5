"""The sets that were written for this project, and the public ones for choosing: files to rows."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from guard_models.pipeline.compose import OtherHosts, changed
from guard_models.pipeline.rows import (
    TOXICITY,
    BadBlock,
    Row,
    Span,
    blocks,
    unmarked,
    without_brackets,
)
from guard_models.pipeline.sources import NO_TOXICITY

HERE = Path(__file__).parent.parent / "data"

_PROSE = {
    "PERSON": "PERSON",
    "ORG": "ORGANISATION",
    "LOC": "LOCATION",
    "ADDRESS": "ADDRESS",
    "DOB": "DATE_OF_BIRTH",
    "ID": "ID",
}
DOCUMENT_TYPES = {
    **_PROSE, "EMAIL": "EMAIL", "PHONE": "PHONE", "CARD": "CARD", "IBAN": "IBAN", "NATIONAL_ID": "ID_NUMBER", "IP": "IP", "MAC": "MAC", "URL": "URL",
    "MEDICAL_ID": "MEDICAL_ID", "ACCOUNT": "ACCOUNT", "PASSPORT": "ID_NUMBER", "LICENCE": "ID_NUMBER", "PLATE": "PLATE", "USERNAME": "USERNAME",
    "PASSWORD": "PASSWORD", "KEY": "PASSWORD",
}  # fmt: skip


def toxicity_of(label: str, where: str) -> dict[str, float]:
    """The eight labels from `none` or a comma list; raises BadBlock for a label that is none of them."""
    names = [] if label == "none" else [part.strip() for part in label.split(",")]
    if unknown := [name for name in names if name not in TOXICITY]:
        raise BadBlock(f"{where}: unknown label {unknown[0]!r}; known are none, {', '.join(TOXICITY)}")
    return {name: float(name in names) for name in TOXICITY}


def injection_rows(path: Path) -> list[Row]:
    rows = []
    for label, family, lang, raw in blocks(path):
        text, spans = without_brackets(raw)
        attack = label == "1"
        planted = spans if spans else None if attack else []
        row = Row(text, path.stem, family, lang, injection=float(attack), planted=planted)
        if not attack:
            row.toxicity = dict(NO_TOXICITY)
        rows.append(row)
    return rows


def toxicity_rows(path: Path) -> list[Row]:
    return [
        Row(text, path.stem, family, lang, injection=0.0, planted=[], toxicity=toxicity_of(label, path.name))
        for label, family, lang, text in blocks(path)
    ]


def prose_rows(path: Path) -> list[Row]:
    rows = []
    for genre, _, lang, raw in blocks(path):
        text, spans = unmarked(raw, DOCUMENT_TYPES)
        # "ID" says that it is personal, not of which kind.
        known: list[Span] = [span for span in spans if span[2] != "ID"]
        vague = [(begin, end) for begin, end, kind in spans if kind == "ID"]
        rows.append(Row(text, path.stem, genre, lang, injection=0.0, planted=[], entities=known, ignored=vague))
    return rows


def written(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


def held(folder: Path = HERE / "held") -> dict[str, list[Row]]:
    """The sets that were written to judge and never train, by name."""
    sets = {path.stem: injection_rows(path) for path in written(folder, "injection*.txt")}
    sets |= {path.stem: toxicity_rows(path) for path in written(folder, "toxicity*.txt")}
    sets |= {path.stem: prose_rows(path) for path in written(folder, "pii_*.txt")}
    # The hosts of documentation would tell who wrote a text, on this side as well.
    return {
        name: [changed(row, OtherHosts(Random(f"{name}/{number}"))) for number, row in enumerate(rows)]
        for name, rows in sets.items()
    }


def dev(folder: Path = HERE / "dev") -> dict[str, list[Row]]:
    """The public sets for choosing, by name."""
    sets: dict[str, list[Row]] = {}
    for path in sorted({*folder.glob("*/data.jsonl"), *folder.glob("*.jsonl")}):
        name = path.parent.name if path.stem == "data" else path.stem
        rows = []
        for line in path.read_text(encoding="utf-8").split("\n"):
            if not line:
                continue
            raw = json.loads(line)
            label = float(raw["label"])
            slice_of = str(raw.get("category") or raw.get("source") or "")
            if "tox" in name or "civil" in name or "edos" in name or "jigsaw" in name:
                rows.append(Row(raw["text"], name, slice_of, toxicity={"toxic": label}))
            else:
                rows.append(Row(raw["text"], name, slice_of, injection=label))
        sets[name] = rows
    return sets
