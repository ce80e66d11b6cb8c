"""`ticket card`: the model card of a ticket."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from supermask import tickets

from .. import analysis
from ..contract.errors import RequestError
from ..runs.folders import find_run
from ..runs.outputs import write_output
from .terminal import errors, harmless
from .tickets import TicketName, ticket_path

License = Annotated[
    str, typer.Option("--license", help="The hub's identifier of a licence, as apache-2.0, mit or other.")
]
Companions = Annotated[
    list[str] | None,
    typer.Option("--with", help="A run to compare it with; if none is given, its seeds and dense ones beside it."),
]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("card")(card)


def card(
    ticket: TicketName,
    place: Annotated[
        str, typer.Argument(help="Where it will be on the hub, as hf:USER/NAME.", show_default=False)
    ] = "",
    output: Annotated[str, typer.Option("--output", help="Write the card to this file, not to the screen.")] = "",
    license: License = "",
    companions: Companions = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists already.")] = False,
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
) -> None:
    """Write the model card of a ticket, a README.md for the hub: what it is, how good, what it cost, how to load it."""
    if output and Path(output).exists() and not overwrite:
        raise RequestError(f"--output {output}: the file exists already; choose another name, or add --overwrite")
    if output and not Path(output).parent.is_dir():
        raise RequestError(f"--output {output}: there is no folder {Path(output).parent}")
    where = tickets.hub.read_place(place) if place else None
    text = write_card(ticket_path(ticket, runs), where, license, companions, runs)
    if not output:
        typer.echo(text, nl=False)
        return
    write_output(output, text)
    errors().print(f"wrote {output}", markup=False, highlight=False, soft_wrap=True)


def write_card(
    path: Path, place: tickets.hub.Place | None, license: str, companions: list[str] | None, runs: str
) -> str:
    """The text of a card; what it lacks is told on standard error.

    Raises:
        RequestError: see `make_card`; or a run to compare with that is not there.
    """
    beside = None if companions is None else [find_run(name, runs) for name in companions]
    made = analysis.card.make_card(path, place=place, license=license, companions=beside)
    for note in made.notes:
        errors().print(f"note: {harmless(note)}", markup=False, highlight=False, soft_wrap=True)
    return made.text
