"""The first steps of a training, timed: how long the whole of it would take."""

from __future__ import annotations

import itertools
import statistics
import time

import torch

from . import ranks

# So many steps, or fewer where each takes long.
_STEPS = 12
_TOO_LONG = 5.0
# The first steps allocate memory, and compile.
_WARM = 2
# What takes so many times as long as half of the steps is none.
_LONGER = 5.0


class Rehearsed(Exception):  # noqa: N818 - it ends a search that has gone well
    """Enough has been timed."""


class Rehearsal:
    """What the training loop tells of its first steps; with the last of them the search ends.

    `preparation` is the seconds before the first step, `step` those of one step. `steps` is after how many of them to
    end at the latest.
    """

    def __init__(self, device: str, steps: int = _STEPS) -> None:
        self.device, self.steps = device, steps
        self.began = time.perf_counter()
        self.ends: list[float] = []

    @property
    def step(self) -> float:
        """Seconds of a step with everything that belongs to it: the mean, without what is longer than any step.

        Between two steps may lie an evaluation, or the ending of a short training.
        """
        gaps = [after - before for before, after in itertools.pairwise(self.ends)]
        gaps = gaps[_WARM - 1 :] or gaps or [0.0]
        longest = _LONGER * statistics.median(gaps)
        return statistics.fmean(gap for gap in gaps if gap <= longest)

    @property
    def preparation(self) -> float:
        """Seconds before the first step: scoring, and what else is done before training."""
        return max(0.0, self.ends[0] - self.began - self.step) if self.ends else time.perf_counter() - self.began

    def tick(self) -> None:
        """A step is done.

        Raises:
            Rehearsed: it was the last one needed.
        """
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        number, passed = len(self.ends), self.ends[-1] - self.ends[0]
        # All ranks end with the same step, and go by the same times.
        if ranks.tell(number >= self.steps or (number > _WARM and passed >= _TOO_LONG)):
            self.ends = ranks.tell(self.ends)
            raise Rehearsed
