"""How many ReLU units are active on which share of the inputs: a histogram for each layer, beside the dense network."""

from __future__ import annotations

from pathlib import Path

import numpy
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..analysis.curves import COLOURS, DPI, SMALL
from ..analysis.plots import check_path, render
from ..runs.outputs import write_output
from .activations import Activations

_BINS = 20
_IN_A_ROW = 3


def plot_units(found: Activations, path: str | Path, *, overwrite: bool = False) -> Path:
    """Draw for each ReLU how many of its units are active on which share of the inputs.

    Units that are never active are a bar of their own at the left, so that they are not hidden among rare ones.

    Raises:
        RequestError: another suffix than those of pictures, a folder that does not exist, or a file that exists.
    """
    path = check_path(path, overwrite)
    number = len(found.ticket.calls)
    columns = min(number, _IN_A_ROW)
    rows = -(-number // columns)
    figure = Figure(figsize=(1.2 + 3.1 * columns, 0.9 + 2.2 * rows), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False)
    # The first bin holds what is exactly 0, the others shares above it.
    edges = numpy.linspace(0, 1, _BINS + 1)
    width = 1 / _BINS
    for place, panel in enumerate(panels.flat):
        if place >= number:
            panel.set_axis_off()
            continue
        each = found.ticket.calls[place]
        series = [("ticket", each.share)]
        if found.beside is not None:
            series.append((found.what, found.beside.calls[place].share))
        for index, (label, share) in enumerate(series):
            values = share.numpy()
            counts, _ = numpy.histogram(values[values > 0], edges)
            heights = [int((values == 0).sum()), *counts]
            left = [-1.5 * width, *edges[:-1]]
            panel.bar(
                [x + width * (0.28 + 0.44 * index) for x in left], heights, 0.44 * width, color=COLOURS[index],
                label=label if place == 0 else None,
            )  # fmt: skip
        panel.set_title(f"{each.name} ({each.units} units)", fontsize=SMALL + 1, loc="left")
        panel.set_xticks([-width, 0.25, 0.5, 0.75, 1], ["never", "25 %", "50 %", "75 %", "100 %"], fontsize=SMALL)
        panel.tick_params(axis="y", labelsize=SMALL)
        panel.grid(axis="y", alpha=0.3)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(
        f"share of the {found.ticket.inputs:,} {found.split} inputs on which a unit is active", fontsize=SMALL + 1
    )
    figure.supylabel("units", fontsize=SMALL + 1)
    figure.legend(loc="outside upper center", ncols=2, fontsize=SMALL, frameon=False)
    write_output(path, render(figure, path.suffix.lower()))
    return path
