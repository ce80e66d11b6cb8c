"""What a run was given that its configuration only names: first weights, samples, code. Whether another is the same.

A function of a notebook keeps its name when its cell is changed. So the run records hashes, and whoever asks for the
same run again is told what differs. Of code that is the bytecode: of functions and classes of the user's own, and of
those that they use, with the values that these carry. It differs between versions of Python and PyTorch, and is
compared under the same ones only.
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
from datetime import date, timedelta
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from supermask.weights.plain import to_bytes

from ..trust.mark import site_folders
from .names import INPUTS
from .records import has_record, read_record, write_record

_OURS = tuple(str(Path(__file__).resolve().parents[2] / name) for name in ("supermask", "ticket_search"))
# A list of more is data, and what lies deeper a structure of data.
_MOST, _DEEPEST = 100_000, 100
_PLAIN = (
    str, bytes, int, float, complex, type(None), type(...), range, slice, Enum, PurePath, np.generic, torch.dtype,
    torch.device, date, timedelta,
)  # fmt: skip
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
    # Under what hashes of code can be compared: bytecode is Python's, the settings of layers are PyTorch's.
    python: str = f"{sys.version_info.major}.{sys.version_info.minor}, PyTorch {torch.__version__}"

    def differences(self, earlier: Inputs) -> list[str]:
        """What differs from the inputs of an earlier run."""
        found = []
        if self.python == earlier.python:
            names = {*self.code, *earlier.code}
            changed = [name for name in sorted(names) if self.code.get(name) != earlier.code.get(name)]
            found += [f"the code of {name}, or what it carries" for name in changed]
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
    if not (folder / INPUTS).exists() and not has_record(folder, INPUTS):
        return None
    found = read_record(folder, INPUTS)
    return Inputs(found["start"], found["data"], found["code"], found["python"])


def write_inputs(folder: Path, inputs: Inputs) -> None:
    """Keep what a run was given."""
    write_record(folder, INPUTS, asdict(inputs))


def digests_of_code(functions: Mapping[str, Callable[..., Any]], network: nn.Module) -> dict[str, str]:
    """The hashes of the user's own code: of functions by what they are for, and of the network with its classes."""
    classes = {type(module) for module in network.modules()}
    own = sorted((each for each in classes if _is_own(each)), key=lambda each: each.__qualname__)
    things: dict[str, list[Any]] = {name: [each] for name, each in functions.items()}
    # The function that builds the network is a part of it.
    things["the network"] = [*things.pop("model", []), *own]
    if digest_of_code(things["the network"]):
        things["the network"].append(_Settings(network))
    found = {name: digest_of_code(each) for name, each in things.items()}
    return {name: digest for name, digest in found.items() if digest}


def digest_of_code(things: Iterable[Any]) -> str:
    """SHA-256 of the user's own code among functions, classes and objects; empty where there is none.

    What they use of global functions, classes and plain values goes into it, what a function has enclosed, and what an
    object that is called carries: settings, numbers, tensors.
    """
    reader = _Reader()
    for thing in things:
        reader.read(thing)
    return reader.hash.hexdigest() if reader.found else ""


@dataclass(frozen=True)
class _Settings:
    """A network without its tensors: weights have a hash of their own, and others may differ with the seed."""

    network: nn.Module


