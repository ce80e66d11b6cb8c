"""Exact selection on a GPU: the k largest |s| of all layers at once, by as many kernels whatever the number of layers.

A radix selection over the bits of |s|, which order floats as integers do: eight bits at a time, the keys that share the
bits found so far are counted by their next ones, and the bin in which the k-th largest lies gives eight bits more. Then
the place of the last key that is kept of those equal to the k-th largest. The host waits for nothing, and no shape
depends on the values, so that all of it can be in a CUDA graph.

The kernels are in `triton_radix`; here is what calls them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from . import triton_radix as kernels

# Keys a program, and how many blocks' counts are summed at once.
BLOCK, _AT_ONCE = 4096, 1024
_BINS = 256
# By type: its bits without the sign, from which bit on the digits begin, and infinity; what is above that is NaN.
_TYPES = {
    torch.float32: (31, (23, 15, 7, 0), 0x7F800000),
    torch.float16: (15, (7, 0), 0x7C00),
    torch.bfloat16: (15, (7, 0), 0x7F80),
}
DTYPES = tuple(_TYPES)
# A tensor begins at a multiple of so many elements of what is made for all of them, as kernels that read it like it.
_ALIGNED = 64


_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


def _on_their_device(launch: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """Triton launches on the current device: make it that of the first tensor which is given."""

    @functools.wraps(launch)
    def there(*given: _Given.args, **named: _Given.kwargs) -> _Made:
        tensors: Any = given[0]
        with torch.cuda.device_of(tensors[0]):
            return launch(*given, **named)

    return there


class Order(NamedTuple):
    """What the kernels must know of scores besides their values."""

    dtype: torch.dtype
    device: torch.device
    # Of each layer its shape, and whether its memory is in the order of channels_last.
    layers: tuple[tuple[tuple[int, ...], bool], ...]


def order_of(scores: Sequence[Tensor]) -> Order | None:
    """What the kernels must know of these scores; None where they cannot rank them."""
    if not scores:
        return None
    dtype, device = scores[0].dtype, scores[0].device
    if dtype not in _TYPES or any((score.dtype, score.device) != (dtype, device) for score in scores):
        return None
    layers = []
    for score in scores:
        plain = score.is_contiguous()
        if not plain and not (score.dim() == 4 and score.is_contiguous(memory_format=torch.channels_last)):
            return None
        layers.append((tuple(score.shape), not plain))
    sizes = [math.prod(shape) for shape, _ in layers]
    # Positions are int32, and those of the last block and of what is aligned lie beyond the last score.
    whole = sum(sizes) + (BLOCK + _ALIGNED) * (len(sizes) + 1)
    return Order(dtype, device, tuple(layers)) if all(sizes) and whole < 2**31 else None


class _Tables(NamedTuple):
    """Where everything is: int32 tensors on the device, the same for all scores of an order."""

    blocks: Tensor  # of each block: its layer, the first position
    layers: Tensor  # of each layer: its size, inner and spatial extent where channels are last, its group
    groups: Tensor  # of what is ranked together: the first layer, how many, the first block, how many
    starts: Tensor  # of each layer: where it begins in what is made for all
    starts_here: tuple[int, ...]
    total: int
    permuted: bool
    most_layers: int


@functools.cache
def _tables(order: Order, joint: bool, step: int) -> _Tables:
    layers: list[list[int]] = []
    blocks: list[list[int]] = []
    groups: list[list[int]] = []
    starts, start = [], 0
    for number, (shape, permuted) in enumerate(order.layers):
        size, (inner, spatial) = math.prod(shape), (shape[1], shape[2] * shape[3]) if permuted else (1, 1)
        layers.append([size, inner, spatial, 0 if joint else number])
        starts.append(start)
        start += -(-size // _ALIGNED) * _ALIGNED
        own = [[number, at] for at in range(0, size, step)]
        groups.append([number, 1, len(blocks), len(own)])
        blocks += own
    if joint:
        groups = [[0, len(layers), 0, len(blocks)]]
    return _Tables(
        blocks=_sent(blocks, order.device),
        layers=_sent(layers, order.device),
        groups=_sent(groups, order.device),
        starts=_sent(starts, order.device),
        starts_here=tuple(starts),
        total=start,
        permuted=any(permuted for _, permuted in order.layers),
        most_layers=1 << (len(layers) - 1).bit_length() if joint else 1,
    )


def _sent(numbers: Any, device: torch.device, dtype: torch.dtype = torch.int32) -> Tensor:
    """Numbers on a device, for good.

    By a thread and a stream of their own: what is allocated in a thread that warms up or records a CUDA graph lies in
    the graph's memory, which its passes write over, and a copy there would end the recording.
    """
    here = torch.tensor(numbers, dtype=dtype, device="cpu")
    return _sender().submit(_send, here, device).result() if device.type == "cuda" else here.to(device)


def _send(here: Tensor, device: torch.device) -> Tensor:
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        return here.to(device)  # of memory that is not pinned it is there when this returns


@functools.cache
def _sender() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "supermask-tables")


# What is kept here is never given up: a CUDA graph reads it each time that it runs. It is a few kilobytes a model.
@functools.cache
def _sent_counts(counts: tuple[int, ...], device: torch.device) -> Tensor:
    return _sent(counts, device)


@functools.cache
def _sent_addresses(addresses: tuple[int, ...], device: torch.device) -> Tensor:
    # Parameters stay where they are, so that their addresses are sent once.
    return _sent(addresses, device, torch.int64)


def _addresses(tensors: Sequence[Tensor]) -> Tensor:
    return _sent_addresses(tuple(tensor.data_ptr() for tensor in tensors), tensors[0].device)


@_on_their_device
def cut(scores: Sequence[Tensor], counts: Sequence[int] | Tensor, joint: bool) -> tuple[Tensor, Tensor]:
    """The cut of each layer: kept are the |s| above it, and those equal to it up to a position in row-major order.

    Args:
        scores: that have an order (see `order_of`).
        counts: how many to keep of each layer, or one number for all together; an int32 tensor on any device where they
            change from one time to the next.
        joint: whether all layers are ranked together.

    Returns:
        The bits of the cuts and the last positions that are kept, two int32 tensors [layers]. Where a score is NaN
        nothing is kept of what it is ranked with.
    """
    order, tables = _layout_of(scores, joint)
    return _cut(scores, order, tables, counts)


def _layout_of(scores: Sequence[Tensor], joint: bool) -> tuple[Order, _Tables]:
    order = order_of(scores)
    assert order is not None, "whoever asks has looked at the order"
    return order, _tables(order, joint, BLOCK)


def _cut(
    scores: Sequence[Tensor], order: Order, tables: _Tables, counts: Sequence[int] | Tensor
) -> tuple[Tensor, Tensor]:
    device = order.device
    bits, shifts, infinity = _TYPES[order.dtype]
    blocks, groups = len(tables.blocks), len(tables.groups)
    if isinstance(counts, Tensor):
        wanted = counts.to(device, non_blocking=True)
    else:
        wanted = _sent_counts(tuple(counts), device)
    addresses, above = _addresses(scores), bits
    bins, odd = torch.zeros(groups * (len(shifts) * _BINS + 1), dtype=torch.int32, device=device).tensor_split(
        [len(shifts) * groups * _BINS]
    )
    prefix, missing = (torch.empty(groups, dtype=torch.int32, device=device) for _ in range(2))
    equals = torch.empty(blocks, dtype=torch.int32, device=device)
    thresholds, last = (torch.empty(len(scores), dtype=torch.int32, device=device) for _ in range(2))
    for shift, found in zip(shifts, bins.view(len(shifts), -1), strict=True):
        first = above == bits
        kernels.count_bins[(blocks,)](
            addresses, tables.blocks, tables.layers, prefix, found, odd, SHIFT=shift, WIDTH=above - shift, FIRST=first,
            INFINITY=infinity, BITS=bits, BLOCK=BLOCK, BINS=_BINS, num_warps=8,
        )  # fmt: skip
        kernels.pick_bin[(groups,)](wanted, prefix, missing, found, WIDTH=above - shift, FIRST=first, BINS=_BINS)
        above = shift
    kernels.count_equals[(blocks,)](
        addresses, tables.blocks, tables.layers, prefix, equals, BITS=bits, PERMUTED=tables.permuted, BLOCK=BLOCK,
        num_warps=8,
    )  # fmt: skip
    kernels.find_last[(groups,)](
        addresses, tables.blocks, tables.layers, tables.groups, prefix, missing, equals, odd, thresholds, last,
        BITS=bits, PERMUTED=tables.permuted, BLOCK=BLOCK, AT_ONCE=_AT_ONCE, LAYERS=tables.most_layers, num_warps=8,
    )  # fmt: skip
    return thresholds, last


def mark(scores: Sequence[Tensor], counts: Sequence[int] | Tensor, joint: bool) -> list[Tensor]:
    """The masks of the largest |s| (see `cut`), in the scores' shapes and layouts; all in one piece of memory."""
    return _keep_of(scores, scores, counts, joint, torch.bool, 0)


