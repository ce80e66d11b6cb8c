"""A sweep: many runs, counted and timed before the first one starts, then carried out by several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..contract.errors import Problems, RequestError, command_line
from ..contract.flags import Config, to_plain
from ..contract.stops import STOPPED
from ..deploy.machine_load import measure_sharing
from ..methods import find_method
from ..running.duration import Costs, makespan
from ..running.request import find_weights
from ..runs.experiment import resolve
from ..runs.folders import State, inspect_folder, is_finished
from ..runs.names import ELSEWHERE, EVALUATED
from .counting import Counted, Loaded, check_given, count_steps, resolve_for_gpus, time_run
from .engines.engine import Order, run_jobs
from .engines.jobs import Job, has_controls
from .engines.names import check_engine, find_engine
from .file import Sweep as Sweep
from .file import SweepRun
from .file import read_sweep as read_sweep
from .progress import Board, SweepProgress, Work
from .trials import read_trials, settle, settle_known, trials_of

Value = TypeVar("Value")


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep on this machine: its configuration here, its folder, which is not another run's, its steps.

    `seconds` is what is left of it, and `control_seconds` what the controls after it take.
    """

    config: Config
    folder: Path
    state: State
    steps: int = 0
    seconds: float = 0.0
    control_seconds: float = 0.0


