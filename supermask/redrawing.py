"""A masked network with other weights: what stays the same in several of them depends on no weight and no input."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .slicing import is_depthwise
from .targets import find_targets

# Sizes of weights of both signs, and of inputs: behind a gate, a shift or a threshold small positive numbers are one
# side of it only.
SCALES = (1.0, 1000.0)


def redraw(net: nn.Module, kept: Mapping[str, Tensor], seed: int, scale: float | None = None) -> nn.Module:
    """A copy with other weights, dropped ones 0.

    What belongs to one channel (biases, norms, depthwise filters) is drawn alike for every seed.

    Args:
        net: the masked network.
        kept: masks of its parameters, as numbers.
        seed: of the other weights.
        scale: weights and biases of both signs, of this size; if None positive ones, so small that nothing saturates,
            or that nothing rounds away.
    """
    net = copy.deepcopy(net)
    alike, other = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)

    def draw(shape: Any, own: bool) -> Tensor:
        generator = alike if own else other
        if scale is None:
            return torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for name, target in find_targets(net, include="*").items():
            parameter, module = target.parameter, target.owners[0][0]
            own = parameter.dim() < 2 or is_depthwise(module)
            drawn = draw(parameter.shape, own)
            if target.kind == "bias" or target.owners[0][1] == "bias":
                drawn *= 0.01 if scale is None else scale
            elif parameter.dim() > 1 and scale is None:
                drawn *= (1 if own else 0.05 if seed == 1 else 0.5) / parameter[0].numel()
            elif parameter.dim() > 1:
                drawn /= parameter[0].numel() ** 0.5
            # A bias that was folded into has no mask of its own.
            mask = kept.get(name)
            parameter.copy_(drawn.to(parameter) if mask is None else drawn.to(parameter) * mask)
        for module in net.modules():
            if isinstance(mean := getattr(module, "running_mean", None), Tensor):
                mean.copy_((-0.01 if scale is None else scale) * draw(mean.shape, own=True))
                module.running_var.fill_(1)  # type: ignore[operator]
    return net
