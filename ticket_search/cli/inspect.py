"""`ticket inspect`: the content of a ticket file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import supermask
from supermask import tickets

from .. import analysis
from ..contract.errors import RequestError
from ..contract.flags import flag
from .activations import Beside, DataDir, Inputs, Overwrite, Plot, ShowsActivations, Split, show_activations
from .terminal import counted, harmless, output, percent, print_json, print_sentence, print_table
from .tickets import Data, Model, Task, TicketName, ticket_path

if TYPE_CHECKING:
    from supermask import State, Ticket


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect")(inspect)


def inspect(
    ticket: TicketName,
    task: Task = None,
    activations: ShowsActivations = False,
    split: Split = "validation",
    inputs: Inputs = None,
    beside: Beside = None,
    model: Model = None,
    data: Data = None,
    data_dir: DataDir = None,
    plot: Plot = "",
    overwrite: Overwrite = False,
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show the content of a ticket: its origin, the density of each tensor, and its size beside the dense network's."""
    asked = {
        "split": split, "inputs": inputs, "beside": beside, "model": model, "data": data, "data_dir": data_dir,
    }  # fmt: skip
    if not activations:
        _refuse(asked | {"plot": plot or None, "overwrite": overwrite or None})
    path = ticket_path(ticket, runs)
    if activations:
        show_activations(path, {**asked, "task": task, "runs": runs}, plot, overwrite, as_json)
        return
    _show_content(path, task, as_json)


def _show_content(path: Path, task: str | None, as_json: bool) -> None:
    """Print what a ticket file holds, or what it holds of one of its tasks."""
    found = supermask.load(path)
    source: Path | bytes = path
    if task is not None:
        found = found.task(task)
        source = supermask.pack(found)
    size = analysis.file_size.size_of_file(source, found)
    described = describe(found, size.sizes.total)
    if as_json:
        print_json(described | ({"larger_than": size.larger_than, "larger_because": size.why} if size.why else {}))
        return
    layers, tasks = described.pop("layers"), described.pop("tasks", [])
    print_table(("ticket", ""), [(key.replace("_", " "), _text(value)) for key, value in described.items()])
    if size.why:
        print_sentence(size.why, "yellow")
    if tasks:
        print_table(
            ("task", "kept", "density", "bytes of its masks", "test accuracy"),
            [
                (
                    row["task"],
                    row["kept"],
                    f"{row['density']:.4f}",
                    row.get("mask_bytes"),
                    _text(row.get("test_accuracy", "")),
                )
                for row in tasks
            ],
        )
        return
    _show_layers(layers)


def _show_layers(layers: list[dict[str, Any]]) -> None:
    print_table(
        ("masked tensor", "shape", "weights", "kept", "density"),
        [
            (row["name"], "x".join(map(str, row["shape"])), row["size"], row["kept"], f"{row['density']:.4f}")
            for row in layers
        ],
    )
    if empty := [row["name"] for row in layers if row["kept"] == 0]:
        text = f"warning: the mask keeps no weight of {', '.join(empty)}, so no signal passes there"
        output().print(harmless(text), style="yellow", markup=False, highlight=False)


def _refuse(asked: dict[str, Any]) -> None:
    """Refuse options of --activations that were given without it."""
    idle = [key for key, value in asked.items() if value is not None and (key, value) != ("split", "validation")]
    if idle:
        raise RequestError([f"{flag(key)} goes with --activations" for key in idle])


