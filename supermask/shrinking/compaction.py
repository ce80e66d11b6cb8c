"""A masked network as a smaller dense one: units that are dropped, or that nothing reaches or reads, are taken out.

Only what the masks say counts, never what some data activated. A unit that nobody reads goes. A unit that nothing
reaches gives a constant, which goes into the biases of its readers where that is exact. Which layers share a channel is
read from torch-pruning's dependency graph (see `coupling`); whether a reader gets a constant is tried out on networks
of the same masks and other weights. Every result is compared with the masked network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..choosing.coupling import random_like
from ..choosing.gradients import undisturbed
from ..live.held import bake, copy_of, program_of
from ..masks.masks import Masks
from ..masks.targets import find_targets, unwrap
from .removal import Removal
from .slicing import Changes, Smaller, describe_changes, rebuild
from .trials import inputs_to_double, normal_like, relative_difference, run, to_double


@dataclass(frozen=True)
class Compaction:
    """A smaller network, and what was done.

    Attributes:
        model: the network, in eval mode.
        removed: `{weight: indices of the outputs that are gone}`, counted in the dense layer.
        kept_constant: `{weight: why outputs stay that nothing reaches, or that are dropped}`.
        changes: plain JSON from which `rebuild` makes the layers again.
        difference: the largest difference to the masked network on random inputs, as a part of the largest output, in
            the model's own precision. `exact_difference` is the same in float64, without the rounding of either.
    """

    model: nn.Module
    removed: Mapping[str, tuple[int, ...]]
    kept_constant: Mapping[str, str]
    changes: Changes
    difference: float
    exact_difference: float


def compact(
    model: nn.Module, masks: Mapping[str, Tensor] | None = None, example_input: Any = None, tolerance: float = 1e-5
) -> nn.Module:
    """The masked model as a smaller dense one, in eval mode: an ordinary module. The original keeps working.

        masks = supermask.prune(model, density=0.5, granularity="filter", example_input=x)
        small = supermask.compact(model, masks, x)

    `shrink` does the same and says what was done. Biases may be new. Attention and what a layer or group norm sees keep
    their width, as do the network's outputs; each layer keeps a unit at least.

    Args:
        model: any module.
        masks: `{parameter name: bool tensor of its shape}`, True = kept; those that the model carries if not given.
        example_input: a tensor, or a tuple or mapping of arguments, that the model takes.
        tolerance: how much an output may differ, as a part of the largest output.

    Raises:
        ValueError: masks that do not fit or that leave a layer empty (all named); a model that does not take the input
            (the module is named) or cannot be traced; a result that is not equal; outputs that are 0, which prove
            nothing.

    Source: torch-pruning, Fang et al., DepGraph: Towards Any Structural Pruning, 2023.
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
    state = Removal(masked, masks, example_input)
    while state.remove():
        pass
    layers = state.layers()
    changes = describe_changes(masked, layers)
    # In float64 too: what a coarse type rounds in a new bias is no difference of the networks.
    small, exact_small = (_fill(rebuild(net, changes), layers) for net in (copy_of(masked), to_double(masked)))
    difference, exact = _differences(masked, small, exact_small, example_input)
    if not exact <= tolerance:
        raise ValueError(
            f"the compacted model is not equal to the masked one: outputs differ by {exact:.3g} of the largest, "
            f"tolerance {tolerance:g}; something in it mixes channels in a way that the trace does not show"
        )
    return Compaction(small, state.removed(), state.reasons(), changes, difference, exact)


@torch.no_grad()
def _fill(net: nn.Module, layers: Mapping[str, Smaller]) -> nn.Module:
    for path, layer in layers.items():
        for name, tensor in layer.tensors.items():
            getattr(net.get_submodule(path), name).copy_(tensor)
    return net


_NOTHING_PROVEN = (
    "the masked model gives 0 for random inputs, which proves nothing (a fresh ViT of torchvision does, its head is "
    "0): load trained weights, or give the head and the norms random ones"
)


def _masked(model: nn.Module, given: Mapping[str, Tensor] | None) -> tuple[nn.Module, Masks]:
    """A copy in eval mode with masks applied, and the masks."""
    program = program_of(model)
    if given is None and program is None:
        raise ValueError("the model carries no masks: expected masks=... or a model after supermask.hold or learn")
    net = (copy_of(model) if program is None else bake(model)).eval()
    masks = Masks(given) if given is not None else program.masks()  # type: ignore[union-attr]
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


def _differences(masked: nn.Module, small: nn.Module, exact_small: nn.Module, example: Any) -> tuple[float, float]:
    """The largest relative difference of outputs in the model's precision and in float64.

    Raises:
        ValueError: outputs that are 0, or a network that has become too small for something in it.
    """
    own = exact = 0.0
    wide = to_double(masked)
    with undisturbed(masked, seed=7):
        for inputs in (random_like(example), normal_like(example)):
            outputs = run(wide, inputs_to_double(inputs))
            if not any(bool(output.any()) for output in outputs):
                raise ValueError(_NOTHING_PROVEN)
            try:
                found = run(exact_small, inputs_to_double(inputs))
            except ValueError as error:
                raise ValueError(
                    "something in the model counts on its width, as a view with a number in it does: with fewer "
                    f"channels it does not run: {error.__cause__ or error}"
                ) from error
            exact = max(exact, relative_difference(outputs, found))
            own = max(own, relative_difference(run(masked.eval(), inputs), run(small.eval(), inputs)))
    return own, exact
