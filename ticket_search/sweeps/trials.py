"""What a sweep chooses on validation: the trials of its candidates, what they say, and the sweep with the best."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..contract.errors import RunError
from ..contract.metric import metric_of, value_of
from ..runs.names import FAILURE, SUMMARY
from ..runs.records import read_record
from .file import Sweep, SweepRun


def trials_of(sweep: Sweep) -> Sweep | None:
    """The runs by which a sweep chooses: the deciding run of each group with each candidate. None without a choice."""
    found = tuple(option.run for run in sweep.runs if run.decides for option in run.options)
    return Sweep(f"{sweep.name}-choice", found, engine=sweep.engine) if found else None


@dataclass(frozen=True)
class Candidate:
    """What was tried: the flags by field name, and what validation says in the metric's unit, None where it failed."""

    values: dict[str, Any]
    validation: float | None


@dataclass(frozen=True)
class Chosen:
    """The candidates of a group of runs, and the one that is best on validation, of equal ones the first.

    name: of the run with which they were tried. configuration: the same without its seed.
    folder: of the trial that was best.
    """

    group: str
    name: str
    configuration: str
    candidates: tuple[Candidate, ...]
    best: int
    folder: Path

    @property
    def values(self) -> dict[str, Any]:
        """The flags that are chosen."""
        return self.candidates[self.best].values


def read_trials(sweep: Sweep, runs: str | os.PathLike[str] = "runs") -> list[Chosen]:
    """What the finished trials of a sweep say.

    Raises:
        RunError: every candidate of a group has failed.
    """
    found = []
    for run in (run for run in sweep.runs if run.decides):
        chosen = _choose(sweep, run, runs)
        if chosen is None:
            raise RunError(
                f"{run.configuration}: every candidate of [choose] has failed; why is in failure.txt of each folder of "
                f"{_place_of(sweep, runs)}"
            )
        found.append(chosen)
    return found


def _place_of(sweep: Sweep, runs: str | os.PathLike[str]) -> Path:
    """The folder of the trials by which a sweep chooses."""
    return Path(runs) / f"{sweep.name}-choice"


def _choose(sweep: Sweep, run: SweepRun, runs: str | os.PathLike[str]) -> Chosen | None:
    """The candidates of a deciding run, and the best of those that are tried; None where none of them is."""
    place = _place_of(sweep, runs)
    merits, candidates = [], []
    for option in run.options:
        folder = place / option.run.name
        summary = read_record(folder, SUMMARY) if (folder / SUMMARY).exists() else None
        value = value_of(summary, "val") if summary else None
        merits.append(-math.inf if summary is None or value is None else metric_of(summary).merit(value))
        candidates.append(Candidate(dict(option.values), value))
    best = merits.index(max(merits))
    if merits[best] == -math.inf:
        return None
    folder = place / run.options[best].run.name
    return Chosen(run.group, run.name, run.configuration, tuple(candidates), best, folder)


def settle_known(sweep: Sweep, runs: str | os.PathLike[str] = "runs") -> Sweep:
    """A sweep with what is chosen already: that of the runs all of whose candidates have ended. Nothing is written.

    A candidate that has failed is tried again when the sweep goes on, which hardly ever changes what is chosen.
    """
    place = _place_of(sweep, runs)
    ended = [
        run
        for run in sweep.runs
        if run.decides
        and run.options
        and all(any((place / option.run.name / file).exists() for file in (SUMMARY, FAILURE)) for option in run.options)
    ]
    return _take(sweep, [chosen for run in ended if (chosen := _choose(sweep, run, runs)) is not None])


def settle(sweep: Sweep, choices: Sequence[Chosen], runs: str | os.PathLike[str] = "runs") -> Sweep:
    """A sweep with what was chosen. The best trials are runs of it, so their folders are copied: none is done again."""
    place = Path(runs) / sweep.name
    for choice in choices:
        if not (place / choice.name).exists():
            place.mkdir(parents=True, exist_ok=True)
            # Renamed when it is whole: a copy that was cut short must not look like a run.
            unfinished = place / f".{choice.name}"
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(choice.folder, unfinished)
            unfinished.rename(place / choice.name)
    return _take(sweep, choices)


def _take(sweep: Sweep, choices: Sequence[Chosen]) -> Sweep:
    """A sweep whose runs have taken the candidates that are chosen for them; the others are as they were."""
    best = {choice.group: choice.best for choice in choices}
    settled = []
    for run in sweep.runs:
        if run.options and run.group in best:
            taken = run.options[best[run.group]].run
            run = replace(taken, suffix=run.suffix, decides=run.decides, tried=taken.name if run.decides else "")
        settled.append(run)
    return replace(sweep, runs=tuple(settled))
