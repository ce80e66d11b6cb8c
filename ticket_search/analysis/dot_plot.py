"""Means with their intervals as dots, one line for each of many configurations, in PNG or SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from supermask.masks.texts import harmless

from ..runs.outputs import write_output
from .curves import DPI, SMALL
from .plots import check_path, render

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#777777")


@dataclass(frozen=True)
class Dot:
    """A mean with its interval, and the family by which it is coloured."""

    label: str
    mean: float
    interval: tuple[float, float] | None
    family: str


def plot_dots(
    panels: Mapping[str, Sequence[Dot]],
    path: str | Path,
    axis: str,
    line: tuple[str, float] | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Draw panels of dots one below the other, each in the order given, from the top.

    Args:
        panels: the dots of each, by its title.
        path: of the picture.
        axis: what is measured, with its unit.
        line: a value to be compared with, with its name.
        overwrite: replace a file that exists already.

    Raises:
        RequestError: another suffix than .png or .svg, a folder that does not exist, or a file that exists already.
    """
    path = check_path(path, overwrite)
    counts = [max(1, len(dots)) for dots in panels.values()]
    figure = Figure(figsize=(8.5, 1.2 + 0.7 * len(counts) + 0.19 * sum(counts)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    families = list(dict.fromkeys(dot.family for dots in panels.values() for dot in dots))
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": counts})[:, 0]
    for panel, (title, dots) in zip(axes, panels.items(), strict=True):
        for place, dot in enumerate(dots):
            colour = _COLOURS[families.index(dot.family) % len(_COLOURS)]
            if dot.interval is not None:
                panel.plot(dot.interval, (place, place), color=colour, linewidth=1.5, alpha=0.5)
            panel.plot(dot.mean, place, "o", color=colour, markersize=4)
        if line is not None:
            panel.axvline(line[1], color="#777777", linewidth=1, linestyle="--")
        labels = [harmless(dot.label, 100) for dot in dots]
        panel.set_yticks(range(len(dots)), labels, fontsize=SMALL, parse_math=False)
        panel.set_ylim(len(dots) - 0.4, -0.6)
        panel.set_title(title, fontsize=SMALL + 1, loc="left")
        panel.grid(axis="x", alpha=0.3)
        panel.tick_params(axis="x", labelsize=SMALL)
        panel.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel(axis if line is None else f"{axis}   (dashed: {line[0]})", fontsize=SMALL + 1)
    for number, family in enumerate(families):
        axes[0].plot([], [], "o", color=_COLOURS[number % len(_COLOURS)], markersize=4, label=family)
    figure.legend(loc="outside upper center", ncols=len(families), fontsize=SMALL, frameon=False)
    write_output(path, render(figure, path.suffix.lower()))
    return path
