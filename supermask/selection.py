"""Exact selection of the k largest keys, ties settled by position."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


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
    # NumPy's partition is several times faster on a CPU, but torch.compile cannot trace it.
    if flat.device.type != "cpu" or torch.compiler.is_compiling():
        return flat.kthvalue(smallest + 1).values
    if flat.dtype == torch.bfloat16:
        flat = flat.float()
    return torch.from_numpy(np.partition(flat.numpy(), smallest)[smallest : smallest + 1])[0].to(keys.dtype)


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
    threshold = kth_largest(keys, k)
    return settle_ties(keys, threshold, k)


def settle_ties(keys: Tensor, threshold: Tensor, k: int) -> Tensor:
    """Mask of all keys above `threshold`, filled up to k with the first keys equal to it, in row-major order."""
    mask = keys > threshold
    missing = k - mask.sum()
    if keys.device.type == "cpu" and not torch.compiler.is_compiling() and int(missing) == 0:
        return mask
    tied = (keys == threshold).reshape(-1)
    # Running counts stay on the device: no host synchronization on an accelerator.
    chosen = tied & (tied.cumsum(0) <= missing)
    return mask | chosen.view(keys.shape)
