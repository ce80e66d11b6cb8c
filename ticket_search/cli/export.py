"""`ticket export`: a ticket as a file that other programs read."""

from __future__ import annotations

from typing import Annotated

import typer

from .terminal import output as screen


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export)


def export(
    ticket: Annotated[str, typer.Argument(help="The ticket file, or a run.")],
    to: Annotated[
        str,
        typer.Option("--to", help="safetensors, state-dict, npz, compact, torch-prune, hidden-networks or open-lth."),
    ],
    output: Annotated[str, typer.Option("--output", help="The file to write; it must not exist.")],
    state: Annotated[str, typer.Option(help="The network at its start, or final.")] = "final",
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
) -> None:
    """Write a ticket's network, masks applied, for other programs."""
    from .tickets import read_ticket

    found = read_ticket(ticket, runs)
    from ..export import export as write

    path = write(found, to, output, state)
    screen().print(f"wrote {path} ({path.stat().st_size:,} bytes)", highlight=False, soft_wrap=True)
