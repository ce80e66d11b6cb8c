"""How long searches take: arithmetic over what was timed on this machine. Imports no torch."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..contract.method import Stage


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of a search, as they were timed.

    loading: the data read and the network found. preparation: what is done before the first step, as scoring. step: a
        step of the method's own training. held_step: one of a training whose masks are held. evaluation: one on the
        validation split, with what is logged of it. ending: what comes after the last step of each training: the ticket
        measured, saved and drawn. finish: what comes at the end of the search. first: what only the first search of a
        process takes. untrained: a control that is evaluated and not trained.
    """

    loading: float = 0.0
    preparation: float = 0.0
    step: float = 0.0
    held_step: float = 0.0
    evaluation: float = 0.0
    ending: float = 0.0
    finish: float = 0.0
    first: float = 0.0
    untrained: float = 0.0

    def trainings(self, stages: Iterable[Stage], evaluate_every: int) -> float:
        """The seconds of trainings with an evaluation after each `evaluate_every` steps and at the end of each.

        The first is the method's own; those after it train what masks have left, where they keep less than all.
        """
        seconds = 0.0
        for place, stage in enumerate(stages):
            step = self.held_step if place and stage.density < 1 else self.step
            evaluations = stage.steps // max(1, evaluate_every) + 1
            seconds += stage.steps * step + evaluations * self.evaluation + self.ending
        return seconds

    def search(self, stages: Sequence[Stage], evaluate_every: int) -> float:
        """The seconds of a search whose data and network are there."""
        return self.preparation + self.trainings(stages, evaluate_every) + self.finish

    def control(self, steps: int, evaluate_every: int) -> float:
        """The seconds of a control that is trained for so many steps, in a run of its own."""
        evaluations = steps // max(1, evaluate_every) + 1
        return self.loading + steps * self.held_step + evaluations * self.evaluation + self.ending + self.finish


def makespan(seconds: Iterable[float], jobs: int) -> float:
    """How long pieces of work take that `jobs` processes carry out in this order, each the next when it is free."""
    free = [0.0] * max(1, jobs)
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)