def describe(ticket: Ticket, file_bytes: int) -> dict[str, Any]:
    """What `ticket inspect` shows, without building the model or decoding a mask, whatever the metadata hold."""
    meta = ticket.meta
    described: dict[str, Any] = {key: meta[key] for key in _PROVENANCE if key in meta}
    described |= {"density": ticket.density, "kept": ticket.kept, "weights": ticket.masks.size}
    accuracies = meta.get("accuracy")
    for state, accuracy in accuracies.items() if isinstance(accuracies, dict) else ():
        if isinstance(accuracy, dict):
            described |= {f"{split}_accuracy_{state}": value for split, value in accuracy.items()}
    described |= _describe_metric(meta.get("metric"))
    for state, source in ticket.states.items():
        described[f"{state}_weights"] = _sources(source)
    if ticket.backbone is not None:
        described["backbone"] = _sources(ticket.backbone)
    if sets := [name for name in ticket.sets if name not in ticket.parts]:
        described["mask_sets"] = sets
    if ticket.levels:
        described["levels"] = list(ticket.levels)
    described["file_bytes"] = file_bytes
    masks = [ticket.sets[name] for name in ticket.tasks] or [ticket.masks]
    if sizes := [each.coded_bytes for each in masks if isinstance(each, tickets.lazy.CodedMasks)]:
        described["mask_bytes"] = sum(sizes)
    # Statistics of norms are stored too, but are not parameters that a mask could have dropped.
    parameters = meta.get("parameters")
    if isinstance(parameters, int) and parameters >= ticket.masks.size > 0:
        described["dense_bytes"] = 4 * parameters * max(1, len(ticket.tasks))
        described["times_smaller"] = round(described["dense_bytes"] / file_bytes, 2)
        described["density_of_all_parameters"] = (parameters - ticket.masks.size + ticket.kept) / parameters
    if ticket.tasks:
        return described | {"tasks": [_describe_task(ticket, name) for name in ticket.tasks], "layers": []}
    return described | {"layers": [row._asdict() for row in ticket.masks.report()]}


def _describe_task(ticket: Ticket, name: str) -> dict[str, Any]:
    """What one of several tasks keeps and how good it is, without decoding its masks."""
    masks, meta = ticket.sets[name], ticket.parts[name].meta
    accuracy = meta.get("accuracy")
    final = accuracy.get("final") if isinstance(accuracy, dict) else None
    found = {f"{split}_accuracy": value for split, value in final.items()} if isinstance(final, dict) else {}
    if isinstance(masks, tickets.lazy.CodedMasks):
        found["mask_bytes"] = masks.coded_bytes
    return {"task": name, "kept": masks.kept, "density": masks.density, **found}


def _describe_metric(said: Any) -> dict[str, Any]:
    """What a ticket says of another metric than accuracy, where that can be read."""
    values = said.get("values") if isinstance(said, dict) else None
    if not isinstance(values, dict):
        return {}
    described = {
        key: said[key] for key in ("name", "direction", "unit") if isinstance(said.get(key), str) and said[key]
    }
    found = {
        f"{split}_metric_{state}": value
        for state, each in values.items()
        if isinstance(each, dict)
        for split, value in each.items()
    }
    return {"metric": described, **found}


# The metadata that tell where a ticket comes from.
_PROVENANCE = ("method", "paper", "model", "architecture", "data", "seed", "level", "parent", "source")


def _sources(state: State) -> str:
    weights = [draw for draw in state.drawn.values() if draw.init not in ("zeros", "ones")]
    inits = sorted({f"{draw.init} (seed {draw.seed}, scale {draw.scale:.4g})" for draw in weights})
    parts = [f"drawn: {', '.join(inits)}"] if inits else []
    parts += [f"signs: {counted(len(state.signs), 'tensor')}"] if state.signs else []
    return (
        "; ".join(parts + ([f"stored: {counted(len(state.stored), 'tensor')}"] if state.stored else []))
        or "zeros and ones"
    )


def _text(value: Any) -> str:
    if isinstance(value, dict):
        given = [(key, inner) for key, inner in value.items() if inner not in ({}, [], None)]
        return ", ".join(f"{key} {_text(inner)}" for key, inner in sorted(given, key=lambda pair: pair[0] != "name"))
    if isinstance(value, list):
        return ", ".join(_text(inner) for inner in value)
    if isinstance(value, float):
        return percent(value) if value > 1 else f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)
