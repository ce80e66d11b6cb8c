"""`ticket methods | models | data`: lists of names, of this package and of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from supermask import __version__
from supermask.plugins.entry_points import MODELS, Declaration, declarations

from ..data.sources import declared_sources, usable_sources
from ..methods import declared_methods, usable_methods
from .terminal import print_json, print_table

Json = Annotated[bool, typer.Option("--json", help="Print the list as JSON.")]
_OURS = "supermask"


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (methods, models, data):
        app.command(command.__name__)(command)


def methods(as_json: Json = False) -> None:
    """List the search methods, with their papers."""
    found, refused = usable_methods()
    rows = [{"name": method.name, "idea": method.idea, "paper": method.paper} for method in found]
    _show("methods", rows, refused, declared_methods(), as_json)


def models(as_json: Json = False) -> None:
    """List the networks that --model takes by name."""
    declared = declarations(MODELS)
    # Those of this package can be imported, and need PyTorch for it, which takes longer than all the rest.
    reasons = {name: each.refusal if _is_ours(each.package) else each.reason for name, each in declared.items()}
    rows = [{"name": name, "factory": each.value} for name, each in declared.items() if not reasons[name]]
    _show("models", rows, {name: reason for name, reason in reasons.items() if reason}, declared, as_json)


def data(as_json: Json = False) -> None:
    """List the data sets that --data takes by name."""
    found, refused = usable_sources()
    rows = [{"name": name, "description": source.description} for name, source in found.items()]
    _show("data", rows, refused, declared_sources(), as_json)


def _show(
    kind: str,
    rows: Sequence[Mapping[str, Any]],
    refused: Mapping[str, str],
    declared: Mapping[str, Declaration],
    as_json: bool,
) -> None:
    """Rows with the package of each, where one is not of this package, and below them what cannot be used, and why."""
    packages = {name: each.package for name, each in declared.items()}
    rows = [{**row, "package": packages.get(row["name"], f"{_OURS} {__version__}")} for row in rows]
    unusable = [{"name": name, "package": packages[name], "reason": why} for name, why in refused.items()]
    if as_json:
        print_json({kind: rows} | ({"refused": unusable} if unusable else {}))
        return
    foreign = not all(_is_ours(row["package"]) for row in rows)
    _print_rows([row if foreign else {key: row[key] for key in row if key != "package"} for row in rows])
    if unusable:
        print_table(("cannot be used", "package", "reason"), [list(row.values()) for row in unusable])


def _print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    print_table(list(rows[0]), [list(row.values()) for row in rows])


def _is_ours(package: str) -> bool:
    return package.partition(" ")[0] == _OURS
