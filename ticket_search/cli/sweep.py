"""`ticket sweep`: carry out the runs that a file lists. `ticket search --seeds` is a sweep over seeds."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from .. import sweeps
from ..contract.metric import known_value, metric_of
from ..contract.stops import STOPPED
from ..runs.names import SUMMARY
from ..runs.progress import Progress
from ..runs.records import read_record
from ..sweeps.engines.names import check_engine
from ..sweeps.file import Sweep, read_sweep
from .terminal import counted, duration, errors, output, print_json, print_table, say_stopped
from .tickets import Address, Engine, Jobs, MaxMinutes, OwnData, OwnLoss, OwnMetric, OwnModel

if TYPE_CHECKING:
    from ..running.duration import Costs
    from ..sweeps.sweep import SweepPlan, SweepResult
    from ..sweeps.table import Judgement
    from ..sweeps.trials import Chosen
    from ..sweeps.tuning import Tuned


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sweep")(sweep)


def sweep(
    file: Annotated[str, typer.Argument(help="A .toml file with [base], [grid], [[runs]], seeds, controls.")],
    jobs: Jobs = None,
    engine: Engine = "local",
    address: Address = None,
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    max_minutes: MaxMinutes = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="CPU threads of each run; if neither given nor in the file, 1."),
    ] = None,
    model: OwnModel = None,
    data: OwnData = None,
    loss: OwnLoss = None,
    metric: OwnMetric = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done and how long it takes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summaries (or the plan) as JSON.")] = False,
) -> None:
    """Carry out many runs. Finished runs are not repeated, and stopped runs are continued.

    The tables of the file hold flags by field name. [base] has the flags of every run: config = "RECIPE" gives their
    first values, and [base.imp] is for runs of one method only. [grid] has lists of values, and every combination of
    them is run. Each [[runs]] is a single run beside the grid. [choose] has lists of candidates, as lr = [0.01, 0.1]
    (in [choose.imp] for one method): each is tried at the first seed, and the best on validation is what all seeds run
    with; [choose.at] density = 0.1 tries them at that density for all densities. Above the tables stand seeds = "0-4"
    for every run, controls = ["reinit", "shuffle"] to make after each run, control_levels = [3, 5] for the levels of
    the controls, and controls_on = "DATA" for another data set to train the controls on as well. Functions of one's own
    that the file names are imported where --model, --data, --loss or --metric says so, with commas between several.
    """
    launch = Launch(runs, jobs, engine, address)
    asked = read_sweep(file, threads, {"model": model, "data": data, "loss": loss, "metric": metric})
    if asked.search is not None:
        carry_out_search(asked, launch, dry_run, as_json)
        return
    carry_out_sweep(asked, launch, dry_run, as_json)


@dataclass(frozen=True)
class Launch:
    """How a command carries out the runs of a sweep: into which folder, how many at a time, and with what.

    Raises:
        RequestError: there is no such engine, or what it needs is not installed.
    """

    runs: str
    jobs: int | None = None
    engine: str = "local"
    address: str | None = None

    def __post_init__(self) -> None:
        check_engine(self.engine, self.address)


def carry_out_sweep(asked: Sweep, launch: Launch, dry_run: bool, as_json: bool, answers: bool = True) -> list[Path]:
    """Plan a sweep, carry it out, and print how it ended. Exits with 1 if a run failed, and with 130 if it was stopped.

    With `answers` it says what came of its predictions; those of a sweep that a study joins may be about other sweeps.

    Returns:
        The folders of the finished runs; none for a dry run.
    """
    runs, jobs, engine, address = launch.runs, launch.jobs, launch.engine, launch.address
    choices: list[Chosen] = []
    timed: dict[str, Costs] = {}
    try:
        # The first output, before anything that takes a while.
        errors().print(
            f"{counted(len(asked.runs), 'run')} of {asked.name or 'one search'}", markup=False, highlight=False
        )
        with Progress() as progress:
            progress.label("counting the steps of each run and timing some")
            starting = _load()
            plan = sweeps.sweep.plan_sweep(asked, runs, jobs, timed, starting, engine)
            if plan.warning:
                errors().print(plan.warning, style="yellow", markup=False, highlight=False, soft_wrap=True)
            trials = sweeps.trials.trials_of(asked)
            first = None if trials is None else sweeps.sweep.plan_sweep(trials, runs, jobs, timed, starting, engine)
        if dry_run or not as_json:
            print_plan(plan, dry_run, as_json, first)
        if dry_run:
            return []
        if first is not None:
            _stop_if_interrupted(first, sweeps.sweep.run_plan(first, address=address))
            choices = sweeps.trials.read_trials(asked, runs)
            if not as_json:
                print_choices(choices)
            settled = sweeps.trials.settle(asked, choices, runs)
            plan = sweeps.sweep.plan_sweep(settled, runs, jobs, timed, starting, engine)
        result = sweeps.sweep.run_plan(plan, address=address)
    except KeyboardInterrupt as stop:
        _say_stopped(getattr(stop, "status", STOPPED))
    _stop_if_interrupted(plan, result)
    lines = sweeps.table.measured_in(result.finished, Path(runs)) if plan.sweep.predictions and answers else []
    judged = sweeps.table.judge_all(lines, plan.sweep.predictions) if lines else []
    if as_json:
        summaries = [read_record(folder, SUMMARY) | {"path": str(folder)} for folder in result.finished]
        chosen = {"choices": [asdict(choice) | {"folder": str(choice.folder)} for choice in choices]} if choices else {}
        came = {"predictions": [one.to_dict() for one in judged]} if judged else {}
        print_json({"runs": summaries} | chosen | came | ({"failures": result.failures} if asked.name else {}))
    else:
        print_result(plan, result)
        print_judged(judged, result)
    if result.failures:
        _say_failures(plan, result)
        raise typer.Exit(1)
    return result.finished


def carry_out_search(asked: Sweep, launch: Launch, dry_run: bool, as_json: bool) -> None:
    """Carry out a sweep whose runs are proposed, and print its trials. Exits as `carry_out_sweep` does."""
    search = asked.search
    assert search is not None, "a sweep with [search]"
    seeds = len(search.seeds) or 1
    told = f"{counted(search.trials, 'trial')} of {counted(seeds, 'run')} each, of {asked.name}"
    errors().print(told, markup=False, highlight=False)
    sweeps.tuning.check_optuna()

    def show(plan: SweepPlan, done: int) -> None:
        if not as_json and plan.left:
            output().print(f"trials from {done + 1} on", markup=False, highlight=False)
            print_plan(plan, dry_run, as_json)

    try:
        if dry_run:
            plan = sweeps.tuning.plan_search(asked, launch.runs, launch.jobs, launch.engine)
            if not as_json:
                output().print(f"the first of {counted(search.trials, 'trial')}", markup=False, highlight=False)
            print_plan(plan, dry_run, as_json)
            return
        where = (launch.runs, launch.jobs, True, launch.engine, launch.address)
        found = sweeps.tuning.run_search(asked, *where, show=show)
    except KeyboardInterrupt as stop:
        _say_stopped(getattr(stop, "status", STOPPED))
    place = Path(launch.runs) / asked.name
    if found.interrupted:
        _say_failed(found.failures, place)
        _say_stopped(found.stop_status)
    print_trials(found, as_json)
    if found.failures:
        _say_failed(found.failures, place)
        raise typer.Exit(1)


def print_trials(found: Tuned, as_json: bool) -> None:
    """Print what was tried, what validation says of it, and which is the best; what test says stands beside it."""
    if as_json:
        told = [asdict(trial) | {"folders": list(map(str, trial.folders))} for trial in found.trials]
        print_json({"trials": told, "best": found.best, "failures": found.failures})
        return
    rows = []
    for place, trial in enumerate(found.trials):
        proposed = ", ".join(f"{key} {value}" for key, value in trial.values.items())
        validation, test = "failed", ""
        if found.metric is not None and trial.validation is not None and trial.test is not None:
            validation, test = found.metric.with_unit(trial.validation), found.metric.with_unit(trial.test)
        rows.append((str(place + 1), proposed, validation, test, "best" if place == found.best else ""))
    print_table(("trial", "proposed", "validation", "test", ""), rows)


def _load() -> float:
    """Import what carries out a sweep, and say in how many seconds a process of it is ready to work.

    That is what this one has done until now, where it was started for the sweep.
    """
    started_for_it = "torch" not in sys.modules
    began, worked = time.perf_counter(), time.process_time()
    # The module is imported when it is first looked at.
    assert sweeps.sweep.__doc__
    passed, whole = time.perf_counter() - began, time.process_time()
    return passed * whole / max(whole - worked, 1e-9) if started_for_it else passed


def print_plan(plan: SweepPlan, dry_run: bool, as_json: bool, first: SweepPlan | None = None) -> None:
    """Print what a sweep would do; `first` is what it would try before that, to choose on validation."""
    if as_json:
        runs = [
            {"name": run.folder.name, "path": str(run.folder), "state": run.state, "steps": run.steps}
            for run in plan.runs
        ]
        configurations = [vars(row) for row in plan.rows]
        total: dict[str, Any] = {"steps": plan.steps, "seconds": plan.seconds, "jobs": plan.jobs, "hours": plan.hours}
        if first is not None:
            tried = {"runs": len(first.runs), "done": first.done, "steps": first.steps, "seconds": first.seconds}
            total |= {"trials": tried}
        print_json({"sweep": plan.sweep.name, "configurations": configurations, "runs": runs, **total})
        return
    if plan.sweep.about:
        output().print(plan.sweep.about, markup=False, highlight=False, soft_wrap=True)
    if first is not None:
        output().print(_describe_trials(first), markup=False, highlight=False, soft_wrap=True)
    rows = [(row.configuration, row.runs, row.done, row.steps, duration(row.seconds)) for row in plan.rows]
    print_table(("configuration", "runs", "done", "steps", "time"), rows)
    end = " Nothing was written." if dry_run else ""
    output().print(f"{_describe_left(plan, first)}{end}", markup=False, highlight=False, soft_wrap=True)


def _describe_trials(first: SweepPlan) -> str:
    number, best = len(first.runs), "the best of each on validation are runs of the sweep"
    if first.left == 0:
        return f"[choose]: all of the {number} trials at the first seed are done; {best}."
    there = f"{first.done} of them done: " if first.done else ""
    return (
        f"[choose]: {number} trials at the first seed come first, {there}{counted(first.steps, 'step')}, about "
        f"{duration(3600 * first.hours)}; {best}."
    )


def _describe_left(plan: SweepPlan, first: SweepPlan | None) -> str:
    """How many runs there are and how many of them are done, and what is left to do."""
    number, controls = len(plan.runs), plan.sweep.controls
    if plan.left == 0 and (first is None or first.left == 0):
        with_controls = f", and so are the controls {', '.join(controls)}" if controls else ""
        all_runs = "The run is" if number == 1 else f"All of the {number} runs are"
        return f"{all_runs} done{with_controls}: nothing is left to do."
    done = f"{plan.done} of them done" if number > 1 else "done" if plan.done else "not done"
    parts = [f"{counted(number, 'run')}, {done}: {counted(plan.steps, 'step')}"]
    controlled = sum(bool(plan.sweep.controls_of(run.config)) for run in plan.runs)
    which = f"{controlled} of them" if plan.sweep.controls_for else "each run"
    parts += [f"and the controls {', '.join(controls)} after {which}"] if controls else []
    # The best of the trials are runs of the sweep, which are not carried out again.
    whole = plan.hours if first is None else first.hours + plan.hours * (1 - plan.settled)
    at_once = " one after another" if plan.jobs is None else f" with {plan.jobs} jobs" if plan.jobs > 1 else ""
    return f"{', '.join(parts)}. In all about {duration(3600 * whole)}{at_once}, from now to the end."


def print_choices(choices: Sequence[Chosen]) -> None:
    """Print what was tried, and what validation says of it."""
    rows = []
    for choice in choices:
        for place, candidate in enumerate(choice.candidates):
            told = ", ".join(f"{key} {value}" for key, value in candidate.values.items())
            value = "failed" if candidate.validation is None else f"{candidate.validation:.4g}"
            label = "" if place else choice.configuration
            rows.append((label, told, value, "chosen" if place == choice.best else ""))
    print_table(("tried", "candidate", "validation", ""), rows)


def print_result(plan: SweepPlan, result: SweepResult) -> None:
    """Print the results of the finished runs in short, and the commands that follow."""
    rows = []
    for folder in result.finished:
        row = read_record(folder, SUMMARY)
        metric = metric_of(row)
        name = "" if metric.is_accuracy else f"{metric.name} "
        values = [f"{name}{metric.with_unit(known_value(row, split))}" for split in ("test", "val")]
        rows.append((folder.name, *values, duration(row["seconds"])))
    if not rows:
        return
    print_table(("run", "test", "val.", "time"), rows)
    place = result.finished[0].parent
    runs = f"{shlex.quote(str(place))}/*" if plan.sweep.name else shlex.join(map(str, result.finished))
    output().print(
        f"next:\n  ticket compare {runs}\n  tensorboard --logdir {shlex.quote(str(place))}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def print_judged(judged: Sequence[Judgement], result: SweepResult) -> None:
    """Print what came of the predictions of a sweep."""
    if not judged:
        return
    metric = metric_of(read_record(result.finished[0], SUMMARY))
    unit = "pp" if metric.unit == "%" else metric.unit
    difference = f"difference ({unit})" if unit else "difference"
    print_table(
        ("predicted before the runs", "density", difference, "95 % interval", "came true"),
        [one.cells(metric.form) for one in judged],
    )


def _stop_if_interrupted(plan: SweepPlan, result: SweepResult) -> None:
    if result.interrupted:
        _say_failures(plan, result)
        _say_stopped(result.stop_status)


def _say_failures(plan: SweepPlan, result: SweepResult) -> None:
    folders = [run.folder for run in plan.runs]
    _say_failed(result.failures, folders[0].parent if folders else Path())


def _say_failed(failures: Mapping[str, str], place: Path) -> None:
    for name, message in failures.items():
        line = f"failed: {name}: {message} (the whole message is in {place / name / 'failure.txt'})"
        errors().print(line, style="red", markup=False, highlight=False, soft_wrap=True)


def _say_stopped(status: int) -> NoReturn:
    say_stopped(f"stopped; continue with:\n  ticket {shlex.join(sys.argv[1:])}", status)
