"""Masks as bits: what sets dropped weights to exactly +0, in a tensor or in the part of it that this process has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..kernels import gpu

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def integer(weight: Tensor) -> torch.dtype:
    """The integer type as wide as the weight's."""
    return _INTEGERS[weight.element_size()]


def make_bits(mask: Tensor, weight: Tensor) -> Tensor:
    """All ones where the mask keeps, all zeros where it drops; laid out like the weight: the two are walked together.

    Source of the layout is the stride, not the weight itself, which inside `torch.func.grad` is not an ordinary tensor.
    """
    part, mine = share(mask, weight), local(weight)
    bits = torch.empty_strided(mine.shape, mine.stride(), dtype=integer(weight), device=weight.device)
    return bits.copy_(part).neg_()


def zero(weight: Tensor, bits: Tensor) -> None:
    """Set the dropped entries to exactly +0, in place.

    The bits are and-ed: what is NaN or -0.0 becomes +0.0, which a product would not do, at the speed of a product,
    which masked_fill has not. Through `.data`, because the autograd graph of a pass that is still to be differentiated
    must not see a new version of weights that do not change.
    """
    local(weight).data.view(bits.dtype).bitwise_and_(bits)


def zero_all(weights: Sequence[Tensor], bits: Sequence[Tensor]) -> None:
    """`zero` of many weights: on a GPU by one kernel for all of them, where Triton's work there."""
    first = weights[0] if weights else None
    if first is not None and first.is_cuda and len(weights) > 1 and _can_be_cleared(weights, bits):
        kernels = gpu.find("radix", first.device)
        if kernels is not None:
            kernels.clear([weight.data for weight in weights], bits)
            return
    for weight, each in zip(weights, bits, strict=True):
        zero(weight, each)


def _can_be_cleared(weights: Sequence[Tensor], bits: Sequence[Tensor]) -> bool:
    first = weights[0]
    return all(
        type(weight) in (Tensor, nn.Parameter)
        and (weight.dtype, weight.device) == (first.dtype, first.device)
        and weight.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and weight.stride() == each.stride()
        and weight.numel() > 0
        and torch.ops.aten.is_non_overlapping_and_dense(weight)
        for weight, each in zip(weights, bits, strict=True)
    )


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight where the mask keeps, exactly +0 where it drops, NaN and -0.0 included: a new tensor, no gradient."""
    if weight.is_cpu and not torch.compiler.is_compiling():
        # As integers, times 0 or 1: torch.where takes ten times as long, and NumPy converts as it multiplies.
        kept = torch.empty_like(weight)
        kind = integer(weight)
        np.multiply(weight.view(kind).numpy(), mask.view(torch.int8).numpy(), out=kept.view(kind).numpy())
        return kept
    return torch.where(mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))


def local(tensor: Tensor) -> Tensor:
    """The tensor, or the part of it that this process has where `fully_shard` has shared it out."""
    part: Tensor = tensor.to_local() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def share(mask: Tensor, weight: Tensor) -> Tensor:
    """The part of a mask that lies over `local(weight)`; no process asks another for it."""
    mask = mask.to(weight.device)
    if not _is_sharded(weight):
        return mask
    from torch.distributed.tensor import DTensor, Replicate

    sharded: Any = weight
    everywhere = [Replicate()] * sharded.device_mesh.ndim
    whole = DTensor.from_local(mask, sharded.device_mesh, everywhere, run_check=False)
    return whole.redistribute(placements=sharded.placements).to_local()


def masked_part(tensor: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """The tensor where the mask keeps, 0 where it drops, shared out as the weight is; differentiable."""
    if not _is_sharded(tensor):
        return torch.where(mask.to(tensor.device), tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))
    from torch.distributed.tensor import DTensor

    like: Any = weight
    whole: Any = tensor
    whole = whole.redistribute(placements=like.placements)
    part = whole.to_local()
    part = torch.where(share(mask, whole), part, torch.zeros((), dtype=part.dtype, device=part.device))
    return DTensor.from_local(
        part, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def dropped_values(mask: Tensor, weight: Tensor) -> Tensor:
    """The values of the weights that the mask drops, as far as this process has them."""
    return local(weight.detach())[~share(mask, weight)]


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "placements")
