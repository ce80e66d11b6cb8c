"""A sweep: many runs, counted and timed before the first one starts, then carried out by several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..contract.errors import RequestError
from ..contract.flags import Config, differences, read_toml, to_plain
from ..data.samples import Samples
from ..methods import find_method
from ..running.plan import make_plan, plan_stages
from ..running.request import Request
from ..runs.experiment import Setup, exact_arithmetic, find_model, load_data, make_setup, own_random_numbers, resolve
from ..training.objective import make_objective
from .file import Sweep as Sweep
from .file import SweepRun
from .file import read_sweep as read_sweep
from .local_engine import FAILURE, Job, run_jobs
from .progress import Board, SweepProgress

Value = TypeVar("Value")

# What the time of a step does not depend on.
_UNTIMED = (
    "seed", "init_seed", "order_seed", "mask_seed", "split_seed", "density", "epochs", "lr", "momentum", "nesterov",
    "weight_decay", "schedule", "milestones", "drop", "warmup", "label_smoothing", "init", "dtype",
)  # fmt: skip
# What decides about the data that are read.
_OF_DATA = ("data", "data_dir", "train_size", "split_seed", "crop", "flip", "image_size", "workers", "device")


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep on this machine: its folder, `state` of `new`, `unfinished` or `finished`, and its steps."""

    request: Request
    config: Config
    folder: Path
    state: str
    steps: int = 0


