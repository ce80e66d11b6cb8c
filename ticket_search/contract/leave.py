"""Code that a configuration names as `module:function`: which names may be imported, and from which folder.

A name in a file is never reason enough to import it. Leave comes from who types the name or passes it in Python, or
from the mark of a run that was made here (`trust.mark`). Where there is none, nothing is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from .errors import RequestError

# The flags whose values may name code.
FLAGS = ("model", "data", "loss", "metric")
# Networks of other packages, known by the names that these have for them.
OTHERS = ("torchvision:", "timm:", "transformers:")
# Modules that are another thing in every process.
_OF_A_PROCESS = ("__main__", "__mp_main__")


@dataclass(frozen=True)
class Leave:
    """Leave to import a name.

    folder: where its module is looked for first; empty for an installed one.
    file: the file that has to define it; empty where any may.
    digest: SHA-256 of that file when the run was started.
    content: of a data set, what identifies its samples.
    """

    folder: str
    file: str = ""
    digest: str = ""
    content: str = ""


Leaves: TypeAlias = Mapping[str, Leave]


def names_code(name: Any) -> bool:
    """Whether a value is the name of a function that has to be imported: `module:function`."""
    return isinstance(name, str) and ":" in name and not name.startswith(OTHERS)


def describe_function(function: Callable[..., Any]) -> str:
    """The name of a callable in the configuration: `module:function`."""
    owner = getattr(function, "__module__", type(function).__module__)
    return f"{owner}:{getattr(function, '__qualname__', type(function).__qualname__)}"


def code_in(values: Mapping[str, Any]) -> dict[str, str]:
    """The names of code among the values of a configuration, by flag."""
    return {key: values[key] for key in FLAGS if names_code(values.get(key))}


def leave_here(*names: Any) -> dict[str, Leave]:
    """Leave for what was typed or passed: its module is looked for in the current folder first."""
    return {name: Leave(os.getcwd()) for name in names if names_code(name)}


def can_be_typed(name: str) -> bool:
    """Whether a name, or several with commas between them, means the same function in another process.

    One in a script, in a notebook or in another function does not.
    """
    pairs = [each.partition(":")[::2] for each in name.split(",")]
    dotted = [part for pair in pairs for part in pair]
    return all(module not in _OF_A_PROCESS for module, _ in pairs) and all(
        part.isidentifier() for path in dotted for part in path.split(".")
    )


def goes_on_in_python(run: str | os.PathLike[str], values: Mapping[str, Any]) -> str:
    """How a run of functions that are not known by name, or of arrays, goes on; nothing where a command will do.

    Args:
        run: its folder.
        values: of its configuration, by flag.
    """
    if not str(values["data"]).startswith("arrays-") and all(map(can_be_typed, code_in(values).values())):
        return ""
    return f'the same call, or ticket_search.resume("{os.fspath(run)}", model=..., data=...), goes on'


def refuse(origin: str, names: Mapping[str, str]) -> list[str]:
    """The sentences about code that nobody has given leave for: what it is, where it would come from, what to type.

    Args:
        origin: who names it, and why that is no leave, as `the run runs/x, which has no mark`.
        names: by flag.
    """
    typed = {key: name for key, name in names.items() if can_be_typed(name)}
    sentences = []
    if typed:
        told = ", ".join(f"{key} {name}" for key, name in typed.items())
        flags = " ".join(f"--{key} {name}" for key, name in typed.items())
        sentences.append(
            f"{origin}, names code that would be imported: {told}; nothing was; if you trust it, {flags} "
            f"imports it, from {os.getcwd()} first"
        )
    if lost := {key: name for key, name in names.items() if key not in typed}:
        told = ", ".join(f"{key} {name}" for key, name in lost.items())
        flags = ", ".join(f"{key}=..." for key in lost)
        sentences.append(
            f"{origin}, names a function of a script, a notebook or another function, which cannot be imported: "
            f"{told}; give it in Python, as {flags}, or as --{next(iter(lost))} module:function"
        )
    return sentences


def find_leave(name: str, leaves: Leaves) -> Leave:
    """The leave for a name.

    Raises:
        RequestError: there is none.
    """
    if name not in leaves:
        raise RequestError(f"'{name}' is code that may not be imported: nobody has typed or passed its name")
    return leaves[name]


def without_leave(names: Mapping[str, str], leaves: Iterable[str]) -> dict[str, str]:
    """Those of the names, by flag, that nobody has given leave for."""
    given = set(leaves)
    return {key: name for key, name in names.items() if name not in given}
