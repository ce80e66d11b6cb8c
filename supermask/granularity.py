"""In what shape weights are kept or dropped: scores of weights to scores of units, masks of units back to weights."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .targets import find_named


class Granularity(Protocol):
    """The contract: `reduce` takes a tensor's scores to one score per unit, `expand` a mask over units to weights."""

    def reduce(self, score: Tensor) -> Tensor:
        """Scores of the units, in any shape."""
        ...

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Bool mask of `shape` from the bool mask over units."""
        ...


class Weight:
    """Every weight is a unit of its own (unstructured pruning)."""

    def reduce(self, score: Tensor) -> Tensor:
        """The scores themselves."""
        return score

    def expand(self, kept: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The mask itself."""
        return kept.reshape(shape)


GRANULARITIES: dict[str, type[Granularity]] = {"weight": Weight}


def find_granularity(granularity: str | Granularity) -> Granularity:
    """The granularity of a name, or the object itself.

    Raises:
        ValueError: an unknown name.
    """
    return find_named("granularity", granularity, GRANULARITIES)() if isinstance(granularity, str) else granularity
