"""Trial runs of a model: random inputs and weights, float64, and how far two sets of outputs are from each other."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..choosing.gradients import Operations, call, tensors_in
from ..masks.targets import find_targets
from .slicing import LAYERS, is_depthwise

# Sizes of weights of both signs, and of inputs: behind a gate, a shift or a threshold small positive numbers are one
# side of it only.
SCALES = (1.0, 1000.0)
_NARROW = frozenset({torch.float32, torch.float16, torch.bfloat16})


def to_double(net: nn.Module) -> nn.Module:
    """A copy in float64."""
    return copy.deepcopy(net).double()


def inputs_to_double(inputs: Any) -> Any:
    """The same inputs, floating-point numbers in float64."""
    return tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, inputs)


def random_like(inputs: Any, scale: float = 1.0) -> Any:
    """Random numbers in [0.5, 1.5), times a scale, in place of all floating-point ones."""
    return tree_map_only(Tensor, lambda x: scale * (torch.rand_like(x) + 0.5) if x.is_floating_point() else x, inputs)


def normal_like(inputs: Any, scale: float = 1.0) -> Any:
    """Normal random numbers, times a scale, in place of all floating-point ones."""
    return tree_map_only(Tensor, lambda x: scale * torch.randn_like(x) if x.is_floating_point() else x, inputs)


class _Wide(Operations):
    """Float64 throughout: what a model casts to a narrower type stays wide, and its constants become so."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if named.get("dtype") in _NARROW:
            named["dtype"] = torch.float64
        if not func._schema.is_mutable:
            args, named = tree_map_only(Tensor, lambda x: x.double() if x.dtype in _NARROW else x, (args, named))
        return func(*args, **named)


@contextmanager
def _in_double(net: nn.Module) -> Iterator[None]:
    """A network in float64 without what it rounds inside; nothing of any other."""
    before = torch.get_default_dtype()
    if not all(p.dtype == torch.float64 for p in net.parameters() if p.is_floating_point()):
        yield
        return
    torch.set_default_dtype(torch.float64)
    try:
        with _Wide():
            yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def run(net: nn.Module, inputs: Any) -> list[Tensor]:
    """The outputs; where none is a floating-point one, as of a network that ends in argmax, what its last layer gives.

    Raises:
        ValueError: the model does not run; the module that failed is named.
    """
    inside: list[str] = []
    last: list[Tensor] = []
    handles: list[Any] = []
    for path, module in net.named_modules():
        label = f"{path or 'the model'} ({type(module).__name__})"
        handles.append(module.register_forward_pre_hook(lambda *_, label=label: inside.append(label)))
        handles.append(module.register_forward_hook(lambda *_: inside.pop() and None))
        if isinstance(module, LAYERS):
            handles.append(
                module.register_forward_hook(lambda _module, _inputs, given: last.__setitem__(slice(None), [given]))
            )
    try:
        with _in_double(net):
            outputs = list(tensors_in(call(net, inputs)))
    except Exception as error:
        where = inside[-1] if inside else "the model"
        raise ValueError(
            f"the model does not run on inputs like example_input, {where} fails: {type(error).__name__}: {error}; "
            "give an example_input of the shape and type that the model takes"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return outputs + ([] if any(output.is_floating_point() for output in outputs) else last)


def is_finite(outputs: Iterable[Tensor]) -> bool:
    """Whether all outputs are finite numbers."""
    return all(bool(torch.isfinite(output).all()) for output in outputs)


def relative_difference(expected: Iterable[Tensor], found: Iterable[Tensor]) -> float:
    """The largest difference of an output to the expected one, as a part of the largest finite entry of that.

    Of whole numbers the share that differs. Infinite where a shape does, or where one is NaN or infinite alone.
    """
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        finite = torch.isfinite(one)
        if one.shape != other.shape or not torch.equal(finite, torch.isfinite(other)):
            return float("inf")
        if not torch.equal(torch.nan_to_num(one[~finite]), torch.nan_to_num(other[~finite])):
            return float("inf")
        if one.is_floating_point() and bool(finite.any()):
            gap = float((one[finite].double() - other[finite].double()).abs().max())
            worst = max(worst, gap / max(float(one[finite].abs().max()), 1e-300))
        elif not one.is_floating_point() and one.numel():
            worst = max(worst, float((one != other).double().mean()))
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
