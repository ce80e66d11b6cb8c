"""Weights & Biases: a search is a run of the project that WANDB_PROJECT names; WANDB_MODE=offline needs no server."""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy

from .logger import Logger, numbers_of

if TYPE_CHECKING:
    from .tensorboard import Histogram


def begin(name: str, config: Mapping[str, Any], known: str) -> Logger:
    """A new run of wandb with a configuration, or the one that is known, which goes on."""
    import wandb

    if known:
        # Offline each start has a folder that is named by the second: of two in one second the first would be lost.
        time.sleep(1.0 - time.time() % 1.0)
    run = wandb.init(
        id=known or uuid.uuid4().hex[:12],
        name=name,
        config=dict(config),
        resume="allow",
        # Beside a run that the caller's own program may have open; the terminal stays as it is.
        reinit="create_new",
        settings=wandb.Settings(console="off"),
    )
    # wandb takes its own step upwards only: that counts rows, and what is drawn is drawn over ours.
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    return WandbLogger(run)


class WandbLogger:
    """A run of wandb."""

    def __init__(self, run: Any) -> None:
        self.run, self.id = run, str(run.id)

    def log(self, row: int, step: int, values: Mapping[str, Any]) -> None:
        """Log numbers at a step, by tag."""
        self.run.log({"step": step, **values}, step=row)

    def log_histograms(self, row: int, step: int, values: Mapping[str, Histogram]) -> None:
        """Log histograms at a step, by tag."""
        import wandb

        filled = {tag: value for tag, value in values.items() if value}
        self.log(
            row,
            step,
            {tag: wandb.Histogram(np_histogram=(found["bucket"], _ends(found))) for tag, found in filled.items()},
        )

    def log_pictures(self, row: int, step: int, values: Mapping[str, bytes]) -> None:
        """Log PNG files at a step, by tag."""
        import wandb
        from PIL import Image

        self.log(row, step, {tag: wandb.Image(Image.open(io.BytesIO(png))) for tag, png in values.items()})

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Log the numbers of the summary as the run's summary, and end the run."""
        if summary:
            self.run.summary.update(numbers_of(summary))
        self.run.finish(exit_code=1 if summary is None else 0)


def _ends(histogram: Histogram) -> Any:
    """The ends of the buckets, one more than there are: the first is as far below as all are wide."""
    upper = numpy.asarray(histogram["bucket_limit"])
    low, high = histogram["min"], histogram["max"]
    return numpy.concatenate([[low - 0.5 if low == high else low], upper])
