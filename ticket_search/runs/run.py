"""The run folder: configuration, stages, metrics, the state that a stopped run resumes from."""

from __future__ import annotations

import io
import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import filelock
import numpy
import torch
from torch import Tensor, nn

import supermask
from supermask import Masks, Ticket
from supermask.tickets.file import write_atomically

from ..contract.errors import Interrupted, Problems, RequestError, RunError, command_line
from ..contract.flags import Config, to_plain
from ..contract.metric import ACCURACY, Metric, metric_of
from ..data.samples import Samples
from ..trust.mark import write_mark
from . import summary
from .experiment import Setup
from .first_layer import picture_first_layer
from .folders import check_no_links, find_leftovers, inspect_folder
from .forms import check_form
from .names import CONFIG, EARLIER_STATE, ENVIRONMENT, METRICS, REWIND_POINT, SUMMARY, TICKET
from .names import STATE as _STATE
from .progress import Progress
from .records import add_checksum, digest_of_start, read_record, read_rows, seal, unseal, write_record
from .rehearsal import Rehearsal
from .summary import LevelRow, Summary
from .tensorboard import EventFile, surviving_weights

# A state is written at the end of an epoch: not twice within the first number of seconds, and so seldom that it takes
# this share of the time, but for the last number of seconds. So much, or an epoch, is what a kill can cost.
_SECONDS_BETWEEN_STATES = 1.0, 60.0
_SHARE_FOR_STATES = 0.01


