"""`ticket export`: a ticket as a file that other programs read."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import deploy
from .terminal import output as screen
from .tickets import InputShape, Model, read_numbers, read_ticket


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export)


def export(
    ticket: Annotated[str, typer.Argument(help="The ticket file, or a run.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="onnx, torch-export, compact, safetensors, state-dict, npz, torch-prune, hidden-networks or open-lth.",
        ),
    ],
    output: Annotated[str, typer.Option("--output", help="The file to write; it must not exist.")],
    state: Annotated[str, typer.Option(help="The network at its start, or final.")] = "final",
    compact: Annotated[
        bool, typer.Option("--compact", help="Of onnx and torch-export: without what the masks leave no effect.")
    ] = False,
    model: Model = None,
    input_shape: InputShape = "",
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
) -> None:
    """Write a ticket's network, masks applied, for other programs."""
    shape = read_numbers("--input-shape", input_shape)
    found = read_ticket(ticket, runs)
    path = deploy.export.export(found, to, output, state, compact=compact, model=model, input_shape=shape or None)
    screen().print(f"wrote {path} ({path.stat().st_size:,} bytes)", highlight=False, soft_wrap=True)