@dataclass(frozen=True)
class PlanRow:
    """The runs that differ in their seeds only: how many there are, how many are done, what is left of them.

    `seconds` is that of the runs and their controls, one after another.
    """

    configuration: str
    runs: int
    done: int
    steps: int
    seconds: float


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep would do. `seconds` is how long its runs take one after another, `hours` with `jobs` at once.

    `starting` is the seconds until a process of it begins its first run, and `stretch` says by how much runs slow each
    other down. Where `jobs` is None, an engine of a cluster carries out as many at once as there is room for.
    """

    sweep: Sweep
    runs: tuple[PlannedRun, ...]
    rows: tuple[PlanRow, ...]
    jobs: int | None
    starting: float = 0.0
    stretch: float = 1.0
    engine: str = "local"

    @property
    def done(self) -> int:
        """How many runs are finished. Some of them may lack controls."""
        return sum(row.done for row in self.rows)

    @property
    def left(self) -> int:
        """How many runs are not finished, or lack controls."""
        return sum(_has_work(self.sweep, run) for run in self.runs)

    @property
    def steps(self) -> int:
        """The training steps that are left to do, without those of controls."""
        return sum(row.steps for row in self.rows)

    @property
    def seconds(self) -> float:
        """The seconds of what is left to do, one after another in one process."""
        work = sum(row.seconds for row in self.rows)
        return self.starting + work if work else 0.0

    @property
    def hours(self) -> float:
        """The hours that the sweep takes: its processes start, and share the cores."""
        left = [seconds for run in self.runs if (seconds := run.seconds + run.control_seconds)]
        return self.stretch * (self.starting + makespan(left, self.jobs or 1)) / 3600 if left else 0.0

    @property
    def settled(self) -> float:
        """The share of the work that the trials of [choose] do: the best of each is a run of the sweep."""
        deciding = {run.name for run in self.sweep.runs if run.decides}
        done = sum(run.seconds for run in self.runs if run.folder.name in deciding)
        whole = sum(run.seconds + run.control_seconds for run in self.runs)
        return done / whole if whole else 0.0

    @property
    def warning(self) -> str:
        """What a person should know before the sweep starts, or an empty text."""
        cores, threads = os.cpu_count() or 1, max(run.config.threads or 1 for run in self.runs)
        if self.engine != "local" or (self.jobs or 1) * threads <= cores:
            return ""
        counts = ((threads, "thread"), (cores, "core"))
        both = " on ".join(f"{number} {noun}{'' if number == 1 else 's'}" for number, noun in counts)
        return f"warning: {self.jobs} jobs of {both} slow each other down"


@dataclass(frozen=True)
class SweepResult:
    """How a sweep has ended: the folders of finished runs, `{name: message}` of failed ones, whether it was stopped."""

    finished: list[Path]
    failures: dict[str, str]
    interrupted: bool = False
    stop_status: int = STOPPED


def run_sweep(
    sweep: Sweep,
    runs: str | os.PathLike[str] = "runs",
    jobs: int | None = None,
    progress: bool = True,
    engine: str = "local",
    address: str | None = None,
) -> SweepResult:
    """Carry out the runs of a sweep that are not finished yet, in `jobs` processes at the same time.

        if __name__ == "__main__":      # the processes import this file
            result = run_sweep(read_sweep("mine.toml"), jobs=4)

    The folders of the runs are `runs/NAME OF THE SWEEP/NAME OF THE RUN`. A run that fails leaves `failure.txt` in its
    folder, and the others go on. A signal stops the sweep with the states of its runs saved: the same call goes on.
    What the file lets validation choose is tried first, in `runs/NAME OF THE SWEEP-choice`.

    Args:
        sweep: what `read_sweep` has read.
        runs: the folder of all runs.
        jobs: how many runs go on at the same time: if not given 1, and on a cluster as many as there is room for.
        progress: show a live table on stderr.
        engine: `local`, `slurm` or `ray`; the file says under `[engine]` what each run asks of it.
        address: of a Ray cluster; if not given, one is started on this machine.

    Raises:
        RequestError: every problem of every run at once; nothing is written.
        RunError: the processes cannot start, the cluster is gone, or every candidate of a choice has failed.
    """
    check_engine(engine, address)
    if sweep.search is not None:
        raise RequestError(
            f"the sweep {sweep.name} has [search]: ticket_search.sweeps.tuning.run_search carries it out"
        )
    timed: dict[str, Costs] = {}
    plan = plan_sweep(sweep, runs, jobs, timed, engine=engine)
    if (trials := trials_of(sweep)) is not None:
        tried = run_plan(plan_sweep(trials, runs, jobs, timed, engine=engine), progress, address)
        if tried.interrupted:
            return SweepResult([], tried.failures, interrupted=True, stop_status=tried.stop_status)
        plan = plan_sweep(settle(sweep, read_trials(sweep, runs), runs), runs, jobs, timed, engine=engine)
    return run_plan(plan, progress, address)


def plan_sweep(
    sweep: Sweep,
    runs: str | os.PathLike[str] = "runs",
    jobs: int | None = None,
    timed: dict[str, Costs] | None = None,
    starting: float = 0.0,
    engine: str = "local",
) -> SweepPlan:
    """What a sweep would do: the folder and the steps of each run, and the time, from what is timed of them.

    Nothing is written. Runs for which something was chosen are planned with it, the others as they are in the file.

    Args:
        sweep: what `read_sweep` has read.
        runs: the folder of all runs.
        jobs: how many runs go on at the same time.
        timed: what was timed before, which is not timed again; what is timed now is added.
        starting: the seconds in which a process starts and imports what it needs.
        engine: what carries the runs out. GPUs that the file asks of a cluster need not be here.

    Raises:
        RequestError: every problem of every run at once, among them a folder that holds another run.
    """
    problems = Problems()
    if jobs is not None and jobs < 1:
        problems.add(f"--jobs {jobs}: expected a number of runs, 1 or more")
    place = Path(runs) / sweep.name
    for folder in (Path(runs), place):
        if folder.exists() and not folder.is_dir():
            problems.add(f"--runs {runs}: {folder} is a file, expected a folder")
    problems.raise_if_any()
    sweep = settle_known(sweep, runs)
    groups: dict[str, list[PlannedRun]] = {}
    names: dict[str, str] = {}
    for run in sweep.runs:
        gpus = sweep.engine.gpus(engine) > 0
        found = problems.attempt(partial(_find_folder, run, place, runs, numbered=not sweep.name, gpus=gpus))
        if found is None:
            continue
        key = repr({**to_plain(found.config), "seed": None})
        groups.setdefault(key, []).append(found)
        names.setdefault(key, run.configuration)
    # The first run stands for those of all seeds. A group whose runs are all finished has nothing left to count.
    firsts = {key: group[0].config for key, group in groups.items() if any(_has_work(sweep, run) for run in group)}
    loaded: dict[str, Loaded] = {}
    timed = {} if timed is None else timed
    for group in groups.values():
        there = [run.folder for run in group if run.state != "new" and run.folder.exists()]
        problems.attempt(partial(check_given, group[0].config, there, loaded))
    counted = _try_all(firsts, lambda key: count_steps(firsts[key], loaded, sweep.controls_on), problems)
    costs = _try_all(counted, lambda key: time_run(firsts[key], counted[key], names[key], timed), problems)
    rows: list[PlanRow] = []
    planned: list[PlannedRun] = []
    for key, group in groups.items():
        left = _count_left(group)
        each = _plan_group(sweep, group, counted[key], costs[key]) if key in firsts else group
        steps = counted[key].steps if left else 0
        seconds = sum(run.seconds + run.control_seconds for run in each)
        rows.append(PlanRow(names[key], len(group), len(group) - left, left * steps, seconds))
        planned += each
    first = max((each.first for each in timed.values()), default=0.0)
    at_once = min(jobs or 1, _count_left(planned)) if engine == "local" else 1
    threads = max((run.config.threads or 1 for run in planned), default=1)
    stretch = measure_sharing(threads, at_once * threads) if at_once > 1 else 1.0
    at_most = jobs or 1 if engine == "local" else jobs
    return SweepPlan(sweep, tuple(planned), tuple(rows), at_most, starting + first, stretch, engine)


def _plan_group(sweep: Sweep, group: Sequence[PlannedRun], counted: Counted, costs: Costs) -> list[PlannedRun]:
    """The runs of a group with their steps and with what they take."""
    seconds = costs.loading + costs.search(counted.stages, counted.evaluate_every)
    planned = []
    for run in group:
        todo = run.state != "finished"
        controls = _control_seconds(sweep, run.config, counted, costs) if _has_work(sweep, run) else 0.0
        planned.append(replace(run, steps=counted.steps, seconds=seconds if todo else 0.0, control_seconds=controls))
    return planned


def _has_work(sweep: Sweep, run: PlannedRun) -> bool:
    """Whether a run is not finished, or lacks some of the controls that are asked for."""
    return run.state != "finished" or not has_controls(_job_of(sweep, run))


def _job_of(sweep: Sweep, run: PlannedRun, place: int = 0) -> Job:
    kinds = sweep.controls_of(run.config)
    return Job(place, str(run.folder), run.config, kinds, sweep.control_levels, sweep.controls_on)


def _control_seconds(sweep: Sweep, config: Config, counted: Counted, costs: Costs) -> float:
    """What the controls after a run take (see `engines.jobs`)."""
    kinds, traits = sweep.controls_of(config), find_method(config.method).traits
    if not kinds or traits.dense:
        return 0.0
    if not traits.trains_weights:
        return costs.loading + costs.untrained * sum(kind in EVALUATED for kind in kinds)
    has_levels = len(counted.stages) > 1
    levels = sum(0 < level < len(counted.stages) for level in sweep.control_levels) if has_levels else 1
    elsewhere = 1 + has_levels + sum(kind in ELSEWHERE for kind in kinds) if sweep.controls_on else 0
    number = (len(kinds) + elsewhere) * (levels if sweep.control_levels else 1)
    return number * costs.control(counted.stages[-1].steps, counted.evaluate_every)


def _try_all(keys: Iterable[str], work: Callable[[str], Value], problems: Problems) -> dict[str, Value]:
    """What `work` gives for each key.

    Raises:
        RequestError: the problems that were there already, and those of all keys.
    """
    tried = {key: problems.attempt(partial(work, key)) for key in keys}
    problems.raise_if_any()
    return {key: value for key, value in tried.items() if value is not None}


def _count_left(runs: Iterable[PlannedRun]) -> int:
    return sum(run.state != "finished" for run in runs)


def _find_folder(
    run: SweepRun, place: Path, runs: str | os.PathLike[str], numbered: bool, gpus: bool = False
) -> PlannedRun:
    """A run with its folder. If `numbered`, a folder that is taken is passed over for one with the next number.

    It is `gpus` of a cluster that it runs on, or else what is here.

    Raises:
        RequestError: the folder is taken by another run, or by what is no run.
    """
    given = run.config.weights
    named = run.config if given is None else run.config.model_copy(update={"weights": find_weights(given, runs)})
    config = resolve_for_gpus(named) if gpus else resolve(named)
    if run.options:
        # What is chosen for it is not known yet, so that it cannot be told from what lies there.
        return PlannedRun(config, place / run.name, "new")
    number = 1
    while True:
        found = inspect_folder(place / (run.name if number == 1 else f"{run.name}-{number}"), config)
        if run.tried and found.state == "new":
            # The trial that it is will be copied there, and is not done again.
            trial = inspect_folder(Path(runs) / f"{place.name}-choice" / run.tried, config)
            return PlannedRun(config, found.folder, "finished" if trial.state == "finished" else "new")
        if found.state not in ("another run", "not a run"):
            return PlannedRun(config, found.folder, found.state)
        if not numbered:
            remove = f", or `{command_line('runs', 'rm', found.folder)}`" if found.state == "another run" else ""
            raise RequestError(f"{found.why}: choose another --runs{remove}")
        number += 1


def run_plan(plan: SweepPlan, progress: bool = True, address: str | None = None) -> SweepResult:
    """Carry out what was planned (see `run_sweep`)."""
    asked, engine = plan.sweep, find_engine(plan.engine)
    todo = [run for run in plan.runs if _has_work(asked, run)]
    jobs = [_job_of(asked, run, place) for place, run in enumerate(todo)]
    board = Board(len(jobs))
    steps = [0 if run.state == "finished" else run.steps for run in todo]
    work = [Work(run.seconds, run.control_seconds) for run in todo]
    known = sum(each.run + each.controls for each in work) > 0
    shows = SweepProgress(
        [run.folder.name for run in todo], steps, board, progress, work if known else (), 3600 * plan.hours or None
    )
    place = todo[0].folder.parent if todo else Path()
    order = Order(jobs, plan.jobs, board, shows, place, asked.engine, address)
    ended = run_jobs(engine, order) if jobs else {}
    failures = {todo[place].folder.name: end["text"] for place, end in ended.items() if end["state"] == "failed"}
    finished = [run.folder for run in plan.runs if is_finished(run.folder)]
    return SweepResult(finished, failures, len(ended) < len(jobs), board.stop_status or STOPPED)
