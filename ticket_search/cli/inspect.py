"""`ticket inspect`: what is in a ticket."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .terminal import output, percent, print_json, print_table

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from supermask import Draw, Ticket


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect")(inspect)


def inspect(
    ticket: Annotated[str, typer.Argument(help="The ticket file, or a run.")],
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a ticket: where it comes from, its density per tensor, its size beside the dense network's."""
    import supermask

    from .tickets import ticket_path

    path = ticket_path(ticket, runs)
    described = describe(supermask.load(path), path)
    if as_json:
        print_json(described)
        return
    layers = described.pop("layers")
    print_table(("ticket", ""), [(key.replace("_", " "), _text(value)) for key, value in described.items()])
    print_table(
        ("masked tensor", "shape", "weights", "kept", "density"),
        [
            (row["name"], "x".join(map(str, row["shape"])), row["size"], row["kept"], f"{row['density']:.4f}")
            for row in layers
        ],
    )
    if empty := [row["name"] for row in layers if row["kept"] == 0]:
        output().print(f"warning: nothing is kept of {', '.join(empty)}: no signal passes there", style="yellow")


def describe(ticket: Ticket, path: Path) -> dict[str, Any]:
    """What `ticket inspect` shows, without building the model."""
    meta = ticket.meta
    file_bytes = path.stat().st_size
    described: dict[str, Any] = {
        key: meta[key] for key in ("method", "paper", "model", "data", "seed", "level") if key in meta
    }
    described |= {"density": ticket.density, "kept": ticket.masks.kept, "weights": ticket.masks.size}
    for state, accuracy in meta.get("accuracy", {}).items():
        described |= {f"{split}_accuracy_{state}": value for split, value in accuracy.items()}
    for state, source in ticket.states.items():
        described[f"{state}_weights"] = _sources(source.drawn.values(), source.stored)
    described["file_bytes"] = file_bytes
    # Parameters only: statistics of norms are stored, but are not weights that a mask could have dropped.
    if isinstance(dense := meta.get("parameters"), int) and dense:
        described["dense_bytes"] = 4 * dense
        described["times_smaller"] = round(4 * dense / file_bytes, 2)
        described["density_of_all_parameters"] = (dense - ticket.masks.size + ticket.masks.kept) / dense
    return described | {"layers": [row._asdict() for row in ticket.masks.report()]}


def _sources(draws: Iterable[Draw], stored: Mapping[str, Tensor]) -> str:
    weights = [draw for draw in draws if draw.init not in ("zeros", "ones")]
    inits = sorted({f"{draw.init} (seed {draw.seed}, scale {draw.scale:.4g})" for draw in weights})
    parts = [f"drawn: {', '.join(inits)}"] if inits else []
    return "; ".join(parts + ([f"stored: {len(stored)} tensors"] if stored else [])) or "zeros and ones"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return percent(value) if value > 1 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
