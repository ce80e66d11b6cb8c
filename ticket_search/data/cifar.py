"""CIFAR-10 and CIFAR-100 in either of their on-disk formats: the Python batches or the binary version."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from supermask.plugins.entry_points import one_line

from ..contract.errors import RequestError
from .arrays import Arrays, Files, check_classes, locate, read_bytes
from .published import tell_of_others

_VALIDATION = 5000

_SETS = {
    "cifar10": Files(
        torchvision="CIFAR10",
        layouts={
            "cifar-10-batches-py": (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"),
            "cifar-10-batches-bin": (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
        },
    ),
    "cifar100": Files(
        torchvision="CIFAR100",
        layouts={"cifar-100-python": ("train", "test"), "cifar-100-binary": ("train.bin", "test.bin")},
    ),
}
_CLASSES = {"cifar10": 10, "cifar100": 100}
# Mean and standard deviation of the training pixels / 255, red, green, blue.
_MEANS = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.5071, 0.4865, 0.4409)}
_STDS = {"cifar10": (0.2470, 0.2435, 0.2616), "cifar100": (0.2673, 0.2564, 0.2762)}


def read(name: str, data_dir: str | None = None) -> Arrays:
    """Read all batches; the last file is the test split.

    Raises:
        RequestError: the files are nowhere and cannot be downloaded, or one of them is damaged.
    """
    files = locate(name, _SETS[name], data_dir)
    parts = [_read_binary(path, name) if ".bin" in path.suffixes else _read_batch(path, name) for path in files]
    for path, (_, labels) in zip(files, parts, strict=True):
        check_classes(path, labels, _CLASSES[name])
    tell_of_others(name, files)
    train_x, train_y = (np.concatenate(arrays) for arrays in zip(*parts[:-1], strict=True))
    test_x, test_y = parts[-1]
    return Arrays(
        train_x,
        train_y,
        test_x,
        test_y,
        _CLASSES[name],
        min(_VALIDATION, len(train_y) // 10),
        _MEANS[name],
        _STDS[name],
    )


class _ArraysOnly(pickle.Unpickler):
    """The Python batches are pickles of 2009; nothing but arrays is taken from them."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, expected arrays only")


def _read_batch(path: Path, name: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    data = read_bytes(path)
    try:
        batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
        pixels = np.asarray(batch[b"data"], dtype=np.uint8)
        labels = np.asarray(batch[b"fine_labels" if name == "cifar100" else b"labels"], dtype=np.int64)
        return pixels.reshape(len(labels), 3, 32, 32), labels
    # A damaged pickle may raise anything at all.
    except Exception as error:
        raise RequestError(
            f"{path} is not a batch of {name}: {one_line(error)}; expected a pickle of rows of 3,072 pixels and "
            "their labels"
        ) from None


def _read_binary(path: Path, name: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    # A row is the label (for CIFAR-100 the coarse one, then the fine one) and 3,072 pixels, colour by colour.
    labels = 2 if name == "cifar100" else 1
    data = np.frombuffer(read_bytes(path), np.uint8)
    if data.size == 0 or data.size % (labels + 3072):
        raise RequestError(
            f"{path} is not a binary batch of {name}: {data.size:,} bytes, expected rows of {labels + 3072:,}"
        )
    rows = data.reshape(-1, labels + 3072)
    return rows[:, labels:].reshape(-1, 3, 32, 32), rows[:, labels - 1].astype(np.int64)
