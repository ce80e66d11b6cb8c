"""The first steps of a search, timed: how long the whole of it would take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

_STEPS = 12
# The first steps allocate memory, and compile.
_WARM = 2


class Rehearsed(Exception):  # noqa: N818 - it ends a search that has gone well
    """Enough has been timed."""


class Rehearsal:
    """What the training loop tells of its first steps; with the last of them the search ends.

    `preparation` is the seconds before the first step, `step` those of one step, `evaluation` those of one evaluation
    on the validation split.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.began = time.perf_counter()
        self.ends: list[float] = []
        self.evaluation = 0.0

    @property
    def step(self) -> float:
        """Seconds of a step with everything that belongs to it, the median."""
        gaps = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        return statistics.median(gaps[_WARM - 1 :] or gaps or [0.0])

    @property
    def preparation(self) -> float:
        """Seconds before the first step: scoring, and what else is done before training."""
        return max(0.0, self.ends[0] - self.began - self.step) if self.ends else time.perf_counter() - self.began

    def tick(self, evaluate: Callable[[], Any]) -> None:
        """A step is done.

        Raises:
            Rehearsed: it was the last one needed.
        """
        self._wait()
        self.ends.append(time.perf_counter())
        if len(self.ends) < _STEPS:
            return
        evaluate()
        self._wait()
        self.evaluation = time.perf_counter() - self.ends[-1]
        raise Rehearsed

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
