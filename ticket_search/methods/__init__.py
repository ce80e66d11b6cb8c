"""The search methods: one file each; the file's name is the method's name on the command line."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Config
from ..problems import RequestError, unknown

if TYPE_CHECKING:
    from supermask import Targets, Ticket


@dataclass(frozen=True)
class Traits:
    """What holds for a method's tickets; the shared tests check it.

    exact_density: the masks keep exactly `floor(density * n + 0.5)` weights.
    nested: over levels the masks only shrink.
    frozen_weights: the weights are never trained; `start` and `final` differ in masks and statistics only.
    dense: the method keeps every weight, whatever density is asked.
    """

    exact_density: bool = True
    nested: bool = False
    frozen_weights: bool = False
    dense: bool = False


@dataclass(frozen=True)
class Stage:
    """One training in a method's plan: its name, the density it trains at, and its number of steps."""

    name: str
    density: float
    steps: int


@dataclass(frozen=True)
class Method:
    """A method, read from its file."""

    name: str
    idea: str
    paper: str
    Config: type[Config]
    traits: Traits
    plan: Callable[[Any, Targets, int], list[Stage]]
    search: Callable[..., Ticket]
    # (model, data, config): raises a RequestError for a network that the method can do nothing with.
    check: Callable[..., None] | None = None


def method_names() -> list[str]:
    """The names of all methods."""
    return sorted(path.stem.replace("_", "-") for path in Path(__file__).parent.glob("[!_]*.py"))


# What is no search but a run of the same making: a command of its own, not a choice for --method.
OTHER_RUNS = {"train": "ticket_search.ticket_training"}


def find_method(name: str) -> Method:
    """The method of a name. Its file is imported, torch is not.

    Raises:
        RequestError: an unknown name; the nearest and all of them are given.
    """
    if name not in method_names() and name not in OTHER_RUNS:
        raise RequestError(unknown("method", name, method_names()))
    module = importlib.import_module(OTHER_RUNS.get(name, f"{__name__}.{name.replace('-', '_')}"))
    idea, _, paper = (module.__doc__ or "").partition("\n")
    return Method(
        name=name,
        idea=idea.strip(),
        paper=" ".join(paper.split("\n\n")[0].split()),
        Config=module.Config,
        traits=module.TRAITS,
        plan=module.plan,
        search=module.search,
        check=getattr(module, "check", None),
    )
