"""The processes of a sweep: each carries out one run after another. A signal stops them all with their states saved."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supermask.tickets.file import write_atomically

from ..contract.errors import Interrupted, RequestError, RunError
from ..contract.flags import Config
from ..contract.metric import known_value, metric_of
from ..contract.stops import SIGNALS, STOPPED, stopping_on_signals
from ..running.controls import controls, lacks_controls
from ..running.read_config import find_kind
from ..running.request import request_of
from ..running.search import carry_out, prepare
from ..runs.folders import is_finished
from ..runs.names import ELSEWHERE, EVALUATED, FAILURE, SUMMARY
from ..runs.progress import warn_in_a_line
from ..runs.records import read_record
from ..runs.run import Run
from .progress import CONTROLS, RUNNING, STARTING, WAITING, Board, BoardProgress, SweepProgress

_SECONDS_BETWEEN_LOOKS = 0.2
# The share of a GPU's memory that is left for tensors.
_FOR_TENSORS = 0.9
_STOPPING = "stopping: each run ends after the step that it is at, and is saved; Ctrl-C once more stops at once"
_ENDING = "stopping: no run has begun to train, so that the processes which start are ended"


@dataclass(frozen=True)
class Job:
    """A run for a process: its place on the board, its folder, its checked configuration, the controls that follow."""

    place: int
    folder: str
    config: Config
    controls: tuple[str, ...] = ()
    control_levels: tuple[int, ...] = ()
    controls_on: str = ""


class _Process:
    """What a process of a sweep knows of itself."""

    board: Board
    busy = False
    share: float | None = None


_process = _Process()


def run_jobs(jobs: Sequence[Job], processes: int, board: Board, shows: SweepProgress) -> dict[int, dict[str, Any]]:
    """Carry out jobs in processes until all have ended or a signal stops them.

    A process that dies, because it is killed or out of memory, takes the others with it. The runs that were under way
    are then tried once more, each alone, so that a run which kills its process again fails by itself.

    Returns:
        How each job has ended, by its place: what `work` returned.

    Raises:
        RunError: the processes cannot start.
    """
    ended: dict[int, dict[str, Any]] = {}
    waiting, suspects = deque(jobs), deque[Job]()
    tried: set[int] = set()
    told = False
    with stopping_on_signals(board.stop), shows, _Crew(processes, board) as crew:
        while crew.running or (not board.stopping and (waiting or suspects)):
            while not board.stopping and waiting and len(crew.running) < processes:
                crew.give(waiting.popleft())
            if not board.stopping and suspects and not crew.running:
                crew.give(suspects.popleft())
            if board.stopping and not told:
                told = True
                shows.say(_STOPPING if crew.at_work else _ENDING)
            if board.stopping and not crew.at_work:
                break  # nobody waits for processes that import what they will not need
            for job, outcome in crew.look():
                if outcome is None and job.place not in tried:
                    shows.say(f"{job.folder}: its process died, or one beside it; it is tried once more, alone")
                    tried.add(job.place)
                    board.enter(job.place, WAITING)
                    suspects.append(job)
                    continue
                outcome = outcome or _fail(job, "its process died twice: killed, or out of memory?")
                if outcome["state"] == "interrupted":
                    board.stop(outcome["status"])  # a signal may reach a process before it reaches this one
                else:
                    ended[job.place] = outcome
                    shows.ended(job.place, outcome["state"], outcome["text"], outcome.get("warnings", ()))
    return ended


class _Crew:
    """The processes of a sweep, and the jobs that they are carrying out."""

    def __init__(self, processes: int, board: Board) -> None:
        self.running: dict[Future[dict[str, Any]], Job] = {}
        self._processes, self._board = processes, board
        self._strangers = set(multiprocessing.active_children())
        self._pool = self._make_pool()

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *error: Any) -> None:
        if self.running or self._board.stopping:
            self._kill()  # nobody waits for these jobs any more, nor for a process that starts
        self._pool.shutdown(cancel_futures=True)

    def _make_pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        given = (self._board, os.getcwd(), find_gpus(), self._processes)
        return ProcessPoolExecutor(self._processes, mp_context=context, initializer=begin, initargs=given)

    def _kill(self) -> None:
        for child in multiprocessing.active_children():
            if child not in self._strangers:
                child.kill()

    @property
    def at_work(self) -> bool:
        """Whether any job has got so far that there is something to save."""
        return any(self._board.read(job.place)[0] in (RUNNING, CONTROLS) for job in self.running.values())

    def give(self, job: Job) -> None:
        """Have a job carried out as soon as a process is free."""
        self._board.enter(job.place, WAITING)
        # A new process inherits the mask of signals, and so hears none before it is ready for it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            future = self._pool.submit(work, job)
        except BrokenProcessPool as error:
            future = Future()
            future.set_exception(error)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.running[future] = job

    def look(self) -> list[tuple[Job, dict[str, Any] | None]]:
        """The jobs that have ended since the last look, with what `work` returned, or None where the process died.

        Raises:
            RunError: the processes cannot start.
        """
        done = wait(self.running, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED).done
        if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
            # The others of a broken pool are asked to end by a signal, which they do not hear.
            self._kill()
            self._pool.shutdown()
            done = set(self.running)
            if not self._board.begun:
                raise RunError("the processes of the sweep end as they start: see what they printed")
            self._pool = self._make_pool()
        ended = [(self.running.pop(future), future) for future in done]
        return [
            (job, None if isinstance(future.exception(), BrokenProcessPool) else future.result())
            for job, future in ended
        ]


def find_gpus() -> list[str]:
    """The GPUs that a process may be told to use, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    number = torch.cuda.device_count()  # fewer than are named, where one of them is not there
    return visible.split(",")[:number] if visible else list(map(str, range(number)))


