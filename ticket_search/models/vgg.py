"""VGG-11 and VGG-16 in the shape that is usual for CIFAR: batch norm, and one linear layer after the convolutions.

Simonyan & Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, 2014.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .activations import make_activation
from .widths import scaled

# Output channels of the convolutions, 0 for a pooling.
_VGG11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512)
_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)


class VGG(nn.Module):
    """3x3 convolutions without biases, each with batch norm; the mean over what is left of the image; a linear head."""

    def __init__(
        self, plan: Sequence[int], input_shape: Sequence[int], classes: int, activation: str, width: float
    ) -> None:
        super().__init__()
        channels, height, width_of_image = input_shape
        layers: list[nn.Module] = []
        for filters in plan:
            if filters:
                out = scaled(filters, width)
                layers += [
                    nn.Conv2d(channels, out, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out),
                    make_activation(activation),
                ]
                channels = out
            elif min(height, width_of_image) > 1:
                layers.append(nn.MaxPool2d(2))
                height, width_of_image = height // 2, width_of_image // 2
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, channels, height, width]."""
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


def vgg11(
    input_shape: Sequence[int] = (3, 32, 32), classes: int = 10, activation: str = "relu", width: float = 1.0
) -> VGG:
    """VGG-11 with batch norm: 9,222,848 weights on CIFAR-10."""
    return VGG(_VGG11, input_shape, classes, activation, width)


def vgg16(
    input_shape: Sequence[int] = (3, 32, 32), classes: int = 10, activation: str = "relu", width: float = 1.0
) -> VGG:
    """VGG-16 with batch norm: 14,715,584 weights on CIFAR-10."""
    return VGG(_VGG16, input_shape, classes, activation, width)
