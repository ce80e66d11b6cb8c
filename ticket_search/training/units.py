"""Units of several weights that a method drops as a whole: which of them a network has, and how many levels keep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import supermask
from supermask import choosing, selection

from ..contract.errors import RequestError
from ..contract.flags import Config
from .at_init import example_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from supermask import Targets
    from supermask.choosing.coupling import Coupled
    from supermask.choosing.granularity import Granularity

    from ..data.samples import Samples


@dataclass(frozen=True)
class Filters:
    """The channels of a network that can be dropped, by the first tensor that writes them.

    `norms` are the scales of the batch norms behind the tensors, where only those with one can be dropped.
    """

    shape: Coupled
    targets: Targets
    example: Tensor
    norms: dict[str, Tensor]

    @property
    def channels(self) -> dict[str, int]:
        """How many there are in each layer."""
        return {key: group.channels for key, group in self.shape.groups.items()}


def find_filters(model: nn.Module, data: Samples, config: Config, *, normed: bool) -> Filters:
    """The channels of the network that can be dropped.

    Args:
        model: the network.
        data: of which it is given two samples.
        config: of the method, which may name what is masked.
        normed: leave whole what has no batch norm right behind it.

    Raises:
        RequestError: there are none; why is said of each layer.
    """
    example = example_of(data)
    norms: dict[str, Tensor] = {}
    try:
        targets = supermask.find_targets(model, config.include or None, config.exclude or None)
        shape = choosing.coupling.couple(model, targets, example)
        if normed:
            norms = choosing.coupling.norms_behind(model, targets, example)
            left = {name: "no batch norm stands behind it" for name in targets if name not in norms}
            shape.left_whole = left | shape.left_whole
            shape.groups = {key: group for key, group in shape.groups.items() if not left.keys() & group.rows.keys()}
    except ValueError as error:
        raise RequestError(f"{config.method}: {error}") from None
    if not shape.groups:
        told = "; ".join(f"{name}: {why}" for name, why in shape.left_whole.items())
        raise RequestError(
            f"{config.method}: the network has no filters or hidden units that can be dropped as a whole: {told}"
        )
    return Filters(shape, targets, example, norms)


@dataclass(frozen=True)
class Level:
    """What a level keeps: so many units of each tensor, of `units` in all, at a density that was aimed at."""

    shape: str | Granularity
    counts: Mapping[str, int]
    units: int
    density: float

    @property
    def kept(self) -> int:
        """Units kept in all."""
        return sum(self.counts.values())


def unit_densities(density: float, levels: Sequence[float], fraction: float) -> list[float]:
    """The densities of units at every level after the dense one: those given, or each less than the last by a fraction.

    The last is the density asked; a last step of less than a tenth of a level is joined to the one before it.
    """
    if levels or density == 1:
        return list(levels)
    number = max(1, math.ceil(math.log(density) / math.log(1.0 - fraction) - 0.1))
    return [*((1.0 - fraction) ** level for level in range(1, number)), density]


def counts_at(densities: Sequence[float], sizes: Mapping[str, int], layerwise: bool) -> list[dict[str, int]]:
    """Units kept in each tensor at some densities: of each tensor where those are ranked, else of all together."""
    counts: list[dict[str, int]] = []
    for density in densities:
        if layerwise:
            counts.append({name: selection.top_k.count_kept(density, size) for name, size in sizes.items()})
            continue
        shares = {name: size * density for name, size in sizes.items()}
        total = selection.top_k.count_kept(density, sum(sizes.values()))
        counts.append(choosing.allocation.largest_remainder(shares, total, counts[-1] if counts else sizes))
    return counts


def find_maskable(model: nn.Module, config: Config) -> Targets:
    """The tensors that may carry a mask.

    Raises:
        RequestError: a glob that fits nothing, or a network without such tensors.
    """
    try:
        return supermask.find_targets(model, config.include or None, config.exclude or None)
    except ValueError as error:
        raise RequestError(str(error)) from None


def find_unit_levels(
    model: nn.Module,
    data: Samples,
    config: Config,
    targets: Targets,
    densities: Sequence[float],
    granularity: str,
    allocation: str,
) -> list[Level]:
    """Levels of these densities of filters, channels or blocks, `global` or `layerwise`.

    Raises:
        RequestError: tensors that have no such units.
    """
    try:
        shape: Granularity = choosing.granularity.find_granularity(granularity)
        if granularity == "filter":  # with all that goes with it
            shape = find_filters(model, data, config, normed=False).shape
        units = shape.reduce({name: target.parameter.detach() for name, target in targets.items()}, targets)
    except ValueError as error:
        raise RequestError(f"--granularity {granularity}: {error}") from None
    sizes = {name: unit.numel() for name, unit in units.items()}
    counts = counts_at(densities, sizes, allocation == "layerwise")
    return [Level(shape, each, sum(sizes.values()), density) for density, each in zip(densities, counts, strict=True)]


def unit_problems(level: Level, granularity: str, allocation: str) -> list[str]:
    """What a level keeps too little of: units, or filters, of which each layer needs one."""
    told = f"--density {level.density:g} keeps"
    if granularity == "filter" and allocation == "layerwise":
        return [f"{told} no filter of {name}: each layer needs one" for name, n in level.counts.items() if not n]
    needed = len(level.counts) if granularity == "filter" else 1
    if level.kept >= needed:
        return []
    return [f"{told} {level.kept} of the {level.units:,} units ({granularity}), and {needed} are needed"]
