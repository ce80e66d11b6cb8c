"""Random crops and flips of whole batches, on the device they are on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from supermask.masks.random_numbers import uniform

from ..contract.errors import RequestError


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images: a crop after padding by `crop` black pixels on each side, a mirror image half
    the time.

    Raises:
        RequestError: a negative crop.
    """

    crop: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise RequestError(f"augmentation: crop {self.crop}, expected pixels from 0")


NO_AUGMENTATION = Augmentation()


def draw(augmentation: Augmentation, count: int, seed: int, names: Sequence[str]) -> Tensor | None:
    """The random numbers of batches of `count` images: top, left and whether mirrored, int64 [batches, 3, count].

    Args:
        augmentation: the padding, and whether to flip.
        count: of the images of each batch.
        seed: with a batch's name, what its numbers depend on; nothing else does.
        names: of the batches, such as their epoch and number.

    Returns:
        None where there is nothing to draw.
    """
    if augmentation == NO_AUGMENTATION or not names:
        return None
    draws = np.stack([uniform(3 * count, seed, f"augmentation/{name}") for name in names]).reshape(-1, 3, count)
    draws[:, :2] = np.floor(draws[:, :2] * (2 * augmentation.crop + 1))
    draws[:, 2] = (draws[:, 2] < 0.5) & augmentation.flip
    return torch.from_numpy(draws.astype(np.int64))


def augment(x: Tensor, augmentation: Augmentation, black: Tensor, drawn: Tensor) -> Tensor:
    """Crop and flip each image of a batch by random numbers of its own.

    Args:
        x: [n, channels, height, width], normalized or not.
        augmentation: the padding, and whether to flip.
        black: what a black pixel is in `x`, [channels or 1, 1, 1], on the device of `x`.
        drawn: the random numbers of the batch (see `draw`), [3, n], on that device.

    Returns:
        A tensor of the shape of `x`.
    """
    count, channels, height, width = x.shape
    crop = augmentation.crop
    top, left, mirrored = drawn[:, :, None]
    columns = torch.arange(width, device=x.device)
    columns = left + torch.where(mirrored == 1, width - 1 - columns, columns)
    rows = top + torch.arange(height, device=x.device)
    padded = black.to(x.dtype).expand(count, channels, height + 2 * crop, width + 2 * crop).clone()
    padded[:, :, crop : crop + height, crop : crop + width] = x
    pixels = rows[:, :, None] * (width + 2 * crop) + columns[:, None, :]
    return padded.flatten(2).gather(2, pixels.view(count, 1, -1).expand(-1, channels, -1)).view_as(x)
