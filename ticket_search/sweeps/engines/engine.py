"""The seam between a sweep and what carries out its runs: an engine is a module of the three functions of `Engine`.

`submit` hands the runs over, `watch` gives each as it ends, `gather` brings what it has made into the folder of all
runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ...contract.stops import stopping_on_signals
from ..progress import Board, SweepProgress
from .jobs import Job
from .options import EngineOptions

Outcome = dict[str, Any]


@dataclass(frozen=True)
class Order:
    """What an engine is to do.

    jobs: the runs, each with its place on the board.
    at_once: how many of them go on at the same time at most; None where the engine decides.
    board: where this process reads how far they are, and says that they are to stop.
    shows: what tells the user of it.
    place: the folder of the sweep.
    options: what the file of the sweep says to engines.
    address: of a cluster that is there already.
    """

    jobs: Sequence[Job]
    at_once: int | None
    board: Board
    shows: SweepProgress
    place: Path = Path()
    options: EngineOptions = field(default_factory=EngineOptions)
    address: str | None = None


class Engine(Protocol):
    """A module that carries out runs. What `submit` returns, the other two take."""

    def submit(self, order: Order) -> AbstractContextManager[Any]:
        """Hand the runs over. When the context ends, nothing that was started for them here is left.

        Raises:
            RequestError: there is no such cluster, or it does not take the runs.
            RunError: what carries the runs out does not start.
        """

    def watch(self, crew: Any) -> Iterator[tuple[Job, Outcome]]:
        """Each run with how it has ended (see `jobs.work`), until all have, or the board says stop and they have.

        What was lost with a process or a machine is tried again by itself.

        Raises:
            RunError: the cluster is gone.
        """

    def gather(self, crew: Any, job: Job, outcome: Outcome) -> Outcome:
        """Bring what a run has made into the folder of all runs, where it is not there already.

        Returns:
            How the run has ended.
        """


def run_jobs(engine: Engine, order: Order) -> dict[int, Outcome]:
    """Carry out runs until all have ended or a signal stops them.

    Returns:
        How each has ended, by its place; those that were stopped are not among them.
    """
    ended: dict[int, Outcome] = {}
    board, shows = order.board, order.shows
    with stopping_on_signals(board.stop), shows, engine.submit(order) as crew:
        for job, found in engine.watch(crew):
            outcome = engine.gather(crew, job, found)
            if outcome["state"] == "interrupted":
                board.stop(outcome["status"])  # a signal may reach a process before it reaches this one
            else:
                ended[job.place] = outcome
                shows.ended(job.place, outcome["state"], outcome["text"], outcome.get("warnings", ()))
    return ended
