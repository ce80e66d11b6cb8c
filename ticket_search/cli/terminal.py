"""Tables, errors and JSON on a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

import typer
from rich.box import SIMPLE_HEAD
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table

from supermask.masks import texts

from ..contract.errors import command_line
from ..contract.stops import STOPPED
from ..runs.console import HarmlessConsole
from ..runs.folders import inspect_folder
from ..runs.progress import in_words
from ..runs.ranks import launched


def output() -> HarmlessConsole:
    """The console on standard output, 200 columns wide where the output goes to a file or a pipe.

    Of several ranks only the first prints.
    """
    quiet = not launched().first
    console = HarmlessConsole(quiet=quiet)
    return console if console.is_terminal else HarmlessConsole(width=200, quiet=quiet)


def errors() -> HarmlessConsole:
    """The console on standard error. Of several ranks only the first prints."""
    return HarmlessConsole(stderr=True, quiet=not launched().first)


def complain(text: Any) -> None:
    """Print a line about what is wrong, on each of several ranks: what is wrong there may not be so on the first."""
    rank = launched().rank
    told = f"rank {rank}: error: {text}" if rank else f"error: {text}"
    console = HarmlessConsole(stderr=True)
    console.print(told, style="red", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def stop_told(folder: Path | None = None) -> Iterator[None]:
    """When a signal stops what is done, say how it goes on, and exit with 130, or 75 where it is to be queued again.

    Of one run, in `folder`, that is a command of its own if it has begun; of anything else it is the same command.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        line = "stopped; the same command continues"
        if folder is not None:
            state, resume = inspect_folder(folder).state, command_line("resume", folder)
            line = "stopped; nothing was written"
            if state == "unfinished":
                line = f"stopped; continue with:\n  {resume}"
            elif state == "finished":
                line = f"stopped; the run {folder} is finished"
        say_stopped(line, getattr(stop, "status", STOPPED))


def say_stopped(line: str, status: int) -> NoReturn:
    """Print the last line of a command that a signal has stopped, and exit."""
    errors().print(f"\n{line}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(status) from None


def print_json(value: Any) -> None:
    """Print one JSON object on standard output."""
    if not launched().first:
        return
    # JSON escapes every control character but one.
    typer.echo(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table with numbers aligned to the right. Nothing is cut: on a narrow terminal it comes in several parts.

    Where all columns do not fit beside one another, those that do come first, and the others below under the same first
    column. A first column that takes too much room, as the names of runs, has lines of its own.
    """
    texts = [[_text(cell) for cell in row] for row in rows]
    cells = [_Column(name, [row[place] for row in texts]) for place, name in enumerate(columns)]
    room = output().width
    if _least(cells) <= room:
        _print_columns(cells)
        return
    first, rest = cells[0], cells[1:]
    beside, below = _parts(rest, room - first.least - _GAP), _parts(rest, room - _INDENT)
    if len(beside) <= len(below) and first.least + _GAP + max(column.least for column in rest) <= room:
        for part in beside:
            _print_columns([first, *part])
    else:
        for part in below:
            _print_under_names(first, part, room)


_GAP = 3
_INDENT = 2


class _Column:
    """A column of texts. Numbers are never folded; other texts, and its name, are folded between words."""

    def __init__(self, name: str, cells: Sequence[str]) -> None:
        self.name, self.cells = name, cells
        numeric = bool(cells) and all(map(_is_number, cells))
        self.side: Literal["left", "right"] = "right" if numeric else "left"
        words = [*name.split(), *(cells if numeric else (word for text in cells for word in text.split()))]
        self.least = max(map(len, words), default=0)
        self.most = max(map(len, [name, *cells]), default=0)


def _least(columns: Sequence[_Column]) -> int:
    return sum(column.least + _GAP for column in columns)


def _parts(columns: Sequence[_Column], room: int) -> list[list[_Column]]:
    """The columns in as few parts as fit into the room, in order; a column that is too wide alone is a part."""
    parts: list[list[_Column]] = []
    for column in columns:
        if parts and _least([*parts[-1], column]) <= room:
            parts[-1].append(column)
        else:
            parts.append([column])
    return parts


def _print_columns(columns: Sequence[_Column]) -> None:
    console = output()
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column, width in zip(columns, _widths(columns, console.width), strict=True):
        table.add_column(column.name, justify=column.side, overflow="fold", width=width)
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    console.print(table, highlight=False, markup=False)


def _widths(columns: Sequence[_Column], room: int) -> list[int]:
    """The widths of columns within the room: of their longest texts, or less where these can be folded."""
    widths = [column.most for column in columns]
    while sum(widths) + _GAP * len(widths) > room:
        slack = [width - column.least for width, column in zip(widths, columns, strict=True)]
        if max(slack) <= 0:
            break
        widths[slack.index(max(slack))] -= 1
    return widths


def _print_under_names(first: _Column, columns: Sequence[_Column], room: int) -> None:
    """A part of a table whose first column has lines of its own, which can be copied whole."""
    widths = _widths(columns, room - _INDENT)

    def lines(texts: Sequence[str], bold: bool = False) -> Padding:
        grid = Table.grid(padding=(0, _GAP, 0, 0))
        for column, width in zip(columns, widths, strict=True):
            grid.add_column(justify=column.side, overflow="fold", width=width, style="bold" if bold else "")
        grid.add_row(*texts)
        return Padding(grid, (0, 0, 0, _INDENT))

    console = output()
    console.print(f"\n{first.name}", style="bold", highlight=False, markup=False)
    console.print(lines([column.name for column in columns], bold=True), Rule(style="", characters="─"))
    for place, name in enumerate(first.cells):
        console.print(name, highlight=False, markup=False, soft_wrap=True)
        console.print(lines([column.cells[place] for column in columns]), highlight=False, markup=False)


def print_sentence(text: str, style: str = "") -> None:
    """Print what is to be read and not to be copied: a terminal folds it between words."""
    output().print(harmless(text, 1000), style=style, markup=False, highlight=False)


def print_texts(rows: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Print names, and beside each what is said of it: sentences, each on a new line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, sentences in rows:
        table.add_row(name, "\n".join(map(harmless, sentences)))
    output().print(table, highlight=False, markup=False)


def print_definitions(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print names with their explanations, for help texts."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(f"  {name}", text)
    output().print(f"\n{title}", style="bold", highlight=False)
    output().print(table, highlight=False, markup=False)


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else harmless(str(cell))


def harmless(text: str, most: int = 300) -> str:
    """A text of unknown origin in one line, shortened."""
    return texts.harmless(text, most)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"(-?[\d,]*\.?\d+( ((s|to|min|h)\b|- ).*)?)?", text) is not None


def counted(number: int, noun: str) -> str:
    """`1 run`, `2 runs`: a number of things whose plural ends in s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(value: float | None) -> str:
    """An accuracy in percent with two decimals."""
    return "" if value is None else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Seconds for people: `8.4 s`, `3 min 20 s`, `2 h 5 min`."""
    return in_words(seconds)
