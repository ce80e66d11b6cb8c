"""Why is this ticket poor, and what is to be tried next?

Raschka, Machine Learning Q and AI, 2024, exercise 4-1; what each finding goes by has its own source.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from supermask.masks import notebook
from supermask.masks.texts import harmless

from ..analysis.commands import PLACE, search_command
from ..analysis.comparison import TASK
from ..contract.errors import Problems, RequestError, command_line, several_tasks
from ..contract.flags import to_plain
from ..contract.keyed import Keyed
from ..contract.leave import Leaves
from ..contract.metric import Metric, is_guessing
from ..running.controls import Given, check_data, check_names
from ..running.read_config import find_kind, read_config
from ..running.request import Request, name_problems, request_of, shape_of
from ..runs.experiment import load_data
from ..runs.folders import find_run
from ..runs.names import FAILURE
from ..runs.progress import Progress
from ..runs.run import Run
from . import activations, records, rules, trials
from .evidence import LEAST_SEEDS, Evidence
from .suggestions import Finding, change, with_seed
from .trials import Trial

# So many of the suggestions are tried where their number is not given, with so many seeds.
FIRST, SEEDS = 3, 3
_MOST_SEEDS = 100

State = Literal["poor", "healthy", "undecided", "unknown"]


@dataclass(frozen=True)
class Diagnosis(Keyed):
    """What is found about a run.

    state: `poor`; `healthy`; `undecided` where the gap to the dense network is above the margin and within what chance
        explains; `unknown` where there is nothing to compare with, or no margin.
    headline: the finding in one sentence. explanation: the numbers behind it.
    findings: hypotheses, the first is what is to be tried first. unmeasured: what would tell more, with its command.
    trials: what came of the suggestions that were tried. metric: of all numbers; differences are in its unit.
    """

    run: str
    level: int | None
    density: float
    state: State
    headline: str
    explanation: str
    findings: tuple[Finding, ...]
    unmeasured: tuple[tuple[str, str], ...]
    trials: tuple[Trial, ...]
    metric: Metric

    def __repr__(self) -> str:
        kinds = ", ".join(finding.kind for finding in self.findings)
        return harmless(f"Diagnosis({self.run}: {self.headline}{f'; findings: {kinds}' if kinds else ''})")

    def _repr_html_(self) -> str:
        columns = ("hypothesis", "its numbers", "source", "next")
        rows = [(each.hypothesis, each.evidence, each.source, each.command) for each in self.findings]
        shown = notebook.page(self.headline, {"run": self.run, "numbers": self.explanation})
        shown += notebook.table(columns, rows) if rows else ""
        tried = [(trial.change, self.tell(trial)) for trial in self.trials]
        return shown + (notebook.table(("tried", "what came of it"), tried) if tried else "")

    @property
    def winner(self) -> Trial | None:
        """Of the suggestions that were tried and helped the one that helped most; None where none did."""
        return trials.best_of(self.trials)

    def tell(self, trial: Trial) -> str:
        """What came of a suggestion, in a sentence: `helped: +14.2 pp on validation (9.1 to 19.3), 3 seeds`."""
        gap, metric = trial.difference, self.metric
        failed = f"; failed: {'; '.join(f'seed {seed}: {why}' for seed, why in trial.failed.items())}"
        if gap is None:
            return f"not known{failed}"
        told = f"{'helped' if trial.helped else 'no help shown'}: {gap.mean:+{metric.form}} {metric.gap} on validation"
        if gap.interval is not None:
            told += f" ({gap.interval[0]:+{metric.form}} to {gap.interval[1]:+{metric.form}})"
        told += f", {gap.n} seed{'' if gap.n == 1 else 's'}"
        told += f", Holm p = {trial.p_holm:.2g}" if trial.p_holm is not None else ""
        if trial.on_test is not None:
            told += f"; on test {trial.on_test.mean:+{metric.form}} {metric.gap}"
        return told + (failed if trial.failed else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `ticket diagnose --json` prints them."""
        best = self.winner
        values = {**asdict(self), "metric": self.metric.to_dict()}
        values["unmeasured"] = [{"what": what, "command": command} for what, command in self.unmeasured]
        return {**values, "winner": None if best is None else best.kind}


