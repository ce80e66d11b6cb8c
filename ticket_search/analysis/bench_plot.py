"""The times of a ticket's variants as bars, in PNG or SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..deploy.bench_result import Bench, Row
from ..runs.outputs import write_output
from .curves import DPI, SMALL
from .plots import check_path, render

_COLOURS = ("#777777", "#56b4e9", "#0072b2", "#d55e00")


def plot_bench(measured: Bench, path: str | Path, *, overwrite: bool = False) -> Path:
    """Draw what `bench` returns: milliseconds per batch, in a panel for each batch size, grouped by engine.

    Bars are medians, and lines reach from the first to the third quartile. Rows without times are not drawn.

    Raises:
        RequestError: another suffix than .png or .svg, a folder that does not exist, or a file that exists already.
    """
    path = check_path(path, overwrite)
    write_output(path, render(_draw(measured.rows), path.suffix.lower()))
    return path


def _draw(rows: Sequence[Row]) -> Figure:
    batches = list(dict.fromkeys(row.batch for row in rows))
    engines = list(dict.fromkeys(row.engine for row in rows))
    variants = list(dict.fromkeys(row.variant for row in rows))
    figure = Figure(figsize=(3.2 * len(batches) + 1, 1.2 + 0.75 * len(engines)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(batches), squeeze=False)[0]
    high = 0.8 / len(variants)
    for panel, batch in zip(panels, batches, strict=True):
        for index, variant in enumerate(variants):
            timed = [row for row in rows if (row.variant, row.batch) == (variant, batch)]
            places = [engines.index(row.engine) - 0.4 + high * (index + 0.5) for row in timed]
            _draw_bars(panel, timed, places, high * 0.9, _COLOURS[index % len(_COLOURS)])
        panel.set_yticks(range(len(engines)), engines if panel is panels[0] else [""] * len(engines), fontsize=SMALL)
        panel.set_ylim(len(engines) - 0.5, -0.5)
        panel.margins(x=0.18)
        panel.set_xlim(left=0)
        panel.set_xlabel(f"ms for a batch of {batch}", fontsize=SMALL)
        panel.tick_params(axis="x", labelsize=SMALL - 1)
        panel.spines[["top", "right"]].set_visible(False)
    handles = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=len(variants), fontsize=SMALL, frameon=False
    )
    return figure


def _draw_bars(panel: Axes, rows: Sequence[Row], places: Sequence[float], high: float, colour: str) -> None:
    """The bars of one variant in all engines, each with its median beside it."""
    timed = [(place, row.median_ms, row.q1, row.q3) for place, row in zip(places, rows, strict=True)]
    known = [
        (place, middle, low, top)
        for place, middle, low, top in timed
        if middle is not None and low is not None and top is not None
    ]
    if not known:
        return
    spread = [[middle - low for _, middle, low, _ in known], [top - middle for _, middle, _, top in known]]
    at, middles = [place for place, *_ in known], [middle for _, middle, *_ in known]
    label = rows[0].variant
    panel.barh(at, middles, high, xerr=spread, color=colour, label=label, error_kw={"linewidth": 0.8})
    for place, middle, _, top in known:
        panel.text(top, place, f" {middle:.3g}", va="center", fontsize=SMALL - 2)
