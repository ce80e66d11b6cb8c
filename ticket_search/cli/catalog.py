"""`ticket methods | models | data`: what there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from ..data.sources import SOURCES
from ..methods import find_method, method_names
from .terminal import print_json, print_table

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (methods, models, data):
        app.command(command.__name__)(command)


def methods(as_json: Json = False) -> None:
    """List the search methods, with their papers."""
    found = [find_method(name) for name in method_names()]
    _show("methods", ("name", "idea", "paper"), [(method.name, method.idea, method.paper) for method in found], as_json)


def models(as_json: Json = False) -> None:
    """List the networks that can be named."""
    from importlib.metadata import entry_points

    from ..models.names import GROUP

    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    _show("models", ("name", "factory"), [(point.name, point.value) for point in points], as_json)


def data(as_json: Json = False) -> None:
    """List the data sets that can be named."""
    rows = [(name, source.description) for name, source in SOURCES.items()]
    _show("data", ("name", "description"), rows, as_json)


def _show(kind: str, columns: Sequence[str], rows: Sequence[Sequence[str]], as_json: bool) -> None:
    if as_json:
        print_json({kind: [dict(zip(columns, row, strict=True)) for row in rows]})
    else:
        print_table(columns, rows)
