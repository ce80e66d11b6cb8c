"""`ticket methods | models | data`: lists of names."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Annotated

import typer

from ..data import SOURCES
from ..methods import find_method, method_names
from ..models import GROUP
from .terminal import print_json, print_table

Json = Annotated[bool, typer.Option("--json", help="Print the list as JSON.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (methods, models, data):
        app.command(command.__name__)(command)


def methods(as_json: Json = False) -> None:
    """List the search methods, with their papers."""
    found = [find_method(name) for name in method_names()]
    _show("methods", ("name", "idea", "paper"), [(method.name, method.idea, method.paper) for method in found], as_json)


def models(as_json: Json = False) -> None:
    """List the networks that --model takes by name."""
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    _show("models", ("name", "factory"), [(point.name, point.value) for point in points], as_json)


def data(as_json: Json = False) -> None:
    """List the data sets that --data takes by name."""
    rows = [(name, source.description) for name, source in SOURCES.items()]
    _show("data", ("name", "description"), rows, as_json)


def _show(kind: str, columns: Sequence[str], rows: Sequence[Sequence[str]], as_json: bool) -> None:
    if as_json:
        print_json({kind: [dict(zip(columns, row, strict=True)) for row in rows]})
    else:
        print_table(columns, rows)
