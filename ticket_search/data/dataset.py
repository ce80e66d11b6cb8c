"""Data: one data set, split and normalized, as tensors on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from supermask.inits import permutation

from ..problems import RequestError
from .arrays import Arrays

TEST_SHARE = 0.2
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Data:
    """Training, validation and test samples: `x` float32 [n, *input_shape], normalized; `y` int64 [n]."""

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

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample, (channels, height, width) for images."""
        return tuple(self.train_x.shape[1:])

    def to(self, device: torch.device | str) -> Data:
        """The same data on a device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})


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
    arrays = Arrays(train_x, train_y, test_x, test_y, classes, validation=round(len(train_y) * VALIDATION_SHARE))
    digest = hashlib.sha256()
    for array in (train_x, train_y, test_x, test_y):
        digest.update(np.ascontiguousarray(array).data)
    return split(f"arrays-{digest.hexdigest()[:8]}", arrays, split_seed)


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
