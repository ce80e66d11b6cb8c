"""How many units each tensor keeps: functions `(unit scores, density, targets) -> {name: number of units}`.

Totals are exact: `floor(density * n + 0.5)` of all n units (layerwise: of each tensor's). A unit whose score is -inf
cannot be kept: it was dropped before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction

import torch
from torch import Tensor

from ..masks.targets import Target, Targets, find_named, matches, nearest
from ..selection.top_k import count_kept, top_k

Counts = dict[str, int]
Allocation = Callable[[Mapping[str, Tensor], float, Targets], Counts]


def layerwise(scores: Mapping[str, Tensor], density: float, targets: Targets) -> Counts:
    """The same density in every tensor: `floor(density * n + 0.5)` of each one's n units."""
    return {name: count_kept(density, score.numel()) for name, score in scores.items()}


def global_(scores: Mapping[str, Tensor], density: float, targets: Targets) -> Counts:
    """The `floor(density * n + 0.5)` best units of all tensors ranked together; a tensor may lose all of its own."""
    return rank_together(scores, count_kept(density, sum(score.numel() for score in scores.values())))


def rank_together(scores: Mapping[str, Tensor], total: int) -> Counts:
    """How many of the `total` best units of all tensors each of them has."""
    joint = torch.cat([score.reshape(-1) for score in scores.values()])
    parts = top_k(joint, total).split([score.numel() for score in scores.values()])
    return {name: int(torch.count_nonzero(part)) for name, part in zip(scores, parts, strict=True)}


def erk(scores: Mapping[str, Tensor], density: float, targets: Targets) -> Counts:
    """Density in proportion to (sum of a tensor's dimensions) / (their product): small layers keep more.

    Source: Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020 (Erdos-Renyi-Kernel).
    """
    return _in_proportion(scores, density, lambda name: _dimensions(targets[name], kernel=True))


def er(scores: Mapping[str, Tensor], density: float, targets: Targets) -> Counts:
    """Density in proportion to (inputs + outputs) / (inputs * outputs), the kernel left aside.

    Source: Mocanu et al., Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity Inspired by
    Network Science, 2018 (Erdos-Renyi).
    """
    return _in_proportion(scores, density, lambda name: _dimensions(targets[name], kernel=False))


def balanced(scores: Mapping[str, Tensor], density: float, targets: Targets) -> Counts:
    """The same number of units in every tensor; what is smaller than that stays whole, and the others share the rest.

    Source: Gadhikar et al., Why Random Pruning Is All We Need to Start Sparse, 2023.
    """
    return _in_proportion(scores, density, lambda name: Fraction(1, max(1, scores[name].numel())))


def by_rate(rates: Mapping[str, float]) -> Allocation:
    """Densities (1 - rate)^t, t one number for all tensors: each layer pruned t times at a rate of its own.

        prune(model, 0.1, allocation=by_rate({"conv": 0.1, "linear": 0.2, "output": 0.1}))

    Args:
        rates: by kind of layer (`conv`, `linear`, `attention`, `recurrent`), `output` for the last linear layer, or
            glob; of several that fit, the first. What none fits keeps all of its units.

    Source: Frankle & Carbin, The Lottery Ticket Hypothesis, 2018 (rates per layer type).

    Raises (when called):
        ValueError: a rate outside [0, 1), a key that fits nothing, or a density that is never reached.
    """

    def allocate(scores: Mapping[str, Tensor], density: float, targets: Targets) -> Counts:
        wrong = [f"{key} {rate}" for key, rate in rates.items() if not 0 <= rate < 1]
        if wrong:
            raise ValueError(f"a rate is the fraction dropped per level and lies in [0, 1), got {', '.join(wrong)}")
        sizes = {name: score.numel() for name, score in scores.items()}
        chosen = _choose(rates, sizes, targets, missing=0.0)
        return shrink_by_rate(sizes, chosen, count_kept(density, sum(sizes.values())))[1]

    return allocate


def by_glob(densities: Mapping[str, float], rest: float | None = None) -> Allocation:
    """The density of each tensor written out, whatever density is asked of the whole.

        prune(model, {"features.*": 0.5, "classifier": 0.1})

    Args:
        densities: by glob, kind of layer or `output`, as in `by_rate`.
        rest: the density of tensors that none fits; if not given, every tensor must have one.

    Raises (when called):
        ValueError: a density outside (0, 1], a key that fits nothing, or tensors without a density; all are named.
    """

    def allocate(scores: Mapping[str, Tensor], density: float, targets: Targets) -> Counts:
        chosen = _choose(densities, scores, targets, missing=rest)
        return {name: count_kept(chosen[name], score.numel()) for name, score in scores.items()}

    return allocate


def with_floor(allocation: Allocation, floor: float) -> Allocation:
    """An allocation in which no tensor keeps less than `floor` of its units, and at least one; the total is the same.

    What the tensors below the floor are given is taken from the others by the allocation itself.

    Raises (when called):
        ValueError: a floor outside [0, 1), or a density that the floors exceed together.
    """

    def allocate(scores: Mapping[str, Tensor], density: float, targets: Targets) -> Counts:
        if not 0 <= floor < 1:
            raise ValueError(f"floor is the fraction that every tensor keeps and lies in [0, 1), got {floor}")
        least = {name: max(1, count_kept(floor, s.numel()) if floor else 0) for name, s in scores.items()}
        # As many as the allocation itself keeps: for densities by glob that is not the density asked of the whole.
        total = sum(allocation(scores, density, targets).values())
        if sum(least.values()) > total:
            each = ", ".join(f"{name} {count} of {scores[name].numel()}" for name, count in least.items())
            raise ValueError(
                f"density {density} keeps {total} units, a floor of {floor} needs {sum(least.values())}: {each}"
            )
        raised: Counts = {}
        while True:
            # Without units, but there: an allocation may look for a tensor by its name.
            free = {name: score.reshape(-1)[:0] if name in raised else score for name, score in scores.items()}
            sizes = {name: score.numel() for name, score in free.items()}
            missing = total - sum(raised.values())
            counts = allocation(free, missing / sum(sizes.values()), targets) if missing else dict.fromkeys(free, 0)
            if sum(counts.values()) != missing:  # each tensor's own rounding
                counts = largest_remainder({name: float(count) for name, count in counts.items()}, missing, sizes)
            below = {name: least[name] for name in scores if name not in raised and counts[name] < least[name]}
            if not below:
                return counts | raised
            raised |= below

    return allocate


