"""A sweep: many runs, counted and timed before the first one starts, then carried out by several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..contract.errors import Problems, RequestError, RunError
from ..contract.flags import Config, to_plain
from ..data.samples import Samples
from ..data.trees import to_lists
from ..methods import find_method
from ..running.plan import make_plan, plan_stages
from ..running.request import find_weights
from ..running.search import check_code
from ..runs.experiment import Setup, exact_arithmetic, find_model, load_data, make_setup, own_random_numbers, resolve
from ..runs.folders import State, inspect_folder
from ..training.objective import make_objective
from ..training.trial import check_model
from .file import Sweep as Sweep
from .file import SweepRun
from .file import read_sweep as read_sweep
from .local_engine import Job, run_jobs
from .progress import Board, SweepProgress
from .trials import read_trials, settle, trials_of

Value = TypeVar("Value")

# The flags that the time of a training step does not depend on.
_UNTIMED = (
    "seed", "init_seed", "order_seed", "mask_seed", "split_seed", "density", "epochs", "lr", "momentum", "nesterov",
    "weight_decay", "schedule", "milestones", "drop", "warmup", "label_smoothing", "init", "dtype",
)  # fmt: skip
# The flags that the data in memory depend on.
_OF_DATA = ("data", "data_dir", "train_size", "split_seed", "crop", "flip", "image_size", "workers", "device")


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep on this machine: its configuration here, its folder, which is not another run's, its steps."""

    config: Config
    folder: Path
    state: State
    steps: int = 0


