"""Data: one data set, split and normalized, as tensors on the device."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from supermask.kernels.gpu import send
from supermask.masks.random_numbers import permutation

from ..contract.errors import RequestError
from .arrays import Arrays
from .augmentation import NO_AUGMENTATION, Augmentation, augment, draw
from .checks import at
from .parts import read_part
from .samples import HeldOut, Order, whole_batches
from .trees import count, move, named_leaves, part, shape_of_sample, take

TEST_SHARE = 0.2
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Data:
    """Training, validation and test samples, in memory.

    `x` is a tensor [n, *input_shape], float32 and normalized, or int64 numbers of tokens, or a tree of such tensors
    (tuples, dictionaries), which a network is called with as arguments. `y` is int64 class numbers, [n] or of any rank
    ([n, tokens], [n, height, width]) with -100 where none counts, or float32 numbers [n, ...], or a tree of such
    tensors. `classes` is how many numbers a network is to give: classes, or columns of float targets; 0 where `y` is a
    tree. `augmentation` is what `train_batches` does to images, by random numbers that depend on `seed`. `fingerprint`
    is that of what a person's own function gave, before it was split; `contents` has those of the parts of other sets.
    Where `packed`, images are bytes, and normalized as they are given out. `share` is `(rank, world)`: which of so many
    shares of every batch is given out.

    Raises:
        RequestError: an augmentation of samples that are no images.
    """

    name: str
    train_x: Any
    train_y: Any
    validation_x: Any
    validation_y: Any
    test_x: Any
    test_y: Any
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation = NO_AUGMENTATION
    seed: int = 0
    fingerprint: str = ""
    contents: Mapping[str, str] = field(default_factory=dict)
    packed: bool = False
    share: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if self.augmentation != NO_AUGMENTATION and not (isinstance(self.train_x, Tensor) and self.train_x.dim() == 4):
            raise RequestError(
                f"augmentation of {self.name}: its samples have shape {self.input_shape}, "
                "expected images (channels, height, width)"
            )

    @property
    def input_shape(self) -> Any:
        """Shape of one sample, (channels, height, width) for images; of a tree the tree of shapes."""
        return shape_of_sample(self.train_x)

    @property
    def train_size(self) -> int:
        """How many training samples there are."""
        return count(self.train_y)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        device: torch.device = tree_leaves(self.train_y)[0].device
        return device

    @property
    def parts(self) -> dict[str, tuple[Any, Any]]:
        """The samples and the targets of each split, on the CPU."""
        here = self.to("cpu")
        pairs = (here.train_x, here.train_y), (here.validation_x, here.validation_y), (here.test_x, here.test_y)
        return dict(zip(("train", "validation", "test"), pairs, strict=True))

    def to(self, device: torch.device | str) -> Data:
        """The same data on a device; images of pixels lie there as bytes, and are normalized batch by batch."""
        here = self if torch.device(device).type == "cpu" else self._packed()
        moved = replace(here, **{name: move(getattr(here, name), device) for name in _PARTS})
        return moved.unpacked() if torch.device(device).type == "cpu" else moved

    def unpacked(self) -> Data:
        """The same data with images normalized as a whole."""
        if not self.packed:
            return self
        images: dict[str, Any] = {name: _scale(getattr(self, name), self.mean, self.std) for name in _IMAGES}
        return replace(self, **images, packed=False)

    def _packed(self) -> Data:
        """The same data with images as bytes, a quarter of the memory, where they are such exactly."""
        pixels: dict[str, Any] = {}
        for name in _IMAGES:
            x = getattr(self, name)
            found = _pixels_of(x, self.mean, self.std) if isinstance(x, Tensor) and x.is_cpu else None
            if found is None:
                return self
            pixels[name] = found
        return replace(self, **pixels, packed=True)

    def double(self) -> Data:
        """The same data with its floats in float64."""

        def widen(tensor: Tensor) -> Tensor:
            return tensor.double() if tensor.is_floating_point() else tensor

        return replace(self, **{name: tree_map(widen, getattr(self, name)) for name in _PARTS})

    def with_seed(self, seed: int) -> Data:
        """The same data, augmented by the random numbers of another seed."""
        return replace(self, seed=seed)

    def with_share(self, rank: int, world: int) -> Data:
        """The same data, of whose batches a share is given out (see `Samples`)."""
        return replace(self, share=(rank, world))

    def without_augmentation(self) -> Data:
        """The same data, of which the training samples are as they are too."""
        return replace(self, augmentation=NO_AUGMENTATION)

    def first(self, size: int, seed: int) -> Data:
        """The same data with so many of its training samples, drawn by a seed; those of fewer are among those of more.

        Raises:
            RequestError: more than there are.
        """
        if size > self.train_size:
            raise RequestError(f"--train-size {size}: {self.name} has {self.train_size} training samples")
        index = torch.from_numpy(np.sort(permutation(self.train_size, seed, "train")[:size])).to(self.device)
        return replace(self, train_x=take(self.train_x, index), train_y=take(self.train_y, index))

    def train_batches(self, order: Order, batch_size: int, first: int = 0, epoch: int = 0) -> Iterator[tuple[Any, Any]]:
        """The whole batches of one epoch, from the batch number `first` on, augmented (see `Samples`).

        The random numbers of a batch depend on the seed, the epoch and the number of the batch.
        """
        index = send(torch.as_tensor(order), self.device)
        size = min(batch_size, len(index))
        numbers = range(first, whole_batches(len(index), batch_size))
        # All of the epoch's at once: a copy in every step would be waited for.
        drawn = draw(self.augmentation, size, self.seed, [f"{epoch}/{number}" for number in numbers])
        if drawn is not None:
            drawn = send(drawn, self.device)
            black = _normalize(np.zeros((1, len(self.mean), 1, 1), np.uint8), self.mean, self.std)[0].to(self.device)
        rank, world = self.share
        own = slice(rank, size, world)
        for place, number in enumerate(numbers):
            rows = index[number * size : (number + 1) * size][own]
            x, y = self._given_out(take(self.train_x, rows)), take(self.train_y, rows)
            yield (x if drawn is None else augment(x, self.augmentation, black, drawn[place][:, own])), y

    def held_out_size(self, split: HeldOut) -> int:
        """How many samples a held-out split has."""
        return count(self.validation_y if split == "validation" else self.test_y)

    def batches(self, split: HeldOut, batch_size: int) -> Iterator[tuple[Any, Any]]:
        """All samples of a held-out split in a fixed order; the last batch may be smaller."""
        parts = {"validation": (self.validation_x, self.validation_y), "test": (self.test_x, self.test_y)}
        x, y = parts[split]
        rank, world = self.share
        for start in range(rank * batch_size, count(y), world * batch_size):
            yield self._given_out(part(x, start, start + batch_size)), part(y, start, start + batch_size)

    def _given_out(self, x: Any) -> Any:
        return _scale(x, self.mean, self.std) if self.packed else x


_IMAGES = ("train_x", "validation_x", "test_x")
_PARTS = ("train_x", "train_y", "validation_x", "validation_y", "test_x", "test_y")


def split(name: str, arrays: Arrays, split_seed: int) -> Data:
    """Hold out validation samples by `split_seed` where none are given, and normalize all by the training set's mean
    and deviation.
    """
    mean, std = (arrays.mean, arrays.std) if arrays.mean and arrays.std else _measure(arrays.train_x)
    if arrays.validation_x is not None:
        train = (arrays.train_x, arrays.train_y)
        held_out = (arrays.validation_x, arrays.validation_y)
    else:
        order = permutation(_length(arrays.train_y), split_seed, "validation")
        rows = np.sort(order[: arrays.validation]), np.sort(order[arrays.validation :])
        held_out, train = (_rows((arrays.train_x, arrays.train_y), each) for each in rows)
    (train_x, train_y), (validation_x, validation_y), (test_x, test_y) = (
        (_normalize_all(x, mean, std), tree_map(_target, y))
        for x, y in (train, held_out, (arrays.test_x, arrays.test_y))
    )
    return Data(
        name, train_x, train_y, validation_x, validation_y, test_x, test_y, arrays.classes, mean, std
    )  # fmt: skip


def _length(tree: Any) -> int:
    return len(tree_leaves(tree)[0])


def _rows(tree: Any, rows: npt.NDArray[Any]) -> Any:
    return tree_map(lambda array: array[rows], tree)


def _measure(x: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8:
        return (0.0,), (1.0,)
    axes = (0, *range(2, x.ndim))
    mean = x.mean(axis=axes, dtype=np.float64) / 255
    std = x.std(axis=axes, dtype=np.float64) / 255
    return tuple(round(float(m), 4) for m in mean), tuple(round(float(s), 4) or 1.0 for s in std)


def _normalize_all(x: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
    """Pixels normalized; of a tree everything as it is, numbers of tokens among them."""
    return _normalize(x, mean, std) if isinstance(x, np.ndarray) else tree_map(_plain, x)


def _normalize(x: npt.NDArray[Any], mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    if x.dtype != np.uint8:
        return _plain(x)
    return _scale(torch.from_numpy(x.astype(np.float32)), mean, std)


def _scale(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Bytes, or float32 numbers of them that are changed in place, less the mean and divided by the deviation."""
    x = pixels.to(torch.float32)
    whole, center, width = _constants(mean, std, pixels.dim(), x.device)
    return x.div_(whole).sub_(center).div_(width)


