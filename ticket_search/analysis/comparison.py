"""The comparison of runs: the seeds of a configuration form a group, to compare with the dense network and controls."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..contract.errors import RequestError
from ..contract.flags import differences, is_zero
from ..contract.metric import Metric, known_value, value_of
from ..running.read_config import find_kind
from ..runs.names import SIGNS
from .findings import Comparison, Control, Delay, Group, Level, Start
from .intervals import Difference, chance_of_none, confidence_interval, difference, holm
from .read_runs import Member, read_members
from .verdict import answer_levels, judge, scale_of

# The flags in which a ticket and the dense network that it is compared with must be equal: those of the task, and,
# where the ticket's weights are trained, those of the training.
TASK = (
    "model", "model_args", "activation", "data", "train_size", "image_size", "image_mean", "image_std", "crop", "flip",
    "loss", "metric", "label_smoothing", "split_seed", "precision", "tasks", "task_seed",
)  # fmt: skip
RECIPE = (
    "epochs", "batch_size", "optimizer", "lr", "momentum", "nesterov", "weight_decay", "schedule", "milestones", "drop",
    "warmup", "clip", "accumulate", "init", "init_gain",
)  # fmt: skip
# Flags that every table of groups shows in a column of their own.
_SHOWN = frozenset({"method", "model", "data", "density", "found_by", "label"})
# So many warnings of runs are told.
_MOST_WARNINGS = 10
# The measurements of all seeds at one level: `{Member.pair: row}`.
_Rows = Mapping[Any, Mapping[str, Any]]


def compare(
    runs: Iterable[str | os.PathLike[str]], *, delta: float | None = None, others: Iterable[Mapping[str, Any]] = ()
) -> Comparison:
    """Group finished runs that differ in their seeds only, and say of each group whether it is a ticket.

        comparison = compare(Path("runs").iterdir())
        for group in comparison.groups:
            print(group.label, group.mean, group.verdict and group.verdict.matching)

    Args:
        runs: the folders of the runs. The results of `ticket controls` in them are read too.
        delta: by how much a ticket may be worse than the dense network, in percentage points of accuracy or in the unit
            of another metric; to be fixed before any result is seen. If not given, half a percentage point of accuracy;
            of another metric no question is answered that needs it.
        others: measurements of other programs, as `tables.read_csv` returns them.

    Returns:
        The groups, by data, model and falling density; `findings.to_dict` turns them into plain dictionaries.

    Raises:
        RequestError: none of the folders holds a finished run, or a margin for runs of several metrics.
    """
    members, left_out = read_members(runs, others)
    if not members:
        raise RequestError(["there is no finished run to compare", *left_out])
    groups = _group(members, left_out)
    notes: list[str] = []
    metrics = list(dict.fromkeys(member.metric for member in members))
    if len(metrics) > 1:
        named = "; ".join(metric.in_words for metric in metrics)
        if delta is not None:
            raise RequestError(
                f"a margin of {delta:g} for several metrics ({named}): compare the runs of each by themselves"
            )
        notes.append(f"the runs are measured by several metrics ({named}); only runs of one metric are compared")
    found = _tell_apart([_describe(group, groups, delta, notes) for group in groups], [g[0].recipe for g in groups])
    tasks = {
        json.dumps([group[0].metric.name, {key: group[0].recipe.get(key) for key in TASK}], sort_keys=True)
        for group in groups
    }
    if len(tasks) > 1:
        notes.append(f"there are {len(tasks)} tasks (model, data, precision, ...); only runs of one task are compared")
    notes += _tell_warnings(members)
    found.sort(key=lambda group: (group.data, group.model, -group.density, group.method, group.label))
    numbered = tuple(replace(group, id=f"group-{number}") for number, group in enumerate(found, start=1))
    margin = delta if delta is not None else next((metric.margin for metric in metrics if metric.margin), None)
    return Comparison(margin, numbered, tuple(left_out), tuple(dict.fromkeys(notes)))


def _group(members: Iterable[Member], left_out: list[str]) -> list[list[Member]]:
    """The runs of each configuration, one for each draw of weights and data order; the others go to `left_out`."""
    grouped: dict[str, dict[Any, Member]] = {}
    for member in members:
        key = json.dumps([member.recipe, member.metric.to_dict()], sort_keys=True)
        group = grouped.setdefault(key, {})
        if member.seeds in group:
            left_out.append(f"{member.name}: repeats the seeds of {group[member.seeds].name}")
        elif same := next((other for other in group.values() if other.pair == member.pair), None):
            left_out.append(
                f"{member.name}: it has the weights and the data order of {same.name} and differs in the mask seed only"
            )
        else:
            group[member.seeds] = member
    return [list(group.values()) for group in grouped.values()]


def _describe(group: list[Member], groups: Sequence[list[Member]], given: float | None, notes: list[str]) -> Group:
    first = group[0]
    delta, scale = first.metric.margin if given is None else given, scale_of(first.metric)
    baseline, name = _find_baseline(group, groups, notes)
    notes += _tell_weights(first)
    levels = tuple(_describe_level(group, level, rows, baseline) for level, rows in enumerate(_rows_by_level(group)))
    controls = _describe_controls(group)
    verdict = None
    if not first.dense:
        levels = answer_levels(levels, delta, scale)
        # The questions are not about the ticket on other data, nor about a frozen one that was trained after all.
        own = [row for row in controls if row.data == _data_of(first) and row.trained != first.frozen]
        verdict = judge(
            levels, own, _against_dense(group, baseline), delta, first.whole_units, scale, first.method == "random",
            first.frozen,
        )  # fmt: skip
    last = levels[-1]
    return Group(
        label=first.method,
        **{key: first.recipe.get(key, "") for key in ("method", "model", "data", "precision")},
        **{key: last[key] for key in ("density", "kept", "n", "seeds", "mean", "std", "interval", "dense_trainings")},
        val_mean=_mean([value_of(member.rows[-1], "val") for member in group]),
        seconds=_mean([member.seconds for member in group]),
        runs=tuple(member.name for member in group),
        baseline=name,
        levels=levels,
        controls=controls,
        verdict=verdict,
        metric=first.metric,
        delta=delta,
        start=_start_of(first),
        recipe=first.recipe,
        given=first.given,
    )


def _tell_warnings(members: Iterable[Member]) -> list[str]:
    """What makes the results of runs doubtful, as their summaries tell: the first of many."""
    told = [f"{member.name}: {text}" for member in members for text in member.warnings]
    more = len(told) - _MOST_WARNINGS
    return told[:_MOST_WARNINGS] + ([f"{more:,} more warnings are in the summaries of the runs"] if more > 0 else [])


def _start_of(member: Member) -> Start:
    """From what the tickets of a group are trained, by the flags of its method."""
    if not member.measured_here or member.method == "train":
        return "unknown"
    if member.frozen:
        return "frozen"
    if find_kind(member.method).traits.changes_masks:
        return "moving"
    retrained = any(row.get("retrained", False) for row in member.rows)
    if retrained or member.recipe.get("then", "rewind") != "rewind":
        return "trained"
    if member.recipe.get("weights"):
        return "given"
    return "initialization" if is_zero(member.recipe.get("rewind", "0")) else "later"


def _tell_weights(member: Member) -> list[str]:
    """How much of the cost of a search lies behind the weights that it started from, where a run of ours trained them.

    All runs of a group started from the same.
    """
    if member.weights is None:
        return [f"the cost of {member.name} is without that of the weights that it started from, which is not known"]
    if not member.weights:
        return []
    return [
        f"{member.name} started from the weights of the run {member.weights['run']}: of its "
        f"{member.dense_trainings:.1f} dense trainings {member.weights['dense_trainings']:.1f} are theirs"
    ]


def _find_baseline(group: list[Member], groups: Sequence[list[Member]], notes: list[str]) -> tuple[_Rows, str | None]:
    """The measurements of the dense network, and its name; none where there is no dense network to compare with."""
    first = group[0]
    if first.dense:
        return {}, None
    if first.starts_dense:
        return {member.pair: member.rows[0] for member in group if member.rows[0]["density"] == 1}, "level 0"
    found = []
    for other in groups:
        theirs = other[0]
        if theirs.rows[0]["density"] != 1 or theirs.frozen:
            continue
        # Before the flags of the task, of which the metric is one: a metric that follows from the data is in no flag.
        if theirs.metric != first.metric:
            if not _differ(first, theirs, [key for key in TASK if key != "metric"]):
                measured = f"{theirs.metric.in_words}, not by {first.metric.in_words}"
                notes.append(f"{theirs.name} is not the dense baseline of {first.name}: it is measured by {measured}")
            continue
        if _differ(first, theirs, TASK):
            continue
        if not first.frozen and (differs := _differ(first, theirs, RECIPE)):
            notes.append(f"{theirs.name} is not the dense baseline of {first.name}: {', '.join(differs)}")
            continue
        rows = {member.pair: member.rows[0] for member in other if member.rows[0]["density"] == 1}
        found.append((len(rows.keys() & {member.pair for member in group}), theirs.dense, rows, theirs))
    if not found:
        return {}, None
    _, _, rows, theirs = max(found, key=lambda item: item[:2])
    if first.frozen and (differs := _differ(first, theirs, RECIPE)):
        notes.append(f"{first.method} is compared with a dense network of another recipe: {', '.join(differs)}")
    return rows, theirs.method if theirs.dense else f"level 0 of {theirs.method}"


def _differ(one: Member, other: Member, keys: Sequence[str]) -> list[str]:
    """The flags that differ; of other programs' numbers, only flags that both have. `init = "keep"` equals any init."""
    if one.measured_here and other.measured_here:
        both = list(keys)  # a flag that is not set is a value too, such as no clipping
    else:
        both = [key for key in keys if key in one.recipe and key in other.recipe]
    if "keep" in (one.recipe.get("init"), other.recipe.get("init")):
        both = [key for key in both if key not in ("init", "init_gain")]
    return differences(other.recipe, one.recipe, both) if both else []


