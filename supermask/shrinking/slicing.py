"""Smaller layers out of larger ones, and a description of that in plain JSON from which they can be made again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..live.held import Model
from ..masks.masks import first_few
from ..masks.targets import LINEAR, TransposedLinear, nearest

# What a description may change. It may come from a file, so nothing else of a module can be written to.
_SIZES = (
    "in_channels",
    "out_channels",
    "groups",
    "in_features",
    "out_features",
    "num_features",
    "num_parameters",
    "nx",
    "nf",
)
_TENSORS = ("weight", "bias", "running_mean", "running_var")

LAYERS = (*LINEAR, nn.modules.conv._ConvNd)
# What else may become smaller: what treats each channel by itself.
PER_CHANNEL = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.PReLU)

Changes = dict[str, dict[str, dict[str, Any]]]


class Smaller(NamedTuple):
    """A layer's new sizes by attribute, and its new tensors by name."""

    sizes: dict[str, int]
    tensors: dict[str, Tensor]


def is_depthwise(module: nn.Module) -> bool:
    """Whether each channel of a convolution has one filter of its own."""
    return (
        isinstance(module, nn.modules.conv._ConvNd) and 1 < module.groups == module.in_channels == module.out_channels
    )


def takes_constants(module: Any) -> bool:
    """Whether a constant in the input gives the same everywhere in the output."""
    if isinstance(module, LINEAR):
        return True
    if module.transposed:
        return False
    padding: Any = module.padding
    if padding == "same":
        padding = tuple(size - 1 for size in module.kernel_size)
    return module.padding_mode != "zeros" or padding == "valid" or not any(padding)


def blocks_of(module: Any, weight: Tensor) -> Tensor:
    """A weight as [groups, outputs of a group, inputs of a group, ...], a view."""
    blocks: Tensor = weight.unflatten(0, (getattr(module, "groups", 1), -1))
    turned = getattr(module, "transposed", False) or isinstance(module, TransposedLinear)
    return blocks.transpose(1, 2) if turned else blocks


def columns_read(module: Any, weight: Tensor) -> Tensor:
    """Which inputs a layer reads, bool [inputs]."""
    blocks = blocks_of(module, weight)
    return (blocks.flatten(3).any(3) if weight.dim() > 2 else blocks).any(1).flatten()


def without_columns(module: Any, weight: Tensor, places: Tensor) -> Tensor:
    """A copy of a mask of a layer's weight with nothing at these inputs, bool [inputs]."""
    weight = weight.clone()
    blocks = blocks_of(module, weight)
    here = places.to(weight.device).reshape(blocks.shape[0], 1, -1)
    blocks.masked_fill_(here.reshape(*here.shape, *[1] * (blocks.dim() - 3)), False)
    return weight


def rows_read(module: Any, weight: Tensor) -> Tensor:
    """Which outputs read anything, bool [outputs]."""
    return blocks_of(module, weight).flatten(0, 1).flatten(1).any(1).cpu()


def all_kept(module: nn.Module, outputs: bool) -> Tensor:
    """True for each output, or input, of a layer."""
    attributes = ("out_channels", "out_features", "nf") if outputs else ("in_channels", "in_features", "nx")
    sizes = [getattr(module, name, None) for name in (*attributes, "num_features", "num_parameters")]
    return torch.ones(next(size for size in sizes if size is not None), dtype=torch.bool)


def cut(module: Any, kept_outputs: Tensor | None, kept_inputs: Tensor | None) -> Smaller:
    """A layer without some of its outputs and inputs.

    Args:
        module: a linear layer, a convolution (in groups: as many of each that is left), a batch or instance norm or a
            PReLU.
        kept_outputs: bool [outputs], None for all.
        kept_inputs: bool [inputs], None for all. Not asked for where an output is an input.
    """
    tensors = {name: value for name in _TENSORS if isinstance(value := getattr(module, name, None), Tensor)}
    if isinstance(module, nn.Linear):
        out, inp = _all(kept_outputs, module.out_features), _all(kept_inputs, module.in_features)
        tensors["weight"] = tensors["weight"][out][:, inp]
        sizes = {"out_features": int(out.sum()), "in_features": int(inp.sum())}
    elif isinstance(module, TransposedLinear):
        inputs, outputs = tensors["weight"].shape
        inp, out = _all(kept_inputs, inputs), _all(kept_outputs, outputs)
        tensors["weight"] = tensors["weight"][inp][:, out]
        sizes = {"nx": int(inp.sum()), "nf": int(out.sum())}
    elif is_depthwise(module):
        out = _all(kept_outputs, module.out_channels)
        tensors["weight"] = tensors["weight"][out]
        sizes = dict.fromkeys(("out_channels", "in_channels", "groups"), int(out.sum()))
    elif isinstance(module, nn.modules.conv._ConvNd):
        out, inp = _all(kept_outputs, module.out_channels), _all(kept_inputs, module.in_channels)
        tensors["weight"] = _cut_kernel(module, tensors["weight"], out, inp)
        groups = int(out.reshape(module.groups, -1).any(1).sum())
        sizes = {"out_channels": int(out.sum()), "in_channels": int(inp.sum()), "groups": groups}
    else:
        attribute = "num_parameters" if isinstance(module, nn.PReLU) else "num_features"
        out = _all(kept_outputs, getattr(module, attribute))
        tensors["weight"] = tensors["weight"][out] if "weight" in tensors else torch.empty(0)
        sizes = {attribute: int(out.sum())}
    for name in tensors.keys() - {"weight"}:
        tensors[name] = tensors[name][out]
    return Smaller(sizes, {name: value.detach().clone() for name, value in tensors.items() if value.numel()})


