"""How many units each tensor keeps: functions `(unit scores, density) -> {name: number of units}`, totals exact.

A unit whose score is -inf cannot be kept: it was dropped before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .selection import count_kept, top_k
from .targets import find_named

Counts = dict[str, int]
Allocation = Callable[[Mapping[str, Tensor], float], Counts]


def layerwise(scores: Mapping[str, Tensor], density: float) -> Counts:
    """The same density in every tensor: `floor(density * n + 0.5)` of each one's n units."""
    return {name: count_kept(density, score.numel()) for name, score in scores.items()}


def global_(scores: Mapping[str, Tensor], density: float) -> Counts:
    """The `floor(density * n + 0.5)` best units of all tensors ranked together; a tensor may lose all of its own."""
    joint = torch.cat([score.reshape(-1) for score in scores.values()])
    kept = top_k(joint, count_kept(density, joint.numel()))
    parts = kept.split([score.numel() for score in scores.values()])
    return {name: int(torch.count_nonzero(part)) for name, part in zip(scores, parts, strict=True)}


ALLOCATIONS: dict[str, Allocation] = {"layerwise": layerwise, "global": global_}


def find_allocation(allocation: str | Allocation) -> Allocation:
    """The allocation of a name, or the function itself.

    Raises:
        ValueError: an unknown name.
    """
    return find_named("allocation", allocation, ALLOCATIONS) if isinstance(allocation, str) else allocation


def largest_remainder(shares: Mapping[str, float], total: int, limits: Mapping[str, int]) -> Counts:
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
