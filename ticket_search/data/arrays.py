"""Arrays as read from disk, and where on disk data is looked for before it is downloaded."""

from __future__ import annotations

import gzip
import http.client
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs

from ..contract.errors import RequestError


@dataclass(frozen=True)
class Arrays:
    """A data set before it is split and normalized.

    `train_x` and `test_x` are [n, channels, height, width] (uint8 pixels or floats) or [n, features]; `train_y` and
    `test_y` are [n] integers in [0, classes). All of them may be of another task, and trees of arrays: see
    `dataset.from_arrays`. `mean` and `std` are per channel, in units of pixels / 255 where `x` is uint8; None: measured
    on the training images. `validation` is how many training samples are held out, where `validation_x` and
    `validation_y` are not given. `version` tells one content of the data set from others, where it has several.
    """

    train_x: Any
    train_y: Any
    test_x: Any
    test_y: Any
    classes: int
    validation: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    validation_x: Any = None
    validation_y: Any = None
    version: str = ""


@dataclass(frozen=True)
class Files:
    """The files of a data set: `{folder as torchvision names it: file names}`, and the class that downloads them.

    Files may also lie in a folder of the data set's name, or in the folder that is searched itself, gzipped or not.
    """

    torchvision: str
    layouts: Mapping[str, tuple[str, ...]]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    by_split: bool = False
    hint: str = ""


def cache_dir() -> Path:
    """The user's cache, where downloads go."""
    return Path(platformdirs.user_cache_dir("supermask"))


def search_path(data_dir: str | None) -> list[Path]:
    """The folders in which data is looked for, in order."""
    places = [data_dir, os.environ.get("TICKET_DATA"), cache_dir(), "/usr/share/datasets"]
    return [Path(place) for place in places if place]


def locate(name: str, files: Files, data_dir: str | None) -> list[Path]:
    """The paths of a data set's files: from the first folder that holds them all, or downloaded into the user's cache.

    Raises:
        RequestError: they are nowhere and cannot be downloaded, with what to do about it.
    """
    folders = search_path(data_dir)
    found = _find(folders, name, files)
    if found is None:
        _download(name, files, folders)
        found = _find([cache_dir()], name, files)
    if found is None:
        raise RequestError(f"torchvision downloaded {name}, but its files are not in {cache_dir()}")
    return found


def read_bytes(path: Path) -> bytes:
    """What is in a file, unpacked where its name ends in .gz.

    Raises:
        RequestError: a file that cannot be read or unpacked.
    """
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError(f"{path} cannot be read: {error}") from None


def check_classes(path: Path, labels: npt.NDArray[Any], classes: int) -> None:
    """Check class numbers, as read from `path`.

    Raises:
        RequestError: there are none, or one is not in [0, classes).
    """
    if labels.size == 0:
        raise RequestError(f"{path} holds no samples")
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if outside.size:
        where = f"at sample {outside[0]}, the first of {outside.size:,}"
        raise RequestError(f"{path} has the class number {labels[outside[0]]}, expected 0 to {classes - 1}: {where}")


def _find(folders: list[Path], name: str, files: Files) -> list[Path] | None:
    for folder in folders:
        for layout, names in files.layouts.items():
            for place in (folder / layout, folder / name, folder):
                paths = [_there(place / file) for file in names]
                if all(paths):
                    return [path for path in paths if path is not None]
    return None


def _there(path: Path) -> Path | None:
    zipped = path.with_name(path.name + ".gz")
    return path if path.is_file() else zipped if zipped.is_file() else None


def _download(name: str, files: Files, folders: list[Path]) -> None:
    import torchvision

    dataset = getattr(torchvision.datasets, files.torchvision)
    parts: list[dict[str, Any]] = [{"train": True}, {"train": False}]
    if files.by_split:
        parts = [{"split": "train"}, {"split": "test"}]
    try:
        for part in parts:
            dataset(root=str(cache_dir()), download=True, **part, **files.arguments)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        looked = ", ".join(str(folder) for folder in folders)
        wanted = " or ".join(", ".join(names) for names in files.layouts.values())
        raise RequestError(
            f"the data set {name} is not on disk (looked in {looked}) and cannot be downloaded: {error}. Put {wanted} "
            f"into {cache_dir() / name}, or name their folder by --data-dir or $TICKET_DATA.{files.hint}"
        ) from None
