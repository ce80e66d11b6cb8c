"""Signed supermasks: a learned mask of -1, 0 and 1 flips, drops or keeps each random weight.

Koster, Grothe & Rettinger, Signing the Supermask: Keep, Hide, Invert, 2022. The effective weight is w * sign(m) where
|m| > tau, and 0 elsewhere; the gradient of m is the identity's, dm = dL/dW_effective * w, below the threshold too, so
that no m is ever without one. m starts Xavier uniform, U(-b, b) with b = sqrt(6 / (fan-in + fan-out)).

In the paper the density follows from the threshold tau and the weight decay, and cannot be asked. Here it can: without
a threshold tau is, in every pass, the one above which as many |m| lie as the density asks, of each layer or of all.
The paper's weights are +-sqrt(3 / fan-in), which are signed constants times sqrt(1.5): `gain`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..masks.random_numbers import uniform
from .layers import Layers
from .rule import LearnedMask, straight_through


class Signed(LearnedMask):
    """Each layer's `scores`, in the weight's shape: large ones keep a weight or, where negative, flip it.

    Args:
        threshold: tau; None for the one that meets the density asked.
        gain: what weights are multiplied by.

    Raises:
        ValueError: a threshold below 0.
    """

    compares_only = True

    def __init__(self, threshold: float | None = None, gain: float = 1.0) -> None:
        if threshold is not None and not 0 <= threshold < math.inf:
            raise ValueError(f"expected a threshold of at least 0, or None to meet a density, got {threshold}")
        self.threshold, self.gain = threshold, gain
        self.exact = threshold is None

    def start(self, layers: Layers, seed: int) -> list[dict[str, Tensor]]:
        """Xavier uniform scores; ranked together, of one bound for all layers: that of the average weight."""
        fans = [sum(layer.fans) for layer in layers]
        mean = sum(fan * layer.size for fan, layer in zip(fans, layers, strict=True)) / sum(x.size for x in layers)
        one = self.threshold is None and layers.allocation == "global"
        made = []
        for fan, layer in zip(fans, layers, strict=True):
            draw = torch.from_numpy(uniform(layer.size, seed, "scores/" + layer.name))
            bound = math.sqrt(6.0 / (mean if one else fan))
            made.append({"scores": ((draw * 2.0 - 1.0) * bound).float().view(layer.shape)})
        return made

    def choose(self, layers: Layers) -> list[Tensor]:
        """The masks of the |m| above the threshold."""
        scores = [layer["scores"].detach() for layer in layers]
        if self.threshold is None:
            return layers.keep_largest(scores)
        return [score.abs() > self.threshold for score in scores]

    def effective(self, layers: Layers) -> Sequence[Tensor]:
        """The weights with the signs of the masks."""
        return [
            layer.weight * self.gain * straight_through(layer["scores"].sign() * mask, layer["scores"])
            for layer, mask in zip(layers, self.choose(layers), strict=True)
        ]