def mask(
    scores: Sequence[Tensor], weights: Sequence[Tensor], counts: Sequence[int] | Tensor, joint: bool
) -> list[Tensor]:
    """The weights of the largest |s| (see `cut`), exactly +0 elsewhere; in one piece of memory.

    Args:
        scores: that have an order (see `order_of`).
        weights: of one type of `DTYPES`, in the scores' shapes and memory layouts.
        counts: as in `cut`.
        joint: as in `cut`.
    """
    kind = weights[0].dtype
    return _keep_of(scores, weights, counts, joint, kind, 8 * kind.itemsize)


@_on_their_device
def clear(weights: Sequence[Tensor], bits: Sequence[Tensor]) -> None:
    """Set weights to exactly +0, in place, where the bits of their masks are 0.

    Args:
        weights: of one type of `DTYPES`, on one device, without gaps in memory.
        bits: of their masks (see `live.zeroing.make_bits`), integers as wide, laid out as the weights are.
    """
    first = weights[0]
    order = Order(first.dtype, first.device, tuple(((weight.numel(),), False) for weight in weights))
    tables = _tables(order, False, BLOCK)
    kernels.clear[(len(tables.blocks),)](
        _addresses(weights), _addresses(bits), tables.blocks, tables.layers, WIDTH=8 * first.dtype.itemsize,
        BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip


@_on_their_device
def _keep_of(
    scores: Sequence[Tensor], weights: Sequence[Tensor], counts: Any, joint: bool, kind: torch.dtype, bits: int
) -> list[Tensor]:
    order, tables = _layout_of(scores, joint)
    thresholds, last = _cut(scores, order, tables, counts)
    whole = torch.empty(tables.total, dtype=kind, device=order.device)
    out = whole.view({0: torch.bool, 16: torch.int16, 32: torch.int32}[bits])
    kernels.keep[(len(tables.blocks),)](
        _addresses(scores), _addresses(weights), tables.blocks, tables.layers, tables.starts, thresholds, last, out,
        BITS=_TYPES[order.dtype][0], WEIGHT=bits, PERMUTED=tables.permuted, BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
    pairs = zip(scores, tables.starts_here, strict=True)
    return [whole.as_strided(score.shape, score.stride(), start) for score, start in pairs]


# Ties, both zeros, numbers below all normal ones, infinity; the four largest of them are of three values.
_TRIED, _CHOSEN = (3.0, -0.0, 1e-40, -3.0, 0.5, 0.0, float("inf"), -1e-40, 3.0), (0, 3, 6, 8)


def is_right_on(device: torch.device) -> bool:
    """Whether this device selects what it should."""
    (found,) = mark([torch.tensor(_TRIED, device=device)], [len(_CHOSEN)], joint=False)
    return [place for place, kept in enumerate(found.tolist()) if kept] == list(_CHOSEN)
