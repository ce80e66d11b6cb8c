"""The live line of a search: what is being trained, how far, loss, metric and the time left.

On stderr; in a notebook one bar of HTML that is drawn anew, which needs no widgets.
"""

from __future__ import annotations

import html
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
# Each drawing is a message to the browser.
_SECONDS_BETWEEN_DRAWINGS = 0.5


class NotebookBar:
    """A bar in the output of a notebook's cell, which takes its own place each time that it is drawn."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._drawn = 0.0
        self._started = time.monotonic()

    def draw(self, text: str, done: int, total: int, now: bool = False) -> None:
        """Draw it, unless that was done a moment ago and it need not be `now`."""
        from IPython.display import HTML, display

        moment = time.monotonic()
        if not now and moment - self._drawn < _SECONDS_BETWEEN_DRAWINGS:
            return
        self._drawn, seconds = moment, moment - self._started
        left = f", about {seconds / done * (total - done):.0f} s left" if 0 < done < total else ""
        told = html.escape(f"{text}  {seconds:.0f} s{left}")
        page = HTML(f'<progress value="{done}" max="{max(1, total)}"></progress> <code>{told}</code>')
        if self._handle is None:
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)


class Progress:
    """A progress bar on a terminal and in a notebook, a line now and then elsewhere, nothing where not `shown`."""

    def __init__(self, shown: bool = True) -> None:
        self.console = Console(stderr=True, emoji=False)
        self.shown = shown
        self.metric = ACCURACY
        self.total = 0
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._page: NotebookBar | None = None
        self._step = 0
        self._label = self._numbers = ""
        self._updated = self._printed = 0.0

    def __enter__(self) -> Progress:
        if self.shown and self.console.is_jupyter:
            self._page = NotebookBar()
        elif self.shown and self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            self._bar = RichProgress(*columns, TextColumn("{task.fields[numbers]}"), *times, console=self.console)
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total or None, numbers="")
        self._printed = time.monotonic()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._page is not None:
            self._page.draw(f"{self._label}  {self._numbers}", self._step, self.total, now=True)
            self._page = None
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
            elif self._page is not None:
                self._page.draw(text, done, total)
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
        now, self._step = time.monotonic(), step
        if self._page is not None:
            self._page.draw(f"{self._label}  {self._numbers}", step, self.total)
        elif self._bar is not None and self._task is not None:
            if now - self._updated >= _SECONDS_BETWEEN_UPDATES:
                self._updated = now
                self._bar.update(self._task, completed=step, description=self._label, numbers=self._numbers)
        elif self.shown and now - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = now
            self.console.print(f"{self._label}  step {step} of {self.total}  {self._numbers}", highlight=False)
