"""The digits data set of scikit-learn: 1,797 images of 8x8 pixels, values 0 to 16, read from the file it ships."""

from __future__ import annotations

import importlib.util
import warnings
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from supermask.masks.random_numbers import permutation
from supermask.plugins.entry_points import one_line

from ..contract.errors import RequestError
from .arrays import Arrays

# A row is the 64 pixels of an image, and its class.
_SHAPE = (1797, 65)
_TEST = 360
_VALIDATION = 144


def read(name: str, data_dir: str | None = None) -> Arrays:
    """Read the file without importing scikit-learn, which takes longer than a search.

    Raises:
        RequestError: the file is damaged.
    """
    table = _read(_find_file())
    # 16 is the brightest pixel; 255 / 15.9375 = 16 keeps every value a whole number of 255ths.
    images = (table[:, :64].astype(np.uint16) * 255 // 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, 64].astype(np.int64)
    # The file is in the order of its writers, so the fixed test split is drawn at random.
    order = permutation(len(labels), 0, "digits/test")
    test, train = order[:_TEST], order[_TEST:]
    return Arrays(images[train], labels[train], images[test], labels[test], classes=10, validation=_VALIDATION)


def _read(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is nothing in it
            table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        table, why = np.empty((0, 0), np.uint8), one_line(error)
    else:
        why = f"it is a table of {' x '.join(map(str, table.shape))}"
    if table.shape != _SHAPE:
        raise RequestError(
            f"{path} of scikit-learn is damaged: {why}, expected {_SHAPE[0]:,} x {_SHAPE[1]} numbers; "
            "pip install --force-reinstall scikit-learn"
        )
    return table


def _find_file() -> Path:
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.submodule_search_locations is not None, "scikit-learn is a dependency"
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
