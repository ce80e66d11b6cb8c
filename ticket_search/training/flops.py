"""What a network's passes cost, in floating-point operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from supermask.choosing.gradients import Operations, call

from ..data.samples import Samples
from .objective import CLASSIFICATION, Objective

# Of a training step's multiply-adds a third is the forward pass; the gradients of weights and inputs take one each.
PASSES_PER_STEP = 3


class _Counter(Operations):
    """Adds up what PyTorch's table of operations says that each one takes, as its `FlopCounterMode` does."""

    supports_higher_order_operators = True
    flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        from torch.utils.flop_counter import flop_registry

        given = dict(kwargs or {})
        if isinstance(func, torch._ops.HigherOrderOperator):
            return func(*args, **given)
        count = flop_registry.get(func._overloadpacket)
        if count is None and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **given)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **given)
        if count is not None:
            self.flops += int(count(*args, **given, out_val=result))
        return result


def forward_flops(model: nn.Module, data: Samples, objective: Objective = CLASSIFICATION) -> int:
    """Floating-point operations of one sample's forward pass, two for a multiply-add."""
    return flops_of(model, objective.inputs(*next(data.batches("test", 1))))


def flops_of(model: nn.Module, inputs: Any) -> int:
    """Floating-point operations of a forward pass in evaluation mode, two for a multiply-add."""
    counter = _Counter()
    was_training = model.training
    model.eval()
    with torch.no_grad(), counter:
        call(model, inputs)
    model.train(was_training)
    return counter.flops
