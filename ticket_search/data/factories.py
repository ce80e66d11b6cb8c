"""Functions of the user's own, named as `package.module:function`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from supermask.plugins.entry_points import one_line

from ..contract.errors import RequestError, nearest_hint
from ..contract.leave import Leave, Leaves, find_leave


def load_factory(spec: str, leaves: Leaves) -> Any:
    """What the function `package.module:function` returns, called without arguments.

        load_factory("my_data:load", leave_here("my_data:load"))    # in the current folder, or any installed module

    Raises:
        RequestError: the function is not to be had (see `find_factory`), or it raised an error.
    """
    factory = find_factory(spec, leaves)
    try:
        with _importable(leaves[spec].folder):
            return factory()
    except Exception as error:
        raise RequestError(f"{spec} raised {one_line(error)}") from error


def find_factory(spec: str, leaves: Leaves) -> Callable[..., Any]:
    """The function that `package.module:function` names, if there is leave to import it.

    Its module is looked for in the folder that the leave names first. A process has one module of a name: where
    another file's has it already, it is not taken for the one that is meant.

    Raises:
        RequestError: text of another form, a name without leave, a module that is not there, is another file's or
            fails to import, a name that the module does not have, or that is not callable; with the nearest name that
            there is.
    """
    module_name, _, attributes = spec.partition(":")
    if not all(part.isidentifier() for name in (module_name, attributes) for part in name.split(".")):
        plain = module_name.removesuffix(".py").strip("./").replace("/", ".")
        hint = f"; did you mean '{plain}:{attributes}'?" if plain != module_name and attributes else ""
        raise RequestError(f"'{spec}': expected package.module:function, as my_data:load{hint}")
    found: Any = _import_from(spec, module_name, find_leave(spec, leaves))
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


def _import_from(spec: str, name: str, leave: Leave) -> ModuleType:
    if leave.file and not os.path.exists(leave.file):
        raise RequestError(
            f"{spec} is gone: there is no {leave.file} any more, from which it was imported when the run was started"
        )
    with _importable(leave.folder):
        _check_loaded(spec, name.partition(".")[0])
        module = _import(name, leave.folder)
    file = getattr(module, "__file__", None)
    if leave.file and (file is None or os.path.realpath(file) != leave.file):
        raise RequestError(f"{spec} was imported from {leave.file} when the run was started, and is {file} here")
    return module


def _check_loaded(spec: str, top: str) -> None:
    """Check that a module that is loaded already is the one that would be found now."""
    if top not in sys.modules or top in sys.builtin_module_names:
        return
    found = importlib.machinery.PathFinder.find_spec(top)
    there = getattr(sys.modules[top], "__file__", None)
    if found is None or found.origin is None or there is None:
        return
    if os.path.realpath(found.origin) != os.path.realpath(there):
        raise RequestError(
            f"{spec} means {found.origin}, and this process has loaded another module '{top}', {there}: use another "
            "process, or another name"
        )


def _import(name: str, folder: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        missing = getattr(error, "name", None)
        if isinstance(error, ModuleNotFoundError) and missing and f"{name}.".startswith(f"{missing}."):
            parent, _, last = missing.rpartition(".")
            hint = nearest_hint(last, _modules_in(parent, folder))
            here = folder or os.getcwd()
            where = f"the current folder, {here}" if here == os.getcwd() else here
            path = missing.replace(".", "/")
            raise RequestError(
                f"there is no module {missing}: looked for {path}.py and {path}/ in {where}, then in PYTHONPATH and "
                f"among what is installed; `ticket` is started in the folder that holds it{hint}"
            ) from None
        raise RequestError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _modules_in(package: str, folder: str) -> list[str]:
    """The modules of a package, or those in the folder that is looked in first."""
    path = getattr(sys.modules.get(package), "__path__", []) if package else [folder or os.getcwd()]
    return sorted({module.name for module in pkgutil.iter_modules(path)})


def _public_names(owner: Any) -> list[str]:
    return [name for name in dir(owner) if not name.startswith("_")]


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    if not folder:
        yield
        return
    sys.path.insert(0, folder)
    # A module written a moment ago may not be in the import system's listing of its folder yet.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
