"""Selection on a GPU: by the Triton kernels of `kernels.radix` where they work, by plain PyTorch where they do not.

What is chosen is the same, and the host waits for nothing in either. `torch.ops.supermask.radix_cut` is the part that
`torch.compile` takes as it is: it finds the cut of each layer, and what is compiled compares with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.gpu import find
from .top_k import kth_by_topk

# The integers that hold the bits of a float, and all of those but the sign.
_BITS = {
    torch.float32: (torch.int32, 0x7FFFFFFF),
    torch.float16: (torch.int16, 0x7FFF),
    torch.bfloat16: (torch.int16, 0x7FFF),
}
# Positions are int32 here; of more scores together they are found otherwise.
_MOST = 1 << 30
# No number has these bits, and none is above them.
_NONE = 0x7FFFFFFF

Counts = Sequence[int] | Tensor


def ranks(scores: Sequence[Tensor]) -> bool:
    """Whether scores are such as are ranked here: on one GPU, of one type, each in one piece of memory.

    They are a billion at most: positions are int32 here.
    """
    return scores[0].is_cuda and are_ranked(scores)


def are_ranked(scores: Sequence[Tensor]) -> bool:
    """`ranks`, on whatever device they are."""
    return sum(score.numel() for score in scores) <= _MOST and all(_is_ranked(score, scores[0]) for score in scores)


def _is_ranked(score: Tensor, first: Tensor) -> bool:
    if score.dtype not in _BITS or score.dtype != first.dtype or score.device != first.device or score.numel() == 0:
        return False
    if torch.compiler.is_compiling():
        return True
    # Of what `torch.func` and sharded tensors wrap there is no address.
    if type(score) not in (Tensor, nn.Parameter) or torch._C._functorch.is_functorch_wrapped_tensor(score):
        return False
    return score.is_contiguous() or (score.dim() == 4 and score.is_contiguous(memory_format=torch.channels_last))


def mark(scores: Sequence[Tensor], counts: Counts, joint: bool) -> list[Tensor]:
    """The masks of the largest |s|, in the scores' shapes and memory layouts.

    Args:
        scores: for which `ranks` is true.
        counts: how many to keep of each layer, or one number for all together; an int32 tensor where they change.
        joint: whether all layers are ranked together.
    """
    if (kernels := _kernels(scores[0].device)) is not None:
        found: list[Tensor] = kernels.mark(scores, counts, joint)
        return found
    thresholds, last = plain_cut(scores, counts, joint)
    return [compare(score, *ends) for score, *ends in zip(scores, thresholds.unbind(), last.unbind(), strict=True)]


def mask(scores: Sequence[Tensor], weights: Sequence[Tensor], counts: Counts, joint: bool) -> list[Tensor]:
    """The weights of the largest |s| (see `mark`), exactly +0 elsewhere."""
    alike = all(w.stride() == s.stride() and w.dtype == weights[0].dtype for w, s in zip(weights, scores, strict=True))
    if alike and weights[0].dtype in _BITS and (kernels := _kernels(scores[0].device)) is not None:
        found: list[Tensor] = kernels.mask(scores, weights, counts, joint)
        return found
    masks = mark(scores, counts, joint)
    return [torch.where(mask, weight, weight.new_zeros(())) for mask, weight in zip(masks, weights, strict=True)]


def compare(score: Tensor, threshold: Tensor, last: Tensor) -> Tensor:
    """The mask of a cut: |s| above it, and equal to it up to a position in row-major order.

    By their bits: what compiles for a GPU may take numbers below the normal ones for 0.
    """
    kind, bits = _BITS[score.dtype]
    key = (score.detach().view(kind) & bits).to(torch.int32)
    position = torch.arange(key.numel(), dtype=torch.int32, device=key.device).view(key.shape)
    return (key > threshold) | ((key == threshold) & (position <= last))


def plain_cut(scores: Sequence[Tensor], counts: Counts, joint: bool) -> tuple[Tensor, Tensor]:
    """What `kernels.radix.cut` gives: bits of the cuts and last positions, two int32 tensors [layers]."""
    wanted = counts.tolist() if isinstance(counts, Tensor) else list(counts)
    kind, bits = _BITS[scores[0].dtype]
    keys = [(score.detach().contiguous().view(kind) & bits).reshape(-1) for score in scores]
    thresholds, last = [], []
    for group, k in zip([keys] if joint else [[key] for key in keys], wanted, strict=True):
        whole = (torch.cat(group) if len(group) > 1 else group[0]).to(torch.int32)
        found, end = _cut_of_group(whole, k, _infinity(scores[0].dtype))
        starts, start = [], 0
        for key in group:
            starts.append(end - start)
            start += key.numel()
        thresholds += [found] * len(group)
        last += [each.clamp(min=-1) for each in starts]
    return torch.stack(thresholds).to(torch.int32), torch.stack(last).to(torch.int32)


def _infinity(dtype: torch.dtype) -> int:
    kind, _ = _BITS[dtype]
    return int(torch.tensor(float("inf"), dtype=dtype, device="cpu").view(kind))


def _cut_of_group(keys: Tensor, k: int, infinity: int) -> tuple[Tensor, Tensor]:
    """The cut of keys that are ranked together; of the bits of numbers, above infinity of none."""
    size = keys.numel()
    if k == 0:
        return keys.new_full((), _NONE), keys.new_full((), -1)
    threshold = kth_by_topk(keys, k)
    missing = k - (keys > threshold).sum()
    tied = keys == threshold
    last = (tied & (tied.cumsum(0, dtype=torch.int32) == missing)).to(torch.int32).argmax()
    odd = (keys > infinity).any()
    return threshold.masked_fill(odd, _NONE), last.masked_fill(odd, -1).clamp(max=size)


def _kernels(device: torch.device) -> Any:
    return find("radix", device)


torch.library.define(
    "supermask::radix_cut", "(Tensor[] scores, SymInt[] counts, Tensor? moving, bool joint) -> (Tensor, Tensor)"
)


@torch.library.impl("supermask::radix_cut", ("CUDA", "CPU"))
def _radix_cut(scores: list[Tensor], counts: list[int], moving: Tensor | None, joint: bool) -> tuple[Tensor, Tensor]:
    kernels, wanted = _kernels(scores[0].device), counts if moving is None else moving
    if kernels is None or kernels.order_of(scores) is None:  # as of a layout that a graph has chosen
        return plain_cut(scores, wanted, joint)
    found: tuple[Tensor, Tensor] = kernels.cut(scores, wanted, joint)
    return found


@torch.library.register_fake("supermask::radix_cut")  # type: ignore[untyped-decorator]
def _shapes_of_radix_cut(
    scores: list[Tensor], counts: list[int], moving: Tensor | None, joint: bool
) -> tuple[Tensor, Tensor]:
    return tuple(scores[0].new_empty(len(scores), dtype=torch.int32) for _ in range(2))  # type: ignore[return-value]
