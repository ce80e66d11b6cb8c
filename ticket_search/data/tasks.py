"""Several tasks from one data set: its pixels permuted, its images turned, or its classes split. Imports no torch.

Goodfellow et al., An Empirical Investigation of Catastrophic Forgetting in Gradient-Based Neural Networks, 2013
(permuted pixels); Lopez-Paz & Ranzato, Gradient Episodic Memory for Continual Learning, 2017 (rotated); Zenke et al.,
Continual Learning Through Synaptic Intelligence, 2017 (split).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from supermask.masks.random_numbers import permutation

from .. import data as room
from ..contract.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

    from .dataset import Data
    from .samples import Samples

KINDS = ("permuted", "rotated", "split")
MOST = 10_000
_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Tasks:
    """So many tasks of a kind, numbered from 0; `seed` is that of the permutations."""

    kind: str
    number: int
    seed: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Their names: their numbers."""
        return tuple(map(str, range(self.number)))

    def classes(self, samples: Samples) -> int:
        """How many classes each of them has."""
        return samples.classes // self.number if self.kind == "split" else samples.classes

    def describe(self, index: int) -> dict[str, Any]:
        """What a ticket records of the task that it is of (see `through_task`)."""
        return {"kind": self.kind, "of": self.number, "number": index, "seed": self.seed}

    def problems(self, samples: Samples) -> list[str]:
        """Why these tasks cannot be made of the samples; empty if they can."""
        flag = f"--tasks {self.kind}:{self.number}"
        if not isinstance(samples, room.dataset.Data):
            return [f"{flag} needs data in memory, and {samples.name} is streamed"]
        x, y = samples.train_x, samples.train_y
        if not hasattr(x, "dim") or not hasattr(y, "dim") or y.dim() != 1 or y.is_floating_point():
            return [f"{flag} needs samples that are one tensor with a class each; those of {samples.name} are not"]
        if self.kind == "rotated" and x.dim() != 4:
            return [f"{flag} turns images (channels, height, width), and a sample has shape {list(x.shape[1:])}"]
        if self.kind == "permuted" and math.prod(x.shape[2:] if x.dim() > 2 else x.shape[1:]) < 2:
            return [f"{flag}: a sample has one place only, and nothing to permute"]
        if self.kind == "permuted" and (samples.augmentation.crop or samples.augmentation.flip):
            return [f"{flag}: --crop and --flip are of images whose pixels are where they were"]
        if self.kind == "split" and (samples.classes % self.number or samples.classes // self.number < 2):
            return [f"{flag}: the {samples.classes} classes of {samples.name} do not make {self.number} equal groups"]
        return []

    def samples(self, samples: Samples, index: int) -> Data:
        """The samples of a task.

        `permuted`: the pixels of every image, or the features, in an order of the seed and the task's number; all
        channels alike. `rotated`: images turned counterclockwise by 360 degrees * index / number, each pixel that of
        the nearest place, black outside. `split`: the classes from index * n on, n being a whole part of all, numbered
        from 0.

        Raises:
            RequestError: see `problems`.
        """
        if found := self.problems(samples):
            raise RequestError(found)
        whole = cast("Data", samples).unpacked()
        if self.kind == "split":
            return _split(whole, whole.classes // self.number, index)
        if self.kind == "permuted":
            shape = whole.train_x.shape[1:]
            count = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
            order, outside = permutation(count, self.seed, f"task/{index}"), None
        else:
            order, outside = _turned(whole.train_x.shape[2:], 360.0 * index / self.number)
        black = [-m / s for m, s in zip(whole.mean, whole.std, strict=True)]
        moved: dict[str, Any] = {
            f"{name}_x": _move(getattr(whole, f"{name}_x"), order, outside, black) for name in _PARTS
        }
        return replace(whole, **moved)


def read_tasks(text: str, seed: int = 0) -> Tasks:
    """The tasks that a text asks for: `permuted:10`, `rotated:8` or `split:5`.

    Raises:
        RequestError: anything else, and a single task.
    """
    match = re.fullmatch(r"([a-z]+):([0-9]{1,9})", text)
    if match is None or match[1] not in KINDS:
        raise RequestError(f"--tasks {text}: expected permuted:N, rotated:N or split:N, as permuted:10")
    number = int(match[2])
    if number < 2:
        raise RequestError(
            f"--tasks {text}: a superposition is of two tasks at least, and of one there is nothing to infer or to "
            "switch; --method edge-popup learns one"
        )
    if number > MOST:
        raise RequestError(f"--tasks {text}: expected at most {MOST:,} tasks")
    return Tasks(match[1], number, seed)


def through_task(meta: Mapping[str, Any], samples: Samples) -> Samples:
    """Samples as the task of a ticket sees them; as they are, where it names none.

    Args:
        meta: the ticket's.
        samples: of the data set as it is.

    Raises:
        RequestError: the ticket names a task that there is not, or that these samples do not have.
    """
    said = meta.get("task")
    if said is None:
        return samples
    keys = ("of", "number", "seed")
    known = isinstance(said, Mapping) and said.get("kind") in KINDS and all(type(said.get(key)) is int for key in keys)
    if not known or not 2 <= said["of"] <= MOST or not 0 <= said["number"] < said["of"] or said["seed"] < 0:
        raise RequestError(f"the ticket names a task that is not known here: {said!r:.80}")
    return Tasks(said["kind"], said["of"], said["seed"]).samples(samples, said["number"])


def _move(x: Tensor, order: npt.NDArray[Any], outside: npt.NDArray[Any] | None, black: list[float]) -> Tensor:
    """The places of every sample in another order, those `outside` black."""
    flat = x.flatten(2) if x.dim() > 2 else x
    moved = flat[..., order]
    if outside is not None:
        moved[..., outside] = x.new_tensor(black)[:, None]
    return moved.reshape(x.shape)


def _turned(size: Sequence[int], degrees: float) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """For each place of an image that is turned about its middle the place that it shows, and whether that is outside.

    Quarter turns are exact.
    """
    height, width = size
    quarters, rest = divmod(degrees, 90.0)
    exact = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(quarters) % 4]
    angle = math.radians(degrees)
    cos, sin = exact if rest == 0 else (math.cos(angle), math.sin(angle))
    rows, columns = np.divmod(np.arange(height * width), width)
    up, right = (height - 1) / 2 - rows, columns - (width - 1) / 2
    from_right, from_up = cos * right + sin * up, cos * up - sin * right
    row, column = (
        np.floor(place + 0.5).astype(np.int64) for place in ((height - 1) / 2 - from_up, from_right + (width - 1) / 2)
    )
    outside = (row < 0) | (row >= height) | (column < 0) | (column >= width)
    return np.where(outside, 0, row * width + column), outside


def _split(whole: Data, size: int, index: int) -> Data:
    """The samples of some classes, numbered from 0."""
    first, parts = size * index, dict[str, Any]()
    for name in _PARTS:
        x, y = getattr(whole, f"{name}_x"), getattr(whole, f"{name}_y")
        rows = (y >= first) & (y < first + size)
        parts |= {f"{name}_x": x[rows], f"{name}_y": y[rows] - first}
        if not len(parts[f"{name}_y"]):
            raise RequestError(f"--tasks split: {name} has no samples of the classes {first} to {first + size - 1}")
    return replace(whole, **parts, classes=size)
