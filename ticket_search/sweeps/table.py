"""A table of methods: one line of CSV for each seed, density and control of several sweeps, and the page made of them.

The page depends on the CSV files only, so that sweeps which were run at different times and places are joined by it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import supermask
from supermask.shrinking.flow import flow

from ..analysis.intervals import Difference, confidence_interval, difference
from ..analysis.markdown import escape
from ..analysis.read_runs import Member, read_members
from ..contract.errors import RequestError
from ..contract.flags import public_fields
from ..contract.metric import known_value, metric_of
from ..methods import find_method
from ..runs.names import SUMMARY, TICKET
from ..runs.records import read_record
from .file import Sweep
from .predictions import Prediction
from .trials import trials_of

# A method that is not below another may be worse by so much, in the metric's unit.
MARGIN = 0.5
# Flags that a label does not name: the table has columns for them, or they are the same in all rows.
_UNNAMED = frozenset({"density", "levels", "lr", "seed", "epochs", "batch_size", "weights", "threads", "device"})


@dataclass(frozen=True)
class Line:
    """A measurement.

    role: `run`; `control` of one; or `trial`, by which a flag was chosen.
    model: the network. epochs: of each training.
    label: the method, and its flags that are not default. control: its kind, of a control.
    asked: the density that was asked for. kept of weights: what the ticket keeps; effective: those of the kept weights
        that lie on a path from the input to the output.
    value, validation: the metric on test and on validation data.
    trainings: the cost up to here, in trainings of the dense network. seconds: of the whole run, on one core.
    file_bytes: of the ticket. sampled: of masks that are drawn, what ten samples gave, as JSON.
    flags: the flags that are not default, as JSON.
    """

    sweep: str
    role: str
    model: str
    epochs: int
    label: str
    method: str
    control: str
    asked: float
    seed: int
    kept: int
    weights: int
    effective: int | None
    value: float
    validation: float | None
    trainings: float | None
    seconds: float | None
    file_bytes: int | None
    lr: float
    sampled: str
    flags: str


def measured_in(folders: Iterable[Path], runs: Path) -> list[Line]:
    """The lines of finished runs, without what takes passes through their networks: enough to judge predictions.

    The values are merits: those of a metric of which lower is better are negative.
    """
    found = []
    for folder in folders:
        merit = metric_of(read_record(folder, SUMMARY)).merit
        own = _lines_of_run(folder.parent.name, folder, "run", runs, sized=False)
        found += [replace(line, value=merit(line.value)) for line in own if line.role == "run"]
    return found


def lines_of(name: str, sweep: Sweep, folders: Iterable[Path], runs: Path) -> list[Line]:
    """The lines of a sweep: those of its runs and their controls, and those of the trials by which it chose.

    Args:
        name: of the sweep in the table.
        sweep: as it was read, with its candidates.
        folders: of its finished runs.
        runs: the folder of all runs.
    """
    trials = trials_of(sweep)
    tried = [runs / trials.name / run.name for run in trials.runs] if trials else []
    found = [line for folder in folders for line in _lines_of_run(name, folder, "run", runs)]
    return found + [
        line for folder in tried if (folder / TICKET).exists() for line in _lines_of_run(name, folder, "trial", runs)
    ]


def _lines_of_run(sweep: str, folder: Path, role: str, runs: Path, sized: bool = True) -> Iterator[Line]:
    members, left_out = read_members([folder])
    if not members:
        raise RequestError(left_out)
    member = members[0]
    changed = _changed_flags(member.recipe)
    if "weights" in changed and (path := Path(changed["weights"]).resolve()).is_relative_to(runs.resolve()):
        changed["weights"] = path.relative_to(runs.resolve()).as_posix()  # as in the sweep, on any machine
    make = partial(
        Line, sweep, model=str(member.recipe["model"]), epochs=int(member.recipe["epochs"]), method=member.method,
        label=_label(member.method, changed), seed=member.seed, lr=float(member.recipe["lr"]),
        flags=json.dumps(changed, sort_keys=True),
    )  # fmt: skip
    chosen = member.rows if role == "run" else member.rows[-1:]
    for place, row in enumerate(chosen, start=len(member.rows) - len(chosen)):
        if row["density"] == 1 and member.starts_dense:
            continue  # the dense network has lines of its own
        ticket = folder / TICKET
        if len(member.rows) > 1:
            ticket = folder / "levels" / f"{row['level']:02d}" / TICKET
        weights, effective = _sizes_of(ticket) if sized else (round(row["kept"] / row["density"]), None)
        yield make(
            role, control="", asked=_asked(member, place), kept=row["kept"], weights=weights, effective=effective,
            value=known_value(row, "test"), validation=known_value(row, "val"), trainings=member.cost(place),
            seconds=member.seconds, file_bytes=ticket.stat().st_size,
            sampled=json.dumps(row["samples"]) if "samples" in row else "",
        )  # fmt: skip
    for row in member.controls if role == "run" else []:
        place = next((place for place, own in enumerate(member.rows) if own.get("level") == row.get("level")), -1)
        kept = member.rows[place]["kept"]
        yield make(
            "control", control=str(row["control"]), asked=_asked(member, place), kept=kept,
            weights=round(kept / member.rows[place]["density"]), effective=None, value=known_value(row, "test"),
            validation=None, trainings=None, seconds=row.get("seconds"), file_bytes=None, sampled="",
        )  # fmt: skip


def _asked(member: Member, place: int) -> float:
    """The density that was asked for where a measurement stands: of levels that no flag names, what they keep."""
    row = member.rows[place]
    if levels := member.recipe.get("levels"):
        return float(levels[row["level"] - 1])
    last = place in (-1, len(member.rows) - 1)
    return float(member.recipe.get("density", 1.0)) if last else round(row["density"], 6)


def _sizes_of(path: Path) -> tuple[int, int | None]:
    """The number of maskable weights, and that of the kept ones on a path; None where paths are not defined."""
    ticket = supermask.load(path)
    shape = ticket.meta["architecture"]["arguments"].get("input_shape")
    if shape is None:
        return ticket.masks.size, None
    try:
        return ticket.masks.size, flow(ticket.model("final"), ticket.masks, torch.zeros(1, *shape)).effective.kept
    except ValueError:
        return ticket.masks.size, None


def _changed_flags(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a run that are not those of its method by default."""
    defaults = {key: field.get_default() for key, field in public_fields(find_method(recipe["method"]).Config).items()}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    return {key: value for key, value in recipe.items() if key in plain and value != plain[key]}


