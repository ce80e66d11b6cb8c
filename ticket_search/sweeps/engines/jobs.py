"""A run of a sweep in the process that carries it out: the same for all engines."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from supermask.tickets.file import write_atomically

from ...contract.errors import Interrupted, RequestError, RunError
from ...contract.flags import Config
from ...contract.metric import known_value, metric_of
from ...contract.stops import AGAIN, REQUEUE, SIGNALS, STOPPED, status_of
from ...running.controls import controls, lacks_controls
from ...running.read_config import find_kind
from ...running.request import request_of
from ...running.search import carry_out, prepare
from ...runs.folders import is_finished
from ...runs.names import ELSEWHERE, EVALUATED, FAILURE, SUMMARY
from ...runs.records import read_record
from ...runs.run import Run
from ..progress import CONTROLS, RUNNING, STARTING, BoardProgress, Told

# Seconds between two looks at whether a run is to stop.
SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class Job:
    """A run for a process: its place on the board, its folder, its checked configuration, the controls that follow."""

    place: int
    folder: str
    config: Config
    controls: tuple[str, ...] = ()
    control_levels: tuple[int, ...] = ()
    controls_on: str = ""


def work(job: Job, board: Told, share: float | None = None) -> dict[str, Any]:
    """Carry out a run in this process; `share` is how much of a GPU's memory it may take.

    Returns:
        `{"state": "finished", "failed" or "interrupted", "text": in short, the result or why it failed}`. A failure is
        described in full in the run's folder, in `failure.txt`, until the run succeeds.
    """
    try:
        text = _carry_out(job, board, share)
        (Path(job.folder) / FAILURE).unlink(missing_ok=True)
    except KeyboardInterrupt as error:
        return {"state": "interrupted", "text": "", "status": getattr(error, "status", STOPPED)}
    except (RequestError, RunError) as error:
        return fail(job, str(error), traceback.format_exc())
    except (Exception, SystemExit) as error:
        return fail(job, f"{type(error).__name__}: {error}", traceback.format_exc())
    return {"state": "finished", "text": text, "warnings": _warnings_of(Path(job.folder))}


def fail(job: Job, text: str, trace: str = "") -> dict[str, Any]:
    """The outcome of a run that has failed, which is described in its folder."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FAILURE, f"{text}\n\n{trace}".encode())
    return {"state": "failed", "text": text}


def _warnings_of(folder: Path) -> list[str]:
    """What the summary of a finished run says of its result."""
    return [str(text) for text in read_record(folder, SUMMARY).get("warnings", ())]


def _carry_out(job: Job, board: Told, share: float | None) -> str:
    folder = Path(job.folder)
    board.enter(job.place, STARTING)
    if not is_finished(folder):
        # The configuration was checked when the sweep was read. Whether its names are still there is seen here.
        config, setup = prepare(request_of(job.config))
        if config.device == "cuda" and share is not None:
            import torch

            torch.cuda.set_per_process_memory_fraction(share)
        board.enter(job.place, RUNNING)
        if board.stopping:
            raise Interrupted(job.folder, board.stop_status)
        carry_out(Run(folder, config, setup, BoardProgress(board, job.place)))
    summary, levels = read_record(folder, SUMMARY), _levels_of(folder)
    for kinds, elsewhere in _controls_of(job, levels):
        board.enter(job.place, CONTROLS)
        # What may be imported the one who started the sweep has said: this process has it with its job.
        asked: dict[str, Any] = {"levels": _controlled(job, levels) or None, "leaves": job.config.leaves}
        controls(folder, kinds=kinds, elsewhere=elsewhere, progress=False, **asked)
    metric = metric_of(summary)
    named = "test" if metric.is_accuracy else f"test {metric.name}"
    return f"{named} {metric.with_unit(known_value(summary, 'test'))}  {summary['seconds']:.1f} s"


def has_controls(job: Job) -> bool:
    """Whether the run of a job, which is finished, has all controls that are asked for: no process has to look at it.

    A run that is still to be copied from where it was tried has none.
    """
    folder = Path(job.folder)
    levels = _levels_of(folder) if folder.exists() else []
    trained = find_kind(job.config.method).traits.trains_weights
    chosen: list[int | None] = [*_controlled(job, levels)] or [levels[-1] if levels else None]
    return not any(
        lacks_controls(folder, kinds, level, trained, elsewhere or job.config.data)
        for kinds, elsewhere in _controls_of(job, levels)
        for level in chosen
    )


def _levels_of(folder: Path) -> list[int]:
    return [int(row["level"]) for row in read_record(folder, SUMMARY).get("levels", [])]


def _controlled(job: Job, there: Sequence[int]) -> list[int]:
    """The levels of a run that are asked for, of those that are there; none where its last is meant."""
    return [level for level in job.control_levels if level in there[1:]]


def _controls_of(job: Job, there: Sequence[int]) -> list[tuple[list[str], str | None]]:
    """The kinds of controls of a job's run, which has these levels, each with the other data that they are made on."""
    traits = find_kind(job.config.method).traits
    if not job.controls or traits.dense or (there and job.control_levels and not _controlled(job, there)):
        return []
    kinds = [kind for kind in job.controls if traits.trains_weights or kind in EVALUATED]
    if not job.controls_on or not traits.trains_weights:
        return [(kinds, None)]
    elsewhere = ["ticket", *(["dense"] if there else []), *(kind for kind in kinds if kind in ELSEWHERE)]
    return [(kinds, None), (elsewhere, job.controls_on)]


@dataclass
class Heard:
    """The exit status that a signal has asked this process for while it carries out a run; None while none came."""

    status: int | None = None
    _end: threading.Event = field(default_factory=threading.Event)

    def hear(self, number: int, frame: Any) -> None:
        """Keep what a signal asks for."""
        self.status = status_of(number)


@contextmanager
def listening(board: Told) -> Iterator[Heard]:
    """Within it a signal, and a board that says so, stops the run that this process carries out, in its first thread.

    What comes before the run has begun to train is told to it again and again, until it hears.
    """
    heard = Heard()
    before = {number: signal.signal(number, heard.hear) for number in SIGNALS}
    process = os.getpid()

    def repeat() -> None:
        while not heard._end.wait(SECONDS_BETWEEN_LOOKS):
            status = heard.status or (board.stop_status if board.stopping else None)
            if status is not None and not heard._end.is_set():
                os.kill(process, REQUEUE if status == AGAIN and REQUEUE else signal.SIGTERM)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield heard
    finally:
        heard._end.set()
        thread.join()
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
