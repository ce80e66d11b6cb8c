"""Street View House Numbers, cropped: two MATLAB files of 32x32 colour images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..problems import RequestError
from .arrays import Arrays, Files, locate

_FILES = Files(torchvision="SVHN", layouts={"svhn": ("train_32x32.mat", "test_32x32.mat")}, by_split=True)
_VALIDATION = 5000


def read(name: str, data_dir: str | None = None) -> Arrays:
    """Read both files; the label 10 means the digit 0.

    Raises:
        RequestError: the files are nowhere and cannot be downloaded, or one of them is damaged.
    """
    (train_x, train_y), (test_x, test_y) = (_read(path) for path in locate(name, _FILES, data_dir))
    return Arrays(
        train_x, train_y, test_x, test_y, 10, min(_VALIDATION, len(train_y) // 10),
        (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970),
    )  # fmt: skip


def _read(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        table = loadmat(path)
        labels = table["y"].reshape(-1).astype(np.int64) % 10
        # MATLAB has the image's axes first: height, width, colour, number.
        return np.ascontiguousarray(table["X"].astype(np.uint8).transpose(3, 2, 0, 1)), labels
    except (MatReadError, OSError, ValueError, TypeError, KeyError) as error:
        raise RequestError(f"{path} is not a file of cropped house numbers: {error}") from None
