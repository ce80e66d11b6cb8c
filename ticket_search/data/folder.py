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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from supermask.masks.random_numbers import permutation, random_words

from ..contract.errors import RequestError, RunError, nearest_hint, some_of
from ..contract.flags import IMAGENET_MEAN, IMAGENET_STD
from .dataset import TEST_SHARE, VALIDATION_SHARE
from .image_files import EXPECTED, Indices, Listing, describe, shown, sizes_of, tell_copies
from .images import BadImages, Images, Key, Read
from .samples import HeldOut, Order, whole_batches

# The test split is the first of those that are there.
HELD_OUT_FOLDERS = ("test", "val")
_CPU = torch.device("cpu")
# More read faster than a GPU trains, and each holds batches in memory.
_MOST_WORKERS = 32


@dataclass(frozen=True, eq=False)
class Streamed:
    """A folder of images as training, validation and test samples, of which only the batches in use are in memory.

    `splits` holds the numbers of the files in `images` for `train`, `validation` and `test`. `workers` processes read
    ahead; 0: the main process reads. Images are normalized by `mean` and `std` in units of pixels / 255. Those of
    training are cut out at random and mirrored where `augmented`. `bad` counts the images that cannot be read: in
    training the next of the class stands in the place of each, in the other splits it is left out. `contents` tells the
    files from others. `share` is `(rank, world)`: which of so many shares of every batch is read.
    """

    name: str
    class_names: tuple[str, ...]
    images: Images
    splits: Mapping[str, Indices]
    bad: BadImages
    workers: int
    seed: int = 0
    augmented: bool = True
    device: torch.device = _CPU
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    contents: Mapping[str, str] = field(default_factory=dict)
    share: tuple[int, int] = (0, 1)
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

    def with_share(self, rank: int, world: int) -> Streamed:
        """The same samples, of whose batches a share is read (see `Samples`)."""
        return replace(self, share=(rank, world))

    def without_augmentation(self) -> Streamed:
        """The same samples, of which those of training are cut out of the middle and not mirrored too."""
        return replace(self, augmented=False)

    def train_batches(
        self, order: Order, batch_size: int, first: int = 0, epoch: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole batches of one epoch, from the batch number `first` on, augmented (see `Samples`).

        The crop and flip of a sample depend on the seed, the epoch and the number of the sample.

        Raises:
            RunError: an image has changed since it was listed, more of them cannot be read than may be, or none of a
                class can.
        """
        index = torch.as_tensor(order).cpu().numpy()
        seeds = random_words(self.train_size, self.seed, f"augmentation/{epoch}") >> np.uint64(1)
        files = self.splits["train"]
        size = min(batch_size, len(index))
        rank, world = self.share
        chosen = (
            index[batch * size : (batch + 1) * size][rank::world]
            for batch in range(first, whole_batches(len(index), batch_size))
        )

        augmented = self.augmented

        # Without these data, which would live as long as the workers and they with them.
        def keys(rows: Indices) -> list[Key]:
            own = seeds[rows].tolist() if augmented else [None] * len(rows)
            return [Key(number, seed, True) for number, seed in zip(files[rows].tolist(), own, strict=True)]

        return self._stream("train", map(keys, chosen))

    def held_out_size(self, split: HeldOut) -> int:
        """How many samples a held-out split has."""
        return len(self.splits[split])

    def batches(self, split: HeldOut, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples of a held-out split in a fixed order; the last batch may be smaller, and those of bad images.

        Raises:
            RunError: an image has changed since it was listed, or more of them cannot be read than may be.
        """
        files = self.splits[split]
        rank, world = self.share
        starts = range(rank * batch_size, len(files), world * batch_size)
        return self._stream(
            split, ([Key(file, None, False) for file in files[start : start + batch_size].tolist()] for start in starts)
        )

    def _stream(self, split: str, keys: Iterable[list[Key]]) -> Iterator[tuple[Tensor, Tensor]]:
        mean, std = (torch.tensor(values, device=self.device).view(1, -1, 1, 1) for values in (self.mean, self.std))
        read = self._read(split, keys)
        for pixels, labels in send_ahead(read, self.device):
            yield pixels.to(torch.float32).div_(255).sub_(mean).div_(std), labels

    def _read(self, split: str, keys: Iterable[list[Key]]) -> Iterator[tuple[Tensor, Tensor]]:
        # One loader serves one iteration at a time; those that have come to their end wait here with their workers.
        loader = self._idle.pop() if self._idle else self._make_loader()
        plan = loader.batch_sampler
        assert isinstance(plan, _Plan)
        plan.keys = keys
        for batch in loader:
            try:
                self._look_at(split, batch)
            except RunError:
                # The error's traceback would keep its workers waiting.
                del loader
                raise
            if batch.pixels is None:
                continue
            yield batch.pixels, batch.labels
        self._idle.append(loader)

    def _look_at(self, split: str, batch: Batch) -> None:
        """Count the bad images of a batch.

        Raises:
            RunError: see `train_batches`.
        """
        if batch.changed is not None:
            number, why = batch.changed
            path = shown(os.fsdecode(bytes(self.images.paths[number])))
            raise RunError(
                f"the image {path} cannot be read: {why}. The images must stay as they are while a run goes on"
            )
        self.bad.add(split, batch.bad)
        if batch.lost is not None:
            name = shown(self.class_names[batch.lost])
            raise RunError(f"no image of the class {name} in {split} can be read")
        if split != "train" and self.bad.counts().get(split) == len(self.splits[split]):
            raise RunError(f"no image of {split} can be read")

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


def count_processors() -> int:
    """How many processors this process may use: of a job on a cluster fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def send_ahead(batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches on a device. To a GPU each is copied, in a stream of its own, while the one before it is worked on."""
    if device.type != "cuda":
        for batch in batches:
            yield tuple(part.to(device, non_blocking=True) for part in batch)  # type: ignore[misc]
        return
    stream = torch.cuda.Stream(device)
    waiting: tuple[tuple[Tensor, ...], Any] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            sent = tuple(part.to(device, non_blocking=True) for part in batch)
            copied = stream.record_event()
        if waiting is not None:
            yield _taken_over(*waiting)
        waiting = sent, copied
    if waiting is not None:
        yield _taken_over(*waiting)


def _taken_over(sent: tuple[Tensor, ...], copied: Any) -> Any:
    current = torch.cuda.current_stream(sent[0].device)
    current.wait_event(copied)
    for part in sent:
        part.record_stream(current)  # so that its memory is not given away while it is worked on
    return sent


class _Plan:
    """The keys of the batches that a loader is to read next; it outlives an iteration, as the workers do."""

    def __init__(self) -> None:
        self.keys: Iterable[list[Key]] = ()

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.keys)


