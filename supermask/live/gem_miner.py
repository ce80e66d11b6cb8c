"""Gem-Miner: numbers in [0, 1] are rounded to masks, and now and then the smallest are flagged off for good.

Sreenivasan et al., Rare Gems: Finding Lottery Tickets at Initialization, 2022. The effective weight is w where p > 1/2
and no flag is set, and 0 elsewhere; the gradient goes straight through the rounding, dp = dL/dW_effective * w, and is 0
under a flag. p starts uniform in (0, 1) and is clamped to [0, 1] before every pass.

The paper's mask is p >= 1/2; the authors' code rounds up strictly above 1/2, and so does this. Their code flags off
what lies at or below the threshold of the lowest, which of equal p, as of many that are clamped to 1, may be more than
was to be; here exactly so many are flagged, of equal ones the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..masks.random_numbers import uniform
from ..selection.top_k import top_k
from .layers import Layers
from .rule import LearnedMask, straight_through


class GemMiner(LearnedMask):
    """Each layer's `p`, and `alive`, False where a weight is flagged off: see `flag_lowest` and `return_unflagged`."""

    exact = False

    def start(self, layers: Layers, seed: int) -> list[dict[str, Tensor]]:
        """Uniform p, and no flag set."""
        draws = [torch.from_numpy(uniform(layer.size, seed, "p/" + layer.name)).float() for layer in layers]
        return [
            {"p": draw.view(layer.shape), "alive": torch.ones(layer.shape, dtype=torch.bool)}
            for draw, layer in zip(draws, layers, strict=True)
        ]

    def clamp(self, layers: Layers) -> None:
        """Bring p back into [0, 1]."""
        for layer in layers:
            layer["p"].clamp_(0, 1)

    def choose(self, layers: Layers) -> list[Tensor]:
        """The masks of the unflagged p above 1/2."""
        return [(layer["p"].detach() > 0.5) & layer["alive"] for layer in layers]

    def effective(self, layers: Layers) -> Sequence[Tensor]:
        """The frozen weights where the masks keep."""
        return [
            layer.weight * straight_through(mask, layer["p"] * layer["alive"])
            for layer, mask in zip(layers, self.choose(layers), strict=True)
        ]


@torch.no_grad()
def flag_lowest(layers: Layers, count: int) -> None:
    """Flag off, for good, the `count` weights of lowest p among all those of all layers that are not flagged yet.

    Args:
        layers: those of a `GemMiner` on a model.
        count: how many; at most as many as are left.

    Raises:
        ValueError: more than are left.
    """
    for layer in layers:
        layer["p"].clamp_(0, 1)
    alive = torch.cat([layer["alive"].reshape(-1) for layer in layers])
    left = int(alive.sum())
    if not 0 <= count <= left:
        raise ValueError(f"expected to flag off 0 to {left} weights, as many as are left, got {count}")
    keys = torch.cat([layer["p"].detach().reshape(-1) for layer in layers]).masked_fill(~alive, -math.inf)
    for layer, kept in zip(layers, top_k(keys, left - count).split([layer.size for layer in layers]), strict=True):
        layer["alive"].copy_(kept.view(layer.shape))


@torch.no_grad()
def return_unflagged(layers: Layers) -> None:
    """Bring back every weight that is not flagged off, whatever its p: the mask is then that of the flags."""
    for layer in layers:
        layer["p"].copy_(layer["alive"])


def unflagged_density(layers: Layers) -> float:
    """The fraction of all weights that is not flagged off."""
    return sum(int(layer["alive"].sum()) for layer in layers) / sum(layer.size for layer in layers)
