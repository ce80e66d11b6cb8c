"""What a run was given that its configuration only names: first weights, samples, code. Whether another is the same.

A function of a notebook keeps its name when its cell is changed. So the run records hashes, and whoever asks for the
same run again is told what differs. Of code that is the bytecode: of functions and classes of the user's own, and of
those that they use. It differs between versions of Python, and is compared under the same one only.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .names import INPUTS
from .records import read_record, write_record

_OURS = tuple(str(Path(__file__).resolve().parents[2] / name) for name in ("supermask", "ticket_search"))
# A list of more is data.
_MOST = 1000
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type(...))
# What Python itself puts into every class.
_OF_EVERY_CLASS = {
    "__module__", "__dict__", "__weakref__", "__doc__", "__qualname__", "__annotations__", "__firstlineno__",
    "__static_attributes__", "__parameters__", "__orig_bases__", "__abstractmethods__", "_abc_impl",
}  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """Hashes of the first weights, of the samples (empty where they have none) and of code, by what it is for."""

    start: str
    data: str
    code: Mapping[str, str]
    python: str = f"{sys.version_info.major}.{sys.version_info.minor}"

    def differences(self, earlier: Inputs) -> list[str]:
        """What differs from the inputs of an earlier run."""
        found = []
        if self.python == earlier.python:
            names = {*self.code, *earlier.code}
            found += [f"the code of {n}" for n in sorted(names) if self.code.get(n) != earlier.code.get(n)]
        if self.data != earlier.data:
            found.append("the samples")
        if self.start != earlier.start:
            found.append("the weights that the network begins with")
        return found


def read_inputs(folder: Path) -> Inputs | None:
    """What a run was given; None of a run of a version that did not record it.

    Raises:
        RequestError: the record is damaged.
    """
    if not (folder / INPUTS).exists():
        return None
    found = read_record(folder, INPUTS)
    return Inputs(found["start"], found["data"], found["code"], found["python"])


def write_inputs(folder: Path, inputs: Inputs) -> None:
    """Keep what a run was given."""
    write_record(folder, INPUTS, asdict(inputs))


def digests_of_code(functions: Mapping[str, Callable[..., Any]], network: nn.Module) -> dict[str, str]:
    """The hashes of the user's own code: of functions by what they are for, and of the classes of the network."""
    classes = {type(module) for module in network.modules()}
    own = sorted((each for each in classes if _is_own(each)), key=lambda each: each.__qualname__)
    things: dict[str, list[Any]] = {name: [each] for name, each in functions.items()}
    # The function that builds the network is a part of it.
    things["the network"] = [*things.pop("model", []), *own]
    found = {name: digest_of_code(each) for name, each in things.items()}
    return {name: digest for name, digest in found.items() if digest}


def digest_of_code(things: Iterable[Any]) -> str:
    """SHA-256 of the user's own code among functions and classes; empty where there is none.

    What they use of global functions, classes and plain values goes into it, and what a function has enclosed.
    """
    reader = _Reader()
    for thing in things:
        reader.read(thing)
    return reader.hash.hexdigest() if reader.found else ""


class _Reader:
    """Reads code piece by piece; each function and class once."""

    def __init__(self) -> None:
        self.hash, self.found = hashlib.sha256(), False
        self._seen: set[int] = set()
        self._kept: list[Any] = []  # alive, so that no other thing gets the same identity

    def read(self, thing: Any) -> None:
        """Add a function, a class, or a plain value; anything else says nothing."""
        if isinstance(thing, functools.partial):
            for part in (thing.func, *thing.args, *thing.keywords.items()):
                self.read(part)
        elif isinstance(thing, types.MethodType):
            self.read(thing.__func__)
        elif isinstance(thing, _PLAIN):
            self._add(repr(thing))
        elif isinstance(thing, (tuple, list, set, frozenset, dict)) and len(thing) > _MOST:
            self._add(f"{len(thing)} of {type(thing).__name__}")
        elif isinstance(thing, (tuple, list)):
            self._add(f"{len(thing)} of {type(thing).__name__}")
            for part in thing:
                self.read(part)
        elif isinstance(thing, (set, frozenset)):
            self._add(repr(sorted(map(repr, thing))))
        elif isinstance(thing, dict):
            self._add(f"{len(thing)} of dict")
            for pair in thing.items():
                self.read(pair)
        elif isinstance(thing, (types.FunctionType, type)) and _is_own(thing) and id(thing) not in self._seen:
            self._seen.add(id(thing))
            self._kept.append(thing)
            self.found = True
            self._add(thing.__qualname__)
            if isinstance(thing, type):
                self._read_class(thing)
            else:
                self._read_function(thing)

    def _add(self, text: str) -> None:
        self.hash.update(f"{len(text)}:{text}".encode("utf-8", "surrogatepass"))

    def _read_class(self, thing: type) -> None:
        for base in thing.__mro__[1:]:
            self.read(base)
        for name, member in sorted(vars(thing).items()):
            if name in _OF_EVERY_CLASS:
                continue
            self._add(name)
            if isinstance(member, property):
                for part in (member.fget, member.fset):
                    self.read(part)
            else:
                self.read(member.__func__ if isinstance(member, (staticmethod, classmethod)) else member)

    def _read_function(self, thing: types.FunctionType) -> None:
        self.read(thing.__defaults__)
        self.read(thing.__kwdefaults__)
        for cell in thing.__closure__ or ():
            try:
                self.read(cell.cell_contents)
            except ValueError:  # a name that was never given a value
                self._add("empty")
        self._read_code(thing.__code__, thing.__globals__)

    def _read_code(self, code: types.CodeType, names: Mapping[str, Any]) -> None:
        self._add(code.co_code.hex())
        for group in (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars):
            self.read(group)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._read_code(constant, names)
            else:
                self.read(constant)
        for name in code.co_names:
            if name in names:
                self.read(names[name])


def _is_own(thing: Any) -> bool:
    """Whether a function or a class is of the user's own: neither ours nor Python's nor an installed package's."""
    name = getattr(thing, "__module__", None)
    if name in ("__main__", "__mp_main__"):
        return True
    file = getattr(sys.modules.get(name or ""), "__file__", None)
    if file is None:
        return False
    path = os.path.realpath(file)
    return not any(Path(path).is_relative_to(folder) for folder in (*_installed(), *_OURS))


@functools.cache
def _installed() -> tuple[str, ...]:
    keys = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple(dict.fromkeys(os.path.realpath(sysconfig.get_path(key)) for key in keys))
