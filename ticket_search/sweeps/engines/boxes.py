"""A folder for each run by which its process and the one that watches tell each other: how far it is, and to stop.

For processes that share no memory, only a file system.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from supermask.tickets.file import write_atomically

from ...contract.stops import STOPPED

_PROGRESS, _STOP = "progress.json", "stop"
# Between two reports of a run's steps; how often the one who watches is looked at.
_SECONDS = 1.0


class Box:
    """What a run tells through its folder, and is told, as by a `Board`: the process that carries it out has one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._values = [0.0, 0.0, 0.0]
        self._written = self._looked = 0.0
        self._status: int | None = None

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop."""
        now = time.monotonic()
        if self._status is None and now - self._looked >= _SECONDS:
            self._looked = now
            self._status = read_stop(self._folder)
        return self._status is not None

    @property
    def stop_status(self) -> int:
        """What the run is to end with."""
        return STOPPED if self._status is None else self._status

    def enter(self, run: int, phase: int) -> None:
        """Write which phase the run is in."""
        self._values[0] = phase
        self._write(now=True)

    def move(self, run: int, step: int) -> None:
        """Write which step the run has reached, now and then."""
        self._values[1] = step
        self._write()

    def measure(self, run: int, value: float) -> None:
        """Write the newest value of the run's metric, now and then."""
        self._values[2] = value
        self._write()

    def _write(self, now: bool = False) -> None:
        if now or time.monotonic() - self._written >= _SECONDS:
            write_atomically(self._folder / _PROGRESS, json.dumps(self._values).encode())
            self._written = time.monotonic()


def read_progress(folder: Path) -> tuple[int, int, float] | None:
    """The phase, step and newest value of the run of a folder; None where it has told nothing yet."""
    try:
        phase, step, value = json.loads((folder / _PROGRESS).read_bytes())
        return int(phase), int(step), float(value)
    except (OSError, ValueError):
        return None


def ask_to_stop(folder: Path, status: int) -> None:
    """Ask the run of a folder to save its state and to end with a status."""
    write_atomically(folder / _STOP, str(status).encode())


def read_stop(folder: Path) -> int | None:
    """The status that the run of a folder is to end with; None where nobody has asked it to stop."""
    try:
        return int((folder / _STOP).read_bytes())
    except (OSError, ValueError):
        return None
