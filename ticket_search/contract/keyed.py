"""Results that are read by attribute, and under the same names in brackets."""

from __future__ import annotations

from typing import Any

from .errors import nearest_hint


class Keyed:
    """The base of the dataclasses that functions return: `row.mean` may also be written `row["mean"]`.

    Programs that were written when these results were dictionaries go on working. A name that is not a field raises a
    `KeyError` with the nearest field.
    """

    def __getitem__(self, name: str) -> Any:
        values = vars(self)
        if name not in values:
            raise KeyError(f"{type(self).__name__} has no field '{name}'{nearest_hint(name, values)}")
        return values[name]
