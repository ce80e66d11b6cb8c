"""Conv-2, Conv-4, Conv-6 and Conv-8: small VGG-like networks without norms.

Frankle & Carbin, The Lottery Ticket Hypothesis, 2018; Conv-8: Ramanujan et al., What's Hidden in a Randomly Weighted
Neural Network?, 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from .activations import make_activation
from .widths import scaled

_WIDTHS = (64, 128, 256, 512)


class Conv(nn.Module):
    """Pairs of 3x3 convolutions, a pooling after each pair that halves the image, then layers of 256, 256, classes.

    Each of these is multiplied by `width`. An image that is one pixel high or wide is not pooled further.
    """

    def __init__(self, depth: int, input_shape: Sequence[int], classes: int, activation: str, width: float) -> None:
        super().__init__()
        channels, height, width_of_image = input_shape
        layers: list[nn.Module] = []
        for out in (scaled(filters, width) for filters in _WIDTHS[: depth // 2]):
            for _ in range(2):
                layers += [nn.Conv2d(channels, out, 3, padding=1), make_activation(activation)]
                channels = out
            if min(height, width_of_image) > 1:
                layers.append(nn.MaxPool2d(2))
                height, width_of_image = height // 2, width_of_image // 2
        self.features = nn.Sequential(*layers)
        hidden = scaled(256, width)
        self.classifier = nn.Sequential(
            nn.Linear(channels * height * width_of_image, hidden),
            make_activation(activation),
            nn.Linear(hidden, hidden),
            make_activation(activation),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, channels, height, width]."""
        logits: Tensor = self.classifier(rearrange(self.features(x), "n c h w -> n (c h w)"))
        return logits


def conv2(
    input_shape: Sequence[int] = (3, 32, 32), classes: int = 10, activation: str = "relu", width: float = 1.0
) -> Conv:
    """Conv-2: 4,300,992 weights on CIFAR-10."""
    return Conv(2, input_shape, classes, activation, width)


def conv4(
    input_shape: Sequence[int] = (3, 32, 32), classes: int = 10, activation: str = "relu", width: float = 1.0
) -> Conv:
    """Conv-4: 2,425,024 weights on CIFAR-10."""
    return Conv(4, input_shape, classes, activation, width)


def conv6(
    input_shape: Sequence[int] = (3, 32, 32), classes: int = 10, activation: str = "relu", width: float = 1.0
) -> Conv:
    """Conv-6: 2,261,184 weights on CIFAR-10."""
    return Conv(6, input_shape, classes, activation, width)


def conv8(
    input_shape: Sequence[int] = (3, 32, 32), classes: int = 10, activation: str = "relu", width: float = 1.0
) -> Conv:
    """Conv-8: 5,275,840 weights on CIFAR-10."""
    return Conv(8, input_shape, classes, activation, width)
