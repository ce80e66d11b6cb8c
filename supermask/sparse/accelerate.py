"""Faster inference of a sparse model: per layer the fastest way to multiply, by measurement.

Nothing is promised from a density: a layer is left dense where no other way is faster on this machine at this batch.
Sources: Mishra et al., Accelerating Sparse Deep Neural Networks, 2021 (2:4); compressed sparse rows as in Intel's MKL.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..choosing.gradients import call, tensors_in
from ..kernels.build import build
from ..live.held import bake, carries_masks, detach, hold
from ..masks.targets import find_named, unwrap
from .layers import TOLERANCES, ColumnsLinear, CsrLinear, semi_structured, unfit
from .timing import time_in_turns

CAPABILITY = (8, 0)
_ATTRIBUTE = "_supermask_speedup"


@dataclass(frozen=True)
class LayerChoice:
    """What one layer became.

    name: the layer's.
    chosen: `dense`, `csr`, `columns` or `2:4`.
    density: fraction of its weights that are not 0.
    seconds: of a call by candidate (first quartile), at the example's batch; empty where there was nothing to choose.
    refused: why a candidate could not be chosen, by candidate.
    """

    name: str
    chosen: str
    density: float
    seconds: Mapping[str, float]
    refused: Mapping[str, str]


@dataclass(frozen=True)
class Speedup:
    """What `accelerate` found: the layers in the order of their calls, and first quartiles of calls of the model.

    difference: the largest difference between the outputs of the two models, in units of the largest output.
    """

    layers: tuple[LayerChoice, ...]
    dense_seconds: float
    seconds: float
    difference: float

    @property
    def factor(self) -> float:
        """How many times faster than the dense model."""
        return self.dense_seconds / self.seconds


def accelerate(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None = None,
    *,
    example_input: Any,
    candidates: Iterable[str] | None = None,
    seconds: float = 0.2,
) -> nn.Module:
    """A copy of a sparse model, in eval mode, whose linear layers and 1x1 convolutions multiply in the fastest way.

        net = supermask.accelerate(model, example_input=x)  # x: a batch of the size that counts
        net(x)
        print(supermask.speedup_of(net))

    Layer after layer, in the order of their calls, each candidate runs on what the layer is given for `example_input`,
    in turns; the lowest first quartile of the times wins (what disturbs a machine only adds), and a candidate whose
    outputs differ is refused. Then the whole copy is laid beside the dense model: if it does not run, gives other
    outputs or is not faster, all of it stays dense. Only modules that are called are replaced: not a weight that
    another module reads, as attention's, nor a layer with hooks of its own.

    Args:
        model: any module; it is left as it is.
        masks: which weights are kept. If not given, the masks that the model carries; of a model without masks, all
            weights that are not 0.
        example_input: what the model takes, on its device, at the batch size to be fast at.
        candidates: of `csr` (compressed rows, on a CPU), `columns` (dense, without inputs that nothing reads) and `2:4`
            (semi-structured, on CUDA); all that this device can if not given. Dense is always one.
        seconds: of measuring per layer, and of the whole.

    Raises:
        ValueError: masks that do not fit, an unknown candidate or one that this device cannot (all named), a model that
            has no layer to replace in what the example calls, or `seconds` not above 0.
    """
    if not seconds > 0:
        raise ValueError(f"expected seconds above 0 to measure each layer, got {seconds}")
    dense = _plain_copy(unwrap(model), masks)
    chosen = _candidates(candidates, _device(dense, example_input))
    with torch.no_grad():
        names = _called(dense, example_input)
        if not names:
            raise ValueError(
                "the example calls no linear layer and no 1x1 convolution inside of the model: nothing to replace"
            )
        net, rows = copy.deepcopy(dense), list[LayerChoice]()
        expected = list(tensors_in(call(dense, example_input)))
        calls = {"dense": partial(call, dense, example_input), "sparse": partial(call, net, example_input)}
        try:
            rows += (_choose(net, name, _input_of(net, name, example_input), chosen, seconds) for name in names)
            difference, reason = _compare(list(tensors_in(_run_transposed(net, example_input))), expected)
        except (RuntimeError, NotImplementedError) as error:
            # A layer whose weight something else reads too, as a norm of it.
            reason = f"the model does not run with it: {str(error).splitlines()[0]}"
        if reason:
            del calls["sparse"]
        quartiles = _quartiles(calls, _device(dense, example_input), seconds)
    dense_seconds = quartiles["dense"]
    if reason or quartiles["sparse"] >= dense_seconds:
        left = tuple(_left_dense(row, reason or "the whole model is not faster") for row in rows)
        net, found = dense, Speedup(left, dense_seconds, dense_seconds, 0.0)
    else:
        found = Speedup(tuple(rows), dense_seconds, quartiles["sparse"], difference)
    net.__dict__[_ATTRIBUTE] = found
    return net


def _left_dense(row: LayerChoice, reason: str) -> LayerChoice:
    refused = row.refused if row.chosen == "dense" else {**row.refused, row.chosen: reason}
    return replace(row, chosen="dense", refused=refused)


def speedup_of(net: nn.Module) -> Speedup:
    """What `accelerate` chose for each layer of `net`, and what it measured.

    Raises:
        ValueError: `net` does not come from `accelerate`.
    """
    found = net.__dict__.get(_ATTRIBUTE)
    if not isinstance(found, Speedup):
        raise ValueError("the model does not come from supermask.accelerate: there is nothing to report")
    return found


def _plain_copy(model: nn.Module, masks: Mapping[str, Tensor] | None) -> nn.Module:
    if masks is not None:
        held = copy.deepcopy(model)
        hold(held, masks)
        return detach(held).eval().requires_grad_(False)
    plain = bake(model) if carries_masks(model) else copy.deepcopy(model)
    return plain.eval().requires_grad_(False)


def _device(model: nn.Module, example: Any) -> torch.device:
    tensors = [*model.parameters(), *tensors_in(example)]
    if not tensors:
        raise ValueError("the model has no parameters and the example no tensors: nothing to accelerate")
    return tensors[0].device


def _candidates(asked: Iterable[str] | None, device: torch.device) -> dict[str, Callable[[nn.Module], nn.Module]]:
    """How to make each candidate of what this device can, or of what was asked."""
    asked = [asked] if isinstance(asked, str) else asked
    reasons = {"csr": _no_csr(device), "columns": "", "2:4": _no_semi_structured(device)}
    names = [name for name, reason in reasons.items() if not reason] if asked is None else list(dict.fromkeys(asked))
    problems = []
    for name in names:
        try:
            find_named("candidate", name, dict.fromkeys([*reasons, "dense"]))
        except ValueError as error:
            problems.append(str(error))
    problems += [reasons[name] for name in names if reasons.get(name)]
    if problems:
        raise ValueError("; ".join(problems))
    makers: dict[str, Callable[[Any], nn.Module]] = {"csr": CsrLinear, "columns": ColumnsLinear, "2:4": semi_structured}
    return {name: makers[name] for name in names if name != "dense"}


def _no_csr(device: torch.device) -> str:
    if device.type != "cpu":
        return f"csr is measured on CPUs, the model is on {device}"
    if torch.backends.mkl.is_available() or build("csr") is not None:
        return ""
    return "csr needs a C++ compiler or a PyTorch with MKL, here is neither"


def _no_semi_structured(device: torch.device) -> str:
    wanted = f"2:4 needs CUDA with compute capability {'.'.join(map(str, CAPABILITY))}"
    if device.type != "cuda":
        return f"{wanted}, found a model on {device}"
    found = torch.cuda.get_device_capability(device)
    return "" if found >= CAPABILITY else f"{wanted}, found {found[0]}.{found[1]}"


def _replaceable(module: nn.Module) -> bool:
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if type(module) is nn.Conv2d:
        plain = module.padding in ((0, 0), "valid") and module.groups == 1
        return plain and module.kernel_size == module.stride == (1, 1)
    return type(module) is nn.Linear


def _called(model: nn.Module, example: Any) -> list[str]:
    """The layers that may be replaced, by the order of their first call."""
    layers = {name: module for name, module in model.named_modules() if name and _replaceable(module)}
    called: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: called.setdefault(name))
        for name, module in layers.items()
    ]
    try:
        call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return list(called)


def _input_of(model: nn.Module, name: str, example: Any) -> Tensor:
    """What a layer is given at its first call, in the memory layout that it has there."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, inputs, kwargs: seen.extend([*inputs, *kwargs.values()][:1]), with_kwargs=True
    )
    try:
        _run_transposed(model, example)
    finally:
        handle.remove()
    return seen[0]


