"""The run folder: configuration, stages, metrics, the state that a stopped run resumes from."""

from __future__ import annotations

import contextlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import supermask
from supermask import Masks, Ticket
from supermask.tickets.file import flush_folder, write_atomically

from ..contract.errors import Interrupted, RequestError, RunError, command_line
from ..contract.flags import Config, to_plain
from ..contract.leave import goes_on_in_python
from ..contract.metric import ACCURACY, Metric, metric_of
from ..contract.stops import STOPPED, stopping_on_signals
from ..data.samples import Samples
from ..trust.mark import write_mark
from . import ranks, states, summary
from .environment import describe_environment
from .experiment import Setup
from .first_layer import picture_first_layer
from .folders import check_no_links, drop_states, find_leftovers, inspect_folder
from .inputs import Inputs, read_inputs, write_inputs
from .locks import working_on
from .loggers.recipients import Recipients
from .loggers.tensorboard import surviving_weights
from .names import CONFIG, ENVIRONMENT, METRICS, REWIND_POINT, SUMMARY, TICKET
from .progress import Progress
from .records import add_checksum, digest_of_start, read_record, read_rows, write_config, write_json, write_record
from .rehearsal import Rehearsal
from .summary import LevelRow, Summary

# A state is written after a step of training: not twice within the first number of seconds, and so seldom that it takes
# this share of the time, but for the last number of seconds. So much is what a kill can cost.
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
        # The exit status that a signal has asked for; None while nobody has, or not all ranks know of it.
        self.stop_status: int | None = None
        self._agreement = ranks.Agreement()
        # Whether code of one's own is taken as it is now, because it was given once more.
        self.takes_code = False
        # Where the run was begun, if it is to go on elsewhere.
        self.begun_on = ""
        self.rehearsal: Rehearsal | None = None
        self.steps_done = 0
        self.training_stage = ""
        self.rows: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self._told_of_room = False
        self._stages: dict[str, Any] = {}
        self._training: dict[str, Any] | None = None
        self._start: str | None = None
        self._data: str | dict[str, str] | None = None
        self._seconds = 0.0
        self._opened = time.monotonic()
        self._saved = time.monotonic()
        self._saving = 0.0
        self._events = Recipients(path, self.warn)
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
    def leads(self) -> bool:
        """Whether this process reads and writes the run's folder: of several ranks the first one only."""
        return ranks.now().first

    @property
    def ticket(self) -> Ticket:
        """The run's result, read from its file."""
        return self._read(self.path / TICKET)

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
    def interrupted(self) -> bool:
        """Whether a signal has asked the run to stop."""
        return self.stop_status is not None

    @property
    def seconds(self) -> float:
        """Seconds spent on the run, over all its starts."""
        return self._seconds + time.monotonic() - self._opened

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a stage: what was saved when it is done, else what `work()` returns.

        Results are tensors and plain data; `steps` in them moves the origin of the following stages' steps.
        """
        if name not in self._stages:
            self.agree(at_once=True)
            self.stop_if_asked()
            self.training_stage = name
            self.progress.label(f"{self.config.method}  {name}")
            self._stages[name] = work()
            self._training = None
            self.save_state()
        result: dict[str, Any] = self._stages[name]
        self.steps_done = sum(done.get("steps", 0) for done in self._stages.values())
        return result

    def expect_start(self, fingerprint: str, code: Mapping[str, str]) -> None:
        """Check that a resumed run begins with the weights, the data and the code that it began with at first.

        Args:
            fingerprint: of the weights.
            code: hashes of the user's own, by what it is for.

        Raises:
            RunError: the model is built with other weights now, or the data are others, or the network or another
                function is another one.
        """
        # What was begun by an earlier version says nothing of data sets that are not a function of one's own.
        if self._data and self._data != self.setup.content:
            differs = self.setup.differences(self._data)
            raise RunError(f"the data of {self.path} are others than when the run was started: {differs}")
        self._data = self.setup.content
        if self._start is not None and self._start != fingerprint:
            if self.config.weights:
                given = self.config.weights_given
                raise RunError(f"--weights {given} has others than when the run {self.path} was started")
            raise RunError(
                f"the model of {self.path} is built with other weights than when the run was started: a model must "
                "depend on its arguments and on PyTorch's random numbers only"
            )
        self._start = fingerprint
        ranks.first(lambda: self._expect_inputs(Inputs(fingerprint, self.setup.data_hash, dict(code))))

    def _expect_inputs(self, inputs: Inputs) -> None:
        # Of a run that has saved nothing, as one that failed in code which is mended now, nothing can be mixed.
        earlier = read_inputs(self.path) if self._stages or self._training else None
        if earlier is None:
            with self.writing():
                write_inputs(self.path, inputs)
        elif differs := inputs.differences(earlier):
            told = f"the run {self.path} was started with something else ({', '.join(differs)})"
            if not self.takes_code:
                remove = command_line("runs", "rm", self.path)
                raise RunError(
                    f"{told}: begin anew under another name, or `{remove}`; to go on with what is given now all the "
                    f'same, ticket_search.resume("{self.path}", model=..., data=..., loss=...)'
                )
            self.warn(f"{told}; it goes on with what it is given now")

    def training_state(self, name: str) -> dict[str, Any] | None:
        """The saved state of a training of the current stage, if it was stopped in the middle."""
        state, self._training = self._training, None
        return state if state is not None and state["name"] == f"{self.training_stage}/{name}" else None

    @property
    def is_save_due(self) -> bool:
        """Whether so much time has passed since the last state was saved that a kill should not cost more."""
        return self._agreement.saves if ranks.now().several else self._is_time_to_save

    def agree(self, at_once: bool = False) -> None:
        """Of several ranks: have all know whether to stop and whether to save, after every so many steps.

        Args:
            at_once: whatever the number of steps.
        """
        if ranks.now().several and self._agreement.ask(self.leads and self._is_time_to_save, at_once):
            self.stop_status = self._agreement.status

    @property
    def _is_time_to_save(self) -> bool:
        least, most = _SECONDS_BETWEEN_STATES
        return time.monotonic() - self._saved >= min(most, max(least, self._saving / _SHARE_FOR_STATES))

    def save_training(self, name: str, state: dict[str, Any]) -> None:
        """Save the state of a training in progress."""
        if self.leads:
            self._training = {**state, "name": f"{self.training_stage}/{name}"}
            self.save_state()
            self._training = None  # the training has its own

    def save_state(self) -> None:
        """Write `state.pt`: stage results, training in progress, and where the logs end.

        Raises:
            RunError: the disk has no room for it, or fails.
        """
        if not self.leads:
            return
        began = time.monotonic()
        with self.writing():
            # What a state says of the logs must be on disk before it is.
            self._rows.flush()
            os.fsync(self._rows.fileno())
            content = {
                "stages": self._stages,
                "training": self._training,
                "start": self._start,
                "data": self._data,
                "bad_images": self.setup.bad_images.state_dict() if self.setup.bad_images else {},
                "seconds": self.seconds,
                "metrics_bytes": (self.path / METRICS).stat().st_size,
                "metrics_sha256": digest_of_start(self.path / METRICS),
                "event_bytes": self._events.sizes(),
                **({"warnings": self.warnings} if self.warnings else {}),
            }
            data = states.pack_state(content)
            if (little := states.check_room(self.path, len(data))) and not self._told_of_room:
                self._told_of_room = True
                self.progress.say(little)
            states.write_state(self.path, data)
        self._saved = time.monotonic()
        self._saving = self._saved - began

    def stop_if_asked(self) -> None:
        """Raise Interrupted when a signal came."""
        if self.stop_status is not None:
            ranks.wait()  # until the first has saved: what starts the ranks ends them all when one of them ends
            raise Interrupted(str(self.path), self.stop_status, goes_on_in_python(self.path, vars(self.config)))

    def warn(self, text: str) -> None:
        """Say what makes the run's result doubtful, and keep it: the summary has it under `warnings`."""
        new = text not in self.warnings
        if new:
            self.warnings.append(text)
        if self.progress.shown:
            self.progress.say(text)
        elif new and not self.progress.is_told_elsewhere:
            warnings.warn(text, stacklevel=3)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Within it what the disk refuses is told with what to do."""
        try:
            yield
        except OSError as error:
            told = f"{error.filename or self.path} cannot be written: {error.strerror}"
            if self.rehearsal is not None:
                raise RunError(f"{told}; nothing was begun") from error
            raise RunError(
                f"{told}; the run is as it was when it was last saved: `{command_line('resume', self.path)}` goes on "
                "from there"
            ) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row of scalars at a step of the current stage to `metrics.jsonl`, TensorBoard and the loggers."""
        if not self.leads:
            return
        # Only where the loss is: of two rows of one step the second would be a point twice.
        if self.config.device == "cuda" and "loss/train" in values:
            values = {**values, "memory/allocated-megabytes": torch.cuda.max_memory_allocated() / 1e6}
        row = {"step": self.steps_done + step, "stage": self.training_stage, **values}
        with self.writing():
            self._rows.write(json.dumps(row) + "\n")
            self._events.write(self.steps_done + step, values)

    def log_histograms(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Add a histogram of each tensor, by tag, at a step of the current stage to TensorBoard."""
        if not self.leads:
            return
        with self.writing():
            self._events.write_histograms(self.steps_done + step, values)

    def log_masks(self, step: int, model: nn.Module, masks: Masks) -> None:
        """Show in TensorBoard what a finished training keeps: surviving weights, and the first layer in pictures."""
        if not self.leads:
            return
        self.log_histograms(step, surviving_weights(model, masks))
        step += self.steps_done
        with self.writing():
            self._events.write_pictures(step, picture_first_layer(masks, self.setup.data.input_shape, step))

    def save_level(self, level: int, ticket: Ticket) -> None:
        """Keep a level's ticket as `levels/NN/ticket.safetensors`."""
        path = self._level(level)
        if self.leads:
            with self.writing():
                path.parent.mkdir(parents=True, exist_ok=True)
        self._keep(ticket, path)

    def load_level(self, level: int) -> Ticket:
        """A level's ticket."""
        return self._read(self._level(level))

    def save_rewind_point(self, ticket: Ticket) -> None:
        """Keep the dense network at the step that levels rewind to, as `rewind.safetensors`."""
        self._keep(ticket, self.path / REWIND_POINT)

    def load_rewind_point(self) -> Ticket:
        """The dense network at the step that levels rewind to: its `final` state."""
        return self._read(self.path / REWIND_POINT)

    def write(self, path: Path, content: bytes) -> None:
        """Write a file into the run's folder, whole or not at all."""
        if self.leads:
            with self.writing():
                write_atomically(path, content)

    def _keep(self, ticket: Ticket, path: Path) -> None:
        if self.leads:
            with self.writing():
                supermask.save(ticket, path, overwrite=True)

    def _read(self, path: Path) -> Ticket:
        """A ticket of the folder, which only the first of several ranks may have: the others are sent its bytes."""
        if not ranks.now().several:
            return supermask.load(path)
        return supermask.unpack(ranks.first(path.read_bytes))

    def _level(self, level: int) -> Path:
        return self.path / "levels" / f"{level:02d}" / TICKET

    def save_ticket(self, ticket: Ticket) -> None:
        """Keep the run's result as `ticket.safetensors`."""
        self._keep(ticket, self.path / TICKET)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, which says that the run is done, and drop the state."""
        if self.leads:
            self._finish(summary)
        ranks.wait()

    def _finish(self, summary: Mapping[str, Any]) -> None:
        with self.writing():
            # Before the summary: a process killed between the two resumes, and cuts this off.
            self._events.write_end(self.steps_done, summary)
            self._events.close()
            self._rows.flush()
            os.fsync(self._rows.fileno())
            add_checksum(self.path, METRICS, digest_of_start(self.path / METRICS))
            write_record(self.path, SUMMARY, {**summary, **({"warnings": self.warnings} if self.warnings else {})})
            drop_states(self.path)

    @contextmanager
    def opened(self) -> Iterator[Run]:
        """Work on the run: its folder made and locked, its logs cut back to the saved state, signals caught.

        Raises:
            RequestError: another process works on this run.
        """
        with contextlib.ExitStack() as stack:
            self._restore(ranks.first(lambda: self._open(stack)))
            if self.leads:
                stack.enter_context(self._logging())
            stack.enter_context(stopping_on_signals(self.stop))
            stack.enter_context(self.progress)
            yield self

    def _open(self, stack: contextlib.ExitStack) -> dict[str, Any]:
        """The saved state of the folder, which is made, locked until the stack is left, and cut back to it."""
        new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        if new:
            flush_folder(self.path.parent)
        check_no_links(self.path)
        stack.enter_context(working_on(self.path))
        self._settle_folder()
        self._events.metric = self.metric
        state = states.read_newest(self.path, self.warn)
        self._events.cut_back(state["event_bytes"])
        if not state["event_bytes"]:
            self._events.write_start(self.config)
        rows = self.path / METRICS
        if rows.exists():
            with rows.open("r+b") as file:
                file.truncate(state["metrics_bytes"])
        if self.rehearsal is None:
            self._events.begin(self.config, read_rows(rows) if rows.exists() and self.config.log else ())
        return state

    @contextmanager
    def _logging(self) -> Iterator[None]:
        self._rows = (self.path / METRICS).open("a", encoding="utf-8")
        try:
            yield
        except BaseException:
            for log in (self._rows, self._events):
                # What cannot be written because the disk is full cannot be on closing either, and is told already.
                with contextlib.suppress(OSError):
                    log.close()
            raise
        finally:
            self._events.end()
        with self.writing():
            self._rows.close()
            self._events.close()

    def _config_of_folder(self) -> Config:
        return self.config.model_copy(update={"device": self.begun_on}) if self.begun_on else self.config

    def _settle_folder(self) -> None:
        found = inspect_folder(self.path, self._config_of_folder())
        if found.taken:
            raise RequestError(found.taken)
        for leftover in find_leftovers(self.path):
            leftover.unlink()
        if found.state == "new" and self.rehearsal is None:
            self._mark()
        config = self._config_of_folder()
        # What is asked for beside the run itself may be something else when it goes on.
        if found.state == "new" or read_record(self.path, CONFIG).get("log", []) != [*config.log]:
            write_config(self.path, to_plain(config))
        if not (self.path / ENVIRONMENT).exists():
            write_json(self.path / ENVIRONMENT, describe_environment(self.config))

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._opened = self._saved = time.monotonic()
        self.progress.metric = self.metric
        if self.begun_on not in ("", self.config.device):
            self.warn(
                f"the run was begun on {self.begun_on} and goes on on {self.config.device}: sums are added in another "
                "order there, so that its bytes are not those of a run that has stayed"
            )
        self._stages, self._training, self._seconds = state["stages"], state["training"], state["seconds"]
        # That of version 0.1 has no fingerprint of its data.
        self._start, self._data = state["start"], state.get("data")
        self.warnings += [text for text in state.get("warnings", []) if text not in self.warnings]
        if self._setup is not None and self._setup.bad_images:
            self._setup.bad_images.load_state_dict(state.get("bad_images", {}))
        if self.config.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def _mark(self) -> None:
        """Remember the code that the run was started with, for every later command."""
        content = "" if self._setup is None else getattr(self.data, "fingerprint", "")
        if why := write_mark(self.path, to_plain(self.config), self.config.leaves, content):
            self.progress.say(why)

    def stop(self, status: int = STOPPED) -> None:
        """Ask the run to save its state and stop after the step that it is at, with this exit status."""
        self._agreement.heard = status
        if not ranks.now().several:
            self.stop_status = status
