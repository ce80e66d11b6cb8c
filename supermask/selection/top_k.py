"""Exact selection of the k largest keys, ties settled by position.

`plain_top_k` says what selection is. `top_k` gives the same mask, on a CPU several times faster (after Floyd and
Rivest, Expected Time Bounds for Selection, 1975): a sorted sample of the keys points at a value near the k-th largest,
one pass marks the keys from there on and counts them, a second pass finds the few keys between that value and one just
beyond the k-th largest, and only those are partitioned. Both passes see every key: the sample decides how long the
search takes, never what it finds. `python benchmarks/selection.py` says what it costs.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Keys = NDArray[Any]
Marks = NDArray[np.bool_]

# Below this many keys a sample costs more than it saves.
SMALL = 4096
# Keys a step: what a pass works on stays in the cache.
STEP = 1 << 18
# Up to so many keys a group comparing all pairs takes less time than sorting.
PAIRS = 16
# Cuts to try before the search gives its sample up.
PASSES = 6


def count_kept(density: float, size: int) -> int:
    """How many of `size` units a density keeps: `floor(density * size + 0.5)`.

    Raises:
        ValueError: a density outside (0, 1].
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is the fraction kept and lies in (0, 1], got {density}")
    return min(size, math.floor(density * size + 0.5))


def kth_largest(keys: Tensor, k: int) -> Tensor:
    """The k-th largest key, 1 <= k <= number of keys, as a tensor without dimensions on the keys' device."""
    flat = keys.detach().reshape(-1)
    smallest = flat.numel() - k
    if flat.is_cuda:
        return kth_by_topk(flat, k)
    # NumPy's partition is several times faster on a CPU, but torch.compile cannot trace it.
    if flat.device.type != "cpu" or torch.compiler.is_compiling():
        return flat.kthvalue(smallest + 1).values
    if flat.dtype == torch.bfloat16:
        flat = flat.float()
    return torch.from_numpy(np.partition(flat.numpy(), smallest)[smallest : smallest + 1])[0].to(keys.dtype)


def kth_by_topk(flat: Tensor, k: int) -> Tensor:
    """`kth_largest` for GPUs: one of `kthvalue` works on all keys in a single block, one of `topk` in many."""
    smallest = flat.numel() - k
    # Unsorted: to sort what is found would take longer than to find it.
    if k <= smallest:
        return flat.topk(k, sorted=False).values.amin()
    return flat.topk(smallest + 1, largest=False, sorted=False).values.amax()


def top_k(keys: Tensor, k: int) -> Tensor:
    """Mask of the k largest keys: a bool tensor of the keys' shape with exactly k True.

        top_k(torch.tensor([3., 1., 3., 3.]), 2)  ->  [True, False, True, False]

    Of equal keys the ones that come first in row-major order are kept, whatever the memory format. Keys are not NaN.

    Raises:
        ValueError: k below 0 or above the number of keys.
    """
    size = keys.numel()
    if not 0 <= k <= size:
        raise ValueError(f"cannot keep {k} of {size} units")
    if k in (0, size):
        return torch.full(keys.shape, k > 0, dtype=torch.bool, device=keys.device)
    if not keys.is_cpu or torch.compiler.is_compiling():
        return plain_top_k(keys, k)
    marks = torch.from_numpy(mark_largest(flatten(keys), k).reshape(keys.shape))
    return marks if keys.is_contiguous() else torch.empty_like(keys, dtype=torch.bool).copy_(marks)


def plain_top_k(keys: Tensor, k: int) -> Tensor:
    """What `top_k` is, 1 <= k <= number of keys: all keys above the k-th largest, then the first of its equals."""
    return settle_ties(keys, kth_largest(keys, k), k)


def settle_ties(keys: Tensor, threshold: Tensor, k: int) -> Tensor:
    """Mask of all keys above `threshold`, filled up to k with the first keys equal to it, in row-major order."""
    mask = keys > threshold
    missing = k - mask.sum()
    if keys.device.type == "cpu" and not torch.compiler.is_compiling() and int(missing) == 0:
        return mask
    tied = (keys == threshold).reshape(-1)
    # Running counts stay on the device: no host synchronization on an accelerator. Of half the bytes where they fit.
    counts = tied.cumsum(0, dtype=torch.int32 if tied.numel() < 2**31 else torch.int64)
    chosen = tied & (counts <= missing)
    return mask | chosen.view(keys.shape)


