"""`ticket compare`: runs compared over their seeds, and whether they have found a ticket."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .. import analysis
from ..contract.errors import RequestError
from ..runs.outputs import write_output
from .terminal import counted, duration, errors, harmless, output, print_json, print_table

if TYPE_CHECKING:
    from ..analysis.findings import Comparison, Control, Group, Level, Row
    from ..analysis.intervals import Difference
    from ..analysis.overview import Part
    from ..contract.metric import Metric


Delta = Annotated[
    float | None,
    typer.Option(
        "--delta",
        help="How much worse than the dense network a ticket may be: percentage points of accuracy, 0.5 if not "
        "given, or the unit of another metric, of which there is no default.",
    ),
]
Full = Annotated[
    bool,
    typer.Option(
        "--full",
        help="Show every level, every control with its p-value, and each answer with its reason; in --markdown and "
        "--latex every level and control.",
    ),
]
Plot = Annotated[
    str, typer.Option("--plot", help="Draw the metric against density and cost to this file, .png, .svg or .pdf.")
]
Board = Annotated[
    str,
    typer.Option(
        "--tensorboard",
        help="Write an entry for each method to this new folder, with means and bands over the seeds: `tensorboard "
        "--logdir FOLDER` opens with which method is better, and at which density.",
    ),
]
_STYLES = {"good": "bold green", "bad": "bold red", "open": "yellow"}
# Signs for terminals that have no others.
_PLAIN = {"\N{CHECK MARK}": "+", "\N{BALLOT X}": "-", "\N{PLUS-MINUS SIGN}": "+-"}
# More commands than these are not printed below the headlines; a name of a method gets so many characters.
_MOST_COMMANDS, _LEAST_NAME = 3, 12


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(compare)


def compare(
    names: Annotated[list[str] | None, typer.Argument(help="Folders or names of runs, as runs/*.")] = None,
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    delta: Delta = None,
    others: Annotated[
        list[str] | None,
        typer.Option("--with", help="A CSV file with numbers of another program, in the columns that --csv writes."),
    ] = None,
    full: Full = False,
    csv: Annotated[str, typer.Option("--csv", help="Write all numbers to this file, one line per seed.")] = "",
    markdown: Annotated[
        str, typer.Option("--markdown", help="Write a table, methods by densities, to this file in Markdown.")
    ] = "",
    latex: Annotated[
        str, typer.Option("--latex", help="Write a table, methods by densities, to this file in LaTeX.")
    ] = "",
    plot: Plot = "",
    paper: Annotated[
        bool, typer.Option("--paper", help="Draw --plot 3.3 inches wide, for a column of a paper that has two.")
    ] = False,
    html: Annotated[str, typer.Option("--html", help="Write everything to this file as one page.")] = "",
    board: Board = "",
    masks: Annotated[
        bool,
        typer.Option("--masks", help="Also show overlaps and layer densities of the masks; in --html as heat maps."),
    ] = False,
    heat_map: Annotated[
        str, typer.Option("--heat-map", help="Draw the density of each layer to this file, .png, .svg or .pdf.")
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare runs over their seeds: tickets with dense networks and with controls, and say whether they match them."""
    files = {"--csv": csv, "--markdown": markdown, "--latex": latex, "--plot": plot, "--html": html}
    files["--heat-map"] = heat_map
    if not names and not others:
        raise RequestError("expected folders or names of runs, as runs/*, or a CSV file after --with")
    _check(files, delta, overwrite, paper)
    rows = [row for path in others or () for row in analysis.tables.read_csv(path)]
    # What is neither here nor there is told as it was typed.
    typed = [Path(name) for name in names or ()]
    folders = [Path(runs, place) if not place.exists() and Path(runs, place).exists() else place for place in typed]
    found = analysis.comparison.compare(folders, delta=delta, others=rows)
    if board or any(files[flag] for flag in ("--plot", "--html")):
        analysis.findings.only_metric(found)
    networks = analysis.geometry.compare_runs_masks(found) if masks or heat_map else []
    if heat_map and not networks:
        raise RequestError("--heat-map: none of the runs has a mask")
    _write(found, networks, files, board, overwrite, full, paper)
    if as_json:
        print_json(analysis.findings.to_dict(found) | ({"masks": networks} if masks or heat_map else {}))
        return
    _print_found(found, full)
    if masks:
        _print_masks(networks)
    for line in found.left_out:
        errors().print(f"left out: {line}", markup=False, highlight=False, soft_wrap=True)
    for line in found.notes:
        errors().print(f"note: {line}", markup=False, highlight=False, soft_wrap=not errors().is_terminal)


