"""Where masks keep weights: their overlap and the overlap by chance, densities of layers, changes between levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import supermask
from supermask import Masks, Ticket

from ..contract.errors import RequestError
from ..runs.names import TICKET
from .findings import Comparison


class HeatMap(NamedTuple):
    """A matrix to draw: `values` has a list of numbers for each name in `rows`."""

    title: str
    rows: list[str]
    columns: list[str]
    values: list[list[float]]


def overlap_by_chance(one: Masks, other: Masks) -> float:
    """The expected intersection over union of two random masks with the same densities of all tensors as these.

    It is computed as the expected intersection over the expected union, which is accurate for the many weights of a
    network.
    """
    both = either = 0.0
    mine, theirs = one.kept_per_tensor, other.kept_per_tensor
    for name, mask in one.counted().items():
        shared = mine[name] * theirs[name] / mask.numel()
        both += shared
        either += mine[name] + theirs[name] - shared
    return both / either if either else 1.0


def compare_masks(tickets: Mapping[str, Ticket]) -> dict[str, Any]:
    """The overlaps of all pairs of tickets, and the densities of their layers.

    Returns:
        `{"labels", "overlap", "chance", "layers", "densities"}`: `overlap` and `chance` are matrices of intersection
        over union, as measured and as expected by chance, in the order of the labels; `densities` has a list for each
        label.

    Raises:
        RequestError: tickets that mask different tensors.
    """
    labels = list(tickets)
    masks = {label: ticket.masks for label, ticket in tickets.items()}
    first = masks[labels[0]]
    problems = [
        f"{label} masks other tensors than {labels[0]}" for label in labels if masks[label].shapes != first.shapes
    ]
    if problems:
        raise RequestError(problems)
    return {
        "labels": labels,
        "overlap": [[masks[a].overlap(masks[b]) for b in labels] for a in labels],
        "chance": [[1.0 if a == b else overlap_by_chance(masks[a], masks[b]) for b in labels] for a in labels],
        "layers": list(first.counted()),
        "densities": [[masks[label].densities[name] for name in first.counted()] for label in labels],
    }


def compare_levels(run: str | Path) -> list[dict[str, Any]]:
    """The masks of a search, level by level.

    Returns:
        A row for each level: `level`, `density`, the densities of `layers`; and, compared with the level before, the
        share of mask entries that `changed`, the `overlap`, and whether the mask is `nested` in that one.

    Raises:
        RequestError: a run without levels.
    """
    paths = sorted(Path(run, "levels").glob(f"*/{TICKET}"), key=lambda path: int(path.parent.name))
    if not paths:
        raise RequestError(f"{run} has no levels")
    rows: list[dict[str, Any]] = []
    before: Masks | None = None
    for path in paths:
        masks = supermask.load(path).masks
        row: dict[str, Any] = {"level": int(path.parent.name), "density": masks.density, "layers": masks.densities}
        if before is not None:
            row |= {"changed": masks.changed(before), "overlap": masks.overlap(before), "nested": masks.within(before)}
        rows.append(row)
        before = masks
    return rows


def compare_runs_masks(comparison: Comparison) -> list[dict[str, Any]]:
    """The masks of all tickets of a comparison, for each network apart.

    Returns:
        For each network the result of `compare_masks`, and `levels`: `{run: result of compare_levels}`.
    """
    networks: dict[str, dict[str, Ticket]] = {}
    for group in comparison.groups:
        names = [run for run in group.runs if group.density < 1 and Path(run).is_dir()]
        for name, ticket in (load_tickets(names) if names else {}).items():
            networks.setdefault(repr(ticket.masks.shapes), {})[name] = ticket
    return [
        {**compare_masks(tickets), "levels": {n: compare_levels(n) for n in tickets if Path(n, "levels").is_dir()}}
        for tickets in networks.values()
    ]


def heat_maps(compared: Mapping[str, Any]) -> list[HeatMap]:
    """The heat maps of one result of `compare_runs_masks`: densities of layers, overlaps, densities level by level."""
    labels, layers = [Path(label).name for label in compared["labels"]], compared["layers"]
    maps = [HeatMap("Density of each layer", labels, layers, compared["densities"])]
    if len(labels) > 1:
        for key, title in (("overlap", "Overlap of masks (IoU)"), ("chance", "Overlap expected by chance (IoU)")):
            maps.append(HeatMap(title, labels, labels, compared[key]))
    for run, rows in compared["levels"].items():
        names = [f"level {row['level']}" for row in rows]
        values = [[row["layers"][name] for name in layers] for row in rows]
        maps.append(HeatMap(f"Density of each layer, {Path(run).name}", names, layers, values))
    return maps


def load_tickets(names: Sequence[str | Path]) -> dict[str, Ticket]:
    """Load the tickets of run folders or ticket files, by name; of several tasks each by itself.

    Raises:
        RequestError: names that are neither; all of them are listed.
    """
    found, problems = dict[str, Ticket](), list[str]()
    for name in names:
        path = Path(name, TICKET) if Path(name).is_dir() else Path(name)
        if path.is_file():
            ticket = supermask.load(path)
            found |= {f"{name} task {task}": ticket.task(task) for task in ticket.tasks} or {str(name): ticket}
        else:
            problems.append(f"{name} is neither a ticket file nor a finished run")
    if problems or not found:
        raise RequestError(problems or ["no ticket is given"])
    return found
