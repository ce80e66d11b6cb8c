"""What a sampler proposes the runs of a sweep from, in place of a grid: [search] in its file. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..contract.errors import Problems, unknown

SAMPLERS = ("tpe", "random")
_OWN = ("trials", "batch", "sampler", "seed")
_KEYS = ("low", "high", "log")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, whole ones where both are; on a logarithmic scale if `log`."""

    low: float
    high: float
    log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are proposed."""
        return isinstance(self.low, int) and isinstance(self.high, int)


@dataclass(frozen=True)
class Search:
    """How runs are proposed.

    trials: how many proposals are tried in all.
    batch: how many are asked for at once, and may be carried out at the same time. What is proposed depends on it.
    sampler, seed: Optuna's.
    ranges: by flag, a range or the values that there are.
    base, threads, seeds: what the runs are told besides, as in the file of the sweep; no seeds where it names none.
    """

    trials: int
    batch: int = 4
    sampler: str = "tpe"
    seed: int = 0
    ranges: Mapping[str, Range | tuple[Any, ...]] = field(default_factory=dict)
    base: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    seeds: tuple[int, ...] = ()

    def corners(self) -> list[dict[str, Any]]:
        """Proposals that show what may be wrong: each end and each value of a flag, the others at their first."""
        ends = {key: (each.low, each.high) if isinstance(each, Range) else each for key, each in self.ranges.items()}
        first = {key: values[0] for key, values in ends.items()}
        found = [first] + [{**first, key: value} for key, values in ends.items() for value in values[1:]]
        return [flags for place, flags in enumerate(found) if flags not in found[:place]]


def read_search(table: Mapping[str, Any], problems: Problems) -> Search | None:
    """Read [search]; what is wrong with it is added to `problems`. None where there is none, or nothing usable."""
    if not table:
        return None
    before = len(problems.found)
    for key, least in (("trials", 1), ("batch", 1), ("seed", 0)):
        value = table.get(key, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            problems.add(f"search.{key} {value!r}: expected a whole number, {least} or more")
    if "trials" not in table:
        problems.add("search.trials is missing: how many proposals are tried, as trials = 20")
    if (sampler := table.get("sampler", "tpe")) not in SAMPLERS:
        problems.add(f"search.sampler: {unknown('sampler', str(sampler), SAMPLERS)}")
    ranges = {key: each for key, value in table.items() if key not in _OWN and (each := _read(key, value, problems))}
    if not set(table) - set(_OWN):
        problems.add("[search] names no flag to search, as lr = {low = 1e-4, high = 0.1, log = true}")
    if len(problems.found) > before:
        return None
    return Search(ranges=ranges, **{key: table[key] for key in _OWN if key in table})


def _read(key: str, value: Any, problems: Problems) -> Range | tuple[Any, ...] | None:
    """A range, or the values that there are; None for what is neither, which is a problem."""
    if isinstance(value, list) and len(value) > 1 and len({repr(each) for each in value}) == len(value):
        return tuple(value)
    if not isinstance(value, dict):
        problems.add(
            f"search.{key} {value!r}: expected a range, as {{low = 1e-4, high = 0.1, log = true}}, or a list of two or "
            "more different values"
        )
        return None
    wrong = [f"search.{key}: {unknown('key', name, _KEYS)}" for name in value if name not in _KEYS]
    ends = [value.get(name) for name in ("low", "high")]
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        wrong.append(f"search.{key}: expected two numbers, low and high")
    elif not ends[0] < ends[1]:  # type: ignore[operator]
        wrong.append(f"search.{key}: low {ends[0]} is not below high {ends[1]}")
    elif value.get("log") and ends[0] <= 0:  # type: ignore[operator]
        wrong.append(f"search.{key}: a logarithmic scale begins above 0, not at {ends[0]}")
    if not isinstance(value.get("log", False), bool):
        wrong.append(f"search.{key}: log {value['log']!r}: expected true or false")
    problems.add(*wrong)
    return None if wrong else Range(**value)


def stands_alone(file: Mapping[str, Any], searched: Sequence[str]) -> list[str]:
    """A sentence for each table or key of a file that does not go with [search], and each flag that is said twice."""
    told = {
        "grid": "its values are lists in [search]",
        "runs": "a search proposes its runs",
        "choose": "a search chooses on validation itself",
        "controls": "make them of the best runs, by `ticket controls`",
        "predictions": "its runs are not known before",
    }
    found = [f"{key} does not go with [search]: {why}" for key, why in told.items() if file.get(key)]
    base = file.get("base", {})
    return found + [f"{key} is in [base] and in [search]: give one of them" for key in searched if key in base]
