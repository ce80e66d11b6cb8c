"""Trial runs of a model: random inputs and weights, float64, and how far two sets of outputs are from each other."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..choosing.gradients import call, tensors_in
from ..masks.targets import find_targets
from .slicing import is_depthwise

# Sizes of weights of both signs, and of inputs: behind a gate, a shift or a threshold small positive numbers are one
# side of it only.
SCALES = (1.0, 1000.0)


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


def redraw(net: nn.Module, kept: Mapping[str, Tensor], seed: int, scale: float | None = None) -> nn.Module:
    """A copy with other weights, dropped ones 0.

    What belongs to one channel (biases, norms, depthwise filters) is drawn alike for every seed.

    Args:
        net: the masked network.
        kept: masks of its parameters, as numbers.
        seed: of the other weights.
        scale: weights and biases of both signs, of this size; if None positive ones, so small that nothing saturates,
            or that nothing rounds away.
    """
    net = copy.deepcopy(net)
    alike, other = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)

    def draw(shape: Any, own: bool) -> Tensor:
        generator = alike if own else other
        if scale is None:
            return torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for name, target in find_targets(net, include="*").items():
            parameter, module = target.parameter, target.owners[0][0]
            own = parameter.dim() < 2 or is_depthwise(module)
            drawn = draw(parameter.shape, own)
            if target.kind == "bias" or target.owners[0][1] == "bias":
                drawn *= 0.01 if scale is None else scale
            elif parameter.dim() > 1 and scale is None:
                drawn *= (1 if own else 0.05 if seed == 1 else 0.5) / parameter[0].numel()
            elif parameter.dim() > 1:
                drawn /= parameter[0].numel() ** 0.5
            # A bias that was folded into has no mask of its own.
            mask = kept.get(name)
            parameter.copy_(drawn.to(parameter) if mask is None else drawn.to(parameter) * mask)
        for module in net.modules():
            if isinstance(mean := getattr(module, "running_mean", None), Tensor):
                mean.copy_((-0.01 if scale is None else scale) * draw(mean.shape, own=True))
                module.running_var.fill_(1)  # type: ignore[operator]
    return net
