"""The way down a loss: one loop for every network here, which can be interrupted."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the outcome besides the data."""

    seed: int = 1
    epochs: float = 2.2
    """How often the data is gone through; the last of 2.2 epochs is a fifth of one."""
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


Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Learnt:
    """The loss of one batch, its parts by name, and how many tokens the batch has, padding counted."""

    loss: Tensor
    parts: Mapping[str, float]
    tokens: int


def optimiser(network: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
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

    def __init__(self, network: nn.Module) -> None:
        self.state = {name: value.detach().clone() for name, value in network.state_dict().items()}
        self.steps = 0

    def follow(self, network: nn.Module, slowness: float) -> None:
        self.steps += 1
        # In the beginning it has nothing worth keeping.
        slowness = min(slowness, self.steps / (self.steps + 20))
        with torch.no_grad():
            for name, value in network.state_dict().items():
                self.state[name].lerp_(value, 1 - slowness)


def run_name(recipe: Recipe, settings: Mapping[str, Any], arrays: Iterable[Array]) -> str:
    """What tells one run from another: its recipe, further settings, and all that it learns from, so that a change of
    one label is another run."""
    return json.dumps({**asdict(recipe), **settings, "plan": _digest(arrays)}, sort_keys=True)


def _digest(arrays: Iterable[Array]) -> str:
    whole = hashlib.blake2b(digest_size=12)
    for part in arrays:
        whole.update(part.tobytes())
    return whole.hexdigest()


def fit(
    network: nn.Module,
    steps: int,
    learnt: Callable[[int], Learnt],
    name: str,
    recipe: Recipe,
    folder: Path,
    report: Report,
    *,
    clock: Callable[[], float] = time.monotonic,
    stop_after: int | None = None,
) -> dict[str, Tensor]:
    """Train `network` through `steps` batches, of which `learnt` gives the loss, and return the averaged weights.

    Goes on from `folder`'s checkpoint if that is of the run of this `name` from these very weights, else says that it
    is not. `stop_after` ends
    after that many batches in all, as an interruption would.
    """
    torch.set_num_threads(recipe.threads)
    name = f"{name} from {_digest(value.numpy() for value in network.state_dict().values())}"
    folder.mkdir(parents=True, exist_ok=True)
    adam, average = optimiser(network, recipe), Average(network)
    checkpoint = folder / "checkpoint.pt"
    begin = 0
    if checkpoint.is_file():
        saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        if saved["name"] == name:
            network.load_state_dict(saved["network"])
            adam.load_state_dict(saved["adam"])
            average.state, average.steps, begin = saved["average"], saved["average_steps"], saved["step"]
            report(f"going on from batch {begin} of {steps}")
        else:
            report(f"{checkpoint} is of another run (other data or settings); beginning anew")
    network.train()
    sums: dict[str, float] = {}
    tokens = since = 0
    started = saved_at = clock()
    for step in range(begin, steps):
        # Each step has its own randomness, so that a run that was interrupted ends as one that was not.
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        share = share_of_rate(step, steps, recipe.warmup)
        for group in adam.param_groups:
            group["lr"] = group["peak"] * share
        one = learnt(step)
        adam.zero_grad()
        one.loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
        average.follow(network, recipe.average)
        tokens += one.tokens
        since += 1
        for part, value in one.parts.items():
            sums[part] = sums.get(part, 0.0) + value
        last = step + 1 == steps or step + 1 == stop_after
        if since == 100 or last:
            speed = tokens / max(1e-9, clock() - started)
            left = (steps - step - 1) * (tokens / (step + 1 - begin)) / speed / 60
            told = " ".join(f"{part} {value / since:.4f}" for part, value in sums.items())
            report(f"batch {step + 1}/{steps} {told} | {speed:.0f} tokens/s, {left:.0f} min left")
            sums, since = {}, 0
        if clock() - saved_at > 300 or last:
            partial = checkpoint.with_suffix(".part")
            torch.save(
                {"name": name, "network": network.state_dict(), "adam": adam.state_dict(), "average": average.state,
                 "average_steps": average.steps, "step": step + 1},
                partial,
            )  # fmt: skip
            partial.replace(checkpoint)
            saved_at = clock()
        if step + 1 == stop_after:
            break
    return average.state
