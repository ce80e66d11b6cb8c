"""`ticket study`: reproduce a published figure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import sweeps
from ..contract.errors import RequestError, unknown
from ..contract.recipes import find_study
from ..sweeps.study import Study, page_files, part_file, read_study, write_study
from .sweep import Launch, carry_out_sweep
from .terminal import errors, output
from .tickets import Address, Engine, Jobs, MaxMinutes, OwnData, OwnLoss, OwnMetric, OwnModel


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("study")(study)


def study(
    file: Annotated[str, typer.Argument(help="The name of a study of this package, or a .toml file.")],
    jobs: Jobs = None,
    engine: Engine = "local",
    address: Address = None,
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    max_minutes: MaxMinutes = None,
    results: Annotated[str, typer.Option("--results", help="The folder to write the page to.")] = "results",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page that exists already.")] = False,
    part: Annotated[
        str | None,
        typer.Option("--sweep", help="Of a study that joins several sweeps, carry out this one and write the page."),
    ] = None,
    model: OwnModel = None,
    data: OwnData = None,
    loss: OwnLoss = None,
    metric: OwnMetric = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done and how long it takes.")] = False,
) -> None:
    """Carry out the unfinished runs of a study and write its page: figure, tables, verdict, published numbers.

    A study that joins several sweeps writes the measurements of each as CSV and its page from them: a sweep whose CSV
    is there is not carried out again, unless --sweep names it.
    """
    launch = Launch(runs, jobs, engine, address)
    asked = read_study(find_study(file), {"model": model, "data": data, "loss": loss, "metric": metric})
    todo = _unmeasured(asked, part, results)
    files = page_files(asked, results) + [part_file(asked, name, results) for name in todo]
    there = [str(path) for path in files if path.exists()]
    if there and not (overwrite or dry_run):
        raise RequestError(f"{', '.join(there)} exist already: add --overwrite, or choose another folder by --results")
    output().print(f"{asked.title}\n{asked.question}\n(budget {asked.hours:g} h on two cores)", highlight=False)
    written: list[Path] = []
    if asked.sweep is not None:
        folders = carry_out_sweep(asked.sweep, launch, dry_run, as_json=False)
        written = [] if dry_run else write_study(asked, folders, results)
    for name in todo:
        folders = carry_out_sweep(asked.parts[name], launch, dry_run, as_json=False, answers=False)
        if not dry_run:
            written.append(sweeps.table_page.write_part(asked, name, folders, Path(runs), results))
    if asked.parts and not dry_run:
        written += sweeps.table_page.write_table(asked, results)
    for path in written:
        errors().print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def _unmeasured(asked: Study, part: str | None, results: str) -> list[str]:
    """The sweeps to carry out, of a study that joins several: the one that is named, or all that have no measurements.

    Raises:
        RequestError: there is no such sweep.
    """
    if part is None:
        return [name for name in asked.parts if not part_file(asked, name, results).exists()]
    if part not in asked.parts:
        none = f"--sweep {part}: the study {asked.name} does not join several sweeps"
        raise RequestError(unknown("sweep", part, asked.parts) if asked.parts else none)
    return [part]
