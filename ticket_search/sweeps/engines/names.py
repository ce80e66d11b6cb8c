"""The engines by name. Each is imported when it is asked for, and what it needs may have to be installed."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from ...contract.errors import RequestError, unknown

if TYPE_CHECKING:
    from .engine import Engine


@dataclass(frozen=True)
class Needed:
    """What an engine needs: a package, which is the extra of the same name or of another one."""

    package: str = ""
    extra: str = ""


ENGINES = {"local": Needed(), "slurm": Needed("submitit", "slurm"), "ray": Needed("ray", "ray")}


def check_engine(name: str, address: str | None = None) -> None:
    """Check that there is an engine of a name, and that what it needs is installed. Nothing of it is imported.

    Raises:
        RequestError: everything that is wrong with it, with what to type instead.
    """
    if name not in ENGINES:
        raise RequestError(f"--engine {unknown('engine', name, ENGINES).removeprefix('unknown engine ')}")
    needed, problems = ENGINES[name], []
    if needed.package and importlib.util.find_spec(needed.package) is None:
        problems.append(f'--engine {name} takes the package {needed.package}: pip install "supermask[{needed.extra}]"')
    if address is not None and name != "ray":
        problems.append(f"--address {address} goes with --engine ray, not {name}")
    if problems:
        raise RequestError(problems)


def find_engine(name: str) -> Engine:
    """The engine of a name.

    Raises:
        RequestError: there is none, or what it needs is not installed.
    """
    check_engine(name)
    return cast("Engine", importlib.import_module(f"{__package__}.{name}"))
