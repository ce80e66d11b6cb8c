"""Street View House Numbers, cropped: two MATLAB files of 32x32 colour images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from supermask.plugins.entry_points import one_line

from ..contract.errors import RequestError
from .arrays import Arrays, Files, check_classes, locate, read_bytes
from .published import tell_of_others

_FILES = Files(torchvision="SVHN", layouts={"svhn": ("train_32x32.mat", "test_32x32.mat")}, by_split=True)
_VALIDATION = 5000


def read(name: str, data_dir: str | None = None) -> Arrays:
    """Read both files; the label 10 means the digit 0.

    Raises:
        RequestError: the files are nowhere and cannot be downloaded, or one of them is damaged.
    """
    files = locate(name, _FILES, data_dir)
    (train_x, train_y), (test_x, test_y) = map(_read, files)
    tell_of_others(name, files)
    return Arrays(
        train_x, train_y, test_x, test_y, 10, min(_VALIDATION, len(train_y) // 10),
        (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970),
    )  # fmt: skip


def _read(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    from scipy.io import loadmat

    data = read_bytes(path)
    try:
        table = loadmat(io.BytesIO(data), variable_names=("X", "y"))
        images, labels = table["X"], table["y"].reshape(-1).astype(np.int64)
    # A damaged file may raise anything at all.
    except Exception as error:
        raise RequestError(
            f"{path} is not a file of cropped house numbers: {one_line(error)}; expected a MATLAB file of X and y"
        ) from None
    if images.shape != (32, 32, 3, len(labels)) or images.dtype != np.uint8:
        raise RequestError(
            f"{path}: X is {images.dtype} {images.shape}, expected uint8 (32, 32, 3, n) for {len(labels)} labels"
        )
    labels = np.where(labels == 10, 0, labels)
    check_classes(path, labels, 10)
    # MATLAB has the image's axes first: height, width, colour, number.
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels
