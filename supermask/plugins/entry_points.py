"""Names that installed packages declare by entry points, and why one of them cannot be used. Imports no torch.

    [project.entry-points."supermask.scores"]      # in the pyproject.toml of another package
    cube = "their_package.scores:cube"

A file only ever names what is declared here: the code behind a name is that of an installed package.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import MappingProxyType
from typing import Any

# A name is a part of flags, of tables in files and of the names of folders.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LONGEST_REASON = 300


class DeclarationError(ValueError):
    """A declared name that cannot be used: whose it is, and why."""


@dataclass(frozen=True)
class Group:
    """A group of entry points: its name in a pyproject.toml, and what its names are names of."""

    name: str
    kind: str


MODELS = Group("supermask.models", "model")
SCORES = Group("supermask.scores", "score")


@dataclass(frozen=True)
class Declaration:
    """A declared name: of what kind, by which package (name and version), and as which object, `module:attribute`.

    `refusal` says why a name is refused that is declared twice, or is none; empty otherwise.
    """

    name: str
    kind: str
    package: str
    value: str
    refusal: str = ""

    def load(self) -> Any:
        """The object, imported once.

        Raises:
            DeclarationError: a name that is refused, or an object that cannot be imported.
        """
        found, reason = (None, self.refusal) if self.refusal else _import(self)
        if reason:
            raise DeclarationError(reason)
        return found

    def load_function(self) -> Callable[..., Any]:
        """The object, which is a function.

        Raises:
            DeclarationError: see `load`, or an object that cannot be called.
        """
        found = self.load()
        if not callable(found):
            kind = type(found).__name__
            raise DeclarationError(f"the {self.kind} '{self.name}' of {self.package} is {kind}, expected a function")
        function: Callable[..., Any] = found
        return function

    @property
    def reason(self) -> str:
        """One line that says why it cannot be used, or nothing. Imports the object."""
        return self.refusal or _import(self)[1]


def declarations(group: Group, own: Iterable[str] = ()) -> Mapping[str, Declaration]:
    """What installed packages declare in a group, by name.

    A name that two packages declare is refused, and so is one of `own`, the names that this package has without
    declaring them: a name that means one thing here and another there cannot stand in a file. What is installed is read
    once, and again when `sys.path` is another.
    """
    return _read(group, frozenset(own), tuple(sys.path))


def one_line(error: BaseException) -> str:
    """An error in one line: its type and what it says, cut off where that is long."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 3] + "..."


@functools.lru_cache(maxsize=64)
def _read(group: Group, own: frozenset[str], path: tuple[str, ...]) -> Mapping[str, Declaration]:
    found: dict[str, set[tuple[str, str]]] = {}
    for point in _all_entry_points(path).select(group=group.name):
        found.setdefault(point.name, set()).add((_package_of(point), point.value))
    declared = {}
    for name, places in sorted(found.items()):
        (package, value), *others = sorted(places)
        packages = list(dict.fromkeys(package for package, _ in sorted(places)))
        problem = ""
        if name in own:
            problem = f"is one of supermask's own, and {_join(packages)} declares it too"
        elif others:
            problem = f"is declared by {_join(packages)}" + (" twice" if len(packages) == 1 else "")
        if problem:
            problem = f"the {group.kind} '{name}' {problem}: a name means one thing; uninstall what you do not use"
        elif not _NAME.fullmatch(name):
            problem = (
                f"the {group.kind} {name!r} of {package} is no name: expected letters, digits, '-', '_' and '.', "
                "the first of them a letter or digit"
            )
        declared[name] = Declaration(name, group.kind, _join(packages), value, problem)
    return MappingProxyType(declared)


@functools.lru_cache(maxsize=1)
def _all_entry_points(path: tuple[str, ...]) -> Any:
    """Those of all groups: reading the packages takes the time, not choosing among what they say."""
    # Another class in Python 3.11 than later; both have `select(group=...)`.
    return importlib.metadata.entry_points()


def _package_of(point: EntryPoint) -> str:
    if point.dist is None:
        return "a package without a name"
    return f"{point.dist.name} {point.dist.version}"


def _join(packages: list[str]) -> str:
    return " and ".join(packages)


@functools.cache
def _import(declaration: Declaration) -> tuple[Any, str]:
    """The object, or the reason why there is none."""
    try:
        # The group of an entry point has no part in its import.
        return EntryPoint(declaration.name, declaration.value, "").load(), ""
    except (Exception, SystemExit) as error:  # whatever a stranger's module does when it is imported
        what = f"the {declaration.kind} '{declaration.name}' of {declaration.package}"
        return None, f"{what} cannot be imported: {one_line(error)}"