def diagnose(
    run: str | os.PathLike[str],
    *,
    level: int | None = None,
    delta: float | None = None,
    tries: int = 0,
    seeds: int = SEEDS,
    model: str | Callable[..., nn.Module] | None = None,
    data: Any = None,
    loss: str | Callable[..., Any] | None = None,
    metric: str | Callable[..., Any] | None = None,
    leaves: Leaves | None = None,
    runs: str | os.PathLike[str] = "runs",
    progress: bool | Progress = True,
) -> Diagnosis:
    """Say whether a ticket is poor, why that may be, and what to try; with `tries`, try it.

        found = diagnose("runs/imp-...")
        found.headline, found.findings[0].command
        diagnose("runs/imp-...", tries=3, seeds=5).winner

    A ticket is poor where it is below its dense network on validation by more than the margin and by more than chance
    explains on so many samples; and whatever it is compared with, where the dense network itself trains badly. What is
    found are hypotheses. Nothing is trained and nothing on disk changes without `tries`.

    With `tries` the first suggestions are carried out with several seeds, beside the recipe as it was, in `diagnosis/`
    in the run's folder. Whether one has helped is decided on validation, by the 95 % interval of the differences paired
    by seed, and by their p-values after Holm's correction for the number of suggestions.

    Args:
        run: the folder of a finished search, or its name under `runs`.
        level: whose ticket is meant, of a search with levels; if not given the last.
        delta: by how much a ticket may be worse than the dense network, in the unit of the metric; if not given half a
            percentage point of accuracy.
        tries: how many of the suggestions are tried, from the first on.
        seeds: with how many seeds each is tried; the run's own is one of them.
        model: the callable, where the run was started with one that is not remembered (see `resume`), or its name;
            needed for what is tried only.
        data: the arrays, where the run was started with some, or the name of the function that reads them.
        loss: as for `controls`.
        metric: as for `controls`.
        leaves: see `controls`.
        runs: the folder of all runs.
        progress: show a progress line on stderr, or the one that is shown already.

    Raises:
        RequestError: every problem of the request at once, as a run that is not finished, or a dense one.
        Interrupted: stopped by a signal; the same call goes on from there.
    """
    folder = find_run(os.fspath(run), runs)
    problems = Problems()
    if tries < 0:
        problems.add(f"tries {tries}: expected a number of suggestions")
    if not 2 <= seeds <= _MOST_SEEDS:
        problems.add(f"--seeds {seeds}: expected a number from 2 to {_MOST_SEEDS}; one seed has no interval")
    if delta is not None and not delta >= 0:
        problems.add(f"--delta {delta:g}: expected 0 or more")
    opened, request = _open(folder, problems, level, tries > 0, model, data, loss, metric, leaves)
    check_data(opened, data)
    samples = load_data(request.data, opened.config)
    evidence = records.gather(opened, samples, level, delta)
    if evidence.is_poor:
        evidence = replace(evidence, activity=activations.count_silent(opened, samples, evidence.level, model))
    findings = tuple(_with_command(finding, evidence) for finding in rules.find(evidence))
    tried: tuple[Trial, ...] = ()
    if wanted := [finding for finding in findings if finding.can_be_tried][:tries]:
        given = Given(model, data, request.functions)
        with progress if isinstance(progress, Progress) else Progress(progress) as shows:
            tried = trials.try_out(opened, evidence, wanted, given, seeds, shows)
    return _conclude(evidence, findings, tried)


def _open(
    folder: Path, problems: Problems, level: int | None, tries: bool, model: Any, data: Any, loss: Any, metric: Any,
    leaves: Leaves | None,
) -> tuple[Run, Request]:  # fmt: skip
    """The run of a folder that can be diagnosed, and the request of its search.

    Raises:
        RequestError: everything that is wrong, with what is in `problems` already.
    """
    request = problems.attempt(lambda: request_of(read_config(folder), model, data, loss, metric))
    problems.raise_if_any()
    assert request is not None, "a configuration that cannot be read is a problem"
    run = Run(folder, request.config.allowing(leaves or {}))
    if not run.finished:
        failed = folder / FAILURE
        why = f"; it has failed: {failed.read_text(encoding='utf-8').strip()[:500]}" if failed.exists() else ""
        raise RequestError(f"the run {folder} is not finished; `{command_line('resume', folder)}` goes on{why}")
    if run.config.method == "train":
        problems.add(f"{folder} trains a ticket that another run has found: give the run that found it")
    elif find_kind(run.config.method).traits.dense:
        problems.add(f"{folder} is a dense run: it has no ticket that could be poor")
    elif names := run.ticket.tasks:
        problems.add(f"{folder}: {several_tasks(names)}; of several tasks none is diagnosed by itself")
    there = [int(row["level"]) for row in run.levels]
    if level is not None and level not in there[1:]:
        has = f"after the dense level 0 it has levels 1 to {there[-1]}" if there[1:] else "it has no levels"
        problems.add(f"--level {level}: {has}")
    # Without trials only the data are needed, to count what the ticket was measured on.
    problems.add(*name_problems(request.model if tries else None, request.data))
    if tries and not problems.found:
        problems.attempt(lambda: check_names(request, run, None))
    elif not problems.found:
        only_data = {"model": None, "loss": None, "metric": None, "data": request.data}
        problems.add(*run.config.refused_code(only_data))
    problems.raise_if_any()
    return run, request


