"""Do the suggestions help? Each is carried out with several seeds, beside the recipe as it was.

Student, The Probable Error of a Mean, 1908; Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..analysis.commands import search_command
from ..analysis.intervals import ALPHA, Difference, chance_of_none, difference, holm
from ..contract.errors import RequestError, RunError, command_line
from ..contract.flags import Config, to_plain
from ..contract.keyed import Keyed
from ..contract.metric import known_value
from ..running.controls import Given
from ..running.plan import make_plan
from ..running.request import request_of
from ..running.search import carry_out, prepare
from ..runs.experiment import Setup
from ..runs.folders import choose_folder, inspect_folder, is_finished
from ..runs.names import DIAGNOSIS_RUNS
from ..runs.progress import Progress, in_words
from ..runs.run import Run
from . import suggestions
from .evidence import Evidence
from .records import other_seeds, row_at
from .suggestions import Finding, change, with_seed

# The folder of the recipe as it was, with other seeds.
_ORIGINAL = "original"


@dataclass(frozen=True)
class Trial(Keyed):
    """What came of a suggestion.

    `validation` and `test` are the values of each seed with it, `original` those of the recipe as it was on validation.
    `difference` is between the two on validation, paired by seed and positive where the suggestion is better; `p_holm`
    is the chance of such a difference if there were none, corrected for the number of suggestions that were tried.
    `on_test` is the same difference on the test split, which decides nothing. `helped` is whether the 95 % interval
    lies above 0 and `p_holm` is below 5 %. `failed` says of seeds why their search failed.
    """

    kind: str
    change: str
    flags: Mapping[str, Any]
    original: Mapping[int, float]
    validation: Mapping[int, float]
    test: Mapping[int, float]
    difference: Difference | None
    on_test: Difference | None
    p_holm: float | None
    helped: bool
    command: str
    failed: Mapping[int, str]


def try_out(
    run: Run, evidence: Evidence, findings: Sequence[Finding], given: Given, seeds: int, shows: Progress
) -> tuple[Trial, ...]:
    """Search with each suggestion, and as it was, with several seeds: in `diagnosis/` in the run's folder.

    What is there already is not made again. The run's own seed is one of them, and runs of other seeds beside it count
    as the recipe as it was. Of a level that is not the last, all searches end at its density.

    Args:
        run: the run that is diagnosed, with leave for the code that it needs.
        evidence: about it.
        findings: the suggestions to carry out.
        given: what stands in for names of its configuration.
        seeds: how many.
        shows: where to tell what goes on.

    Raises:
        RequestError: the network or the data are not to be had.
        Interrupted: stopped by a signal; the same call goes on from there.
    """
    level = evidence.level
    own_row = row_at(run, level)
    assert own_row is not None, "the level was looked at"
    base = _up_to(run.config, evidence)
    beside = {seed: row for seed, other in other_seeds(run).items() if (row := row_at(other, level)) is not None}
    chosen = _choose_seeds(run.config.seed, beside, seeds)
    place = "" if level is None or level == run.levels[-1]["level"] else f"level-{level:02d}-"
    work = _Work(run.path / DIAGNOSIS_RUNS, place, given, shows)
    todo = {
        **({_ORIGINAL: base} if any(seed not in beside for seed in chosen[1:]) else {}),
        **{suggestions.slug(finding.flags): change(base, finding.flags) for finding in findings},
    }
    work.announce(run, todo, chosen, beside)
    original = {
        seed: own_row if seed == run.config.seed else beside.get(seed) or work.search(_ORIGINAL, base, seed)
        for seed in chosen
    }
    trials = []
    for finding in findings:
        name, config = suggestions.slug(finding.flags), change(base, finding.flags)
        trials.append(_describe(finding, config, original, {seed: work.search(name, config, seed) for seed in chosen},
                                evidence))  # fmt: skip
    return correct(trials)


def _up_to(config: Config, evidence: Evidence) -> Config:
    """The configuration of a search that ends at the level in question."""
    if len(evidence.densities) < 2 and not getattr(config, "levels", ()):
        return config
    levels = getattr(config, "levels", ())
    if levels:
        kept = tuple(levels[: len(evidence.densities)])
        return config.model_copy(update={"levels": kept, "density": kept[-1]})
    return config.model_copy(update={"density": evidence.density})


def _choose_seeds(own: int, beside: Mapping[int, Any], number: int) -> list[int]:
    """The run's own seed, those that have run beside it, and the next ones."""
    chosen = [own, *sorted(beside)][:number]
    following = own + 1
    while len(chosen) < number:
        if following not in chosen:
            chosen.append(following)
        following += 1
    return chosen