@dataclass(frozen=True)
class PlanRow:
    """The runs of one configuration: how many, how many of them are done, and steps and seconds of the others."""

    configuration: str
    runs: int
    done: int
    steps: int
    seconds: float


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep would do. `seconds` is that of one process after another, `hours` with `jobs` of them at once."""

    sweep: Sweep
    runs: tuple[PlannedRun, ...]
    rows: tuple[PlanRow, ...]
    jobs: int

    @property
    def steps(self) -> int:
        """Training steps that are left, controls not counted."""
        return sum(row.steps for row in self.rows)

    @property
    def seconds(self) -> float:
        """Seconds of the steps that are left."""
        return sum(row.seconds for row in self.rows)

    @property
    def hours(self) -> float:
        """Hours that the sweep would take."""
        return self.seconds / 3600 / max(1, min(self.jobs, _count_left(self.runs)))

    @property
    def warning(self) -> str:
        """What a person should know before the start, or nothing."""
        cores, threads = os.cpu_count() or 1, max(run.config.threads or 1 for run in self.runs)
        if self.jobs * threads <= cores:
            return ""
        return f"warning: {self.jobs} jobs of {threads} threads on {cores} cores slow each other down"


@dataclass(frozen=True)
class SweepResult:
    """How a sweep has ended: folders of finished runs, `{name: message}` of failed ones, whether it was stopped."""

    finished: list[Path]
    failures: dict[str, str]
    interrupted: bool = False


def run_sweep(sweep: Sweep, runs: str | os.PathLike[str] = "runs", jobs: int = 1, progress: bool = True) -> SweepResult:
    """Carry out the runs of a sweep that are not finished yet, `jobs` at once, each in a process that stays.

        if __name__ == "__main__":      # the processes import this file
            result = run_sweep(read_sweep("mine.toml"), jobs=4)

    The runs lie in `runs/NAME OF THE SWEEP/NAME`. One that fails leaves `failure.txt` there and stops no other. A
    signal saves the state of those that are under way: the same call goes on.

    Args:
        sweep: what `read_sweep` has read.
        runs: the folder of all runs.
        jobs: how many runs go on at once.
        progress: show a live table on stderr.

    Raises:
        RequestError: every problem of every run at once; nothing is written.
        RunError: the processes cannot start.
    """
    return run_plan(plan_sweep(sweep, runs, jobs), progress)


def plan_sweep(sweep: Sweep, runs: str | os.PathLike[str] = "runs", jobs: int = 1) -> SweepPlan:
    """What a sweep would do: every run's folder and steps, and the time from a few timed steps. Writes nothing.

    Raises:
        RequestError: every problem of every run at once, among them a folder that holds another run.
    """
    problems: list[str] = [] if jobs >= 1 else [f"--jobs {jobs}: expected a number of runs, 1 or more"]
    place = Path(runs) / sweep.name
    for folder in dict.fromkeys((Path(runs), place)):
        if folder.exists() and not folder.is_dir():
            problems.append(f"--runs {runs}: {folder} is a file, expected a folder")
    if problems:
        raise RequestError(problems)
    groups: dict[str, list[PlannedRun]] = {}
    names: dict[str, str] = {}
    for run in sweep.runs:
        try:
            found = _find_folder(run, place, numbered=not sweep.name)
        except RequestError as error:
            problems += error.problems
            continue
        key = repr({**to_plain(found.config), "seed": None})
        groups.setdefault(key, []).append(found)
        names.setdefault(key, run.configuration)
    # One run tells of all seeds; where all are finished there is nothing to tell.
    firsts = {key: group[0].config for key, group in groups.items() if _count_left(group)}
    loaded: dict[str, Samples] = {}
    timed: dict[str, float] = {}
    counted = _try_all(firsts, lambda key: _count_steps(firsts[key], loaded, sweep.controls_on), problems)
    seconds = _try_all(counted, lambda key: _time_step(firsts[key], counted[key][0], names[key], timed), problems)
    rows: list[PlanRow] = []
    planned: list[PlannedRun] = []
    for key, group in groups.items():
        left = _count_left(group)
        steps = counted[key][1] if left else 0
        todo = left * steps
        rows.append(PlanRow(names[key], len(group), len(group) - left, todo, todo * seconds.get(key, 0.0)))
        planned += [replace(run, steps=steps) for run in group]
    return SweepPlan(sweep, tuple(planned), tuple(rows), jobs)


def _try_all(keys: Iterable[str], work: Callable[[str], Value], problems: list[str]) -> dict[str, Value]:
    """What `work` gives for each key.

    Raises:
        RequestError: the problems of all keys, after those that were there.
    """
    found: dict[str, Value] = {}
    for key in keys:
        try:
            found[key] = work(key)
        except RequestError as error:
            problems += error.problems
    if problems:
        raise RequestError(dict.fromkeys(problems))
    return found


def _count_left(runs: Iterable[PlannedRun]) -> int:
    return sum(run.state != "finished" for run in runs)


def _find_folder(run: SweepRun, place: Path, numbered: bool) -> PlannedRun:
    """A run with its folder. Where others lie too, one that holds another run is passed over for the next number."""
    config = resolve(run.config)
    number = 1
    while True:
        folder = place / (run.name if number == 1 else f"{run.name}-{number}")
        try:
            return PlannedRun(run.request, config, folder, _state_of(folder, config))
        except RequestError:
            if not numbered:
                raise
        number += 1


def _state_of(folder: Path, config: Config) -> str:
    if not folder.exists() or all(path.name.startswith(".") or path.name == FAILURE for path in folder.iterdir()):
        return "new"
    if not (folder / "config.toml").exists():
        raise RequestError(f"{folder} is not a run")
    if other := differences(read_toml(folder / "config.toml"), to_plain(config)):
        raise RequestError(
            f"the run {folder} is another one ({', '.join(other)}): choose another --runs, or `ticket runs rm {folder}`"
        )
    return "finished" if (folder / "summary.json").exists() else "unfinished"


def _set_up(config: Config, loaded: dict[str, Samples]) -> Setup:
    """Network and data of a run; the same data are read once.

    Raises:
        RequestError: every problem at once.
    """
    problems: list[str] = []
    key = repr([getattr(config, name) for name in _OF_DATA])

    def load() -> None:
        if key not in loaded:
            loaded[key] = load_data(config.data, config).to(config.device)

    works: tuple[Callable[[], Any], ...] = (load, lambda: find_model(config.model), lambda: make_objective(config))
    for work in works:
        try:
            work()
        except RequestError as error:
            problems += error.problems
    if problems:
        raise RequestError(problems)
    return make_setup(find_method(config.method), config.model, loaded[key], config)


def _count_steps(config: Config, loaded: dict[str, Samples], controls_on: str) -> tuple[Setup, int]:
    """What a run works on, and its steps.

    Raises:
        RequestError: every problem at once; among them other data for its controls that its network does not take.
    """
    setup = _set_up(config, loaded)
    if controls_on:
        # A mask of one network does not fit another, and data of another shape have another network.
        other = _set_up(config.model_copy(update={"data": controls_on}), loaded).data
        here, there = ((list(data.input_shape), data.classes) for data in (setup.data, other))
        if here != there:
            raise RequestError(
                f"controls_on {controls_on}: samples of shape {there[0]} in {there[1]} classes; the masks of "
                f"{config.data} fit {here[0]} in {here[1]} classes"
            )
    with exact_arithmetic(config), own_random_numbers():
        model = setup.make_model(config)
        setup.check_model(config, model)
        return setup, sum(stage.steps for stage in plan_stages(config, setup, setup.targets(config, model)))


def _time_step(config: Config, setup: Setup, name: str, timed: dict[str, float]) -> float:
    """Seconds of a step with its share of the evaluations, measured once for all that take the same time.

    Raises:
        RequestError: a step of training fails.
    """
    key = repr({name: value for name, value in to_plain(config).items() if name not in _UNTIMED})
    if key not in timed:
        try:
            plan = make_plan(config, setup)
        except RequestError:
            raise
        except Exception as error:
            raise RequestError(f"{name}: a step of training raises {type(error).__name__}: {error}") from error
        timed[key] = plan.seconds / max(1, sum(stage.steps for stage in plan.stages))
    return timed[key]


def run_plan(plan: SweepPlan, progress: bool = True) -> SweepResult:
    """Carry out what was planned (see `run_sweep`)."""
    asked = plan.sweep
    todo = [run for run in plan.runs if run.state != "finished" or asked.controls]
    jobs = [
        Job(place, str(run.folder), run.request, asked.controls, asked.control_levels, asked.controls_on)
        for place, run in enumerate(todo)
    ]
    board = Board(len(jobs))
    steps = [0 if run.state == "finished" else run.steps for run in todo]
    shows = SweepProgress([run.folder.name for run in todo], steps, board, progress)
    ended = run_jobs(jobs, min(plan.jobs, len(jobs)), board, shows) if jobs else {}
    failures = {todo[place].folder.name: end["text"] for place, end in ended.items() if end["state"] == "failed"}
    finished = [run.folder for run in plan.runs if (run.folder / "summary.json").exists()]
    return SweepResult(finished, failures, len(ended) < len(jobs))
