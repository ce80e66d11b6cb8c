"""The live line of a search: what is being trained, how far, loss, metric and the time left.

On stderr; in a notebook one bar of HTML that is drawn anew, which needs no widgets.
"""

from __future__ import annotations

import html
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Group
from rich.live import Live
from rich.text import Text

from supermask.masks.texts import harmless

from ..contract.metric import ACCURACY
from .console import HarmlessConsole

# The packages whose warnings are ours.
_OURS = [Path(__file__).parents[2] / name for name in ("supermask", "ticket_search")]

# Off a terminal a line comes at least every ten seconds.
_SECONDS_BETWEEN_LINES = 9.0
_FRAMES_PER_SECOND = 8
# Each drawing in a notebook is a message to the browser.
_SECONDS_BETWEEN_DRAWINGS = 0.5
_LONGEST_BAR = 40
_SHORTEST_BAR = 4
# Before so much of the work is done, what was announced says more about the time left than the pace so far.
_FIRST_SHARE = 0.05


class Pace:
    """How long work still takes: by its pace so far and, before there is one, by what was announced.

    A share of the work is between 0 and 1. Work that is taken up again begins with what is done already.
    """

    def __init__(self, announced: float | None = None) -> None:
        self.announced = announced
        self._began: tuple[float, float] | None = None

    def elapsed(self, now: float) -> float:
        """Seconds since the first share was told."""
        return 0.0 if self._began is None else now - self._began[0]

    def left(self, share: float, now: float) -> float | None:
        """The seconds that are left when a share of the work is done, None while nothing says it."""
        if self._began is None:
            self._began = (now, share)
        done, passed = share - self._began[1], now - self._began[0]
        by_plan = None if self.announced is None else max(0.0, self.announced * (1 - self._began[1]) - passed)
        if done <= 0 or passed <= 0:
            return by_plan
        by_pace = passed / done * (1 - share)
        if by_plan is None:
            return by_pace
        # The pace takes over little by little, so that the time left does not jump.
        trust = min(1.0, done / _FIRST_SHARE)
        return trust * by_pace + (1 - trust) * max(by_plan, 0.0)


def in_words(seconds: float) -> str:
    """Seconds for people: `8.4 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return (
        f"{int(seconds // 60)} min {int(seconds % 60)} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
    )


def clock(seconds: float) -> str:
    """Seconds as on a clock: `0:07`, `12:05`, `3:04:05`, and `2 d 3 h` where that is too short."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def told_left(left: float | None) -> str:
    """The time left, for a bar: `12:05 left`."""
    return "time left not known yet" if left is None else f"{clock(left)} left"


def fit_line(width: int, label: str, share: float, end: str, numbers: str = "") -> Text:
    """A line of a bar in so many columns: the share and its end are always there, the rest as far as there is room.

    Args:
        width: columns of the terminal.
        label: what is going on; it is cut short where there is no room.
        share: of the work that is done, from 0 to 1.
        end: what is never left out: the time left, or what the work has taken.
        numbers: the newest loss and metric, left out whole where there is no room.
    """
    tail = f" {100 * share:3.0f} % {end}"
    room = width - cell_len(tail)
    if room < _SHORTEST_BAR + 2:
        return Text((tail.strip() if cell_len(tail) <= width else end)[:width], no_wrap=True)
    shown = f" {numbers}" if numbers and room - cell_len(label) - cell_len(numbers) - 2 >= 2 * _SHORTEST_BAR else ""
    room -= cell_len(shown)
    bar = min(_LONGEST_BAR, max(_SHORTEST_BAR, room - cell_len(label) - 1))
    kept = room - bar - 1
    if cell_len(label) > kept:
        label = set_cell_size(label, max(0, kept - 1)) + "…" if kept > 1 else ""
    full = round(bar * min(1.0, max(0.0, share)))
    line = Text(f"{label} " if label else "", no_wrap=True)
    line.append("━" * full, style="bar.complete" if share < 1 else "bar.finished")
    line.append("━" * (bar - full), style="bar.back")
    return line.append(f"{tail}{shown}")


def tell_again_and_again(tell: Callable[[], None]) -> threading.Event:
    """Call `tell` every few seconds, in a thread of its own, until the event that is returned is set."""
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(_SECONDS_BETWEEN_LINES):
            tell()

    threading.Thread(target=go_on, daemon=True).start()
    return ended


@dataclass
class _Counted:
    """Work that is counted by itself beside the steps of training."""

    text: str
    total: int
    pace: Pace
    done: int = 0


