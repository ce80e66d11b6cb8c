"""Residual networks for small images.

He et al., Deep Residual Learning for Image Recognition, 2015 (ResNet-20, -56 and -18); Zagoruyko & Komodakis, Wide
Residual Networks, 2016 (WRN-28-10).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .activations import make_activation
from .widths import scaled


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = _conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.activation = make_activation(activation)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, outputs, height / stride, width / stride]."""
        out = self.activation(self.norm1(self.conv1(x)))
        result: Tensor = self.activation(self.norm2(self.conv2(out)) + self.shortcut(x))
        return result


class PreActivationBlock(nn.Module):
    """Norm and activation come before each convolution, as in wide residual networks."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, outputs, 3, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), _conv(outputs, outputs, 3)
        self.activation = make_activation(activation)
        self.shortcut = _conv(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, outputs, height / stride, width / stride]."""
        out = self.activation(self.norm1(x))
        # Where the shape changes, the shortcut too starts from the normalized input.
        kept = x if self.shortcut is None else self.shortcut(out)
        result: Tensor = self.conv2(self.activation(self.norm2(self.conv1(out)))) + kept
        return result


class ResNet(nn.Module):
    """A 3x3 stem, stages of blocks that halve the image from the second stage on, the mean, a linear head."""

    def __init__(
        self,
        block: type[Block] | type[PreActivationBlock],
        stem: int,
        widths: Sequence[int],
        blocks: int,
        input_shape: Sequence[int],
        classes: int,
        activation: str,
        width: float,
    ) -> None:
        super().__init__()
        stem, widths = scaled(stem, width), [scaled(channels, width) for channels in widths]
        self.stem = _conv(input_shape[0], stem, 3)
        before = block is PreActivationBlock
        self.norm = nn.BatchNorm2d(widths[-1] if before else stem)
        self.activation = make_activation(activation)
        self.norm_at_end = before
        stages: list[nn.Module] = []
        channels = stem
        for stage, out in enumerate(widths):
            layers: list[nn.Module] = []
            for index in range(blocks):
                layers.append(block(channels, out, 2 if stage and index == 0 else 1, activation))
                channels = out
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, channels, height, width]."""
        x = self.stem(x)
        if not self.norm_at_end:
            x = self.activation(self.norm(x))
        x = self.stages(x)
        if self.norm_at_end:
            x = self.activation(self.norm(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def resnet20(
    input_shape: Sequence[int] = (3, 32, 32), classes: int = 10, activation: str = "relu", width: float = 1.0
) -> ResNet:
    """ResNet-20 for CIFAR: 270,896 weights in convolutions and 640 in the head (shortcuts of 1x1: 2,560)."""
    return ResNet(Block, 16, (16, 32, 64), 3, input_shape, classes, activation, width)


def resnet56(
    input_shape: Sequence[int] = (3, 32, 32), classes: int = 10, activation: str = "relu", width: float = 1.0
) -> ResNet:
    """ResNet-56 for CIFAR."""
    return ResNet(Block, 16, (16, 32, 64), 9, input_shape, classes, activation, width)


def resnet18(
    input_shape: Sequence[int] = (3, 32, 32), classes: int = 10, activation: str = "relu", width: float = 1.0
) -> ResNet:
    """ResNet-18 with a 3x3 stem and no pooling, for small images: 11,164,352 weights on CIFAR-10."""
    return ResNet(Block, 64, (64, 128, 256, 512), 2, input_shape, classes, activation, width)


def wide_resnet_28_10(
    input_shape: Sequence[int] = (3, 32, 32), classes: int = 10, activation: str = "relu", width: float = 1.0
) -> ResNet:
    """WRN-28-10: 36.5 million parameters on CIFAR-10."""
    return ResNet(PreActivationBlock, 16, (160, 320, 640), 4, input_shape, classes, activation, width)