def _all(kept: Tensor | None, size: int) -> Tensor:
    return torch.ones(size, dtype=torch.bool) if kept is None else kept.cpu()


def _cut_kernel(module: Any, weight: Tensor, out: Tensor, inp: Tensor) -> Tensor:
    outs, ins, blocks = (part.chunk(module.groups) for part in (out, inp, weight))
    sides = zip(blocks, *((ins, outs) if module.transposed else (outs, ins)), strict=True)
    # A group of which no output is left goes as a whole.
    return torch.cat([block[rows][:, columns] for block, rows, columns in sides if bool(rows.any())])


def describe_changes(model: nn.Module, layers: Mapping[str, Smaller]) -> Changes:
    """What `rebuild` must do to a model so that it has these layers: new sizes and shapes, of what differs."""
    changes: Changes = {}
    for path, (sizes, tensors) in layers.items():
        module = model.get_submodule(path)
        new = {name: size for name, size in sizes.items() if size != getattr(module, name)}
        shapes = {name: list(x.shape) for name, x in tensors.items() if _shape(module, name) != list(x.shape)}
        if new or shapes:
            changes[path] = {"sizes": new, "shapes": shapes}
    return changes


def rebuild(model: Model, changes: Mapping[str, Any]) -> Model:
    """Give a dense network, in place, the layers of a compacted one; `load_state_dict` then takes its state.

        compaction = supermask.shrink(model, masks, x)
        net = supermask.rebuild(build_dense(), compaction.changes)
        net.load_state_dict(compaction.model.state_dict())

    Nothing is traced. The new tensors hold zeros, in the memory format of the old ones; a new bias is frozen where the
    weight is.

    Args:
        model: the dense network.
        changes: `{module: {"sizes": {attribute: number}, "shapes": {tensor: shape}}}` as in `Compaction.changes`. A
            layer can only become smaller, or get a bias.

    Raises:
        ValueError: changes that do not fit the model; the first are named, with their number.
    """
    modules = dict(model.named_modules())
    problems = [problem for path, change in changes.items() for problem in _misfits(modules, path, change)]
    if problems:
        # To look for a name takes long: of many only the first.
        hints = (nearest(path, modules) for path in changes if path not in modules)
        raise ValueError("the changes do not fit the model: " + first_few(problems) + next(hints, ""))
    for path, change in changes.items():
        module = modules[path]
        for name, size in change["sizes"].items():
            setattr(module, name, size)
        for name, shape in change["shapes"].items():
            old: Any = module.weight if getattr(module, name) is None else getattr(module, name)
            new = old.new_zeros(shape)
            new = new.contiguous(memory_format=_layout(old)) if new.dim() == old.dim() else new
            if name in module._buffers:
                module._buffers[name] = new
            else:
                setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
    return model


def _layout(tensor: Tensor) -> torch.memory_format:
    """How a tensor is laid out."""
    for dims, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if tensor.dim() == dims and tensor.is_contiguous(memory_format=layout) and not tensor.is_contiguous():
            return layout
    return torch.contiguous_format


def _misfits(modules: Mapping[str, nn.Module], path: str, change: Any) -> list[str]:
    if path not in modules:
        return [f"there is no module '{path[:200]}'"]
    module, problems = modules[path], []
    if not isinstance(change, Mapping) or not all(isinstance(change.get(k), Mapping) for k in ("sizes", "shapes")):
        return [f"{path}: expected sizes and shapes, got {str(change)[:100]}"]
    for name, size in change["sizes"].items():
        there = getattr(module, name, None) if name in _SIZES else None
        if not (type(size) is int and type(there) is int and 0 < size <= there):
            problems.append(f"{path}.{name} is {there}, cannot become {size!r}")
    for name, shape in change["shapes"].items():
        there = _shape(module, name) if name in _TENSORS else None
        if there is None and name == "bias" and isinstance(module, LAYERS):
            there = [len(all_kept(module, outputs=True))]
        fits = there is not None and isinstance(shape, list) and len(shape) == len(there)
        if not fits or not all(type(n) is int and 0 < n <= old for n, old in zip(shape, there or [], strict=True)):
            problems.append(f"{path}.{name} has shape {there}, cannot get {shape!r}")
    return problems


def _shape(module: nn.Module, name: str) -> list[int] | None:
    value = getattr(module, name, None)
    return list(value.shape) if isinstance(value, Tensor) else None
