"""The version of supermask that has made a run. What a newer one records, this one may not know."""

from __future__ import annotations

import re
from pathlib import Path

from supermask import __version__

from ..contract.errors import RequestError
from ..contract.text_files import read_json
from .names import ENVIRONMENT

# Of what follows the numbers, as rc1, none says that a version is newer.
_VERSION = re.compile(r"([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})[a-z0-9.+]{0,20}")


def too_new(folder: Path) -> str:
    """What to say where a run's folder holds something that this version does not know.

    Returns:
        `the run runs/x was made by supermask 0.9.0, this is 0.1.0: upgrade supermask`; nothing where the run was
        made by no newer version than this, or does not say by which.
    """
    try:
        given = str(read_json(folder / ENVIRONMENT).get("supermask"))
    except RequestError:
        return ""
    if _numbers(given) <= _numbers(__version__):
        return ""
    return f"the run {folder} was made by supermask {given}, this is {__version__}: upgrade supermask"


def _numbers(version: str) -> tuple[int, ...]:
    match = _VERSION.fullmatch(version)
    return tuple(map(int, match.groups())) if match else ()
