"""MNIST and the data sets of its layout: four IDX files, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..problems import RequestError
from .arrays import Arrays, cache_dir, search_path

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_VALIDATION = 5000

# torchvision's class and folder name, then mean and standard deviation of the training pixels / 255.
_SETS = {
    "fashion-mnist": ("FashionMNIST", (0.2860,), (0.3530,)),
    "mnist": ("MNIST", (0.1307,), (0.3081,)),
}
_HINTS = {"fashion-mnist": " On Debian and Ubuntu: apt-get install dataset-fashion-mnist."}


def read(name: str, data_dir: str | None = None) -> Arrays:
    """Read the four files from the first folder that holds them all, or download them into the user's cache.

    Raises:
        RequestError: the files are nowhere and cannot be downloaded, or one of them is damaged.
    """
    torchvision_name, mean, std = _SETS[name]
    places = [folder / sub for folder in search_path(data_dir) for sub in (".", name, f"{torchvision_name}/raw")]
    files = _find_files(places) or _download(name, torchvision_name, places)
    train_x, train_y, test_x, test_y = (read_idx(file) for file in files)
    for images, labels in ((train_x, train_y), (test_x, test_y)):
        if len(images) != len(labels) or images.ndim != 3 or labels.ndim != 1:
            raise RequestError(f"{files[0].parent}: images {images.shape} and labels {labels.shape} do not match")
    return Arrays(
        train_x[:, None], train_y.astype(np.int64), test_x[:, None], test_y.astype(np.int64),
        classes=10, validation=min(_VALIDATION, len(train_y) // 10), mean=mean, std=std,
    )  # fmt: skip


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes.

    Raises:
        RequestError: a file that is truncated or is not IDX.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError(f"{path} cannot be read: {error}") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise RequestError(f"{path} is not an IDX file of unsigned bytes: it starts with {data[:4].hex()}")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", count=data[3], offset=4))
    offset = 4 + 4 * data[3]
    if len(data) - offset != math.prod(shape):
        raise RequestError(f"{path} is truncated: {len(data) - offset} bytes of data, its shape {shape} says otherwise")
    return np.frombuffer(data, np.uint8, offset=offset).reshape(shape)


def _find_files(places: list[Path]) -> list[Path] | None:
    for place in places:
        found = [next((p for p in (place / name, place / f"{name}.gz") if p.is_file()), None) for name in _FILES]
        if all(found):
            return [path for path in found if path is not None]
    return None


def _download(name: str, torchvision_name: str, places: list[Path]) -> list[Path]:
    import torchvision

    try:
        getattr(torchvision.datasets, torchvision_name)(root=str(cache_dir()), train=True, download=True)
    except (OSError, RuntimeError) as error:
        looked = ", ".join(str(place) for place in places)
        raise RequestError(
            f"the data set {name} is not on disk (looked in {looked}) and cannot be downloaded: {error}. Put "
            f"{', '.join(_FILES)} (or the same with .gz) into {cache_dir() / name}, or name their folder by --data-dir "
            f"or $TICKET_DATA.{_HINTS.get(name, '')}"
        ) from None
    files = _find_files([cache_dir() / torchvision_name / "raw"])
    if files is None:
        raise RequestError(f"torchvision downloaded {name}, but its files are not in {cache_dir() / torchvision_name}")
    return files
