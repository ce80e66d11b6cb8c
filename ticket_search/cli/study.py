"""`ticket study`: reproduce a published figure."""

from __future__ import annotations

from typing import Annotated

import typer

from ..contract.errors import RequestError
from ..contract.flags import find_study
from ..sweeps.study import page_files, read_study, write_study
from .sweep import carry_out_sweep
from .terminal import errors, output
from .tickets import OwnData, OwnLoss, OwnMetric, OwnModel


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("study")(study)


def study(
    file: Annotated[str, typer.Argument(help="The name of a study of this package, or a .toml file.")],
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="The number of runs at a time.")] = 1,
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    results: Annotated[str, typer.Option("--results", help="The folder to write the page to.")] = "results",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page that exists already.")] = False,
    model: OwnModel = None,
    data: OwnData = None,
    loss: OwnLoss = None,
    metric: OwnMetric = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done and how long it takes.")] = False,
) -> None:
    """Carry out the unfinished runs of a study and write its page: figure, tables, verdict, published numbers."""
    asked = read_study(find_study(file), {"model": model, "data": data, "loss": loss, "metric": metric})
    there = [str(path) for path in page_files(asked, results) if path.exists()]
    if there and not (overwrite or dry_run):
        raise RequestError(f"{', '.join(there)} exist already: add --overwrite, or choose another folder by --results")
    output().print(f"{asked.title}\n{asked.question}\n(budget {asked.hours:g} h on two cores)", highlight=False)
    folders = carry_out_sweep(asked.sweep, runs, jobs, dry_run, as_json=False)
    if dry_run:
        return
    for path in write_study(asked, folders, results):
        errors().print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
