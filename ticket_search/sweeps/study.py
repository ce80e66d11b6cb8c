"""A published figure as one file: its runs and controls, the published numbers, and the page that joins them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from ..contract.errors import RequestError, unknown
from ..contract.flags import read_toml
from .file import Sweep, make_sweep

# A published accuracy agrees with ours where it lies in our interval, or this near to our mean, in percentage points.
NEAR = 1.0
# Of two densities that count as the same, the larger is at most so many times the smaller.
SAME_DENSITY = 1.25


class Published(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A number of the publication: of which method or control, at which density, and where it stands."""

    label: str
    density: float = pydantic.Field(gt=0, le=1)
    accuracy: float = pydantic.Field(ge=0, le=100)
    method: str = ""
    control: str = ""
    data: str = ""


class _File(pydantic.BaseModel, extra="forbid"):
    title: str
    paper: str
    question: str
    hours: float = pydantic.Field(gt=0)
    delta: float = pydantic.Field(0.5, gt=0)
    differs: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    sweep: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What a study's file says.

    `hours` is its budget on two cores, `differs` what is not as in the publication, `statements` what the publication
    says in words.
    """

    name: str
    title: str
    paper: str
    question: str
    hours: float
    delta: float
    differs: tuple[str, ...]
    statements: tuple[str, ...]
    published: tuple[Published, ...]
    sweep: Sweep


def read_study(path: str | os.PathLike[str]) -> Study:
    """Read a study's file and check every run of it.

        title = "..."
        paper = "authors, title, year"
        question = "..."
        hours = 2.5                     # budget on two cores
        statements = ["what the paper says, ..."]
        [[published]]                   # its numbers, laid over the figure
        label = "figure 5"
        method = "imp"                  # or control = "reinit"
        density = 0.07
        accuracy = 72.8
        [sweep]                         # as in the file of `ticket sweep`
        seeds = "0-2"

    Raises:
        RequestError: every problem of the file and of its runs at once.
    """
    table, problems = read_toml(Path(path)), []
    try:
        file = _File.model_validate(table)
    except pydantic.ValidationError as error:
        for item in error.errors():
            place = ".".join(map(str, item["loc"]))
            problems.append(
                unknown("key", place, _File.model_fields)
                if item["type"] == "extra_forbidden" and len(item["loc"]) == 1
                else f"{place}: {item['msg'].removeprefix('Input should be ')}"
            )
        if isinstance(table.get("sweep"), dict):
            try:
                make_sweep(table["sweep"], Path(path).stem)
            except RequestError as wrong:
                problems += wrong.problems
        raise RequestError(problems) from None
    sweep = make_sweep(file.sweep, Path(path).stem)
    values = {name: getattr(file, name) for name in _File.model_fields if name != "sweep"}
    return Study(name=sweep.name, sweep=sweep, **values)


def compare_with_published(comparison: Mapping[str, Any], published: Sequence[Published]) -> list[dict[str, Any]]:
    """The published numbers beside ours of the same method or control, at the nearest density.

    Returns:
        Rows `label published density ours n interval agrees`; `ours` and `agrees` are None where nothing was measured.
    """
    rows = []
    for point in published:
        measured = [row for group in comparison["groups"] for row in _candidates(group, point)]
        near = [row for row in measured if _apart(row["density"], point.density) <= SAME_DENSITY]
        best = min(near, key=lambda row: _apart(row["density"], point.density), default=None)
        agrees = None
        if best is not None:
            low, high = best["interval"] or (best["mean"], best["mean"])
            agrees = low <= point.accuracy <= high or abs(point.accuracy - best["mean"]) <= NEAR
        rows.append(
            {
                "label": point.label,
                "density": point.density,
                "published": point.accuracy,
                "ours": None if best is None else best["mean"],
                "at": None if best is None else best["density"],
                "n": None if best is None else best["n"],
                "interval": None if best is None else best["interval"],
                "agrees": agrees,
            }
        )
    return rows


def _candidates(group: Mapping[str, Any], point: Published) -> list[Mapping[str, Any]]:
    """What was measured of that which a published number is of."""
    if point.control:
        elsewhere = point.data or group["data"]
        return [row for row in group["controls"] if row["control"] == point.control and row["data"] == elsewhere]
    if point.method not in ("", group["method"]) and not (
        point.method == "dense" and group["levels"][0]["density"] == 1
    ):
        return []
    return [] if point.data not in ("", group["data"]) else list(group["levels"])


def _apart(one: float, other: float) -> float:
    return max(one, other) / min(one, other)


def page_files(study: Study, output: str | os.PathLike[str]) -> list[Path]:
    """The files of a study's page."""
    return [Path(output) / f"{study.name}.{suffix}" for suffix in ("md", "png", "html", "csv")]


