"""`ticket resume`: continue a stopped run."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import running
from ..runs import ranks
from ..runs.folders import find_run, is_finished
from .search import print_summary
from .terminal import output, print_json, stop_told
from .tickets import Data, Loss, MaxMinutes, Metric, Model


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("resume")(resume)


def resume(
    run: Annotated[str, typer.Argument(help="The folder or name of a run.")],
    model: Model = None,
    data: Data = None,
    loss: Loss = None,
    metric: Metric = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            help="Go on on this device: cpu, cuda or mps. If not given, on that of the run, or where it is not there "
            "on one that is; the bytes of the result then differ.",
        ),
    ] = None,
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    max_minutes: MaxMinutes = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Continue a stopped run; the result is that of a run that was never stopped."""
    with ranks.together(device or "auto") as group:
        folder, done = ranks.first(lambda: (found := find_run(run, runs), is_finished(found)))
        with stop_told(folder):
            finished = running.search.resume(folder, model, data, loss=loss, metric=metric, device=device)
    if not group.first:
        return
    if as_json:
        print_json(finished.summary)
        return
    if done:
        output().print(f"the run {folder} is finished already", highlight=False)
    print_summary(finished)
