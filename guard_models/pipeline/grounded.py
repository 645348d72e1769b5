"""Groundedness: pairs of a document and an answer, written and made, and the training of the small model for them.

Made pairs start from answers that a document supports: another number, another name, a negation, another document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from appliance.guards.features import PieceTokenizer
from guard_models.pipeline.network import Pair, Size, load_base
from guard_models.pipeline.rows import BadBlock, blocks
from guard_models.pipeline.train import Average, Recipe, Report, optimiser, share_of_rate

WINDOW = 382
"""Word pieces of document and answer together, without special tokens."""


@dataclass(frozen=True, slots=True)
class Statement:
    """An answer to a document, and whether the document supports it."""

    document: str
    answer: str
    supported: bool
    kind: str
    lang: str = "en"


def statements(path: Path) -> list[Statement]:
    """The pairs of a file of text blocks `doc`, `q`, `1` and `0`; raises BadBlock for an answer before any document."""
    found: list[Statement] = []
    document = ""
    for label, family, lang, text in blocks(path):
        if label == "doc":
            document = text
        elif label in ("0", "1"):
            if not document:
                raise BadBlock(f"{path.name}: an answer before any document: {text[:60]!r}")
            found.append(Statement(document, text, label == "1", family, lang))
        elif label != "q":
            raise BadBlock(f"{path.name}: unknown label {label!r}; known are doc, q, 1, 0")
    return found


_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][\w'-]+(?: [A-Z][\w'-]+)*")
_VERB = re.compile(r"\b(is|are|was|were|has|have|had|will|can|must|may|should|does|did)\b(?! not)")
_NOT = re.compile(r"\b(not|never|no longer) ")


def altered(answer: str, document: str, random: Random) -> str | None:
    """`answer` with one thing wrong, or None if nothing in it can be turned round."""
    ways: list[Callable[[], str]] = []
    if numbers := list(_NUMBER.finditer(answer)):
        one = random.choice(numbers)

        def other_number() -> str:
            theirs = [n for n in _NUMBER.findall(document) if n != one[0]]
            digits = re.sub(r"\D", "", one[0])
            new = (
                random.choice(theirs)
                if theirs and random.random() < 0.6
                else str(int(digits[:9]) + random.choice((-3, -1, 1, 2, 5, 10)))
            )
            return answer[: one.start()] + new.lstrip("-") + answer[one.end() :]

        ways += [other_number, other_number]
    if names := list(_NAME.finditer(answer)):
        name = random.choice(names)
        if others := [n for n in _NAME.findall(document) if n not in answer and name[0] not in n]:
            ways.append(lambda: answer[: name.start()] + random.choice(others) + answer[name.end() :])
    if removed := _NOT.search(answer):
        ways.append(lambda: answer[: removed.start()] + answer[removed.end() :])
    elif verbs := list(_VERB.finditer(answer)):
        verb = random.choice(verbs)
        ways.append(lambda: answer[: verb.end()] + " not" + answer[verb.end() :])
    return random.choice(ways)() if ways else None


def epoch(found: Sequence[Statement], random: Random) -> list[Statement]:
    """The pairs of one epoch: written ones, altered ones, sentences of the document, answers to other documents."""
    rows = list(found)
    for one in found:
        if not one.supported:
            continue
        if (wrong := altered(one.answer, one.document, random)) and wrong != one.answer and random.random() < 0.6:
            rows.append(Statement(one.document, wrong, False, "altered", one.lang))
        if random.random() < 0.12:
            rows.append(Statement(random.choice(found).document, one.answer, False, "other_document", one.lang))
        if random.random() < 0.25:
            sentences = [s for s in re.split(r"(?<=[.!?])\s+", one.document) if 30 < len(s) < 300]
            if sentences:
                copied = random.choice(sentences)
                rows.append(Statement(one.document, copied, True, "copied", one.lang))
                if wrong := altered(copied, one.document, random):
                    rows.append(Statement(one.document, wrong, False, "altered", one.lang))
    random.shuffle(rows)
    # An answer to another document that happens to be the same one says nothing.
    return [
        row
        for row in rows
        if row.kind != "other_document" or all(row.document != s.document or row.answer != s.answer for s in found)
    ]


def encoded(tokenizer: PieceTokenizer, rows: Sequence[Statement]) -> Iterator[tuple[list[int], list[int], bool]]:
    """(ids, segments, supported) of each pair; a document that is too long is cut to where the answer's words are."""
    for row in rows:
        left, right = tokenizer.pieces(row.document).ids, tokenizer.pieces(row.answer).ids[: WINDOW // 2]
        room = WINDOW - len(right) - 1
        if len(left) > room:
            wanted = set(right)
            best = max(
                range(0, len(left) - room + 1, 16), key=lambda at: sum(one in wanted for one in left[at : at + room])
            )
            left = left[best : best + room]
        ids = [tokenizer.begin, *left, tokenizer.end, *right, tokenizer.end]
        yield ids, [0] * (len(left) + 2) + [1] * (len(right) + 1), row.supported


def _batches(
    found: list[tuple[list[int], list[int], bool]], tokens: int, random: Random
) -> list[list[tuple[list[int], list[int], bool]]]:
    order = sorted(found, key=lambda one: len(one[0]) * (1 + 0.1 * random.random()))
    groups: list[list[tuple[list[int], list[int], bool]]] = [[]]
    for one in order:
        if groups[-1] and len(one[0]) * (len(groups[-1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(one)
    random.shuffle(groups)
    return groups


def train(
    found: Sequence[Statement], tokenizer: PieceTokenizer, base: Path, recipe: Recipe, report: Report
) -> dict[str, Tensor]:
    """Train on written pairs and return the averaged weights."""
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    pair = Pair(Size(dropout=recipe.dropout))
    load_base(pair.encoder, base)
    plan = []
    for number in range(recipe.epochs):
        random = Random(f"{recipe.seed}/grounded/{number}")
        plan += _batches(list(encoded(tokenizer, epoch(found, random))), recipe.tokens, random)
    adam, average = optimiser(pair, recipe), Average(pair)
    pair.train()
    total = 0.0
    for step, group in enumerate(plan):
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        share = share_of_rate(step, len(plan), recipe.warmup)
        for parameters in adam.param_groups:
            parameters["lr"] = parameters["peak"] * share
        longest = max(len(ids) for ids, _, _ in group)
        ids = np.full((len(group), longest), tokenizer.pad, np.int64)
        segments, mask = np.zeros_like(ids), np.zeros_like(ids)
        for row, (one, parts, _) in enumerate(group):
            ids[row, : len(one)], segments[row, : len(one)], mask[row, : len(one)] = one, parts, 1
        goal = torch.tensor([float(label) for _, _, label in group])
        logits = pair(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(segments)).squeeze(-1)
        soft = goal * (1 - 2 * recipe.smoothing) + recipe.smoothing
        loss = F.binary_cross_entropy_with_logits(logits, soft)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(pair.parameters(), 1.0)
        adam.step()
        average.follow(pair, recipe.average)
        total += float(loss.detach())
        if (step + 1) % 50 == 0 or step + 1 == len(plan):
            report(f"groundedness: batch {step + 1}/{len(plan)} loss {total / ((step % 50) + 1):.4f}")
            total = 0.0
    return average.state
