"""The panels of a comparison: the metric against density, and against what the search cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from ..contract.metric import Metric
from .findings import Comparison, Control, Group, Level, Row, only_metric

# Okabe and Ito, Color Universal Design, 2008, without black, which is for published numbers, and without yellow, which
# is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES = ("-", "-.", ":")
_GREYS = ("#444444", "#777777", "#999999")
_CONTROLS = {"reinit": "^", "shuffle": "v", "random": "s", "random-erk": "D", "small-dense": "P", "invert": "<"}
_OTHER, _DENSE = "X", "s"
_HOLLOW = ("o", "s", "D", "^", "v", "P")
# Up to _BANDS lines have bands, more have bars; with more than _MANY series the controls are faint; up to _WRITTEN
# points below the axis have their accuracies beside them.
_BANDS, _MANY, _WRITTEN = 6, 12, 6
DPI, SMALL = 150, 8


@dataclass(frozen=True)
class Look:
    """How a figure is laid out: `stacked` puts the panels one above the other, for narrow screens.

    `lowest` is the accuracy in percent, or the value of another metric, at which the axis begins; points that are worse
    are marked at the edge. If it is not given, the axis shows every group, but not controls that are far worse than all
    groups. Better values are always higher up: where lower ones are better, the axis is reversed.
    """

    stacked: bool = False
    lowest: float | None = None


@dataclass(frozen=True)
class _Series:
    """One line of the figure and the rows of its points; `control` is empty for a group."""

    rows: Sequence[Row]
    colour: str
    marker: str = "o"
    line: str = "-"
    filled: bool = True
    control: str = ""

    @property
    def style(self) -> dict[str, Any]:
        """The arguments of matplotlib for this line."""
        face = self.colour if self.filled else "white"
        return {
            "color": self.colour, "marker": self.marker, "markerfacecolor": face, "markersize": 5,
            "linestyle": self.line, "linewidth": 1.4,
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
    """The lower end of the axis of values, beyond which everything is worse."""

    value: float
    metric: Metric

    def is_worse(self, value: float) -> bool:
        """Whether a value is not on the axis, because it is worse."""
        return self.metric.merit(value) < self.metric.merit(self.value)


def draw(comparison: Comparison, published: Sequence[Mapping[str, Any]], look: Look) -> Figure:
    """Draw the metric against density, and against cost where costs differ, with the legend below the panels.

    Raises:
        RequestError: groups of several metrics.
    """
    metric = only_metric(comparison)
    joined = join_densities(comparison.groups)
    series, dense = _make_series(joined), _make_dense(joined)
    handles, labels = _make_legend(joined, series, dense, published)
    groups = [line for line in series if not line.control]
    costs = {f"{cost:.2g}" for line in groups for row in line.rows if (cost := _cost(row))}
    # Where all costs are equal, a second panel would show nothing.
    panels = 2 if len(costs) > 1 else 1
    width, height = (5.2, 3.6 * panels) if look.stacked else (5.4 * panels, 4.2)
    columns = max(1, min(4, int(width / (0.6 + 0.062 * max(map(len, labels))))))
    height += 0.25 + 0.17 * math.ceil(len(labels) / columns)
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = (panels, 1) if look.stacked else (1, panels)
    axes = figure.subplots(*grid, sharey=True, squeeze=False).ravel()
    bottom, top = _value_range(series, dense, published, look.lowest, metric)
    edge = _Edge(bottom, metric)
    _draw_densities(axes[0], series, published, edge)
    if panels == 2:
        _draw_costs(axes[1], groups, edge)
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
        handles, [""] * len(labels), loc="outside lower center", ncols=columns, fontsize=SMALL, frameon=False
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)
        text.set_parse_math(False)
    return figure


def join_densities(groups: Sequence[Group]) -> list[Group]:
    """Join groups of one measurement each that differ in the density only into one curve."""
    found: dict[Any, list[Group]] = {}
    for index, group in enumerate(groups):
        alone = len(group.levels) == 1 and group.verdict is not None
        found.setdefault((*_task(group), group.curve) if alone else index, []).append(group)
    return [
        replace(
            same[0],
            label=same[0].curve if len(same) > 1 else same[0].label,
            levels=tuple(sorted((row for group in same for row in group.levels), key=lambda row: -row.density)),
            controls=tuple(row for group in same for row in group.controls),
        )
        for same in found.values()
    ]


def _make_series(groups: Sequence[Group]) -> list[_Series]:
    """The groups, each followed by its controls on the same data."""
    found: list[_Series] = []
    dense = pruned = 0
    for group in groups:
        if group.verdict is None:
            found.append(_Series(group.levels, _GREYS[dense % len(_GREYS)], _DENSE))
            dense += 1
            continue
        later, colour = divmod(pruned, len(COLOURS))
        line = _Series(group.levels, COLOURS[colour], line=_LINES[later % len(_LINES)], filled=not later)
        pruned += 1
        found.append(line)
        kinds: dict[tuple[str, bool], list[Control]] = {}
        for row in sorted(group.controls, key=lambda row: -row.density):
            if row.data == group.data:
                kinds.setdefault((row.control, row.trained), []).append(row)
        found += [
            replace(line, rows=rows, line="--", marker=_CONTROLS.get(control, _OTHER), control=control)
            for (control, _), rows in kinds.items()
        ]
    return found


def _make_dense(groups: Sequence[Group]) -> list[_Dense]:
    """The dense networks, and for a task without one the level 0 of its first search."""
    trained = [group for group in groups if group.verdict is None]
    found = [(group.mean, f"{shorten(group.label)} (mean)", _DENSE) for group in trained]
    tasks = {_task(group) for group in trained}
    for group in groups:
        first = group.levels[0]
        if first.density == 1 and _task(group) not in tasks:
            tasks.add(_task(group))
            found.append((first.mean, f"dense: level 0 of {shorten(group.label)}", ""))
    return [
        _Dense(mean, label, _GREYS[index % len(_GREYS)], marker) for index, (mean, label, marker) in enumerate(found)
    ]


def _task(group: Group) -> tuple[str, ...]:
    return group.model, group.data, group.precision


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
    ends = [metric.merit(end) for row in near for end in (row.interval or ())]
    spread = max(max(means) - min(means), least)
    # The interval of two seeds may be longer than the axis: it is cut off.
    bottom = max(min([*means, *ends]), min(means) - spread / 2) - 0.06 * spread
    top = min(max([*means, *ends]), max(means) + spread / 2) + 0.06 * spread
    bottom = bottom if lowest is None else metric.merit(lowest)
    # A merit is a value or its negative, and so the other way round too.
    return metric.merit(bottom), metric.merit(max(top, bottom + 0.1 * least))


def _draw_densities(axes: Axes, series: Sequence[_Series], published: Sequence[Mapping[str, Any]], edge: _Edge) -> None:
    least = min([row.density for line in series for row in line.rows] + [point["density"] for point in published])
    right = min(least / 1.2, 0.45)
    _set_logarithmic(axes, right**-0.04, right, unit=0.01)
    _draw_lines(axes, series, _density, edge, bands=True)
    for point, marker in zip(published, _HOLLOW * len(published), strict=False):
        axes.plot(point["density"], point["accuracy"], marker, color="black", markerfacecolor="none", zorder=4)
    axes.set_xlabel("weights kept (%)", fontsize=SMALL + 1)


def _draw_costs(axes: Axes, groups: Sequence[_Series], edge: _Edge) -> None:
    known = [replace(line, rows=[row for row in line.rows if _cost(row)]) for line in groups]
    costs = [_cost(row) for line in known for row in line.rows]
    _set_logarithmic(axes, min(*costs, 0.8) / 1.15, max(*costs, 2) * 1.15, unit=1)
    _draw_lines(axes, [line for line in known if line.rows], _cost, edge, bands=False)
    axes.set_xlabel("cost of the search (trainings of the dense network)", fontsize=SMALL + 1)


def _draw_lines(
    axes: Axes, series: Sequence[_Series], place_of: Callable[[Row], float], edge: _Edge, bands: bool
) -> None:
    """Draw lines over the logarithm of `place_of(row)`; lines of a single point at the same place are moved apart."""
    alone = [f"{place_of(line.rows[0]):.2g}" if len(line.rows) == 1 else "" for line in series]
    long = sum(not line.control for line, place in zip(series, alone, strict=True) if not place)
    beyond: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for index, (line, place) in enumerate(zip(series, alone, strict=True)):
        moved = _move(axes, alone[:index].count(place), alone.count(place)) if place else 1
        places = [place_of(row) * moved for row in line.rows]
        faint = bool(line.control) and len(series) > _MANY
        _draw_line(axes, places, line, band=bands and not place and not line.control and long <= _BANDS, faint=faint)
        for x, row in zip(places, line.rows, strict=True):
            if edge.is_worse(row.mean):
                beyond.setdefault((line.colour, f"{place_of(row):.2g}"), []).append((x, row.mean))
    _mark_beyond(axes, beyond, edge)


def _move(axes: Axes, index: int, number: int) -> float:
    """The factor that moves point `index` of `number` points at one place aside, on a logarithmic axis."""
    left, right = axes.get_xlim()
    return math.exp(min(0.012, 0.12 / number) * (index - (number - 1) / 2) * math.log(right / left))


def _draw_line(axes: Axes, places: Sequence[float], line: _Series, band: bool, faint: bool) -> None:
    means = [row.mean for row in line.rows]
    lows, highs = zip(*(row.interval or (math.nan, math.nan) for row in line.rows), strict=True)
    style = line.style | ({"linewidth": 0.7, "markersize": 3, "alpha": 0.6} if faint else {})
    axes.plot(places, means, zorder=3, **style)
    if band:
        axes.fill_between(places, lows, highs, color=line.colour, alpha=0.15, linewidth=0)
    elif not faint:
        below = [mean - low for mean, low in zip(means, lows, strict=True)]
        above = [high - mean for mean, high in zip(means, highs, strict=True)]
        axes.errorbar(
            places, means, yerr=[below, above], fmt="none", ecolor=line.colour, elinewidth=0.9, capsize=2, alpha=0.6
        )


def _mark_beyond(axes: Axes, beyond: Mapping[tuple[str, str], Sequence[tuple[float, float]]], edge: _Edge) -> None:
    """Draw arrows at the lower edge, with the values beside them where they are few."""
    for (colour, _), points in beyond.items():
        for place, _ in points:
            axes.plot(place, edge.value, marker="v", color=colour, markersize=5, clip_on=False, zorder=5)
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
            handles.append(Line2D([], [], **line.style | ({} if len(line.rows) > 1 else {"linestyle": "none"})))
            labels.append(shorten(group.label))
    for network in dense:
        style = _Series([], network.colour, network.marker, "--").style
        handles.append(Line2D([], [], **style | {"linewidth": 1}))
        labels.append(network.label)
    for control in dict.fromkeys(line.control for line in series if line.control):
        handles.append(Line2D([], [], **_Series([], "#888888", _CONTROLS.get(control, _OTHER), "--").style))
        labels.append(f"control: {shorten(control)}")
    for point, marker in zip(published, _HOLLOW * len(published), strict=False):
        handles.append(Line2D([], [], color="black", marker=marker, markerfacecolor="none", linestyle="none"))
        labels.append(shorten(point["label"]))
    if any(row.interval for line in series for row in line.rows):
        handles.append(Patch(color="#888888", alpha=0.4, linewidth=0))
        labels.append("95 % interval of the mean")
    return handles, labels


def shorten(text: str, most: int = 58) -> str:
    """A text in one line of at most `most` characters, for a legend."""
    text = "".join(c if c.isprintable() else " " for c in str(text))
    return text if len(text) <= most else f"{text[: most - 3]}..."
