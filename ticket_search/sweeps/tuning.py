"""A search over ranges: Optuna proposes runs, the sweep carries them out, validation says how good they are.

The study is made again from the runs each time: a seeded sampler that is told the same proposes the same.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from supermask.tickets.file import write_atomically

from ..contract.errors import Problems, RequestError
from ..contract.metric import Metric, metric_of, value_of
from ..contract.stops import STOPPED
from ..running.duration import Costs
from ..runs.folders import is_finished
from ..runs.names import SUMMARY
from ..runs.records import read_record
from .asked import check_runs, describe_flags, join
from .file import Sweep, SweepRun, name_of
from .ranges import Range, Search
from .sweep import SweepPlan, plan_sweep, run_plan

RECORD = "search.json"
# As many digits of a number are tried and stand in the name of the run.
_DIGITS = 4


@dataclass(frozen=True)
class Trial:
    """A proposal that was tried: its flags, the folders of its runs, and what is measured, as means over the seeds.

    The search goes by `validation`; `test` is reported only. Both are None where a run has failed.
    """

    values: dict[str, Any]
    folders: tuple[Path, ...]
    validation: float | None = None
    test: float | None = None


@dataclass(frozen=True)
class Tuned:
    """How a search has ended: its trials in their order, the best on validation, failures by the name of the run."""

    trials: list[Trial]
    metric: Metric | None = None
    failures: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    stop_status: int = STOPPED

    @property
    def best(self) -> int | None:
        """The place of the trial that is best on validation, of equal ones the first; None where all have failed."""
        if self.metric is None:
            return None
        merits = [-float("inf") if t.validation is None else self.metric.merit(t.validation) for t in self.trials]
        return merits.index(max(merits))


def check_optuna() -> None:
    """Check that Optuna is installed.

    Raises:
        RequestError: it is not.
    """
    if importlib.util.find_spec("optuna") is None:
        raise RequestError('[search] takes the package optuna: pip install "supermask[optuna]"')


def run_search(
    sweep: Sweep,
    runs: str | os.PathLike[str] = "runs",
    jobs: int | None = None,
    progress: bool = True,
    engine: str = "local",
    address: str | None = None,
    show: Callable[[SweepPlan, int], None] | None = None,
) -> Tuned:
    """Carry out a sweep with [search]: ask for runs, carry them out, tell what validation says, again and again.

    Finished runs are not repeated, so that the same call goes on. What was proposed is kept in `search.json`.

    Args:
        sweep: what `read_sweep` has read.
        runs: the folder of all runs.
        jobs: how many runs go on at the same time (see `run_sweep`).
        progress: show a live table on stderr.
        engine: `local`, `slurm` or `ray`.
        address: of a Ray cluster.
        show: is given the plan of each batch, and how many trials are done before it.

    Raises:
        RequestError: every problem of the runs; or other runs are proposed than those that are there already.
    """
    search, study = _search_of(sweep), _Study(sweep, Path(runs))
    timed: dict[str, Costs] = {}
    trials: list[Trial] = []
    failures: dict[str, str] = {}
    while len(trials) < search.trials:
        asked, proposals = study.ask(min(search.batch, search.trials - len(trials)))
        study.check(len(trials), proposals)
        part = replace(sweep, runs=_different(runs_of(sweep, proposals)), search=None)
        plan = plan_sweep(part, runs, jobs, timed, engine=engine)
        if show is not None:
            show(plan, len(trials))
        if not study.is_past(len(trials) + len(proposals)):
            study.keep([*trials, *(_untried(sweep, values, runs) for values in proposals)])
            result = run_plan(plan, progress, address)
            failures |= result.failures
            if result.interrupted:
                return Tuned(trials, study.metric, failures, interrupted=True, stop_status=result.stop_status)
        tried = [_measure(_untried(sweep, values, runs)) for values in proposals]
        study.tell(asked, tried)
        trials += tried
        if not study.is_past(len(trials)):
            study.keep(trials)
    return Tuned(trials, study.metric, failures)


def plan_search(
    sweep: Sweep, runs: str | os.PathLike[str] = "runs", jobs: int | None = None, engine: str = "local"
) -> SweepPlan:
    """What the first batch of a search would do. Nothing is written."""
    search, study = _search_of(sweep), _Study(sweep, Path(runs))
    proposals = study.ask(min(search.batch, search.trials))[1]
    return plan_sweep(
        replace(sweep, runs=_different(runs_of(sweep, proposals)), search=None), runs, jobs, engine=engine
    )


def _search_of(sweep: Sweep) -> Search:
    check_optuna()
    if sweep.search is None:
        raise RequestError(f"the sweep {sweep.name} has no [search]: run_sweep carries it out")
    return sweep.search


def runs_of(sweep: Sweep, proposals: Sequence[Mapping[str, Any]]) -> list[SweepRun]:
    """The runs of proposals, each with every seed.

    Raises:
        RequestError: flags that do not go together.
    """
    search, problems = _search_of(sweep), Problems()
    asked = [join(search.base, flags, search.threads, problems) for flags in proposals]
    configs = check_runs(asked, proposals, problems)
    problems.raise_if_any()
    made = []
    for flags, config in zip(proposals, configs, strict=True):
        assert config is not None, "a configuration that is wrong is a problem"
        allowed = config.allowing(sweep.leaves)
        made += [
            SweepRun(allowed.model_copy(update={"seed": seed}), name_of(flags))
            for seed in search.seeds or (config.seed,)
        ]
    return made


def _different(found: Sequence[SweepRun]) -> tuple[SweepRun, ...]:
    """Runs without those that are proposed twice, as values of a short list are."""
    return tuple({run.name: run for run in found}.values())


def _untried(sweep: Sweep, values: Mapping[str, Any], runs: str | os.PathLike[str]) -> Trial:
    return Trial(dict(values), tuple(Path(runs) / sweep.name / run.name for run in runs_of(sweep, [values])))


def _measure(trial: Trial) -> Trial:
    """A trial with its means over the seeds, where all of its runs are finished."""
    if not all(is_finished(folder) for folder in trial.folders):
        return trial
    rows = [read_record(folder, SUMMARY) for folder in trial.folders]
    return replace(trial, validation=_mean(rows, "val"), test=_mean(rows, "test"))


def _mean(rows: Sequence[Mapping[str, Any]], split: Literal["val", "test"]) -> float | None:
    values = [value for row in rows if (value := value_of(row, split)) is not None]
    return statistics.fmean(values) if len(values) == len(rows) else None


class _Study:
    """Optuna's study, and the record of what it has proposed."""

    def __init__(self, sweep: Sweep, runs: Path) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.metric: Metric | None = None
        self._search, self._path = _search_of(sweep), runs / sweep.name / RECORD
        samplers = {
            "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
            "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
        }
        sampler = samplers[self._search.sampler](self._search.seed)
        # Of two merits the higher is the better, whatever the metric.
        self._study: Any = optuna.create_study(sampler=sampler, direction="maximize")
        self._version, self._failed = str(optuna.__version__), optuna.trial.TrialState.FAIL
        self._known = self._read()

    def ask(self, number: int) -> tuple[list[Any], list[dict[str, Any]]]:
        """Optuna's trials, and the flags of each."""
        asked = [self._study.ask() for _ in range(number)]
        return asked, [{key: _suggest(each, key, what) for key, what in self._search.ranges.items()} for each in asked]

    def tell(self, asked: Sequence[Any], tried: Sequence[Trial]) -> None:
        """Say what validation says of trials."""
        for each, trial in zip(asked, tried, strict=True):
            if trial.validation is None:
                self._study.tell(each, state=self._failed)
                continue
            self.metric = metric_of(read_record(trial.folders[0], SUMMARY))
            self._study.tell(each, self.metric.merit(trial.validation))

    def check(self, done: int, proposals: Sequence[Mapping[str, Any]]) -> None:
        """Check that proposals are those that were made when the search was begun.

        Raises:
            RequestError: they are others.
        """
        before = self._known.get("trials", [])[done : done + len(proposals)]
        for place, (old, new) in enumerate(zip(before, proposals, strict=False), done + 1):
            if old["values"] != new:
                raise RequestError(
                    f"trial {place} in {self._path} was {describe_flags(old['values'])}, and {describe_flags(new)} is "
                    f"proposed now: [search] or Optuna has changed ({self._known['optuna']} there, {self._version} "
                    "here), or runs were removed; choose another --runs"
                )

    def is_past(self, end: int) -> bool:
        """Whether trials after a place were proposed already: those before it are as they are, failed ones too."""
        return len(self._known.get("trials", [])) > end

    def keep(self, trials: Sequence[Trial]) -> None:
        """Write what was proposed, and what is measured."""
        rows = [
            {
                "values": t.values,
                "runs": [folder.name for folder in t.folders],
                "validation": t.validation,
                "test": t.test,
            }
            for t in trials
        ]
        told = {"optuna": self._version, "sampler": self._search.sampler, "seed": self._search.seed, "trials": rows}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, (json.dumps(told, indent=1) + "\n").encode())

    def _read(self) -> dict[str, Any]:
        try:
            known: dict[str, Any] = json.loads(self._path.read_bytes())
            rows = [dict(row["values"]) for row in known["trials"]]
            return known if rows is not None and isinstance(known["optuna"], str) else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(
                f"{self._path} is damaged ({error}): remove it, and the search proposes its runs again"
            ) from None


def _suggest(trial: Any, key: str, what: Range | tuple[Any, ...]) -> Any:
    """A value for a flag, of as few digits as a name may have."""
    if not isinstance(what, Range):
        # By place: Optuna takes no lists.
        return what[trial.suggest_categorical(key, list(range(len(what))))]
    if what.is_whole:
        return trial.suggest_int(key, int(what.low), int(what.high), log=what.log)
    value = float(f"{trial.suggest_float(key, what.low, what.high, log=what.log):.{_DIGITS}g}")
    return min(max(value, what.low), what.high)
