"""Throughput of a ticket's variants as bars, in PNG or SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .curves import DPI, SMALL
from .plots import check_path, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#777777", "#56b4e9", "#0072b2", "#d55e00")


def plot_bench(measured: Mapping[str, Any], path: str | Path, *, overwrite: bool = False) -> Path:
    """Draw what `bench` returns: milliseconds a batch, a panel for each batch size, a group for each engine.

    Bars are medians, lines reach from the first to the third quartile; what has no times is not drawn.

    Raises:
        RequestError: another suffix than .png or .svg, a folder that is not there, or a file that is there already.
    """
    path = check_path(path, overwrite)
    path.write_bytes(render(_draw(measured), path.suffix.lower()))
    return path


def _draw(measured: Mapping[str, Any]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = measured["rows"]
    batches, engines, variants = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("batch", "engine", "variant")
    )
    figure = Figure(figsize=(3.2 * len(batches) + 1, 1.2 + 0.75 * len(engines)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(batches), squeeze=False)[0]
    high = 0.8 / len(variants)
    for panel, batch in zip(panels, batches, strict=True):
        for index, variant in enumerate(variants):
            timed = [
                row for row in rows
                if (row["variant"], row["batch"]) == (variant, batch) and row["median_ms"] is not None
            ]  # fmt: skip
            middles = [row["median_ms"] for row in timed]
            spread = [
                [row["median_ms"] - row["q1"] for row in timed],
                [row["q3"] - row["median_ms"] for row in timed],
            ]
            if not timed:
                continue
            places = [engines.index(row["engine"]) - 0.4 + high * (index + 0.5) for row in timed]
            colour = _COLOURS[index % len(_COLOURS)]
            panel.barh(
                places, middles, high * 0.9, xerr=spread, color=colour, label=variant, error_kw={"linewidth": 0.8}
            )
            for place, row in zip(places, timed, strict=True):
                panel.text(row["q3"], place, f" {row['median_ms']:.3g}", va="center", fontsize=SMALL - 2)
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
