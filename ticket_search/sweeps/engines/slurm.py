"""The engine of Slurm, by submitit: each run is a job of an array, which is queued again when its time is over.

What submitit keeps lies in the user's own folder for state, and not beside the runs: it is unpickled, and a folder of
runs may come from anyone. That folder, the folder of all runs and the installation are seen by every machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from supermask.tickets.file import write_atomically

from ...contract.errors import RequestError, RunError, some_of
from ...contract.flags import to_plain
from ...contract.stops import AGAIN, REQUEUE, STOPPED
from ...trust.key import state_folder
from ..progress import STARTING, WAITING
from .boxes import Box, ask_to_stop, read_progress
from .engine import Order, Outcome
from .jobs import Job, fail, listening, work
from .options import SlurmOptions

# submitit's notice is USR2, which no run listens to. Read when it is imported, here and in each job.
os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"
import submitit

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_BETWEEN_QUEUES, _SECONDS_WHILE_STOPPING = 10.0, 2.0
# How long a file system may take to show the result of a job that has left the queue, and how long Slurm may be silent.
_SECONDS_FOR_A_RESULT = 15.0
_PATIENCE = 600.0
_TRIES = 3
# Why a job waits, where there is nothing that anyone could do about it.
_PLAIN_REASONS = ("None", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime", "Cleaning", "Dependency")
_STOPPING = (
    "stopping: runs that have begun end after the step that they are at, and are saved; the others leave the queue"
)


class Carried:
    """A run as submitit calls it: told that its time is over, it is saved first and then queued again."""

    def __call__(self, job: Job, box: str, folder: str) -> Outcome:
        """Carry out a run; names of files are looked up in `folder`, where the sweep was started."""
        os.chdir(folder)
        board = Box(Path(box))
        with listening(board):
            outcome = work(job, board)
        if outcome.get("status") == AGAIN and not board.stopping:
            board.enter(job.place, WAITING)
            signal.raise_signal(REQUEUE)  # submitit hears it now, and queues the job again
        return outcome

    def checkpoint(self, job: Job, box: str, folder: str) -> submitit.helpers.DelayedSubmission:
        """What is queued again: the same, as the run goes on from its own state."""
        return submitit.helpers.DelayedSubmission(self, job, box, folder)


@dataclass
class _Sent:
    """A run that was handed over: its job there, and where it tells how far it is."""

    job: Job
    handle: Any
    box: Path
    # When it was first found to have left the queue without a result.
    lost: float | None = None


def submit(order: Order) -> _Crew:
    """Queue the runs, but those that are queued already.

    Raises:
        RequestError: Slurm does not take them, or one is queued with another configuration.
    """
    options, crew = order.options.slurm, _Crew(order)
    asked = [job.config.device for job in order.jobs]
    if "cuda" in asked and not options.gpus:
        raise RequestError('a run is on cuda and asks for no GPU: gpus = 1 in [engine.slurm], or device = "cpu"')
    with crew.locked():
        crew.attach()
        if options.cluster == "slurm":
            for threads in dict.fromkeys(job.config.threads for job in crew.waiting):
                crew.send([job for job in crew.waiting if job.config.threads == threads])
            crew.waiting = []
    return crew


def watch(crew: _Crew) -> Iterator[tuple[Job, Outcome]]:
    """Each run as it ends. One whose job was lost is queued again, and goes on from its state.

    Raises:
        RunError: Slurm does not answer any more.
    """
    board, told = crew.order.board, False
    while crew.sent or (crew.waiting and not board.stopping):
        if board.stopping and not told:
            told = True
            if crew.leaves_queued:
                crew.order.shows.say(
                    f"jobs that stay with Slurm: {len(crew.sent)}; the same command watches them again"
                )
                return
            crew.order.shows.say(_STOPPING)
            crew.stop()
        crew.fill()
        for sent in list(crew.sent):
            crew.show(sent)
            outcome = crew.look(sent)
            if outcome is not None:
                yield sent.job, outcome
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def gather(crew: _Crew, job: Job, outcome: Outcome) -> Outcome:
    """How a run has ended. What it has made is in its folder, which all machines see."""
    return outcome


class _Crew:
    """The runs of a sweep that are queued, running, or waiting to be queued."""

    def __init__(self, order: Order) -> None:
        self.order, self.options = order, order.options.slurm
        self.sent: list[_Sent] = []
        self.waiting = list(order.jobs)
        self._queue = _Queue(order)
        self._tries: dict[int, int] = {}
        place = hashlib.sha256(os.path.abspath(order.place).encode()).hexdigest()[:16]
        self.folder = state_folder() / "slurm" / f"{order.place.name}-{place}"
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._record = self.folder / "queued.json"

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *error: Any) -> None:
        if not self.leaves_queued:
            for sent in self.sent:  # Ctrl-C came twice, or Slurm is silent: who still works on them is told
                ask_to_stop(sent.box, self.order.board.stop_status or STOPPED)

    @property
    def leaves_queued(self) -> bool:
        """Whether the runs stay queued without us: this process has to go only because its own time is over."""
        return self.options.cluster == "slurm" and self.order.board.stop_status == AGAIN

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only command that queues runs of this sweep."""
        with filelock.FileLock(self.folder / ".lock"):
            yield

    def attach(self) -> None:
        """Take over the runs that an earlier command has queued.

        Raises:
            RequestError: one of them is queued with another configuration.
        """
        known, found = self._read(), []
        if any(job.folder in known for job in self.waiting):
            self._queue.expect_answer()  # what is not known to be over may be queued
        for job in list(self.waiting):
            entry = known.get(job.folder)
            if entry is None:
                continue
            handle = self._handle(entry["id"])
            if handle.paths.result_pickle.exists() or not self._queue.has(entry["id"]):
                continue
            if entry["digest"] != _digest(job):
                raise RequestError(
                    f"{job.folder} is queued with another configuration, as job {entry['id']}: `scancel {entry['id']}`"
                )
            self.waiting.remove(job)
            self.sent.append(_Sent(job, handle, self.folder / entry["box"]))
            found.append(entry["id"])
        if found:
            self.order.shows.say(f"queued already, and watched from here: the jobs {some_of(found)}")

    def fill(self) -> None:
        """Hand over as many of the waiting runs as may go on at the same time here."""
        # This process itself has one after another, so that it hears in between that the sweep is stopped.
        most = 1 if self.options.cluster == "debug" else self.order.at_once or 1
        room = most - len(self.sent)
        if self.waiting and room > 0 and not self.order.board.stopping:
            now, self.waiting = self.waiting[:room], self.waiting[room:]
            with self.locked():
                self.send(now)

    def send(self, jobs: Sequence[Job]) -> None:
        """Hand over runs that ask for the same, and keep who they are.

        Raises:
            RequestError: they are not taken.
        """
        boxes = [self.folder / uuid.uuid4().hex for _ in jobs]
        for box in boxes:
            box.mkdir(mode=0o700)
        folder = [os.getcwd()] * len(jobs)
        try:
            handles = self._executor(jobs[0]).map_array(Carried(), jobs, list(map(str, boxes)), folder)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise RequestError(f"Slurm does not take the runs: {_said_by_sbatch(str(error))}") from None
        made = [_Sent(job, handle, box) for job, handle, box in zip(jobs, handles, boxes, strict=True)]
        self.sent += made
        self._queue.add(each.handle.job_id for each in made)
        new = {s.job.folder: {"id": s.handle.job_id, "box": s.box.name, "digest": _digest(s.job)} for s in made}
        self._write(self._read() | new)

    def show(self, sent: _Sent) -> None:
        """Put on the board how far a run is."""
        board, told = self.order.board, read_progress(sent.box)
        if self._queue.waits(sent.handle.job_id):
            board.enter(sent.job.place, WAITING)
        elif told is not None:
            phase, step, value = told
            board.enter(sent.job.place, phase)
            board.move(sent.job.place, step)
            board.measure(sent.job.place, value)
        elif self.options.cluster == "slurm" and self._queue.runs(sent.handle.job_id):
            board.enter(sent.job.place, STARTING)

    def look(self, sent: _Sent) -> Outcome | None:
        """How a run has ended; None where it has not, or is queued again.

        Raises:
            RunError: Slurm does not answer any more.
        """
        if self.options.cluster == "debug" or sent.handle.paths.result_pickle.exists():
            outcome = self._result(sent)
        elif self._is_lost(sent):
            self.sent.remove(sent)
            if self.order.board.stopping:
                return {"state": "interrupted", "text": "", "status": self.order.board.stop_status}
            number = self._tries[sent.job.place] = self._tries.get(sent.job.place, 1) + 1
            if number > _TRIES:
                log = _end_of(sent.handle.paths.stdout)
                return fail(sent.job, f"its job was lost {_TRIES} times: killed, or out of memory?{log}")
            self.order.shows.say(f"{sent.job.folder}: its job {sent.handle.job_id} was lost; it goes on in another one")
            with self.locked():
                self.send([sent.job])
            return None
        else:
            return None
        self.sent.remove(sent)
        self._forget(sent, outcome["state"] != "failed")
        return outcome

    def stop(self) -> None:
        """Ask the runs to save their states, and take those that have not begun out of the queue."""
        for sent in self.sent:
            ask_to_stop(sent.box, self.order.board.stop_status)
        if self.options.cluster == "slurm" and self.sent:
            ids = [sent.handle.job_id for sent in self.sent]
            subprocess.run(["scancel", "--state=PENDING", *ids], check=False, capture_output=True, timeout=60)

    def _result(self, sent: _Sent) -> Outcome:
        try:
            outcome: Outcome = sent.handle.result()
        except submitit.core.utils.UncompletedJobError as error:
            trace = str(error)
            told = [line for line in trace.splitlines() if line and not line.startswith(("-", " ", "You can"))]
            return fail(sent.job, told[-1] if told else trace, trace)
        return outcome

    def _is_lost(self, sent: _Sent) -> bool:
        """Whether a run's job has left the queue for some time, without a result."""
        if self._queue.has(sent.handle.job_id):
            sent.lost = None
            return False
        now = time.monotonic()
        sent.lost = now if sent.lost is None else sent.lost
        patience = _SECONDS_FOR_A_RESULT if self.options.cluster == "slurm" else 1.0
        return self.order.board.stopping or now - sent.lost >= patience

    def _executor(self, job: Job) -> Any:
        options, threads = self.options, job.config.threads or 1
        if options.cluster == "debug":
            return submitit.DebugExecutor(self.folder)
        if options.cluster == "local":
            executor: Any = submitit.LocalExecutor(self.folder, max_num_timeout=options.requeues)
            executor.update_parameters(
                timeout_min=options.minutes, signal_delay_s=options.notice, gpus_per_node=options.gpus,
                stderr_to_stdout=True,
            )  # fmt: skip
            return executor
        try:
            executor = submitit.SlurmExecutor(self.folder, max_num_timeout=options.requeues)
        except RuntimeError:
            raise RequestError(
                "--engine slurm: there is no srun here: give the command on a machine of a cluster"
            ) from None
        executor.update_parameters(
            **_asked_of_slurm(options),
            job_name=f"ticket-{self.order.place.name}",
            cpus_per_task=options.cpus or threads,
            array_parallelism=self.order.at_once or len(self.order.jobs),
        )
        return executor

    def _handle(self, name: str) -> Any:
        kinds = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}
        return kinds.get(self.options.cluster, submitit.LocalJob)(self.folder, name)

    def _forget(self, sent: _Sent, clean: bool) -> None:
        with self.locked():
            known = self._read()
            known.pop(sent.job.folder, None)
            self._write(known)
        for path in sent.box.iterdir():
            path.unlink()
        sent.box.rmdir()
        if clean:
            for path in self.folder.glob(f"{sent.handle.job_id}_*"):
                path.unlink(missing_ok=True)

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            known: dict[str, dict[str, str]] = json.loads(self._record.read_bytes())
        except FileNotFoundError:
            return {}
        return known

    def _write(self, known: dict[str, dict[str, str]]) -> None:
        write_atomically(self._record, (json.dumps(known, indent=1) + "\n").encode())


