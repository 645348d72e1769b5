"""Training: one shared encoder, three heads, rows that each teach what is known about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from appliance.guards.features import Batch, PieceTokenizer
from guard_models.pipeline import batches
from guard_models.pipeline.batches import Example, Targets
from guard_models.pipeline.fit import Array, Learnt, Recipe, Report, fit, run_name
from guard_models.pipeline.network import Guard, Size, load_base
from guard_models.pipeline.rows import TAGS, TOXICITY, Row


def only(recipe: Recipe, head: str) -> Recipe:
    """`recipe` for a model of one head; the head for planted words belongs to injection."""
    if head not in ("injection", "toxicity", "pii"):
        raise ValueError(f"no head {head!r}; there are injection, toxicity, pii")
    return replace(
        recipe,
        injection_share=recipe.injection_share * (head == "injection"),
        planted_share=recipe.planted_share * (head == "injection"),
        toxicity_share=recipe.toxicity_share * (head == "toxicity"),
        pii_share=recipe.pii_share * (head == "pii"),
    )


LABEL_SHARES = tuple({"toxic": 8.0, "identity_attack": 2.0}.get(name, 1.0) for name in TOXICITY)
"""How much each label of toxicity counts."""


def new_network(recipe: Recipe, base: Path, fresh: Sequence[int] = ()) -> Guard:
    """The base model with new heads; the embeddings of the entries `fresh`, which meant nothing there, begin as an
    average word with a little noise."""
    torch.manual_seed(recipe.seed)
    guard = Guard(Size(dropout=recipe.dropout), labels=len(TOXICITY), tags=len(TAGS))
    load_base(guard.encoder, base)
    if fresh:
        words = guard.encoder.words.weight.data
        noise = torch.randn(len(fresh), words.shape[1]) * words.std()
        words[torch.tensor(list(fresh))] = words.mean(0) + 0.5 * noise
    return guard


def _known_mean(losses: Tensor, known: Tensor) -> Tensor:
    return (losses * known).sum() / known.sum().clamp(min=1.0)


def loss_of(guard: Guard, inputs: Batch, targets: Targets, recipe: Recipe) -> tuple[Tensor, dict[str, float]]:
    """The loss of one batch and its parts. Each part is a mean over what is known, so a batch without any adds none."""
    ids, mask, shapes = (torch.from_numpy(part) for part in (inputs.ids, inputs.mask, inputs.shapes))
    injection, planted, toxicity, tags = guard(ids, mask, shapes)
    goal = torch.from_numpy(targets.injection)
    soft = goal.clamp(0, 1) * (1 - 2 * recipe.smoothing) + recipe.smoothing
    of_injection = _known_mean(
        F.binary_cross_entropy_with_logits(injection.squeeze(-1), soft, reduction="none"), (goal >= 0).float()
    )
    goal = torch.from_numpy(targets.planted)
    of_planted = _known_mean(
        F.binary_cross_entropy_with_logits(planted, goal.clamp(0, 1), reduction="none"),
        (goal >= 0).float(),
    )
    goal = torch.from_numpy(targets.toxicity)
    soft = goal.clamp(0, 1) * (1 - 2 * recipe.smoothing) + recipe.smoothing
    of_toxicity = _known_mean(
        F.binary_cross_entropy_with_logits(toxicity, soft, reduction="none"),
        (goal >= 0).float() * torch.tensor(LABEL_SHARES),
    )
    goal = torch.from_numpy(targets.tags)
    of_pii = _known_mean(
        F.cross_entropy(tags.flatten(0, 1), goal.clamp(min=0).flatten(), reduction="none").view(goal.shape),
        (goal >= 0).float(),
    )
    parts = {"injection": of_injection, "planted": of_planted, "toxicity": of_toxicity, "pii": of_pii}
    whole = (
        recipe.injection_share * of_injection
        + recipe.planted_share * of_planted
        + recipe.toxicity_share * of_toxicity
        + recipe.pii_share * of_pii
    )
    return whole, {name: float(part.detach()) for name, part in parts.items()}


def prepared(
    epochs: Sequence[Sequence[Row]], tokenizer: PieceTokenizer, recipe: Recipe, report: Report
) -> list[list[Example]]:
    """All batches of the run, in order."""
    plan: list[list[Example]] = []
    for number, rows in enumerate(epochs):
        random = Random(f"{recipe.seed}/examples/{number}")
        found = list(batches.examples(rows, tokenizer, random))
        plan += batches.grouped(found, recipe.tokens, random)
        pieces = sum(one.window.end - one.window.start for one in found)
        report(f"epoch {number + 1}: {len(found)} examples, {pieces} pieces, {len(plan)} batches so far")
    return plan


def _arrays(plan: Sequence[Sequence[Example]]) -> Iterator[Array]:
    """All that a run learns from."""
    for group in plan:
        for one in group:
            begin, end = one.window.start, one.window.end
            yield np.array([begin, end, *one.pieces.ids[begin:end], *one.pieces.shapes[begin:end]], np.int32)
            yield np.array([one.injection], np.float32)
            yield from (one.planted, one.toxicity, one.tags)


def train(
    guard: Guard,
    plan: Sequence[Sequence[Example]],
    tokenizer: PieceTokenizer,
    recipe: Recipe,
    folder: Path,
    report: Report,
    *,
    stop_after: int | None = None,
) -> dict[str, Tensor]:
    """Train through `plan` and return the averaged weights; see `fit`."""

    def learnt(step: int) -> Learnt:
        inputs, targets = batches.tensors(tokenizer, plan[step])
        loss, parts = loss_of(guard, inputs, targets, recipe)
        return Learnt(loss, parts, inputs.ids.size)

    name = run_name(recipe, {"labels": LABEL_SHARES}, _arrays(plan))
    return fit(guard, len(plan), learnt, name, recipe, folder, report, stop_after=stop_after)