class NotebookBar:
    """A bar in the output of a notebook's cell, which takes its own place each time that it is drawn."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._drawn = 0.0

    def is_due(self) -> bool:
        """Whether it was not drawn a moment ago."""
        return time.monotonic() - self._drawn >= _SECONDS_BETWEEN_DRAWINGS

    def draw(self, share: float, text: str) -> None:
        """Draw how much of the work is done, and what is said of it."""
        from IPython.display import HTML, display

        self._drawn = time.monotonic()
        page = HTML(f'<progress value="{share:.4f}" max="1"></progress> <code>{html.escape(text)}</code>')
        if self._handle is None:
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)


def warn_in_a_line() -> None:
    """From now on print warnings of this package as one line on stderr, and those of others as Python does."""
    usual = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category is not UserWarning or not any(map(Path(filename).is_relative_to, _OURS)):
            plain = harmless(str(message))
            usual(message if plain == str(message) else plain, category, filename, lineno, file, line)
            return
        told = " ".join(str(message).split())
        HarmlessConsole(stderr=True).print(f"warning: {told}", style="yellow", highlight=False, soft_wrap=True)

    warnings.showwarning = show


class Progress:
    """A progress bar on a terminal and in a notebook, a line now and then elsewhere, nothing where not `shown`.

    It may be entered again inside itself: the bar stays until the first one who has entered it leaves.
    """

    # Whether somebody else prints what makes a run doubtful, where this shows nothing.
    is_told_elsewhere = False

    def __init__(self, shown: bool = True) -> None:
        self.console = HarmlessConsole(stderr=True)
        self.shown = shown
        self.metric = ACCURACY
        self.total = 0
        self.pace = Pace()
        self._entered = 0
        self._live: Live | None = None
        self._silence: threading.Event | None = None
        self._page: NotebookBar | None = None
        self._counted: list[_Counted] = []
        self._said: set[str] = set()
        self._label = self._numbers = ""
        self._step: int | None = None
        self._opened = 0.0

    def __enter__(self) -> Progress:
        self._entered += 1
        if self.shown and self._entered == 1:
            self._opened = time.monotonic()
            if self.console.is_jupyter:
                self._page = NotebookBar()
            elif self.console.is_terminal:
                self._live = Live(
                    get_renderable=self._render, console=self.console, refresh_per_second=_FRAMES_PER_SECOND
                )
                self._live.start()
            else:
                self._silence = tell_again_and_again(self.tell)
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered -= 1
        if self._entered:
            return
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._silence is not None:
            self._silence.set()
            self._silence = None
        if self._page is not None:
            # What took no step and counted nothing is over before anybody has looked.
            if self._step is not None:
                self._page.draw(*self._told())
            self._page = None

    def expect(self, steps: int) -> None:
        """So many steps are to come: of the first run that is shown, or of another one after it."""
        if self._step is not None:
            self.pace, self._step, self._numbers = Pace(), None, ""
        self.total = steps

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

    def say(self, text: str, style: str = "yellow") -> None:
        """Print a line above the bar: what a person should know before the end. What was said is not said again."""
        if self.shown and text not in self._said:
            self._said.add(text)
            self.console.print(text, highlight=False, markup=False, style=style, soft_wrap=True)

    @contextmanager
    def count(self, text: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar of its own for work that is no training step; what is given says that one more of `total` is done."""
        counted = _Counted(text, total, Pace())
        counted.pace.left(0.0, time.monotonic())
        self._counted.append(counted)

        def one_more() -> None:
            counted.done += 1
            self._draw_page()

        try:
            yield one_more
        finally:
            self._counted.remove(counted)

    def advance_to(self, step: int) -> None:
        """Move to a step of the whole search. Cheap: who shows it looks by himself from time to time."""
        if self._step is None:
            # Before the first step comes what belongs to no step: the pace is counted from here.
            self.pace.left((step - 1) / max(1, self.total), time.monotonic())
        self._step = step
        self._draw_page()

    def tell(self) -> None:
        """Print a line of what is going on, how far it is and what is left."""
        self.console.print(self._told()[1], highlight=False, markup=False, soft_wrap=True)

    def _draw_page(self) -> None:
        # In the thread of the cell: what another thread displays is not shown in every notebook.
        if self._page is not None and self._page.is_due():
            self._page.draw(*self._told())

    def _told(self) -> tuple[float, str]:
        """The share of the work that is done, and what is going on, how far it is and what is left."""
        now, share = time.monotonic(), 0.0
        if self._counted:
            counted = self._counted[-1]
            share = counted.done / max(1, counted.total)
            words = [counted.text, f"{counted.done} of {counted.total}", _about(counted.pace.left(share, now))]
        elif self._step is None or not self.total:
            words = [self._label, f"{clock(now - self._opened)} so far", _about(self.pace.announced)]
        else:
            share = self._step / self.total
            left = _about(self.pace.left(share, now)) if share < 1 else clock(self.pace.elapsed(now))
            words = [self._label, f"step {self._step:,} of {self.total:,}", self._numbers, left]
        return share, "  ".join(filter(None, words))

    def _render(self) -> Group:
        now, width = time.monotonic(), self.console.width
        lines = []
        if self._step is None or not self.total:
            told = f"{self._label}  {clock(now - self._opened)}"
            if self._label and not self._counted:
                lines.append(Text(told, no_wrap=True, overflow="ellipsis"))
        else:
            share = self._step / self.total
            left = self.pace.left(share, now)
            end = told_left(left) if share < 1 else clock(self.pace.elapsed(now))
            lines.append(fit_line(width, self._label, share, end, self._numbers))
        for counted in list(self._counted):
            share = counted.done / max(1, counted.total)
            lines.append(fit_line(width, counted.text, share, told_left(counted.pace.left(share, now))))
        return Group(*lines)


def _about(left: float | None) -> str:
    return "" if left is None else f"about {clock(left)} left"
