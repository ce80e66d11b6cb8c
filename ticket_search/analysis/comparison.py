"""Runs side by side: seeds of one configuration grouped, each group laid beside the dense network and its controls."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..contract.errors import RequestError
from ..contract.flags import differences
from .intervals import Difference, chance_of_none, confidence_interval, difference, holm
from .read_runs import Member, read_members
from .verdict import DELTA, judge

# What must be equal in the runs of a ticket and in those of the dense network that it is compared with: the task, and,
# where the ticket's weights are trained, how they are.
TASK = (
    "model", "model_args", "activation", "data", "train_size", "image_size", "crop", "flip", "loss", "metric",
    "label_smoothing", "split_seed", "precision",
)  # fmt: skip
RECIPE = (
    "epochs", "batch_size", "optimizer", "lr", "momentum", "nesterov", "weight_decay", "schedule", "milestones", "drop",
    "warmup", "clip", "accumulate", "init",
)  # fmt: skip
# Flags that have a place of their own where groups are shown.
_SHOWN = frozenset({"method", "model", "data", "density", "found_by", "label"})
_Rows = Mapping[Any, Mapping[str, Any]]


def compare(
    runs: Iterable[str | Path], *, delta: float = DELTA, others: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Group finished runs that differ in their seeds only, and say of each group whether it is a ticket.

    Args:
        runs: their folders. What `ticket controls` has left beside them is read too.
        delta: percentage points that a ticket may be worse than the dense network; fixed before anything is seen.
        others: measurements of other programs, as `tables.read_csv` gives them.

    Returns:
        `{"delta", "groups", "left_out", "notes"}`. A group has `id label method model data precision density n seeds
        mean std interval val_mean kept dense_trainings seconds runs`, and `differs`, the flags that tell it from other
        groups of its method; `curve`, the label without the density; `baseline`, what its dense network is; `levels`, a
        row per density, dense first;
        `controls`, a row for each; and `verdict`, None for a dense network. Accuracies are test accuracies in
        percent; `std` and `interval` (95 %, Student's t) are None for one seed.

    Raises:
        RequestError: none of the folders holds a finished run.
    """
    members, left_out = read_members(runs, others)
    if not members:
        raise RequestError(["there is no finished run to compare", *left_out])
    grouped: dict[str, dict[Any, Member]] = {}
    for member in members:
        group = grouped.setdefault(json.dumps(member.recipe, sort_keys=True), {})
        if member.seeds in group:
            left_out.append(f"{member.name}: repeats the seeds of {group[member.seeds].name}")
        elif same := next((other for other in group.values() if other.pair == member.pair), None):
            left_out.append(
                f"{member.name}: its weights and data order are those of {same.name}, only the masks' seed is not"
            )
        else:
            group[member.seeds] = member
    groups = [list(group.values()) for group in grouped.values()]
    notes: list[str] = []
    rows = [_describe(group, groups, delta, notes) for group in groups]
    _tell_apart(rows, [group[0].recipe for group in groups])
    tasks = {json.dumps({key: group[0].recipe.get(key) for key in TASK}, sort_keys=True) for group in groups}
    if len(tasks) > 1:
        notes.append(f"the runs are of {len(tasks)} tasks (model, data, precision, ...), each compared within its own")
    rows.sort(key=lambda row: (row["data"], row["model"], -row["density"], row["method"], row["label"]))
    for number, row in enumerate(rows, start=1):
        row["id"] = f"group-{number}"
    return {"delta": delta, "groups": rows, "left_out": left_out, "notes": list(dict.fromkeys(notes))}


def _describe(group: list[Member], groups: Sequence[list[Member]], delta: float, notes: list[str]) -> dict[str, Any]:
    first = group[0]
    baseline, name = _find_baseline(group, groups, notes)
    levels = [_describe_level(group, level, rows, baseline) for level, rows in enumerate(_rows_by_level(group))]
    controls = _describe_controls(group)
    # What the questions are about: not the ticket on other data, nor trained where it is a ticket as it is.
    own = [row for row in controls if _is_own(row, first)]
    last = levels[-1]
    return {
        "label": first.method,
        **{key: first.recipe.get(key, "") for key in ("method", "model", "data", "precision")},
        **{key: last[key] for key in ("density", "kept", "n", "seeds", "mean", "std", "interval", "dense_trainings")},
        "val_mean": _mean([member.rows[-1].get("val_accuracy") for member in group]),
        "seconds": _mean([member.seconds for member in group]),
        "runs": [member.name for member in group],
        "baseline": name,
        "levels": levels,
        "controls": controls,
        "verdict": None
        if first.dense
        else judge(levels, own, _against_dense(group, baseline), delta, first.whole_units),
    }


