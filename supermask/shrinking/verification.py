"""Whether a smaller network gives what the larger one gives, and which channels are to blame where it does not.

An operation may count on a width in a way that no pass shows, as a view or a slice with a number in it does. So what
is to go is tried out twice: on a network of other weights in which everything that is left counts, and on the masked
network itself, on inputs of many sizes and signs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from ..choosing.gradients import undisturbed
from ..live.held import copy_of
from .removal import Removal
from .slicing import Smaller, describe_changes, rebuild
from .trials import inputs_to_double, is_finite, normal_like, random_like, redraw, relative_difference, run, to_double

# Pixels from 0 to 255 too: an operation over several channels may count for nothing in numbers near 1.
SIZES: tuple[Callable[[Any], Any], ...] = (
    random_like,
    partial(random_like, scale=-1.0),
    partial(random_like, scale=255.0),
    partial(normal_like, scale=1e-3),
    normal_like,
    partial(normal_like, scale=255.0),
)
# What sums in another order may differ by, in float64.
_ROUNDING = 1e-7

NOTHING_PROVEN = (
    "the masked model gives 0 for random inputs, which proves nothing (a fresh ViT of torchvision does, its head is "
    "0): load trained weights, or give the head and the norms random ones"
)
NO_ENTRIES = (
    "the masked model gives outputs without entries for every random input, so that nothing can be compared with it: a "
    "detector must find something, as it does with a lower threshold of its scores"
)
NO_NUMBERS = (
    "the masked model gives NaN or infinite numbers for every random input, so that nothing can be compared with it: "
    "check its weights and the statistics of its norms"
)


@torch.no_grad()
def fill(net: nn.Module, layers: Mapping[str, Smaller]) -> nn.Module:
    """Give layers the tensors that were cut for them."""
    for path, layer in layers.items():
        for name, tensor in layer.tensors.items():
            getattr(net.get_submodule(path), name).copy_(tensor)
    return net


def find_culprits(state: Removal) -> dict[str, str]:
    """The groups that cannot go though the trace saw no reason: by their key, what happens without their channels."""
    keys = [channels.key for channels in state.groups if not bool(channels.alive.all())]
    good: list[str] = []
    bad: dict[str, str] = {}

    def sort_out(some: list[str]) -> None:
        if not some or not (why := _misfit(state, [*good, *some])):
            good.extend(some)
        elif len(some) == 1:
            bad[some[0]] = why
        else:
            sort_out(some[: len(some) // 2])
            sort_out(some[len(some) // 2 :])

    sort_out(keys)
    return bad


def _misfit(state: Removal, keys: list[str]) -> str:
    """What goes wrong without these channels in a network of other weights; "" where nothing does."""
    for seed, scale in ((1, None), (2, 1.0)):
        net = redraw(state.net, state.open, seed, scale)
        layers = state.layers(net, keys)
        small = fill(rebuild(copy_of(net), describe_changes(net, layers)), layers)
        with undisturbed(net, seed):
            inputs = normal_like(state.example) if scale else random_like(state.example)
            expected = run(net, inputs)
            if not is_finite(expected):
                continue
            try:
                found = run(small, inputs)
            except ValueError as error:
                cause = error.__cause__ or error
                return f"with fewer channels the model does not run: {str(cause).strip().splitlines()[0]}"
        if not relative_difference(expected, found) <= _ROUNDING:
            return "with fewer channels its outputs are others: something in it counts on its width"
    return ""


def differences(masked: nn.Module, small: nn.Module, exact_small: nn.Module, example: Any) -> tuple[float, float]:
    """The largest relative difference of outputs in the model's precision and in float64.

    Raises:
        ValueError: outputs that are all 0, or of which none is a finite number, or that have no entries.
    """
    own = exact = 0.0
    wide, proven, finite, empty = to_double(masked), False, False, True
    with undisturbed(masked, seed=7):
        for make in SIZES:
            inputs = make(example)
            outputs = run(wide, inputs_to_double(inputs))
            empty &= not any(output.numel() for output in outputs)
            finite |= any(bool(torch.isfinite(output).any()) for output in outputs)
            proven |= any(bool(output.any()) for output in outputs)
            exact = max(exact, relative_difference(outputs, run(exact_small, inputs_to_double(inputs))))
            if make in (random_like, normal_like):
                own = max(own, relative_difference(run(masked.eval(), inputs), run(small.eval(), inputs)))
    if not finite or not proven:
        raise ValueError(NO_ENTRIES if empty else NO_NUMBERS if not finite else NOTHING_PROVEN)
    return own, exact