def _rows_by_level(group: list[Member]) -> list[_Rows]:
    """The measurements of all seeds, level by level; for numbers of other programs density by density."""
    if group[0].measured_here:
        number = min(len(member.rows) for member in group)
        return [{member.pair: member.rows[level] for member in group} for level in range(number)]
    densities = sorted({row["density"] for member in group for row in member.rows}, reverse=True)
    return [
        {member.pair: row for member in group for row in member.rows if row["density"] == density}
        for density in densities
    ]


def _describe_level(group: list[Member], level: int, rows: _Rows, baseline: _Rows) -> Level:
    first, metric = next(iter(rows.values())), group[0].metric
    there = [member for member in group if member.pair in rows]
    costs = [m.cost(level) if m.measured_here else rows[m.pair].get("dense_trainings") for m in there]
    is_baseline = all(baseline.get(pair) is row for pair, row in rows.items())
    return Level(
        level=first.get("level"),
        density=first["density"],
        kept=first.get("kept"),
        **_summarize(group, rows),
        dense_trainings=_mean(costs),
        difference=None if is_baseline else difference(_merits(rows, metric), _merits(baseline, metric)),
        retrained=any(row.get("retrained", False) for row in rows.values()),
        guessing=sum(bool(baseline[pair].get("learned_nothing")) for pair in rows if pair in baseline),
        # Steps that train scores, or that follow another recipe, cannot be compared with those of dense training.
        later=None if is_baseline or group[0].frozen else _later(rows, baseline),
    )


