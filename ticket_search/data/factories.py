"""Functions of the user's own, named as `package.module:function`."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from ..contract.errors import RequestError, nearest_hint


def load_factory(spec: str) -> Any:
    """What the function `package.module:function` returns, called without arguments.

        load_factory("my_data:load")    # my_data.py in the current folder, or any installed module

    Raises:
        RequestError: the function is not to be had (see `find_factory`), or it raised an error.
    """
    factory = find_factory(spec)
    try:
        with _current_folder_importable():
            return factory()
    except Exception as error:
        raise RequestError(f"{spec} raised {type(error).__name__}: {error}") from error


def find_factory(spec: str) -> Callable[..., Any]:
    """The function that `package.module:function` names; the current folder is looked in first.

    Raises:
        RequestError: text of another form, a module that is not there or fails to import, a name that the module does
            not have, or that is not callable; with the nearest name that there is.
    """
    module_name, _, attributes = spec.partition(":")
    if not all(part.isidentifier() for name in (module_name, attributes) for part in name.split(".")):
        raise RequestError(f"'{spec}': expected package.module:function, as my_data:load")
    with _current_folder_importable():
        found: Any = _import(module_name)
    path = module_name
    for part in attributes.split("."):
        if not hasattr(found, part):
            raise RequestError(f"{path} has no '{part}'{nearest_hint(part, _public_names(found))}")
        found = getattr(found, part)
        path += (":" if path == module_name else ".") + part
    if not callable(found):
        raise RequestError(f"{spec} is {type(found).__name__}, expected a function")
    factory: Callable[..., Any] = found
    return factory


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        missing = getattr(error, "name", None)
        if isinstance(error, ModuleNotFoundError) and missing and f"{name}.".startswith(f"{missing}."):
            parent, _, last = missing.rpartition(".")
            hint = nearest_hint(last, _modules_in(parent))
            raise RequestError(f"there is no module {missing} in this folder or installed{hint}") from None
        raise RequestError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _modules_in(package: str) -> list[str]:
    """The modules that can be imported from a package, or from nowhere in particular."""
    path = getattr(sys.modules.get(package), "__path__", []) if package else [os.getcwd(), *sys.path]
    return sorted({module.name for module in pkgutil.iter_modules(path)})


def _public_names(owner: Any) -> list[str]:
    return [name for name in dir(owner) if not name.startswith("_")]


@contextlib.contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    # A module written a moment ago may not be in the import system's listing of its folder yet.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
