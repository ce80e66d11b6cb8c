"""Uniform numbers drawn on a GPU, bit for bit those of `masks.random_numbers`; the kernel is in `triton_philox`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..masks.random_numbers import Words, key_of, uniform_floats
from . import triton_philox as kernels

# Counts of the generator a program, each of eight numbers.
BLOCK = 512


def draw_uniform(count: int, key: Words, step: int, stream: int, device: torch.device) -> Tensor:
    """The numbers of `random_numbers.uniform_floats`, made on the device."""
    values = torch.empty(count, dtype=torch.float32, device=device)
    words = [int(word) for word in key.view(np.int64)]
    with torch.cuda.device_of(values):  # Triton launches on the current device
        kernels.draw_uniform[(-(-count // (8 * BLOCK)),)](values, count, *words, step, stream, BLOCK=BLOCK, num_warps=4)
    return values


def is_right_on(device: torch.device) -> bool:
    """Whether the numbers of this device are those of the CPU."""
    key, count = key_of(1, "tried"), 10_000
    found = draw_uniform(count, key, 3, 2, device).cpu().numpy()
    return np.array_equal(found, uniform_floats(count, key, 3, 2))
