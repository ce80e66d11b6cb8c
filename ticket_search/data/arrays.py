"""Arrays as read from disk, and where on disk data is looked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import platformdirs


@dataclass(frozen=True)
class Arrays:
    """A data set before it is split and normalized.

    `train_x` and `test_x` are [n, channels, height, width] (uint8 pixels or floats) or [n, features]; `train_y` and
    `test_y` are [n] integers in [0, classes). `mean` and `std` are per channel, in units of pixels / 255 where `x` is
    uint8; None: measured on the training images. `validation` is how many training samples are held out.
    """

    train_x: npt.NDArray[Any]
    train_y: npt.NDArray[Any]
    test_x: npt.NDArray[Any]
    test_y: npt.NDArray[Any]
    classes: int
    validation: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def cache_dir() -> Path:
    """The user's cache, where downloads go."""
    return Path(platformdirs.user_cache_dir("supermask"))


def search_path(data_dir: str | None) -> list[Path]:
    """The folders in which data is looked for, in order."""
    places = [data_dir, os.environ.get("TICKET_DATA"), cache_dir(), "/usr/share/datasets"]
    return [Path(place) for place in places if place]
