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
    """Training, validation and test samples in batches: `x` float32 [n, *input_shape], normalized; `y` int64 [n]."""

    @property
    def name(self) -> str:
        """The data set's name."""
        ...

    @property
    def classes(self) -> int:
        """How many classes there are."""
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
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample, (channels, height, width) for images."""
        ...

    @property
    def train_size(self) -> int:
        """How many training samples there are."""
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

    def train_batches(
        self, order: Order, batch_size: int, first: int = 0, epoch: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole batches of one epoch, from the batch number `first` on, augmented.

        `order` holds the numbers of training samples, [n]. What is left over after the last whole batch is dropped; a
        set smaller than a batch is one batch. Batch k is the same wherever the iteration begins. The tensors are
        new ones, or never written to: what became of a batch is looked at some steps later.
        """
        ...

    def batches(self, split: HeldOut, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples of a held-out split in a fixed order; the last batch may be smaller."""
        ...


def whole_batches(samples: int, batch_size: int) -> int:
    """How many batches an epoch has: whole ones, and at least one."""
    return max(1, samples // batch_size)
