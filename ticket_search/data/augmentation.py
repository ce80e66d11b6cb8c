"""Random crops and flips of whole batches, on the device they are on."""

from __future__ import annotations

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


def augment(x: Tensor, augmentation: Augmentation, black: Tensor, seed: int, name: str) -> Tensor:
    """Crop and flip each image of a batch by random numbers of its own.

    Args:
        x: [n, channels, height, width], normalized or not.
        augmentation: the padding, and whether to flip.
        black: what a black pixel is in `x`, [channels or 1, 1, 1], on the device of `x`.
        seed: with `name`, what the random numbers depend on; nothing else does.
        name: of the batch, such as its epoch and its number.

    Returns:
        A tensor of the shape of `x`; `x` itself where there is nothing to do.
    """
    if augmentation == NO_AUGMENTATION:
        return x
    count, channels, height, width = x.shape
    crop = augmentation.crop
    draws = uniform(3 * count, seed, f"augmentation/{name}").reshape(3, count)
    draws[:2] = np.floor(draws[:2] * (2 * crop + 1))
    draws[2] = (draws[2] < 0.5) & augmentation.flip
    top, left, mirrored = torch.from_numpy(draws.astype(np.int64)).to(x.device)[:, :, None]
    columns = torch.arange(width, device=x.device)
    columns = left + torch.where(mirrored == 1, width - 1 - columns, columns)
    rows = top + torch.arange(height, device=x.device)
    padded = black.to(x.dtype).expand(count, channels, height + 2 * crop, width + 2 * crop).clone()
    padded[:, :, crop : crop + height, crop : crop + width] = x
    pixels = rows[:, :, None] * (width + 2 * crop) + columns[:, None, :]
    return padded.flatten(2).gather(2, pixels.view(count, 1, -1).expand(-1, channels, -1)).view_as(x)
