"""LeNet-300-100, the multilayer perceptron of LeCun et al., Gradient-Based Learning Applied to Document Recognition."""

from __future__ import annotations

import math
from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from .activations import make_activation


class LeNet300100(nn.Module):
    """Two hidden layers of 300 and 100 units, over flattened input."""

    def __init__(self, inputs: int, classes: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, classes)
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of samples [n, ...]."""
        x = rearrange(x, "n ... -> n (...)")
        x = self.activation(self.fc1(x))
        x = self.activation(self.fc2(x))
        logits: Tensor = self.fc3(x)
        return logits


def lenet_300_100(input_shape: Sequence[int] = (1, 28, 28), classes: int = 10, activation: str = "relu") -> LeNet300100:
    """LeNet-300-100 for samples of any shape: 266,200 weights on 28x28 pixels and 10 classes."""
    return LeNet300100(math.prod(input_shape), classes, activation)
