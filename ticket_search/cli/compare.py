"""`ticket compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import duration, errors, percent, print_json, print_table


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(compare)


def compare(
    names: Annotated[list[str], typer.Argument(help="Runs, by folder or by name, as runs/*.")],
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare runs: seeds of the same configuration are grouped."""
    from ..comparison import compare as compare_runs

    found = compare_runs(name if Path(name).exists() else Path(runs) / name for name in names)
    if as_json:
        print_json(found)
        return
    rows = []
    for row in found["groups"]:
        differs = " ".join(f"{key}={value}" for key, value in row["differs"].items())
        interval = "" if row["interval"] is None else f"{row['interval'][0]:.2f} to {row['interval'][1]:.2f}"
        rows.append(
            (
                f"{row['method']} {differs}".strip(), f"{row['model']} {row['data']}", f"{row['density']:.4g}",
                row["kept"], row["n"], percent(row["mean"]), percent(row["std"]) or "one seed", interval,
                f"{row['dense_trainings']:.1f}", duration(row["seconds"]),
            )
        )  # fmt: skip
    columns = ("method", "on", "density", "kept", "seeds", "test %", "std", "95 % interval", "dense trainings", "time")
    print_table(columns, rows)
    for line in found["left_out"]:
        errors().print(f"left out: {line}", markup=False, highlight=False, soft_wrap=True)
