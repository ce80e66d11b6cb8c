"""A comparison as papers on pruning print it: methods as rows, densities as columns, mean and standard deviation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..contract.metric import Metric
from .findings import Comparison, Group, Level
from .intervals import difference
from .levels import join_densities, task_of, worth_telling

# More columns of sparse networks than these do not fit on a page.
_MOST_COLUMNS = 5


@dataclass(frozen=True)
class Cell:
    """A mean with its standard deviation, which is empty for a single seed; `best` where nothing is better."""

    mean: str
    std: str
    best: bool


@dataclass(frozen=True)
class Method:
    """A row: a cell, or None, for each density, the number of seeds, and the cost at the sparsest of them.

    `seeds` is empty where it is the same in all rows, and told in the note.
    """

    name: str
    cells: tuple[Cell | None, ...]
    seeds: str
    cost: str


@dataclass(frozen=True)
class PaperTable:
    """The methods on one network and data set at some densities, in percent, with a note for the caption."""

    title: str
    note: str
    densities: tuple[str, ...]
    methods: tuple[Method, ...]


def paper_tables(comparison: Comparison) -> list[PaperTable]:
    """A table for each network, data set and metric, the dense network above the methods.

    In each column of sparse networks the best mean is marked, and every other whose difference to it, paired by seed,
    has a 95 % interval that holds 0. Of many densities those of several methods are shown first, then those that are
    farthest from the others.
    """
    tasks: dict[tuple[str, ...], list[Group]] = {}
    for group in join_densities(comparison.groups):
        tasks.setdefault(task_of(group), []).append(group)
    # What a headline tells of is shown first.
    told = {_percent(row) for group in comparison.groups for row in worth_telling(group)}
    several = len({group.precision for group in comparison.groups}) > 1
    return [_make_table(groups, told, several) for groups in tasks.values()]


def _percent(row: Level) -> str:
    return f"{100 * row.density:.3g}"


def _make_table(groups: Sequence[Group], told: set[str], several: bool) -> PaperTable:
    metric = groups[0].metric
    columns, left_out = _choose_columns(groups, told)
    shown = [{_percent(row): row for row in group.levels} for group in groups]
    best = {column: _best([rows[column] for rows in shown if column in rows], metric) for column in columns}
    there = [[rows.get(column) for column in columns] for rows in shown]
    seeds = [_range(sorted({row.n for row in rows if row is not None})) for rows in there]
    same = len(set(seeds)) == 1
    methods = [
        Method(
            name=group.label,
            cells=tuple(
                None if row is None else _make_cell(row, metric, id(row) in best[column])
                for column, row in zip(columns, rows, strict=True)
            ),
            seeds="" if same else number,
            cost=next((f"{row.dense_trainings:.3g}" for row in reversed(rows) if row and row.dense_trainings), ""),
        )
        for group, rows, number in zip(groups, there, seeds, strict=True)
    ]
    where = " on ".join(filter(None, (groups[0].model, groups[0].data)))
    title = ", ".join(filter(None, (where, groups[0].precision if several else "")))
    over = f"{seeds[0]} seed{'' if seeds[0] == '1' else 's'}" if same else "seeds"
    return PaperTable(title, _note(metric, over, left_out), tuple(columns), tuple(methods))


def _range(numbers: Sequence[int]) -> str:
    return " to ".join(dict.fromkeys(f"{number}" for number in (*numbers[:1], *numbers[-1:])))


def _note(metric: Metric, over: str, left_out: int) -> str:
    note = (
        f"test {metric.in_words}, by percentage of weights kept, mean and standard deviation over {over}; bold: the "
        "best of a column, and what the 95 % interval of the difference, paired by seed, does not tell from it; cost: "
        "of the search down to the last density shown, in trainings of the dense network"
    )
    return note if not left_out else f"{note}; {left_out} other densit{'y is' if left_out == 1 else 'ies are'} left out"


def _choose_columns(groups: Sequence[Group], told: set[str]) -> tuple[list[str], int]:
    """The densities to show, in percent, and how many are left out."""
    values = {_percent(row): row.density for group in groups for row in group.levels}
    number = Counter(_percent(row) for group in groups for row in group.levels)
    sparse = [name for name in values if values[name] < 1]
    chosen: list[str] = []
    while len(chosen) < min(_MOST_COLUMNS, len(sparse)):

        def gain(name: str) -> tuple[bool, int, float]:
            apart = min((abs(math.log(values[name] / values[other])) for other in chosen), default=0.0)
            return name in told, number[name], apart

        chosen.append(max((name for name in sparse if name not in chosen), key=gain))
    dense = [name for name in values if values[name] == 1]
    return dense + sorted(chosen, key=lambda name: -values[name]), len(sparse) - len(chosen)


def _best(rows: Sequence[Level], metric: Metric) -> set[int]:
    """The ids of the best of some levels, and of those that cannot be told from it; of a single level none."""
    if len(rows) < 2 or rows[0].density == 1:
        return set()
    best = max(rows, key=lambda row: metric.merit(row.mean))
    merits = [dict(zip(row.seeds, map(metric.merit, row.values), strict=True)) for row in rows]
    own = merits[rows.index(best)]
    found = {id(best)}
    for row, theirs in zip(rows, merits, strict=True):
        gap = difference(own, theirs)
        if gap is not None and gap.interval is not None and gap.interval[0] <= 0:
            found.add(id(row))
    return found


def _make_cell(row: Level, metric: Metric, best: bool) -> Cell:
    spread = "" if row.std is None else f"{row.std:.2f}" if metric.unit == "%" else f"{row.std:.2g}"
    return Cell(metric.show(row.mean), spread, best)
