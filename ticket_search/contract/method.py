"""What a search method is: its flags, what holds for its tickets, its plan, and its search. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .flags import Config

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


def describe_method(name: str, module: ModuleType) -> Method:
    """The method that a module holds: its docstring is the idea in one line and then the paper."""
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
