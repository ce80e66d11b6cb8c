"""A learned mask that keeps what has a score of at least 0, however many these are.

Mallya et al., Piggyback: Adapting a Single Network to Multiple Tasks by Learning to Mask Weights, 2018, with random
scores as in Wortsman et al., Supermasks in Superposition, 2020. The effective weight is w where s >= 0 and 0 elsewhere;
the gradient goes straight through: ds = dL/dW_effective * w.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layers import Layers
from .rule import LearnedMask


class Threshold(LearnedMask):
    """Each layer's `scores`, in the weight's shape: those of at least 0 are kept, about half in the beginning."""

    exact, compares_only = False, True

    def choose(self, layers: Layers) -> list[Tensor]:
        """The masks of the scores of at least 0."""
        return [torch.ge(layer["scores"].detach(), 0) for layer in layers]
