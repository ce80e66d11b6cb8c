"""`ticket controls`: what a ticket would have to be better than."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .. import running
from ..contract.errors import RequestError
from ..running.read_config import read_config
from ..running.request import shape_of
from ..runs.folders import find_run
from ..runs.names import MOVING
from .terminal import errors, output, percent, print_json, print_table


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("controls")(controls)


def controls(
    run: Annotated[str, typer.Argument(help="A finished run, by folder or by name.")],
    kinds: Annotated[str, typer.Option("--controls", help="As reinit,shuffle,random,random-erk,small-dense.")] = "",
    levels: Annotated[
        str, typer.Option("--levels", help="Levels of a search with levels, as 3,7; else the last.")
    ] = "",
    elsewhere: Annotated[str, typer.Option("--on", help="Train on other data: its name.")] = "",
    survivors: Annotated[bool, typer.Option("--survivors", help="Train what frozen weights have kept.")] = False,
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train or evaluate the controls of a run: fresh weights, shuffled masks, random masks. Kept beside the run."""
    chosen = [word for word in kinds.split(",") if word]
    words = [word for word in levels.split(",") if word]
    if not all(word.isdecimal() for word in words):
        raise RequestError(f"--levels {levels}: expected numbers, as 3,7")
    folder = find_run(run, runs)
    try:
        rows = running.controls.controls(
            folder,
            chosen or None,
            [int(word) for word in words] or None,
            elsewhere=elsewhere or None,
            survivors=survivors,
        )
    except KeyboardInterrupt:
        errors().print("\nstopped; the same command goes on", markup=False, highlight=False)
        raise typer.Exit(130) from None
    if as_json:
        print_json({"rows": rows})
        return
    print_table(("control", "on", "level", "density", "kept", "test %", "validation %"), [_cells(row) for row in rows])
    if not chosen and (shape := shape_of(read_config(folder))) != "weight":
        line = f"not asked of units of {shape}: {', '.join(MOVING)}, which move single weights"
        output().print(line, markup=False, highlight=False, soft_wrap=True)


def _cells(row: dict[str, Any]) -> tuple[Any, ...]:
    how = "trained" if row["trained"] else "as it is"
    return (
        f"{row['control']}, {how}", row["data"], row["level"], f"{row['density']:.4g}", row["kept"],
        percent(row["test_accuracy"]), percent(row["val_accuracy"]),
    )  # fmt: skip
