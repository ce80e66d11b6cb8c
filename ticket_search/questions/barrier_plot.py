"""The picture of a run's stability: the barrier over the step that children share, and the error between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from ..analysis.curves import COLOURS, DPI, SMALL, shorten
from ..analysis.plots import render
from ..contract.metric import Metric
from .barriers import ARMS, STABLE, Barrier, PairRow

_MARKERS = ("s", "o", "^", "v")
# So many panels of errors stand side by side; of more steps the first, the last and some between are shown.
_PANELS = 4


def draw_barriers(barriers: Sequence[Barrier], rows: Sequence[PairRow], metric: Metric, title: str) -> bytes:
    """A PNG: above, the barrier of each arm over k, its pairs as points and the 95 % interval of their mean; below, the
    mean error on the line between two children, for some of the steps.
    """
    steps = _some(sorted({row.step for row in rows}))
    figure = Figure(figsize=(7.2, 6.4), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, len(steps), height_ratios=(1.5, 1))
    axes = figure.add_subplot(grid[0, :])
    _draw_over_steps(figure, axes, barriers, rows, metric)
    first: Axes | None = None
    for place, step in enumerate(steps):
        panel = figure.add_subplot(grid[1, place], sharey=first)
        _draw_path(panel, [row for row in rows if row.step == step])
        panel.set_title(f"children of step {step}", fontsize=SMALL)
        if first is None:
            panel.set_ylabel(f"error ({metric.gap})" if not metric.is_accuracy else "error (%)", fontsize=SMALL)
        else:
            panel.tick_params(labelleft=False)
        first = first or panel
    figure.supxlabel("on the line from one child to the other", fontsize=SMALL)
    figure.suptitle(shorten(title, 90), fontsize=SMALL + 1, parse_math=False)
    return render(figure, ".png")


def _some(steps: Sequence[int]) -> list[int]:
    places = numpy.unique(numpy.linspace(0, len(steps) - 1, min(len(steps), _PANELS)).round().astype(int))
    return [steps[place] for place in places]


def _draw_over_steps(
    figure: Figure, axes: Axes, barriers: Sequence[Barrier], rows: Sequence[PairRow], metric: Metric
) -> None:
    steps = sorted({row.step for row in rows})
    arms = [arm for arm in ARMS if any(barrier.arm == arm for barrier in barriers)]
    _show_zero(axes, steps)
    for place, arm in enumerate(arms):
        colour, marker = COLOURS[ARMS.index(arm)], _MARKERS[ARMS.index(arm)]
        own = [barrier for barrier in barriers if barrier.arm == arm]
        x, y = [barrier.step for barrier in own], [barrier.mean for barrier in own]
        right = (place - (len(arms) - 1) / 2) * 5 / 72
        # Beside one another: intervals over one another cannot be told apart.
        moved = axes.transData + ScaledTranslation(right, 0, figure.dpi_scale_trans)
        axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.4, transform=moved, label=_label(own))
        for barrier in own:
            if barrier.interval is not None:
                # There is no barrier below 0.
                ends = [max(0.0, end) for end in barrier.interval]
                axes.plot([barrier.step] * 2, ends, color=colour, linewidth=0.9, alpha=0.6, transform=moved)
            values = [row.barrier for row in rows if (row.arm, row.step) == (arm, barrier.step)]
            axes.plot(
                [barrier.step] * len(values), values, marker, color=colour, markersize=2.5, alpha=0.55, transform=moved
            )
    # By the pairs themselves: the interval of two or three is often longer than all of them are high.
    highest = max(
        [row.barrier for row in rows if math.isfinite(row.barrier)] + ([1.25 * STABLE] if metric.is_accuracy else [])
    )
    if metric.is_accuracy:
        axes.axhline(STABLE, color="#444444", linewidth=0.9, linestyle="--")
        axes.annotate(
            f"below {STABLE:g} pp: stable", (1, STABLE), xycoords=("axes fraction", "data"), xytext=(-3, 3),
            textcoords="offset points", ha="right", fontsize=SMALL - 1, color="#444444",
        )  # fmt: skip
    axes.set_ylim(0, 1.15 * highest or 1.0)
    axes.set_xlabel("step k that both children share", fontsize=SMALL)
    axes.set_ylabel(f"barrier of the error ({metric.gap})", fontsize=SMALL)
    axes.tick_params(labelsize=SMALL)
    axes.legend(fontsize=SMALL, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _show_zero(axes: Axes, steps: Sequence[int]) -> None:
    """A logarithmic axis of steps on which 0 has a place too."""
    positive = [step for step in steps if step]
    if positive:
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.6)
    room = (
        (0.0, 1.0) if not positive else (-0.15 * min(positive) if 0 in steps else 0.8 * min(positive), 1.25 * steps[-1])
    )
    axes.set_xlim(*((-1, 1) if not positive else room))
    axes.xaxis.set_major_locator(FixedLocator(steps))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(steps, [f"{step:,}" for step in steps])


def _label(barriers: Sequence[Barrier]) -> str:
    first = barriers[0]
    density = "" if first.density == 1 else f", {100 * first.density:.3g} % of the weights"
    return f"{first.arm}{density}"


def _draw_path(axes: Axes, rows: Sequence[PairRow]) -> None:
    for arm in ARMS:
        paths = [row.errors for row in rows if row.arm == arm]
        if paths:
            x = numpy.linspace(0, 1, len(paths[0]))
            axes.plot(x, numpy.mean(paths, axis=0), color=COLOURS[ARMS.index(arm)], linewidth=1.3)
    axes.set_xticks([0, 1], ["one", "other"], fontsize=SMALL)
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
