"""`ticket diagnose`: why a ticket is poor, and what to try next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import questions
from ..contract.errors import RequestError
from ..runs.progress import Progress
from .terminal import harmless, output, print_json, print_sentence, stop_told
from .tickets import Data, Loss, MaxMinutes, Metric, Model

if TYPE_CHECKING:
    from ..questions.diagnosis import Diagnosis


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("diagnose")(diagnose)


def diagnose(
    run: Annotated[str, typer.Argument(help="The folder or name of a finished search.")],
    tries: Annotated[
        bool, typer.Option("--try", help="Search with the first suggestions, and say which of them have helped.")
    ] = False,
    first: Annotated[
        int | None, typer.Option("--first", help="How many suggestions --try carries out; 3 if not given.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", help="With how many seeds --try carries out each; 3 if not given.")
    ] = None,
    level: Annotated[
        int | None, typer.Option("--level", help="The level of the ticket in question; the last if not given.")
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(
            "--delta",
            help="How much worse than the dense network is not poor yet; 0.5 points of accuracy if not given.",
        ),
    ] = None,
    model: Model = None,
    data: Data = None,
    loss: Loss = None,
    metric: Metric = None,
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    max_minutes: MaxMinutes = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say whether a ticket is poor, why that may be, and what to try next; with --try, try it.

    Findings are hypotheses, each with its numbers, its source and the next command to type; the first is what to try
    first. Without --try nothing is trained and nothing is written. With it the first suggestions are carried out with
    several seeds, in diagnosis/ in the run's folder, and compared with the recipe as it was: on validation, paired by
    seed, with 95 % intervals and Holm's correction. What is there already is not made again.
    """
    alone = {"--first": first, "--seeds": seeds}
    if not tries and (given := [name for name, value in alone.items() if value is not None]):
        raise RequestError(f"{', '.join(given)} goes with --try: without it nothing is searched")
    if first is not None and first < 1:
        raise RequestError(f"--first {first}: expected a number of suggestions, 1 or more")
    code: dict[str, Any] = {"model": model, "data": data, "loss": loss, "metric": metric}
    with stop_told(), Progress() as progress:
        if tries:
            progress.label("loading PyTorch and the data")
        found = questions.diagnosis.diagnose(
            run, level=level, delta=delta,
            tries=(questions.diagnosis.FIRST if first is None else first) if tries else 0,
            seeds=questions.diagnosis.SEEDS if seeds is None else seeds, runs=runs, progress=progress, **code,
        )  # fmt: skip
    if as_json:
        print_json(found.to_dict())
    else:
        _show(found)


def _show(found: Diagnosis) -> None:
    print_sentence(found.headline, "bold")
    print_sentence(found.explanation)
    for number, finding in enumerate(found.findings, start=1):
        output().print()
        print_sentence(f"{number}. {finding.hypothesis}", "bold")
        print_sentence(finding.evidence)
        print_sentence(finding.source)
        _print_command(finding.command)
    if found.unmeasured:
        output().print()
        print_sentence("Not measured, and might tell more:")
        for what, command in found.unmeasured:
            print_sentence(what)
            _print_command(command)
    _show_trials(found)


def _show_trials(found: Diagnosis) -> None:
    if not found.trials:
        return
    output().print()
    print_sentence("Tried:", "bold")
    for trial in found.trials:
        print_sentence(f"{trial.change} {found.tell(trial)}")
    best = found.winner
    if best is None:
        print_sentence("none has been shown to help: more seeds (--seeds), more suggestions (--first), or other ideas")
    else:
        print_sentence("next:")
        _print_command(best.command)


def _print_command(command: str) -> Any:
    if command:
        output().print(harmless(f"  {command}", 2000), markup=False, highlight=False, soft_wrap=True)
