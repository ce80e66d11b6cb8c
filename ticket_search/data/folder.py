"""Folders of images, DIR/train/CLASS/*.jpg: streamed, decoded and resized by worker processes as they are needed."""

from __future__ import annotations

import itertools
import os
import signal
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from supermask.masks.random_numbers import permutation, random_words

from ..contract.errors import RequestError, RunError, nearest_hint, some_of
from ..contract.flags import IMAGENET_MEAN, IMAGENET_STD
from .dataset import TEST_SHARE, VALIDATION_SHARE
from .samples import HeldOut, Order, whole_batches

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
# The test split is the first of those that are there.
HELD_OUT_FOLDERS = ("test", "val")
_EXPECTED = "DIR/train/CLASS/*.jpg and, for the test and the validation split, DIR/test and DIR/val likewise"

_CPU = torch.device("cpu")

Indices = npt.NDArray[np.int64]
# The number of a file, and a seed for its augmentation; None: not augmented.
Key = tuple[int, int | None]


@dataclass(frozen=True, eq=False)
class Streamed:
    """A folder of images as training, validation and test samples, of which only the batches in use are in memory.

    `splits` holds the numbers of the files in `images` for `train`, `validation` and `test`. `workers` processes read
    ahead; 0: the main process reads. Images are normalized by `mean` and `std` in units of pixels / 255. Those of
    training are cut out at random and mirrored where `augmented`.
    """

    name: str
    class_names: tuple[str, ...]
    images: Images
    splits: Mapping[str, Indices]
    workers: int
    seed: int = 0
    augmented: bool = True
    device: torch.device = _CPU
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    _idle: list[DataLoader[Any]] = field(default_factory=list, repr=False)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample, (3, image size, image size)."""
        return (3, self.images.size, self.images.size)

    @property
    def train_size(self) -> int:
        """How many training samples there are."""
        return len(self.splits["train"])

    def to(self, device: torch.device | str) -> Streamed:
        """The same samples on a device."""
        return replace(self, device=torch.device(device), _idle=[])

    def with_seed(self, seed: int) -> Streamed:
        """The same samples, augmented by the random numbers of another seed."""
        return replace(self, seed=seed)

    def without_augmentation(self) -> Streamed:
        """The same samples, of which those of training are cut out of the middle and not mirrored too."""
        return replace(self, augmented=False)

    def train_batches(
        self, order: Order, batch_size: int, first: int = 0, epoch: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole batches of one epoch, from the batch number `first` on, augmented (see `Samples`).

        The crop and flip of a sample depend on the seed, the epoch and the number of the sample.

        Raises:
            RunError: an image that cannot be read, with its path.
        """
        index = torch.as_tensor(order).cpu().numpy()
        seeds = random_words(self.train_size, self.seed, f"augmentation/{epoch}") >> np.uint64(1)
        files = self.splits["train"]
        size = min(batch_size, len(index))
        chosen = (
            index[batch * size : (batch + 1) * size] for batch in range(first, whole_batches(len(index), batch_size))
        )

        augmented = self.augmented

        # Without these data, which would live as long as the workers and they with them.
        def keys(rows: Indices) -> list[Key]:
            own = seeds[rows].tolist() if augmented else [None] * len(rows)
            return list(zip(files[rows].tolist(), own, strict=True))

        return self._stream(map(keys, chosen))

    def held_out_size(self, split: HeldOut) -> int:
        """How many samples a held-out split has."""
        return len(self.splits[split])

    def batches(self, split: HeldOut, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples of a held-out split in a fixed order; the last batch may be smaller.

        Raises:
            RunError: an image that cannot be read, with its path.
        """
        files = self.splits[split]
        starts = range(0, len(files), batch_size)
        return self._stream([(file, None) for file in files[start : start + batch_size].tolist()] for start in starts)

    def _stream(self, keys: Iterable[list[Key]]) -> Iterator[tuple[Tensor, Tensor]]:
        # One loader serves one iteration at a time; those that have come to their end wait here with their workers.
        loader = self._idle.pop() if self._idle else self._make_loader()
        plan = loader.batch_sampler
        assert isinstance(plan, _Plan)
        plan.keys = keys
        mean, std = (torch.tensor(values, device=self.device).view(1, -1, 1, 1) for values in (self.mean, self.std))
        for batch in loader:
            if isinstance(batch, _Unreadable):
                # The error's traceback would keep its workers waiting.
                del loader
                raise RunError(f"the image {batch.path} cannot be read: {batch.reason}. Replace or remove it")
            pixels, labels = (part.to(self.device, non_blocking=True) for part in batch)
            yield pixels.to(torch.float32).div_(255).sub_(mean).div_(std), labels
        self._idle.append(loader)

    def _make_loader(self) -> DataLoader[Any]:
        loader: DataLoader[Any] = DataLoader(
            self.images,
            batch_sampler=_Plan(),
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_leave_interrupts_to_the_main_process,
            persistent_workers=self.workers > 0,
            # Otherwise it draws from the global stream.
            generator=torch.Generator(),
        )
        if self.workers:
            # The garbage collector would take the queue first by which a worker learns of its end, and then wait five
            # seconds for it.
            batches: Any = iter(loader)
            weakref.finalize(loader, batches._shutdown_workers)
        return loader


class _Plan:
    """The keys of the batches that a loader is to read next; it outlives an iteration, as the workers do."""

    def __init__(self) -> None:
        self.keys: Iterable[list[Key]] = ()

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.keys)


def _leave_interrupts_to_the_main_process(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the run saves its state and needs its batches until then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class _Unreadable:
    path: str
    reason: str


class Images(Dataset[Any]):
    """Image files by number, decoded to uint8 tensors [3, size, size]: a random crop and flip, or the middle.

    `paths` are file names as bytes, in one array, since worker processes copy Python objects that they touch.
    """

    def __init__(self, paths: Sequence[str], labels: Sequence[int], size: int) -> None:
        from torchvision.transforms import v2

        self.paths = np.array([os.fsencode(path) for path in paths])
        self.labels = np.array(labels, np.int64)
        self.size = size
        self._random = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()])
        self._middle = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | _Unreadable:
        from PIL import Image
        from torchvision.transforms.v2.functional import pil_to_tensor

        number, seed = key
        path = os.fsdecode(bytes(self.paths[number]))
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        # A damaged file may raise anything at all. An error raised here would reach the caller as a worker's traceback.
        except Exception as error:
            return _Unreadable(path, f"{type(error).__name__}: {error}")
        if seed is None:
            return pil_to_tensor(self._middle(image)), int(self.labels[number])
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed the devices too.
            torch.default_generator.manual_seed(seed)
            return pil_to_tensor(self._random(image)), int(self.labels[number])


def _collate(samples: list[tuple[Tensor, int] | _Unreadable]) -> tuple[Tensor, Tensor] | _Unreadable:
    pixels, labels = [], []
    for sample in samples:
        if isinstance(sample, _Unreadable):
            return sample
        pixels.append(sample[0])
        labels.append(sample[1])
    return torch.stack(pixels), torch.tensor(labels)


def open_folder(
    data_dir: str | None, split_seed: int, *, seed: int = 0, image_size: int = 224, workers: int | None = None
) -> Streamed:
    """List the images below a folder.

    Args:
        data_dir: the folder; in it `train/CLASS/*.jpg` (or png, bmp, webp, ppm), and `test/` and `val/` likewise, the
            test and the validation split. Without `test/`, `val/` is the test split, as ImageNet's is; without both it
            is a fixed fifth of the training images.
        split_seed: of the validation split where it has no folder, a tenth of the training images.
        seed: of the random crops and flips of training images.
        image_size: height and width of a sample, in pixels.
        workers: processes that read and decode; None: one per processor, 8 at most.

    Raises:
        RequestError: every problem of the folder at once: no folder, no classes, classes without images, test classes
            that are not trained.
    """
    problems = []
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    if image_size < 1:
        problems.append(f"image size {image_size}, expected pixels from 1")
    if workers < 0:
        problems.append(f"{workers} workers, expected a number from 0")
    if data_dir is None:
        raise RequestError(
            [*problems, f"the data set imagefolder is a folder of yours: --data-dir DIR with {_EXPECTED}"]
        )
    root = Path(data_dir).absolute()
    train = _list_images(root / "train", problems)
    held_out = {name: _list_images(root / name, problems) for name in HELD_OUT_FOLDERS if (root / name).is_dir()}
    for folder, name in [(folder, name) for folder, found in held_out.items() for name in found]:
        if train and name not in train:
            problems.append(
                f"{root / folder / name}: there is no class of this name in {root / 'train'}{nearest_hint(name, train)}"
            )
    count = sum(map(len, train.values()))
    if 0 < count < 10:
        problems.append(f"{root / 'train'}: {count} images, expected at least 10")
    if problems:
        raise RequestError(problems)
    for folder, found in held_out.items():
        if lacking := [name for name in train if name not in found]:
            told = f"{root / folder} has no images of classes that the network learns: {some_of(lacking)}"
            warnings.warn(told, stacklevel=2)
    parts = [train, *held_out.values()]
    listed = [(path, label) for part in parts for label, name in enumerate(train) for path in part.get(name, ())]
    images = Images([path for path, _ in listed], [label for _, label in listed], image_size)
    splits = _split([sum(map(len, part.values())) for part in parts], split_seed)
    return Streamed("imagefolder", tuple(train), images, splits, workers, seed)


def _split(counts: Sequence[int], split_seed: int) -> dict[str, Indices]:
    """The numbers of the images of each split, of a list with those of `train/` and then of each held-out folder."""
    ends = np.cumsum([0, *counts])
    rest, *folders = (np.arange(start, end) for start, end in itertools.pairwise(ends))
    if len(folders) == 2:
        return {"train": rest, "validation": folders[1], "test": folders[0]}
    if folders:
        test = folders[0]
    else:
        rest, test = _hold_out(rest, permutation(len(rest), 0, "test"), TEST_SHARE)
    kept, validation = _hold_out(rest, permutation(len(rest), split_seed, "validation"), VALIDATION_SHARE)
    return {"train": kept, "validation": validation, "test": test}


def _hold_out(numbers: Indices, order: Indices, share: float) -> tuple[Indices, Indices]:
    """What stays and what is held out, each in the order it had."""
    count = round(len(numbers) * share)
    return numbers[np.sort(order[count:])], numbers[np.sort(order[:count])]


def _list_images(folder: Path, problems: list[str]) -> dict[str, list[str]]:
    """The paths of each class's images, all in the order of their names."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        found = {name: _images_in(folder / name) for name in names}
    except OSError as error:
        problems.append(f"{error.filename} cannot be listed: {error.strerror}; expected {_EXPECTED}")
        return {}
    if not found:
        problems.append(f"{folder} has no class folders; expected {_EXPECTED}")
    endings = ", ".join(ENDINGS)
    problems += [f"{folder / name} holds no images ({endings})" for name, paths in found.items() if not paths]
    return found


def _images_in(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        files = [entry.path for entry in entries if not entry.name.startswith(".") and entry.is_file()]
    return sorted(path for path in files if path.lower().endswith(ENDINGS))
