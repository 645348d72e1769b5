"""One training from rows to weights: in 32 bits first, then as the 8-bit graph computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from torch import Tensor

from appliance.guards.features import PieceTokenizer
from guard_models.pipeline import batches, ranges
from guard_models.pipeline.batches import Example
from guard_models.pipeline.fit import Recipe, Report
from guard_models.pipeline.network import Guard
from guard_models.pipeline.quantised import as_shipped
from guard_models.pipeline.rows import Row
from guard_models.pipeline.steps import Steps
from guard_models.pipeline.train import new_network, prepared, train

CHOOSING = 300
"""Texts that the 8-bit steps are chosen by."""


@dataclass(frozen=True, slots=True)
class Trained:
    """Averaged weights, how their layers become 8-bit, and how many batches it took."""

    state: dict[str, Tensor]
    steps: dict[str, Steps]
    batches: int


def trained(
    epochs: Sequence[Sequence[Row]],
    tokenizer: PieceTokenizer,
    base: Path,
    recipe: Recipe,
    folder: Path,
    report: Report,
    *,
    fresh: Sequence[int] = (),
    stop_after: int | None = None,
) -> Trained:
    """Train through `epochs`. `stop_after` ends the first part after that many batches, as an interruption would."""
    plan = prepared(epochs, tokenizer, recipe, report)
    guard = new_network(recipe, base / "model.safetensors", fresh)
    state = train(guard, plan, tokenizer, recipe, folder, report, stop_after=stop_after)
    if stop_after is not None:
        return Trained(state, {}, len(plan))
    guard.load_state_dict(state)
    steps = steps_of(guard, plan, tokenizer, recipe)
    report("from here on as the 8-bit graph computes")
    state, steps = settled(guard, steps, plan, tokenizer, recipe, folder, report)
    return Trained(state, steps, len(plan))


def steps_of(
    guard: Guard, plan: Sequence[Sequence[Example]], tokenizer: PieceTokenizer, recipe: Recipe
) -> dict[str, Steps]:
    """The 8-bit steps of `guard`'s layers, by texts of its own training."""
    examples = [one for group in plan for one in group]
    chosen = Random(f"{recipe.seed}/steps").sample(examples, min(CHOOSING, len(examples)))
    return ranges.steps(guard, [batches.tensors(tokenizer, [one])[0] for one in chosen], seed=recipe.seed)


def settled(
    guard: Guard,
    steps: dict[str, Steps],
    plan: Sequence[Sequence[Example]],
    tokenizer: PieceTokenizer,
    recipe: Recipe,
    folder: Path,
    report: Report,
) -> tuple[dict[str, Tensor], dict[str, Steps]]:
    """A last, gentle part of the training in 8-bit steps, through the end of `plan` once more."""
    count = max(1, round(recipe.settling * len(plan)))
    as_shipped(guard, steps)
    gentle = replace(recipe, rate=recipe.rate * 0.2, head_rate=recipe.head_rate * 0.2, average=0.99)
    return train(guard, plan[-count:], tokenizer, gentle, folder / "settling", report), steps
