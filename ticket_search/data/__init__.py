"""Data sets as tensors on the device. One file per family; each reads plain arrays from disk."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..problems import RequestError, unknown

if TYPE_CHECKING:
    from .arrays import Arrays


@dataclass(frozen=True)
class Source:
    """A built-in data set: what it is, and the module of this package whose `read(name, data_dir)` reads it."""

    description: str
    module: str


SOURCES = {
    "digits": Source("1,797 handwritten digits, 8x8 grey, 10 classes; ships with scikit-learn", "digits"),
    "fashion-mnist": Source("70,000 pictures of clothes, 28x28 grey, 10 classes", "idx"),
    "mnist": Source("70,000 handwritten digits, 28x28 grey, 10 classes", "idx"),
}


def read_arrays(name: str, data_dir: str | None = None) -> Arrays:
    """Read a built-in data set, downloading it where it is not on disk.

    Raises:
        RequestError: an unknown name, or data that is neither on disk nor to be had, with what to do about it.
    """
    if name not in SOURCES:
        raise RequestError(unknown("data set", name, SOURCES))
    read: Callable[[str, str | None], Arrays] = importlib.import_module(f"{__name__}.{SOURCES[name].module}").read
    return read(name, data_dir)
