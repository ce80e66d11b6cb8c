"""The runs to compare, read from their folders, and measurements of other programs, in one form."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import supermask

from ..contract.errors import RequestError, command_line
from ..contract.flags import public_fields
from ..contract.metric import ACCURACY, METRICS, Metric, metric_of, value_of
from ..contract.recorded import always_recorded
from ..running.read_config import find_kind, read_config
from ..runs.earlier_run import trainings_up_to
from ..runs.folders import inspect_folder
from ..runs.names import CONFIG, CONTROLS, SUMMARY
from ..runs.records import read_record
from ..runs.versions import too_new
from .commands import PLACE

# Two runs are the same experiment where they are equal in all flags but seeds, paths and those of the machine.
_SEEDS = ("seed", "init_seed", "order_seed", "mask_seed")
NOT_COMPARED = frozenset({*_SEEDS, "data_dir", "threads", "workers", "log", "ticket", "whole", "device"})


@dataclass(frozen=True)
class Member:
    """One seed of an experiment: a run, or the lines of a CSV with that seed.

    `rows` has a measurement for each level, or a single one, and `controls` one for each control; both are measured by
    the `metric`. `weights` is the part of the cost that lies behind the weights that the search started from: empty if
    none does, None if it is not known. Runs of two experiments are compared as a pair where they have the same `pair`:
    the seeds of the weights and of the data order. `given` has the flags that are no part of the recipe, and without
    which a run cannot be typed again.
    """

    name: str
    recipe: dict[str, Any]
    seed: int
    seeds: tuple[Any, ...]
    rows: list[dict[str, Any]]
    controls: list[dict[str, Any]] = field(default_factory=list)
    seconds: float | None = None
    dense_trainings: float | None = None
    weights: Mapping[str, Any] | None = field(default_factory=dict)
    measured_here: bool = True
    metric: Metric = ACCURACY
    given: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.recipe["method"])

    @property
    def pair(self) -> tuple[Any, ...]:
        """The seeds of the weights and of the data order."""
        return self.seeds[:2]

    @property
    def frozen(self) -> bool:
        """Whether the ticket's weights are never trained."""
        return self.measured_here and not find_kind(self.method).traits.trains_weights

    @property
    def dense(self) -> bool:
        """Whether this is the training of a dense network."""
        return len(self.rows) == 1 and self.rows[0]["density"] == 1 and not self.frozen

    @property
    def starts_dense(self) -> bool:
        """Whether there are several levels, of which the first is the dense network."""
        return len(self.rows) > 1 and self.rows[0]["density"] == 1

    @property
    def whole_units(self) -> bool:
        """Whether filters, blocks or groups were dropped, not single weights."""
        if not self.measured_here:
            return False
        # A field of most methods, and fixed in that of filters.
        fixed = vars(find_kind(self.method).Config).get("granularity", "weight")
        return bool(self.recipe.get("granularity", fixed) != "weight")

    def cost(self, level: int) -> float | None:
        """The cost of the search up to a level, in trainings of the dense network."""
        total = self.rows[level].get("dense_trainings", self.dense_trainings)
        if total is None or not self.measured_here:
            return total
        return trainings_up_to(level, self.rows, total, (self.weights or {}).get("dense_trainings", 0.0))


def read_members(
    runs: Iterable[str | os.PathLike[str]], others: Iterable[Mapping[str, Any]] = ()
) -> tuple[list[Member], list[str]]:
    """The finished runs among folders, the measurements of other programs, and why each other folder is left out."""
    members, left_out = [], []
    for folder in dict.fromkeys(Path(run).resolve() for run in runs):
        folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        found = inspect_folder(folder)
        if found.state in ("new", "not a run"):
            left_out.append(found.why or f"{folder}: not a run")
        elif found.state == "unfinished":
            left_out.append(f"{folder}: not finished; `{command_line('resume', folder)}` goes on")
        else:
            try:
                member = _read_run(folder)
            except (ValueError, KeyError, OSError) as error:
                left_out.append(too_new(folder) or f"{folder}: damaged ({error})")
                continue
            try:
                read_config(folder)
            except RequestError as error:  # as of a method whose package is not installed here
                left_out.append(too_new(folder) or f"{folder}: {error}")
                continue
            if strange := [row["control"] for row in member.controls if _of_another_metric(row, member)]:
                left_out.append(f"{folder}: its controls {', '.join(strange)} are measured by another metric")
            member = replace(member, controls=[row for row in member.controls if not _of_another_metric(row, member)])
            if claim := _false_claim(folder, member):
                left_out.append(f"{folder}: refused: {claim}")
            else:
                members.append(member)
    return members + _read_others(others), left_out


def _of_another_metric(row: Mapping[str, Any], member: Member) -> bool:
    return "metric" in row and metric_of(row) != member.metric


def _read_run(folder: Path) -> Member:
    config, summary = read_record(folder, CONFIG), read_record(folder, SUMMARY)
    cost = summary["cost"]
    weights = cost.get("weights", {})
    controls = read_record(folder, CONTROLS)["rows"] if (folder / CONTROLS).exists() else []
    seed = config.get("seed", 0)
    # A ticket brings the weights that it starts from: a training of it with other seeds draws no weights.
    drawn = {**config, **_drawn_by(config)}
    init = drawn.get("init_seed", drawn.get("seed", 0))
    return Member(
        name=str(folder),
        recipe={key: value for key, value in (_defaults(config["method"]) | config).items() if key not in NOT_COMPARED},
        seed=seed,
        seeds=(init, config.get("order_seed", seed), config.get("mask_seed", seed)),
        rows=[_mark_end(row, cost) for row in summary.get("levels") or [summary]],
        controls=controls,
        seconds=summary["seconds"] + (weights or {}).get("seconds", 0.0),
        dense_trainings=cost["dense_trainings"],
        weights=weights,
        metric=metric_of(summary),
        given={key: config[key] for key in PLACE if key in config},
        warnings=tuple(str(text) for text in summary.get("warnings", ())),
    )


