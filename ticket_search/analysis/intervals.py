"""What a few seeds say: intervals, differences paired by seed, and how many seeds would decide.

Student, The Probable Error of a Mean, 1908; Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

# Of every interval and of every two-sided test; each end of an interval is wrong half as often.
ALPHA = 0.05
# The chance that a difference which is there is found with the seeds that are asked for.
POWER = 0.8
# More seeds than anybody trains.
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Difference:
    """The mean difference of `n` pairs with its 95 % interval by Student's t, None for a single pair."""

    n: int
    mean: float
    std: float | None = None
    interval: tuple[float, float] | None = None

    def __neg__(self) -> Difference:
        flipped = None if self.interval is None else (-self.interval[1], -self.interval[0])
        return Difference(self.n, -self.mean, self.std, flipped)


def confidence_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of independent values by Student's t; None for less than two of them."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(values) - 1, 1 - ALPHA / 2))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half


def difference(ones: Mapping[Hashable, float], others: Mapping[Hashable, float]) -> Difference | None:
    """Values minus other values of the same key, a seed; None where no key is in both."""
    gaps = [ones[key] - others[key] for key in ones if key in others]
    if not gaps:
        return None
    std = statistics.stdev(gaps) if len(gaps) > 1 else None
    return Difference(len(gaps), statistics.fmean(gaps), std, confidence_interval(gaps))


def chance_of_none(found: Difference) -> float | None:
    """Two-sided p-value of a mean difference of 0, by Student's t; None for a single pair."""
    if found.std is None:
        return None
    if found.std == 0:
        return float(found.mean == 0)
    from scipy.special import stdtr

    return 2 * float(stdtr(found.n - 1, -abs(found.mean) / (found.std / math.sqrt(found.n))))


def holm(chances: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted so that the chance of any false finding among all of them stays what it is for one."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    ordered = sorted(chances.items(), key=lambda item: item[1])
    for rank, (name, chance) in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * chance))
        adjusted[name] = highest
    return {name: adjusted[name] for name in chances}


def seeds_to_find(effect: float, std: float, n: int) -> int | None:
    """How many pairs find a mean difference of `effect` with a chance of POWER: their interval leaves 0 out.

    The deviation of `n` pairs may be too small by luck, so what is planned with is the upper end of its one-sided 80 %
    interval. None if there are more than MOST_SEEDS.
    """
    from scipy.special import chdtri, nctdtr, stdtrit

    if effect <= 0:
        return None
    likely = std * math.sqrt((n - 1) / float(chdtri(n - 1, POWER)))
    for seeds in range(2, MOST_SEEDS + 1):
        if likely == 0:
            return seeds
        noncentral = effect * math.sqrt(seeds) / likely
        if 1 - float(nctdtr(seeds - 1, noncentral, stdtrit(seeds - 1, 1 - ALPHA / 2))) >= POWER:
            return seeds
    return None
