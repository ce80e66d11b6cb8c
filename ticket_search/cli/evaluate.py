"""`ticket evaluate`: the metric of a ticket on held-out data."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import training
from ..contract.errors import RequestError
from ..contract.metric import metric_of, value_of
from .terminal import print_json, print_table
from .tickets import read_ticket


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate")(evaluate)


def evaluate(
    ticket: Annotated[str, typer.Argument(help="A ticket file, or the folder or name of a run.")],
    data: Annotated[str | None, typer.Option(help="A data set instead of the ticket's own.")] = None,
    state: Annotated[str, typer.Option(help="The weights of the network: start or final.")] = "final",
    data_dir: Annotated[str | None, typer.Option(help="A folder that is searched for the data first.")] = None,
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure a ticket by its metric, such as accuracy, on the test and validation splits, in fp32."""
    found = read_ticket(ticket, runs)
    name = data or found.meta.get("data")
    if not isinstance(name, str):
        raise RequestError(f"{ticket} does not say what data it was found on; name it by --data")
    measured = training.evaluation.evaluate_ticket(found, name, data_dir, state)
    if as_json:
        print_json({"ticket": ticket, "data": name, "state": state, "density": found.density, **measured})
        return
    metric = metric_of(measured)
    values = [metric.show(value_of(measured, split)) for split in ("test", "val")]
    print_table(
        ("data", "state", "density", f"test {metric.column}", f"validation {metric.column}", "test loss"),
        [(name, state, f"{found.density:.4g}", *values, f"{measured['test_loss']:.4f}")],
    )
