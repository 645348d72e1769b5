"""The training of the small model for groundedness: an encoder of its own that reads a document and an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from appliance.guards.features import Batch, PieceTokenizer, segments_of
from guard_models.pipeline import ranges
from guard_models.pipeline.fit import Learnt, Recipe, Report, fit, run_name
from guard_models.pipeline.network import Pair, Size, load_base
from guard_models.pipeline.quantised import as_shipped
from guard_models.pipeline.statements import WINDOW, Statement, epoch, short_pairs
from guard_models.pipeline.steps import Steps

Encoded = tuple[list[int], list[int], bool]


def encoded(tokenizer: PieceTokenizer, rows: Sequence[Statement]) -> Iterator[Encoded]:
    """(ids, segments, whether unsupported) of each pair; a long document is cut to where the answer's words are."""
    for row in rows:
        left, right = tokenizer.pieces(row.document).ids, tokenizer.pieces(row.answer).ids[: WINDOW // 2]
        room = WINDOW - len(right) - 1
        if len(left) > room:
            wanted = set(right)
            starts = [*range(0, len(left) - room, 16), len(left) - room]
            best = max(starts, key=lambda at: sum(one in wanted for one in left[at : at + room]))
            left = left[best : best + room]
        before, after = segments_of(left, right, shared=True)
        ids = [tokenizer.begin, *left, tokenizer.end, *right, tokenizer.end]
        yield ids, [0, *before, 0, *after, 1], not row.supported


def _batches(found: list[Encoded], tokens: int, random: Random) -> list[list[Encoded]]:
    order = sorted(found, key=lambda one: len(one[0]) * (1 + 0.1 * random.random()))
    groups: list[list[Encoded]] = [[]]
    for one in order:
        if groups[-1] and len(one[0]) * (len(groups[-1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(one)
    random.shuffle(groups)
    return groups


def _tensors(tokenizer: PieceTokenizer, group: Sequence[Encoded]) -> tuple[Batch, Tensor]:
    longest = max(len(ids) for ids, _, _ in group)
    ids = np.full((len(group), longest), tokenizer.pad, np.int64)
    segments, mask = np.zeros_like(ids), np.zeros_like(ids)
    for row, (one, parts, _) in enumerate(group):
        ids[row, : len(one)], segments[row, : len(one)], mask[row, : len(one)] = one, parts, 1
    return Batch(ids, mask, segments), torch.tensor([float(label) for _, _, label in group])


def train(
    found: Sequence[Statement],
    texts: Sequence[str],
    short: int,
    tokenizer: PieceTokenizer,
    base: Path,
    recipe: Recipe,
    folder: Path,
    report: Report,
) -> tuple[dict[str, Tensor], dict[str, Steps]]:
    """Train on `short` pairs made of `texts`, then on written pairs; (averaged weights, how their layers become
    8-bit). Checkpoints go to `folder`, from which a run that was interrupted goes on."""
    torch.manual_seed(recipe.seed)
    pair = Pair(Size(dropout=recipe.dropout))
    load_base(pair.encoder, base)
    random = Random(f"{recipe.seed}/short")
    plan = _batches(list(encoded(tokenizer, short_pairs(texts, short, random))), recipe.tokens, random)
    for number in range(round(recipe.epochs)):
        random = Random(f"{recipe.seed}/grounded/{number}")
        plan += _batches(list(encoded(tokenizer, epoch(found, random))), recipe.tokens, random)
    state = _through(pair, plan, tokenizer, recipe, folder, report)
    pair.load_state_dict(state)
    chosen = [one for group in plan for one in group][:: max(1, sum(map(len, plan)) // 300)]
    steps = ranges.steps(pair, [_tensors(tokenizer, [one])[0] for one in chosen], seed=recipe.seed)
    as_shipped(pair, steps)
    gentle = replace(recipe, rate=recipe.rate * 0.2, head_rate=recipe.head_rate * 0.2, average=0.99)
    end = plan[-max(1, round(recipe.settling * len(plan))) :]
    return _through(pair, end, tokenizer, gentle, folder / "settling", report), steps


def _through(
    pair: Pair,
    plan: Sequence[Sequence[Encoded]],
    tokenizer: PieceTokenizer,
    recipe: Recipe,
    folder: Path,
    report: Report,
) -> dict[str, Tensor]:
    def learnt(step: int) -> Learnt:
        inputs, goal = _tensors(tokenizer, plan[step])
        logits = pair(*(torch.from_numpy(part) for part in (inputs.ids, inputs.mask, inputs.shapes))).squeeze(-1)
        soft = goal * (1 - 2 * recipe.smoothing) + recipe.smoothing
        loss = F.binary_cross_entropy_with_logits(logits, soft)
        return Learnt(loss, {"groundedness": float(loss.detach())}, inputs.ids.size)

    arrays = (np.array([*ids, *segments, label], np.int32) for group in plan for ids, segments, label in group)
    return fit(pair, len(plan), learnt, run_name(recipe, {}, arrays), recipe, folder, report)
