"""From the folder of a run to the evidence of a diagnosis: its records, those of runs beside it, and its data."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import supermask

from ..analysis.comparison import RECIPE, TASK
from ..analysis.read_runs import NOT_COMPARED
from ..contract.errors import RequestError
from ..contract.flags import Config, differs_from, steps_of, to_plain
from ..contract.metric import Metric, known_value, metric_of
from ..data.samples import Samples, whole_batches
from ..running.read_config import find_kind, read_config
from ..runs.folders import inspect_folder, list_runs
from ..runs.names import CONFIG, CONNECT, CONTROLS, METRICS, SUMMARY, TICKET
from ..runs.records import read_record
from ..runs.run import Run
from .barriers import check_record
from .evidence import Barrier, Curve, Evidence, Layer
from .suggestions import with_seed

# The rates with which published recipes train: Frankle & Carbin, 2018 (Adam), Ramanujan et al., 2020 (SGD).
_USUAL_RATES = {"adam": 1.2e-3, "adamw": 1.2e-3, "sgd": 0.1}


def gather(run: Run, samples: Samples, level: int | None = None, delta: float | None = None) -> Evidence:
    """The evidence about a finished run, without training or measuring anything.

    Args:
        run: a finished search.
        samples: its data, whose validation split is counted.
        level: whose ticket is meant; if not given that of the last level.
        delta: the margin, in the unit of the metric; if not given that of the metric, which only accuracy has.

    Raises:
        RequestError: a record that is damaged.
    """
    config, metric, rows = run.config, run.metric, run.levels
    place = None if not rows else int(rows[-1]["level"]) if level is None else level
    own = rows[place] if place is not None else run.summary
    traits = find_kind(config.method).traits
    dense, dense_from = _find_dense(run)
    per_epoch = whole_batches(samples.train_size, config.batch_size)
    ticket = supermask.load(ticket_path(run, place))
    kept = metric.merit(known_value(own, "val"))
    margin = metric.margin if delta is None else delta
    logged = run.metrics if (run.path / METRICS).exists() else []
    starts_dense = bool(rows) and rows[0]["density"] == 1 and traits.trains_weights
    others = other_seeds(run)
    found = Evidence(
        path=str(run.path),
        config=config,
        trains=traits.trains_weights,
        metric=metric,
        delta=margin,
        classes=samples.classes if metric.is_accuracy and samples.classes > 1 else None,
        samples=samples.held_out_size("validation"),
        level=place,
        density=own["density"],
        value=kept,
        densities=tuple(row["density"] for row in rows[1 : (place or 0) + 1]) if rows else (own["density"],),
        dense=dense,
        dense_from=dense_from,
        gaps=_gaps({config.seed: run, **others}, place),
        first_fall=None,
        steps=config.epochs * per_epoch,
        start=steps_of(str(getattr(config, "rewind", "0")), per_epoch),
        base=_curve(logged, "level-00", metric) if starts_dense else None,
        own=_curve(logged, None if place is None else f"level-{place:02d}", metric),
        layers=_layers(ticket),
        normalized=_has_norms(ticket),
        usual_rate=usual_rate(config),
        controls=_controls(run, place, traits.trains_weights),
        control_gaps=_control_gaps(others, place, traits.trains_weights),
        barriers=_barriers(run, place),
    )
    return replace(found, first_fall=_first_fall(run, found))


def ticket_path(run: Run, level: int | None) -> Path:
    """The file of a level's ticket, or of a run without levels."""
    return run.path / TICKET if level is None else run.path / "levels" / f"{level:02d}" / TICKET


def usual_rate(config: Config) -> float:
    """The learning rate that the method has of itself with this optimizer, or the one that published recipes have."""
    fields = find_kind(config.method).Config.model_fields
    if fields["optimizer"].get_default() == config.optimizer:
        return float(fields["lr"].get_default())
    return _USUAL_RATES[config.optimizer]


def _layers(ticket: supermask.Ticket) -> tuple[Layer, ...]:
    found = []
    for name, mask in ticket.masks.counted().items():
        rows = mask.flatten(1) if mask.dim() > 1 else mask[:, None]
        emptied = int((~rows.any(1)).sum())
        found.append(Layer(name, int(mask.sum()), mask.numel(), len(mask), emptied))
    return tuple(found)


def _has_norms(ticket: supermask.Ticket) -> bool:
    """Whether the network normalizes: by its running statistics, or by the names of its layers."""
    names = ticket.states["final"].names
    return any("running_mean" in name or "norm" in name.lower() or ".ln" in name for name in names)


def _curve(rows: Sequence[Mapping[str, Any]], stage: str | None, metric: Metric) -> Curve | None:
    """A training by the rows of its stage; of no stage the last one that was evaluated. None where nothing was."""
    train, value = f"{metric.name}/train", f"{metric.name}/validation"
    evaluated = [row for row in rows if {"loss/train", "loss/validation", train, value} <= row.keys()]
    stage = evaluated[-1]["stage"] if stage is None and evaluated else stage
    own = [row for row in evaluated if row["stage"] == stage]
    if not own:
        return None
    # Steps are counted over the whole search.
    first = next(place for place, row in enumerate(rows) if row["stage"] == stage)
    before = int(rows[first - 1]["step"]) if first else 0
    return Curve(
        tuple(int(row["step"]) - before for row in own),
        tuple(row["loss/train"] for row in own), tuple(metric.merit(row[train]) for row in own),
        tuple(row["loss/validation"] for row in own), tuple(metric.merit(row[value]) for row in own),
    )  # fmt: skip


