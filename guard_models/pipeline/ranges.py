"""What flows into each linear layer, over some texts: with it, 8-bit inputs have fixed steps.

Fixed steps, rather than steps that follow each input, are why a verdict cannot depend on padding or on what else is in
a batch. Two things keep them fine. Channels that are always large are made smaller, and their weights larger by as
much, so that all channels need about the same range (SmoothQuant, Xiao et al. 2023). And of the range that is left, the
one with the least squared error is taken, which cuts off rare giants.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from appliance.guards.features import Batch
from guard_models.pipeline.steps import LEVELS, Steps

Array = NDArray[np.float32]
ROWS = 3000
"""Vectors of each layer that are kept to choose by."""


def best_range(values: Array) -> tuple[float, float]:
    """The range of `values` that 8 bits show with the least squared error."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    best, least = (low, high), np.inf
    for cut in np.linspace(0.15, 1.0, 35):
        # A side that is short already (GELU's) is not cut with the other.
        reach = float(cut) * max(-low, high)
        one, other = max(low, -reach), min(high, reach)
        step = max(1e-8, (other - one) / LEVELS)
        shown = np.clip(np.rint((values - one) / step), 0, LEVELS) * step + one
        error = float(np.square(shown - values).mean())
        if error < least:
            best, least = (one, other), error
    return best


def smoothing(inputs: Array, weight: Array) -> Array:
    """How much smaller each channel is made: inputs [vectors, channels], weight [channels, outputs]."""
    large = np.maximum(np.quantile(np.abs(inputs), 0.999, axis=0), 1e-3)
    theirs = np.maximum(np.abs(weight).max(axis=1), 1e-3)
    found = np.sqrt(large / theirs)
    return np.asarray(found / np.exp(np.log(found).mean()), np.float32)


def steps(network: nn.Module, batches: Sequence[Batch], *, seed: int = 1) -> dict[str, Steps]:
    """The steps of every linear layer of `network`, by the layer's name; padding is left out."""
    kept: dict[str, list[Array]] = {}
    random = np.random.default_rng(seed)
    most = max(1, ROWS // max(1, len(batches)))
    mask: Tensor | None = None
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def seen(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].detach()
            if values.ndim == 3 and mask is not None and values.shape[:2] == mask.shape:
                values = values[mask.bool()]
            rows = values.flatten(0, -2).numpy()
            kept.setdefault(name, []).append(rows[random.permutation(len(rows))[:most]].copy())

        handles.append(module.register_forward_pre_hook(seen))

    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    for name, module in layers.items():
        watch(name, module)
    network.eval()
    with torch.no_grad():
        for batch in batches:
            mask = torch.from_numpy(batch.mask)
            network(torch.from_numpy(batch.ids), mask, torch.from_numpy(batch.shapes))
    for handle in handles:
        handle.remove()
    found: dict[str, Steps] = {}
    for name, parts in kept.items():
        inputs = np.concatenate(parts)
        smooth = smoothing(inputs, layers[name].weight.detach().numpy().T)
        low, high = best_range(inputs / smooth)
        found[name] = Steps(low, high, smooth)
    return found