def _with_command(finding: Finding, e: Evidence) -> Finding:
    """The finding with the command that carries out its flags, where it has none of its own."""
    if finding.command:
        return finding
    seeds = [e.config.seed]
    if finding.kind == "too-few-seeds":
        first = max(e.gaps) + 1
        seeds = list(range(first, first + rules.SEEDS - len(e.gaps)))
    # Other seeds draw everything of their own.
    config = with_seed(change(e.config, finding.flags), seeds[0])
    return replace(finding, command=trials.command_of(config, seeds, Path(e.path).parent, finding.flags))


def _conclude(e: Evidence, findings: tuple[Finding, ...], tried: tuple[Trial, ...]) -> Diagnosis:
    state, headline = _judge(e, findings)
    found = Diagnosis(
        e.path, e.level, e.density, state, headline, _explain(e), findings, _unmeasured(e, state), tried, e.metric
    )
    if best := found.winner:
        return replace(found, headline=f"{headline}; {best.change} {found.tell(best).partition(', Holm')[0]}")
    return found


def _judge(e: Evidence, findings: tuple[Finding, ...]) -> tuple[State, str]:
    """What the run is, and the sentence that says it first."""
    if e.dense is not None and e.classes and e.metric.is_accuracy and is_guessing(e.dense, e.classes):
        told = f"the dense network is no better than guessing ({e.show(e.dense)}, {e.classes} classes)"
        return "unknown", f"not known: {told}, so that nothing can be compared with it"
    alarm = next((finding for finding in findings if finding.alarm), None)
    likely = f"most likely {_named(findings[0])}" if findings else "no rule knows why"
    if e.is_poor:
        assert e.gap is not None
        return "poor", f"poor: {e.show_gap(e.gap)} below dense; {likely}"
    if alarm is not None:
        return "poor", f"poor: it trains badly; {likely}"
    if e.gap is None:
        return "unknown", "not known: there is no dense network to compare with"
    if e.delta is None:
        told = f"{e.show_gap(abs(e.gap))} {'below' if e.gap > 0 else 'above'} dense"
        return "unknown", f"not known: {told}, and no margin was given: --delta, in {e.metric.gap_in_words}"
    if e.gap > e.least:
        told = f"{e.show_gap(e.gap)} below dense, chance alone makes up to {e.show_gap(e.noise)}"
        return "undecided", f"not told from chance: {told}"
    where = f"{e.show_gap(e.gap)} below" if e.gap > 0 else "not below" if e.gap == 0 else f"{e.show_gap(-e.gap)} above"
    return "healthy", f"healthy: {where} dense"


def _named(finding: Finding) -> str:
    """A hypothesis as a part of a sentence."""
    name = finding.hypothesis.partition(":")[0].rstrip(".")
    return name[0].lower() + name[1:]


def _explain(e: Evidence) -> str:
    """The numbers behind the headline, in a sentence."""
    told = f"at {100 * e.density:.3g} % of the weights {e.show(e.value)} on validation"
    if e.samples:
        told += f" ({e.samples:,} samples)"
    if e.dense is None or e.gap is None:
        return told
    told += f", {e.show(e.dense)} of the dense network ({e.dense_from}); chance alone makes a difference of up to "
    told += e.show_gap(e.noise)
    if e.first_fall is not None and len(e.densities) > 1:
        number, density = e.first_fall
        told += f"; the first level that falls off is {number}, at {100 * density:.3g} %"
    if len(e.gaps) > 1:
        told += f"; ticket less dense: {e.show_mean([-gap for gap in e.gaps.values()])}"
    return told


def _unmeasured(e: Evidence, state: State) -> tuple[tuple[str, str], ...]:
    """What would tell more of a run that is not healthy, with the command that measures it."""
    found = []
    if e.dense is None:
        kept = (*TASK, *PLACE, "init_seed", "order_seed")
        recipe = {key: value for key, value in to_plain(e.config).items() if e.trains or key in kept}
        command = search_command({**recipe, "method": "dense"}, [e.config.seed], runs=Path(e.path).parent)
        found.append(("the dense network of the same task", command))
    if state != "poor":
        return tuple(found)
    at = "" if e.level is None or e.level == 0 else f" --level {e.level}"
    if not e.controls and not any(len(gaps) >= LEAST_SEEDS for gaps in e.control_gaps.values()):
        found.append(
            (
                "fresh weights, shuffled and random masks",
                command_line("controls", e.path) + at.replace("level", "levels"),
            )
        )
    if e.trains and not e.barriers and e.config.method in rules.REWINDING_METHODS and shape_of(e.config) == "weight":
        later = max(1, round(e.steps / 100))
        found.append(
            ("stability to the noise of SGD", command_line("connect", e.path, "--rewind", f"0,{later}it") + at)
        )
    if not e.activity:
        found.append(("units that are never active on the data", command_line("inspect", e.path, "--activations")))
    return tuple(found)
