"""What other packages and papers call the density, and which density is meant. Imports no torch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Of the fraction that is dropped, and of that which is kept.
DROPPED = (
    "sparsity", "amount", "pruning_rate", "prune_rate", "pruning_ratio", "prune_ratio", "ratio", "pruning_amount",
    "prune_amount", "target_sparsity", "final_sparsity", "sparsity_level", "prune_fraction", "pruning_fraction",
)  # fmt: skip
KEPT = ("keep_ratio", "keep_rate", "keep", "kept", "remaining", "keep_fraction", "target_density", "final_density")


def read_fraction(value: Any) -> float | None:
    """A fraction from a number or its text, where a percentage is one too: 0.2 of `0.2`, `20%` and `20`; else None."""
    text = str(value).strip()
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        return None
    if text.endswith("%") or 1 < number <= 100:
        number /= 100
    return round(number, 12) if 0 <= number <= 1 else None


def meant_density(name: str, value: Any) -> float | None:
    """The density that is meant by another word and its value, None where the word or the value is none of these.

    meant_density("sparsity", 0.8)      # 0.2
    meant_density("keep_ratio", "20%")  # 0.2
    """
    fraction = read_fraction(value)
    if fraction is None or name not in (*DROPPED, *KEPT):
        return None
    return fraction if name in KEPT else round(1 - fraction, 12)


def tell_density(name: str, value: Any) -> str:
    """What to write in place of another word for the density, as the end of a sentence; empty for any other word."""
    if name not in (*DROPPED, *KEPT):
        return ""
    density = meant_density(name, value)
    told = "density=..." if density is None or density == 0 else f"density={density:g}"
    is_one = "the fraction that is dropped" if name in DROPPED else "the fraction that is kept"
    return f"{told}, the fraction that is kept ({name} is {is_one})" if name in DROPPED else f"{told}, {is_one}"


def hears_other_names(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function that takes `density`, and says so where it is given another word for it.

    Raises:
        TypeError: by the function that is returned, with what to write instead.
    """
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def heard(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        told = [
            f"{function.__name__}() has no argument '{name}': write {told}"
            for name, value in kwargs.items()
            if name not in known and (told := tell_density(name, value))
        ]
        if told:
            raise TypeError("; ".join(told))
        return function(*args, **kwargs)

    return heard
