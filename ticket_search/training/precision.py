"""In what numbers and memory layout a network is run."""

from __future__ import annotations

import contextlib
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from supermask.choosing.gradients import call

from ..contract.flags import Config


@dataclass(frozen=True)
class Arithmetic:
    """fp32, or bf16 where autocast takes it (weights, gradients and sums stay fp32); channels last for images."""

    device: str = "cpu"
    bf16: bool = False
    channels_last: bool = False

    def forward(self) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass."""
        return torch.autocast(self.device, torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    def lay_out(self, x: Any) -> Any:
        """Images [n, c, h, w], in a tree too, in the configured memory format; anything else as it is."""
        return tree_map_only(Tensor, _channels_last, x) if self.channels_last else x


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


EXACT = Arithmetic()


def make_arithmetic(config: Config) -> Arithmetic:
    """The configured arithmetic, of a resolved configuration."""
    return Arithmetic(config.device, config.precision == "bf16", bool(config.channels_last))


def compile_whole(model: nn.Module, graphs: bool = False) -> Callable[[Any], Any]:
    """The model's forward pass compiled, its masks with it: of a tensor, or of a tuple or dictionary of arguments.

    Of `torch.compile(model)` the hooks of the masks would be a graph of their own, before the network's.

    Args:
        model: whose passes are compiled when they come.
        graphs: have each pass be a CUDA graph, where PyTorch can make one of it: the next pass writes over its outputs.
    """

    def forward(inputs: Any) -> Any:
        return call(model, inputs)

    # What is compiled is kept by code, and only so many versions of one: each kind of network gets its own.
    forward.__code__ = _CODES.setdefault(type(model), forward.__code__.replace())
    if not graphs:
        return torch.compile(forward)
    compiled = torch.compile(forward, mode="reduce-overhead")

    def begin_and_pass(inputs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(inputs)

    return begin_and_pass


_CODES: weakref.WeakKeyDictionary[type[nn.Module], types.CodeType] = weakref.WeakKeyDictionary()
