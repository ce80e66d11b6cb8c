"""Noise that a learned mask draws: a function of a seed, a tensor's name, a step and nothing else.

No random stream is advanced, so what is drawn does not depend on what else draws, and a pass that is run again sees the
numbers of the first time. For torch.compile it is one operation without side effects.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ..kernels import build as native
from ..kernels import gpu
from ..masks.random_numbers import Words, key_of, normal_floats, uniform_floats

# As many numbers as this of a tensor are worth a kernel that is built first.
MANY = 1 << 20


def make_key(seed: int, name: str) -> Tensor:
    """The key of what is drawn for a tensor of this name."""
    # As a tensor: of a number, what is compiled would be compiled anew for every model.
    return torch.from_numpy(key_of(seed, name).view(np.int64))


def draw_uniform(key: Tensor, step: Tensor, stream: int, shape: Iterable[int], device: torch.device) -> Tensor:
    """Uniform float32 numbers strictly inside (0, 1), the same on every device."""
    drawn: Tensor = torch.ops.supermask.noise(key, step, stream, list(shape), False, device=device)
    return drawn


def draw_normal(key: Tensor, step: Tensor, stream: int, shape: Iterable[int], device: torch.device) -> Tensor:
    """Standard normal float32 numbers, the same on every device."""
    drawn: Tensor = torch.ops.supermask.noise(key, step, stream, list(shape), True, device=device)
    return drawn


torch.library.define(
    "supermask::noise",
    "(Tensor key, Tensor step, int stream, SymInt[] shape, bool normal, *, Device device) -> Tensor",
)


# Key and step are tensors of the CPU, wherever the numbers are wanted.
@torch.library.impl("supermask::noise", "CPU")
def _draw(key: Tensor, step: Tensor, stream: int, shape: list[int], normal: bool, *, device: torch.device) -> Tensor:
    size, words = math.prod(shape), key.numpy().view(np.uint64)
    if not normal and (kernels := gpu.find("philox", device)) is not None:
        drawn: Tensor = kernels.draw_uniform(size, words, int(step), stream, device)
        return drawn.view(shape)
    return gpu.send(_draw_here(size, words, int(step), stream, normal), device).view(shape)


def _draw_here(size: int, words: Words, step: int, stream: int, normal: bool) -> Tensor:
    if normal:
        return torch.from_numpy(normal_floats(size, words, step, stream))
    if size >= MANY:
        values = native.draw_uniform_floats(size, (int(words[0]), int(words[1])), step, stream)
        if values is not None:
            return values
    return torch.from_numpy(uniform_floats(size, words, step, stream))


@torch.library.register_fake("supermask::noise")  # type: ignore[untyped-decorator]
def _shape_of_noise(
    key: Tensor, step: Tensor, stream: int, shape: list[int], normal: bool, *, device: torch.device
) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=device)