class _Work:
    """The searches of a diagnosis, in one folder: what is finished is read, what is not is carried out."""

    def __init__(self, folder: Path, place: str, given: Given, shows: Progress) -> None:
        self.folder, self.place, self.given, self.shows = folder, place, given, shows

    def prepare(self, config: Config) -> tuple[Config, Setup]:
        """The configuration on this machine, and what the search works on."""
        request = request_of(config, self.given.model, self.given.data)
        return prepare(replace(request, functions=self.given.functions))

    def name(self, kind: str, seed: int) -> str:
        """The name of the folder of a search."""
        return f"{self.place}{kind}-s{seed}"

    def is_there(self, kind: str, seed: int) -> bool:
        """Whether there is a finished search of this name."""
        return is_finished(self.folder / self.name(kind, seed))

    def announce(self, run: Run, todo: Mapping[str, Config], seeds: Sequence[int], beside: Mapping[int, Any]) -> None:
        """Say of each suggestion how long its searches take, before the first."""
        if not self.shows.shown:
            return
        costs = None
        for kind, config in todo.items():
            done = beside.keys() | {run.config.seed} if kind == _ORIGINAL else set()
            number = sum(seed not in done and not self.is_there(kind, seed) for seed in seeds)
            if not number:
                continue
            self.shows.label("diagnosis: timing the first steps")
            plan = make_plan(*self.prepare(config), costs)
            costs = plan.costs
            what = f"{kind}: {number} search{'es' if number > 1 else ''} of {len(plan.stages)} trainings each"
            self.shows.say(f"{what}, about {in_words(number * plan.seconds)}", "")

    def search(self, kind: str, config: Config, seed: int) -> Mapping[str, Any]:
        """What a search reports at its end, or under `failed` why it has failed.

        Raises:
            RequestError: the network or the data are not to be had, or a folder of this name holds another search.
        """
        name = self.name(kind, seed)
        resolved, setup = self.prepare(with_seed(config, seed))
        found = inspect_folder(self.folder / name, resolved)
        if found.state == "another run":
            raise RequestError(f"{found.why}; `{command_line('runs', 'rm', found.folder)}` makes room for this one")
        run = Run(self.folder / name, resolved)
        if found.state != "finished":
            try:
                run = carry_out(Run(choose_folder(resolved, self.folder, name), resolved, setup, self.shows))
            except RunError as error:
                return {"failed": str(error)}
        return run.summary


def _describe(
    finding: Finding,
    config: Config,
    original: Mapping[int, Mapping[str, Any]],
    found: Mapping[int, Mapping[str, Any]],
    evidence: Evidence,
) -> Trial:
    failed = {seed: str(row["failed"]) for seed, row in found.items() if "failed" in row}
    lost = {seed: str(row["failed"]) for seed, row in original.items() if "failed" in row}
    values = {
        split: [
            {seed: known_value(row, split) for seed, row in rows.items() if "failed" not in row}
            for rows in (found, original)
        ]
        for split in ("val", "test")
    }  # fmt: skip
    merit = evidence.metric.merit
    gaps = {
        split: difference(*({seed: merit(value) for seed, value in one.items()} for one in pair))
        for split, pair in values.items()
    }
    return Trial(
        kind=finding.kind,
        change=suggestions.in_words(finding.flags, evidence.config),
        flags=dict(finding.flags),
        original=values["val"][1],
        validation=values["val"][0],
        test=values["test"][0],
        difference=gaps["val"],
        on_test=gaps["test"],
        p_holm=None,
        helped=False,
        command=command_of(config, sorted(found), Path(evidence.path).parent, finding.flags),
        failed={**{seed: f"as it was: {why}" for seed, why in lost.items()}, **failed},
    )


def correct(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The trials with their p-values, corrected for their number, and whether each has helped."""
    chances = {
        str(place): chance
        for place, trial in enumerate(trials)
        if trial.difference is not None and (chance := chance_of_none(trial.difference)) is not None
    }
    corrected = holm(chances)
    done = []
    for place, trial in enumerate(trials):
        chance, gap = corrected.get(str(place)), trial.difference
        low = gap.interval[0] if gap is not None and gap.interval is not None else None
        helped = chance is not None and chance < ALPHA and low is not None and low > 0
        done.append(replace(trial, p_holm=chance, helped=helped))
    return tuple(done)


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Of the trials that have helped the one that has helped most on validation."""
    helped = [(trial.difference.mean, trial) for trial in trials if trial.helped and trial.difference is not None]
    return max(helped, key=lambda pair: pair[0])[1] if helped else None


def command_of(
    config: Config, seeds: Sequence[int], runs: str | os.PathLike[str], flags: Mapping[str, Any] | None = None
) -> str:
    """The command that carries out a configuration; of code or data that cannot be typed, the call in Python.

    `flags` are those that are told even where they have their default, and `runs` is the folder of all runs.
    """
    told = [key for key, value in (flags or {}).items() if value is not None]
    return search_command(to_plain(config) | {key: getattr(config, key) for key in told}, seeds, runs=runs, told=told)