def _summarize(group: Sequence[Member], rows: _Rows) -> dict[str, Any]:
    """The fields that a `Level` and a `Control` share."""
    values = tuple(known_value(row, "test") for row in rows.values())
    moments = [row["min_validation_loss"] for row in rows.values() if "min_validation_loss" in row]
    steps = tuple(int(moment["step"]) for moment in moments) if len(moments) == len(rows) else None
    return {
        "n": len(values),
        "seeds": tuple(member.seed for member in group if member.pair in rows),
        "values": values,
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "interval": confidence_interval(values),
        "early_step": None if steps is None else statistics.fmean(steps),
        "early_steps": steps,
        "early_mean": None if steps is None else _mean([value_of(moment, "test") for moment in moments]),
    }


def _later(rows: _Rows, others: _Rows) -> Delay | None:
    here, there = (
        {pair: float(row["min_validation_loss"]["step"]) for pair, row in part.items() if "min_validation_loss" in row}
        for part in (rows, others)
    )
    found = difference(here, there)
    if found is None:
        return None
    paired = [pair for pair in here if pair in there]
    return Delay(
        **vars(found),
        dense=statistics.fmean(there[pair] for pair in paired),
        at_end=sum(rows[pair]["min_validation_loss"].get("at_end", False) for pair in paired),
    )


