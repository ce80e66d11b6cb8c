"""For where there is little room: runs of one method at several densities as one, and the levels worth telling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from .findings import Comparison, Group, Level

# Of more levels than these only those are told where something changes.
_MOST_LEVELS = 3


def worth_telling(group: Group) -> list[Level]:
    """The sparse levels of a group; of many the last that matches, the first that does not, and the sparsest."""
    sparse = [row for row in group.levels if row.density < 1 and row.matching is not None]
    if len(sparse) <= _MOST_LEVELS:
        return sparse
    last_match = next((row for row in reversed(sparse) if row.matching and row.matching.answer == "yes"), None)
    first_other = next((row for row in sparse if row.matching and row.matching.answer != "yes"), None)
    told = [id(row) for row in (last_match, first_other, sparse[-1])]
    return [row for row in sparse if id(row) in told]


def task_of(group: Group) -> tuple[str, ...]:
    """Network, data, precision and metric: what groups have in common that may be compared."""
    return group.model, group.data, group.precision, *vars(group.metric).values()


def in_order(groups: Iterable[Group]) -> list[Group]:
    """Task by task the dense networks, then method by method, from the densest downward."""
    groups = list(groups)
    tasks = list(dict.fromkeys(map(task_of, groups)))
    curves = list(dict.fromkeys(map(_curve_of, groups)))
    return sorted(
        groups,
        key=lambda one: (
            tasks.index(task_of(one)), one.verdict is not None, curves.index(_curve_of(one)), -one.density,
        ),
    )  # fmt: skip


def join_densities(groups: Sequence[Group]) -> list[Group]:
    """The groups, with those that differ in the density only as one, whose levels are those of all.

    Where two have measured the same density, as two searches of one method that begin with the same dense network, the
    one with more seeds is taken. The answers and the recipe are those of the first.
    """
    found: dict[Any, list[Group]] = {}
    for index, group in enumerate(in_order(groups)):
        found.setdefault(_curve_of(group) if group.curve else index, []).append(group)
    joined = []
    for same in found.values():
        levels: dict[str, Level] = {}
        for row in (row for group in same for row in group.levels):
            there = levels.get(f"{row.density:.6g}")
            if there is None or row.n > there.n:
                levels[f"{row.density:.6g}"] = row
        joined.append(
            replace(
                same[0],
                label=same[0].curve or same[0].label,
                levels=tuple(sorted(levels.values(), key=lambda row: -row.density)),
                controls=tuple(row for group in same for row in group.controls),
            )
        )
    return joined


def _curve_of(group: Group) -> tuple[Any, ...]:
    return *task_of(group), group.verdict is None, group.curve or group.id


def dense_lines(comparison: Comparison) -> list[tuple[Group, Level, str]]:
    """The dense networks with their names; of a task without one, level 0 of its first search."""
    groups = in_order(comparison.groups)
    found = [(group, group.levels[0], group.label) for group in groups if group.verdict is None]
    tasks = {task_of(group) for group, _, _ in found}
    for group in groups:
        first = group.levels[0]
        if first.density == 1 and task_of(group) not in tasks:
            tasks.add(task_of(group))
            found.append((group, first, f"level 0 of {group.curve or group.label}"))
    return found
