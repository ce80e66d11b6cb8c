"""`ticket methods | models | data`: lists of names, of this package and of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from supermask import __version__
from supermask.plugins.entry_points import MODELS, Declaration, declarations

from .. import models as networks
from ..data.sources import declared_sources, usable_sources
from ..methods import declared_methods, usable_methods
from .terminal import print_json, print_table, print_texts

Json = Annotated[bool, typer.Option("--json", help="Print the list as JSON.")]
_OURS = "supermask"


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (methods, models, data):
        app.command(command.__name__)(command)


def methods(as_json: Json = False) -> None:
    """List the search methods: what each does, when to use it, and its paper."""
    found, refused = usable_methods()
    rows = [{"name": method.name, "idea": method.idea, "when": method.when, "paper": method.paper} for method in found]
    _show("methods", rows, refused, declared_methods(), as_json)


def models(as_json: Json = False) -> None:
    """List the networks that --model takes by name, with their parameters and their input as they are by default."""
    declared = declarations(MODELS)
    # Those of this package can be imported, and need PyTorch for it, which takes longer than all the rest.
    reasons = {name: each.refusal if _is_ours(each.package) else each.reason for name, each in declared.items()}
    rows = [
        {"name": name, "factory": each.value, **_describe_size(each)}
        for name, each in declared.items()
        if not reasons[name]
    ]
    _show("models", rows, {name: reason for name, reason in reasons.items() if reason}, declared, as_json)


def _describe_size(declared: Declaration) -> dict[str, Any]:
    """The size of a network of this package: one of another is not built before it is asked for."""
    if not _is_ours(declared.package):
        return {}
    size = networks.sizes.measure_default(declared)
    return {"parameters": size.parameters, "input_shape": list(size.input_shape)}


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
    if kind == "models":
        columns = ("model", "parameters", "input", "package")
        cells = [(row["name"], row.get("parameters"), _shape(row), _foreign(row)) for row in rows]
        last = 4 if any(map(_foreign, rows)) else 3
        print_table(columns[:last], [row[:last] for row in cells])
    else:
        keys = ("idea", "when", "paper", "description")
        print_texts(
            (row["name"], [*(row[key] for key in keys if row.get(key)), *([_foreign(row)] if _foreign(row) else [])])
            for row in rows
        )
    if unusable:
        print_table(("cannot be used", "package", "reason"), [list(row.values()) for row in unusable])


def _shape(row: Mapping[str, Any]) -> str:
    return "x".join(map(str, row.get("input_shape", ())))


def _foreign(row: Mapping[str, Any]) -> str:
    """The package of a row, where it is another than this one."""
    return "" if _is_ours(row["package"]) else f"of {row['package']}"


def _is_ours(package: str) -> bool:
    return package.partition(" ")[0] == _OURS
