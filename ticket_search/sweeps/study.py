"""A published figure as one file: its runs and controls, the published numbers, and the page that joins them.

Imports no torch before the page is written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic

from .. import analysis, sweeps
from ..analysis.markdown import escape
from ..contract.errors import Problems, RequestError, describe_expected, unknown
from ..contract.keyed import Keyed
from ..contract.text_files import read_toml
from ..runs.outputs import write_output
from .file import STUDY_KEYS, Sweep, make_sweep, read_table, tell_runs
from .predictions import prediction_problems

if TYPE_CHECKING:
    from ..analysis.findings import Comparison, Group, Row

# A published accuracy agrees with ours where it lies in our interval, or is at most this far from our mean, in
# percentage points.
NEAR = 1.0
# Two densities count as the same where the larger is at most this factor times the smaller.
SAME_DENSITY = 1.25


class Published(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A published accuracy: of which method or control it is, at which density, and where it is printed."""

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
    delta: float | None = pydantic.Field(None, gt=0)
    differs: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    claims: dict[str, str] = {}
    densities: tuple[float, ...] = ()
    sweep: dict[str, Any] | None = None
    sweeps: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """What the file of a study says.

    It has one `sweep`, or joins several, `parts` by their names, in a table of methods at some `densities`; those named
    in `beside` have tables of their own. `claims` is what the papers say of a method.

    `hours` is its budget on two cores, `delta` the margin of the verdict in the unit of the metric (half a percentage
    point of accuracy where none is given, and none of another metric), `differs` says what is done otherwise than in
    the publication, `statements` what the publication says in words.
    """

    name: str
    title: str
    paper: str
    question: str
    hours: float
    delta: float | None
    differs: tuple[str, ...]
    statements: tuple[str, ...]
    published: tuple[Published, ...]
    claims: Mapping[str, str]
    densities: tuple[float, ...]
    sweep: Sweep | None = None
    parts: Mapping[str, Sweep] = field(default_factory=dict)
    beside: tuple[str, ...] = ()


def read_study(path: str | os.PathLike[str], code: Mapping[str, str | None] | None = None) -> Study:
    """Read a study's file and check every run of it. `code` is what it may import (see `read_sweep`).

        title = "..."
        paper = "authors, title, year"
        question = "..."
        hours = 2.5                     # budget on two cores
        delta = 0.5                     # the margin within which a ticket matches, in the unit of the metric
        statements = ["what the paper says, ..."]
        [[published]]                   # its numbers, drawn into the figure beside ours
        label = "figure 5"
        method = "imp"                  # or control = "reinit"
        density = 0.07
        accuracy = 72.8
        [sweep]                         # as in the file of `ticket sweep`
        seeds = "0-2"

    A study that joins several sweeps in one table names their files, beside its own, in place of [sweep]:

        sweeps = ["mine/trained.toml", "mine/frozen.toml"]
        densities = [0.1, 0.02]         # a table for each
        beside = ["mine/other-networks.toml"]   # with tables of their own
        [claims]
        imp = "what the paper says"

    Raises:
        RequestError: every problem of the file and of its runs at once.
    """
    table, problems = read_toml(Path(path)), Problems()
    if not set(table) & STUDY_KEYS and {"base", "grid", "runs", "choose"} & set(table):
        raise RequestError(f"{path} is a sweep, and no study: `ticket sweep {path}` carries it out")
    file, runs, parts = None, table.get("sweep"), dict[str, Sweep]()
    try:
        file = _File.model_validate(table)
    except pydantic.ValidationError as error:
        problems.add(*map(_sentence, error.errors()))
    sweep = (
        problems.attempt(lambda: make_sweep(runs, Path(path).stem, path=path, code=code))
        if isinstance(runs, dict)
        else None
    )
    if sweep is not None and sweep.search is not None:
        problems.add("[sweep.search]: a study compares runs that are known before; `ticket sweep` carries out a search")
    if file is not None and (file.sweep is None) == (not file.sweeps):
        problems.add("expected either [sweep], or sweeps = [...] with the files of several")
    for name in (*file.sweeps, *file.beside) if file is not None else ():
        place = Path(path).parent / name
        part = problems.attempt(partial(_read_part, place, code))
        if part is not None and part.search is not None:
            problems.add(f"{place}: it has [search], and a study compares runs that are known before")
        parts |= {} if part is None else {place.stem: replace(part, name=f"{Path(path).stem}-{place.stem}")}
    beside = tuple(Path(name).stem for name in file.beside) if file is not None else ()
    if not problems.found:
        # The page answers them from the sweeps that are joined in one table.
        there = [run for name, part in parts.items() if name not in beside for run in tell_runs(part, name)]
        problems.add(*prediction_problems((each for part in parts.values() for each in part.predictions), there))
    problems.raise_if_any()
    assert file is not None, "a study that cannot be read has problems"
    values = {name: getattr(file, name) for name in _File.model_fields if name not in ("sweep", "sweeps", "beside")}
    name = Path(path).stem if sweep is None else sweep.name
    return Study(name=name, sweep=sweep, parts=parts, beside=beside, **values)


def _read_part(path: Path, code: Mapping[str, str | None] | None) -> Sweep:
    return make_sweep(read_table(path), path.stem, path=path, code=code, joined=True)


def _sentence(item: Any) -> str:
    """What is wrong with a study's file in one place, from pydantic's item about it."""
    place = ".".join(map(str, item["loc"]))
    if item["type"] == "missing":
        return f"{place} is missing"
    if item["type"] == "extra_forbidden":
        fields = _File.model_fields if len(item["loc"]) == 1 else Published.model_fields
        where = "" if len(item["loc"]) == 1 else f"{place}: "
        return where + unknown("key", str(item["loc"][-1]), fields)
    return f"{place} {item['input']!r}: {describe_expected(item)}"