ALLOCATIONS: dict[str, Allocation] = {
    "layerwise": layerwise,
    "global": global_,
    "erk": erk,
    "er": er,
    "balanced": balanced,
}


def find_allocation(allocation: str | Allocation) -> Allocation:
    """The allocation of a name, or the function itself.

    Raises:
        ValueError: an unknown name.
    """
    return find_named("allocation", allocation, ALLOCATIONS) if isinstance(allocation, str) else allocation


def shrink_by_rate(sizes: Mapping[str, int], rates: Mapping[str, float], total: int) -> tuple[float, Counts]:
    """The level t at which sizes * (1 - rate)^t sum to `total`, and the counts there, which sum to it exactly.

    Raises:
        ValueError: the tensors of rate 0 alone hold more than `total`.
    """
    never = sum(size for name, size in sizes.items() if rates[name] == 0)
    if never > total or (never == total < sum(sizes.values())):
        names = ", ".join(f"{name} {size}" for name, size in sizes.items() if rates[name] == 0)
        raise ValueError(f"{never} units are in tensors of rate 0 ({names}), {total} are to be kept")

    def shares(level: float) -> dict[str, float]:
        return {name: sizes[name] * (1.0 - rates[name]) ** level for name in sizes}

    low, high = 0.0, 1.0
    while sum(shares(high).values()) > total and high < 1e6:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(shares(middle).values()) > total else (low, middle)
    return high, largest_remainder(shares(high), total, sizes)


def largest_remainder(shares: Mapping[str, float | Fraction], total: int, limits: Mapping[str, int]) -> Counts:
    """Round real-valued shares to whole counts that sum to `total`, none above its limit.

    The largest fractional parts are rounded up first, ties in the order given (Hamilton's method).

    Raises:
        ValueError: the limits sum to less than `total`.
    """
    if sum(limits.values()) < total:
        raise ValueError(f"cannot keep {total} units of {sum(limits.values())}")
    counts = {name: min(limits[name], int(share)) for name, share in shares.items()}
    order = sorted(shares, key=lambda name: int(shares[name]) - shares[name])
    missing = total - sum(counts.values())
    while missing:
        step = 1 if missing > 0 else -1
        for name in order if missing > 0 else reversed(order):
            if missing and 0 <= counts[name] + step <= limits[name]:
                counts[name] += step
                missing -= step
    return counts


def _in_proportion(scores: Mapping[str, Tensor], density: float, weight: Callable[[str], Fraction]) -> Counts:
    """Densities in proportion to `weight`, none above 1: what reaches 1 stays whole and the others share the rest.

    In fractions, so that equal shares are equal and rounded in the order of the tensors.
    """
    sizes = {name: score.numel() for name, score in scores.items()}
    total = count_kept(density, sum(sizes.values()))
    # -inf: dropped before, and no more than what is left can be kept.
    limits = {name: int((score != -torch.inf).sum()) for name, score in scores.items()}
    if sum(limits.values()) < total:
        each = ", ".join(f"{name} {limit} of {sizes[name]}" for name, limit in limits.items())
        raise ValueError(f"masks only shrink: density {density} asks for {total} units, the previous masks keep {each}")
    relative = {name: sizes[name] * weight(name) for name in sizes}
    whole: set[str] = set()
    while True:
        free = [name for name in sizes if name not in whole]
        left = total - sum(limits[name] for name in whole)
        mass = sum(relative[name] for name in free)
        shares = {name: left * relative[name] / mass if mass else Fraction() for name in free}
        full = {name for name in free if shares[name] > limits[name]}
        if not full:
            return largest_remainder({name: shares.get(name, Fraction(limits[name])) for name in sizes}, total, limits)
        whole |= full


def _dimensions(target: Target, kernel: bool) -> Fraction:
    shape = tuple(target.parameter.shape)
    used = shape if kernel or len(shape) < 2 else shape[:2]
    return Fraction(sum(used), max(1, math.prod(used)))


def _choose(
    values: Mapping[str, float], names: Iterable[str], targets: Targets, missing: float | None
) -> dict[str, float]:
    chosen: dict[str, float] = {}
    used: set[str] = set()
    for name in names:
        fitting = [key for key in values if _fits(key, name, targets)]
        used.update(fitting)
        if fitting:
            chosen[name] = values[fitting[0]]
        elif missing is not None:
            chosen[name] = missing
    problems = []
    for key in values:
        whole = [name for name in targets if _fits(key, name, targets)]
        if key not in used and whole:
            problems.append(f"'{key}' fits {', '.join(whole)}, which has no units of its own")
        elif key not in used:
            problems.append(f"'{key}' fits no tensor{nearest(key, targets)}")
    if lost := [name for name in names if name not in chosen]:
        problems.append(f"nothing is said of {', '.join(lost)}")
    if problems:
        raise ValueError("the densities or rates do not fit the targets: " + "; ".join(problems))
    return chosen


def _fits(key: str, name: str, targets: Targets) -> bool:
    return key == targets[name].kind or (key == "output" and name == targets.output) or matches(name, (key,))