def _run_transposed(model: nn.Module, example: Any) -> Any:
    """Run a model; if it cannot read transposed outputs (as `view` cannot), its layers lay them out from now on."""
    sparse = [module for module in model.modules() if isinstance(module, CsrLinear) and not module.contiguous]
    try:
        return call(model, example)
    except RuntimeError:
        if not sparse:
            raise
    for module in sparse:
        module.contiguous = True
    return call(model, example)


def _choose(
    net: nn.Module,
    name: str,
    x: Tensor,
    candidates: Mapping[str, Callable[[nn.Module], nn.Module]],
    seconds: float,
) -> LayerChoice:
    """Measure the candidates of one layer and put the fastest in its place, wherever it stands."""
    layer: Any = net.get_submodule(name)
    density = int(torch.count_nonzero(layer.weight)) / layer.weight.numel()
    expected, modules, refused = layer(x), {"dense": layer}, dict[str, str]()
    for candidate, make in candidates.items():
        if reason := unfit(candidate, layer):
            refused[candidate] = reason
            continue
        try:
            made = make(layer)
            found = made(x)
        except (RuntimeError, NotImplementedError) as error:  # a type or shape that the backend has no kernel for
            refused[candidate] = str(error).splitlines()[0]
            continue
        difference, allowed = _difference(found, expected), TOLERANCES.get(expected.dtype, 0.0)
        if difference <= allowed:
            modules[candidate] = made
        else:
            refused[candidate] = f"its outputs differ by {difference:.2g} of the largest, more than {allowed:g}"
    if len(modules) == 1:
        return LayerChoice(name, "dense", density, {}, refused)
    quartiles = _quartiles({key: partial(module, x) for key, module in modules.items()}, x.device, seconds)
    chosen = min(quartiles, key=quartiles.__getitem__)
    if chosen != "dense":
        for path in [path for path, other in net.named_modules(remove_duplicate=False) if other is layer]:
            net.set_submodule(path, modules[chosen])
    return LayerChoice(name, chosen, density, quartiles, refused)


