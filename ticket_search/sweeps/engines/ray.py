"""The engine of Ray: each run is a task, with CPUs and parts of GPUs of its own. One that loses its worker goes on.

Workers see the folder of all runs, or have a folder of their own, whose files are sent back.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, LocalRayletDiedError, RayError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ...contract.errors import RequestError, RunError
from ...contract.stops import STOPPED
from ...runs.locks import working_on
from ..progress import WAITING
from . import parcels
from .engine import Order, Outcome
from .jobs import Job, fail, listening, work
from .ray_cluster import SECONDS_TO_CONNECT, asked_of_ray, check_machines, check_room, connect, is_reachable

_SECONDS_BETWEEN_LOOKS = 0.5
# The share of a GPU's memory that is left for tensors.
_FOR_TENSORS = 0.9
_STOPPING = "stopping: each run ends after the step that it is at, and is saved; Ctrl-C once more stops at once"
_GOES_ON = "the runs are as they were last saved, and the same command goes on"


def submit(order: Order) -> _Crew:
    """Connect to a cluster, or start one here, and see whether its machines have what the runs need.

    Raises:
        RequestError: there is no such cluster, or what is missing there.
    """
    ours = not ray.is_initialized()
    if ours:
        connect(order)
    try:
        check_room(order)
        check_machines(order)
        return _Crew(order, ours)
    except BaseException:
        if ours:
            ray.shutdown()
        raise


def watch(crew: _Crew) -> Iterator[tuple[Job, Outcome]]:
    """Each run as it ends. One that loses its worker is tried again, and goes on from its state.

    Raises:
        RunError: the cluster is gone.
    """
    board, told = crew.order.board, False
    while crew.running or (crew.waiting and not board.stopping):
        crew.check_cluster()
        if board.stopping and not told:
            told = True
            crew.order.shows.say(_STOPPING)
            crew.stop()
        crew.fill()
        done = crew.wait()
        crew.show()
        for task in done:
            job, outcome = crew.end(task)
            if outcome is not None:
                yield job, outcome


def gather(crew: _Crew, job: Job, outcome: Outcome) -> Outcome:
    """How a run has ended, when what its worker has sent lies in its folder here."""
    parcel = outcome.pop("parcel", None)
    if parcel is not None:
        crew.keep(job, parcel)
    crew.release(job)
    return outcome


class _Crew:
    """The runs of a sweep that are tasks of a cluster, or wait to be."""

    def __init__(self, order: Order, ours: bool) -> None:
        self.order, self.options = order, order.options.ray
        self.running: dict[Any, Job] = {}
        self.waiting = list(order.jobs)
        self._ours = ours
        self._tries: dict[int, int] = {}
        self._held: dict[int, ExitStack] = {}
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._desk: Any = ray.remote(_Desk).options(num_cpus=0, scheduling_strategy=here).remote()
        self._task: Any = ray.remote(_carry_out)
        self._address = ray.get_runtime_context().gcs_address
        self._answered = time.monotonic()
        self._asked: Any = None

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *error: Any) -> None:
        for held in self._held.values():
            held.close()
        if self._ours:
            with contextlib.suppress(RayError):
                ray.shutdown()

    def fill(self) -> None:
        """Hand over the runs that wait, as many as may go on at the same time."""
        most = self.order.at_once or len(self.order.jobs)
        while self.waiting and len(self.running) < most and not self.order.board.stopping:
            self._give(self.waiting.pop(0))

    def wait(self) -> list[Any]:
        """The tasks that have ended since the last look.

        Raises:
            RunError: the cluster is gone.
        """
        try:
            return list(ray.wait(list(self.running), num_returns=1, timeout=_SECONDS_BETWEEN_LOOKS)[0])
        except RayError as error:
            raise self._gone(error) from None

    def show(self) -> None:
        """Put on the board how far the runs are, and keep what workers have sent of them.

        Raises:
            RunError: the cluster is gone.
        """
        # On a machine with much to do the desk may take its time, to begin with too: nobody waits for its answer.
        self._asked = self._desk.read.remote() if self._asked is None else self._asked
        try:
            if not ray.wait([self._asked], timeout=0)[0]:
                return
            values, sent = ray.get(self._asked)
        except RayError as error:
            raise self._gone(error) from None
        self._asked = None
        there = {job.place: job for job in self.running.values()}
        board = self.order.board
        for place, (phase, step, value) in values.items():
            if place in there:
                board.enter(place, phase)
                board.move(place, step)
                board.measure(place, value)
        for place, parcel in sent.items():
            if place in there:
                self.keep(there[place], parcel)

    def end(self, task: Any) -> tuple[Job, Outcome | None]:
        """How a task has ended; None where its run is tried again."""
        job = self.running.pop(task)
        try:
            outcome: Outcome = ray.get(task)
        except TaskCancelledError:
            return job, {"state": "interrupted", "text": "", "status": self.order.board.stop_status or STOPPED}
        except RayTaskError as error:
            return job, fail(job, str(error.cause or error).strip().splitlines()[-1], str(error))
        except LocalRayletDiedError as error:
            raise self._gone(error) from None
        except RayError as error:
            return job, self._try_again(job, error)
        return job, outcome

    def keep(self, job: Job, parcel: bytes) -> None:
        """Write what a worker has sent into the folder of its run."""
        folder = Path(job.folder)
        parcels.unpack(parcel, folder)
        parcels.sign(folder, job.config)

    def release(self, job: Job) -> None:
        """Let others work on a run that has ended."""
        held = self._held.pop(job.place, None)
        if held is not None:
            held.close()

    def stop(self) -> None:
        """Ask all runs to save their states. Those that have not begun are taken back."""
        board = self.order.board
        self._desk.stop.remote(board.stop_status)
        for task, job in self.running.items():
            if board.read(job.place)[0] == WAITING:
                ray.cancel(task)

    def check_cluster(self) -> None:
        """See that the cluster is there: a process that goes on without one is ended by Ray, without a word.

        Raises:
            RunError: it is gone.
        """
        now = time.monotonic()
        if is_reachable(self._address):
            self._answered = now
        elif now - self._answered >= SECONDS_TO_CONNECT:
            raise self._gone(None)

    def _gone(self, error: Exception | None) -> RunError:
        ended = len(self.order.jobs) - len(self.running) - len(self.waiting)
        why = f" ({str(error).strip().splitlines()[0]})" if error is not None and str(error).strip() else ""
        return RunError(
            f"the Ray cluster at {self._address} is gone{why}: {ended} of {len(self.order.jobs)} runs have ended; "
            f"{_GOES_ON}"
        )

    def _give(self, job: Job) -> None:
        options, sent, own = self.options, None, None
        if options.folder is not None:
            folder = Path(job.folder)
            folder.mkdir(parents=True, exist_ok=True)
            if job.place not in self._held:
                # The worker has a lock in its own folder only.
                self._held[job.place] = ExitStack()
                self._held[job.place].enter_context(working_on(folder))
            sent = parcels.pack(folder)
            run = hashlib.sha256(f"{socket.gethostname()}:{os.path.abspath(folder)}".encode()).hexdigest()[:16]
            own = os.path.join(options.folder, f"ticket-{run}", uuid.uuid4().hex, folder.name)
        self.order.board.enter(job.place, WAITING)
        asked = asked_of_ray(options, job)
        share = _FOR_TENSORS * options.gpus if 0 < options.gpus < 1 else None
        task = self._task.options(**asked, max_retries=0).remote(
            job, self._desk, os.getcwd(), share, own, sent, options.copy_every
        )
        self.running[task] = job

    def _try_again(self, job: Job, error: RayError) -> Outcome | None:
        if self.order.board.stopping:
            return {"state": "interrupted", "text": "", "status": self.order.board.stop_status}
        number = self._tries[job.place] = self._tries.get(job.place, 0) + 1
        why = " ".join(str(error).split())[:200]
        if number > self.options.retries:
            return fail(job, f"its worker was lost {number} times: killed, or out of memory?", str(error))
        self.order.shows.say(
            f"{job.folder}: its worker was lost ({type(error).__name__}: {why}); it goes on in another one"
        )
        self._desk.forget.remote(job.place)
        self._give(job)
        return None


class _Desk:
    """An actor to which all runs tell how far they are, and which tells them to stop."""

    def __init__(self) -> None:
        self._values: dict[int, tuple[int, int, float]] = {}
        self._sent: dict[int, bytes] = {}
        self._status: int | None = None

    def exchange(self, place: int, values: tuple[int, int, float], parcel: bytes | None) -> int | None:
        """Take what a run tells; the status that it is to end with, or None where it goes on."""
        self._values[place] = values
        if parcel is not None:
            self._sent[place] = parcel
        return self._status

    def forget(self, place: int) -> None:
        """Forget what a run has told whose worker is lost."""
        self._values.pop(place, None)

    def stop(self, status: int) -> None:
        """Have all runs end with a status."""
        self._status = status

    def read(self) -> tuple[dict[int, tuple[int, int, float]], dict[int, bytes]]:
        """What the runs have told; what they have sent is given once."""
        sent, self._sent = self._sent, {}
        return dict(self._values), sent


class _Line:
    """What a run tells the desk, and is told, as by a `Board`: a thread of its own calls there."""

    def __init__(self, desk: Any, place: int, folder: Path | None, copy_every: float) -> None:
        self._desk, self._place, self._folder, self._every = desk, place, folder, copy_every
        self._values = (WAITING, 0, 0.0)
        self._status: int | None = None
        self._copied = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._call, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Tell nothing any more."""
        self._end.set()
        self._thread.join()

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop."""
        return self._status is not None

    @property
    def stop_status(self) -> int:
        """What the run is to end with."""
        return STOPPED if self._status is None else self._status

    def enter(self, run: int, phase: int) -> None:
        """Say which phase the run is in."""
        self._values = (phase, *self._values[1:])

    def move(self, run: int, step: int) -> None:
        """Say which step the run has reached."""
        self._values = (self._values[0], step, self._values[2])

    def measure(self, run: int, value: float) -> None:
        """Say what the run's metric is."""
        self._values = (*self._values[:2], value)

    def _call(self) -> None:
        while not self._end.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                status = ray.get(self._desk.exchange.remote(self._place, self._values, self._parcel()), timeout=60)
            except (RayError, GetTimeoutError):
                status = STOPPED  # nobody is there for whom it would go on
            self._status = self._status if status is None else status

    def _parcel(self) -> bytes | None:
        if self._folder is None or time.monotonic() - self._copied < self._every or not self._folder.exists():
            return None
        self._copied = time.monotonic()
        return parcels.pack(self._folder)


def _carry_out(
    job: Job, desk: Any, folder: str, share: float | None, own: str | None, sent: bytes | None, copy_every: float
) -> Outcome:
    """A task: carry out a run where the sweep was started, or in a folder of the worker's own."""
    if own is not None:
        _clear(Path(own).parents[1])
        Path(own).mkdir(parents=True)
        parcels.unpack(sent or b"", Path(own))
        job = replace(job, folder=own)
    os.chdir(folder if Path(folder).is_dir() or own is None else own)
    line = _Line(desk, job.place, None if own is None else Path(own), copy_every)
    try:
        with listening(line):
            outcome = work(job, line, share)
    finally:
        line.close()
    if own is not None:
        outcome["parcel"] = parcels.pack(Path(own))
        os.chdir("/")
        shutil.rmtree(Path(own).parent, ignore_errors=True)
    return outcome


def _clear(folder: Path) -> None:
    """Remove what lost workers have left of a run, which goes on from what was sent back."""
    for left in folder.glob("*/*"):
        with contextlib.suppress(RequestError), working_on(left):  # a worker that is only thought lost is at work there
            shutil.rmtree(left.parent, ignore_errors=True)
