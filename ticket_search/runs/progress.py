"""The live line of a search: what is being trained, how far, loss, metric and the time left. On stderr only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)

from ..contract.metric import ACCURACY

_SECONDS_BETWEEN_UPDATES = 0.1
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A progress bar on a terminal, a line now and then elsewhere, nothing where `shown` is False."""

    def __init__(self, shown: bool = True) -> None:
        self.console = Console(stderr=True, emoji=False)
        self.shown = shown
        self.metric = ACCURACY
        self.total = 0
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._label = self._numbers = ""
        self._updated = self._printed = 0.0

    def __enter__(self) -> Progress:
        if self.shown and self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            self._bar = RichProgress(*columns, TextColumn("{task.fields[numbers]}"), *times, console=self.console)
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total or None, numbers="")
        self._printed = time.monotonic()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def label(self, text: str) -> None:
        """Say what is being worked on."""
        self._label = text

    def numbers(self, values: dict[str, float]) -> None:
        """Show the newest loss and values of the metric."""
        name = self.metric.name
        # Accuracy is what one expects; another metric is named.
        word = "" if self.metric.is_accuracy else f"{name} "
        short = {"loss/train": "loss", f"{name}/train": f"{word}train", f"{name}/validation": f"{word}validation"}
        shown = [f"{short[tag]} {value:.4g}" for tag, value in values.items() if tag in short]
        self._numbers = "  ".join(shown)

    def say(self, text: str) -> None:
        """Print a line above the bar: what a person should know before the end."""
        if self.shown:
            self.console.print(text, highlight=False, markup=False, style="yellow")

    @contextmanager
    def count(self, text: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar of its own for work that is no training step; what is given says that one more of `total` is done."""
        done, started = 0, time.monotonic()
        task = None if self._bar is None else self._bar.add_task(text, total=total, numbers="")

        def one_more() -> None:
            nonlocal done
            done += 1
            now = time.monotonic()
            if self._bar is not None and task is not None:
                self._bar.update(task, completed=done)
            elif self.shown and now - self._printed >= _SECONDS_BETWEEN_LINES:
                self._printed = now
                left = (now - started) / done * (total - done)
                self.console.print(f"{text}  {done} of {total}  about {left:.0f} s left", highlight=False)

        try:
            yield one_more
        finally:
            if self._bar is not None and task is not None:
                self._bar.remove_task(task)

    def advance_to(self, step: int) -> None:
        """Move to a step of the whole search. Cheap: it looks at the clock and seldom does more."""
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            if now - self._updated >= _SECONDS_BETWEEN_UPDATES:
                self._updated = now
                self._bar.update(self._task, completed=step, description=self._label, numbers=self._numbers)
        elif self.shown and now - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = now
            self.console.print(f"{self._label}  step {step} of {self.total}  {self._numbers}", highlight=False)
