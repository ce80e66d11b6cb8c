"""What is logged, under which tag, and the event files that TensorBoard reads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    from supermask import Masks

# Written through TensorBoard's own writer: torch.utils.tensorboard takes longer to import than a short search to run.
TAGS = {
    "loss/train": "mean cross-entropy of the steps since the last row",
    "loss/validation": "mean cross-entropy on the validation split",
    "accuracy/train": "percent of the samples of the steps since the last row",
    "accuracy/validation": "percent of the validation split",
    "accuracy/test": "percent of the test split, once for each finished ticket",
    "learning-rate": "of the step",
    "density/total": "fraction of the maskable weights kept",
    "mask/changed": "share of the mask entries that changed since the last row",
    "speed/images-per-second": "training samples per second since the last row, evaluation not counted",
}
DENSITY_TAG = "density/{}"  # of each tensor


def densities(masks: Masks) -> dict[str, float]:
    """The density of the whole and of each tensor, by tag."""
    return {
        "density/total": masks.density,
        **{DENSITY_TAG.format(name): density for name, density in masks.densities.items()},
    }


class EventFile:
    """The run's event files: one per start of the process, cut back to the saved step when a run resumes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: EventFileWriter | None = None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add scalars at a step."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self.writer is None:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter

            self.writer = EventFileWriter(str(self.folder))
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def sizes(self) -> dict[str, int]:
        """Bytes of each event file, with everything written so far on disk."""
        if self.writer is not None:
            self.writer.flush()
        return {path.name: path.stat().st_size for path in sorted(self.folder.glob("events.out.tfevents.*"))}

    def cut_back(self, sizes: dict[str, int]) -> None:
        """Drop what was written after `sizes` was taken, so that no step of a resumed run appears twice."""
        for path in self.folder.glob("events.out.tfevents.*"):
            if path.name not in sizes:
                path.unlink()
            elif path.stat().st_size > sizes[path.name]:
                with path.open("r+b") as file:
                    file.truncate(sizes[path.name])

    def close(self) -> None:
        """Flush and close."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None
