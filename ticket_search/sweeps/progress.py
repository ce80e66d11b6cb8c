"""The live table of a sweep, and the board of numbers on which its processes say how far they are."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Protocol

from rich.console import Group
from rich.live import Live
from rich.text import Text

from ..contract.stops import STOPPED
from ..runs.console import HarmlessConsole
from ..runs.progress import Pace, Progress, fit_line, tell_again_and_again, told_left

# A run that starts has written nothing yet: its process imports, and reads what it needs.
WAITING, STARTING, RUNNING, CONTROLS, ENDED = range(5)


class Board:
    """Numbers that all processes of a sweep share: the phase, step and metric of each run, and whether to stop."""

    def __init__(self, runs: int) -> None:
        # Without a lock: each number is written by one process, and one that is killed could not release a lock.
        self._numbers = get_context("spawn").RawArray("d", 1 + 3 * runs)

    @property
    def stopping(self) -> bool:
        """Whether the sweep was asked to stop."""
        return bool(self._numbers[0])

    @property
    def stop_status(self) -> int:
        """What the sweep exits with when it was asked to stop."""
        return int(self._numbers[0])

    def stop(self, status: int = STOPPED) -> None:
        """Ask every process to save its run and stop; `status` is what the sweep exits with."""
        self._numbers[0] = status

    @property
    def begun(self) -> bool:
        """Whether any run has begun."""
        return any(self._numbers[1::3])

    def enter(self, run: int, phase: int) -> None:
        """Write which phase a run is in."""
        self._numbers[1 + 3 * run] = phase

    def move(self, run: int, step: int) -> None:
        """Write which step a run has reached."""
        self._numbers[2 + 3 * run] = step

    def measure(self, run: int, value: float) -> None:
        """Write the newest value of a run's metric on the validation split: accuracy in percent, or another."""
        self._numbers[3 + 3 * run] = value

    def read(self, run: int) -> tuple[int, int, float]:
        """The phase, step and newest value of a run."""
        phase, step, value = self._numbers[1 + 3 * run : 4 + 3 * run]
        return int(phase), int(step), value


class Told(Protocol):
    """Where a run says how far it is, and hears that it is to stop, as a `Board`."""

    @property
    def stopping(self) -> bool:
        """Whether the sweep was asked to stop."""

    @property
    def stop_status(self) -> int:
        """What the sweep exits with when it was asked to stop."""

    def enter(self, run: int, phase: int) -> None:
        """Say which phase a run is in."""

    def move(self, run: int, step: int) -> None:
        """Say which step a run has reached."""

    def measure(self, run: int, value: float) -> None:
        """Say what a run's metric is on the validation split."""


class BoardProgress(Progress):
    """The progress of a run, which is written on the board and not on a terminal."""

    # The first process prints what the summary says.
    is_told_elsewhere = True

    def __init__(self, board: Told, run: int) -> None:
        super().__init__(shown=False)
        self._board, self._run = board, run

    def numbers(self, values: dict[str, float]) -> None:
        """Write the newest value of the metric on the board."""
        if (tag := f"{self.metric.name}/validation") in values:
            self._board.measure(self._run, values[tag])

    def advance_to(self, step: int) -> None:
        """Write the step on the board."""
        self._board.move(self._run, step)


@dataclass(frozen=True)
class Work:
    """What a run of a sweep takes in seconds, and the controls after it; in any unit, as only shares are told."""

    run: float
    controls: float = 0.0


class SweepProgress:
    """What a sweep shows: a line for each run that ends, how far the whole is, and the time left.

    On a terminal that is a bar with the runs under way, elsewhere a line now and then.
    """

    def __init__(
        self,
        names: Sequence[str],
        steps: Sequence[int],
        board: Board,
        shown: bool = True,
        work: Sequence[Work] = (),
        announced: float | None = None,
    ) -> None:
        self.console = HarmlessConsole(stderr=True)
        self.shown = shown
        self._names, self._steps, self._board = names, steps, board
        self._work = work or [Work(float(each)) for each in steps]
        self._ended: dict[str, int] = {}
        self._pace = Pace(announced)
        self._live: Live | None = None
        self._silence: threading.Event | None = None

    def __enter__(self) -> SweepProgress:
        self._pace.left(0.0, time.monotonic())
        if self.shown and self.console.is_terminal:
            self._live = Live(get_renderable=self._render, console=self.console, transient=True)
            self._live.start()
        elif self.shown:
            self._silence = tell_again_and_again(self.tell)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._silence is not None:
            self._silence.set()
            self._silence = None

    def ended(self, run: int, state: str, text: str, warnings: Sequence[str] = ()) -> None:
        """Print that a run has ended, and how, with what makes its result doubtful."""
        self._ended[state] = self._ended.get(state, 0) + 1
        self._board.enter(run, ENDED)
        if self.shown:
            count = f"{sum(self._ended.values())} of {len(self._names)}"
            line = f"{count}  {state}  {self._names[run]}  {text}"
            style = "red" if state == "failed" else None
            self.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
            for warning in warnings:
                told = f"  warning: {warning}"
                self.console.print(told, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line that should be read before the sweep has ended."""
        if self.shown:
            self.console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def tell(self) -> None:
        """Print a line of how far the sweep is and what is left."""
        share = self._share()
        left = self._pace.left(share, time.monotonic())
        words = [f"{100 * share:.0f} %", self._counts(), "" if left is None else f"about {told_left(left)}"]
        self.console.print("  ".join(filter(None, words)), markup=False, highlight=False, soft_wrap=True)

    def _share(self) -> float:
        """The share of the work that is done."""
        done = 0.0
        for run, (work, steps) in enumerate(zip(self._work, self._steps, strict=True)):
            phase, step, _ = self._board.read(run)
            trained = 1.0 if phase in (CONTROLS, ENDED) else min(step, steps) / max(1, steps)
            done += work.run * trained + work.controls * (phase == ENDED)
        whole = sum(work.run + work.controls for work in self._work)
        return done / whole if whole else 0.0

    def _counts(self) -> str:
        phases = [self._board.read(run)[0] for run in range(len(self._names))]
        going = sum(phase in (STARTING, RUNNING, CONTROLS) for phase in phases)
        waiting = len(self._names) - going - sum(self._ended.values())
        return ", ".join([*(f"{count} {state}" for state, count in self._ended.items()),
                          f"{going} running", f"{waiting} waiting"])  # fmt: skip

    def _render(self) -> Group:
        width, share, now = self.console.width, self._share(), time.monotonic()
        lines = []
        for run, (name, steps) in enumerate(zip(self._names, self._steps, strict=True)):
            phase, step, value = self._board.read(run)
            if phase in (STARTING, RUNNING, CONTROLS):
                where = {STARTING: "starting", CONTROLS: "controls"}.get(phase, f"{step:,} of {steps:,}")
                measured = f"  validation {value:.4g}" if value else ""
                if len(name) + len(where) + len(measured) + 2 > width:
                    measured = ""
                lines.append(Text(f"{name}  {where}{measured}", no_wrap=True, overflow="ellipsis"))
        left = told_left(self._pace.left(share, now))
        return Group(*lines, fit_line(width, self._counts(), share, left))