def take_gpu(number: int, gpus: Sequence[str], processes: int) -> float:
    """Leave the process of a number one GPU, in turn, before it has opened any.

    Returns:
        The share of that GPU's memory which it may take: as large as those of the others there, less what each process
        takes of it for itself.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return _FOR_TENSORS / -(-processes // len(gpus))


def begin(board: Board, folder: str, gpus: Sequence[str] = (), processes: int = 1) -> None:
    """Make this process one of a sweep: it listens to signals while it carries out a run, and ends with the sweep.

    Names of files and modules are looked up in `folder`, where the sweep was started: this process may have another.
    Of several GPUs the processes take one each, in turn; those on one GPU have a share of its memory.
    """
    os.chdir(folder)
    if gpus:
        # Processes are numbered from 1, those of a new pool after those of the one before.
        number: int = multiprocessing.current_process()._identity[-1]
        _process.share = take_gpu(number - 1, gpus, processes)
    for number in SIGNALS:
        signal.signal(number, _hear_nothing)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    _process.board = board
    warn_in_a_line()
    # Last of all that is done at the end: to take apart what PyTorch has built takes seconds, and serves nobody.
    multiprocessing.util.Finalize(None, _leave, exitpriority=-1000)
    threading.Thread(target=_watch, daemon=True).start()


def _hear_nothing(number: int, frame: Any) -> None:
    """Not SIG_IGN, which a run that begins to listen would leave as it is."""


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _watch() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a process of a sweep has one that started it"
    while parent.is_alive() and not _process.board.stopping:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    if not _process.board.stopping:
        _process.board.stop()
    # Again and again, because a signal that comes before the run listens is not heard.
    while parent.is_alive() or _process.busy:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def work(job: Job) -> dict[str, Any]:
    """Carry out a run in this process.

    Returns:
        `{"state": "finished", "failed" or "interrupted", "text": in short, the result or why it failed}`. A failure is
        described in full in the run's folder, in `failure.txt`, until the run succeeds.
    """
    _process.busy = True
    try:
        text = _carry_out(job)
        (Path(job.folder) / FAILURE).unlink(missing_ok=True)
    except KeyboardInterrupt as error:
        return {"state": "interrupted", "text": "", "status": getattr(error, "status", STOPPED)}
    except (RequestError, RunError) as error:
        return _fail(job, str(error), traceback.format_exc())
    except (Exception, SystemExit) as error:
        return _fail(job, f"{type(error).__name__}: {error}", traceback.format_exc())
    finally:
        _process.busy = False
    return {"state": "finished", "text": text, "warnings": _warnings_of(Path(job.folder))}


def _warnings_of(folder: Path) -> list[str]:
    """What the summary of a finished run says of its result."""
    return [str(text) for text in read_record(folder, SUMMARY).get("warnings", ())]


def _carry_out(job: Job) -> str:
    board, folder = _process.board, Path(job.folder)
    board.enter(job.place, STARTING)
    if not is_finished(folder):
        # The configuration was checked when the sweep was read. Whether its names are still there is seen here.
        config, setup = prepare(request_of(job.config))
        if config.device == "cuda" and _process.share is not None:
            import torch

            torch.cuda.set_per_process_memory_fraction(_process.share)
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


def _fail(job: Job, text: str, trace: str = "") -> dict[str, Any]:
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FAILURE, f"{text}\n\n{trace}".encode())
    return {"state": "failed", "text": text}
