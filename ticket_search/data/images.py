"""Image files as samples: decoded, cut to one size, and what is done about those that cannot be read."""

from __future__ import annotations

import errno
import io
import os
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from supermask.plugins.entry_points import one_line

from ..contract.errors import RunError
from .image_files import UNKNOWN, Indices, Listing, shown

if TYPE_CHECKING:
    from PIL import Image

# The share of a split's images that may be bad, where nobody says how many.
BAD_SHARE = 0.01
# So many are named one by one in warnings, and in an error.
_NAMED = 5
# What is wrong with a file itself, and will be the next time; any other error of the system may be gone by then.
_LASTING = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)


class Key(NamedTuple):
    """Which image is read: its number, a seed for its augmentation (None: not augmented), and whether it trains.

    In training another image takes the place of a bad one.
    """

    number: int
    seed: int | None
    training: bool


@dataclass(frozen=True)
class Read:
    """An image, or None, with its class and the bad images that were met; or that a file has changed meanwhile.

    It is `lost` where no other image of training can take its place.
    """

    pixels: Tensor | None
    label: int
    bad: tuple[tuple[int, str], ...] = ()
    changed: tuple[int, str] | None = None
    lost: bool = False


class Images(Dataset[Any]):
    """Image files by number, decoded to uint8 tensors [3, size, size]: a random crop and flip, or the middle.

    `paths` are file names as bytes, in one array, since worker processes copy Python objects that they touch. `bytes`
    are the sizes of the files as they were listed (see `image_files.sizes_of`). `train` holds the numbers of the
    training images; in the place of a bad one stands the next of its class among them that can be read, after the last
    the first.
    """

    def __init__(self, paths: Sequence[str], labels: Sequence[int], sizes: Indices, size: int) -> None:
        from torchvision.transforms import v2

        self.paths = np.array([os.fsencode(path) for path in paths])
        self.labels = np.array(labels, np.int64)
        self.bytes = sizes
        self.train = np.arange(len(paths))
        # More bad images than this end the run, and need not be looked for.
        self.most = 0
        self.size = size
        self._random = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()])
        self._middle = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Key) -> Read:
        label, bad = int(self.labels[key.number]), list[tuple[int, str]]()
        for number in self._in_turn(key):
            try:
                image = decode(self._bytes_of(number))
            except _ChangedError as error:
                return Read(None, label, tuple(bad), (number, str(error)))
            except MemoryError:
                return Read(None, label, tuple(bad), (number, "MemoryError: there is too little memory to decode it"))
            # A damaged file may raise anything at all. An error raised here would reach the caller as a worker's
            # traceback.
            except Exception as error:
                bad.append((number, _reason(error)))
                continue
            return Read(self._cut(image, key.seed), label, tuple(bad))
        return Read(None, label, tuple(bad), lost=key.training)

    def _in_turn(self, key: Key) -> Iterator[int]:
        yield key.number
        if key.training:
            same = self.train[self.labels[self.train] == self.labels[key.number]]
            after = int(np.searchsorted(same, key.number)) + 1
            yield from np.roll(same, -after)[: min(self.most, len(same) - 1)].tolist()

    def _bytes_of(self, number: int) -> bytes:
        path, listed = os.fsdecode(bytes(self.paths[number])), int(self.bytes[number])
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            link_to_nothing = listed < 0 and os.path.islink(path)
            if error.errno in _LASTING and (error.errno != errno.ENOENT or link_to_nothing):
                raise type(error)(error.strerror) from None
            raise _ChangedError(f"{type(error).__name__}: {error.strerror}") from None
        if listed not in (len(data), UNKNOWN):
            raise _ChangedError(f"it has {len(data):,} bytes, and had {listed:,} when the folder was listed")
        return data

    def _cut(self, image: Image.Image, seed: int | None) -> Tensor:
        from torchvision.transforms.v2.functional import pil_to_tensor

        if seed is None:
            middle: Tensor = pil_to_tensor(self._middle(image))
            return middle
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed the devices too.
            torch.default_generator.manual_seed(seed)
            cut: Tensor = pil_to_tensor(self._random(image))
            return cut


class _ChangedError(Exception):
    """A file is not what it was when the folder was listed, or the system cannot read it just now."""


class NoImageError(Exception):
    """What a file is, that is no image: a sentence of ours."""


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, NoImageError) else one_line(error)


