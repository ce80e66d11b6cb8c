"""What is expected of a sweep before it is run, and whether the runs that it is about are there. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pydantic

from ..contract.errors import nearest_hint
from ..contract.flags import Config

# Predictions are about all seeds of a configuration.
_SEEDS = ("seed", "init_seed", "order_seed", "mask_seed", "split_seed")


class Prediction(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What is expected of a sweep before it is run: that some runs are better than others, or not worse.

    text: in words. better, than: flags by which the runs of the two are known, as {method = "imp"}; the runs may be
        those of another sweep of the same study. densities: at which it is said; at all that both have if none is
        given; the dense network stands beside any. by: `above`, the paired mean difference and its whole interval are
        above 0; `not below`, the interval is above minus the margin.
    """

    text: str
    better: dict[str, Any]
    than: dict[str, Any]
    densities: tuple[float, ...] = ()
    by: Literal["above", "not below"] = "above"

    @property
    def sides(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """The flags of the two sides, each with the key that they stand under."""
        return ("better", self.better), ("than", self.than)


@dataclass(frozen=True)
class Told:
    """A run as its flags tell it, by field name, with the name of its sweep.

    flags: the values that the flag may have once the candidates of [choose] are tried, by flag.
    dense: whether it keeps every weight.
    whole: whether these are all of its flags; of a run with something wrong with it those that are given are known.
    """

    name: str
    flags: Mapping[str, Sequence[Any]]
    dense: bool = False
    whole: bool = True

    def has(self, key: str, value: Any) -> bool:
        """Whether the run has, or may have, this value of a flag."""
        return value in self.flags[key] if key in self.flags else not self.whole

    def fits(self, flags: Mapping[str, Any]) -> bool:
        """Whether the run has, or may have, these flags."""
        return all(self.has(key, value) for key, value in flags.items())

    @property
    def densities(self) -> tuple[float, ...] | None:
        """The densities that it measures; None where they follow from a fraction that levels drop, or are chosen."""
        levels, kept = self.flags.get("levels", [[]]), self.flags.get("density", ())
        if len(levels) > 1 or len(kept) != 1 or not self.whole:
            return None
        if levels[0]:
            return tuple(levels[0])
        return None if "fraction" in self.flags else (kept[0],)


def tell(name: str, sweep: str, configs: Sequence[Config], dense: bool) -> Told:
    """A run under a name, of whose `configs` it has one: that with the candidate that is chosen for it."""
    plain = [{**config.model_dump(mode="json"), "sweep": sweep} for config in configs]
    keys = dict.fromkeys(key for each in plain for key in each if key not in _SEEDS)
    values = {key: [each[key] for each in plain if key in each] for key in keys}
    return Told(name, {key: _unique(each) for key, each in values.items()}, dense)


def fits(config: Config, flags: Mapping[str, Any]) -> bool:
    """Whether a run has these flags, by field name."""
    plain = config.model_dump(mode="json")
    return all(key in plain and plain[key] == value for key, value in flags.items())


def prediction_problems(predictions: Iterable[Prediction], runs: Sequence[Told]) -> list[str]:
    """A sentence for each prediction about runs that are not there, or about several configurations at once."""
    found = []
    for prediction in predictions:
        where, wrong = f"the prediction '{prediction.text}'", list[str]()
        measured = list[list[float]]()
        for key, flags in prediction.sides:
            matching = [run for run in runs if run.fits(flags)]
            why = _why_several(flags, matching, prediction.densities) if matching else why_none(flags, runs)
            why = why or _density_not_there(flags, matching, prediction.densities)
            wrong += [f"{where}, {key}: {why}"] if why else []
            known = _densities_of(matching)
            measured += [] if known is None else [known]
        if not wrong and len(measured) == 2 and not any(_holds(measured[0], each) for each in measured[1]):
            told = " and ".join(", ".join(f"{each:g}" for each in side) for side in measured)
            wrong.append(f"{where}: its two sides have no density in common, they are at {told}")
        found += wrong
    return found


def why_none(flags: Mapping[str, Any], runs: Sequence[Told]) -> str:
    """Which of the flags no run has, and what it was probably meant to be; empty where a run has all of them."""
    left, told = list(runs), ""
    for key, value in flags.items():
        matching = [run for run in left if run.has(key, value)]
        if matching:
            left, told = matching, f"{told}, " * bool(told) + f"{key} = {_shown(value)}"
            continue
        among = f"of the runs with {told} none" if told else "no run"
        values = _unique([each for run in left for each in run.flags.get(key, ())])
        if not values:
            known = dict.fromkeys(each for run in left for each in run.flags)
            return f"{among} has a flag {key}{nearest_hint(key, known)}"
        hint = nearest_hint(value, map(str, values)) if isinstance(value, str) else ""
        return f"{among} has {key} = {_shown(value)}{hint or ''}; there is {', '.join(map(_shown, values))}"
    return ""


def _why_several(flags: Mapping[str, Any], runs: Sequence[Told], densities: Sequence[float]) -> str:
    """Which configurations fit the flags, where these are several at one density."""
    first = next((run for run in runs if run.whole), None)
    if first is None:
        return ""
    own = _configuration(first)
    for other in runs:
        theirs = _configuration(other)
        if other.whole and theirs != own and _meet(first, other, densities):
            differs = [key for key in {**own, **theirs} if own.get(key) != theirs.get(key) and key not in flags]
            return (
                f"several configurations have these flags, as {first.name} and {other.name}: add what tells them apart"
                + (f", as {' or '.join(differs[:3])}" if differs else "")
            )
    return ""


def _configuration(run: Told) -> dict[str, Sequence[Any]]:
    return {key: values for key, values in run.flags.items() if key != "density"}


def _meet(one: Told, other: Told, densities: Sequence[float]) -> bool:
    """Whether two runs measure the same density, of those that are asked about, as far as that is known."""
    if one.densities is None or other.densities is None:
        return True
    both = [density for density in one.densities if _holds(other.densities, density)]
    return any(_holds(densities, density) for density in both) if densities else bool(both)


def _density_not_there(flags: Mapping[str, Any], runs: Sequence[Told], densities: Sequence[float]) -> str:
    """Which densities none of the runs measures; empty where that is known only when they are finished."""
    known = _densities_of(runs)
    if known is None:
        return ""
    missing = [density for density in densities if not _holds(known, density)]
    if not missing:
        return ""
    told = ", ".join(f"{density:g}" for density in missing)
    return f"no run with {_told(flags)} is at density {told}; there is {', '.join(f'{each:g}' for each in known)}"


def _densities_of(runs: Sequence[Told]) -> list[float] | None:
    """The densities that runs measure; None where that is not known yet, or is any, as for the dense network."""
    there = [run.densities for run in runs]
    if any(run.dense for run in runs) or None in there:
        return None
    return sorted({density for each in there for density in each or ()}, reverse=True)


def _holds(densities: Iterable[float], density: float) -> bool:
    return any(math.isclose(each, density) for each in densities)


def _told(flags: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {_shown(value)}" for key, value in flags.items())


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unique(values: Iterable[Any]) -> list[Any]:
    return list({repr(value): value for value in values}.values())