@dataclass(frozen=True)
class PlanRow:
    """The runs that differ in their seeds only: how many there are, how many are done, what the others take."""

    configuration: str
    runs: int
    done: int
    steps: int
    seconds: float


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep would do. `seconds` is how long its runs take one after another, `hours` with `jobs` at once."""

    sweep: Sweep
    runs: tuple[PlannedRun, ...]
    rows: tuple[PlanRow, ...]
    jobs: int

    @property
    def steps(self) -> int:
        """The training steps that are left to do, without those of controls."""
        return sum(row.steps for row in self.rows)

    @property
    def seconds(self) -> float:
        """The seconds that the steps take which are left to do."""
        return sum(row.seconds for row in self.rows)

    @property
    def hours(self) -> float:
        """The hours that the sweep would take."""
        return self.seconds / 3600 / max(1, min(self.jobs, _count_left(self.runs)))

    @property
    def warning(self) -> str:
        """What a person should know before the sweep starts, or an empty text."""
        cores, threads = os.cpu_count() or 1, max(run.config.threads or 1 for run in self.runs)
        if self.jobs * threads <= cores:
            return ""
        return f"warning: {self.jobs} jobs of {threads} threads on {cores} cores slow each other down"


@dataclass(frozen=True)
class SweepResult:
    """How a sweep has ended: the folders of finished runs, `{name: message}` of failed ones, whether it was stopped."""

    finished: list[Path]
    failures: dict[str, str]
    interrupted: bool = False


def run_sweep(sweep: Sweep, runs: str | os.PathLike[str] = "runs", jobs: int = 1, progress: bool = True) -> SweepResult:
    """Carry out the runs of a sweep that are not finished yet, in `jobs` processes at the same time.

        if __name__ == "__main__":      # the processes import this file
            result = run_sweep(read_sweep("mine.toml"), jobs=4)

    The folders of the runs are `runs/NAME OF THE SWEEP/NAME OF THE RUN`. A run that fails leaves `failure.txt` in its
    folder, and the others go on. A signal stops the sweep with the states of its runs saved: the same call goes on.
    What the file lets validation choose is tried first, in `runs/NAME OF THE SWEEP-choice`.

    Args:
        sweep: what `read_sweep` has read.
        runs: the folder of all runs.
        jobs: how many runs go on at the same time.
        progress: show a live table on stderr.

    Raises:
        RequestError: every problem of every run at once; nothing is written.
        RunError: the processes cannot start, or every candidate of a choice has failed.
    """
    timed: dict[str, float] = {}
    plan = plan_sweep(sweep, runs, jobs, timed)
    if (trials := trials_of(sweep)) is not None:
        tried = run_plan(plan_sweep(trials, runs, jobs, timed), progress)
        if tried.interrupted:
            return SweepResult([], tried.failures, interrupted=True)
        plan = plan_sweep(settle(sweep, read_trials(sweep, runs), runs), runs, jobs, timed)
    return run_plan(plan, progress)


def plan_sweep(
    sweep: Sweep, runs: str | os.PathLike[str] = "runs", jobs: int = 1, timed: dict[str, float] | None = None
) -> SweepPlan:
    """What a sweep would do: the folder and the steps of each run, and the time, from a few timed steps.

    Nothing is written.

    Args:
        sweep: what `read_sweep` has read.
        runs: the folder of all runs.
        jobs: how many runs go on at the same time.
        timed: the seconds of steps that were timed before, which are not timed again; what is timed now is added.

    Raises:
        RequestError: every problem of every run at once, among them a folder that holds another run.
    """
    problems = Problems()
    if jobs < 1:
        problems.add(f"--jobs {jobs}: expected a number of runs, 1 or more")
    place = Path(runs) / sweep.name
    for folder in (Path(runs), place):
        if folder.exists() and not folder.is_dir():
            problems.add(f"--runs {runs}: {folder} is a file, expected a folder")
    problems.raise_if_any()
    groups: dict[str, list[PlannedRun]] = {}
    names: dict[str, str] = {}
    for run in sweep.runs:
        found = problems.attempt(partial(_find_folder, run, place, runs, numbered=not sweep.name))
        if found is None:
            continue
        key = repr({**to_plain(found.config), "seed": None})
        groups.setdefault(key, []).append(found)
        names.setdefault(key, run.configuration)
    # The first run stands for those of all seeds. A group whose runs are all finished has nothing left to count.
    firsts = {key: group[0].config for key, group in groups.items() if _count_left(group)}
    loaded: dict[str, Samples] = {}
    timed = {} if timed is None else timed
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


def _find_folder(run: SweepRun, place: Path, runs: str | os.PathLike[str], numbered: bool) -> PlannedRun:
    """A run with its folder. If `numbered`, a folder that is taken is passed over for one with the next number.

    Raises:
        RequestError: the folder is taken by another run, or by what is no run.
    """
    given = run.config.weights
    named = run.config if given is None else run.config.model_copy(update={"weights": find_weights(given, runs)})
    config = resolve(named)
    if run.options:
        # What is chosen for it is not known yet, so that it cannot be told from what lies there.
        return PlannedRun(config, place / run.name, "new")
    number = 1
    while True:
        found = inspect_folder(place / (run.name if number == 1 else f"{run.name}-{number}"), config)
        if found.state not in ("another run", "not a run"):
            return PlannedRun(config, found.folder, found.state)
        if not numbered:
            remove = f", or `ticket runs rm {found.folder}`" if found.state == "another run" else ""
            raise RequestError(f"{found.why}: choose another --runs{remove}")
        number += 1


def _set_up(config: Config, loaded: dict[str, Samples]) -> Setup:
    """The network and the data of a run. Data that several runs have in common are read once.

    Raises:
        RequestError: every problem at once.
    """
    problems = Problems()
    check_code(config, {})
    key = repr([getattr(config, name) for name in _OF_DATA])

    def load() -> None:
        if key not in loaded:
            loaded[key] = load_data(config.data, config).to(config.device)

    problems.attempt(load)
    problems.attempt(lambda: find_model(config.model, config.leaves))
    problems.attempt(lambda: make_objective(config))
    problems.raise_if_any()
    return make_setup(find_method(config.method), config.model, loaded[key], config)


def _count_steps(config: Config, loaded: dict[str, Samples], controls_on: str) -> tuple[Setup, int]:
    """What a run works on, and the number of its steps.

    Raises:
        RequestError: every problem at once, among them data for its controls on which its masks do not fit.
    """
    setup = _set_up(config, loaded)
    if controls_on:
        # A mask of one network does not fit another, and data of another shape have another network.
        other = _set_up(config.model_copy(update={"data": controls_on}), loaded).data
        here, there = ((to_lists(data.input_shape), data.classes) for data in (setup.data, other))
        if here != there:
            raise RequestError(
                f"controls_on {controls_on}: samples of shape {there[0]} in {there[1]} classes; the masks of "
                f"{config.data} fit {here[0]} in {here[1]} classes"
            )
    with exact_arithmetic(config), own_random_numbers():
        model = setup.make_model(config)
        check_model(setup, config, model)
        return setup, sum(stage.steps for stage in plan_stages(config, setup, setup.targets(config, model)))


def _time_step(config: Config, setup: Setup, name: str, timed: dict[str, float]) -> float:
    """The seconds of a step with its share of the evaluations, measured once for all runs that take the same time.

    Raises:
        RequestError: a step of training fails.
    """
    key = repr({name: value for name, value in to_plain(config).items() if name not in _UNTIMED})
    if key not in timed:
        try:
            plan = make_plan(config, setup)
        except RequestError:
            raise
        except RunError:
            # A loss that is no number within the first steps: the run will say so, and the others go on.
            return 0.0
        except Exception as error:
            raise RequestError(f"{name}: a step of training raises {type(error).__name__}: {error}") from error
        timed[key] = plan.seconds / max(1, sum(stage.steps for stage in plan.stages))
    return timed[key]


def run_plan(plan: SweepPlan, progress: bool = True) -> SweepResult:
    """Carry out what was planned (see `run_sweep`)."""
    asked = plan.sweep
    todo = [run for run in plan.runs if run.state != "finished" or asked.controls_of(run.config)]
    jobs = [
        Job(
            place, str(run.folder), run.config, asked.controls_of(run.config), asked.control_levels, asked.controls_on
        )
        for place, run in enumerate(todo)
    ]  # fmt: skip
    board = Board(len(jobs))
    steps = [0 if run.state == "finished" else run.steps for run in todo]
    shows = SweepProgress([run.folder.name for run in todo], steps, board, progress)
    ended = run_jobs(jobs, min(plan.jobs, len(jobs)), board, shows) if jobs else {}
    failures = {todo[place].folder.name: end["text"] for place, end in ended.items() if end["state"] == "failed"}
    finished = [run.folder for run in plan.runs if inspect_folder(run.folder).state == "finished"]
    return SweepResult(finished, failures, len(ended) < len(jobs))