def decode(data: bytes) -> Image.Image:
    """The bytes of an image file as an image in red, green and blue of 8 bits each: the first one of an animation.

    Grey values stand for all three colours; of 16 bits the upper 8 are taken. Transparency is dropped, whatever colour
    lies under it. The orientation that a camera has noted is not looked at, as torchvision's `ImageFolder` does not.

    Raises:
        NoImageError: it is none.
        Exception: whatever the decoder raises at one that is damaged, or has more pixels than it takes for harmless.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise NoImageError("the file is empty")
    with warnings.catch_warnings():
        # Of palettes with transparency, of sizes, of metadata: what matters is an error.
        warnings.simplefilter("ignore")
        try:
            first = Image.open(io.BytesIO(data))
        except UnidentifiedImageError:
            raise NoImageError("it is in no form of image that is known") from None
        with first as image:
            # Of other forms the decoder itself looks at what there is to be looked at.
            if image.format == "PNG":
                image.verify()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode.startswith("I"):
                values = np.asarray(image).astype(np.int64)
                return Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
            if image.mode == "F":
                raise NoImageError("its values are floats, of which none is known to be white")
            return image.convert("RGB")


class BadImages:
    """The bad images that a run has met in each split, and how many of them may be.

    Args:
        paths: of all images, by number.
        splits: the numbers of each split's images.
        most: how many a split may have; None: 1 % of its images, and one at least.
        folder: in which they all lie.
    """

    def __init__(self, paths: Any, splits: Mapping[str, Indices], most: int | None, folder: str) -> None:
        self.most = {
            split: max(1, int(len(numbers) * BAD_SHARE)) if most is None else most for split, numbers in splits.items()
        }
        self._paths, self._folder = paths, folder
        self._found: dict[str, dict[int, str]] = {}
        self._told: set[tuple[str, int]] = set()

    def add(self, split: str, found: Sequence[tuple[int, str]]) -> None:
        """Count images, and tell of those that are new.

        Raises:
            RunError: there are more than may be.
        """
        for number, why in found:
            known = self._found.setdefault(split, {})
            if number in known:
                continue
            known[number] = why
            if len(known) > self.most[split]:
                raise RunError(self._too_many(split, known))
            self._tell(split, number, why)

    def _tell(self, split: str, number: int, why: str) -> None:
        if (split, number) in self._told:
            return
        self._told.add((split, number))
        told = sum(each == split for each, _ in self._told)
        if told <= _NAMED:
            done = "the next of its class takes its place" if split == "train" else f"it is left out of {split}"
            text = f"the image {self._path(number)} cannot be read: {why}; {done} (at most {self.most[split]:,} may be)"
            warnings.warn(text, stacklevel=4)
        elif told == _NAMED + 1:
            text = f"more images of {split} cannot be read, which are counted and not named; {self._all()}"
            warnings.warn(text, stacklevel=4)

    def _too_many(self, split: str, known: Mapping[int, str]) -> str:
        named = [f"{self._path(number)} cannot be read: {why}" for number, why in list(known.items())[:_NAMED]]
        if len(known) == 1:
            return f"the image {named[0]}. Replace or remove it, or allow for it by --max-bad-images; {self._all()}"
        return (
            f"{len(known):,} images of {split} are bad, of at most {self.most[split]:,}: {'; '.join(named)}. Replace "
            f"or remove them, or allow for more by --max-bad-images; {self._all()}"
        )

    def _all(self) -> str:
        code = f"from ticket_search.data.images import list_bad; list_bad({self._folder!r})"
        return f"all are listed by python -c {shlex.quote(code)}"

    def _path(self, number: int) -> str:
        return shown(os.fsdecode(bytes(self._paths[number])))

    def counts(self) -> dict[str, int]:
        """How many there are in each split that has some."""
        return {split: len(found) for split, found in self._found.items() if found}

    def state_dict(self) -> dict[str, dict[int, str]]:
        """What must be saved, so that a run that is resumed counts what one that was never stopped does."""
        return {split: dict(found) for split, found in self._found.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[int, str]]) -> None:
        """Go on from what was saved."""
        self._found = {split: dict(found) for split, found in state.items()}


def list_bad(folder: str | os.PathLike[str]) -> int:
    """Decode every image of a folder of images and print the path of each that cannot be read, and why.

    Returns:
        How many they are.
    """
    listing, number = Listing(), 0
    for part in ("train", "test", "val"):
        place = Path(folder) / part
        for files in listing.list_images(place).values() if place.is_dir() else ():
            for path in files:
                try:
                    decode(Path(path).read_bytes())
                # As above.
                except Exception as error:
                    number += 1
                    print(f"{shown(path)}: {_reason(error)}")
    return number
