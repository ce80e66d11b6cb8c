"""Statistics over seeds: confidence intervals, paired differences, Holm's correction, and the number of seeds to add.

Student, The Probable Error of a Mean, 1908; Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import chdtri, nctdtr, stdtr, stdtrit

from ..contract.keyed import Keyed

# The level of every interval and of every two-sided test; each end of an interval is wrong half as often.
ALPHA = 0.05
# The power of a test with the seeds that are asked for.
POWER = 0.8
# Nobody trains more seeds than this.
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Difference(Keyed):
    """The mean difference of `n` pairs, its sample standard deviation and its 95 % interval by Student's t.

    `std` and `interval` are None for a single pair.
    """

    n: int
    mean: float
    std: float | None = None
    interval: tuple[float, float] | None = None

    def __neg__(self) -> Difference:
        flipped = None if self.interval is None else (-self.interval[1], -self.interval[0])
        return Difference(self.n, -self.mean, self.std, flipped)


def confidence_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of independent values by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    quantile = float(stdtrit(len(values) - 1, 1 - ALPHA / 2))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half


def difference(ones: Mapping[Any, float], others: Mapping[Any, float]) -> Difference | None:
    """The mean of `ones - others` over the keys (seeds) that both have; None where they share none."""
    gaps = [ones[key] - others[key] for key in ones if key in others]
    if not gaps:
        return None
    std = statistics.stdev(gaps) if len(gaps) > 1 else None
    return Difference(len(gaps), statistics.fmean(gaps), std, confidence_interval(gaps))


def chance_of_none(found: Difference) -> float | None:
    """The two-sided p-value of the hypothesis that the mean difference is 0, by Student's t; None for a single pair."""
    if found.std is None:
        return None
    if found.std == 0:
        return float(found.mean == 0)
    return 2 * float(stdtr(found.n - 1, -abs(found.mean) / (found.std / math.sqrt(found.n))))


def holm(chances: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted by Holm's method: each compared with ALPHA, any false finding has at most that chance."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    ordered = sorted(chances.items(), key=lambda item: item[1])
    for rank, (name, chance) in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * chance))
        adjusted[name] = highest
    return {name: adjusted[name] for name in chances}


def seeds_to_find(effect: float, std: float, n: int) -> int | None:
    """The number of pairs with which a mean difference of `effect` is found with a probability of POWER.

    It is found where the 95 % interval of the mean leaves out 0. The standard deviation of `n` pairs may be too small
    by chance, so the upper end of its one-sided 80 % interval is used. None where more than MOST_SEEDS are needed.
    """
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
