"""Loss and metric over the steps of a training, taken from many steps at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..data.trees import count, move
from .measures import Batch, cross_entropy
from .objective import Objective

# A loss, the main output, the targets, the share of a batch that they are, and how many targets count.
_Waiting = tuple[Tensor, Tensor | None, Any, Tensor | float, Tensor | int]


class Tally:
    """Loss and metric over the steps since they were last read.

    Every step leaves its outputs here; they are measured many at once, which takes little longer than one step's.
    """

    # Outputs kept at most: of so many steps, and of so many numbers.
    STEPS, NUMBERS = 64, 1 << 20

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self.objective, self.device = objective, device
        self.loss, self.state = torch.zeros((), device=device), objective.measure.start(device)
        self.waiting: list[_Waiting] = []
        self.numbers = 0

    def add(self, loss: Tensor, outputs: Any, targets: Any, share: Tensor | float) -> None:
        """Add a batch, or the given share of one: its mean training loss, its outputs and targets."""
        batch = self.objective.batch(outputs, targets, loss)
        self.waiting.append((loss, batch.outputs, batch.targets, share, batch.weight))
        self.numbers += 0 if batch.outputs is None else batch.outputs.numel()
        if len(self.waiting) == self.STEPS or self.numbers > self.NUMBERS:
            self._sum()

    def _sum(self) -> None:
        if not self.waiting:
            return
        losses, outputs, targets, shares, weights = zip(*self.waiting, strict=True)
        if self.objective.label_smoothing:
            losses = tuple(cross_entropy(*pair) for pair in zip(outputs, targets, strict=True))
        parts = [
            loss if not isinstance(share, Tensor) and share == 1 else loss * share
            for loss, share in zip(losses, shares, strict=True)
        ]
        self.loss += torch.stack(parts).sum()
        measure = self.objective.measure
        batches = [Batch(*each) for each in zip(outputs, targets, losses, weights, strict=True)]
        if measure.joins and _are_alike(outputs, targets):
            batches = [Batch(torch.cat(outputs), torch.cat(targets), losses[0], sum(weights))]
        for batch in batches:
            self.state = measure.add(self.state, batch)
        self.waiting, self.numbers = [], 0

    def read(self) -> tuple[float, float]:
        """The sum of the losses and the value of the metric, which begin anew."""
        self._sum()
        found = self.loss.item(), self.objective.measure.value(self.state)
        self.loss.zero_()
        self.state = self.objective.measure.start(self.device)
        return found

    def state_dict(self) -> dict[str, Any]:
        """The sums and what waits to be added to them, apart: added now, they would be rounded otherwise."""
        return {"loss": self.loss, "state": self.state, "waiting": self.waiting}

    def load_state_dict(self, state: dict[str, Any], samples: int = 0) -> None:
        """The sums of a stopped training; one of version 0.1 has not counted its `samples`."""
        self.loss.copy_(state["loss"])
        self.waiting = [
            tuple(_move(part, self.device) for part in (*each, count(each[2]))[:5]) for each in state["waiting"]
        ]
        if "score" in state:
            summed = samples - sum(int(each[4]) for each in self.waiting)
            self.state = self.state.new_tensor([float(state["score"]), summed])
        else:
            self.state = state["state"].to(self.device)
        self.numbers = sum(0 if outputs is None else outputs.numel() for _, outputs, *_ in self.waiting)


def _are_alike(outputs: Any, targets: Any) -> bool:
    """Whether batches can be put one behind the other."""
    if not all(isinstance(each, Tensor) for each in (*outputs, *targets)):
        return False
    return len({(x.shape[1:], y.shape[1:]) for x, y in zip(outputs, targets, strict=True)}) == 1


def _move(part: Any, device: torch.device) -> Any:
    return move(part, device) if isinstance(part, (Tensor, tuple, dict)) else part
