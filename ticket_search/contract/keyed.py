"""Results that are read by attribute, and under the same names in brackets."""

from __future__ import annotations

from typing import Any

from .errors import nearest_hint


class Keyed:
    """The base of the dataclasses that functions return: `row.mean` may also be written `row["mean"]`.

    Programs that were written when these results were dictionaries go on working. A name that is no attribute raises a
    `KeyError` with the nearest one.
    """

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except AttributeError:
            hint = nearest_hint(name, vars(self))
            raise KeyError(f"{type(self).__name__} has no attribute '{name}'{hint}") from None
