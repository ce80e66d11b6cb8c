"""The live table of a sweep, and the board of numbers on which its processes say how far they are."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing import get_context
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from ..runs.progress import Progress

WAITING, RUNNING, CONTROLS, ENDED = range(4)


class Board:
    """Numbers that all processes of a sweep share: the phase, step and metric of each run, and whether to stop."""

    def __init__(self, runs: int) -> None:
        # Without a lock: each number is written by one process, and one that is killed could not release a lock.
        self._numbers = get_context("spawn").RawArray("d", 1 + 3 * runs)

    @property
    def stopping(self) -> bool:
        """Whether the sweep was asked to stop."""
        return bool(self._numbers[0])

    def stop(self) -> None:
        """Ask every process to save its run and stop."""
        self._numbers[0] = 1

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


class BoardProgress(Progress):
    """The progress of a run, which is written on the board and not on a terminal."""

    def __init__(self, board: Board, run: int) -> None:
        super().__init__(shown=False)
        self._board, self._run = board, run

    def numbers(self, values: dict[str, float]) -> None:
        """Write the newest value of the metric on the board."""
        if (tag := f"{self.metric.name}/validation") in values:
            self._board.measure(self._run, values[tag])

    def advance_to(self, step: int) -> None:
        """Write the step on the board."""
        self._board.move(self._run, step)


class SweepProgress:
    """What a sweep shows: a line for each run that ends and, on a terminal, the runs under way and the time left."""

    def __init__(self, names: Sequence[str], steps: Sequence[int], board: Board, shown: bool = True) -> None:
        self.console = Console(stderr=True, emoji=False)
        self.shown = shown
        self._names, self._steps, self._board = names, steps, board
        self._ended: dict[str, int] = {}
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        columns = (BarColumn(), TextColumn("{task.percentage:3.0f} %"), *times)
        self._bar = RichProgress(*columns, console=self.console, auto_refresh=False)
        self._task = self._bar.add_task("", total=max(1, sum(steps)))
        self._live: Live | None = None

    def __enter__(self) -> SweepProgress:
        if self.shown and self.console.is_terminal:
            self._live = Live(get_renderable=self._render, console=self.console, transient=True)
            self._live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def ended(self, run: int, state: str, text: str) -> None:
        """Print that a run has ended, and how."""
        self._ended[state] = self._ended.get(state, 0) + 1
        self._board.enter(run, ENDED)
        if self.shown:
            count = f"{sum(self._ended.values())} of {len(self._names)}"
            line = f"{count}  {state}  {self._names[run]}  {text}"
            style = "red" if state == "failed" else None
            self.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line that should be read before the sweep has ended."""
        if self.shown:
            self.console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 2))
        done = going = 0
        for run, (name, steps) in enumerate(zip(self._names, self._steps, strict=True)):
            phase, step, value = self._board.read(run)
            done += steps if phase in (CONTROLS, ENDED) else min(step, steps)
            if phase in (RUNNING, CONTROLS):
                going += 1
                where = "controls" if phase == CONTROLS else f"{step:,} of {steps:,}"
                table.add_row(name, where, f"validation {value:.4g}" if value else "")
        self._bar.update(self._task, completed=done)
        waiting = len(self._names) - going - sum(self._ended.values())
        counts = [f"{count} {state}" for state, count in self._ended.items()]
        table.add_row(", ".join([*counts, f"{going} running", f"{waiting} waiting"]), "", "")
        return Group(table, self._bar)