@cache
def _defaults(method: str) -> dict[str, Any]:
    """The flags that a record names only where they have another value; of a method that is not there none."""
    try:
        kind = find_kind(method).Config
    except RequestError:
        return {}
    always, fields = always_recorded(method), public_fields(kind)
    defaults = {
        key: field.get_default() for key, field in fields.items() if key not in always and not field.is_required()
    }
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items() if value is not None
    }


def _mark_end(row: dict[str, Any], cost: Mapping[str, Any]) -> dict[str, Any]:
    """The row with a note whether the minimum of its validation loss is at the last step of the training."""
    moment = row.get("min_validation_loss")
    if moment is None:
        return row
    before = cost.get("weights") or {"steps": 0, "dense_trainings": 0.0}
    trainings = cost["dense_trainings"] - before["dense_trainings"]
    whole = round((cost["steps"] - before["steps"]) / trainings) if trainings else 0
    return {**row, "min_validation_loss": {**moment, "at_end": moment["step"] == whole}}


def _drawn_by(config: Mapping[str, Any]) -> dict[str, Any]:
    """The seeds of the weights that a trained ticket started from, where its file still exists."""
    own = config.get("control", "none") == "reinit"
    if config["method"] != "train" or own or not Path(config["ticket"]).is_file():
        return {}
    recorded = supermask.load(config["ticket"]).meta.get("config")
    recorded = recorded if isinstance(recorded, dict) else {}
    return {key: recorded[key] for key in ("seed", "init_seed") if type(recorded.get(key)) is int}


def _false_claim(folder: Path, member: Member) -> str:
    """How the summary of a run contradicts its ticket; empty where it does not."""
    path = folder / "ticket.safetensors"
    if not path.exists():
        return f"{path.name} is missing"
    try:
        ticket = supermask.load(path)
    except (supermask.TicketError, OSError) as error:
        return str(error)
    claimed = member.rows[-1]
    if ticket.kept != claimed["kept"]:
        return f"its ticket keeps {ticket.kept:,} weights, its summary says {claimed['kept']:,}"
    metric, value = member.metric, value_of(claimed, "test")
    if value is None:
        return f"its summary has no test_metric, the value of its {metric.name}"
    said = _said(ticket.meta)
    for claim in (value, claimed.get("test_accuracy", value)):
        if said is not None and said != claim:
            return f"its ticket was measured at {metric.with_unit(said)}, its summary says {metric.with_unit(claim)}"
    return ""


def _said(meta: Mapping[str, Any]) -> Any:
    """What a ticket says of its final state on test data, in a number; None where it says none."""
    metric = meta.get("metric")
    kept = meta.get("accuracy") or (metric.get("values") if isinstance(metric, dict) else None)
    final = kept.get("final") if isinstance(kept, dict) else None
    said = final.get("test") if isinstance(final, dict) else None
    return said if type(said) in (int, float) else None


def _read_others(rows: Iterable[Mapping[str, Any]]) -> list[Member]:
    """The lines of a CSV, one for each density and seed, as members."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    # Controls come last: a control may be on other data than its ticket.
    for row in sorted(rows, key=lambda row: bool(row.get("control"))):
        metric = metric_of_line(row)
        key = (*(row.get(name) or "" for name in ("method", "label", "model", "data")), row["seed"], metric)
        if row.get("control") and key not in found:
            key = next((other for other in found if (*other[:3], *other[4:]) == (*key[:3], *key[4:])), key)
        moment = {"min_validation_loss": {"step": row["early_step"]}} if row.get("early_step") is not None else {}
        found.setdefault(key, []).append({**row, **moment})
    densities: dict[tuple[Any, ...], set[float]] = {}
    for key, lines in found.items():
        densities.setdefault((*key[:4], key[5]), set()).update(
            line["density"] for line in lines if not line.get("control")
        )
    members = []
    for key, lines in found.items():
        method, label, model, data, seed, metric = key
        recipe = {"method": method, "label": label, "model": model, "data": data}
        # A density has the same level in all seeds, even where a seed lacks some densities.
        order = sorted(densities[(*key[:4], metric)], reverse=True)
        places = {density: place if len(order) > 1 else None for place, density in enumerate(order)}
        placed = [{**line, "level": _level(line, places.get(line["density"]))} for line in lines]
        own = sorted((line for line in placed if not line.get("control")), key=lambda line: -line["density"])
        beside = [line for line in placed if line.get("control")]
        members.append(
            Member(
                name=f"{label or method}, seed {seed}",
                recipe={key: value for key, value in recipe.items() if value},
                seed=seed,
                seeds=(seed, seed, seed),
                rows=own,
                controls=beside,
                measured_here=False,
                metric=metric,
            )
        )
    return [member for member in members if member.rows]


def metric_of_line(row: Mapping[str, Any]) -> Metric:
    """The metric of a measurement of another program: accuracy in percent where it names none."""
    if not row.get("metric"):
        return ACCURACY
    known = METRICS.get(str(row["metric"]), Metric(str(row["metric"])))
    return Metric(known.name, row.get("direction") or known.direction, row.get("unit") or known.unit)


def _level(line: Mapping[str, Any], otherwise: int | None) -> int | None:
    """The level that a line gives, or else `otherwise`."""
    level: int | None = line.get("level")
    return otherwise if level is None else level
