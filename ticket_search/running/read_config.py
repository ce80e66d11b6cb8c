"""The configuration of a run that lies on disk, and the kinds of runs that there are."""

from __future__ import annotations

from pathlib import Path

from ..contract.errors import RequestError
from ..contract.flags import Config, make_config
from ..contract.method import Method, describe_method
from ..methods import find_method
from ..runs.names import CONFIG
from ..runs.records import read_record
from ..trust.mark import read_mark
from . import beginning, train

# Trainings that are runs like those of the methods, but no searches.
_TRAININGS = {"train": train, "beginning": beginning}


def find_kind(name: str) -> Method:
    """The search method of a name, or `train`, a ticket's training, or `beginning`, the first steps of a network's.

    Raises:
        RequestError: the name is unknown.
    """
    return describe_method(name, _TRAININGS[name]) if name in _TRAININGS else find_method(name)


def read_config(folder: Path) -> Config:
    """The configuration of the run in a folder. A flag that is newer than the run has its default.

    Of the code that it names, it has leave to import what the run's mark vouches for (see `trust.mark`).

    Raises:
        RequestError: the configuration is damaged, or names an unknown method.
    """
    values = read_record(folder, CONFIG)
    try:
        config = make_config(find_kind(str(values.get("method", ""))).Config, values)
    except RequestError as error:
        raise RequestError(f"{folder / CONFIG}: {problem}" for problem in error.problems) from None
    leaves, why = read_mark(folder, values)
    return config.allowing(leaves, f"the run {folder}, which {why}" if why else "")