def write_study(study: Study, runs: Sequence[Path], output: str | os.PathLike[str]) -> list[Path]:
    """Compare the runs of a study and write its page: NAME.md, NAME.png, NAME.html and NAME.csv in a folder.

    Everything in the page follows from the runs, so that who has them, or makes them again, gets the same page.
    """
    from ..analysis.comparison import compare
    from ..analysis.html import to_html
    from ..analysis.plots import plot_comparison
    from ..analysis.tables import to_csv, to_markdown

    comparison = compare(runs, delta=study.delta)
    beside = compare_with_published(comparison, study.published)
    # The figure has no place for what was measured on other data; the table beside it has.
    own = [point for point in study.published if not point.data]
    points = [{"label": point.label, "density": point.density, "accuracy": point.accuracy} for point in own]
    Path(output).mkdir(parents=True, exist_ok=True)
    paths = page_files(study, output)
    plot_comparison(comparison, paths[1], published=points, overwrite=True)
    paths[0].write_text(_page(study, beside, comparison["groups"], to_markdown(comparison)), encoding="utf-8")
    paths[2].write_text(to_html(comparison, study.title, published=points), encoding="utf-8")
    paths[3].write_text(to_csv(comparison), encoding="utf-8")
    return paths


def _page(study: Study, beside: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]], tables: str) -> str:
    parts = [f"# {study.title}", study.question, f"After {study.paper}."]
    parts.append(f"```\nticket study {study.name}\n```")
    if study.differs:
        parts.append("Not as in the publication:\n\n" + "\n".join(f"- {line}" for line in study.differs))
    parts.append(f"![accuracy against density, and against search cost]({study.name}.png)")
    if study.statements:
        parts.append("## What the publication says\n\n" + "\n".join(f"- {line}" for line in study.statements))
    if beside:
        lines = [
            "| | density | published % | ours % | seeds | 95 % interval | consistent |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_published_line(row) for row in beside]
        parts.append(
            f"## Published numbers beside ours\n\n*Consistent*: in our interval, or within {NEAR:g} pp of our mean; a "
            "wide interval contradicts little.\n\n" + "\n".join(lines)
        )
    answers = [(group["label"], answer) for group in groups for answer in _answers(group["verdict"] or {})]
    answers = [(label, answer) for label, answer in answers if answer["answer"] != "unknown"]
    if answers:
        lines = ["| | question | answer | because |", "|---|---|---|---|", *(_answer_line(*pair) for pair in answers)]
        parts.append("## Is it a ticket?\n\n" + "\n".join(lines))
    parts.append("## What we measured\n\n" + tables.strip())
    return "\n\n".join(parts) + "\n"


def _answers(verdict: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [answer for answer in verdict.values() if isinstance(answer, Mapping)]


def _answer_line(label: str, answer: Mapping[str, Any]) -> str:
    from ..analysis.verdict import in_words

    return f"| {label} | {answer['question']} | {in_words(answer)} | {answer['because']} |"


def _published_line(row: Mapping[str, Any]) -> str:
    if row["ours"] is None:
        return f"| {row['label']} | {row['density']:.4g} | {row['published']:.2f} | not measured | | | |"
    interval = "" if row["interval"] is None else f"{row['interval'][0]:.2f} to {row['interval'][1]:.2f}"
    return (
        f"| {row['label']} | {row['density']:.4g} | {row['published']:.2f} | {row['ours']:.2f} (at {row['at']:.4g}) "
        f"| {row['n']} | {interval} | {'yes' if row['agrees'] else 'no'} |"
    )
