"""Weights that a network computes, told by the names in its state dict: zeros of their parts are not their zeros."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

_PARAMETRIZATIONS = ".parametrizations."
# What a quantized weight has beside it, or in its place.
_PACKED = ("qweight", "weight_packed")
_BESIDE_PACKED = ("qzeros", "scales", "weight_scale", "weight_zero_point", "weight_shape")
_BESIDE_BITS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
# As `supermask.learn` keeps them beside a weight.
_SCORES = "_scores"
_ADAPTERS = ("lora_", "hada_", "lokr_", "oft_", "boft_", "vera_", "ia3_")


class Part(NamedTuple):
    """What a tensor of a state dict is instead of a weight: a part of `weight`, which `advice` makes a plain one."""

    weight: str
    advice: str


def computed_parts(tensors: Mapping[str, Tensor]) -> dict[str, Part]:
    """The tensors of a state dict that are no weights but what weights are computed from.

        computed_parts(state)  # {"fc.weight_g": Part("fc.weight", "torch.nn.utils.remove_weight_norm(fc)"), ...}

    That is what `torch.nn.utils.parametrize` stores, weight norm and spectral norm as hooks, adapters of peft, packed
    integers and their scales, and the scores and frozen weights of `supermask.learn`.
    """
    found: dict[str, Part] = {}
    for name in tensors:
        for tell in _TELLERS:
            if part := tell(name, tensors):
                found[name] = part
                break
    # An adapter adds to the weight beside it.
    adapted = [part for part in found.values() if part.advice == _MERGE and part.weight in tensors]
    return found | {part.weight: part for part in adapted}


def explain_parts(parts: Mapping[str, Part]) -> str:
    """In words, what `computed_parts` has found, and what to do."""
    names: dict[Part, list[str]] = {}
    for name, part in parts.items():
        names.setdefault(part, []).append(name)
    told = [f"{part.weight} from {' and '.join(found)} ({part.advice} gives it)" for part, found in names.items()]
    return (
        f"weights that the network computes have no zeros of their own in this file: {', '.join(told)}; load it into "
        "its network, make these weights plain and save the state dict"
    )


def _parametrized(name: str, tensors: Mapping[str, Tensor]) -> Part | None:
    module, found, stored = f".{name}".partition(_PARAMETRIZATIONS)
    if not found:
        return None
    attribute = stored.partition(".")[0]
    stem = f"{module}{_PARAMETRIZATIONS}{attribute}.original"[1:]
    # Of torch.ao.pruning's sparsifiers too, which leave their masks out of the file.
    squash = " or its sparsifier's squash_mask()" if stem in tensors else ""
    call = f"torch.nn.utils.parametrize.remove_parametrizations({module[1:] or 'model'}, '{attribute}'){squash}"
    return Part(f"{module}.{attribute}"[1:], call)


def _normed(name: str, tensors: Mapping[str, Tensor]) -> Part | None:
    weight, _, kind = name.rpartition("_")
    length, direction = tensors.get(weight + "_g"), tensors.get(weight + "_v")
    module = weight.rpartition(".")[0] or "model"
    if kind in ("g", "v") and length is not None and direction is not None and _is_length(length, direction):
        return Part(weight, f"torch.nn.utils.remove_weight_norm({module})")
    if kind in ("orig", "u", "v") and weight + "_orig" in tensors and weight + "_u" in tensors:
        return Part(weight, f"torch.nn.utils.remove_spectral_norm({module})")
    if kind == "orig" and weight not in tensors and weight.rpartition(".")[2].startswith(("weight", "bias")):
        return Part(weight, "taking off the hook that computes it")
    return None


def _is_length(length: Tensor, direction: Tensor) -> bool:
    """Whether this is one number for each slice of the other, or one for all."""
    if length.numel() == 1:
        return True
    same = length.dim() == direction.dim()
    return same and all(one in (1, other) for one, other in zip(length.shape, direction.shape, strict=True))


_MERGE, _UNPACK = "model.merge_and_unload() of peft", "dequantizing it"


def _adapted(name: str, tensors: Mapping[str, Tensor]) -> Part | None:
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part == "base_layer" or part.startswith(_ADAPTERS):
            return Part(".".join([*parts[:place], "weight"]), _MERGE)
    return None


def _packed(name: str, tensors: Mapping[str, Tensor]) -> Part | None:
    module, dot, attribute = name.rpartition(".")
    packed = attribute in _PACKED or (attribute in _BESIDE_PACKED and any(module + dot + p in tensors for p in _PACKED))
    if packed or (attribute == "SCB" and f"{module}{dot}weight" in tensors):
        return Part(f"{module}{dot}weight", _UNPACK)
    weight, found, _ = name.rpartition(".quant_state.")
    for ending in _BESIDE_BITS:
        if not found and name.endswith(ending):
            weight = name.removesuffix(ending)
    return Part(weight, _UNPACK) if weight in tensors else None


def _learned(name: str, tensors: Mapping[str, Tensor]) -> Part | None:
    weight = name.removesuffix(_SCORES)
    scores = tensors.get(weight + _SCORES)
    if weight in tensors and scores is not None and scores.shape == tensors[weight].shape:
        return Part(weight, "supermask.bake(model)")
    return None


_TELLERS = (_parametrized, _normed, _adapted, _packed, _learned)
