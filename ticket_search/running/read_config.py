"""The configuration of a run that lies on disk, and the kinds of runs that there are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supermask import __version__

from ..contract.errors import Problems, RequestError, unknown_flag
from ..contract.flags import Config, flag, make_config, public_fields
from ..contract.method import Method, describe_method
from ..methods import find_method
from ..runs.names import CONFIG
from ..runs.records import read_record
from ..runs.versions import too_new
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
        RequestError: the configuration is damaged, or has a method, flags or values that this version does not know, as
            one of a newer version may.
    """
    values, problems = read_record(folder, CONFIG), Problems()
    config = problems.attempt(lambda: _check(values))
    if problems.found:
        newer = too_new(folder)
        raise RequestError(newer or [f"{folder / CONFIG}: {problem}" for problem in problems.found])
    assert config is not None, "a configuration that cannot be made has problems"
    leaves, why = read_mark(folder, values)
    return config.allowing(leaves, f"the run {folder}, which {why}" if why else "")


def _check(values: Mapping[str, Any]) -> Config:
    kind = find_kind(str(values["method"])).Config
    known = {key: value for key, value in values.items() if key in kind.model_fields}
    flags, problems = [flag(name) for name in public_fields(kind)], Problems()
    problems.add(
        *(
            f"{unknown_flag(flag(key), flags)} (this is supermask {__version__}; a later one may know it)"
            for key in values
            if key not in known
        )
    )
    config = problems.attempt(lambda: make_config(kind, known))
    problems.raise_if_any()
    assert config is not None, "a configuration that cannot be made has problems"
    return config
