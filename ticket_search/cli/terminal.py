"""Tables, errors and JSON on a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def output() -> Console:
    """The console on standard output, 200 columns wide where the output goes to a file or a pipe."""
    # Names hold colons, and `data:five:` is no emoji.
    console = Console(emoji=False)
    return console if console.is_terminal else Console(width=200, emoji=False)


def errors() -> Console:
    """The console on standard error."""
    return Console(stderr=True, emoji=False)


@contextmanager
def stop_told(folder: Path) -> Iterator[None]:
    """When a run is stopped by a signal, print the command that resumes it and exit with 130."""
    try:
        yield
    except KeyboardInterrupt:
        line = f"\nstopped; continue with:\n  ticket resume {folder}"
        errors().print(line, markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None


def print_json(value: Any) -> None:
    """Print one JSON object on standard output."""
    typer.echo(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table with numbers aligned to the right, or a block of lines for each row on a narrow terminal."""
    rows = [[_text(cell) for cell in row] for row in rows]
    console = output()
    table, least = Table(box=SIMPLE_HEAD, pad_edge=False), 0
    for index, column in enumerate(columns):
        cells = [row[index] for row in rows]
        numeric = bool(rows) and all(map(_is_number, cells))
        # Numbers are never folded, text is folded between words; columns are three characters apart.
        texts = [column, *cells]
        longest = max(map(len, texts if numeric else [word for text in texts for word in text.split()]), default=0)
        least += longest + 3
        table.add_column(
            column, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric, min_width=longest
        )
    for row in rows:
        table.add_row(*row)
    if least > console.width:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for row in rows:
            for column, cell in zip(columns, row, strict=True):
                if cell:
                    table.add_row(column, cell)
            table.add_row()
    console.print(table, highlight=False, markup=False)


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
    """A text of unknown origin for a terminal, shortened, with control characters written as escapes."""
    text = text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"(-?[\d,]*\.?\d+( (s|to|min|h)\b.*)?)?", text) is not None


def percent(value: float | None) -> str:
    """An accuracy in percent with two decimals."""
    return "" if value is None else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Seconds for people: `8.4 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return (
        f"{int(seconds // 60)} min {int(seconds % 60)} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
    )
