"""Training as the 8-bit graph computes: the network learns to live with its coarse steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guard_models.pipeline.steps import LEVELS, REACH, Steps

FLOAT_LAYERS = ("score", "injection.out", "toxicity.out", "planted", "pii")
"""Layers that stay in 32 bits, by the end of their names: small ones that decide."""


def as_shipped(network: nn.Module, steps: Mapping[str, Steps]) -> None:
    """Have the linear layers of `network` that ship in 8 bits compute so; gradients pass straight through."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith(FLOAT_LAYERS):
            module.forward = _forward(module, steps[name])  # type: ignore[method-assign]


def _forward(module: nn.Linear, steps: Steps) -> object:
    smooth = torch.from_numpy(steps.smooth)
    zeros = torch.zeros(module.out_features, dtype=torch.int32)

    def forward(source: Tensor) -> Tensor:
        coarse = torch.fake_quantize_per_tensor_affine(source / smooth, steps.step, steps.zero, 0, LEVELS)
        weight = module.weight * smooth
        scale = weight.detach().abs().amax(dim=1).clamp(min=1e-8) / REACH
        weight = torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -REACH, REACH)
        return F.linear(coarse, weight, module.bias)

    return forward
