"""The page of a study that joins several sweeps in one table of methods: its measurements, tables and picture."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..analysis.dot_plot import Dot, plot_dots
from ..analysis.intervals import confidence_interval
from ..analysis.markdown import escape
from ..contract.errors import RequestError
from ..runs.outputs import write_output
from . import table
from .study import Study, page_files, part_file

_text = partial(escape, most=None)


def write_part(study: Study, part: str, folders: Sequence[Path], runs: Path, output: str | os.PathLike[str]) -> Path:
    """Write the measurements of one of the sweeps that a study joins: `NAME-PART.csv` in a folder."""
    path = part_file(study, part, output)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_output(path, table.write_csv(table.lines_of(part, study.parts[part], folders, runs)))
    return path


def write_table(study: Study, output: str | os.PathLike[str]) -> list[Path]:
    """Write the page of a study that joins sweeps, NAME.md and NAME.png, from the measurements that are there.

    Raises:
        RequestError: there are none, or a prediction names no single configuration.
    """
    there = {part: part_file(study, part, output) for part in study.parts}
    lines = [line for path in there.values() if path.exists() for line in table.read_csv(path)]
    if not lines:
        raise RequestError(f"there are no measurements: {', '.join(map(str, there.values()))}")
    page, picture = page_files(study, output)
    missing = [part for part, path in there.items() if not path.exists()]
    write_output(page, _table_page(study, lines, missing))
    lines = [line for line in lines if line.sweep not in study.beside]
    dense = table.dense_values(lines)
    panels = {
        f"density {density:g}": [
            Dot(entry.label, entry.mean, confidence_interval(list(entry.values.values())), entry.lines[0].sweep)
            for entry in table.entries_at(lines, density)
        ]
        for density in study.densities
    }
    line = ("the dense network", statistics.fmean(dense.values())) if dense else None
    plot_dots(panels, picture, "test accuracy (%), mean and 95 % interval over seeds", line, overwrite=True)
    return [page, picture]


def _table_page(study: Study, measured: Sequence[table.Line], missing: Sequence[str]) -> str:
    lines = [line for line in measured if line.sweep not in study.beside]
    dense = list(table.dense_values(lines).values())
    predictions = [prediction for part in study.parts.values() for prediction in part.predictions]
    judged = [one for each in predictions for one in table.judge(lines, each, study.densities)]
    parts = [f"# {_text(study.title)}", _text(study.question), f"```\nticket study {study.name}\n```"]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)} (`ticket study {study.name} --sweep {missing[0]}`).")
    parts.append(f"![test accuracy of every method at each density]({study.name}.png)")
    if study.differs:
        parts.append("\n".join(f"- {_text(line)}" for line in study.differs))
    if judged:
        parts.append(table.predictions_on_page(judged))
    if dense:
        interval = confidence_interval(dense)
        told = "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
        parts.append(f"The dense network: {statistics.fmean(dense):.2f} %{told} over {len(dense)} seeds.")
    for density in study.densities:
        parts.append(f"## Density {density:g}\n\n{table.table_at(lines, density, study.claims)}")
    parts += [_own_tables(study, part, measured) for part in study.beside if part not in missing]
    parts.append(
        "## How the learning rates were chosen\n\nOn validation, at the first seed; the other seeds take what was "
        f"chosen.\n\n{table.choices_as_text(measured)}"
    )
    if study.statements:
        parts.append("## What the papers say\n\n" + "\n".join(f"- {_text(line)}" for line in study.statements))
    return "\n\n".join(parts) + "\n"


def _own_tables(study: Study, part: str, measured: Sequence[table.Line]) -> str:
    """The tables of a sweep beside the others: of each of its networks, at each density at which its runs end.

    The densities that iterative methods pass on their way there are a line of text.
    """
    own = [line for line in measured if line.sweep == part and line.role != "trial"]
    parts = [f"## {_text(study.parts[part].about)}"]
    for model in dict.fromkeys(line.model for line in own):
        lines = [line for line in own if line.model == model]
        ends: dict[tuple[str, str], float] = {}
        for line in lines:
            ends[line.label, line.flags] = min(line.asked, ends.get((line.label, line.flags), line.asked))
        for density in sorted(set(ends.values()), reverse=True):
            parts.append(f"{_text(model)}, density {density:g}:\n\n{table.table_at(lines, density, {})}")
        way = [line for line in lines if not line.control and line.asked not in ends.values()]
        for label in dict.fromkeys(line.label for line in way):
            passed = [line for line in way if line.label == label]
            densities = sorted({line.asked for line in passed}, reverse=True)
            told = ", ".join(f"{table.entries_at(passed, asked)[0].mean:.2f} % at {asked:.3g}" for asked in densities)
            parts.append(f"{_text(label)}, test accuracy at the densities before the last: {told}.")
    return "\n\n".join(parts)
