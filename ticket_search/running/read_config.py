"""The configuration of a run that lies on disk, and the kinds of runs that there are."""

from __future__ import annotations

from pathlib import Path

from ..contract.flags import Config, make_config, read_toml
from ..contract.method import Method, describe_method
from ..methods import find_method
from ..runs.names import CONFIG
from . import train


def find_kind(name: str) -> Method:
    """The search method of a name, or `train`: a ticket's training is a run like those of the methods, but no search.

    Raises:
        RequestError: the name is unknown.
    """
    return describe_method(name, train) if name == "train" else find_method(name)


def read_config(folder: Path) -> Config:
    """The configuration of the run in a folder. A flag that is newer than the run has its default.

    Raises:
        RequestError: the configuration is damaged, or names an unknown method.
    """
    values = read_toml(folder / CONFIG)
    return make_config(find_kind(str(values.get("method", ""))).Config, values)