@functools.lru_cache(maxsize=64)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], dims: int, device: torch.device) -> tuple[Tensor, ...]:
    """255, the mean and the deviation as tensors: a GPU divides by a number by multiplying with its reciprocal."""
    shape = (1, -1, *[1] * (dims - 2))
    return tuple(send(torch.tensor(values).view(shape), device) for values in ((255.0,), mean, std))


def _pixels_of(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor | None:
    """The bytes that normalized images come from; None where they come from none."""
    if x.dtype != torch.float32 or x.dim() != 4 or len(mean) not in (1, x.shape[1]):
        return None
    shape = (1, -1, 1, 1)
    pixels = x * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    found = pixels.mul_(255).round_().clamp_(0, 255).to(torch.uint8)
    return found if torch.equal(_scale(found, mean, std), x) else None


def _plain(array: npt.NDArray[Any]) -> Tensor:
    """Floats as float32, whole numbers as int64."""
    kinds: dict[str, Any] = {"f": np.float32, "b": np.bool_}
    return torch.from_numpy(array.astype(kinds.get(array.dtype.kind, np.int64)))


def _target(array: npt.NDArray[Any]) -> Tensor:
    """Class numbers as int64, everything else as float32: what is true or false, too, for a loss over labels."""
    return torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "ui" else np.float32))


