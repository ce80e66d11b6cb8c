"""The search methods: one file each; the file's name is the method's name on the command line."""

from __future__ import annotations

import importlib
from pathlib import Path

from ..contract.errors import RequestError, unknown
from ..contract.method import Method, describe_method


def method_names() -> list[str]:
    """The names of all methods."""
    return sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("[!_]*.py"))


def find_method(name: str) -> Method:
    """The method of a name. Its file is imported, torch is not.

    Raises:
        RequestError: an unknown name; the nearest and all of them are given.
    """
    if name not in method_names():
        raise RequestError(unknown("method", name, method_names()))
    return describe_method(name, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