def _label(method: str, changed: Mapping[str, Any]) -> str:
    """The method, and what is special about it: its own flags, and how weights are drawn."""
    shared = public_fields(find_method("dense").Config)
    told = [
        f"{key.replace('_', ' ')} {'yes' if value is True else 'no' if value is False else value}"
        for key, value in changed.items()
        if key not in _UNNAMED and (key not in shared or key == "init")
    ]
    return ", ".join([method, *told])


def write_csv(lines: Sequence[Line]) -> str:
    """The lines as CSV, with a header, in an order that does not depend on that of the runs."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(Line)], lineterminator="\n")
    writer.writeheader()
    order = sorted(
        lines, key=lambda line: (line.role, line.model, line.label, line.control, -line.asked, line.seed, line.lr)
    )
    for line in order:
        writer.writerow({key: "" if value is None else value for key, value in asdict(line).items()})
    return text.getvalue()


def read_csv(path: Path) -> list[Line]:
    """The lines of a file that `write_csv` has written.

    Raises:
        RequestError: it is another file.
    """
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), restval="")
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{path} cannot be read: {error}") from None
    if missing := [field.name for field in fields(Line) if field.name not in (reader.fieldnames or ())]:
        raise RequestError(f"{path} is no table of methods: it lacks the columns {', '.join(missing)}")
    kinds = {"int": int, "float": float, "str": str}
    found = []
    for number, row in enumerate(rows, start=2):
        values: dict[str, Any] = {}
        try:
            for field in fields(Line):
                kind, optional = str(field.type).removesuffix(" | None"), str(field.type).endswith("None")
                values[field.name] = None if optional and row[field.name] == "" else kinds[kind](row[field.name])
            find_method(values["method"])
            json.loads(values["flags"])
            if problem := _problem(values):
                raise ValueError(problem)
        except (ValueError, TypeError) as error:
            raise RequestError(f"{path}: line {number} cannot be read: {error}") from None
        found.append(Line(**values))
    return found


def _problem(values: Mapping[str, Any]) -> str:
    """What is wrong with the numbers of a line; nothing where they are such as can be measured."""
    kept, weights, effective = (values[name] for name in ("kept", "weights", "effective"))
    if not (0 <= kept <= weights and weights > 0 and 0 <= (effective or 0) <= weights):
        return f"kept {kept} and effective {effective} of {weights} weights"
    odd = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
    return f"{odd[0]} is {values[odd[0]]}, expected a number" if odd else ""


@dataclass(frozen=True)
class Entry:
    """A row of the table: a configuration at a density, or one of its controls, over its seeds."""

    lines: tuple[Line, ...]

    @property
    def label(self) -> str:
        """The configuration, and which control it is."""
        first = self.lines[0]
        return f"{first.label}: {first.control}" if first.control else first.label

    @property
    def values(self) -> dict[int, float]:
        """The metric on test data by seed."""
        return {line.seed: line.value for line in self.lines}

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.values.values())


def entries_at(lines: Sequence[Line], density: float) -> list[Entry]:
    """The rows of the table at a density, the best first."""
    groups: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        if line.role != "trial" and math.isclose(line.asked, density):
            groups.setdefault((line.sweep, line.label, line.control), []).append(line)
    return sorted((Entry(tuple(group)) for group in groups.values()), key=lambda entry: -entry.mean)


@dataclass(frozen=True)
class Judgement:
    """What came of a prediction at a density; `found` is None where one of the two was not run."""

    prediction: Prediction
    density: float
    found: Difference | None
    holds: bool | None

    @property
    def in_words(self) -> str:
        """`yes` or `no`, or why there is no answer."""
        if self.found is None:
            return "not run"
        return "one seed in common" if self.holds is None else "yes" if self.holds else "no"

    def to_dict(self) -> dict[str, Any]:
        """The judgement as plain values."""
        told: dict[str, Any] = {"difference": None, "interval": None, "seeds": 0}
        if self.found is not None:
            told = {"difference": self.found.mean, "interval": self.found.interval, "seeds": self.found.n}
        return {"text": self.prediction.text, "density": self.density, **told, "came_true": self.holds}

    def cells(self, form: str = ".2f") -> tuple[str, str, str, str, str]:
        """The prediction, the density, the difference in the unit of the metric, its interval, whether it came true."""
        gap = self.found
        interval = () if gap is None or gap.interval is None else gap.interval
        mean = "" if gap is None else f"{gap.mean:+{form}}"
        low_high = " to ".join(f"{end:+{form}}" for end in interval)
        return self.prediction.text, f"{self.density:g}", mean, low_high, self.in_words


def judge_all(lines: Sequence[Line], predictions: Iterable[Prediction]) -> list[Judgement]:
    """What came of predictions: at the densities that each names or, of one that names none, at those that both have.

    Raises:
        RequestError: flags that several configurations have at a density.
    """
    densities, found = sorted({line.asked for line in lines}, reverse=True), []
    for prediction in predictions:
        judged = judge(lines, prediction, densities)
        both = [one for one in judged if one.found is not None]
        found += judged if prediction.densities else both or judged[-1:]
    return found


def judge(lines: Sequence[Line], prediction: Prediction, densities: Iterable[float]) -> list[Judgement]:
    """What came of a prediction, at each of its densities or, if it names none, at all of the table.

    Raises:
        RequestError: flags that several configurations have at a density.
    """
    judged = []
    for density in prediction.densities or dict.fromkeys(densities):
        better, than = (_pick(lines, flags, density) for flags in (prediction.better, prediction.than))
        found = difference(better, than) if better and than else None
        holds = None
        if found is not None and found.interval is not None:
            low = found.interval[0]
            holds = found.mean > 0 and low > 0 if prediction.by == "above" else low > -MARGIN
        judged.append(Judgement(prediction, density, found, holds))
    return judged


def _pick(lines: Sequence[Line], flags: Mapping[str, Any], density: float) -> dict[int, float]:
    """The values by seed of the one configuration that has these flags at a density."""
    fitting = [line for line in lines if line.role == "run" and _stands_at(line, flags, density) and _has(line, flags)]
    # What a label does not name, as the learning rate, tells configurations apart too.
    found = {(line.sweep, line.label, line.model, _without_density(line)): line for line in fitting}
    if len(found) > 1:
        labels = list(dict.fromkeys(line.label for line in found.values()))
        if len(labels) < len(found):
            labels = [f"{line.label} {line.flags}" for line in found.values()]
        told = "; ".join(labels)
        raise RequestError(f"the flags {dict(flags)} of a prediction fit several configurations: {told}")
    return {line.seed: line.value for line in fitting}


def _stands_at(line: Line, flags: Mapping[str, Any], density: float) -> bool:
    """Whether a measurement is at a density, or of the dense network, which stands beside any where it is named."""
    named = flags.get("method") == line.method and find_method(line.method).traits.dense
    return named or math.isclose(line.asked, density)


def _without_density(line: Line) -> str:
    # The weights that masks are put on are those of a run of the same seed.
    flags = {key: value for key, value in json.loads(line.flags).items() if key not in ("density", "weights")}
    return json.dumps(flags, sort_keys=True)


def _has(line: Line, flags: Mapping[str, Any]) -> bool:
    if "sweep" in flags and flags["sweep"] != line.sweep:
        return False
    defaults = {key: field.get_default() for key, field in public_fields(find_method(line.method).Config).items()}
    own = {**defaults, **json.loads(line.flags), "method": line.method, "sweep": line.sweep}
    return all(key in own and own[key] == value for key, value in flags.items())


def dense_values(lines: Sequence[Line]) -> dict[int, float]:
    """The metric of the dense network by seed."""
    return {line.seed: line.value for line in lines if line.role == "run" and find_method(line.method).traits.dense}


def table_at(lines: Sequence[Line], density: float, claims: Mapping[str, str]) -> str:
    """The table at a density as Markdown. `claims` is what the papers say, by method."""
    dense = dense_values(lines)
    rows = [
        "| method | epochs | seeds | test accuracy % | 95 % interval | minus dense (pp) | interval | "
        "cost (dense trainings) | core-min | ticket kB | density | effective | lr | the paper's claim |",
        "|:---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|:---|",
    ]
    for entry in entries_at(lines, density):
        first, gap = entry.lines[0], difference(entry.values, dense)
        low_high = confidence_interval(list(entry.values.values()))
        rates = dict.fromkeys(f"{line.lr:g}" for line in entry.lines)
        cells = (
            escape(entry.label, None), first.epochs, len(entry.lines), f"{entry.mean:.2f}", _range(low_high),
            "" if gap is None else f"{gap.mean:+.2f}", "" if gap is None else _range(gap.interval, "+"),
            _mean([line.trainings for line in entry.lines], ".1f"),
            _mean([None if line.seconds is None else line.seconds / 60 for line in entry.lines], ".1f"),
            _mean([None if line.file_bytes is None else line.file_bytes / 1000 for line in entry.lines], ".1f"),
            _density_cell([line.kept / line.weights for line in entry.lines]),
            _mean([None if line.effective is None else line.effective / line.weights for line in entry.lines], ".4f"),
            " ".join(rates), "" if first.control else escape(claims.get(first.method, ""), None),
        )  # fmt: skip
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def _density_cell(values: Sequence[float]) -> str:
    """The density kept; where seeds differ, as of sampled masks, the mean and the range."""
    low, high = min(values), max(values)
    shown = f"{statistics.fmean(values):.4f}"
    return shown if f"{low:.4f}" == f"{high:.4f}" else f"{shown} ({low:.4f} to {high:.4f})"


def _mean(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):{form}}" if len(known) == len(values) else ""


def _range(interval: tuple[float, float] | None, sign: str = "") -> str:
    return "" if interval is None else f"{interval[0]:{sign}.2f} to {interval[1]:{sign}.2f}"


def predictions_on_page(judged: Sequence[Judgement]) -> str:
    """The part of a page that says what came of predictions; empty where there are none."""
    if not judged:
        return ""
    return (
        "## What was predicted\n\n*Above*: the paired mean difference over seeds and its whole 95 % interval are "
        f"above 0. *Not below*: the interval is above -{MARGIN:g} pp. No correction for their number.\n\n"
        + predictions_as_text(judged)
    )


def predictions_as_text(judged: Sequence[Judgement]) -> str:
    """What came of the predictions, as Markdown."""
    rows = [
        "| predicted before the runs | density | difference (pp) | 95 % interval | came true |",
        "|:---|---:|---:|---:|:---|",
    ]
    for one in judged:
        text, *cells, answer = one.cells()
        rows.append("| " + " | ".join([escape(text, None), *cells, "**no**" if answer == "no" else answer]) + " |")
    return "\n".join(rows)


def choices_as_text(lines: Sequence[Line]) -> str:
    """What was tried to choose a learning rate, and what validation said, as Markdown."""
    groups: dict[tuple[str, str, str, int, float, int], list[Line]] = {}
    for line in lines:
        if line.role == "trial":
            key = (line.sweep, line.model, line.label, line.epochs, line.asked, line.seed)
            groups.setdefault(key, []).append(line)
    rows = [
        "| network | method | epochs | tried at density | validation % at each learning rate | chosen |",
        "|:---|:---|---:|---:|:---|---:|",
    ]
    for (_, model, label, epochs, asked, _), tried in sorted(groups.items()):
        best = max(tried, key=lambda line: -math.inf if line.validation is None else line.validation)
        told = ", ".join(
            f"{line.lr:g}: {'-' if line.validation is None else format(line.validation, '.2f')}"
            for line in sorted(tried, key=lambda line: line.lr)
        )
        rows.append(f"| {escape(model, None)} | {escape(label, None)} | {epochs} | {asked:g} | {told} | {best.lr:g} |")
    return "\n".join(rows)