def from_arrays(data: Any, split_seed: int, whole: bool = False) -> Data:
    """Data from what is in memory or can be read into it.

    Args:
        data: a part, of which a fifth becomes the fixed test split, or `{"train": part, "test": part}`, which may have
            a `validation` too. A part is `(x, y)`, a dictionary of arrays of which one is called `labels`, `label`,
            `y`, `targets` or `target`, a torch `Dataset` or `DataLoader` of either, or a data set of Hugging Face's
            `datasets` (see `parts.read_part`).
            `x` is [n, ...], uint8 pixels (normalized here), floats or numbers of tokens (taken as they are), or a tuple
            or dictionary of such arrays, with which the network is called. `y` is class numbers from 0, [n] or [n, ...]
            with -100 where none counts, or floats [n] or [n, ...].
        split_seed: of the validation split, a tenth of the training samples.
        whole: whether targets that are floats are to be class numbers.

    Raises:
        RequestError: anything else, with what came and what was expected.
    """
    # The random numbers of a dataset's own transforms, of a loader's order; the caller's stream is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        arrays = as_arrays(data, whole)
    digest = hashlib.sha256()
    parts = [arrays.train_x, arrays.train_y, arrays.test_x, arrays.test_y]
    parts += [] if arrays.validation_x is None else [arrays.validation_x, arrays.validation_y]
    for tree in parts:
        for where, array in named_leaves(tree):
            digest.update(where.encode())
            digest.update(np.ascontiguousarray(array).data)
    name = f"arrays-{digest.hexdigest()[:8]}"
    return replace(split(name, arrays, split_seed), fingerprint=digest.hexdigest())


