"""TOML and JSON files, which may be of anybody's making: read within limits, or refused with the reason."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from supermask.tickets.strict_json import DEEPEST, LONGEST, parse_json

from .errors import RequestError

# What can be read within a second.
_LONGEST_TOML = 100_000
# A key of many parts takes the square of their number. Each part begins where no other does, so that this is linear.
_PART = r"""(?:(?<!\\)"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+'|(?<![^\s.=\[\]{},#"'])[^\s.=\[\]{},#"']++)"""
_LONG_KEY = re.compile(rf"(?:{_PART}[ \t]*+\.[ \t]*+){{{DEEPEST}}}")


def read_toml(path: str | Path) -> dict[str, Any]:
    """The table of a TOML file.

    Raises:
        RequestError: the file cannot be read, or does not hold TOML.
    """
    try:
        text = read_limited(path, _LONGEST_TOML).decode()
        if _LONG_KEY.search(text):
            raise ValueError(f"it has a key of more than {DEEPEST} parts")
        found = tomllib.loads(text)
        _check_depth(found)
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read as TOML: {_told(error)}") from None
    except RecursionError:
        raise RequestError(f"{path} cannot be read as TOML: lists and tables nested too deep") from None
    return found


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        RequestError: the file cannot be read, or does not hold a JSON object.
    """
    try:
        value = parse_json(read_limited(path, LONGEST), finite=False)
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read as JSON: {_told(error)}") from None
    if not isinstance(value, dict):
        raise RequestError(f"{path} holds {type(value).__name__}, expected an object")
    return value


def read_limited(path: str | Path, most: int) -> bytes:
    """The bytes of a file, of which more than `most` are not read.

    Raises:
        ValueError: it is longer, or no file.
        OSError: it cannot be read.
    """
    # What is a queue or a device to another process may never end, or never begin.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no file")
    with Path(path).open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than the {most:,} bytes that are allowed")
    return data


def _check_depth(table: dict[str, Any]) -> None:
    """Refuse what is nested so deep that comparing or printing it would fail."""
    level: list[Any] = [table]
    for _ in range(DEEPEST):
        inner = [list(value.values()) if isinstance(value, dict) else value for value in level]
        level = [each for values in inner for each in values if isinstance(each, (dict, list))]
        if not level:
            return
    raise ValueError(f"lists and tables nested more than {DEEPEST} deep")


def _told(error: Exception) -> str:
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)
