"""`ticket inspect --activations`: which ReLU units of a ticket are active on its data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import analysis, questions
from .terminal import errors, output, print_json, print_sentence, print_table

if TYPE_CHECKING:
    from supermask import Activity

    from ..questions.activations import Activations


ShowsActivations = Annotated[
    bool,
    typer.Option(
        "--activations",
        help="Run the network on its data, and show which ReLU units are active, and how many of the kept weights take "
        "part on an average input, beside the dense network; the options below go with this.",
    ),
]
Split = Annotated[str, typer.Option("--split", help="The inputs: validation or test.")]
Inputs = Annotated[
    int | None, typer.Option("--inputs", help="How many inputs of the split, from its first; all if not given.")
]
Beside = Annotated[
    str | None, typer.Option("--beside", help="Another ticket or run of the same network, in place of the dense one.")
]
DataDir = Annotated[str | None, typer.Option(help="A folder that is searched for the data first.")]
Plot = Annotated[
    str, typer.Option("--plot", help="Draw how many units are active how often to this file, .png, .svg or .pdf.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a picture that exists already.")]


def show_activations(path: Any, asked: dict[str, Any], plot: str, overwrite: bool, as_json: bool) -> None:
    """Measure a ticket, print what was found, and draw it where `plot` names a file."""
    if plot:
        analysis.plots.check_path(plot, overwrite)
    found = questions.activations.activations(path, **asked)
    if plot:
        questions.unit_plot.plot_units(found, plot, overwrite=overwrite)
        errors().print(f"wrote {plot}", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print_json(found.to_dict())
        return
    print_sentence(found.headline, "bold")
    output().print(f"\nbeside it: {found.what}", markup=False, highlight=False, soft_wrap=True)
    _print_units(found)
    _print_weights(found)
    for sentence in found.remarks:
        print_sentence(sentence, "yellow")


def _print_units(found: Activations) -> None:
    columns = ["ReLU", "units", "active", "never", "emptied", "both", "always"]
    columns += ["beside: active", "never", "always"] if found.beside is not None else []
    rows = []
    for number, each in enumerate(found.ticket.calls):
        emptied = both = None
        if each.emptied is not None:
            emptied, both = int(each.emptied.sum()), int((each.emptied & each.never).sum())
        row = [
            each.name, each.units, f"{100 * float(each.share.mean()):.1f} %", int(each.never.sum()), emptied, both,
            int(each.always.sum()),
        ]  # fmt: skip
        if found.beside is not None:
            other = found.beside.calls[number]
            row += [f"{100 * float(other.share.mean()):.1f} %", int(other.never.sum()), int(other.always.sum())]
        rows.append(row)
    print_table(columns, rows)


def _print_weights(found: Activations) -> None:
    beside = None if found.beside is None else {each.name: each for each in found.beside.layers}
    columns = ["masked tensor", "weights", "kept", "density", "in effect"]
    columns += ["beside: in effect"] if beside is not None else []
    rows = []
    for each in found.ticket.layers:
        row = [each.name, each.size, each.kept, *_densities(each.kept, each.in_effect, each.size)]
        if beside is not None:
            other = beside.get(each.name)
            row.append("" if other is None else f"{other.in_effect / other.size:.4f}")
        rows.append(row)
    rows.append(["all", *_all(found.ticket), *([] if found.beside is None else [f"{found.beside.in_effect:.4f}"])])
    print_table(columns, rows)


def _all(found: Activity) -> tuple[Any, ...]:
    size, kept = sum(each.size for each in found.layers), sum(each.kept for each in found.layers)
    return size, kept, f"{found.density:.4f}", f"{found.in_effect:.4f}"


def _densities(kept: int, in_effect: float, size: int) -> tuple[str, str]:
    return f"{kept / max(1, size):.4f}", f"{in_effect / max(1, size):.4f}"