def as_arrays(data: Any, whole: bool = False) -> Arrays:
    """What `from_arrays` takes, or `Arrays`, checked, before it is split and normalized.

    Raises:
        RequestError: anything else, with what came and what was expected.
    """
    if isinstance(data, Arrays):
        return _check_arrays(data, whole)
    held_out = None
    if isinstance(data, Mapping) and {"train", "test"} <= set(data):
        if strange := sorted(map(str, set(data) - {"train", "validation", "test"})):
            raise RequestError(f"data has {', '.join(strange)} beside train and test; expected validation at most")
        train, test = read_part(data["train"], "train", whole), read_part(data["test"], "test", whole)
        held_out = read_part(data["validation"], "validation", whole) if "validation" in data else None
    else:
        samples = read_part(data, "data", whole)
        size = _length(samples[1])
        order, cut = permutation(size, 0, "test"), round(size * TEST_SHARE)
        test, train = (_rows(samples, np.sort(rows)) for rows in (order[:cut], order[cut:]))
    others = {"test": test} if held_out is None else {"test": test, "validation": held_out}
    if problems := [problem for name, other in others.items() for problem in _differences(train, name, other)]:
        raise RequestError(problems)
    return Arrays(
        *train, *test, _count_outputs([train[1], *(other[1] for other in others.values())]),
        validation=round(_length(train[1]) * VALIDATION_SHARE),
        **{} if held_out is None else {"validation_x": held_out[0], "validation_y": held_out[1]},
    )  # fmt: skip


def _differences(train: tuple[Any, Any], name: str, other: tuple[Any, Any]) -> Iterator[str]:
    """How the samples of a part are unlike those of training."""
    for kind, here, there in zip(("samples", "targets"), train, other, strict=True):
        ours, theirs = (tree_map(lambda array: (array.shape[1:], array.dtype.kind in "ui"), t) for t in (here, there))
        if ours == theirs:
            continue
        shapes = [tree_map(lambda array: array.shape[1:], tree) for tree in (here, there)]
        if shapes[0] != shapes[1]:
            yield f"train {kind} have shape {shapes[0]}, {name} {kind} {shapes[1]}"
        else:
            types = [", ".join(str(array.dtype) for array in tree_leaves(tree)) for tree in (here, there)]
            yield f"train {kind} are {types[0]}, {name} {kind} {types[1]}"


def _count_outputs(targets: list[Any]) -> int:
    """How many numbers a network is to give for each target: classes, or columns of floats; 0 where that is not one."""
    if not all(isinstance(y, np.ndarray) for y in targets):
        return 0
    if targets[0].dtype.kind in "ui":
        return int(max(y.max() for y in targets)) + 1
    return int(np.prod(targets[0].shape[1:]))


def _check_arrays(given: Arrays, whole: bool) -> Arrays:
    """Arrays that a stranger's function has filled, as `as_arrays` would."""
    parts = {"train": (given.train_x, given.train_y), "test": (given.test_x, given.test_y)}
    if given.validation_x is not None:
        parts["validation"] = (given.validation_x, given.validation_y)
    found, problems = as_arrays(parts, whole), []
    if found.classes > given.classes:
        targets = {"train": found.train_y, "test": found.test_y, "validation": found.validation_y}
        beyond = {name: y >= given.classes for name, y in targets.items() if y is not None}
        where = next((f": {name}, {at(wrong)}" for name, wrong in beyond.items() if wrong.any()), "")
        problems.append(
            f"classes={given.classes} and the class number {found.classes - 1}, expected one below it{where}"
        )
    samples = _length(found.train_y)
    if given.validation_x is None and not 0 < given.validation < samples:
        problems.append(f"validation={given.validation}, expected some of the {samples} training samples")
    if problems:
        raise RequestError(problems)
    return replace(found, classes=given.classes, validation=given.validation, mean=given.mean, std=given.std)
