"""The configuration of a run that lies on disk, and the kinds of runs there are."""

from __future__ import annotations

from pathlib import Path

from ..contract.flags import Config, make_config, read_toml
from ..contract.method import Method, describe_method
from ..methods import find_method
from . import train


def find_kind(name: str) -> Method:
    """The method of a name, or `train`: the training of a ticket is a run of the same making, but no search.

    Raises:
        RequestError: an unknown name.
    """
    return describe_method(name, train) if name == "train" else find_method(name)


def read_config(folder: Path) -> Config:
    """The configuration of the run in a folder.

    Raises:
        RequestError: it is damaged or of an unknown method.
    """
    values = read_toml(folder / "config.toml")
    return make_config(find_kind(str(values.get("method", ""))).Config, values)
