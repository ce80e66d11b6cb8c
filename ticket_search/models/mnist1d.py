"""The perceptron of MNIST-1D's lottery-ticket study.

Greydanus & Kobak, Scaling Down Deep Learning with MNIST-1D, 2020.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from .activations import make_activation
from .widths import scaled


class Residual(nn.Module):
    """Two hidden layers of 500 units times `width`, the second with a residual sum around it."""

    def __init__(self, inputs: int, classes: int, activation: str, width: float) -> None:
        super().__init__()
        units = scaled(500, width)
        self.fc1 = nn.Linear(inputs, units)
        self.fc2 = nn.Linear(units, units)
        self.fc3 = nn.Linear(units, classes)
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of samples [n, ...]."""
        x = self.activation(self.fc1(rearrange(x, "n ... -> n (...)")))
        x = x + self.activation(self.fc2(x))
        logits: Tensor = self.fc3(x)
        return logits


def mnist1d_mlp(
    input_shape: Sequence[int] = (40,), classes: int = 10, activation: str = "relu", width: float = 1.0
) -> Residual:
    """40-500-500-10 with a residual sum: 275,000 weights."""
    return Residual(math.prod(input_shape), classes, activation, width)
