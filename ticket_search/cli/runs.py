"""`ticket runs list|rm`: list the runs on disk, or delete them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..contract.errors import Problems
from ..contract.metric import metric_of, value_of
from ..runs.folders import find_run, inspect_folder, list_runs, remove_run
from ..runs.names import CONFIG, SUMMARY
from ..runs.records import read_record
from .terminal import duration, harmless, output, print_json, print_table

commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List runs, or delete them.")
RunsOption = Annotated[str, typer.Option("--runs", help="The folder of all runs.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(commands, name="runs")


@commands.command("list")
def list_all(
    runs: RunsOption = "runs", as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False
) -> None:
    """List all runs, finished or not."""
    rows = [describe(folder) for folder in list_runs(runs)]
    if as_json:
        print_json({"runs": rows})
    elif not rows:
        output().print(f"there are no runs in {runs}; `ticket search` makes one", highlight=False)
    else:
        print_table(
            ("run", "density", "test", "time"),
            [
                (
                    row["name"],
                    f"{row['density']:.4g}" if "density" in row else "",
                    _measured(row) if row["state"] == "finished" else row["state"],
                    duration(row["seconds"]) if "seconds" in row else "",
                )
                for row in rows
            ],
        )


@commands.command("rm")
def remove(
    names: Annotated[list[str], typer.Argument(help="Folders or names of runs.")],
    runs: RunsOption = "runs",
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
) -> None:
    """Delete runs with everything in their folders."""
    problems = Problems()
    folders = [problems.attempt(partial(find_run, name, runs)) for name in names]
    problems.raise_if_any()
    for folder in folders:
        assert folder is not None, "a run that is not found is a problem"
        if yes or typer.confirm(f"delete {harmless(str(folder))} with everything in it?", err=True):
            remove_run(folder)
            output().print(f"deleted {folder}", highlight=False)


def describe(folder: Path) -> dict[str, Any]:
    """A run's name and state, what was searched for, and what it has found if it is finished."""
    row: dict[str, Any] = {"name": folder.name, "path": str(folder)}
    try:
        config = read_record(folder, CONFIG)
        state = inspect_folder(folder).state
        summary = read_record(folder, SUMMARY) if state == "finished" else {}
    except ValueError as error:
        return {**row, "state": f"damaged: {error}"}
    row |= {"state": state}
    row |= {key: config.get(key) for key in ("method", "model", "data", "density", "seed")}
    return row | {
        key: summary[key]
        for key in ("density", "metric", "test_metric", "val_metric", "test_accuracy", "val_accuracy", "seconds")
        if key in summary
    }


def _measured(row: Mapping[str, Any]) -> str:
    """The metric on the test split, named where it is not accuracy: a list may hold runs of several."""
    value, metric = value_of(row, "test"), metric_of(row)
    if value is None:
        return ""
    return metric.with_unit(value) if metric.is_accuracy else f"{metric.name} {metric.with_unit(value)}"