@dataclass(frozen=True)
class Beside(Keyed):
    """A published accuracy beside ours: ours is `ours`, the mean of `n` seeds with its `interval`, at the density `at`.

    `agrees` says whether the published accuracy lies in our interval or within NEAR of our mean. All five are None
    where nothing was measured at about that density.
    """

    label: str
    density: float
    published: float
    ours: float | None = None
    at: float | None = None
    n: int | None = None
    interval: tuple[float, float] | None = None
    agrees: bool | None = None


def compare_with_published(comparison: Comparison, published: Sequence[Published]) -> list[Beside]:
    """The published numbers beside ours of the same method or control, at the nearest density."""
    rows = []
    for point in published:
        measured = [row for group in comparison.groups for row in _candidates(group, point)]
        near = [row for row in measured if _apart(row.density, point.density) <= SAME_DENSITY]
        best = min(near, key=lambda row: _apart(row.density, point.density), default=None)
        if best is None:
            rows.append(Beside(point.label, point.density, point.accuracy))
            continue
        low, high = best.interval or (best.mean, best.mean)
        agrees = low <= point.accuracy <= high or abs(point.accuracy - best.mean) <= NEAR
        rows.append(
            Beside(point.label, point.density, point.accuracy, best.mean, best.density, best.n, best.interval, agrees)
        )
    return rows


def _candidates(group: Group, point: Published) -> Sequence[Row]:
    """The rows of a group that a published number may be compared with: accuracies, as it is one."""
    if not group.metric.is_accuracy:
        return []
    if point.control:
        elsewhere = point.data or group.data
        return [row for row in group.controls if row.control == point.control and row.data == elsewhere]
    if point.method not in ("", group.method) and not (point.method == "dense" and group.levels[0].density == 1):
        return []
    return [] if point.data not in ("", group.data) else group.levels


def _apart(one: float, other: float) -> float:
    return max(one, other) / min(one, other)


def page_files(study: Study, output: str | os.PathLike[str]) -> list[Path]:
    """The files of a study's page, without those of the measurements that a table of methods is made of."""
    if study.parts:
        return [Path(output) / f"{study.name}.{suffix}" for suffix in ("md", "png")]
    return [Path(output) / f"{study.name}.{suffix}" for suffix in ("md", "png", "html", "csv")]


def part_file(study: Study, part: str, output: str | os.PathLike[str]) -> Path:
    """The CSV with the measurements of one of the sweeps that a study joins."""
    return Path(output) / f"{study.name}-{part}.csv"


def write_study(study: Study, runs: Sequence[Path], output: str | os.PathLike[str]) -> list[Path]:
    """Compare the runs of a study and write its page: NAME.md, NAME.png, NAME.html and NAME.csv in a folder.

    The page depends on the runs only: whoever has them, or makes them again, gets the same page.
    """
    comparison = analysis.comparison.compare(runs, delta=study.delta)
    beside = compare_with_published(comparison, study.published)
    # Numbers on other data are in the table only: the figure shows one data set.
    own = [point for point in study.published if not point.data]
    points = [{"label": point.label, "density": point.density, "accuracy": point.accuracy} for point in own]
    Path(output).mkdir(parents=True, exist_ok=True)
    paths = page_files(study, output)
    analysis.plots.plot_comparison(comparison, paths[1], published=points, overwrite=True)
    tables = analysis.tables.to_markdown(comparison, full=True)
    predictions = () if study.sweep is None else study.sweep.predictions
    lines = sweeps.table.measured_in(runs, Path()) if predictions else []
    judged = sweeps.table.predictions_on_page(sweeps.table.judge_all(lines, predictions))
    write_output(paths[0], _page(study, beside, comparison.groups, judged, tables))
    write_output(paths[2], analysis.html.to_html(comparison, study.title, published=points))
    write_output(paths[3], analysis.tables.to_csv(comparison))
    return paths


def _page(study: Study, beside: Sequence[Beside], groups: Sequence[Group], judged: str, tables: str) -> str:
    measured = " and ".join(dict.fromkeys(group.metric.name for group in groups))
    parts = [f"# {_text(study.title)}", _text(study.question), f"After {_text(study.paper)}."]
    parts.append(f"```\nticket study {study.name}\n```")
    if study.differs:
        parts.append("Not as in the publication:\n\n" + "\n".join(f"- {_text(line)}" for line in study.differs))
    parts.append(f"![{_text(measured)} against density, and against search cost]({study.name}.png)")
    if study.statements:
        parts.append("## What the publication says\n\n" + "\n".join(f"- {_text(line)}" for line in study.statements))
    if judged:
        parts.append(judged)
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
    answers = [
        f"| {_text(group.label)} | {answer.asked} | {answer.in_words()} | {_text(answer.because)} |"
        for group in groups
        for answer in (group.verdict.answers.values() if group.verdict else ())
        if answer.answer != "unknown"
    ]
    if answers:
        lines = ["| | question | answer | because |", "|---|---|---|---|", *answers]
        parts.append("## Is it a ticket?\n\n" + "\n".join(lines))
    parts.append("## What we measured\n\n" + tables.strip())
    return "\n\n".join(parts) + "\n"


_text = partial(escape, most=None)


def _published_line(row: Beside) -> str:
    cells = f"| {_text(row.label)} | {row.density:.4g} | {row.published:.2f} "
    if row.ours is None:
        return f"{cells}| not measured | | | |"
    interval = "" if row.interval is None else f"{row.interval[0]:.2f} to {row.interval[1]:.2f}"
    return f"{cells}| {row.ours:.2f} (at {row.at:.4g}) | {row.n} | {interval} | {'yes' if row.agrees else 'no'} |"
