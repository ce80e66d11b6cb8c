"""What a training loop sees of data, whether it lies in memory or is streamed from files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeAlias

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from torch import Tensor

# Which samples, in which order; in quotes, because this file imports no torch.
Order: TypeAlias = "Tensor | npt.NDArray[Any]"
HeldOut = Literal["validation", "test"]


class Samples(Protocol):
    """Training, validation and test samples in batches (x, y).

    `x` is a tensor [n, *input_shape], float32 and normalized or int64 numbers of tokens, or a tree of tensors of n
    samples
    each: a network is called as `model(x)`, with a tuple as `model(*x)` and with a dictionary as `model(**x)`. `y` is
    int64 class numbers [n] or [n, ...], -100 where none counts, or float32 numbers [n] or [n, ...], or a tree of such
    tensors.
    """

    @property
    def name(self) -> str:
        """The data set's name."""
        ...

    @property
    def classes(self) -> int:
        """How many numbers a network is to give: classes, columns of float targets; 0 where targets are a tree."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """What was subtracted from each channel, in units of pixels / 255."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """What each channel was divided by after that."""
        ...

    @property
    def input_shape(self) -> Any:
        """Shape of one sample, (channels, height, width) for images; of a tree the tree of shapes."""
        ...

    @property
    def train_size(self) -> int:
        """How many training samples there are."""
        ...

    def held_out_size(self, split: HeldOut) -> int:
        """How many samples a held-out split has."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The same samples on a device."""
        ...

    def with_seed(self, seed: int) -> Self:
        """The same samples, augmented by the random numbers of another seed."""
        ...

    def without_augmentation(self) -> Self:
        """The same samples, of which those of training are as they are too."""
        ...

    def with_share(self, rank: int, world: int) -> Self:
        """The same samples, of which this process takes a share: one of `world`, that of number `rank`.

        Of every training batch it gets the rows `rank::world`, which do not depend on how many share it but by that: a
        batch is drawn and augmented as a whole. Of the batches that are held out it gets every `world`th.
        """
        ...

    def train_batches(self, order: Order, batch_size: int, first: int = 0, epoch: int = 0) -> Iterator[tuple[Any, Any]]:
        """The whole batches of one epoch, from the batch number `first` on, augmented.

        `order` holds the numbers of training samples, [n]. What is left over after the last whole batch is dropped; a
        set smaller than a batch is one batch. Batch k is the same wherever the iteration begins. The tensors are
        new ones, or never written to: what became of a batch is looked at some steps later.
        """
        ...

    def batches(self, split: HeldOut, batch_size: int) -> Iterator[tuple[Any, Any]]:
        """All samples of a held-out split in a fixed order; the last batch may be smaller."""
        ...


def whole_batches(samples: int, batch_size: int) -> int:
    """How many batches an epoch has: whole ones, and at least one."""
    return max(1, samples // batch_size)
