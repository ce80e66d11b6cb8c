"""Data: one data set, split and normalized, as tensors on the device."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from supermask.masks.random_numbers import permutation

from ..contract.errors import RequestError
from .arrays import Arrays
from .augmentation import NO_AUGMENTATION, Augmentation, augment
from .samples import HeldOut, Order, whole_batches

TEST_SHARE = 0.2
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Data:
    """Training, validation and test samples: `x` float32 [n, *input_shape], normalized; `y` int64 [n].

    `augmentation` is what `train_batches` does to images, by random numbers that depend on `seed`. `content` identifies
    samples that came as arrays.

    Raises:
        RequestError: an augmentation of samples that are no images.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    validation_x: Tensor
    validation_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation = NO_AUGMENTATION
    seed: int = 0
    content: str = ""

    def __post_init__(self) -> None:
        if self.augmentation != NO_AUGMENTATION and len(self.input_shape) != 3:
            raise RequestError(
                f"augmentation of {self.name}: its samples have shape {self.input_shape}, "
                "expected images (channels, height, width)"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample, (channels, height, width) for images."""
        return tuple(self.train_x.shape[1:])

    @property
    def train_size(self) -> int:
        """How many training samples there are."""
        return len(self.train_y)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.train_y.device

    def to(self, device: torch.device | str) -> Data:
        """The same data on a device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})

    def with_seed(self, seed: int) -> Data:
        """The same data, augmented by the random numbers of another seed."""
        return replace(self, seed=seed)

    def first(self, size: int, seed: int) -> Data:
        """The same data with so many of its training samples, drawn by a seed; those of fewer are among those of more.

        Raises:
            RequestError: more than there are.
        """
        if size > self.train_size:
            raise RequestError(f"--train-size {size}: {self.name} has {self.train_size} training samples")
        index = torch.from_numpy(np.sort(permutation(self.train_size, seed, "train")[:size])).to(self.device)
        return replace(self, train_x=self.train_x[index], train_y=self.train_y[index])

    def train_batches(
        self, order: Order, batch_size: int, first: int = 0, epoch: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole batches of one epoch, from the batch number `first` on, augmented (see `Samples`).

        The random numbers of a batch depend on the seed, the epoch and the number of the batch.
        """
        index = torch.as_tensor(order).to(self.device)
        black = _normalize(np.zeros((1, len(self.mean), 1, 1), np.uint8), self.mean, self.std)[0].to(self.device)
        size = min(batch_size, len(index))
        for batch in range(first, whole_batches(len(index), batch_size)):
            rows = index[batch * size : (batch + 1) * size]
            # On a CPU twice as fast as train_x[rows].
            x = self.train_x.index_select(0, rows)
            yield (
                augment(x, self.augmentation, black, self.seed, f"{epoch}/{batch}"),
                self.train_y.index_select(0, rows),
            )

    def batches(self, split: HeldOut, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples of a held-out split in a fixed order; the last batch may be smaller."""
        parts = {"validation": (self.validation_x, self.validation_y), "test": (self.test_x, self.test_y)}
        x, y = parts[split]
        for start in range(0, len(y), batch_size):
            yield x[start : start + batch_size], y[start : start + batch_size]


def split(name: str, arrays: Arrays, split_seed: int) -> Data:
    """Hold out validation samples by `split_seed`, and normalize all by the training set's mean and deviation."""
    mean, std = (arrays.mean, arrays.std) if arrays.mean and arrays.std else _measure(arrays.train_x)
    order = permutation(len(arrays.train_y), split_seed, "validation")
    held_out, train = np.sort(order[: arrays.validation]), np.sort(order[arrays.validation :])
    return Data(
        name,
        _normalize(arrays.train_x[train], mean, std), torch.from_numpy(arrays.train_y[train]),
        _normalize(arrays.train_x[held_out], mean, std), torch.from_numpy(arrays.train_y[held_out]),
        _normalize(arrays.test_x, mean, std), torch.from_numpy(arrays.test_y.copy()),
        arrays.classes, mean, std,
    )  # fmt: skip


def _measure(x: npt.NDArray[Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if x.dtype != np.uint8:
        return (0.0,), (1.0,)
    axes = (0, *range(2, x.ndim))
    mean = x.mean(axis=axes, dtype=np.float64) / 255
    std = x.std(axis=axes, dtype=np.float64) / 255
    return tuple(round(float(m), 4) for m in mean), tuple(round(float(s), 4) or 1.0 for s in std)


def _normalize(x: npt.NDArray[Any], mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    if x.dtype != np.uint8:
        return torch.from_numpy(x.astype(np.float32))
    shape = (1, -1, *[1] * (x.ndim - 2))
    pixels = torch.from_numpy(x.astype(np.float32)).div_(255)
    return pixels.sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(std).view(shape))


def from_arrays(data: Any, split_seed: int) -> Data:
    """Data from arrays or tensors in memory.

    Args:
        data: `(x, y)`, of which a fifth becomes the fixed test split, or `{"train": (x, y), "test": (x, y)}`. `x` is
            [n, ...], uint8 pixels (normalized here) or floats (taken as they are); `y` is [n] class numbers from 0.
        split_seed: of the validation split, a tenth of the training samples.

    Raises:
        RequestError: anything else, with what came and what was expected.
    """
    arrays = as_arrays(data)
    digest = hashlib.sha256()
    for array in (arrays.train_x, arrays.train_y, arrays.test_x, arrays.test_y):
        digest.update(np.ascontiguousarray(array).data)
    name = f"arrays-{digest.hexdigest()[:8]}"
    return replace(split(name, arrays, split_seed), content=digest.hexdigest())


def as_arrays(data: Any) -> Arrays:
    """What `from_arrays` takes, or `Arrays`, checked, before it is split and normalized.

    Raises:
        RequestError: anything else, with what came and what was expected.
    """
    if isinstance(data, Arrays):
        return _check_arrays(data)
    if isinstance(data, Mapping) and set(data) == {"train", "test"}:
        train_x, train_y = _pair(data["train"], "train")
        test_x, test_y = _pair(data["test"], "test")
        if train_x.shape[1:] != test_x.shape[1:]:
            raise RequestError(f"train samples have shape {train_x.shape[1:]}, test samples {test_x.shape[1:]}")
    else:
        x, y = _pair(data, "data")
        order = permutation(len(y), 0, "test")
        test, train = np.sort(order[: round(len(y) * TEST_SHARE)]), np.sort(order[round(len(y) * TEST_SHARE) :])
        train_x, train_y, test_x, test_y = x[train], y[train], x[test], y[test]
    classes = int(max(train_y.max(), test_y.max())) + 1
    return Arrays(train_x, train_y, test_x, test_y, classes, validation=round(len(train_y) * VALIDATION_SHARE))


def _check_arrays(given: Arrays) -> Arrays:
    """Arrays that a stranger's function has filled, as `as_arrays` would."""
    parts = {"train": (given.train_x, given.train_y), "test": (given.test_x, given.test_y)}
    found, problems = as_arrays(parts), []
    if found.classes > given.classes:
        problems.append(f"classes={given.classes} and the class number {found.classes - 1}, expected one below it")
    if not 0 < given.validation < len(found.train_y):
        problems.append(f"validation={given.validation}, expected some of the {len(found.train_y)} training samples")
    if problems:
        raise RequestError(problems)
    return replace(found, classes=given.classes, validation=given.validation, mean=given.mean, std=given.std)


def from_dataset(dataset: Any, split_seed: int) -> Data:
    """Data from a map-style torch `Dataset` of pairs (x, y), read once into memory.

    Args:
        dataset: a `Dataset`, of which a fifth becomes the fixed test split, or `{"train": Dataset, "test": Dataset}`.
            Each `x` is a tensor or an array of one shape, uint8 pixels or floats (see `from_arrays`); each `y` is a
            class number from 0.
        split_seed: of the validation split, a tenth of the training samples.

    Raises:
        RequestError: anything else, with what came and what was expected.
    """
    # The random numbers of a dataset's own transforms; the caller's stream is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if isinstance(dataset, Mapping) and set(dataset) == {"train", "test"}:
            return from_arrays({part: _collect(dataset[part], part) for part in ("train", "test")}, split_seed)
        return from_arrays(_collect(dataset, "data"), split_seed)


def _collect(dataset: Any, what: str) -> tuple[Tensor, Tensor]:
    if not isinstance(dataset, Dataset) or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise RequestError(
            f"{what} is {type(dataset).__name__}, expected a torch Dataset with a length and samples by number, or "
            "{'train': Dataset, 'test': Dataset}"
        )
    count = len(dataset)
    if count == 0:
        raise RequestError(f"{what}: the dataset is empty")
    first = _sample(dataset, 0, what)[0]
    x, y = torch.empty((count, *first.shape), dtype=first.dtype), torch.empty(count, dtype=torch.int64)
    for i in range(count):
        x_i, y[i] = _sample(dataset, i, what)
        if x_i.shape != first.shape or x_i.dtype != first.dtype:
            raise RequestError(
                f"{what}: sample {i} is {x_i.dtype} {tuple(x_i.shape)}, sample 0 is {first.dtype} {tuple(first.shape)}"
            )
        x[i] = x_i
    return x, y


def _sample(dataset: Any, i: int, what: str) -> tuple[Tensor, int]:
    pair = dataset[i]
    try:
        x, y = pair
    except (TypeError, ValueError):
        raise RequestError(f"{what}: sample {i} is {type(pair).__name__}, expected a pair (x, y)") from None
    if not isinstance(x, Tensor | np.ndarray):
        raise RequestError(
            f"{what}: x of sample {i} is {type(x).__name__}, expected a tensor; for pictures add "
            "transform=torchvision.transforms.v2.PILToTensor()"
        )
    try:
        return torch.as_tensor(x).detach().cpu(), operator.index(y)
    except TypeError:
        raise RequestError(f"{what}: y of sample {i} is {y!r}, expected a whole class number") from None


def _pair(pair: Any, what: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    try:
        x, y = pair
    except (TypeError, ValueError):
        expected = "(x, y) or {'train': (x, y), 'test': (x, y)} of arrays or tensors"
        raise RequestError(f"{what} is {type(pair).__name__}, expected {expected}") from None
    x, y = (part.detach().cpu().numpy() if isinstance(part, Tensor) else np.asarray(part) for part in (x, y))
    problems = []
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y):
        problems.append(f"{what}: x has shape {x.shape} and y {y.shape}, expected [n, ...] and [n]")
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        problems.append(f"{what}: x is {x.dtype}, expected uint8 pixels or floats")
    elif x.dtype != np.uint8 and not np.isfinite(x).all():
        problems.append(f"{what}: x has {int((~np.isfinite(x)).sum())} values that are NaN or infinite")
    if not np.issubdtype(y.dtype, np.integer):
        problems.append(f"{what}: y is {y.dtype}, expected whole class numbers")
    elif y.size and y.min() < 0:
        problems.append(f"{what}: y has the class number {y.min()}, expected numbers from 0")
    if len(y) < 10:
        problems.append(f"{what}: {len(y)} samples, expected at least 10")
    if problems:
        raise RequestError(problems)
    return x, y.astype(np.int64)
