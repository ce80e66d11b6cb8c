"""Trial runs of a model: random inputs, float64, and how far two sets of outputs are from each other."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .gradients import call, tensors_in


def to_double(net: nn.Module) -> nn.Module:
    """A copy in float64."""
    return copy.deepcopy(net).double()


def inputs_to_double(inputs: Any) -> Any:
    """The same inputs, floating-point numbers in float64."""
    return tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, inputs)


def normal_like(inputs: Any, scale: float = 1.0) -> Any:
    """Normal random numbers, times a scale, in place of all floating-point ones."""
    return tree_map_only(Tensor, lambda x: scale * torch.randn_like(x) if x.is_floating_point() else x, inputs)


@torch.no_grad()
def run(net: nn.Module, inputs: Any) -> list[Tensor]:
    """The floating-point outputs; an error names the module that failed."""
    inside: list[str] = []
    handles: list[Any] = []
    for path, module in net.named_modules():
        label = f"{path or 'the model'} ({type(module).__name__})"
        handles.append(module.register_forward_pre_hook(lambda *_, label=label: inside.append(label)))
        handles.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    try:
        outputs = call(net, inputs)
    except Exception as error:
        where = inside[-1] if inside else "the model"
        raise ValueError(
            f"the model does not run on inputs like example_input, {where} fails: {type(error).__name__}: {error}; "
            "give an example_input of the shape and type that the model takes"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()]


def relative_difference(expected: Iterable[Tensor], found: Iterable[Tensor]) -> float:
    """The largest difference of an output to the expected one, as a part of the largest entry of that."""
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape or not bool(torch.isfinite(one).all() and torch.isfinite(other).all()):
            return float("inf")
        if one.numel() and (gap := float((one.double() - other.double()).abs().max())):
            worst = max(worst, gap / max(float(one.abs().max()), 1e-300))
    return worst
