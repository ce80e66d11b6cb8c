"""Where two states of a network have the same signs, layer by layer, and what several masks of it have in common.

Zhou et al., Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask, 2019.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from supermask import Masks, Ticket

from ..contract.keyed import Keyed

# The name of the row over all layers.
ALL = "all layers"


@dataclass(frozen=True)
class Agreement(Keyed):
    """How often weights of a layer have the same sign in two states: shares in [0, 1], means over the runs.

    ticket: of the kept weights, before and after the training of the ticket.
    dense: of the same weights, before and after the training of the dense network.
    dropped: of the weights that the ticket drops, before and after the training of the dense network.
    trained: of the kept weights, in the trained dense network and in the trained ticket.

    All but `ticket` are None where the search has no dense network. A share of 0.5 is what random signs have.
    """

    layer: str
    weights: float
    ticket: float
    dense: float | None = None
    dropped: float | None = None
    trained: float | None = None


@dataclass(frozen=True)
class Overlap(Keyed):
    """What the masks of several runs have in common in a layer, and what random masks of their densities would have.

    union, intersection: shares of the layer's weights that any, and that every mask keeps.
    union_by_chance, intersection_by_chance: the same, as expected of random masks.
    overlap: the mean over all pairs of masks of intersection over union.
    by_chance: the mean of the same as expected of random masks.
    beyond: by how many standard deviations of random masks (hypergeometric) the intersection of two masks is larger
        than expected, as the mean over all pairs; None where a mask keeps everything or nothing.
    """

    layer: str
    union: float
    intersection: float
    union_by_chance: float
    intersection_by_chance: float
    overlap: float
    by_chance: float
    beyond: float | None


@dataclass(frozen=True)
class _Counts:
    """How many weights have the same sign in two states, of how many."""

    same: int = 0
    of: int = 0

    def __add__(self, other: _Counts) -> _Counts:
        return _Counts(self.same + other.same, self.of + other.of)

    @property
    def share(self) -> float:
        return self.same / self.of


def count_same(one: Tensor, other: Tensor, where: Tensor) -> tuple[int, int]:
    """How many of the entries that a mask chooses have the same sign in two tensors, and of how many.

    An entry that is 0 in the first has no sign that could stay, and is not counted.
    """
    chosen = where & (one != 0)
    return int((chosen & (torch.sign(one) == torch.sign(other))).sum()), int(chosen.sum())


def sign_agreement(tickets: Sequence[tuple[Ticket, Ticket | None]]) -> tuple[Agreement, ...]:
    """The agreement of signs in the tickets of several runs, each with the dense network of its search or None.

    Tensors that start from zeros throughout, as biases do, have no signs to compare.

    Returns:
        A row for each masked tensor, and one over all of them.
    """
    counted = [_count_signs(ticket, dense) for ticket, dense in tickets]
    names = [name for name in counted[0] if all(name in one for one in counted)]
    rows = [*names, ALL]
    for one in counted:
        one[ALL] = {key: sum((one[name][key] for name in names), _Counts()) for key in one[names[0]]} if names else {}
    return tuple(_mean_row(name, [one[name] for one in counted]) for name in rows if counted[0][name])


def _count_signs(ticket: Ticket, dense: Ticket | None) -> dict[str, dict[str, _Counts]]:
    start, final = ticket.state_dict("start"), ticket.state_dict("final")
    before, after = (dense.state_dict("start"), dense.state_dict("final")) if dense is not None else ({}, {})
    found: dict[str, dict[str, _Counts]] = {}
    for name, mask in ticket.masks.counted().items():
        if not bool((start[name][mask] != 0).any()):
            continue
        pairs = {"ticket": (start[name], final[name], mask)}
        if name in before:
            pairs["dense"] = (before[name], after[name], mask)
            pairs["dropped"] = (before[name], after[name], ~mask)
            pairs["trained"] = (after[name], final[name], mask)
        found[name] = {key: _Counts(*count_same(*each)) for key, each in pairs.items()}
    return found


def _mean_row(name: str, counted: Sequence[Mapping[str, _Counts]]) -> Agreement:
    def mean(key: str) -> float | None:
        shares = [one[key].share for one in counted if key in one and one[key].of]
        return statistics.fmean(shares) if len(shares) == len(counted) else None

    return Agreement(
        name,
        statistics.fmean(one["ticket"].of for one in counted),
        statistics.fmean(one["ticket"].share for one in counted),
        mean("dense"), mean("dropped"), mean("trained"),
    )  # fmt: skip


def mask_overlap(masks: Sequence[Masks]) -> tuple[Overlap, ...]:
    """What two or more masks over the same tensors have in common: a row for each tensor, and one over all of them."""
    names = list(masks[0].counted())
    return (*(_overlap(name, masks, [name]) for name in names), _overlap(ALL, masks, names))


def _overlap(row: str, masks: Sequence[Masks], names: Sequence[str]) -> Overlap:
    size = sum(masks[0][name].numel() for name in names)
    either = both = either_by_chance = both_by_chance = 0.0
    for name in names:
        stack = torch.stack([each[name] for each in masks])
        either += int(stack.any(0).sum())
        both += int(stack.all(0).sum())
        shares = [float(mask.float().mean()) for mask in stack]
        both_by_chance += math.prod(shares) * stack[0].numel()
        either_by_chance += (1 - math.prod(1 - share for share in shares)) * stack[0].numel()
    pairs = [_pair(one, other, names) for one, other in itertools.combinations(masks, 2)]
    spread = [beyond for _, _, beyond in pairs if beyond is not None]
    return Overlap(
        row, either / size, both / size, either_by_chance / size, both_by_chance / size,
        statistics.fmean(pair[0] for pair in pairs),
        statistics.fmean(pair[1] for pair in pairs),
        statistics.fmean(spread) if spread else None,
    )  # fmt: skip


def _pair(one: Masks, other: Masks, names: Sequence[str]) -> tuple[float, float, float | None]:
    """Intersection over union of two masks, the same by chance, and the intersection in standard deviations."""
    both = kept = expected = variance = 0.0
    for name in names:
        first, second, size = int(one[name].sum()), int(other[name].sum()), one[name].numel()
        both += int((one[name] & other[name]).sum())
        kept += first + second
        expected += first * second / size
        if size > 1:
            variance += first * second * (size - first) * (size - second) / (size**2 * (size - 1))
    beyond = (both - expected) / math.sqrt(variance) if variance else None
    return (both / (kept - both) if kept > both else 1.0), (expected / (kept - expected) if kept else 1.0), beyond
