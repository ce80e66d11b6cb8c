"""The panels of a comparison: the metric against density, and against what the search cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import NullLocator

from ..contract.metric import Metric
from .findings import Comparison, Control, Group, Level, Row, only_metric
from .levels import dense_lines, in_order, join_densities

# Okabe and Ito, Color Universal Design, 2008, without black, which is for published numbers, and without yellow, which
# is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES = ("-", "-.", ":")
_GREYS = ("#444444", "#777777", "#999999")
_CONTROLS = {"reinit": "^", "shuffle": "v", "random": "s", "random-erk": "D", "small-dense": "P", "invert": "<"}
_OTHER, _DENSE = "X", "s"
# An arrow, which is no control.
_BEYOND = r"$\downarrow$"
_HOLLOW = ("o", "s", "D", "^", "v", "P")
# Up to _BANDS lines have bands, more have bars; with more than _MANY series the controls are faint; up to _WRITTEN
# points below the axis have their accuracies beside them.
_BANDS, _MANY, _WRITTEN = 6, 12, 6
DPI, SMALL = 150, 8


@dataclass(frozen=True)
class Look:
    """How a figure is laid out: `stacked` puts the panels one above the other, for narrow screens.

    `width` is that of the figure in inches, and `font` the size of its small text in points; all else scales with it.

    `lowest` is the accuracy in percent, or the value of another metric, at which the axis begins; points that are worse
    are marked at the edge. If it is not given, the axis shows every group, but not controls that are far worse than all
    groups. Better values are always higher up: where lower ones are better, the axis is reversed.
    """

    stacked: bool = False
    lowest: float | None = None
    width: float | None = None
    font: float = SMALL


# For a column of a paper that has two.
PAPER = Look(stacked=True, width=3.3, font=7)


@dataclass(frozen=True)
class _Series:
    """One line of the figure and the rows of its points; `control` is empty for a group.

    `joined` says whether the line joins its points: those of one search, or of one method at several densities.
    """

    rows: Sequence[Row]
    colour: str
    name: str = ""
    marker: str = "o"
    line: str = "-"
    filled: bool = True
    control: str = ""
    joined: bool = True

    @property
    def style(self) -> dict[str, Any]:
        """The arguments of matplotlib for this line."""
        face = self.colour if self.filled else "white"
        return {
            "color": self.colour, "marker": self.marker, "markerfacecolor": face, "markersize": 5,
            "linestyle": self.line if self.joined and len(self.rows) != 1 else "none", "linewidth": 1.4,
        }  # fmt: skip


@dataclass(frozen=True)
class _Dense:
    """A dense network as a horizontal line; `marker` is empty where it is level 0 of a search."""

    mean: float
    label: str
    colour: str
    marker: str


@dataclass(frozen=True)
class _Edge:
    """The lower end of the axis of values, beyond which everything is worse; accuracies lie in 0 to 100 %."""

    value: float
    metric: Metric

    def is_worse(self, value: float) -> bool:
        """Whether a value is not on the axis, because it is worse."""
        return self.metric.merit(value) < self.metric.merit(self.value)

    def interval(self, row: Row) -> tuple[float, float]:
        """The interval of a row as far as there are such values; NaN where there is none."""
        return _possible(row.interval or (math.nan, math.nan), self.metric)


def _possible(interval: tuple[float, float], metric: Metric) -> tuple[float, float]:
    """An interval without what no accuracy can be."""
    low, high = interval
    return (max(low, 0.0), min(high, 100.0)) if metric.is_accuracy and low == low else interval


@dataclass(frozen=True)
class Point:
    """A point of the figure: its panel, its place, and what it stands for, as in `imp at 5 %: 97.3 %, ...`."""

    panel: int
    x: float
    y: float
    text: str


def draw(
    comparison: Comparison,
    published: Sequence[Mapping[str, Any]],
    look: Look,
    points: list[Point] | None = None,
) -> Figure:
    """Draw the metric against density, and against cost where costs differ, with the legend below the panels.

    `points`, where given, is filled with what the points stand for.

    Raises:
        RequestError: groups of several metrics.
    """
    metric = only_metric(comparison)
    joined = join_densities(in_order(comparison.groups))
    series, dense = _make_series(joined), _make_dense(comparison)
    handles, labels = _make_legend(joined, series, dense, published)
    groups = [line for line in series if not line.control]
    costs = {f"{cost:.2g}" for line in groups for row in line.rows if (cost := _cost(row))}
    # Where all costs are equal, a second panel would show nothing.
    panels = 2 if len(costs) > 1 else 1
    scale = look.font / SMALL
    width, height = (5.2, 3.6 * panels) if look.stacked else (5.4 * panels, 4.2)
    width, height = (look.width, 0.62 * look.width * panels) if look.width else (width, height)
    columns = max(1, min(4, int(width / (0.6 + 0.062 * max(map(len, labels))) / scale)))
    height += 0.25 + 0.17 * math.ceil(len(labels) / columns) * scale
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = (panels, 1) if look.stacked else (1, panels)
    axes = figure.subplots(*grid, sharey=True, squeeze=False).ravel()
    bottom, top = _value_range(series, dense, published, look.lowest, metric)
    edge = _Edge(bottom, metric)
    drawn = [_draw_densities(axes[0], series, published, edge)]
    if panels == 2:
        drawn.append(_draw_costs(axes[1], groups, edge))
    for panel in axes:
        for line in dense:
            panel.axhline(line.mean, color=line.colour, linestyle="--", linewidth=1, zorder=1)
        panel.set_ylim(bottom, top)
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=SMALL, labelleft=True)
        panel.set_ylabel(f"test {metric.axis}{', reversed' if metric.direction == 'lower' else ''}", fontsize=SMALL + 1)
    legend = figure.legend(
        handles, [""] * len(labels), loc="outside lower center", ncols=columns, fontsize=SMALL, frameon=False,
        handlelength=2.8,
    )  # fmt: skip
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)
        text.set_parse_math(False)
    _scale(figure, scale)
    if points is not None:
        points += [
            Point(panel, x, edge.value if edge.is_worse(row.mean) else row.mean, _tell(line, row, metric))
            for panel, found in enumerate(drawn)
            for x, row, line in found
        ]
    return figure


def _scale(figure: Figure, scale: float) -> None:
    """Draw texts, lines and markers larger or smaller."""
    for text in figure.findobj(Text):
        text.set_fontsize(float(text.get_fontsize()) * scale)
    for line in figure.findobj(Line2D):
        line.set_markersize(line.get_markersize() * scale)
        line.set_linewidth(line.get_linewidth() * scale)
    for panel in figure.axes:
        panel.tick_params(labelsize=SMALL * scale)


def _tell(line: _Series, row: Row, metric: Metric) -> str:
    """What a point stands for: method, density, mean, interval and the number of seeds."""
    what = f"{line.name}, control {line.control}" if line.control else line.name
    between = ""
    if row.interval:
        low, high = map(metric.show, row.interval)
        between = f", 95 % interval {low} to {high}"
    seeds = f"{row.n} seed{'' if row.n == 1 else 's'}"
    cost = f", cost {_cost(row):.3g} dense trainings" if _cost(row) else ""
    return f"{what} at {100 * row.density:.3g} %: {metric.with_unit(row.mean)}{between}, {seeds}{cost}"


def _make_series(groups: Sequence[Group]) -> list[_Series]:
    """The groups, each followed by its controls on the same data."""
    found: list[_Series] = []
    dense = pruned = 0
    for group in groups:
        if group.verdict is None:
            found.append(_Series(group.levels, _GREYS[dense % len(_GREYS)], group.label, _DENSE))
            dense += 1
            continue
        later, colour = divmod(pruned, len(COLOURS))
        line = _Series(group.levels, COLOURS[colour], group.label, line=_LINES[later % len(_LINES)], filled=not later)
        pruned += 1
        found.append(line)
        kinds: dict[tuple[str, bool], list[Control]] = {}
        for row in sorted(group.controls, key=lambda row: -row.density):
            if row.data == group.data:
                kinds.setdefault((row.control, row.trained), []).append(row)
        found += [
            replace(
                line,
                rows=rows,
                line="--",
                marker=_CONTROLS.get(control, _OTHER),
                filled=trained,
                control=control if trained else f"{control}, not trained",
            )
            for (control, trained), rows in kinds.items()
        ]
    return found


def _make_dense(comparison: Comparison) -> list[_Dense]:
    """The dense networks, and for a task without one the level 0 of its first search."""
    found = []
    for index, (group, row, name) in enumerate(dense_lines(comparison)):
        own = group.verdict is None
        label = f"{shorten(name)} (mean)" if own else f"dense: {shorten(name)}"
        found.append(_Dense(row.mean, label, _GREYS[index % len(_GREYS)], _DENSE if own else ""))
    return found


def _density(row: Row) -> float:
    return row.density


def _cost(row: Row) -> float:
    """The cost of the search up to a row, in trainings of the dense network; 0 where it is not known."""
    return row.dense_trainings or 0.0 if isinstance(row, Level) else 0.0


def _value_range(
    series: Sequence[_Series],
    dense: Sequence[_Dense],
    published: Sequence[Mapping[str, Any]],
    lowest: float | None,
    metric: Metric,
) -> tuple[float, float]:
    """The values at the lower and at the upper end of the axis, the better ones up."""
    means = [metric.merit(row.mean) for line in series if not line.control for row in line.rows]
    means += [metric.merit(line.mean) for line in dense] + [point["accuracy"] for point in published]
    # No axis magnifies less than a point of accuracy; of another metric, than a hundredth of its values.
    least = 1.0 if metric.unit == "%" else max(0.01 * max(map(abs, means)), 1e-12)
    spread = max(max(means) - min(means), least)
    near = [row for line in series for row in line.rows if metric.merit(row.mean) >= min(means) - spread]
    means += [metric.merit(row.mean) for row in near]
    ends = [metric.merit(end) for row in near if row.interval for end in _possible(row.interval, metric)]
    spread = max(max(means) - min(means), least)
    # The interval of two seeds may be longer than the axis: it is cut off.
    bottom = max(min([*means, *ends]), min(means) - spread / 2) - 0.06 * spread
    top = min(max([*means, *ends]), max(means) + spread / 2) + 0.06 * spread
    if metric.is_accuracy:  # a little room, so that a marker at the end is whole
        bottom, top = max(bottom, -0.03 * spread), min(top, 100 + 0.03 * spread)
    bottom = bottom if lowest is None else metric.merit(lowest)
    # A merit is a value or its negative, and so the other way round too.
    return metric.merit(bottom), metric.merit(max(top, bottom + 0.1 * least))


def _draw_densities(
    axes: Axes, series: Sequence[_Series], published: Sequence[Mapping[str, Any]], edge: _Edge
) -> list[tuple[float, Row, _Series]]:
    least = min([row.density for line in series for row in line.rows] + [point["density"] for point in published])
    right = min(least / 1.2, 0.45)
    _set_logarithmic(axes, right**-0.04, right, unit=0.01)
    drawn = _draw_lines(axes, series, _density, edge, bands=True)
    for point, marker in zip(published, _HOLLOW * len(published), strict=False):
        axes.plot(point["density"], point["accuracy"], marker, color="black", markerfacecolor="none", zorder=4)
    axes.set_xlabel("weights kept (%)", fontsize=SMALL + 1)
    return drawn


def _draw_costs(axes: Axes, groups: Sequence[_Series], edge: _Edge) -> list[tuple[float, Row, _Series]]:
    known = [_by_cost(line) for line in groups if any(map(_cost, line.rows))]
    costs = [_cost(row) for line in known for row in line.rows]
    _set_logarithmic(axes, min(*costs, 0.8) / 1.15, max(*costs, 2) * 1.15, unit=1)
    axes.set_xlabel("cost of the search (trainings of the dense network)", fontsize=SMALL + 1)
    return _draw_lines(axes, known, _cost, edge, bands=False)


def _by_cost(line: _Series) -> _Series:
    """The line of a search whose cost grows from level to level; of single trainings the points, none joined."""
    rows = [row for row in line.rows if _cost(row)]
    if len(rows) > 2 and all(_cost(before) < _cost(row) for before, row in pairwise(rows)):
        return replace(line, rows=rows)
    return replace(line, rows=[row for row in rows if row.density < 1] or rows, joined=False)


def _draw_lines(
    axes: Axes, series: Sequence[_Series], place_of: Callable[[Row], float], edge: _Edge, bands: bool
) -> list[tuple[float, Row, _Series]]:
    """Draw lines over the logarithm of `place_of(row)`, and say where the points are.

    Lines whose points are all at one place, as others are, are moved apart.
    """
    places_of = [{f"{place_of(row):.2g}" for row in line.rows} for line in series]
    alone = [next(iter(places)) if len(places) == 1 else "" for places in places_of]
    long = sum(not line.control for line, place in zip(series, alone, strict=True) if not place)
    beyond: dict[tuple[str, str], list[tuple[float, float]]] = {}
    drawn: list[tuple[float, Row, _Series]] = []
    for index, (line, place) in enumerate(zip(series, alone, strict=True)):
        moved = _move(axes, alone[:index].count(place), alone.count(place)) if place else 1
        places = [place_of(row) * moved for row in line.rows]
        faint = bool(line.control) and len(series) > _MANY
        band = bands and line.joined and not place and not line.control and long <= _BANDS
        _draw_line(axes, places, line, edge, band=band, faint=faint)
        for x, row in zip(places, line.rows, strict=True):
            drawn.append((x, row, line))
            if edge.is_worse(row.mean):
                beyond.setdefault((line.colour, f"{place_of(row):.2g}"), []).append((x, row.mean))
    _mark_beyond(axes, beyond, edge)
    return drawn


def _move(axes: Axes, index: int, number: int) -> float:
    """The factor that moves point `index` of `number` points at one place aside, on a logarithmic axis."""
    left, right = axes.get_xlim()
    return math.exp(min(0.012, 0.12 / number) * (index - (number - 1) / 2) * math.log(right / left))


def _draw_line(axes: Axes, places: Sequence[float], line: _Series, edge: _Edge, band: bool, faint: bool) -> None:
    means = [row.mean for row in line.rows]
    lows, highs = zip(*map(edge.interval, line.rows), strict=True)
    style = line.style | ({"linewidth": 0.7, "markersize": 3, "alpha": 0.6} if faint else {})
    axes.plot(places, means, zorder=3, **style)
    if band:
        axes.fill_between(places, lows, highs, color=line.colour, alpha=0.15, linewidth=0)
    elif not faint:
        # A mean of 100 % may be above it by a rounding error.
        below = [max(mean - low, 0.0) if low == low else low for mean, low in zip(means, lows, strict=True)]
        above = [max(high - mean, 0.0) if high == high else high for mean, high in zip(means, highs, strict=True)]
        axes.errorbar(
            places, means, yerr=[below, above], fmt="none", ecolor=line.colour, elinewidth=0.9, capsize=2, alpha=0.6
        )


def _mark_beyond(axes: Axes, beyond: Mapping[tuple[str, str], Sequence[tuple[float, float]]], edge: _Edge) -> None:
    """Draw arrows at the lower edge, with the values beside them where they are few."""
    for (colour, _), points in beyond.items():
        for place, _ in points:
            axes.plot(place, edge.value, marker=_BEYOND, color=colour, markersize=7, clip_on=False, zorder=5)
        if sum(map(len, beyond.values())) <= _WRITTEN:
            form = ".1f" if edge.metric.unit == "%" else ".3g"
            text = ", ".join(f"{mean:{form}}" for _, mean in points)
            where = points[-1][0], edge.value
            axes.annotate(text, where, (6, 5), textcoords="offset points", fontsize=SMALL - 1, color=colour)


def _set_logarithmic(axes: Axes, left: float, right: float, unit: float) -> None:
    """Make the axis logarithmic from `left` to `right`, with ticks at round multiples of `unit`."""
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    ticks = _ticks(min(left, right) / unit, max(left, right) / unit)
    axes.set_xticks([tick * unit for tick in ticks], [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between `low` and `high`: closer together where the range is small."""
    steps = (1, 1.5, 2, 3, 5, 7) if high / low < 10 else (1, 2, 5) if high / low < 2000 else (1,)
    powers = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    return [float(f"{power * step:.2g}") for power in powers for step in steps if low <= power * step <= high]