def _find_baseline(group: list[Member], groups: Sequence[list[Member]], notes: list[str]) -> tuple[_Rows, str | None]:
    """The dense network's row of each seed, and what it is called."""
    first = group[0]
    if first.dense:
        return {}, None
    if first.starts_dense:
        return {member.pair: member.rows[0] for member in group if member.rows[0]["density"] == 1}, "level 0"
    found = []
    for other in groups:
        theirs = other[0]
        if theirs.rows[0]["density"] != 1 or theirs.frozen or _differ(first, theirs, TASK):
            continue
        if not first.frozen and (differs := _differ(first, theirs, RECIPE)):
            notes.append(f"{theirs.name} is no baseline of {first.name}: {', '.join(differs)}")
            continue
        rows = {member.pair: member.rows[0] for member in other if member.rows[0]["density"] == 1}
        found.append((len(rows.keys() & {member.pair for member in group}), theirs.dense, rows, theirs))
    if not found:
        return {}, None
    _, _, rows, theirs = max(found, key=lambda item: item[:2])
    if first.frozen and (differs := _differ(first, theirs, RECIPE)):
        notes.append(f"{first.name} is compared with dense training by another recipe: {', '.join(differs)}")
    return rows, theirs.method if theirs.dense else f"level 0 of {theirs.method}"


def _differ(one: Member, other: Member, keys: Sequence[str]) -> list[str]:
    """What differs in the flags, of others' numbers those that are said; `init = "keep"` is any init."""
    if one.measured_here and other.measured_here:
        both = list(keys)  # what is not set is a value too: no clipping, no loss of one's own
    else:
        both = [key for key in keys if key in one.recipe and key in other.recipe]
    if "keep" in (one.recipe.get("init"), other.recipe.get("init")):
        both = [key for key in both if key != "init"]
    return differences(other.recipe, one.recipe, both) if both else []


def _rows_by_level(group: list[Member]) -> list[_Rows]:
    """The rows of all seeds, level by level; of others' numbers, density by density."""
    if group[0].measured_here:
        number = min(len(member.rows) for member in group)
        return [{member.pair: member.rows[level] for member in group} for level in range(number)]
    densities = sorted({row["density"] for member in group for row in member.rows}, reverse=True)
    return [
        {member.pair: row for member in group for row in member.rows if row["density"] == density}
        for density in densities
    ]


def _describe_level(group: list[Member], level: int, rows: _Rows, baseline: _Rows) -> dict[str, Any]:
    first = next(iter(rows.values()))
    there = [member for member in group if member.pair in rows]
    costs = [m.cost(level) if m.measured_here else rows[m.pair].get("dense_trainings") for m in there]
    is_baseline = all(baseline.get(pair) is row for pair, row in rows.items())
    return {
        "level": first.get("level"),
        "density": first["density"],
        "kept": first.get("kept"),
        **_summarize(group, rows),
        "dense_trainings": _mean(costs),
        "difference": None if is_baseline else _difference(rows, baseline),
        "retrained": any(row.get("retrained", False) for row in rows.values()),
        # The steps of scores, and of another recipe, are no steps of dense training.
        "later": None if is_baseline or group[0].frozen else _later(rows, baseline),
    }


def _summarize(group: Sequence[Member], rows: _Rows) -> dict[str, Any]:
    values = [float(row["test_accuracy"]) for row in rows.values()]
    moments = [row["min_validation_loss"] for row in rows.values() if "min_validation_loss" in row]
    steps = [int(moment["step"]) for moment in moments] if len(moments) == len(rows) else None
    return {
        "n": len(values),
        "seeds": [member.seed for member in group if member.pair in rows],
        "values": values,
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "interval": confidence_interval(values),
        "early_step": None if steps is None else statistics.fmean(steps),
        "early_steps": steps,
        "early_mean": None if steps is None else _mean([moment.get("test_accuracy") for moment in moments]),
    }


def _difference(rows: _Rows, others: _Rows) -> dict[str, Any] | None:
    found = difference(_accuracies(rows), _accuracies(others))
    return None if found is None else asdict(found)


