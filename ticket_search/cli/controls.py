"""`ticket controls`: networks that differ from a ticket in one thing, to compare it with."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import running
from ..contract import metric as contract_metric
from ..contract.errors import Problems, RequestError
from ..contract.metric import metric_of, value_of
from ..running.read_config import read_config
from ..running.request import shape_of
from ..runs.folders import find_run
from ..runs.names import MOVING, SUMMARY
from ..runs.progress import Progress
from ..runs.records import read_record
from .terminal import errors, harmless, output, print_json, print_table, stop_told
from .tickets import Data, Loss, MaxMinutes, Metric, Model

if TYPE_CHECKING:
    from ..runs.summary import ControlRow


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("controls")(controls)


def controls(
    run: Annotated[list[str], typer.Argument(help="The folders or names of finished runs.")],
    kinds: Annotated[
        str, typer.Option("--controls", help="Kinds, as reinit,shuffle,random,random-erk,small-dense,trained-signs.")
    ] = "",
    levels: Annotated[
        str, typer.Option("--levels", help="Levels to make controls for, as 3,7; the last if not given.")
    ] = "",
    elsewhere: Annotated[str, typer.Option("--on", help="The name of another data set to train the controls on.")] = "",
    head: Annotated[
        str, typer.Option("--head", help="On other data: fresh draws the output layer anew, for other classes.")
    ] = "ticket",
    survivors: Annotated[bool, typer.Option("--survivors", help="Train the frozen weights that were kept.")] = False,
    model: Model = None,
    data: Data = None,
    loss: Loss = None,
    metric: Metric = None,
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    max_minutes: MaxMinutes = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train or evaluate the controls of runs, as fresh weights or shuffled masks; results stay in their folders."""
    chosen = [word for word in kinds.split(",") if word]
    words = [word for word in levels.split(",") if word]
    if not all(word.isdecimal() for word in words):
        raise RequestError(f"--levels {levels}: expected numbers, as 3,7")
    asked: dict[str, Any] = {
        "kinds": chosen or None, "levels": [int(word) for word in words] or None, "model": model, "data": data,
        "loss": loss, "metric": metric, "elsewhere": elsewhere or None, "head": head, "survivors": survivors,
    }  # fmt: skip
    folders = _check(run, runs, asked)
    made: dict[str, list[ControlRow]] = {}
    with stop_told(), Progress() as progress:
        for folder in folders:
            errors().print(harmless(f"controls of {folder}"), markup=False, highlight=False, soft_wrap=True)
            progress.label("loading PyTorch, the data and the network")
            made[str(folder)] = running.controls.controls(folder, progress=progress, **asked)
    if as_json:
        one = len(folders) == 1
        print_json({"rows": made[str(folders[0])]} if one else {"runs": {name: {"rows": made[name]} for name in made}})
        return
    for folder in folders:
        if len(folders) > 1:
            output().print(harmless(str(folder)), markup=False, highlight=False, soft_wrap=True)
        _show(folder, made[str(folder)], chosen)


def _check(names: list[str], runs: str, asked: dict[str, Any]) -> list[Path]:
    """The folders of runs, after all that is wrong with the request for any of them.

    Raises:
        RequestError: every problem; nothing has been done.
    """
    problems = Problems()
    folders = [problems.attempt(partial(find_run, name, runs)) for name in dict.fromkeys(names)]
    if len(folders) > 1:
        for folder in filter(None, folders):
            problems.attempt(partial(running.controls.check_controls, folder, **asked))
    problems.raise_if_any()
    return list(dict.fromkeys(filter(None, folders)))


def _show(folder: Path, rows: list[ControlRow], chosen: list[str]) -> None:
    """Print the controls of a run."""
    shown, config = metric_of(read_record(folder, SUMMARY)), read_config(folder)
    columns = ("control", "data", "level", "density", "kept", f"test {shown.column}", f"val. {shown.column}")
    cells = [_cells(row, shown) for row in rows]
    # Of most runs the data are the run's own, and many have no levels.
    idle = {"data": all(row["data"] == config.data for row in rows), "level": all(row["level"] is None for row in rows)}
    told = [place for place, column in enumerate(columns) if not idle.get(column)]
    print_table([columns[place] for place in told], [[row[place] for place in told] for row in cells])
    if not chosen and (shape := shape_of(config)) != "weight":
        line = f"not made for units of {shape}, because they move single weights: {', '.join(MOVING)}"
        output().print(line, markup=False, highlight=False, soft_wrap=True)


def _cells(row: ControlRow, metric: contract_metric.Metric) -> tuple[Any, ...]:
    how = "trained" if row["trained"] else "not trained"
    return (
        f"{row['control']}, {how}", row["data"], row["level"], f"{row['density']:.4g}", row["kept"],
        *((metric_of(row) if "metric" in row else metric).show(value_of(row, split)) for split in ("test", "val")),
    )  # fmt: skip
