"""`ticket export`: a ticket's network as a file that other programs read."""

from __future__ import annotations

from typing import Annotated

import typer

import supermask

from .. import deploy, running
from .terminal import harmless
from .terminal import output as screen
from .tickets import Data, InputShape, Model, Task, TicketName, of_task, read_numbers, ticket_path


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export)


def export(
    ticket: TicketName,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="Format: onnx, torch-export, compact, safetensors, state-dict, npz, torch-prune, hidden-networks or "
            "open-lth.",
        ),
    ],
    output: Annotated[str, typer.Option("--output", help="The file to write, which must not exist.")],
    state: Annotated[str, typer.Option(help="The weights of the network: start or final.")] = "final",
    task: Task = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="For onnx and torch-export: remove units without effect first.")
    ] = False,
    model: Model = None,
    data: Data = None,
    data_dir: Annotated[str | None, typer.Option(help="A folder that is searched for the data first.")] = None,
    input_shape: InputShape = "",
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
) -> None:
    """Write a ticket's network, with its masks applied, in the format of another program."""
    shape = read_numbers("--input-shape", input_shape)
    source = ticket_path(ticket, runs)
    found = of_task(supermask.load(source), task)
    # A file of tensors needs neither network nor data: there what was typed of them is a problem, which `export` tells.
    built = to in deploy.export.BUILT
    needs = ["model", *(["data"] if data else [])] if built else []
    code = running.ticket_code.find_code(found, source, needs, model=model, data=data)
    own = running.ticket_code.find_factory(code, model) if built else model
    samples = running.ticket_code.find_samples(found, code, data, data_dir) if built and not shape else data
    path = deploy.export.export(
        found, to, output, state, compact=compact, model=own, data=samples, input_shape=shape or None,
        say=lambda line: screen().print(harmless(line), highlight=False, soft_wrap=True, markup=False),
    )  # fmt: skip
    screen().print(f"wrote {path} ({path.stat().st_size:,} bytes)", highlight=False, soft_wrap=True)
