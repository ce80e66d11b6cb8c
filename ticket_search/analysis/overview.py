"""A comparison in one line for each method and density: value, difference to the dense network, and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..contract.metric import Metric
from .findings import Comparison, Row
from .headlines import Headline, headline
from .intervals import Difference
from .levels import dense_lines, in_order, task_of, worth_telling

ABOUT = (
    "mean \N{PLUS-MINUS SIGN} standard deviation (seeds); vs dense: paired by seed, [95 % interval]; cost: in "
    "trainings of the dense network"
)


@dataclass(frozen=True)
class Line:
    """A method at a density, as text; a cell is empty where there is nothing to say.

    `value` is the mean with its standard deviation and the number of seeds, `difference` that to the dense network and
    `interval` its 95 % interval, `cost` that of the search in trainings of the dense network. `headline` is what is
    said of it, None for a dense network.
    """

    name: str
    method: str
    density: str
    value: str
    difference: str
    interval: str
    cost: str
    headline: Headline | None


@dataclass(frozen=True)
class Part:
    """The lines of one network on one data set in one precision, measured by one metric."""

    title: str
    metric: Metric
    lines: tuple[Line, ...]


def overview(comparison: Comparison) -> list[Part]:
    """The dense networks, then each method from the densest downward; of many levels those that are worth telling."""
    groups = in_order(comparison.groups)
    lines: dict[tuple[str, ...], list[Line]] = {task_of(group): [] for group in groups}
    first = {task_of(group): group for group in reversed(groups)}
    for group, row, name in dense_lines(comparison):
        lines[task_of(group)].append(_make_line(name, group.method, row, group.metric, None))
    for group in groups:
        for row in worth_telling(group) if group.verdict is not None else ():
            name, said = group.curve or group.label, headline(group, row)
            lines[task_of(group)].append(_make_line(name, group.method, row, group.metric, said))
    several = len({group.precision for group in groups}) > 1
    parts = []
    for task, group in first.items():
        where = " on ".join(filter(None, (group.model, group.data)))
        named = ", ".join(filter(None, (where, group.precision if several else "")))
        parts.append(Part(named, group.metric, tuple(lines[task])))
    return parts


def _make_line(name: str, method: str, row: Row, metric: Metric, said: Headline | None) -> Line:
    gap, cost = (row.difference if said else None), getattr(row, "dense_trainings", None)
    return Line(
        name=name,
        method=method,
        density=f"{100 * row.density:.3g} %",
        value=show_value(row, metric),
        difference="" if gap is None else f"{gap.mean + 0.0:+{metric.form}}",
        interval=show_interval(gap, metric),
        cost="" if cost is None else f"{cost:.3g}",
        headline=said,
    )


def show_value(row: Row, metric: Metric) -> str:
    """`97.31 ± 0.12 (5)`: the mean over the seeds, their standard deviation, and how many they are."""
    if row.std is None:
        return f"{metric.show(row.mean)} (one seed)"
    spread = f"{row.std:.2f}" if metric.unit == "%" else f"{row.std:.2g}"
    return f"{metric.show(row.mean)} \N{PLUS-MINUS SIGN} {spread} ({row.n})"


def show_interval(gap: Difference | None, metric: Metric) -> str:
    """`[-0.23, +1.62]`: the 95 % interval of a difference, an empty text where there is none."""
    if gap is None or gap.interval is None:
        return ""
    low, high = (f"{end + 0.0:+{metric.form}}" for end in gap.interval)
    return f"[{low}, {high}]"


def shorten_names(lines: Sequence[Line], most: int) -> tuple[dict[str, str], list[str]]:
    """Names of at most `most` characters for those of the lines, and a key to those that had to be changed.

    A name that is too long becomes that of its method with a number, which the key explains.
    """
    methods = {line.name: line.method for line in lines}
    long = [name for name in methods if len(name) > most]
    short, key = {name: name for name in methods}, []
    for number, name in enumerate(long, start=1):
        tail = f" {number}"
        short[name] = methods[name][: max(1, most - len(tail))] + tail
        key.append(f"{short[name]}: {name}")
    return short, key
