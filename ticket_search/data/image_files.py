"""The files of a folder of images: which there are, what is to be told of them, and which lie in two splits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..contract.errors import some_of

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
EXPECTED = "DIR/train/CLASS/*.jpg and, for the test and the validation split, DIR/test and DIR/val likewise"
# Images too, which are not read. Whatever else lies beside them, as Thumbs.db, is passed over.
_OTHER_ENDINGS = (".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jfif", ".jp2", ".npy")
# What archives and network disks of others leave in every folder.
_NO_CLASSES = ("__MACOSX", "@eaDir")
# Copies are looked for among so many held-out images, and among so many of training that have the size of one of them.
_HELD_OUT, _TRAINING = 500, 4000
_END = 4096
# Sizes are asked for, one by one, of so many files at most: on a disk behind a network that takes minutes.
_MEASURED = 200_000
# The size of a file that is not there, or of which nothing may be known; and of one whose size was not asked for.
GONE, UNKNOWN = -1, -2

Indices = npt.NDArray[np.int64]


@dataclass
class Listing:
    """Everything that is wrong with folders of images, and what is passed over in them, as they are listed."""

    problems: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)

    def remarks(self) -> list[str]:
        """What to know of the folders where nothing is wrong with them."""
        if not self.passed_over:
            return []
        named = some_of(self.passed_over, 3)
        return [f"what is no image ({', '.join(ENDINGS)}) is passed over in the folders of classes: {named}"]

    def list_images(self, folder: Path) -> dict[str, list[str]]:
        """The paths of the images of each class in `folder/CLASS`, in the order of their names, but for hidden ones."""
        entries = self._entries(folder)
        if entries is None:
            return {}
        broken = [entry.name for entry in entries if _leads_nowhere(entry)]
        self.problems += [f"{shown(folder / name)} is a link to what is not there" for name in broken]
        names = [entry.name for entry in entries if entry.name not in (*broken, *_NO_CLASSES) and entry.is_dir()]
        if not names and not broken:
            self.problems.append(f"{shown(folder)} has no class folders; expected {EXPECTED}")
        return {name: self._images_in(folder / name) for name in names}

    def _images_in(self, folder: Path) -> list[str]:
        entries = self._entries(folder)
        if entries is None:
            return []
        # A link to nothing is there as an image that cannot be read, and told as one.
        images = [entry for entry in entries if entry.name.lower().endswith(ENDINGS)]
        files = [entry.path for entry in images if _leads_nowhere(entry) or entry.is_file()]
        if not files:
            self.problems.append(f"{shown(folder)} holds no images ({', '.join(ENDINGS)})")
        others = [entry.name for entry in entries if entry.name.lower().endswith(_OTHER_ENDINGS)]
        others += [e.name for e in entries if e.name not in _NO_CLASSES and not _leads_nowhere(e) and e.is_dir()]
        self.passed_over += [shown(folder / name) for name in others]
        return files

    def _entries(self, folder: Path) -> list[os.DirEntry[str]] | None:
        try:
            with os.scandir(folder) as entries:
                return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            self.problems.append(f"{shown(folder)} cannot be listed: {error.strerror}; expected {EXPECTED}")
            return None


def shown(text: str | os.PathLike[str]) -> str:
    """A name that came with the files as a terminal may show it: no control characters, no bytes that are no text."""
    plain = os.fspath(text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain)


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def sizes_of(paths: Sequence[str]) -> Indices:
    """The sizes of files in bytes; of very many files they are not asked for."""
    if len(paths) > _MEASURED:
        return np.full(len(paths), UNKNOWN)
    return np.fromiter(map(_size_of, paths), np.int64, len(paths))


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return GONE


def describe(folders: Mapping[str, Mapping[str, Sequence[str]]], sizes: Sequence[int]) -> dict[str, str]:
    """What tells a folder's images from others, by class: how many, their bytes, a digest of their names and sizes.

    `sizes` are those of all paths in their order.
    """
    found, start = {}, 0
    for folder, classes in folders.items():
        for name, paths in classes.items():
            its = sizes[start : start + len(paths)]
            start += len(paths)
            named = [f"{path[path.rfind('/') + 1 :]}/{size}" for path, size in zip(paths, its, strict=True)]
            digest = hashlib.sha256("/".join(named).encode(errors="surrogateescape")).hexdigest()
            found[f"{folder}/{name}"] = f"{len(paths):,} images of {sum(its):,} bytes, names and sizes {digest[:8]}"
    return found


def tell_copies(paths: npt.NDArray[np.bytes_], sizes: Indices, splits: Mapping[str, Indices]) -> Iterator[str]:
    """A sentence for each held-out split of which images are among those of training too, byte for byte.

    Of many images that may be copies some are looked at.
    """
    for split in ("validation", "test"):
        copies, all_looked_at = _count_copies(paths, sizes, splits["train"], splits[split])
        if copies:
            yield (
                f"{'' if all_looked_at else 'at least '}{copies:,} of the {len(splits[split]):,} images of {split} are "
                "among those of training too: what is measured on them tells nothing of images that are new"
            )


def _count_copies(paths: npt.NDArray[np.bytes_], sizes: Indices, train: Indices, held_out: Indices) -> tuple[int, bool]:
    """How many held-out images are copies, of those that were looked at, and whether these are all that may be some."""
    train = train[sizes[train] > 0]
    alike = held_out[np.isin(sizes[held_out], sizes[train])]
    some = alike[:: -(-len(alike) // _HELD_OUT) or 1]
    same_size = train[np.isin(sizes[train], sizes[some])]
    others = same_size[:: -(-len(same_size) // _TRAINING) or 1]
    there, here = ({i: _digest(paths[i], _END) for i in numbers.tolist()} for numbers in (others, some))
    ends = set(there.values()) & set(here.values())
    whole = {_digest(paths[i], None) for i, end in there.items() if end in ends}
    copies = sum(_digest(paths[i], None) in whole for i, end in here.items() if end in ends)
    return copies, len(some) == len(alike) and len(others) == len(same_size)


def _digest(path: bytes, end: int | None) -> bytes:
    """Of the last bytes of a file, or of all; of a file that cannot be read of its name, which no other has."""
    try:
        with open(path, "rb") as file:
            if end is not None:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - end))
            return hashlib.sha256(file.read()).digest()
    except OSError:
        return bytes(path)
