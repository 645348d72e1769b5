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
from guard_models.pipeline.network import Pair, Size, load_base
from guard_models.pipeline.quantised import as_shipped
from guard_models.pipeline.statements import WINDOW, Statement, epoch, short_pairs
from guard_models.pipeline.steps import Steps
from guard_models.pipeline.train import Average, Recipe, Report, optimiser, share_of_rate

Encoded = tuple[list[int], list[int], bool]


def encoded(tokenizer: PieceTokenizer, rows: Sequence[Statement]) -> Iterator[Encoded]:
    """(ids, segments, whether unsupported) of each pair; a long document is cut to where the answer's words are."""
    for row in rows:
        left, right = tokenizer.pieces(row.document).ids, tokenizer.pieces(row.answer).ids[: WINDOW // 2]
        room = WINDOW - len(right) - 1
        if len(left) > room:
            wanted = set(right)
            best = max(
                range(0, len(left) - room + 1, 16), key=lambda at: sum(one in wanted for one in left[at : at + room])
            )
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
    report: Report,
) -> tuple[dict[str, Tensor], dict[str, Steps]]:
    """Train on `short` pairs made of `texts`, then on written pairs; (averaged weights, how their layers become
    8-bit)."""
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    pair = Pair(Size(dropout=recipe.dropout))
    load_base(pair.encoder, base)
    random = Random(f"{recipe.seed}/short")
    plan = _batches(list(encoded(tokenizer, short_pairs(texts, short, random))), recipe.tokens, random)
    for number in range(round(recipe.epochs)):
        random = Random(f"{recipe.seed}/grounded/{number}")
        plan += _batches(list(encoded(tokenizer, epoch(found, random))), recipe.tokens, random)
    state = _through(pair, plan, tokenizer, recipe, report)
    pair.load_state_dict(state)
    chosen = [one for group in plan for one in group][:: max(1, sum(map(len, plan)) // 300)]
    steps = ranges.steps(pair, [_tensors(tokenizer, [one])[0] for one in chosen], seed=recipe.seed)
    as_shipped(pair, steps)
    gentle = replace(recipe, rate=recipe.rate * 0.2, head_rate=recipe.head_rate * 0.2, average=0.99)
    return _through(pair, plan[-max(1, round(recipe.settling * len(plan))) :], tokenizer, gentle, report), steps


def _through(
    pair: Pair, plan: Sequence[Sequence[Encoded]], tokenizer: PieceTokenizer, recipe: Recipe, report: Report
) -> dict[str, Tensor]:
    adam, average = optimiser(pair, recipe), Average(pair)
    pair.train()
    total = 0.0
    for step, group in enumerate(plan):
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        share = share_of_rate(step, len(plan), recipe.warmup)
        for parameters in adam.param_groups:
            parameters["lr"] = parameters["peak"] * share
        inputs, goal = _tensors(tokenizer, group)
        logits = pair(*(torch.from_numpy(part) for part in (inputs.ids, inputs.mask, inputs.shapes))).squeeze(-1)
        soft = goal * (1 - 2 * recipe.smoothing) + recipe.smoothing
        loss = F.binary_cross_entropy_with_logits(logits, soft)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(pair.parameters(), 1.0)
        adam.step()
        average.follow(pair, recipe.average)
        total += float(loss.detach())
        if (step + 1) % 50 == 0 or step + 1 == len(plan):
            report(f"groundedness: batch {step + 1}/{len(plan)} loss {total / ((step % 50) + 1):.4f}")
            total = 0.0
    return average.state
