"""Loss and score over the steps of a training, taken from many steps at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .objective import Objective


class Tally:
    """Loss and score summed over the steps since they were last read.

    Every step leaves its outputs here; they are scored many at once, which takes little longer than one step's.
    """

    # Outputs kept at most: of so many steps, and of so many numbers.
    STEPS, NUMBERS = 64, 1 << 20

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self.objective, self.device = objective, device
        self.loss, self.score = (torch.zeros((), device=device) for _ in range(2))
        self.waiting: list[tuple[Tensor, Tensor, Tensor, float]] = []
        self.numbers = 0

    def add(self, loss: Tensor, outputs: Tensor, targets: Tensor, share: float) -> None:
        """Add a batch, or the given share of one: its mean training loss, its outputs and targets."""
        self.waiting.append((loss, outputs, targets, share))
        self.numbers += outputs.numel()
        if len(self.waiting) == self.STEPS or self.numbers > self.NUMBERS:
            self._sum()

    def _sum(self) -> None:
        if not self.waiting:
            return
        losses, outputs, targets, shares = zip(*self.waiting, strict=True)
        if self.objective.label_smoothing:
            losses = tuple(self.objective.loss(*pair) for pair in zip(outputs, targets, strict=True))
        parts = [loss if share == 1 else loss * share for loss, share in zip(losses, shares, strict=True)]
        self.loss += torch.stack(parts).sum()
        alike = len({(x.shape[1:], y.shape[1:]) for x, y in zip(outputs, targets, strict=True)}) == 1
        batches = [(torch.cat(outputs), torch.cat(targets))] if alike else zip(outputs, targets, strict=True)
        for x, y in batches:
            self.score += self.objective.score(x, y).sum()
        self.waiting, self.numbers = [], 0

    def read(self) -> tuple[float, float]:
        """The sums, which begin at 0 again."""
        self._sum()
        sums = self.loss.item(), self.score.item()
        self.loss.zero_()
        self.score.zero_()
        return sums

    def state_dict(self) -> dict[str, Any]:
        """The sums and what waits to be added to them, apart: added now, they would be rounded otherwise."""
        return {"loss": self.loss, "score": self.score, "waiting": self.waiting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The sums of a stopped training."""
        self.loss.copy_(state["loss"])
        self.score.copy_(state["score"])
        self.waiting = [
            (*(tensor.to(self.device) for tensor in tensors), share) for *tensors, share in state["waiting"]
        ]
        self.numbers = sum(outputs.numel() for _, outputs, _, _ in self.waiting)