def _controls(run: Run, level: int | None, trained: bool) -> dict[str, float]:
    """The controls of a level on the run's own data, trained where its ticket is."""
    if not (run.path / CONTROLS).exists():
        return {}
    rows = read_record(run.path, CONTROLS)["rows"]
    return {
        row["control"]: run.metric.merit(known_value(row, "val"))
        for row in rows
        if row.get("level") == level and row.get("trained", True) == trained and row.get("data") == run.config.data
        and "metric" not in row
    }  # fmt: skip


def _barriers(run: Run, level: int | None) -> tuple[Barrier, ...]:
    """The barriers of the dense network and of the level's ticket, by step, where `ticket connect` has measured some.

    Raises:
        RequestError: its record is damaged.
    """
    if not (run.path / CONNECT).exists():
        return ()
    rows = check_record(read_record(run.path, CONNECT), run.path / CONNECT).rows
    found: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if row.arm == "dense" or (row.arm == "ticket" and row.level == level):
            found.setdefault((row.arm, row.step), []).append(row.barrier)
    return tuple(Barrier(arm, step, statistics.fmean(each), len(each)) for (arm, step), each in sorted(found.items()))


def _find_dense(run: Run) -> tuple[float | None, str]:
    """The dense network on validation, and which it is: level 0, or a dense run beside the run.

    Of several the one with its seed is taken. It is of the same task; where the ticket's weights are trained, also of
    the same training.
    """
    if run.levels and run.levels[0]["density"] == 1:
        return run.metric.merit(known_value(run.levels[0], "val")), "level 0 of the search"
    keys = (*TASK, *RECIPE) if find_kind(run.config.method).traits.trains_weights else TASK
    found = []
    for folder, config in _beside(run):
        if _differ(config, run.config, keys):
            continue
        summary = read_record(folder, SUMMARY)
        row = summary.get("levels", [summary])[0]
        if row["density"] == 1 and metric_of(summary) == run.metric and find_kind(config.method).traits.trains_weights:
            own = config.seeds["init"] == run.config.seeds["init"]
            found.append(
                (own, find_kind(config.method).traits.dense, run.metric.merit(known_value(row, "val")), folder)
            )
    if not found:
        return None, ""
    _, _, value, folder = max(found, key=lambda item: item[:2])
    return value, str(folder)


def _differ(one: Config, other: Config, keys: Sequence[str]) -> bool:
    drawn = ("init", "init_gain") if "keep" in (one.init, other.init) else ()
    return any(getattr(one, key, None) != getattr(other, key, None) for key in keys if key not in drawn)


def _beside(run: Run) -> Iterator[tuple[Path, Config]]:
    """The other finished runs in the folder of runs, with their configurations; those that cannot be read are none."""
    for folder in list_runs(run.path.resolve().parent):
        if folder == run.path.resolve() or inspect_folder(folder).state != "finished":
            continue
        try:
            yield folder, read_config(folder)
        except RequestError:  # of a method that is not installed here, or damaged: no run to compare with
            continue


def other_seeds(run: Run) -> dict[int, Run]:
    """The finished runs beside a run that differ in the seed only, by seed."""
    found: dict[int, Run] = {}
    for folder, config in _beside(run):
        if config.method != run.config.method or config.seed == run.config.seed:
            continue
        wanted = {key: value for key, value in to_plain(with_seed(run.config, config.seed)).items()}
        there = {**read_record(folder, CONFIG)}
        for key in NOT_COMPARED - {"seed", "init_seed", "order_seed", "mask_seed"}:
            there.pop(key, None)
            if key in wanted:
                there[key] = wanted[key]
        if not differs_from(there, with_seed(run.config, config.seed)):
            found.setdefault(config.seed, Run(folder, config))
    return found


def _gaps(runs: Mapping[int, Run], level: int | None) -> dict[int, float]:
    """Dense less ticket of each seed of the recipe that has run."""
    found = {}
    for seed, each in runs.items():
        dense, _ = _find_dense(each)
        row = row_at(each, level)
        if dense is not None and row is not None:
            found[seed] = dense - each.metric.merit(known_value(row, "val"))
    return found


def _control_gaps(runs: Mapping[int, Run], level: int | None, trained: bool) -> dict[str, dict[int, float]]:
    """Ticket less control of each seed, by the name of the control."""
    found: dict[str, dict[int, float]] = {}
    for seed, each in runs.items():
        if (row := row_at(each, level)) is None:
            continue
        ticket = each.metric.merit(known_value(row, "val"))
        for control, value in _controls(each, level, trained).items():
            found.setdefault(control, {})[seed] = ticket - value
    return found


def row_at(run: Run, level: int | None) -> Mapping[str, Any] | None:
    """What a run reports of a level; of no level, the run's own summary. None where it has no such level."""
    if level is None:
        return run.summary
    return run.levels[level] if level < len(run.levels) else None


def _first_fall(run: Run, evidence: Evidence) -> tuple[int, float] | None:
    """The first level that is below the dense network by more than the margin and more than chance explains."""
    if evidence.dense is None or evidence.delta is None:
        return None
    for row in run.levels[1:]:
        value = run.metric.merit(known_value(row, "val"))
        if evidence.dense - value > max(evidence.least, evidence.noise_of(evidence.dense, value)):
            return int(row["level"]), row["density"]
    return None
