"""`ticket evaluate`: the accuracy of a ticket."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import training
from ..contract.errors import RequestError
from .terminal import percent, print_json, print_table
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
    """Measure a ticket's accuracy on the test and validation splits, in fp32."""
    found = read_ticket(ticket, runs)
    name = data or found.meta.get("data")
    if not isinstance(name, str):
        raise RequestError(f"{ticket} does not say what data it was found on; name it by --data")
    measured = training.evaluation.evaluate_ticket(found, name, data_dir, state)
    if as_json:
        print_json({"ticket": ticket, "data": name, "state": state, "density": found.density, **measured})
        return
    accuracies = (percent(measured["test_accuracy"]), percent(measured["val_accuracy"]))
    print_table(
        ("data", "state", "density", "test %", "validation %", "test loss"),
        [(name, state, f"{found.density:.4g}", *accuracies, f"{measured['test_loss']:.4f}")],
    )