def best_of_each(groups: Tensor, k: int) -> Tensor:
    """A bool mask of the k largest keys in each row of [groups, size], ties to the first; none of them NaN.

    In small groups a key is kept if fewer than k others are ahead of it, which takes no sort.
    """
    size = groups.shape[-1]
    if size <= PAIRS and not groups.is_cpu:
        # All pairs at once: what counts on an accelerator is how many kernels there are.
        place = torch.arange(size, device=groups.device)
        one, other = groups.unsqueeze(-1), groups.unsqueeze(-2)
        ahead_of = torch.where(place[None, :] < place[:, None], other >= one, other > one)
        return ahead_of.sum(-1, dtype=torch.int8) < k
    if size > PAIRS:
        order = groups.sort(dim=-1, descending=True, stable=True).indices[:, :k]
        return torch.zeros(groups.shape, dtype=torch.bool, device=groups.device).scatter_(1, order, True)
    columns = [column.contiguous() for column in groups.unbind(-1)]
    ahead = [torch.zeros(column.shape, dtype=torch.uint8, device=column.device) for column in columns]
    for later, column in enumerate(columns):
        for earlier in range(later):
            earlier_wins = columns[earlier] >= column
            ahead[later] += earlier_wins
            ahead[earlier] += ~earlier_wins
    return torch.stack([count < k for count in ahead], dim=-1)


def flatten(keys: Tensor) -> Keys:
    """The keys of a CPU tensor in row-major order as a flat array, of their own memory where that is possible."""
    keys = keys.detach()
    if keys.dtype.itemsize < 4:
        # NumPy has no bfloat16 and compares float16 slowly; as float32 all numbers this short keep their order.
        keys = keys.float()
    array: Keys = keys.contiguous().numpy().reshape(-1)
    return array


def mark_largest(keys: Keys, k: int) -> Marks:
    """The k largest of a flat array as marks, 0 < k < its size, ties by position."""
    if keys.size < SMALL:
        return mark_by_partition(keys, k)
    sample = draw_sample(keys)
    scale = sample.size / keys.size
    marks = np.empty(keys.size, dtype=np.bool_)
    cut = at_least(sample, int((keys.size - k) * scale))
    for attempt in range(PASSES):
        count = mark(keys, cut, marks)
        if count == k:
            return marks
        # In steps of the sample: how far the k-th largest is above the cut, and 2.5 standard deviations of that.
        shift = (count - k) * scale
        reach = math.ceil(2.5 * math.sqrt(abs(shift))) + 2
        goal = min(max(cut.below + round(shift), 0), sample.size - 1)
        if attempt == 0 and reach < abs(shift) > sample.size / 100 and sample[goal] != cut.value:
            cut = at_least(sample, goal)
            continue
        beyond = (cut_above if shift > 0 else cut_below)(sample, cut, goal, reach)
        if settle(keys, marks, k - count, cut, beyond):
            return marks
        cut = beyond
    return mark_by_partition(keys, k)


def mark_by_partition(keys: Keys, k: int) -> Marks:
    """`mark_largest` without a sample, 0 <= k <= size."""
    smallest = min(keys.size - k, keys.size - 1)
    threshold = np.partition(keys, smallest)[smallest]
    marks: Marks = keys >= threshold
    surplus = int(np.count_nonzero(marks)) - k
    if surplus > 0:
        tied = (keys == threshold).nonzero()[0]
        marks[tied[tied.size - surplus :]] = False
    return marks


class Divider(NamedTuple):
    """A place to cut the keys in two: above it are those for which `compare(key, value)` holds."""

    compare: np.ufunc
    value: Any
    below: int  # how many of the sample are below it


