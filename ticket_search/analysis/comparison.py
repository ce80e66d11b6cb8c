"""Runs side by side: seeds of the same configuration grouped, mean, deviation and interval."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .config import read_json, read_toml
from .problems import RequestError

# What makes two runs the same experiment but for chance: everything that is not a seed or a place.
_SEEDS = ("seed", "init_seed", "order_seed", "mask_seed")
_NOT_COMPARED = frozenset({*_SEEDS, "data_dir", "threads", "workers", "ticket"})


def compare(runs: Iterable[str | Path]) -> dict[str, Any]:
    """Group finished runs that differ in their seeds only.

    Returns:
        `{"groups": [...], "left_out": [...]}`. A group has `method model data density n seeds mean std interval
        val_mean dense_trainings seconds runs` and `differs`, the flags that tell it from other groups of its method.
        Accuracies are test accuracies in percent; `std` and `interval` (95 %, Student's t) are null for one seed.

    Raises:
        RequestError: none of the folders holds a finished run.
    """
    groups: dict[str, dict[tuple[Any, ...], tuple[dict[str, Any], str]]] = {}
    left_out = []
    for folder in dict.fromkeys(Path(run).resolve() for run in runs):
        folder = _short(folder)
        if not (folder / "config.toml").exists():
            left_out.append(f"{folder}: not a run")
        elif not (folder / "summary.json").exists():
            left_out.append(f"{folder}: not finished; `ticket resume {folder}` goes on")
        else:
            try:
                config, summary = read_toml(folder / "config.toml"), read_json(folder / "summary.json")
            except ValueError as error:
                left_out.append(f"{folder}: damaged ({error})")
                continue
            recipe = {key: value for key, value in config.items() if key not in _NOT_COMPARED}
            seeds = tuple(config.get(key) for key in _SEEDS)
            members = groups.setdefault(json.dumps(recipe, sort_keys=True), {})
            if seeds in members:
                left_out.append(f"{folder}: repeats the seeds of {members[seeds][1]}")
            else:
                members[seeds] = (summary, str(folder))
    if not groups:
        raise RequestError(["there is no finished run to compare", *left_out])
    rows = [_describe(list(members.values())) for members in groups.values()]
    _tell_apart(rows, [json.loads(key) for key in groups])
    order = sorted(
        rows, key=lambda row: (row["data"], row["model"], -row["density"], row["method"], str(row["differs"]))
    )
    return {"groups": order, "left_out": left_out}


def _short(folder: Path) -> Path:
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _describe(members: list[tuple[dict[str, Any], str]]) -> dict[str, Any]:
    summaries = [summary for summary, _ in members]
    accuracies = [float(summary["test_accuracy"]) for summary in summaries]
    first = summaries[0]
    return {
        **{key: first[key] for key in ("method", "model", "data", "density")},
        "n": len(members),
        "seeds": sorted(summary["seed"] for summary in summaries),
        "mean": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "interval": confidence_interval(accuracies),
        "val_mean": statistics.fmean(summary["val_accuracy"] for summary in summaries),
        "kept": first["kept"],
        "dense_trainings": first["cost"]["dense_trainings"],
        "seconds": statistics.fmean(summary["seconds"] for summary in summaries),
        "runs": [folder for _, folder in members],
    }


def confidence_interval(values: list[float]) -> list[float] | None:
    """The 95 % interval of the mean of independent values by Student's t; None for less than two of them."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return [mean - half, mean + half]


def _tell_apart(rows: list[dict[str, Any]], recipes: list[dict[str, Any]]) -> None:
    shown = {"method", "model", "data", "density"}
    for row, recipe in zip(rows, recipes, strict=True):
        others = [other for other in recipes if other["method"] == recipe["method"] and other is not recipe]
        keys = {key for other in others for key in {*other, *recipe} if other.get(key) != recipe.get(key)} - shown
        row["differs"] = {key: recipe.get(key) for key in sorted(keys)}