def _compare(found: list[Tensor], expected: list[Tensor]) -> tuple[float, str]:
    """The largest difference of all outputs, and what is wrong where one of them differs by more than it may."""
    worst = 0.0
    if len(found) != len(expected):
        return float("inf"), f"the model has {len(found)} outputs and had {len(expected)}"
    for one, other in zip(found, expected, strict=True):
        difference = _difference(one, other)
        if not difference <= TOLERANCES.get(other.dtype, 0.0):
            return difference, f"the model's outputs differ by {difference:.2g} of the largest"
        worst = max(worst, difference)
    return worst, ""


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference in units of the largest value; infinite where shapes differ or there are no numbers."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if not found.is_floating_point():
        return 0.0 if torch.equal(found, expected) else float("inf")
    gap, scale = (found - expected).abs().max().item(), expected.abs().max().item()
    relative = gap / scale if scale else float(gap > 0)
    return float(relative) if relative == relative else float("inf")


def _quartiles(calls: Mapping[str, Callable[[], Any]], device: torch.device, seconds: float) -> dict[str, float]:
    """The first quartile of the seconds of each call."""
    times = time_in_turns(calls, seconds / len(calls), device)
    return {name: statistics.quantiles(each, n=4, method="inclusive")[0] for name, each in times.items()}