def _leave_interrupts_to_the_main_process(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the run saves its state and needs its batches until then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Batch(NamedTuple):
    """Images [n, 3, size, size], or None, and their classes; the bad ones that were met; a class without a good one."""

    pixels: Tensor | None
    labels: Tensor
    bad: list[tuple[int, str]]
    lost: int | None
    changed: tuple[int, str] | None


def _collate(samples: list[Read]) -> Batch:
    good = [sample for sample in samples if sample.pixels is not None]
    pixels = torch.stack([sample.pixels for sample in good if sample.pixels is not None]) if good else None
    return Batch(
        pixels,
        torch.tensor([sample.label for sample in good]),
        [each for sample in samples for each in sample.bad],
        next((sample.label for sample in samples if sample.lost), None),
        next((sample.changed for sample in samples if sample.changed), None),
    )


def open_folder(
    data_dir: str | None,
    split_seed: int,
    *,
    seed: int = 0,
    image_size: int = 224,
    workers: int | None = None,
    max_bad_images: int | None = None,
) -> Streamed:
    """List the images below a folder.

    Args:
        data_dir: the folder; in it `train/CLASS/*.jpg` (or png, bmp, webp, ppm), and `test/` and `val/` likewise, the
            test and the validation split. Without `test/`, `val/` is the test split, as ImageNet's is; without both it
            is a fixed fifth of the training images.
        split_seed: of the validation split where it has no folder, a tenth of the training images.
        seed: of the random crops and flips of training images.
        image_size: height and width of a sample, in pixels.
        workers: processes that read and decode; None: one for each processor of this process, 32 at most.
        max_bad_images: how many images of a split may be such as cannot be read; None: 1 %, and one at least.

    Raises:
        RequestError: every problem of the folder at once: no folder, no classes, classes without images, test classes
            that are not trained.
    """
    problems = list[str]()
    workers = min(_MOST_WORKERS, count_processors()) if workers is None else workers
    if image_size < 1:
        problems.append(f"image size {image_size}, expected pixels from 1")
    if workers < 0:
        problems.append(f"{workers} workers, expected a number from 0")
    if data_dir is None:
        raise RequestError(
            [*problems, f"the data set imagefolder is a folder of yours: --data-dir DIR with {EXPECTED}"]
        )
    root, listing = Path(data_dir).absolute(), Listing(problems)
    train, held_out = _list_folders(root, listing)
    # Of a held-out folder those of the classes that there are, in the order of all classes.
    ordered = {
        part: {name: found[name] for name in train if name in found}
        for part, found in {"train": train, **held_out}.items()
    }
    paths = [path for part in ordered.values() for found in part.values() for path in found]
    labels = [label for part in ordered.values() for label, name in enumerate(train) for _ in part.get(name, ())]
    images = Images(paths, labels, sizes_of(paths), image_size)
    splits = _split([sum(map(len, part.values())) for part in ordered.values()], split_seed)
    bad = BadImages(images.paths, splits, max_bad_images, str(root))
    images.train, images.most = splits["train"], bad.most["train"]
    for sentence in (*listing.remarks(), *tell_copies(images.paths, images.bytes, splits)):
        warnings.warn(f"{shown(root)}: {sentence}", stacklevel=2)
    return Streamed(
        "imagefolder",
        tuple(train),
        images,
        splits,
        bad,
        workers,
        seed,
        contents=describe(ordered, images.bytes.tolist()),
    )


def _list_folders(root: Path, listing: Listing) -> tuple[dict[str, list[str]], dict[str, dict[str, list[str]]]]:
    """The images of each class that are to train, and of each held-out folder.

    Raises:
        RequestError: see `open_folder`.
    """
    train = listing.list_images(root / "train")
    held_out = {name: listing.list_images(root / name) for name in HELD_OUT_FOLDERS if os.path.lexists(root / name)}
    for folder, name in [(folder, name) for folder, found in held_out.items() for name in found]:
        if train and name not in train:
            listing.problems.append(
                f"{shown(root / folder / name)}: there is no class of this name in {shown(root / 'train')}"
                f"{shown(nearest_hint(name, train))}"
            )
    count = sum(map(len, train.values()))
    if 0 < count < 10:
        listing.problems.append(f"{shown(root / 'train')}: {count} images, expected at least 10")
    if listing.problems:
        raise RequestError(listing.problems)
    for folder, found in held_out.items():
        if lacking := [name for name in train if name not in found]:
            told = f"{shown(root / folder)} has no images of classes that the network learns: {shown(some_of(lacking))}"
            warnings.warn(told, stacklevel=3)
    return train, held_out


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
