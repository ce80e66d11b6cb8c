"""Arguments of several commands: tickets by file, run folder, run name or name on the hub; lists of numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import supermask
from supermask import tickets

from ..contract import stops
from ..contract.errors import RequestError, several_tasks
from ..runs.folders import check_ticket_file, describe_missing_ticket, find_run, list_runs
from ..runs.names import TICKET

if TYPE_CHECKING:
    from supermask import Ticket


TicketName = Annotated[
    str, typer.Argument(help="A ticket file, the folder or name of a run, or hf:USER/NAME, a ticket on the hub.")
]
# Code of the user's own. A run that was made here remembers it; of a run or a file of someone else it is imported only
# where it is typed.
Model = Annotated[
    str | None,
    typer.Option("--model", help="package.module:function that builds the network, in place of the recorded one."),
]
Data = Annotated[
    str | None,
    typer.Option("--data", help="A data set, or package.module:function that reads one, in place of the recorded one."),
]
Loss = Annotated[
    str | None, typer.Option("--loss", help="package.module:function of the loss, in place of the recorded one.")
]
Metric = Annotated[
    str | None, typer.Option("--metric", help="package.module:function of the metric, in place of the recorded one.")
]
Task = Annotated[
    str | None, typer.Option("--task", help="One of the tasks of a ticket of several; `ticket inspect` names them.")
]
# The same, of a file that lists runs.
OwnModel = Annotated[
    str | None, typer.Option("--model", help="package.module:function that the file may import as a model.")
]
OwnData = Annotated[
    str | None, typer.Option("--data", help="package.module:function that the file may import as data.")
]
OwnLoss = Annotated[
    str | None, typer.Option("--loss", help="package.module:function that the file may import as a loss.")
]
OwnMetric = Annotated[
    str | None, typer.Option("--metric", help="package.module:function that the file may import as a metric.")
]


def _stop_after(minutes: float | None) -> float | None:
    if minutes is not None:
        stops.stop_after(minutes)
    return minutes


# Armed when it is read: the time counts from the start of the command.
MaxMinutes = Annotated[
    float | None,
    typer.Option(
        "--max-minutes",
        min=0,
        callback=_stop_after,
        help="Save and stop after this many minutes, with exit status 75; the same command goes on.",
    ),
]
# How the runs of a sweep are carried out.
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs", min=1, help="The number of runs at a time: if not given 1, on a cluster as many as there is room for."
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        help="What carries out the runs: local (processes of this machine), slurm or ray. The file says under "
        "[engine.slurm] and [engine.ray] what each run asks of it, as partition, minutes and gpus.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", help="HOST:PORT of a Ray cluster, or auto for the one here; if not given, one is started here."
    ),
]
InputShape = Annotated[
    str, typer.Option("--input-shape", help="Shape of one sample, as 3,32,32, in place of that of the data.")
]


def ticket_path(name: str, runs: str) -> Path:
    """The ticket file that a path, the name of a run or a name on the hub stands for.

    Raises:
        RequestError: there is no such file or run, or the run is not finished.
        TicketError: the name on the hub is none, or its file is no whole ticket.
        HubError: the ticket is not to be had from the hub.
    """
    if tickets.hub.is_place(name):
        place = tickets.hub.read_place(name)
        supermask.load(name)  # what is wrong with the file is told by its name on the hub, not by one in the cache
        return tickets.hub.fetch(place)
    if Path(name).is_file():
        check_ticket_file(Path(name))
        return Path(name)
    try:
        folder = find_run(name, runs)
    except RequestError as error:
        told = "" if Path(name).is_dir() and list_runs(name) else f"{name} is neither a ticket file nor a run; "
        raise RequestError(f"{told}{error}") from None
    if not (folder / TICKET).exists():
        raise RequestError(describe_missing_ticket(folder))
    return folder / TICKET


def of_task(ticket: Ticket, task: str | None) -> Ticket:
    """The ticket itself, or where it is of several tasks that of the one that is chosen.

    Raises:
        RequestError: it is of several tasks, and none is chosen.
        TicketError: there is no such task.
    """
    if task is not None:
        return ticket.task(task)
    if ticket.tasks:
        raise RequestError(several_tasks(ticket.tasks))
    return ticket


def read_ticket(name: str, runs: str) -> Ticket:
    """Load the ticket that a path, the name of a run or a name on the hub stands for.

    Raises:
        RequestError: there is no such file or run, or the run is not finished.
        TicketError: the file is not a complete ticket, or the name on the hub is none.
        HubError: the ticket is not to be had from the hub.
    """
    return supermask.load(ticket_path(name, runs))


def read_numbers(option: str, text: str) -> list[int]:
    """The positive numbers of a text such as `1,64,512`; an empty list for an empty text.

    Raises:
        RequestError: the text holds anything else.
    """
    words = [word.strip() for word in text.split(",")] if text else []
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise RequestError(f"{option} {text}: expected positive numbers, as 3,32,32")
    return [int(word) for word in words]
