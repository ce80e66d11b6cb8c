"""MNIST and the data sets of its layout: four IDX files, gzipped or not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..contract.errors import RequestError
from .arrays import Arrays, Files, check_classes, locate, read_bytes
from .published import tell_of_others

_VALIDATION = 5000
_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_EMNIST_NAMES = tuple(
    f"emnist-balanced-{part}-{kind}-ubyte" for part in ("train", "test") for kind in ("images-idx3", "labels-idx1")
)

_SETS = {
    "fashion-mnist": Files(
        torchvision="FashionMNIST",
        layouts={"FashionMNIST/raw": _NAMES},
        hint=" On Debian and Ubuntu: apt-get install dataset-fashion-mnist.",
    ),
    "mnist": Files(torchvision="MNIST", layouts={"MNIST/raw": _NAMES}),
    "kmnist": Files(torchvision="KMNIST", layouts={"KMNIST/raw": _NAMES}),
    "emnist": Files(torchvision="EMNIST", layouts={"EMNIST/raw": _EMNIST_NAMES}, arguments={"split": "balanced"}),
}
# Mean and standard deviation of the training pixels / 255.
_MOMENTS = {
    "fashion-mnist": (0.2860, 0.3530),
    "mnist": (0.1307, 0.3081),
    "kmnist": (0.1918, 0.3483),
    "emnist": (0.1751, 0.3332),
}


def read(name: str, data_dir: str | None = None) -> Arrays:
    """Read the four files.

    Raises:
        RequestError: the files are nowhere and cannot be downloaded, or one of them is damaged.
    """
    files = locate(name, _SETS[name], data_dir)
    train_x, train_y, test_x, test_y = (read_idx(file) for file in files)
    classes = 47 if name == "emnist" else 10
    for i, (images, labels) in enumerate([(train_x, train_y), (test_x, test_y)]):
        of_images, of_labels = files[2 * i : 2 * i + 2]
        if len(images) != len(labels) or images.ndim != 3 or labels.ndim != 1:
            raise RequestError(f"{of_images} {images.shape} and {of_labels.name} {labels.shape} do not match")
        check_classes(of_labels, labels, classes)
    tell_of_others(name, files)
    if name == "emnist":
        # Its images are stored with rows and columns exchanged.
        train_x, test_x = train_x.transpose(0, 2, 1), test_x.transpose(0, 2, 1)
    mean, std = _MOMENTS[name]
    return Arrays(
        train_x[:, None], train_y.astype(np.int64), test_x[:, None], test_y.astype(np.int64),
        classes, min(_VALIDATION, len(train_y) // 10), (mean,), (std,),
    )  # fmt: skip


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes.

    Raises:
        RequestError: a file that is truncated or is not IDX.
    """
    data = read_bytes(path)
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise RequestError(f"{path} is not an IDX file of unsigned bytes: it starts with {data[:4].hex()}")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", count=data[3], offset=4))
    offset = 4 + 4 * data[3]
    if len(data) - offset != math.prod(shape):
        problem = "is truncated" if len(data) - offset < math.prod(shape) else "is too long"
        raise RequestError(
            f"{path} {problem}: {len(data) - offset:,} bytes of data, expected {math.prod(shape):,}, as of its shape "
            f"{shape}"
        )
    return np.frombuffer(data, np.uint8, offset=offset).reshape(shape)