class Run:
    """One search: its folder and what has been done in it.

    `path` is the folder, `ticket` the result, `summary` what `summary.json` holds, `levels` its rows per level,
    `metrics` all logged rows. A method works in stages, appends what each one reports to `rows`, and saves tickets.
    """

    def __init__(
        self, path: Path, config: Config, setup: Setup | None = None, progress: Progress | None = None
    ) -> None:
        self.path = path
        self.config = config
        self._setup = setup
        self.progress = progress or Progress(shown=False)
        self.interrupted = False
        self.rehearsal: Rehearsal | None = None
        self.steps_done = 0
        self.training_stage = ""
        self.rows: list[dict[str, Any]] = []
        self._stages: dict[str, Any] = {}
        self._training: dict[str, Any] | None = None
        self._start: str | None = None
        self._data_fingerprint: str | None = None
        self._seconds = 0.0
        self._opened = time.monotonic()
        self._saved = time.monotonic()
        self._saving = 0.0
        self._events = EventFile(path)
        self._rows: Any = None

    def __fspath__(self) -> str:
        """Its folder: wherever a run's path is taken, the run may be given."""
        return str(self.path)

    def __repr__(self) -> str:
        return summary.in_a_line(self.config, str(self.path), self.summary if self.finished else None)

    def _repr_html_(self) -> str:
        done = self.finished
        masks = self.ticket.masks if done else None
        return summary.to_html(self.config, str(self.path), self.summary if done else None, masks)

    @property
    def setup(self) -> Setup:
        """Model and data of the run while it is searched."""
        assert self._setup is not None, "a run that was only opened has no model and no data"
        return self._setup

    @property
    def data(self) -> Samples:
        """What the run trains on and is measured with."""
        return self.setup.data

    @property
    def metric(self) -> Metric:
        """What the run is measured by."""
        if self._setup is not None and self._setup.objective is not None:
            return self._setup.metric
        return metric_of(self.summary) if self.finished else ACCURACY

    @property
    def ticket(self) -> Ticket:
        """The run's result, read from its file."""
        return supermask.load(self.path / TICKET)

    @property
    def summary(self) -> Summary:
        """What the finished run reports."""
        return cast(Summary, read_record(self.path, SUMMARY))

    @property
    def levels(self) -> list[LevelRow]:
        """One row per level, level 0 the dense network; empty for methods without levels."""
        return self.summary.get("levels", [])

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """All logged rows: `step` over the whole search, `stage`, and the values by tag."""
        return read_rows(self.path / METRICS)

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return (self.path / SUMMARY).exists()

    @property
    def seconds(self) -> float:
        """Seconds spent on the run, over all its starts."""
        return self._seconds + time.monotonic() - self._opened

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a stage: what was saved when it is done, else what `work()` returns.

        Results are tensors and plain data; `steps` in them moves the origin of the following stages' steps.
        """
        if name not in self._stages:
            self.stop_if_asked()
            self.training_stage = name
            self.progress.label(f"{self.config.method}  {name}")
            self._stages[name] = work()
            self._training = None
            self.save_state()
        result: dict[str, Any] = self._stages[name]
        self.steps_done = sum(done.get("steps", 0) for done in self._stages.values())
        return result

    def expect_start(self, fingerprint: str) -> None:
        """Check that a resumed run begins with the weights and the data that it began with at first.

        Raises:
            RunError: the model is built with other weights now, or the function that gives the data gives others.
        """
        data = self.setup.data_fingerprint
        if self._data_fingerprint not in (None, data):
            raise RunError(
                f"the data of {self.path} are others than when the run was started: {self.config.data} must give the "
                "same each time"
            )
        self._data_fingerprint = data
        if self._start is not None and self._start != fingerprint:
            if self.config.weights:
                given = self.config.weights_given
                raise RunError(f"--weights {given} has others than when the run {self.path} was started")
            raise RunError(
                f"the model of {self.path} is built with other weights than when the run was started: a model must "
                "depend on its arguments and on PyTorch's random numbers only"
            )
        self._start = fingerprint

    def training_state(self, name: str) -> dict[str, Any] | None:
        """The saved state of a training of the current stage, if it was stopped in the middle."""
        state, self._training = self._training, None
        return state if state is not None and state["name"] == f"{self.training_stage}/{name}" else None

    def save_training(self, name: str, state: dict[str, Any], force: bool = False) -> None:
        """Save the state of a training in progress, unless that was done a moment ago and `force` is not given."""
        least, most = _SECONDS_BETWEEN_STATES
        pause = min(most, max(least, self._saving / _SHARE_FOR_STATES))
        if force or time.monotonic() - self._saved >= pause:
            self._training = {**state, "name": f"{self.training_stage}/{name}"}
            self.save_state()

    def save_state(self) -> None:
        """Write `state.pt`: stage results, training in progress, and where the logs end."""
        began = time.monotonic()
        self._rows.flush()
        buffer = io.BytesIO()
        torch.save(
            {
                "stages": self._stages,
                "training": self._training,
                "start": self._start,
                "data": self._data_fingerprint,
                "seconds": self.seconds,
                "metrics_bytes": (self.path / METRICS).stat().st_size,
                "metrics_sha256": digest_of_start(self.path / METRICS),
                "event_bytes": self._events.sizes(),
            },
            buffer,
        )
        newest = self.path / _STATE
        if newest.exists():
            os.replace(newest, self.path / EARLIER_STATE)
        write_atomically(newest, seal(buffer.getvalue()))
        self._saved = time.monotonic()
        self._saving = self._saved - began

    def stop_if_asked(self) -> None:
        """Raise Interrupted when a signal came."""
        if self.interrupted:
            raise Interrupted(str(self.path))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row of scalars at a step of the current stage to `metrics.jsonl` and TensorBoard."""
        # Only where the loss is: of two rows of one step the second would be a point twice.
        if self.config.device == "cuda" and "loss/train" in values:
            values = {**values, "memory/allocated-megabytes": torch.cuda.max_memory_allocated() / 1e6}
        row = {"step": self.steps_done + step, "stage": self.training_stage, **values}
        self._rows.write(json.dumps(row) + "\n")
        self._events.write(self.steps_done + step, values)

    def log_histograms(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Add a histogram of each tensor, by tag, at a step of the current stage to TensorBoard."""
        self._events.write_histograms(self.steps_done + step, values)

    def log_masks(self, step: int, model: nn.Module, masks: Masks) -> None:
        """Show in TensorBoard what a finished training keeps: surviving weights, and the first layer in pictures."""
        self.log_histograms(step, surviving_weights(model, masks))
        step += self.steps_done
        self._events.write_pictures(step, picture_first_layer(masks, self.setup.data.input_shape, step))

    def save_level(self, level: int, ticket: Ticket) -> None:
        """Keep a level's ticket as `levels/NN/ticket.safetensors`."""
        path = self._level(level)
        path.parent.mkdir(parents=True, exist_ok=True)
        supermask.save(ticket, path, overwrite=True)

    def load_level(self, level: int) -> Ticket:
        """A level's ticket."""
        return supermask.load(self._level(level))

    def save_rewind_point(self, ticket: Ticket) -> None:
        """Keep the dense network at the step that levels rewind to, as `rewind.safetensors`."""
        supermask.save(ticket, self.path / REWIND_POINT, overwrite=True)

    def load_rewind_point(self) -> Ticket:
        """The dense network at the step that levels rewind to: its `final` state."""
        return supermask.load(self.path / REWIND_POINT)

    def _level(self, level: int) -> Path:
        return self.path / "levels" / f"{level:02d}" / TICKET

    def save_ticket(self, ticket: Ticket) -> None:
        """Keep the run's result as `ticket.safetensors`."""
        supermask.save(ticket, self.path / TICKET, overwrite=True)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, which says that the run is done, and drop the state."""
        # Before the summary: a process killed between the two resumes, and cuts this off.
        self._events.write_end(self.steps_done, summary)
        self._events.close()
        self._rows.flush()
        add_checksum(self.path, METRICS, digest_of_start(self.path / METRICS))
        write_record(self.path, SUMMARY, summary)
        for state in (_STATE, EARLIER_STATE):
            (self.path / state).unlink(missing_ok=True)

    @contextmanager
    def opened(self) -> Iterator[Run]:
        """Work on the run: its folder made and locked, its logs cut back to the saved state, signals caught.

        Raises:
            RequestError: another process works on this run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        check_no_links(self.path)
        lock = filelock.FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RequestError(f"another process is working on {self.path}") from None
        try:
            self._settle_folder()
            self._restore()
            with (
                (self.path / METRICS).open("a", encoding="utf-8") as self._rows,
                stopping_on_signals(self._stop),
                self.progress,
            ):
                yield self
        finally:
            self._events.close()
            # The lock's file stays: removing it while others wait for it would let two of them in.
            lock.release()

    def _settle_folder(self) -> None:
        found = inspect_folder(self.path, self.config)
        if found.state == "finished":
            raise RequestError(f"another process has finished {self.path} meanwhile")
        if found.state == "another run":
            raise RequestError(f"another process has begun another run in {self.path}: {', '.join(found.differs)}")
        if found.state == "not a run":
            raise RequestError(found.why)
        for leftover in find_leftovers(self.path):
            leftover.unlink()
        if found.state == "new":
            if self.rehearsal is None:
                self._mark()
            write_record(self.path, CONFIG, to_plain(self.config))
        if not (self.path / ENVIRONMENT).exists():
            write_json(self.path / ENVIRONMENT, describe_environment(self.config))

    def _restore(self) -> None:
        self._opened = self._saved = time.monotonic()
        self._events.metric = self.progress.metric = self.metric
        state = self._read_states()
        self._stages, self._training, self._seconds = state["stages"], state["training"], state["seconds"]
        # That of version 0.1 has no fingerprint of its data.
        self._start, self._data_fingerprint = state["start"], state.get("data")
        self._events.cut_back(state["event_bytes"])
        if not state["event_bytes"]:
            self._events.write_start(self.config)
        if self.config.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        rows = self.path / METRICS
        if rows.exists():
            with rows.open("r+b") as file:
                file.truncate(state["metrics_bytes"])

    def _mark(self) -> None:
        """Remember the code that the run was started with, for every later command."""
        content = "" if self._setup is None else getattr(self.data, "fingerprint", "")
        if why := write_mark(self.path, to_plain(self.config), self.config.leaves, content):
            self.progress.say(why)

    def _read_states(self) -> dict[str, Any]:
        """The newest saved state that is whole, or that of a run that has not begun."""
        files = [path for name in (_STATE, EARLIER_STATE) if (path := self.path / name).exists()]
        if not files:
            return {
                "stages": {},
                "training": None,
                "start": None,
                "seconds": 0.0,
                "metrics_bytes": 0,
                "event_bytes": {},
            }
        problems = Problems()
        for path in files:
            state = problems.attempt(partial(self._read_state, path))
            if state is not None:
                if problems.found:
                    self.progress.say(f"{problems.found[0]}; going on from {path.name}, which was saved before it")
                return state
        raise RequestError(
            f"{'; '.join(problems.found)}; the run cannot go on: `{command_line('runs', 'rm', self.path)}` removes it"
        )

    def _read_state(self, path: Path) -> dict[str, Any]:
        """A saved state, checked, with the rows that were logged before it.

        Raises:
            RequestError: it is damaged, or the rows are.
        """
        try:
            state: dict[str, Any] = torch.load(unseal(path), weights_only=True, map_location="cpu")
        except RequestError:
            raise
        except Exception as error:  # whatever the bytes of a stranger's file make a reader raise
            first = str(error).strip().partition("\n")[0]
            raise RequestError(f"{path} is damaged: {type(error).__name__}: {first}") from None
        check_form(path.name, state, str(path))
        size, expected = state["metrics_bytes"], state.get("metrics_sha256")
        rows = self.path / METRICS
        if not rows.exists() or rows.stat().st_size < size or (expected and digest_of_start(rows, size) != expected):
            raise RequestError(f"{rows} is damaged: it is not what it was when {path.name} was saved")
        return state

    def _stop(self) -> None:
        self.interrupted = True


@contextmanager
def stopping_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` when SIGINT or SIGTERM comes; a second one does what it would do without us."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask_to_stop(number: int, frame: Any) -> None:
        stop()
        signal.signal(number, previous[signal.Signals(number)] or signal.SIG_DFL)

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in previous:
            signal.signal(number, ask_to_stop)
        yield
    finally:
        for number, handler in previous.items():
            if handler is not None:  # one that was not set from Python cannot be put back
                signal.signal(number, handler)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as a JSON file, whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def describe_environment(config: Config) -> dict[str, Any]:
    """Versions, device and command: what one needs to know to repeat a run, beside its configuration."""
    device = torch.cuda.get_device_name() if config.device == "cuda" else platform.processor() or platform.machine()
    return {
        "supermask": supermask.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": config.threads,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
