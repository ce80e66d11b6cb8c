"""Which tensors lie over the same memory: what is written to one of them changes the others."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor


def find_overlaps(tensors: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Pairs of names whose tensors have an entry in common; a name with itself where entries of one tensor are.

    Transposed views have, and overlapping slices, and what was made of another's `.data`; slices beside each other, in
    rows, columns or every other entry, have not.
    """
    parts = {name: part for name, tensor in tensors.items() if (part := _in_memory(tensor)) is not None}
    found = [(name, name) for name, part in parts.items() if _repeats(part)]
    return found + [(one, other) for one, other in _near(parts) if _share(parts[one], parts[other])]


def refuse_overlaps(tensors: Mapping[str, Tensor], masked: Collection[str]) -> None:
    """Refuse masks on tensors that lie over the memory of others.

    Args:
        tensors: all parameters of a model, each under one name.
        masked: the names of those that are to carry masks.

    Raises:
        ValueError: names each pair.
    """
    problems = []
    for one, other in find_overlaps(tensors):
        if one == other and one in masked:
            problems.append(f"{one} repeats its entries in memory (an expanded tensor): nn.Parameter(weight.clone())")
        elif one != other and (one in masked or other in masked):
            problems.append(
                f"{one} and {other} are two parameters over the same memory, so that a mask on one changes the other: "
                "tie them, as one parameter under both names, or give each its own by nn.Parameter(weight.clone())"
            )
    if problems:
        raise ValueError("; ".join(problems))


def _in_memory(tensor: Tensor) -> Tensor | None:
    """The tensor, or the part of it that this process has, if it is an ordinary one."""
    part: Tensor = getattr(tensor, "_local_tensor", tensor)
    if part.is_nested or part.is_meta or part.layout != torch.strided or hasattr(part, "fake_mode"):
        return None
    return part if part.numel() and part.data_ptr() else None


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses of the first byte and behind the last one."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.element_size()


def _near(parts: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Pairs whose spans overlap, in the order in which the tensors are given."""
    order = {name: place for place, name in enumerate(parts)}
    spans = sorted((str(part.device), *_span(part), name) for name, part in parts.items())
    open_spans: list[tuple[str, int, str]] = []
    for device, first, last, name in spans:
        open_spans = [each for each in open_spans if each[0] == device and each[1] > first]
        for _, _, other in open_spans:
            yield tuple(sorted((name, other), key=order.__getitem__))  # type: ignore[misc]
        open_spans.append((device, last, name))


def _repeats(part: Tensor) -> bool:
    axes = sorted((stride, size) for stride, size in zip(part.stride(), part.shape, strict=True) if size > 1)
    reach = 0
    for stride, size in axes:
        if stride <= reach:
            # Strides that are not nested: counted, as no rule says it.
            return bool(_entries(part, part.data_ptr(), part.element_size()).unique().numel() < part.numel())
        reach += stride * (size - 1)
    return False


def _share(one: Tensor, other: Tensor) -> bool:
    start = min(one.data_ptr(), other.data_ptr())
    unit = math.gcd(one.element_size(), other.element_size(), one.data_ptr() - start, other.data_ptr() - start)
    ours, theirs = (_entries(part, start, unit) for part in (one, other))
    marks = torch.zeros(int(max(ours.max(), theirs.max())) + 1, dtype=torch.bool)
    marks[ours] = True
    return bool(marks[theirs].any())


def _entries(part: Tensor, start: int, unit: int) -> Tensor:
    """Where the entries lie, in units of so many bytes from an address on."""
    each = part.element_size() // unit
    places = torch.tensor([(part.data_ptr() - start) // unit])
    for size, stride in zip(part.shape, part.stride(), strict=True):
        places = (places[:, None] + torch.arange(size) * (stride * each)).reshape(-1)
    return (places[:, None] + torch.arange(each)).reshape(-1)