def _later(rows: _Rows, others: _Rows) -> dict[str, Any] | None:
    """How much later, in steps, minimum validation loss comes than in the dense network; how often at the very end."""
    here, there = (
        {pair: float(row["min_validation_loss"]["step"]) for pair, row in part.items() if "min_validation_loss" in row}
        for part in (rows, others)
    )
    found = difference(here, there)
    paired = [pair for pair in here if pair in there]
    if found is None:
        return None
    at_end = sum(rows[pair]["min_validation_loss"].get("at_end", False) for pair in paired)
    return asdict(found) | {"dense": statistics.fmean(there[pair] for pair in paired), "at_end": at_end}


def _accuracies(rows: _Rows) -> dict[Any, float]:
    return {pair: float(row["test_accuracy"]) for pair, row in rows.items()}


def _describe_controls(group: Sequence[Member]) -> list[dict[str, Any]]:
    """A row for each control: of which level, trained or not, on which data; beside it, ticket minus control."""
    found: dict[tuple[Any, ...], dict[Any, Mapping[str, Any]]] = {}
    for member in group:
        for row in member.controls:
            key = (row.get("level"), row.get("data") or member.recipe.get("data", ""), row.get("trained", True))
            found.setdefault((*key, row["control"]), {})[member.pair] = row
    described = []
    for (level, data, trained, control), rows in found.items():
        first = next(iter(rows.values()))
        # On other data, and where frozen weights are trained, the ticket is a control among the others.
        tickets: _Rows = found.get((level, data, trained, "ticket"), {})
        if not tickets and _is_own(first, group[0]):
            tickets = {member.pair: row for member in group for row in member.rows if row.get("level") == level}
        described.append(
            {
                "control": control,
                "trained": trained,
                "data": data,
                "level": level,
                "density": first["density"],
                "kept": first.get("kept"),
                **_summarize(group, rows),
                "difference": None if control == "ticket" else _difference(tickets, rows),
                "p_holm": None,
            }
        )
    _correct(described)
    return sorted(described, key=lambda row: (row["data"], row["level"] or 0, row["control"]))


def _is_own(row: Mapping[str, Any], member: Member) -> bool:
    data = member.recipe.get("data", "")
    return bool((row.get("data") or data) == data and row.get("trained", True) != member.frozen)


def _correct(controls: list[dict[str, Any]]) -> None:
    """p-values of "the ticket is better", corrected for the number of controls beside one ticket on one data set."""
    together: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in controls:
        if row["difference"] is not None and row["difference"]["std"] is not None and row["control"] != "dense":
            together.setdefault((row["level"], row["data"], row["trained"]), {})[row["control"]] = row
    for rows in together.values():
        chances = {name: _chance(row["difference"]) for name, row in rows.items()}
        for name, chance in holm(chances).items():
            rows[name]["p_holm"] = chance


def _chance(found: Mapping[str, Any]) -> float:
    chance = chance_of_none(Difference(**found))
    assert chance is not None, found
    return chance


def _against_dense(group: Sequence[Member], baseline: _Rows) -> dict[int | None, dict[str, Any] | None]:
    """Random masks minus the dense network, by level."""
    found: dict[int | None, dict[Any, Mapping[str, Any]]] = {}
    for member in group:
        for row in member.controls:
            if row["control"] == "random" and _is_own(row, member):
                found.setdefault(row.get("level"), {})[member.pair] = row
    return {level: _difference(rows, baseline) for level, rows in found.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _tell_apart(rows: list[dict[str, Any]], recipes: list[dict[str, Any]]) -> None:
    """`differs`, and labels by which no two groups are the same."""
    for row, recipe in zip(rows, recipes, strict=True):
        others = [other for other in recipes if other["method"] == recipe["method"] and other is not recipe]
        keys = {key for other in others for key in {*other, *recipe} if other.get(key) != recipe.get(key)} - _SHOWN
        row["differs"] = {key: recipe.get(key) for key in sorted(keys)}
    for row, recipe in zip(rows, recipes, strict=True):
        same = [other for other in rows if other["method"] == row["method"] and other is not row]
        words = [str(recipe.get("label") or row["method"])]
        words += [str(row[key]) for key in ("model", "data") if any(other[key] != row[key] for other in same)]
        density = [f"d{row['density']:.3g}"] if any(other["density"] != row["density"] for other in same) else []
        differs = [f"{key}={value}" for key, value in row["differs"].items()]
        row["label"], row["curve"] = " ".join([*words, *density, *differs]), " ".join([*words, *differs])
