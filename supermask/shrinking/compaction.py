"""A masked network as a smaller dense one: units that are dropped, or that nothing reaches or reads, are taken out.

Only what the masks say counts, never what some data activated. A unit that nobody reads goes. A unit that nothing
reaches gives a constant, which goes into the biases of its readers where that is exact. Which layers share a channel is
read off a pass (see `channels`); whether a reader gets a constant is tried out on networks of the same masks and other
weights. What goes wrong without its channels stays whole, and the rest goes. Every result is compared with the masked
network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..choosing.coupling import couple
from ..live.held import bake, carries_masks, copy_of, masks_of
from ..masks.masks import Masks
from ..masks.targets import find_targets, unwrap
from ..weights.fitting import merge_tied
from .removal import Removal
from .slicing import Changes, describe_changes, rebuild
from .trials import inputs_to_double, run, to_double
from .verification import differences, fill, find_culprits


@dataclass(frozen=True)
class Compaction:
    """A smaller network, and what was done.

    Attributes:
        model: the network, in eval mode.
        removed: `{weight: indices of the outputs that are gone}`, counted in the dense layer.
        kept_constant: `{weight: why outputs stay that nothing reaches, or that are dropped}`.
        left_whole: `{weight: why no output of it can go, whatever the masks drop}`.
        changes: plain JSON from which `rebuild` makes the layers again.
        difference: the largest difference to the masked network on random inputs, as a part of the largest output, in
            the model's own precision. `exact_difference` is the same in float64, without the rounding of either.
    """

    model: nn.Module
    removed: Mapping[str, tuple[int, ...]]
    kept_constant: Mapping[str, str]
    left_whole: Mapping[str, str]
    changes: Changes
    difference: float
    exact_difference: float


def compact(
    model: nn.Module, masks: Mapping[str, Tensor] | None = None, example_input: Any = None, tolerance: float = 1e-5
) -> nn.Module:
    """The masked model as a smaller dense one, in eval mode: an ordinary module. The original keeps working.

        masks = supermask.prune(model, density=0.5, granularity="filter", example_input=x)
        small = supermask.compact(model, masks, x)

    `shrink` does the same and says what was done. Biases may be new. The network's outputs keep their width, and so do
    channels that attention or an operation over neighbours sees, as a layer or group norm, and those that code counts
    by number: they stay whole and the rest shrinks. Grouped convolutions lose equally many channels of each group, or
    whole groups. Each layer keeps a unit at least.

    Args:
        model: any module.
        masks: `{parameter name: bool tensor of its shape}`, True = kept; those that the model carries if not given.
        example_input: a tensor, or a tuple or mapping of arguments, that the model takes.
        tolerance: how much an output may differ, as a part of the largest output.

    Raises:
        ValueError: masks that do not fit or that leave a layer empty (all named); a model that does not take the input
            (the module is named); a result that is not equal; outputs that are all 0 or no numbers, which
            prove nothing.

    Source: Fang et al., DepGraph: Towards Any Structural Pruning, 2023.
    """
    return shrink(model, masks, example_input, tolerance).model


def shrink(
    model: nn.Module, masks: Mapping[str, Tensor] | None = None, example_input: Any = None, tolerance: float = 1e-5
) -> Compaction:
    """What `compact` gives, with what was removed, what stays and why, and the differences that were measured.

    Raises:
        ValueError: as of `compact`.
    """
    if example_input is None:
        raise ValueError("expected example_input: a tensor, tuple or mapping that the model takes, to trace it with")
    masked, masks = _masked(unwrap(model), masks)
    run(to_double(masked), inputs_to_double(example_input))
    coupled = couple(masked, find_targets(masked), example_input)
    barred: dict[str, str] = {}
    for folding in (True, False):
        state = _remove(Removal(masked, masks, example_input, coupled, barred, folding))
        while culprits := find_culprits(state):
            barred |= culprits
            state = _remove(Removal(masked, masks, example_input, coupled, barred, folding))
        layers = state.layers()
        changes = describe_changes(masked, layers)
        # In float64 too: what a coarse type rounds in a new bias is no difference of the networks.
        small, exact_small = (fill(rebuild(net, changes), layers) for net in (copy_of(masked), to_double(masked)))
        difference, exact = differences(masked, small, exact_small, example_input)
        if exact <= tolerance:
            return Compaction(small, state.removed(), state.reasons(), state.left_whole, changes, difference, exact)
    raise ValueError(
        f"the compacted model is not equal to the masked one: outputs differ by {exact:.3g} of the largest, "
        f"tolerance {tolerance:g}; something in it mixes channels in a way that the trace does not show"
    )


def _remove(state: Removal) -> Removal:
    while state.remove():
        pass
    return state


def _masked(model: nn.Module, given: Mapping[str, Tensor] | None) -> tuple[nn.Module, Masks]:
    """A copy in eval mode with masks applied, and the masks."""
    carries = carries_masks(model)
    if given is None and not carries:
        raise ValueError("the model carries no masks: expected masks=... or a model after supermask.hold or learn")
    net = (bake(model) if carries else copy_of(model)).eval()
    masks = merge_tied(Masks(given), net) if given is not None else masks_of(model)
    if not masks:
        raise ValueError("there are no masks to compact by: expected {parameter name: bool tensor}")
    masks.check(net)
    empty = [name for name, mask in masks.items() if mask.dim() > 1 and not bool(mask.any())]
    if empty:
        raise ValueError(f"the masks leave nothing of {', '.join(empty)}: a layer needs a weight at least")
    targets = find_targets(net, include="*")
    with torch.no_grad():
        for name, mask in masks.items():
            targets[name].parameter.masked_fill_(~mask.to(targets[name].parameter.device), 0)
    return net, masks
