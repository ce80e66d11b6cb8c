"""`ticket evaluate`: the metric of a ticket on held-out data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

import supermask

from .. import deploy, running, training
from ..contract.errors import RequestError, several_tasks
from ..contract.leave import FLAGS, names_code
from ..contract.metric import metric_of, value_of
from .terminal import print_json, print_table
from .tickets import Data, Loss, Metric, Model, Task, TicketName, ticket_path


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate")(evaluate)


def evaluate(
    ticket: TicketName,
    model: Model = None,
    data: Data = None,
    loss: Loss = None,
    metric: Metric = None,
    state: Annotated[str, typer.Option(help="The weights of the network: start or final.")] = "final",
    task: Task = None,
    data_dir: Annotated[str | None, typer.Option(help="A folder that is searched for the data first.")] = None,
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure a ticket by its metric, such as accuracy, on the test and validation splits, in fp32; of several tasks
    each, and their mean.
    """
    path = ticket_path(ticket, runs)
    found = supermask.load(path)
    if task is not None:
        found = found.task(task)
    name = data or found.meta.get("data")
    if not isinstance(name, str):
        raise RequestError(f"{ticket} does not say what data it was found on; name it by --data")
    code = running.ticket_code.find_code(found, path, FLAGS, model=model, data=data, loss=loss, metric=metric)
    factory = running.ticket_code.find_factory(code, model)
    if factory is not None and found.tasks:
        raise RequestError(several_tasks(found.tasks))
    measured = training.evaluation.evaluate_ticket(
        found,
        running.ticket_code.read_samples(found, code, data_dir) if names_code(name) else name,
        data_dir or code.data_dir,
        state,
        network=None if factory is None else deploy.networks.build_network(found, state, factory),
        config=code,
    )
    if as_json:
        print_json({"ticket": ticket, "data": name, "state": state, "density": found.density, **measured})
        return
    shown = metric_of(measured)

    def cells(row: Mapping[str, Any], density: float) -> tuple[Any, ...]:
        values = [shown.show(value_of(row, split)) for split in ("test", "val")]
        return (name, state, f"{density:.4g}", *values, f"{row['test_loss']:.4f}")

    columns = ("data", "state", "density", f"test {shown.column}", f"val. {shown.column}", "test loss")
    if not found.tasks:
        print_table(columns, [cells(measured, found.density)])
        return
    rows = [(each, *cells(row, found.sets[each].density)) for each, row in measured["tasks"].items()]
    print_table(("task", *columns), [*rows, ("mean", *cells(measured, found.density))])
