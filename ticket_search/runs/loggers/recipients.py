"""Where a run's numbers go: its event files always, and the loggers that it is asked for beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...contract.flags import Config
from ...contract.metric import ACCURACY, Metric
from ..first_layer import Picture
from ..names import SENT_TO
from . import mlflow, wandb
from .journal import Journal
from .logger import Logger
from .tensorboard import EventFile, Histogram

if TYPE_CHECKING:
    from torch import Tensor

_BEGIN = {"mlflow": mlflow.begin, "wandb": wandb.begin}


class Recipients(EventFile):
    """The event files of a run, or of a control of it, and beside them the loggers that it is asked for.

    What is written comes to all of them. A logger that fails is told of once by `warn` and gets no more of this start:
    the event files have everything. When the run resumes, a logger gets the numbers that it has not been sent before,
    and nothing twice.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None], metric: Metric = ACCURACY) -> None:
        super().__init__(folder, metric)
        self._warn = warn
        self._others: dict[str, tuple[Logger, Journal]] = {}
        self._summary: Mapping[str, Any] | None = None

    def begin(self, config: Config, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        """Begin with the loggers that are asked for, and send them those of the rows so far that they have not got.

        Args:
            config: of the run.
            rows: of its `metrics.jsonl`.
        """
        plain = config.model_dump(mode="json", exclude_none=True)
        for name in () if self.hidden else config.log:
            with _Attempt(self, name):
                journal = Journal(self.folder / SENT_TO[name])
                logger = _BEGIN[name](self.folder.resolve().name, plain, journal.id)
                journal.begin(logger.id)
                self._others[name] = logger, journal
        for row in rows if self._others else ():
            numbers = {tag: value for tag, value in row.items() if tag not in ("step", "stage")}
            self._pass_on("log", int(row["step"]), self.shown(numbers))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars at a step, by tag."""
        super().write(step, values)
        self._pass_on("log", step, self.shown(values))

    def write_histograms(self, step: int, values: Mapping[str, Tensor]) -> dict[str, Histogram]:
        """Add a histogram of each tensor at a step, by tag."""
        counted = super().write_histograms(step, values)
        self._pass_on("log_histograms", step, counted)
        return counted

    def write_pictures(self, step: int, pictures: Mapping[str, Picture]) -> dict[str, bytes]:
        """Add pictures at a step, by tag."""
        drawn = super().write_pictures(step, pictures)
        self._pass_on("log_pictures", step, drawn)
        return drawn

    def write_end(self, step: int, summary: Mapping[str, Any]) -> None:
        """Add the numbers of the finished run."""
        super().write_end(step, summary)
        for at, values in self.ends(step, summary) if self._others else ():
            self._pass_on("log", at, values)
        # The summary of a control is none of the run that it belongs to.
        self._summary = {} if self.control else summary

    def end(self) -> None:
        """Take leave of the loggers: the run is finished, or was stopped and may go on."""
        for name, (logger, _) in [*self._others.items()]:
            with _Attempt(self, name):
                logger.finish(self._summary)
        self._others.clear()

    def _pass_on(self, what: str, step: int, values: Mapping[str, Any]) -> None:
        for name, (logger, journal) in [*self._others.items()]:
            if tags := journal.unsent(step, values):
                with _Attempt(self, name):
                    getattr(logger, what)(journal.rows, step, {tag: values[tag] for tag in tags})
                    journal.note(step, tags)

    def drop(self, name: str, error: Exception) -> None:
        """Send a logger no more, and say why."""
        self._others.pop(name, None)
        first = str(error).strip().partition("\n")[0]
        self._warn(
            f"--log {name} has failed, and nothing more is sent there: {type(error).__name__}: {first}; the event "
            "files of TensorBoard have everything, and if the run is resumed, the numbers that are missing are sent"
        )


class _Attempt:
    """Within it what a logger raises drops that logger."""

    def __init__(self, recipients: Recipients, name: str) -> None:
        self.recipients, self.name = recipients, name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        # Whatever a library or its server raises; not a signal, and not the end of the program.
        if not isinstance(error, Exception):
            return False
        self.recipients.drop(self.name, error)
        return True
