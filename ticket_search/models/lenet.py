"""LeNet-300-100, the multilayer perceptron of LeCun et al., Gradient-Based Learning Applied to Document Recognition."""

from __future__ import annotations

import math
from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from .activations import make_activation
from .widths import scaled


class LeNet300100(nn.Module):
    """Two hidden layers of 300 and 100 units times `width`, over flattened input."""

    def __init__(self, inputs: int, classes: int, activation: str, width: float) -> None:
        super().__init__()
        first, second = scaled(300, width), scaled(100, width)
        self.fc1 = nn.Linear(inputs, first)
        self.fc2 = nn.Linear(first, second)
        self.fc3 = nn.Linear(second, classes)
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of samples [n, ...]."""
        x = rearrange(x, "n ... -> n (...)")
        x = self.activation(self.fc1(x))
        x = self.activation(self.fc2(x))
        logits: Tensor = self.fc3(x)
        return logits


class NormedLeNet300100(nn.Module):
    """The same with a batch norm behind each hidden layer, which has no biases: a norm would take them away again."""

    def __init__(self, inputs: int, classes: int, activation: str, width: float) -> None:
        super().__init__()
        first, second = scaled(300, width), scaled(100, width)
        self.fc1, self.norm1 = nn.Linear(inputs, first, bias=False), nn.BatchNorm1d(first)
        self.fc2, self.norm2 = nn.Linear(first, second, bias=False), nn.BatchNorm1d(second)
        self.fc3 = nn.Linear(second, classes)
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of samples [n, ...]."""
        x = rearrange(x, "n ... -> n (...)")
        x = self.activation(self.norm1(self.fc1(x)))
        x = self.activation(self.norm2(self.fc2(x)))
        logits: Tensor = self.fc3(x)
        return logits


def lenet_300_100(
    input_shape: Sequence[int] = (1, 28, 28), classes: int = 10, activation: str = "relu", width: float = 1.0
) -> LeNet300100:
    """LeNet-300-100 for samples of any shape: 266,200 weights on 28x28 pixels and 10 classes."""
    return LeNet300100(math.prod(input_shape), classes, activation, width)


def lenet_300_100_bn(
    input_shape: Sequence[int] = (1, 28, 28), classes: int = 10, activation: str = "relu", width: float = 1.0
) -> NormedLeNet300100:
    """LeNet-300-100 with batch norm, for methods that need one: the same 266,200 weights."""
    return NormedLeNet300100(math.prod(input_shape), classes, activation, width)