def _check(files: Mapping[str, str], delta: float | None, overwrite: bool, paper: bool) -> None:
    problems = [] if delta is None or delta > 0 else [f"--delta {delta:g}: expected a number above 0"]
    problems += ["--paper: expected --plot with the file to draw to"] if paper and not files["--plot"] else []
    for flag, path in files.items():
        if path and Path(path).exists() and not overwrite:
            problems.append(f"{flag} {path}: the file exists already; choose another name, or add --overwrite")
        if path and not Path(path).parent.is_dir():
            problems.append(f"{flag} {path}: there is no folder {Path(path).parent}")
    for flag in ("--plot", "--heat-map"):
        if files[flag] and Path(files[flag]).suffix not in analysis.plots.FORMATS:
            problems.append(f"{flag} {files[flag]}: expected a name that ends in {analysis.plots.SUFFIXES}")
    if problems:
        raise RequestError(problems)


def _write(
    found: Comparison,
    networks: Sequence[Mapping[str, Any]],
    files: Mapping[str, str],
    board: str,
    overwrite: bool,
    full: bool,
    paper: bool,
) -> None:
    maps = [one for network in networks for one in analysis.geometry.heat_maps(network)]

    def write_page() -> str:
        draw = analysis.plots.heat_map_png
        pictures = [(one.title, draw(one.rows, one.columns, one.values, one.title)) for one in maps]
        return analysis.html.to_html(found, "Comparison of runs", extra_pictures=pictures)

    texts: dict[str, Callable[[], str]] = {
        "--csv": lambda: analysis.tables.to_csv(found),
        "--markdown": lambda: analysis.tables.to_markdown(found, full=full),
        "--latex": lambda: analysis.tables.to_latex(found, full=full),
        "--html": write_page,
    }
    for flag, text in texts.items():
        if files[flag]:
            write_output(files[flag], text())
    if files["--plot"]:
        look = analysis.curves.PAPER if paper else None
        analysis.plots.plot_comparison(found, files["--plot"], look=look, overwrite=overwrite)
    if files["--heat-map"]:
        # Level by level where there are levels of one ticket, else ticket by ticket.
        one = maps[-1] if len(networks) == 1 and len(networks[0]["labels"]) == 1 else maps[0]
        path = files["--heat-map"]
        analysis.plots.plot_heat_map(one.rows, one.columns, one.values, path, one.title, overwrite=overwrite)
    if board:
        analysis.to_tensorboard.write_board(found, board)
    for path in filter(None, [*files.values(), board]):
        errors().print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    if board:
        line = f"  tensorboard --logdir {shlex.quote(board)}"
        errors().print(line, markup=False, highlight=False, soft_wrap=True)


def _print_found(found: Comparison, full: bool) -> None:
    _print_headlines(found, full)
    for part in analysis.overview.overview(found):
        _print_part(part)
    _say(analysis.overview.ABOUT, "dim")
    if not full:
        _say("every level and control, and the reasons of each answer: add --full", "dim")
        return
    for group in analysis.levels.in_order(found.groups):
        _print_group(group)


def _say(text: str, style: str = "") -> None:
    """Print a text, wrapped between words, with signs that the terminal can show."""
    output().print(Text(_in_signs(text), style=style))