def _make_legend(
    groups: Sequence[Group],
    series: Sequence[_Series],
    dense: Sequence[_Dense],
    published: Sequence[Mapping[str, Any]],
) -> tuple[list[Any], list[str]]:
    shown = [line for line in series if not line.control]
    handles: list[Any] = []
    labels = []
    for line, group in zip(shown, groups, strict=True):
        if group.verdict is not None:
            handles.append(Line2D([], [], **line.style))
            labels.append(shorten(group.label))
    for network in dense:
        style = _Series([], network.colour, marker=network.marker, line="--").style
        handles.append(Line2D([], [], **style | {"linewidth": 1}))
        labels.append(network.label)
    kinds: dict[str, list[_Series]] = {}
    for line in series:
        if line.control:
            kinds.setdefault(line.control, []).append(line)
    for control, lines in kinds.items():
        longest = max(lines, key=lambda line: len(line.rows))
        handles.append(Line2D([], [], **replace(longest, colour="#888888").style))
        labels.append(f"control: {shorten(control)}")
    for point, marker in zip(published, _HOLLOW * len(published), strict=False):
        handles.append(Line2D([], [], color="black", marker=marker, markerfacecolor="none", linestyle="none"))
        labels.append(shorten(point["label"]))
    if any(row.interval for line in series for row in line.rows):
        handles.append(Patch(color="#888888", alpha=0.4, linewidth=0))
        labels.append("95 % interval")
    return handles, labels


def shorten(text: str, most: int = 58) -> str:
    """A text in one line of at most `most` characters, for a legend."""
    text = "".join(c if c.isprintable() else " " for c in str(text))
    return text if len(text) <= most else f"{text[: most - 3]}..."
