"""The engine of this machine: processes, each of which carries out one run after another.

A signal stops them all with their states saved.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ...contract.errors import RunError
from ...contract.stops import SIGNALS
from ...runs.progress import warn_in_a_line
from ..progress import CONTROLS, RUNNING, WAITING, Board
from .engine import Order, Outcome
from .jobs import SECONDS_BETWEEN_LOOKS, Job, fail, work

# The share of a GPU's memory that is left for tensors.
_FOR_TENSORS = 0.9
_STOPPING = "stopping: each run ends after the step that it is at, and is saved; Ctrl-C once more stops at once"
_ENDING = "stopping: no run has begun to train, so that the processes which start are ended"


class _Process:
    """What a process of a sweep knows of itself."""

    board: Board
    busy = False
    share: float | None = None


_process = _Process()


def submit(order: Order) -> _Crew:
    """Make the processes. Each is given a run as soon as it is free."""
    return _Crew(order)


def watch(crew: _Crew) -> Iterator[tuple[Job, Outcome]]:
    """Each run as it ends.

    A process that dies, because it is killed or out of memory, takes the others with it. The runs that were under way
    are then tried once more, each alone, so that a run which kills its process again fails by itself.

    Raises:
        RunError: the processes cannot start.
    """
    board, shows = crew.order.board, crew.order.shows
    waiting, suspects = deque(crew.order.jobs), deque[Job]()
    tried: set[int] = set()
    told = False
    while crew.running or (not board.stopping and (waiting or suspects)):
        while not board.stopping and waiting and len(crew.running) < crew.processes:
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
            yield job, outcome or fail(job, "its process died twice: killed, or out of memory?")


def gather(crew: _Crew, job: Job, outcome: Outcome) -> Outcome:
    """How a run has ended. What it has made is in its folder already."""
    return outcome


class _Crew:
    """The processes of a sweep, and the jobs that they are carrying out."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.running: dict[Future[Outcome], Job] = {}
        self.processes = min(order.at_once or 1, len(order.jobs))
        self._board = order.board
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
        given = (self._board, os.getcwd(), find_gpus(), self.processes)
        return ProcessPoolExecutor(self.processes, mp_context=context, initializer=begin, initargs=given)

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
            future = self._pool.submit(_work, job)
        except BrokenProcessPool as error:
            future = Future()
            future.set_exception(error)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.running[future] = job

    def look(self) -> list[tuple[Job, Outcome | None]]:
        """The jobs that have ended since the last look, with what `jobs.work` returned, or None where the process died.

        Raises:
            RunError: the processes cannot start.
        """
        done = wait(self.running, SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED).done
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
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if not _process.board.stopping:
        _process.board.stop()
    # Again and again, because a signal that comes before the run listens is not heard.
    while parent.is_alive() or _process.busy:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def _work(job: Job) -> Outcome:
    _process.busy = True
    try:
        return work(job, _process.board, _process.share)
    finally:
        _process.busy = False
