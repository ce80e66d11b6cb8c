"""What a sweep chooses on validation before its runs begin: the candidates in its file. Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..contract.errors import Problems, unknown
from ..contract.flags import Config, to_plain
from ..methods import method_names


@dataclass(frozen=True)
class Choice:
    """The candidates.

    shared: values by flag, for the runs of all methods.
    own: for those of a method, by its name.
    at: the flags of the runs with which the candidates are tried.
    """

    shared: Mapping[str, list[Any]]
    own: Mapping[str, Mapping[str, list[Any]]]
    at: Mapping[str, Any]

    @property
    def told_at(self) -> str:
        """What [choose.at] says, for a sentence."""
        return ", ".join(f"{key} = {value}" for key, value in self.at.items())

    def spread(self, method: str, flags: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The flags of a run with each combination of candidates; a flag that it says itself is not chosen."""
        lists = {key: values for key, values in {**self.shared, **self.own.get(method, {})}.items() if key not in flags}
        return [{**flags, **dict(zip(lists, values, strict=True))} for values in itertools.product(*lists.values())]

    def values_in(self, flags: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
        """Of the flags of a run with a candidate those that are chosen."""
        names = dict.fromkeys(key for lists in (self.shared, *self.own.values()) for key in lists)
        return tuple((key, flags[key]) for key in names if key in flags)

    def group_of(self, flags: Mapping[str, Any]) -> str:
        """The same text for runs that take the same candidate: those that differ in flags of [choose.at] only."""
        return repr(sorted((key, repr(value)) for key, value in flags.items() if key not in self.at))

    def is_at(self, config: Config) -> bool:
        """Whether a run is one with which the candidates are tried."""
        plain = to_plain(config)
        return all(plain.get(key) == value for key, value in self.at.items())


def read_choice(table: Mapping[str, Any], problems: Problems) -> Choice:
    """Read [choose]; what is wrong with it is added to `problems`."""
    at = table.get("at", {})
    if not isinstance(at, dict):
        problems.add(f"choose.at {at!r}: expected a table of flags, as [choose.at] with density = 0.1 in it")
        at = {}
    own = {key: value for key, value in table.items() if isinstance(value, dict) and key != "at"}
    problems.add(
        *(f"[choose.{name}]: {unknown('method', name, method_names())}" for name in own if name not in method_names())
    )
    shared = {key: value for key, value in table.items() if key not in own and key != "at"}
    lists = [("choose", shared), *((f"choose.{name}", values) for name, values in own.items())]
    for where, values in lists:
        problems.add(
            *(
                f"{where}.{key} {candidates!r}: expected a list of two or more different values, as lr = [0.01, 0.1]"
                for key, candidates in values.items()
                if not isinstance(candidates, list)
                or len({repr(value) for value in candidates}) < max(2, len(candidates))
            ),
            *(f"{where}.{key}: the choice is made at the first seed" for key in ("seed",) if key in values),
        )
    if at and not (shared or own):
        problems.add("[choose.at] goes with candidates in [choose]")
    usable = [{key: value for key, value in values.items() if isinstance(value, list) and value} for _, values in lists]
    return Choice(usable[0], dict(zip(own, usable[1:], strict=True)), at)