def _in_signs(text: str) -> str:
    """A text from a run or of ours, without control characters, and without signs that the terminal cannot show."""
    text = harmless(text, 10_000)
    try:
        text.encode(output().encoding)
    except UnicodeEncodeError:
        return "".join(_PLAIN.get(character, character) for character in text)
    return text


def _print_headlines(found: Comparison, full: bool) -> None:
    """One line for each method and density, and what to type next where something is missing."""
    printed: set[str] = set()
    left = 0
    for line in analysis.headlines.headlines(found):
        style = _STYLES[line.kind]
        text = Text().append(_in_signs(f"{line.sign} "), style).append(_in_signs(f"{line.subject}: "))
        output().print(text.append(_in_signs(line.text), style), soft_wrap=True)
        if not line.command or line.command in printed:
            continue
        if len(printed) == _MOST_COMMANDS and not full:
            left += 1
            continue
        printed.add(line.command)
        # In one line, however long: it is to be copied.
        output().print(f"  {line.command}", markup=False, highlight=False, soft_wrap=True)
    if left:
        _say(f"and {counted(left, 'more command')} like these: add --full", "dim")


def _print_part(part: Part) -> None:
    """The table of one task: as many columns as the terminal is wide, and each row in one line."""
    output().print()
    metric = part.metric
    if part.title:
        _say(part.title, "bold")
    if not metric.is_accuracy:
        _say(f"{metric.in_words}; differences are positive where the first is better")
    wide = max(len(line.difference) for line in part.lines)
    shown = [replace(line, difference=line.difference.rjust(wide)) for line in part.lines]
    columns: dict[str, list[str]] = {
        "density": [line.density for line in shown],
        f"test {metric.column}": [line.value for line in shown],
        "vs dense": [f"{line.difference} {line.interval}".rstrip() for line in shown],
        "cost": [line.cost for line in shown],
    }
    longest = max(len(line.name) for line in shown)
    width = output().width
    if _room(columns, width) < min(longest, _LEAST_NAME):
        columns["vs dense"] = [line.difference.rstrip() for line in shown]
    if _room(columns, width) < min(longest, _LEAST_NAME):
        del columns["cost"]
    names, key = analysis.overview.shorten_names(shown, max(_room(columns, width), _LEAST_NAME))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("method", no_wrap=True, overflow="ellipsis")
    for name in columns:
        table.add_column(name, justify="left" if name == "vs dense" else "right", no_wrap=True, overflow="ellipsis")
    for index, line in enumerate(shown):
        kind = None if line.headline is None else line.headline.kind
        style = "" if kind is None else _STYLES[kind]
        cells = [Text(_in_signs(cells[index]), style if name == "vs dense" else "") for name, cells in columns.items()]
        sign = "" if line.headline is None else line.headline.sign
        table.add_row(Text(_in_signs(sign), style), Text(_in_signs(names[line.name])), *cells)
    output().print(table)
    for explained in key:
        _say(explained)


def _room(columns: Mapping[str, Sequence[str]], width: int) -> int:
    """How many characters are left for the name of a method beside other columns and the sign."""
    return width - 3 - 2 - sum(max(map(len, (name, *cells))) + 2 for name, cells in columns.items())