def draw_sample(keys: Keys) -> Keys:
    """About 5 sqrt(n) of n keys at equal distances, and the lowest and the highest value there is; sorted."""
    stride = max(1, math.isqrt(keys.size) // 5)
    # Without a common factor of stride and size no row and no column of a tensor is favoured.
    while math.gcd(stride, keys.size) > 1:
        stride += 1
    drawn = keys[::stride]
    sample = np.empty(drawn.size + 2, dtype=keys.dtype)
    sample[1:-1] = drawn
    if keys.dtype.kind == "f":
        sample[0], sample[-1] = -math.inf, math.inf
    else:
        limits = np.iinfo(keys.dtype)
        sample[0], sample[-1] = limits.min, limits.max
    sample.sort()
    return sample


def at_least(sample: Keys, index: int) -> Divider:
    """The cut below all keys equal to `sample[index]`."""
    value = sample[index]
    if index and sample[index - 1] == value:
        index = int(np.searchsorted(sample, value, "left"))
    return Divider(np.greater_equal, value, index)


def more_than(sample: Keys, index: int) -> Divider:
    """The cut above all keys equal to `sample[index]`."""
    value = sample[index]
    index += 1
    if index < sample.size and sample[index] == value:
        index = int(np.searchsorted(sample, value, "right"))
    return Divider(np.greater, value, index)


def cut_above(sample: Keys, cut: Divider, goal: int, reach: int) -> Divider:
    """The cut `reach` above the goal, or above the ties at `cut` where they are more than `reach` of the sample."""
    last = sample.size - 1
    if sample[min(cut.below + reach, last)] == cut.value:
        return more_than(sample, cut.below)
    return at_least(sample, min(goal + reach, last))


def cut_below(sample: Keys, cut: Divider, goal: int, reach: int) -> Divider:
    """The cut `reach` below the goal, or below the ties at `cut` where they are more than `reach` of the sample."""
    if sample[max(cut.below - reach, 0)] == cut.value:
        return at_least(sample, cut.below - 1)
    return more_than(sample, max(goal - reach, 0))


def mark(keys: Keys, cut: Divider, marks: Marks) -> int:
    """Mark the keys above a cut and return their number."""
    count = 0
    for at in range(0, keys.size, STEP):
        step = slice(at, at + STEP)
        count += int(np.count_nonzero(cut.compare(keys[step], cut.value, out=marks[step])))
    return count


def settle(keys: Keys, marks: Marks, missing: int, cut: Divider, beyond: Divider) -> bool:
    """Bring the marks above `cut` to the right number by the keys between it and a cut on the other side.

    `missing` is how many marks there lack, negative where there are too many. False if the keys between are not the
    ones to choose from, or are too many.
    """
    if cut.value == beyond.value:
        return missing > 0 and mark_first(keys, marks, missing, cut.value)
    found = find_between(keys, marks, beyond)
    if found is None:
        return False
    positions, between = found
    kept = missing if missing > 0 else missing + between.size
    if not 0 <= kept <= between.size:
        return False
    marks[positions] = mark_by_partition(between, kept)
    return True


def mark_first(keys: Keys, marks: Marks, missing: int, value: Any) -> bool:
    """Mark the first `missing` keys equal to `value`; False if there are fewer."""
    for at in range(0, keys.size, STEP):
        tied = keys[at : at + STEP] == value
        count = int(np.count_nonzero(tied))
        if count >= missing:
            marks[at + tied.nonzero()[0][:missing]] = True
            return True
        marks[at : at + STEP] |= tied
        missing -= count
    return False


def find_between(keys: Keys, marks: Marks, cut: Divider) -> tuple[NDArray[np.intp], Keys] | None:
    """Positions and values of the keys that are either marked or above a cut, not both; None if they are many."""
    positions, values, room = [], [], keys.size // 4
    for at in range(0, keys.size, STEP):
        step = keys[at : at + STEP]
        above = cut.compare(step, cut.value)
        found = np.not_equal(above, marks[at : at + STEP], out=above).nonzero()[0]
        room -= found.size
        if room < 0:
            return None
        values.append(step[found])
        positions.append(found + at if at else found)
    if len(positions) == 1:
        return positions[0], values[0]
    return np.concatenate(positions), np.concatenate(values)