class _Queue:
    """Which jobs there are, and what they are at: asked of Slurm seldom, and of this machine always."""

    def __init__(self, order: Order) -> None:
        self._order, self._cluster = order, order.options.slurm.cluster
        self._states: dict[str, str] = {}
        self._asked = float("-inf")
        self._heard = time.monotonic()
        self._silence = ""
        self._told: set[str] = set()

    def add(self, names: Iterable[str]) -> None:
        """Add jobs that were just taken."""
        self._states |= dict.fromkeys(names, "PENDING")

    def has(self, name: str) -> bool:
        """Whether a job waits or runs.

        Raises:
            RunError: Slurm has not answered for a long time.
        """
        if self._cluster == "debug":
            return False
        if self._cluster == "local":
            return _is_controller(int(name))
        self._ask()
        return name in self._states

    def expect_answer(self) -> None:
        """Ask Slurm which jobs there are.

        Raises:
            RequestError: it does not say.
        """
        if self._cluster == "slurm":
            self._ask()
            if self._silence:
                raise RequestError(f"{self._silence}; runs may be queued there already, and none is queued twice")

    def waits(self, name: str) -> bool:
        """Whether a job waits in the queue, as far as is known."""
        return self._states.get(name) == "PENDING" and self._cluster == "slurm"

    def runs(self, name: str) -> bool:
        """Whether a job runs, as far as is known."""
        return self._states.get(name) in ("RUNNING", "COMPLETING")

    def _ask(self) -> None:
        now = time.monotonic()
        if now - self._asked < (_SECONDS_WHILE_STOPPING if self._order.board.stopping else _SECONDS_BETWEEN_QUEUES):
            return
        self._asked = now
        command = ["squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            why = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
            told = self._silence = f"Slurm does not answer: {''.join(why)}"
            if time.monotonic() - self._heard >= _PATIENCE:
                raise RunError(f"{told}; runs that have begun go on, and the same command watches them again") from None
            self._say(told + "; the runs that have begun go on, and it is asked again")
            return
        self._heard, self._silence = time.monotonic(), ""
        lines = [line.split("|", 2) for line in answer.stdout.splitlines() if line.count("|") >= 2]
        self._states = {name: state for name, state, _ in lines}
        for name, state, reason in lines:
            if state == "PENDING" and reason not in _PLAIN_REASONS and self._is_ours(name):
                self._say(f"job {name} waits: {reason}")

    def _is_ours(self, name: str) -> bool:
        return any(name.split("_")[0] == known.split("_")[0] for known in self._states)

    def _say(self, text: str) -> None:
        kind = text.partition(": ")[2] or text
        if kind not in self._told:
            self._told.add(kind)
            self._order.shows.say(text)


def _asked_of_slurm(options: SlurmOptions) -> dict[str, Any]:
    """The parameters of an executor, without those that depend on the run."""
    given = {name: getattr(options, name) for name in ("partition", "account", "qos", "constraint")}
    given["mem"] = None if options.memory_gb is None else f"{max(1, round(1024 * options.memory_gb))}MB"
    given["gpus_per_node"] = options.gpus or None
    fixed = {
        "time": options.minutes, "signal_delay_s": options.notice, "nodes": 1, "ntasks_per_node": 1,
        "stderr_to_stdout": True, "additional_parameters": {"requeue": True},
    }  # fmt: skip
    return {**fixed, **{name: value for name, value in given.items() if value is not None}}


def _digest(job: Job) -> str:
    """What a run is asked for, to tell whether one that is queued is the same."""
    plain = json.dumps([to_plain(job.config), job.controls, job.control_levels, job.controls_on], default=str)
    return hashlib.sha256(plain.encode()).hexdigest()


def _is_controller(process: int) -> bool:
    """Whether a process is one of submitit's local jobs that has not ended."""
    try:
        return b"submitit.local._local" in Path(f"/proc/{process}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


def _said_by_sbatch(text: str) -> str:
    """The sentence of sbatch in what submitit tells of it."""
    said = [
        line.removeprefix("sbatch: ").removeprefix("error: ").strip()
        for line in text.splitlines()
        if "sbatch: " in line
    ]
    return "; ".join(dict.fromkeys(filter(None, said))) or " ".join(text.split())[-300:]


def _end_of(log: Path) -> str:
    """The last line of a job's log, behind a semicolon; nothing where there is none."""
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return f"; the last line of its log: {lines[-1][:300]}" if lines else ""
