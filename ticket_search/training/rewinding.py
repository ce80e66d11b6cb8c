"""Going back to an earlier step: what is kept of it, and the optimizer's moments under a mask."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from supermask import Masks
from supermask.weights.fitting import state_of

from ..contract.method import Hook


def mask_moments(state: Mapping[str, Any], model: nn.Module, masks: Masks) -> dict[str, Any]:
    """An optimizer's state with the moments of dropped weights at 0."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    moments = {}
    for index, entries in state["state"].items():
        mask = masks.get(names[index])
        moments[index] = {
            key: value.masked_fill(~mask.to(value.device), 0)
            if mask is not None and value.shape == mask.shape
            else value
            for key, value in entries.items()
        }
    return {**state, "state": moments}


class RewindPoint(Hook):
    """Hook that keeps the weights, the buffers and the optimizer's moments of one step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.tensors: dict[str, Tensor] = {}
        self.optimizer: dict[str, Any] = {}

    def sees(self, step: int) -> bool:
        """At the step to come back to only."""
        return step == self.step

    def on_step(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Copy everything at the step to come back to."""
        if self.sees(step):
            self.tensors = state_of(model)
            self.optimizer = copy.deepcopy(optimizer.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """The copies."""
        return {"tensors": self.tensors, "optimizer": self.optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The copies of a stopped training."""
        self.tensors, self.optimizer = state["tensors"], state["optimizer"]
