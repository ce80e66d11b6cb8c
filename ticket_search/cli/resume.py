"""`ticket resume`: go on with a stopped run."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import running
from ..runs.folders import find_run
from .search import print_summary
from .terminal import output, print_json, stop_told


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("resume")(resume)


def resume(
    run: Annotated[str, typer.Argument(help="The run's folder, or its name.")],
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Go on with a stopped run, as if it had never been stopped."""
    folder = find_run(run, runs)
    done = (folder / "summary.json").exists()
    with stop_told(folder):
        finished = running.search.resume(folder)
    if as_json:
        print_json(finished.summary)
        return
    if done:
        output().print(f"{folder} is finished already", highlight=False)
    print_summary(finished)