def _print_group(group: Group) -> None:
    """Everything about a group: levels, controls, and the answers with their reasons."""
    output().print()
    metric = group.metric
    facts = [
        " on ".join(filter(None, (group.model, group.data))),
        f"{group.n} {'seed' if group.n == 1 else 'seeds'}",
        "" if group.dense_trainings is None else f"{group.dense_trainings:.1f} dense trainings",
        "" if group.seconds is None else duration(group.seconds),
    ]
    title = Text().append(_in_signs(group.label), "bold")
    output().print(title.append(_in_signs(f": {', '.join(filter(None, facts))}")))
    test = f"test {metric.column}"
    level_columns = (
        "density", "kept", test, "95 % interval", "minus dense", "matches", "cost", "early stop at", f"{test} there",
    )  # fmt: skip
    _print_columns(level_columns, [_level_cells(row, metric) for row in group.levels])
    if group.controls:
        control_columns = ("control", "data", "density", test, "95 % interval", "ticket minus control", "Holm p")
        _print_columns(control_columns, [_control_cells(row, metric) for row in group.controls])
        if any(row.p_holm is not None for row in group.controls):
            _say(f"  Holm p: {analysis.tables.CORRECTED}", "dim")
    for answer in group.verdict.answers.values() if group.verdict else ():
        _say(f"  {answer.asked} {answer.in_words()}", "bold")
        output().print(Padding(Text(_in_signs(answer.because)), (0, 0, 0, 4)))


def _level_cells(row: Level, metric: Metric) -> tuple[str, ...]:
    return (
        f"{row.density:.4g}", "" if row.kept is None else f"{row.kept:,}", analysis.overview.show_value(row, metric),
        _interval(row, metric), _signed(row.difference, metric),
        "" if row.matching is None else row.matching.in_words(),
        "" if row.dense_trainings is None else f"{row.dense_trainings:.1f}",
        "" if row.early_step is None else f"{row.early_step:.0f}", metric.show(row.early_mean),
    )  # fmt: skip


def _control_cells(row: Control, metric: Metric) -> tuple[str, ...]:
    how = "" if row.trained else ", not trained"
    return (
        f"{row.control}{how}", row.data, f"{row.density:.4g}", analysis.overview.show_value(row, metric),
        _interval(row, metric), _signed(row.difference, metric), "" if row.p_holm is None else f"{row.p_holm:.2g}",
    )  # fmt: skip


def _interval(row: Row, metric: Metric) -> str:
    return "" if row.interval is None else f"{metric.show(row.interval[0])} to {metric.show(row.interval[1])}"


def _signed(found: Difference | None, metric: Metric) -> str:
    if found is None:
        return ""
    return f"{found.mean:+{metric.form}} {analysis.overview.show_interval(found, metric)}".rstrip()


def _print_columns(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table without its empty columns; on a narrow terminal in parts, each with the first column again."""
    used = [index for index in range(len(columns)) if index == 0 or any(row[index] for row in rows)]
    rows = [[_in_signs(cell) for cell in row] for row in rows]
    widths = [max(map(len, (name, *(row[index] for row in rows)))) + 2 for index, name in enumerate(columns)]
    parts: list[list[int]] = [[0]]
    for index in used[1:]:
        # Two spaces at the left, and none behind the last column.
        if sum(widths[column] for column in (*parts[-1], index)) > output().width and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(index)
    for part in parts:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for index in part:
            table.add_column(columns[index], justify="left" if index == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(row[index]) for index in part))
        output().print(Padding(table, (0, 0, 0, 2)))


def _print_masks(compared: list[dict[str, Any]]) -> None:
    for run, levels in ((run, rows) for found in compared for run, rows in found["levels"].items()):
        output().print(f"{run}, level by level", markup=False, highlight=False)
        print_table(
            ("level", "density", "entries changed", "overlap with the level before"),
            [
                (
                    row["level"],
                    f"{row['density']:.4g}",
                    *(f"{row[key]:.3f}" if key in row else "" for key in ("changed", "overlap")),
                )
                for row in levels
            ],
        )
    for found in compared:
        rows = [
            (one, other, f"{found['overlap'][i][j]:.3f}", f"{found['chance'][i][j]:.3f}")
            for i, one in enumerate(found["labels"])
            for j, other in enumerate(found["labels"])
            if i < j
        ]
        print_table(("mask", "and mask", "overlap (IoU)", "overlap by chance"), rows)
        print_table(
            ("density of", *found["layers"]),
            [
                (label, *(f"{density:.4g}" for density in row))
                for label, row in zip(found["labels"], found["densities"], strict=True)
            ],
        )
