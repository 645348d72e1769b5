"""Training: one shared encoder, three heads, rows that each teach what is known about them."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from appliance.guards.features import Batch, PieceTokenizer
from guard_models.pipeline import batches
from guard_models.pipeline.batches import Example, Targets
from guard_models.pipeline.network import Guard, Size, load_base
from guard_models.pipeline.rows import TAGS, TOXICITY, Row


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the outcome besides the data."""

    seed: int = 1
    epochs: float = 2.5
    """How often the data is gone through; the last of 2.5 epochs is half of one."""
    scale: float = 1.0
    tokens: int = 2048
    """Tokens in a batch, padding counted."""
    rate: float = 2.5e-4
    head_rate: float = 1e-3
    warmup: float = 0.06
    decay: float = 0.01
    dropout: float = 0.1
    smoothing: float = 0.02
    average: float = 0.999
    """How slowly the averaged weights, which are the ones that are kept, follow."""
    planted_share: float = 0.5
    pii_share: float = 1.0
    toxicity_share: float = 2.0
    injection_share: float = 1.0
    settling: float = 0.1
    """The share of the batches that is gone through once more as the 8-bit graph computes."""
    threads: int = 2


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

Report = Callable[[str], None]


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


def optimiser(guard: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in guard.named_parameters():
        plain = parameter.ndim < 2 or "norm" in name
        groups.setdefault((name.startswith("encoder."), plain), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": recipe.rate if encoder else recipe.head_rate,
                "peak": recipe.rate if encoder else recipe.head_rate,
                "weight_decay": 0.0 if plain else recipe.decay,
            }
            for (encoder, plain), parameters in groups.items()
        ],
        fused=True,
    )


def share_of_rate(step: int, steps: int, warmup: float) -> float:
    """Linear up, then down along a cosine to nearly nothing."""
    begin = max(1, round(steps * warmup))
    if step < begin:
        return (step + 1) / begin
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - begin) / max(1, steps - begin)))


class Average:
    """Exponentially averaged weights."""

    def __init__(self, guard: nn.Module) -> None:
        self.state = {name: value.detach().clone() for name, value in guard.state_dict().items()}
        self.steps = 0

    def follow(self, guard: nn.Module, slowness: float) -> None:
        self.steps += 1
        # In the beginning it has nothing worth keeping.
        slowness = min(slowness, self.steps / (self.steps + 20))
        with torch.no_grad():
            for name, value in guard.state_dict().items():
                self.state[name].lerp_(value, 1 - slowness)


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


def digest(plan: Sequence[Sequence[Example]]) -> str:
    """A short name for all that a run learns from: a change of one label is another run."""
    whole = hashlib.blake2b(digest_size=12)
    for group in plan:
        for one in group:
            begin, end = one.window.start, one.window.end
            whole.update(
                np.array([begin, end, *one.pieces.ids[begin:end], *one.pieces.shapes[begin:end]], np.int32).tobytes()
            )
            whole.update(np.array([one.injection], np.float32).tobytes())
            for part in (one.planted, one.toxicity, one.tags):
                whole.update(part.tobytes())
    return whole.hexdigest()


def train(
    guard: Guard,
    plan: Sequence[Sequence[Example]],
    tokenizer: PieceTokenizer,
    recipe: Recipe,
    folder: Path,
    report: Report,
    *,
    clock: Callable[[], float] = time.monotonic,
    stop_after: int | None = None,
) -> dict[str, Tensor]:
    """Train through `plan` and return the averaged weights.

    Goes on from `folder`'s checkpoint if that is of the same recipe and the same batches, else says that it is not.
    `stop_after` ends after that many batches in all, as an interruption would.
    """
    torch.set_num_threads(recipe.threads)
    steps = len(plan)
    adam = optimiser(guard, recipe)
    average = Average(guard)
    key = json.dumps({**asdict(recipe), "labels": LABEL_SHARES, "steps": steps, "plan": digest(plan)}, sort_keys=True)
    checkpoint = folder / "checkpoint.pt"
    begin = 0
    if checkpoint.is_file():
        saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        if saved["key"] == key:
            guard.load_state_dict(saved["guard"])
            adam.load_state_dict(saved["adam"])
            average.state, average.steps, begin = saved["average"], saved["average_steps"], saved["step"]
            report(f"going on from batch {begin} of {steps}")
        else:
            report(f"{checkpoint} is of another run (other data or settings); beginning anew")
    guard.train()
    sums: dict[str, float] = {}
    tokens = since = 0
    started = saved_at = clock()
    for step in range(begin, steps):
        # Each step has its own randomness, so that a run that was interrupted ends as one that was not.
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        inputs, targets = batches.tensors(tokenizer, plan[step])
        share = share_of_rate(step, steps, recipe.warmup)
        for group in adam.param_groups:
            group["lr"] = group["peak"] * share
        loss, parts = loss_of(guard, inputs, targets, recipe)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(guard.parameters(), 1.0)
        adam.step()
        average.follow(guard, recipe.average)
        tokens += inputs.ids.size
        since += 1
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value
        last = step + 1 == steps or step + 1 == stop_after
        if since == 100 or last:
            speed = tokens / max(1e-9, clock() - started)
            left = (steps - step - 1) * (tokens / (step + 1 - begin)) / speed / 60
            told = " ".join(f"{name} {value / since:.4f}" for name, value in sums.items())
            report(f"batch {step + 1}/{steps} {told} | {speed:.0f} tokens/s, {left:.0f} min left")
            sums, since = {}, 0
        if clock() - saved_at > 300 or last:
            partial = checkpoint.with_suffix(".part")
            torch.save(
                {"key": key, "guard": guard.state_dict(), "adam": adam.state_dict(), "average": average.state,
                 "average_steps": average.steps, "step": step + 1},
                partial,
            )  # fmt: skip
            partial.replace(checkpoint)
            saved_at = clock()
        if step + 1 == stop_after:
            break
    return average.state
