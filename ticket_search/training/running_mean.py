"""Loss and metric over the steps of a training, taken from many steps at once."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ..data.trees import count, move
from ..runs import ranks
from .measures import Batch, cross_entropy
from .objective import Objective

# A number of batches that no training has.
_NEVER = -(1 << 62)
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
        # How many were summed since the sums were read, and the place of the first whose loss is no number, or -1.
        self.summed, self.bad = 0, torch.full((), -1, device=device)

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
        stacked = torch.stack(parts)
        self.loss += stacked.sum()
        bad = ~stacked.isfinite()
        first = torch.where(bad.any(), self.summed + bad.byte().argmax(), -1)
        self.bad, self.summed = torch.where(self.bad < 0, first, self.bad), self.summed + len(parts)
        measure = self.objective.measure
        batches = [Batch(*each) for each in zip(outputs, targets, losses, weights, strict=True)]
        if measure.joins and _are_alike(outputs, targets):
            batches = [Batch(torch.cat(outputs), torch.cat(targets), losses[0], sum(weights))]
        for batch in batches:
            self.state = measure.add(self.state, batch)
        self.waiting, self.numbers = [], 0

    def first_bad(self) -> int | None:
        """How many batches, or shares of one, were added before the first whose loss is no number; None without one.

        Of several ranks, which all must ask, the first that any of them has met.
        """
        found = self._first_bad()
        if ranks.now().several:
            latest = -ranks.most([_NEVER if found is None else -found])[0]
            found = None if latest == -_NEVER else latest
        return found

    def _first_bad(self) -> int | None:
        found = int(self.bad)
        if found < 0 and self.waiting:
            bad = ~torch.stack([loss.reshape(()) for loss, *_ in self.waiting]).isfinite()
            found = self.summed + int(bad.byte().argmax()) if bool(bad.any()) else -1
        return None if found < 0 else found

    def read(self) -> tuple[float, float]:
        """The sum of the losses and the value of the metric, of all ranks, which begin anew."""
        self._sum()
        loss, state = self._of_all()
        found = loss.item(), self.objective.measure.value(state)
        self.summed = 0
        self.bad.fill_(-1)
        self.loss.zero_()
        self.state = self.objective.measure.start(self.device)
        return found

    def _of_all(self) -> tuple[Tensor, Tensor]:
        """The sums over all ranks."""
        if not ranks.now().several:
            return self.loss, self.state
        (loss, state), *others = ranks.gather((self.loss.cpu(), self.state.cpu()))
        for other_loss, other in others:
            loss, state = loss + other_loss, self.objective.measure.merge(state, other)
        return loss.to(self.device), state.to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """The sums and what waits to be added to them, apart: added now, they would be rounded otherwise.

        Of several ranks the sums of all, to be gone on with by any number of them.
        """
        if ranks.now().several:
            # Of a copy: whether a state was saved must not show in what is logged.
            whole = copy.copy(self)
            whole.loss, whole.bad = self.loss.clone(), self.bad.clone()
            whole._sum()
            loss, state = whole._of_all()
            return {"loss": loss, "state": state, "waiting": [], "summed": whole.summed}
        return {"loss": self.loss, "state": self.state, "waiting": self.waiting, "summed": self.summed}

    def load_state_dict(self, state: dict[str, Any], samples: int = 0) -> None:
        """The sums of a stopped training; one of version 0.1 has not counted its `samples`.

        Of several ranks the first goes on with them, and the others begin at nothing.
        """
        if not ranks.now().first:
            self.summed = int(state["summed"]) + len(state["waiting"])
            return
        self.loss.copy_(state["loss"])
        self.summed = int(state.get("summed", 0))
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
