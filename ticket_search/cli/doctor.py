"""`ticket doctor`: what this machine has, and whether this package is right and fast on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import deploy
from ..contract.errors import RequestError, unknown
from ..runs.outputs import write_output
from ..runs.progress import Progress
from .terminal import counted, errors, output, print_json, print_table

if TYPE_CHECKING:
    from ..deploy.machine import Fact
    from ..deploy.self_check import Row

_STYLES = {"good": "", "missing": "yellow", "told": ""}
_DEVICES = ("auto", "cpu", "cuda")


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Check the device too: masks, waits, agreement with the CPU, searches, and speed. Minutes."
        ),
    ] = False,
    device: Annotated[str, typer.Option("--device", help="The device to check: auto, cpu or cuda.")] = "auto",
    quick: Annotated[
        bool, typer.Option("--quick", help="Check a little of everything in about a minute; times then say nothing.")
    ] = False,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Begin no check after so many seconds.")] = 420.0,
    report: Annotated[
        str, typer.Option("--output", help="Write all of it to this file too, .md or .json, to send with a report.")
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists already.")] = False,
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs, whose disk is looked at.")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Tell what this machine has, what will be used, and what is missing, with the line that gets it."""
    _refuse(device, report, overwrite)
    with Progress() as progress:
        progress.label("looking at the machine")
        facts = deploy.machine.look_at_machine(runs)
    if not as_json:
        _print_facts(facts)
    rows = _check(_device(device), quick, seconds, as_json) if check else []
    plain = {"machine": [fact.as_dict() for fact in facts], "checks": [row.as_dict() for row in rows]}
    if as_json:
        print_json(plain)
    if report:
        text = json.dumps(plain, indent=2) + "\n" if report.endswith(".json") else _page(facts, rows)
        write_output(report, text)
    if failed := [row for row in rows if row.verdict == "failed"]:
        errors().print(f"error: {counted(len(failed), 'check')} failed", style="red", highlight=False)
        raise typer.Exit(1)


def _refuse(device: str, report: str, overwrite: bool) -> None:
    problems = [] if device in _DEVICES else [unknown("device", device, _DEVICES)]
    if report and not report.endswith((".md", ".json")):
        problems.append(f"--output {report}: expected a file that ends in .md or .json")
    if report and Path(report).exists() and not overwrite:
        problems.append(f"--output {report}: the file exists already; choose another name, or add --overwrite")
    if problems:
        raise RequestError(problems)


def _device(asked: str) -> str:
    import torch

    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise RequestError("--device cuda: PyTorch finds no GPU here, and `ticket doctor` says why")
    return ("cuda" if there else "cpu") if asked == "auto" else asked


def _print_facts(facts: Sequence[Fact]) -> None:
    topic = ""
    for fact in facts:
        if fact.topic != topic:
            topic = fact.topic
            output().print(topic, style="bold", highlight=False)
        mark = {"good": "+", "missing": "-", "told": " "}[fact.state]
        _say(f"  {mark} {fact.what}", _STYLES[fact.state])
        if fact.mend:
            _say(f"      {fact.mend}", "bold")


def _say(line: str, style: str) -> None:
    output().print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def _check(device: str, quick: bool, seconds: float, silent: bool) -> list[Row]:
    rows = []
    with Progress(not silent) as progress:
        progress.label(f"checking {device}")
        for row in deploy.self_check.check_device(device, quick=quick, seconds=seconds):
            rows.append(row)
            progress.label(f"checking {device}: {row.check}, {row.what}")
    if not silent:
        print_table(("check", "what", "value", ""), [(row.check, row.what, row.value, row.verdict) for row in rows])
    return rows


def _page(facts: Sequence[Fact], rows: Sequence[Row]) -> str:
    """Facts and checks as Markdown."""
    from ..analysis.markdown import escape

    lines = ["| | | |", "|---|---|---|"]
    lines += [f"| {escape(f.topic)} | {escape(f.what)} | {escape(f.mend)} |" for f in facts]
    if rows:
        lines += ["", "| check | what | value | |", "|---|---|---|---|"]
        lines += [f"| {escape(r.check)} | {escape(r.what)} | {escape(r.value)} | {r.verdict} |" for r in rows]
    return "\n".join(lines) + "\n"
