"""What the barriers between pairs of children say: from which step on training is stable to the noise of SGD.

Frankle, Dziugaite, Roy & Carbin, Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic

from ..analysis.intervals import Difference, confidence_interval, difference
from ..contract.errors import RequestError
from ..contract.keyed import Keyed
from ..contract.metric import Metric
from ..runs.forms import explain
from ..runs.versions import too_new

# The networks whose stability is asked for, in the order in which they are shown.
ARMS = ("dense", "ticket", "reinit", "shuffle")
# Percentage points of error below which Frankle et al. call training stable.
STABLE = 2.0
_NAMES = {"dense": "dense training", "ticket": "the ticket", "reinit": "reinit", "shuffle": "shuffle"}


class Interpolated(pydantic.BaseModel, frozen=True):
    """The same path with the running statistics of norms interpolated like weights, as if they were weights."""

    barrier: float
    loss_barrier: float
    errors: list[float]
    losses: list[float]


class PairRow(pydantic.BaseModel, frozen=True):
    """A pair of children. `level` is None of the dense arm, and of runs without levels; `step` is that of W_k.

    `errors` and `losses` are those at the points of the line on the test split, with statistics of norms estimated
    anew, `ends` the first and the last of the errors; `statistics_interpolated` is None for networks without norms.
    """

    arm: Literal["dense", "ticket", "reinit", "shuffle"]
    level: int | None
    density: float
    step: int = pydantic.Field(ge=0, le=10**12)
    pair: int = pydantic.Field(ge=0)
    order_seeds: list[int]
    barrier: float
    loss_barrier: float
    ends: list[float]
    errors: list[float]
    losses: list[float]
    statistics_interpolated: Interpolated | None = None


class Record(pydantic.BaseModel, frozen=True):
    """What `connect.json` holds."""

    metric: dict[str, str]
    points: int
    rows: list[PairRow]

    @pydantic.model_validator(mode="after")
    def _is_whole(self) -> Record:
        if any({len(row.errors), len(row.losses)} != {self.points} for row in self.rows):
            raise ValueError(f"expected {self.points} errors and losses in each row")
        return self


def check_record(found: Mapping[str, Any], path: Path) -> Record:
    """A record as it was read from a file of a run's folder, if it is one.

    Raises:
        RequestError: it is none.
    """
    try:
        return Record.model_validate(found)
    except pydantic.ValidationError as error:
        raise RequestError(too_new(path.parent) or f"{path} is damaged: {explain(error)}") from None


@dataclass(frozen=True)
class Barrier(Keyed):
    """The barriers of one arm at one step, over its pairs, in percentage points of accuracy or the metric's own unit.

    loss: the mean barrier of the loss. end: the mean error of the children. to_dense: this barrier less that of the
    dense network at the same step, over the pairs of both. interpolated: the mean barrier where the running statistics
    of norms are interpolated; None without norms.
    """

    arm: str
    level: int | None
    density: float
    step: int
    pairs: int
    mean: float
    interval: tuple[float, float] | None
    loss: float
    end: float
    to_dense: Difference | None = None
    interpolated: float | None = None


def summarize(rows: Sequence[PairRow]) -> list[Barrier]:
    """One entry for each arm and step, the arms in order, the steps upwards."""
    groups: dict[tuple[int, int], list[PairRow]] = {}
    for row in rows:
        groups.setdefault((ARMS.index(row.arm), row.step), []).append(row)
    by_pair = {key: {row.pair: row.barrier for row in group} for key, group in groups.items()}
    return [_join(groups[key], by_pair[key], by_pair.get((0, key[1]), {}) if key[0] else {}) for key in sorted(groups)]


def _join(rows: Sequence[PairRow], barriers: Mapping[int, float], dense: Mapping[int, float]) -> Barrier:
    first, values = rows[0], list(barriers.values())
    norms = [row.statistics_interpolated.barrier for row in rows if row.statistics_interpolated]
    return Barrier(
        first.arm, first.level, first.density, first.step, len(values), _mean(values),
        confidence_interval(values), _mean([row.loss_barrier for row in rows]),
        _mean([_mean(row.ends) for row in rows]), difference(barriers, dense), _mean(norms) if norms else None,
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def stable_from(barriers: Sequence[Barrier]) -> Barrier | None:
    """Of one arm the first step from which on every step that was tried has a mean barrier below STABLE, if any."""
    found = None
    for barrier in sorted(barriers, key=lambda barrier: -barrier.step):
        if barrier.mean >= STABLE:
            break
        found = barrier
    return found


def headline(barriers: Sequence[Barrier], metric: Metric) -> str:
    """One sentence: which arm is stable from which step on."""
    arms = {arm: [barrier for barrier in barriers if barrier.arm == arm] for arm in ARMS}
    known = {arm: own for arm, own in arms.items() if own}
    if metric.is_accuracy:
        parts = [_tell(arm, own, metric) for arm, own in known.items()]
    else:
        told = {
            arm: ", ".join(f"{_size(each.mean, metric)} at step {each.step}" for each in known[arm]) for arm in known
        }
        parts = [f"{_NAMES[arm]}: barrier {told[arm]}" for arm in known]
        parts.append(f"from which barrier of {metric.name} on training counts as unstable is not known")
    return "; ".join([*parts, f"measured on {_pairs(barriers)}"])


def _tell(arm: str, barriers: Sequence[Barrier], metric: Metric) -> str:
    """What is said of an arm of which accuracy was measured."""
    found, lowest = stable_from(barriers), min(barriers, key=lambda barrier: barrier.mean)
    if found is not None:
        return f"{_NAMES[arm]} is stable from step {found.step} on (barrier {_size(found.mean, metric)})"
    if len(barriers) == 1:
        return f"{_NAMES[arm]} is not stable at step {lowest.step} (barrier {_size(lowest.mean, metric)})"
    where = "the last step" if lowest.mean < STABLE else "any step"
    told = f"{_size(lowest.mean, metric)} at step {lowest.step}"
    return f"{_NAMES[arm]} is not stable at {where} that was tried (lowest barrier {told})"


def _pairs(barriers: Sequence[Barrier]) -> str:
    few, most = (choose(barrier.pairs for barrier in barriers) for choose in (min, max))
    return f"{few} pair{'s' if few > 1 else ''} of children" if few == most else f"{few} to {most} pairs of children"


def _size(barrier: float, metric: Metric) -> str:
    return f"{barrier:.1f} {metric.gap}" if metric.unit == "%" else f"{barrier:.3g} {metric.gap}"