def _merits(rows: _Rows, metric: Metric) -> dict[Any, float]:
    """The values of the metric, negative where lower is better: a positive difference is always for the better."""
    return {pair: metric.merit(known_value(row, "test")) for pair, row in rows.items()}


def _describe_controls(group: Sequence[Member]) -> tuple[Control, ...]:
    """The controls by kind, level, data set, and whether they were trained."""
    found: dict[tuple[Any, ...], dict[Any, Mapping[str, Any]]] = {}
    for member in group:
        for row in member.controls:
            key = (row.get("level"), row.get("data") or _data_of(member), row.get("trained", True))
            found.setdefault((*key, row["control"]), {})[member.pair] = row
    described = []
    for (level, data, trained, control), rows in found.items():
        first, metric = next(iter(rows.values())), group[0].metric
        # On other data, and where frozen weights are trained, the ticket is one of the controls.
        tickets: _Rows = found.get((level, data, trained, "ticket"), {})
        if not tickets and _is_own(first, group[0]):
            tickets = {member.pair: row for member in group for row in member.rows if row.get("level") == level}
        described.append(
            Control(
                control=control,
                trained=trained,
                data=data,
                level=level,
                density=first["density"],
                kept=first.get("kept"),
                **_summarize(group, rows),
                difference=None if control == "ticket" else difference(_merits(tickets, metric), _merits(rows, metric)),
            )
        )
    return tuple(sorted(_correct(described), key=lambda row: (row.data, row.level or 0, row.control)))


def _data_of(member: Member) -> str:
    return str(member.recipe.get("data", ""))


def _is_own(row: Mapping[str, Any], member: Member) -> bool:
    """Whether a control is of the ticket's own data, and trained where the ticket is."""
    data = _data_of(member)
    return bool((row.get("data") or data) == data and row.get("trained", True) != member.frozen)


def _correct(controls: Sequence[Control]) -> list[Control]:
    """The controls with their p-values, corrected for the number of controls beside one ticket on one data set.

    Those of signs answer a question of their own, so that making them changes no answer about the others.
    """
    together: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in controls:
        # The dense network is no control of the mask; a single pair has no p-value.
        if row.difference is None or row.control == "dense" or (chance := chance_of_none(row.difference)) is None:
            continue
        together.setdefault(_family(row), {})[row.control] = chance
    corrected = {key: holm(chances) for key, chances in together.items()}
    return [replace(row, p_holm=corrected.get(_family(row), {}).get(row.control)) for row in controls]


def _family(row: Control) -> tuple[Any, ...]:
    return row.level, row.data, row.trained, row.control in SIGNS


def _against_dense(group: Sequence[Member], baseline: _Rows) -> dict[int | None, Difference | None]:
    """Random masks minus the dense network, by level."""
    found: dict[int | None, dict[Any, Mapping[str, Any]]] = {}
    for member in group:
        for row in member.controls:
            if row["control"] == "random" and _is_own(row, member):
                found.setdefault(row.get("level"), {})[member.pair] = row
    metric = group[0].metric
    return {level: difference(_merits(rows, metric), _merits(baseline, metric)) for level, rows in found.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean, or None where a value is missing."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _tell_apart(groups: Sequence[Group], recipes: Sequence[dict[str, Any]]) -> list[Group]:
    """The groups with the flags in which each differs from the others of its method, and with labels of their own."""
    told: list[Group] = []
    for group, recipe in zip(groups, recipes, strict=True):
        others = [other for other in recipes if other["method"] == recipe["method"] and other is not recipe]
        keys = {key for other in others for key in {*other, *recipe} if other.get(key) != recipe.get(key)} - _SHOWN
        differs = {key: recipe.get(key) for key in sorted(keys)}
        same = [other for other in groups if other.method == group.method and other is not group]
        density = f"d{group.density:.3g}"
        more = [group.model] if any(other.model != group.model for other in same) else []
        more += [group.data] if any(other.data != group.data for other in same) else []
        more += [density] if any(other.density != group.density for other in same) else []
        more += [f"{key}={value}" for key, value in differs.items()]
        # A label from a CSV that was written here says some of it already.
        words = str(recipe.get("label") or group.method).split(" ")
        words += [word for word in more if word not in words]
        label, curve = " ".join(words), " ".join(word for word in words if word != density)
        told.append(replace(group, label=label, curve=curve, differs=differs))
    return told