class _Reader:
    """Reads code piece by piece; each function, class and object once."""

    def __init__(self) -> None:
        self.hash, self.found = hashlib.sha256(), False
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # alive, so that no other thing gets the same identity
        self._depth, self._with_tensors = 0, True

    def read(self, thing: Any) -> None:
        """Add a value, a function, a class, or an object that is called; anything else says nothing."""
        if isinstance(thing, _PLAIN):
            self._add(repr(thing))
        elif isinstance(thing, (Tensor, np.ndarray)):
            self._read_numbers(thing)
        # Whether equal tuples are one object is up to the compiler.
        elif id(thing) in self._seen and not isinstance(thing, (tuple, frozenset)):
            self._add(f"number {self._seen[id(thing)]} once more")
        elif self._depth < _DEEPEST and not isinstance(thing, types.ModuleType):
            if not isinstance(thing, (tuple, frozenset)):
                self._seen[id(thing)] = len(self._seen)
                self._kept.append(thing)
            self._depth += 1
            self._read_parts(thing)
            self._depth -= 1

    def _read_parts(self, thing: Any) -> None:
        if isinstance(thing, _Settings):
            self._with_tensors = False
            self._read_module(thing.network)
            self._with_tensors = True
        elif isinstance(thing, (tuple, list, set, frozenset, Mapping)):
            self._read_container(thing)
        elif isinstance(thing, functools.partial):
            self.found = True
            parts: tuple[Any, ...] = (thing.func, thing.args, thing.keywords)
            for part in parts:
                self.read(part)
        elif isinstance(thing, types.MethodType):
            for part in (thing.__func__, thing.__self__):
                self.read(part)
        elif isinstance(thing, types.FunctionType):
            self._read_function(thing)
        elif isinstance(thing, type):
            if _is_own(thing):
                self.found = True
                self._read_class(thing)
        elif isinstance(thing, nn.Module):
            self.found = True
            self._read_module(thing)
        elif _is_own(type(thing)):
            self.found = True
            self._read_object(thing)
        elif callable(thing) and not isinstance(thing, types.BuiltinFunctionType):
            self._read_installed(thing)

    def _add(self, text: str) -> None:
        self.hash.update(f"{len(text)}:{text}".encode("utf-8", "surrogatepass"))

    def _read_container(self, thing: Any) -> None:
        self._add(f"{len(thing)} of {type(thing).__name__}")
        if len(thing) > _MOST:
            return
        if isinstance(thing, (set, frozenset)):
            self._add("".join(sorted(_digest(each) for each in thing)))
            return
        for part in thing.items() if isinstance(thing, Mapping) else thing:
            self.read(part)

    def _read_numbers(self, thing: Tensor | np.ndarray) -> None:
        if not self._with_tensors:
            return
        self._add(f"{tuple(thing.shape)} of {thing.dtype}")
        if isinstance(thing, Tensor):
            if thing.device.type != "meta" and thing.layout == torch.strided and not thing.is_quantized:
                self.hash.update(to_bytes(thing.detach()).data)
        elif not thing.dtype.hasobject:
            self.hash.update(thing.tobytes())

    def _read_module(self, thing: nn.Module) -> None:
        """Add a network or a loss: its classes, settings, hooks and tensors."""
        for name, module in thing.named_modules():
            self._add(name)
            self._add(type(module).__qualname__)
            self.read(type(module))
            for key, value in sorted(vars(module).items()):
                if key.endswith("_hooks"):  # by numbers that the process has counted
                    self.read(list(value.values()))
                elif key not in ("training", "_modules"):
                    self._add(key)
                    self.read(value)

    def _read_installed(self, thing: Any) -> None:
        """Add an object that is called and whose class is installed: what it wraps and its settings."""
        settings = dict(getattr(thing, "__dict__", {}))
        if callable(inner := settings.get("__wrapped__")):
            self.read(inner)  # what a decorator has made of a function, as a cache
        # PyTorch's own operators keep in themselves what has been asked of them.
        elif not type(thing).__module__.startswith("torch._"):
            for key, value in sorted(settings.items()):
                if not key.startswith("_"):
                    self.found = True
                    self._add(key)
                    self.read(value)

    def _read_object(self, thing: Any) -> None:
        self._add(type(thing).__qualname__)
        self.read(type(thing))
        for key, value in sorted(getattr(thing, "__dict__", {}).items()):
            self._add(key)
            self.read(value)
        for kind in type(thing).__mro__:
            slots = vars(kind).get("__slots__", ())
            for key in [slots] if isinstance(slots, str) else slots:
                if hasattr(thing, key) and key not in ("__dict__", "__weakref__"):
                    self._add(key)
                    self.read(getattr(thing, key))

    def _read_class(self, thing: type) -> None:
        self._add(thing.__qualname__)
        for base in thing.__mro__[1:]:
            self.read(base)
        for name, member in sorted(vars(thing).items()):
            if name in _OF_EVERY_CLASS:
                continue
            self._add(name)
            if isinstance(member, property):
                for part in (member.fget, member.fset):
                    self.read(part)
            elif isinstance(member, functools.cached_property):
                self.read(member.func)
            else:
                self.read(member.__func__ if isinstance(member, (staticmethod, classmethod)) else member)

    def _read_function(self, thing: types.FunctionType) -> None:
        name = thing.__globals__.get("__name__")
        if not _is_of_own_module(name):
            inner = vars(thing).get("__wrapped__")
            if callable(inner):
                self.read(inner)  # what an installed decorator has made of a function
            return
        self.found = True
        self._add(thing.__qualname__)
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
            self._add(" ".join(group))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._read_code(constant, names)
            else:
                self.read(constant)
        used = [names[name] for name in code.co_names if name in names]
        for thing in used:
            self.read(thing)
        # What is used of a module of the user's own: `helpers.scale(x)`.
        for module in used:
            if isinstance(module, types.ModuleType) and _is_of_own_module(module.__name__):
                for name in code.co_names:
                    self.read(vars(module).get(name))


def _digest(thing: Any) -> str:
    reader = _Reader()
    reader.read(thing)
    return reader.hash.hexdigest()


def _is_own(thing: Any) -> bool:
    """Whether a class is of the user's own: neither ours nor Python's nor an installed package's."""
    return _is_of_own_module(getattr(thing, "__module__", None))


def _is_of_own_module(name: Any) -> bool:
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
    own = dict.fromkeys(os.path.realpath(sysconfig.get_path(key)) for key in keys)
    return tuple(own | dict.fromkeys(sorted(site_folders())))
