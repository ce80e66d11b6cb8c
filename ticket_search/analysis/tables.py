"""A comparison as tables in CSV, Markdown and LaTeX, and measurements of other programs read from CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from supermask.masks.texts import harmless

from ..contract.errors import RequestError, nearest_hint
from ..contract.metric import Metric
from .findings import Comparison, Group, flatten
from .markdown import escape, plain
from .paper import Cell, PaperTable, paper_tables

# The columns of the CSV, which has one line for each seed of each level and of each control.
COLUMNS = {
    "method": "the search method; required",
    "label": "a name that distinguishes groups of the same method",
    "control": "the kind of control: reinit, shuffle, random, ...; empty for the ticket itself",
    "trained": "for a control: true if it was trained, false if it was only evaluated",
    "data": "the data set on which the accuracy was measured",
    "model": "the network",
    "level": "the level of an iterative method; 0 is the dense network",
    "density": "fraction of the maskable weights kept, above 0 and at most 1; required",
    "kept": "number of weights kept",
    "seed": "a whole number; runs of several methods with the same seed are compared in pairs; required",
    "test_accuracy": "percent, at the end of the training; this or test_metric is required",
    "early_step": "the step of minimum validation loss",
    "dense_trainings": "the cost of the search up to this level, in trainings of the dense network",
}
# The columns of another metric than accuracy.
OF_METRICS = {
    "metric": "the name of the metric",
    "direction": "higher or lower: which values are better",
    "unit": "the unit of the values",
    "test_metric": "the value at the end of the training",
}
_KNOWN = {**COLUMNS, **OF_METRICS}
_SHOWN_PROBLEMS, _MOST_PROBLEMS = 20, 1_000
# Over what the p-values of controls are corrected.
CORRECTED = "corrected over the controls of one ticket at one density on one data set, and over those of signs apart"
# A name of a method with more characters is wrapped in LaTeX.
_LATEX_NAME = 24
_Count = Annotated[int, Field(ge=0)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Line(pydantic.BaseModel, extra="forbid"):
    """A line of the CSV."""

    method: str
    label: str | None = None
    control: str | None = None
    trained: bool | None = None
    data: str | None = None
    model: str | None = None
    level: _Count | None = None
    density: float = Field(gt=0, le=1, allow_inf_nan=False)
    kept: _Count | None = None
    seed: _Count
    test_accuracy: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    metric: str | None = None
    direction: Literal["higher", "lower"] | None = None
    unit: str | None = None
    test_metric: float | None = Field(None, allow_inf_nan=False)
    early_step: _Count | None = None
    dense_trainings: _NotNegative | None = None


REQUIRED = tuple(name for name, entry in _Line.model_fields.items() if entry.is_required())


@dataclass(frozen=True)
class Table:
    """A title, a note that explains the numbers, the names of the columns, and the rows as text."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def to_csv(comparison: Comparison) -> str:
    """CSV with one line for each seed of each level and control, in the columns COLUMNS; `read_csv` reads it.

    Where a group is measured by another metric than accuracy there are the columns OF_METRICS too.
    """
    file = io.StringIO()
    plain = all(group.metric.is_accuracy for group in comparison.groups)
    writer = csv.DictWriter(file, COLUMNS if plain else _KNOWN, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for group in comparison.groups:
        for row in group.rows:
            flat = flatten(group, row)
            trained = None if flat["trained"] is None else str(flat["trained"]).lower()
            steps = row.early_steps or [None] * len(row.seeds)
            for seed, value, step in zip(row.seeds, row.values, steps, strict=True):
                measured = {"test_accuracy" if group.metric.is_accuracy else "test_metric": value}
                cells = {**flat, "trained": trained, "seed": seed, **measured, "early_step": step}
                # Of somebody else's names no escape sequence gets to a terminal that shows the file.
                writer.writerow({key: harmless(it) if isinstance(it, str) else it for key, it in cells.items()})
    return file.getvalue()


def read_csv(path: str | Path) -> list[dict[str, Any]]:
    """Read measurements of any program, one line for each density and seed, to compare them with runs.

        method,density,seed,test_accuracy
        my-method,0.2,0,97.31
        my-method,0.2,1,97.18

    Args:
        path: a CSV file with a header. It may have the columns COLUMNS and OF_METRICS, in any order, and must have
            those of REQUIRED, and test_accuracy or test_metric.

    Returns:
        A dictionary for each line, without its empty cells.

    Raises:
        RequestError: everything that is wrong with the file, with line numbers.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RequestError(f"{path}: expected text in UTF-8") from None
    except csv.Error as error:
        raise RequestError(f"{path}: {error}") from None
    header = [name.strip() for name in lines[0]] if lines else []
    problems = _check_header(header)
    found: dict[int, dict[str, Any]] = {}
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(problems) > _MOST_PROBLEMS:
            problems.append(f"line {number} and those below it were not read")
            break
        if len(cells) != len(header):
            problems.append(f"line {number}: it has {len(cells)} cells, but the header has {len(header)}")
            continue
        pairs = zip(header, cells, strict=True)
        given = {name: cell.strip() for name, cell in pairs if name in _KNOWN and cell.strip()}
        try:
            found[number] = _Line.model_validate(given).model_dump(exclude_unset=True)
        except pydantic.ValidationError as error:
            problems += [_sentence(number, item) for item in error.errors() if item["loc"][0] in header]
    problems += _check_lines(found) if not problems else []
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        shown = problems if more <= 0 else [*problems[:_SHOWN_PROBLEMS], f"and {more} more"]
        raise RequestError([f"{path}: {problem}" for problem in shown])
    return list(found.values())


def _check_header(header: Sequence[str]) -> list[str]:
    strange = [name for name in header if name not in _KNOWN]
    problems = [
        f"unknown column '{harmless(name, 100)}'{nearest_hint(name, _KNOWN) or '.'} The columns are {', '.join(_KNOWN)}"
        for name in strange[:_SHOWN_PROBLEMS]
    ]
    problems += ["more unknown columns"] * (len(strange) > _SHOWN_PROBLEMS)
    if not {"test_accuracy", "test_metric"} & set(header):
        problems.append("there is no column test_accuracy, nor test_metric beside metric")
    problems += [f"there is no column {name}" for name in REQUIRED if name not in header]
    return problems + [f"column {name} occurs more than once" for name in _KNOWN if header.count(name) > 1]


def _sentence(number: int, item: Any) -> str:
    if item["type"] == "missing":
        return f"line {number}: {item['loc'][0]} is empty"
    expected = re.sub(r"^Input should be |, unable to .*", "", item["msg"])
    return f"line {number}: {item['loc'][0]} {str(item['input'])[:100]!r}: expected {expected}"


def _check_lines(found: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """The problems of the lines taken together."""
    if not found:
        return ["there are no measurements below the header"]
    accuracies = [line["test_accuracy"] for line in found.values() if "test_accuracy" in line]
    if accuracies and max(accuracies) <= 1:
        return ["no test_accuracy is above 1: expected percent, such as 97.3"]
    problems = [problem for number, line in found.items() if (problem := _problem_of_value(number, line))]
    seen: dict[tuple[Any, ...], int] = {}
    measured = ("test_accuracy", "test_metric", "early_step", "dense_trainings", "kept")
    for number, line in found.items():
        key = tuple(line.get(name) for name in _KNOWN if name not in measured)
        if key in seen:
            problems.append(f"line {number} repeats the measurement of line {seen[key]}")
        seen.setdefault(key, number)
    return problems


def _problem_of_value(number: int, line: Mapping[str, Any]) -> str:
    """What is wrong with how a line says what was measured; nothing where it is right."""
    if ("test_accuracy" in line) == ("test_metric" in line):
        return f"line {number}: expected one of test_accuracy and test_metric"
    if "test_metric" in line and not line.get("metric"):
        return f"line {number}: test_metric {line['test_metric']:g}: expected the metric's name in the column metric"
    if "test_accuracy" in line and line.get("metric", "accuracy") != "accuracy":
        return f"line {number}: test_accuracy of the metric {line['metric']}: expected test_metric"
    return ""


def make_tables(comparison: Comparison) -> list[Table]:
    """Tables for people: the levels of all groups, and their controls, without columns that are empty.

    The groups of each metric have tables of their own.
    """
    metrics = dict.fromkeys(group.metric for group in comparison.groups)
    return [
        table
        for metric in metrics
        for table in _tables_of([group for group in comparison.groups if group.metric == metric], metric)
    ]


def _tables_of(groups: Sequence[Group], metric: Metric) -> list[Table]:
    rows = [flatten(group, row) for group in groups for row in group.rows]
    form = metric.form
    several = len({(row["model"], row["data"], row["precision"]) for row in rows}) > 1
    levels = [row for row in rows if row["control"] is None]
    controls = [row for row in rows if row["control"] is not None]
    common: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "on": lambda row: f"{row['model']} {row['data']} {row['precision']}".strip() if several else "",
        "density": lambda row: f"{row['density']:.4g}",
        "kept": lambda row: _text(row["kept"], ","),
        "seeds": lambda row: _text(row["n"]),
        f"test {metric.column}": lambda row: _text(row["mean"], form),
        "interval": lambda row: _range(row["low"], row["high"], form),
    }
    beside = {"interval of difference": lambda row: _range(row["difference_low"], row["difference_high"], f"+{form}")}
    level_columns = {
        "level": lambda row: _text(row["level"]),
        **common,
        "ticket minus dense": lambda row: _text(row["difference"], f"+{form}"),
        **beside,
        "matching": lambda row: row["matching"] or "",
        "step of min. val. loss": lambda row: _text(row["early_step"], ",.0f"),
        "cost (dense trainings)": lambda row: _text(row["dense_trainings"], ".1f"),
    }
    control_columns = {
        "control": lambda row: row["control"] + ("" if row["trained"] else ", untrained"),
        **common,
        "ticket minus control": lambda row: _text(row["difference"], f"+{form}"),
        **beside,
        "Holm p": lambda row: _text(row["p_holm"], ".2g"),
    }
    better = "" if metric.is_accuracy else ", positive where the ticket is better"
    note = (
        f"test {metric.in_words}, mean over seeds; differences in {metric.gap_in_words}{better}, paired by seed; "
        "intervals of 95 %"
    )
    corrected = f"{note}; Holm p: p-value of no difference, {CORRECTED}"
    found = [
        _table(("Levels", note), levels, level_columns), _table(("Controls", corrected), controls, control_columns)
    ]  # fmt: skip
    return [table for table in found if table.rows]


def _table(
    title: tuple[str, str], rows: Iterable[Mapping[str, Any]], columns: Mapping[str, Callable[[Mapping[str, Any]], str]]
) -> Table:
    named = {"ticket": lambda row: row["label"], **columns}
    cells = [tuple(show(row) for show in named.values()) for row in rows]
    used = [index for index in range(len(named)) if any(row[index] for row in cells)]
    names = tuple(named)
    shown = [tuple(row[index] for index in used) for row in cells]
    return Table(*title, tuple(names[index] for index in used), shown)


def _text(value: float | None, form: str = "") -> str:
    return "" if value is None else format(value, form)


def _range(low: float | None, high: float | None, form: str) -> str:
    return "" if low is None or high is None else f"{low:{form}} to {high:{form}}"


def is_number(text: str) -> bool:
    """Whether a cell holds a number or a range of numbers, which is aligned to the right."""
    return re.fullmatch(r"([+-]?[\d,.]+(e[+-]?\d+)?( to [+-]?[\d.]+(e[+-]?\d+)?)?)?", text) is not None


def right_aligned(table: Table) -> list[bool]:
    """For each column, whether it holds numbers only."""
    return [all(is_number(row[index]) for row in table.rows) for index in range(len(table.columns))]


def to_markdown(comparison: Comparison, *, full: bool = False) -> str:
    """A table in GitHub's Markdown, methods by densities, or all levels and controls (`full`); names are escaped."""
    if not full:
        return "\n".join(map(_paper_markdown, paper_tables(comparison)))
    parts = []
    for table in make_tables(comparison):
        rule = ["---:" if right else ":---" for right in right_aligned(table)]
        lines = [
            [escape(name) for name in table.columns],
            rule,
            *([escape(cell) for cell in row] for row in table.rows),
        ]
        body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        parts.append(f"**{table.title}** ({escape(table.note, None)})\n\n{body}")
    return "\n".join(parts)


def _paper_markdown(table: PaperTable) -> str:
    head, rows = _paper_cells(table, _mean_markdown, "\N{EN DASH}")
    rule = [":---", *("---:" for _ in head[1:])]
    lines = [head, rule, *([escape(name), *cells] for name, *cells in rows)]
    title = f"**{escape(table.title)}** " if table.title else ""
    return f"{title}({escape(table.note, None)})\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _paper_cells(table: PaperTable, show: Callable[[Cell], str], none: str) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a table of methods by densities; the column of seeds only where they differ."""
    several = any(method.seeds for method in table.methods)
    rows = [
        [
            method.name,
            *(none if cell is None else show(cell) for cell in method.cells),
            *([method.seeds] if several else []),
            method.cost,
        ]
        for method in table.methods
    ]
    head = ["method", *(f"{density} %" for density in table.densities), *(["seeds"] if several else []), "cost"]
    return head, rows


def _mean_markdown(cell: Cell) -> str:
    mean = f"**{cell.mean}**" if cell.best else cell.mean
    return f"{mean} \N{PLUS-MINUS SIGN} {cell.std}" if cell.std else mean


def to_latex(comparison: Comparison, *, full: bool = False) -> str:
    r"""A table in LaTeX, methods by densities, or all levels and controls (`full`).

    Needs `\usepackage{booktabs}`, and for all levels `\usepackage{graphicx}`: their table is scaled to the page.
    """
    if not full:
        return "\n".join(map(_paper_latex, paper_tables(comparison)))
    parts = []
    for table in make_tables(comparison):
        kinds = "".join("r" if right else "l" for right in right_aligned(table))
        lines = list(map(_latex_line, table.rows))
        caption = f"{table.title}: {_escape_latex(table.note)}."
        parts.append(_latex_table(caption, kinds, _latex_line(table.columns), lines, whole_width=True))
    return "\n".join(parts)


def _latex_table(caption: str, kinds: str, head: str, lines: Sequence[str], whole_width: bool = False) -> str:
    rows = [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"]
    if whole_width:
        rows = [r"\resizebox{\linewidth}{!}{%", *rows, "}"]
    above = [r"\begin{table}", r"\centering", r"\small", r"\setlength{\tabcolsep}{4pt}", rf"\caption{{{caption}}}"]
    needs = "packages booktabs and graphicx" if whole_width else "package booktabs"
    return "\n".join([f"% This table needs the {needs}.", *above, *rows, r"\end{table}", ""])


def _paper_latex(table: PaperTable) -> str:
    head, rows = _paper_cells(table, _mean_latex, "--")
    title = f"{_escape_latex(table.title)}: " if table.title else ""
    # A long name is wrapped.
    long = max(len(method.name) for method in table.methods) > _LATEX_NAME
    kinds = (r"p{0.24\linewidth}" if long else "l") + "r" * (len(head) - 1)
    ragged = r"\raggedright " if long else ""
    lines = [" & ".join([ragged + _escape_latex(name), *cells]) + r" \\" for name, *cells in rows]
    heading = " & ".join(cell.replace(" %", r"\,\%") for cell in head) + r" \\"
    return _latex_table(f"{title}{_escape_latex(table.note)}.", kinds, heading, lines)


def _mean_latex(cell: Cell) -> str:
    mean = rf"\mathbf{{{cell.mean}}}" if cell.best else cell.mean
    return rf"${mean}{{\scriptstyle\,\pm\,{cell.std}}}$" if cell.std else f"${mean}$"


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(_escape_latex(cell) for cell in cells) + r" \\"


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def _escape_latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in plain(text, None))
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", escaped)
