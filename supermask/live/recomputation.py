"""What gradient checkpointing asks of masks that are differentiated: to be there again when a part runs again.

`torch.utils.checkpoint` keeps nothing of a part but its inputs and runs it once more during the backward pass. It
counts the tensors that autograd saves in both runs, so what masks save for themselves must be out of its sight; and
where it only fills in what it has not kept, the effective weights of the first such part serve all others.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

# Not in every PyTorch that is supported. Without it everything is right and takes longer.
_top_hooks: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


def backward_number() -> int:
    """The number of the backward pass in which this runs, -1 outside of one."""
    return int(torch._C._current_graph_task_id())


def is_filling_in() -> bool:
    """Whether a part runs again for the values that were not kept, with nobody to differentiate what it computes."""
    hooks = _top_hooks and _top_hooks(False)
    return hooks is not None and "_recomputation_hook" in getattr(hooks[0], "__qualname__", "")


def out_of_sight() -> contextlib.AbstractContextManager[Any]:
    """A context in which autograd saves tensors as ever, whoever else wants to keep or count them."""
    if _top_hooks is not None and _top_hooks(False) is None:
        return contextlib.nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(_pack, _unpack)


def _pack(tensor: Tensor) -> tuple[Tensor, int]:
    # Detached: an operation that saves its own output would otherwise keep itself alive.
    return tensor.detach(), tensor._version


def _unpack(packed: tuple[Tensor, int]) -> Tensor:
    tensor, version = packed
    if tensor._version != version:  # PyTorch asks this itself where there are no hooks
        raise RuntimeError(
            "a tensor that the learned masks need for the gradient has been modified in place since the forward pass: "
            f"it is at version {tensor._version}, expected version {version}"
        )
    return tensor
