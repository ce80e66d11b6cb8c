"""`ticket compare`: runs compared over their seeds, and whether they have found a ticket."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from .. import analysis
from ..contract.errors import RequestError
from .terminal import duration, errors, output, print_json, print_table

if TYPE_CHECKING:
    from ..analysis.findings import Comparison, Control, Group, Level, Row
    from ..analysis.intervals import Difference
    from ..contract.metric import Metric


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(compare)


def compare(
    names: Annotated[list[str], typer.Argument(help="Folders or names of runs, as runs/*.")],
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    delta: Annotated[
        float | None,
        typer.Option(
            "--delta",
            help="How much worse than the dense network a ticket may be: percentage points of accuracy, 0.5 if not "
            "given, or the unit of another metric, of which there is no default.",
        ),
    ] = None,
    others: Annotated[
        list[str] | None,
        typer.Option("--with", help="A CSV file with numbers of another program, in the columns that --csv writes."),
    ] = None,
    csv: Annotated[str, typer.Option("--csv", help="Write all numbers to this file, one line per seed.")] = "",
    markdown: Annotated[str, typer.Option("--markdown", help="Write the tables to this file in Markdown.")] = "",
    latex: Annotated[str, typer.Option("--latex", help="Write the tables to this file in LaTeX.")] = "",
    plot: Annotated[
        str, typer.Option("--plot", help="Draw the metric against density and cost to this file, .png or .svg.")
    ] = "",
    html: Annotated[str, typer.Option("--html", help="Write everything to this file as one page.")] = "",
    board: Annotated[
        str,
        typer.Option("--tensorboard", help="Write an entry for each method to this new folder, with bands over seeds."),
    ] = "",
    masks: Annotated[
        bool,
        typer.Option("--masks", help="Also show overlaps and layer densities of the masks; in --html as heat maps."),
    ] = False,
    heat_map: Annotated[
        str, typer.Option("--heat-map", help="Draw the density of each layer to this file, .png or .svg.")
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare runs over their seeds: tickets with dense networks and with controls, and say whether they match them."""
    files = {"--csv": csv, "--markdown": markdown, "--latex": latex, "--plot": plot, "--html": html}
    files["--heat-map"] = heat_map
    _check(files, delta, overwrite)
    rows = [row for path in others or () for row in analysis.tables.read_csv(path)]
    folders = [Path(name) if Path(name).exists() else Path(runs) / name for name in names]
    found = analysis.comparison.compare(folders, delta=delta, others=rows)
    if board or any(files[flag] for flag in ("--plot", "--html")):
        analysis.findings.only_metric(found)
    networks = analysis.geometry.compare_runs_masks(found) if masks or heat_map else []
    if heat_map and not networks:
        raise RequestError("--heat-map: none of the runs has a mask")
    _write(found, networks, files, board, overwrite)
    if as_json:
        print_json(analysis.findings.to_dict(found) | ({"masks": networks} if masks or heat_map else {}))
        return
    _print_found(found)
    if masks:
        _print_masks(networks)
    _print_verdicts(found)
    for line in found.left_out:
        errors().print(f"left out: {line}", markup=False, highlight=False, soft_wrap=True)
    for line in found.notes:
        errors().print(f"note: {line}", markup=False, highlight=False, soft_wrap=True)


def _check(files: Mapping[str, str], delta: float | None, overwrite: bool) -> None:
    problems = [] if delta is None or delta > 0 else [f"--delta {delta:g}: expected a number above 0"]
    for flag, path in files.items():
        if path and Path(path).exists() and not overwrite:
            problems.append(f"{flag} {path}: the file exists already; choose another name, or add --overwrite")
        if path and not Path(path).parent.is_dir():
            problems.append(f"{flag} {path}: there is no folder {Path(path).parent}")
    for flag in ("--plot", "--heat-map"):
        if files[flag] and Path(files[flag]).suffix not in (".png", ".svg"):
            problems.append(f"{flag} {files[flag]}: expected a name that ends in .png or .svg")
    if problems:
        raise RequestError(problems)


def _write(
    found: Comparison, networks: Sequence[Mapping[str, Any]], files: Mapping[str, str], board: str, overwrite: bool
) -> None:
    maps = [one for network in networks for one in analysis.geometry.heat_maps(network)]

    def write_page() -> str:
        draw = analysis.plots.heat_map_png
        pictures = [(one.title, draw(one.rows, one.columns, one.values, one.title)) for one in maps]
        return analysis.html.to_html(found, "Comparison of runs", extra_pictures=pictures)

    texts: dict[str, Callable[[], str]] = {
        "--csv": lambda: analysis.tables.to_csv(found),
        "--markdown": lambda: analysis.tables.to_markdown(found),
        "--latex": lambda: analysis.tables.to_latex(found),
        "--html": write_page,
    }
    for flag, text in texts.items():
        if files[flag]:
            Path(files[flag]).write_text(text(), encoding="utf-8")
    if files["--plot"]:
        analysis.plots.plot_comparison(found, files["--plot"], overwrite=overwrite)
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


def _print_found(found: Comparison) -> None:
    _print_headlines(found)
    _print_groups(found)
    for group in found.groups:
        _print_levels(group)


def _print_headlines(found: Comparison) -> None:
    """One line for each method and density, and what to type next where something is missing."""
    colours = {"good": "bold green", "bad": "bold red", "open": "yellow"}
    for line in analysis.headlines.headlines(found):
        text = Text(f"{line.subject}: ").append(line.text, style=colours[line.kind])
        output().print(text, soft_wrap=True)
        if line.command:
            output().print(f"  {line.command}", markup=False, highlight=False, soft_wrap=True)


def _print_groups(found: Comparison) -> None:
    for metric in dict.fromkeys(group.metric for group in found.groups):
        rows = [
            (
                group.label, f"{group.model} {group.data}", f"{group.density:.4g}", group.kept, group.n,
                metric.show(group.mean), metric.show(group.std) or "one seed", _interval(group, metric),
                "" if group.dense_trainings is None else f"{group.dense_trainings:.1f}",
                "" if group.seconds is None else duration(group.seconds),
            )
            for group in found.groups
            if group.metric == metric
        ]  # fmt: skip
        # Not wider than 120 characters: a narrower terminal gets a block of lines for each row.
        columns = (
            "method", "network, data", "density", "kept", "seeds", f"test {metric.column}", "std", "95 % interval",
            "dense trainings", "time",
        )  # fmt: skip
        if not metric.is_accuracy:
            line = f"{metric.in_words}; differences are positive where the first is better"
            output().print(line, markup=False, highlight=False)
        print_table(columns, rows)


def _interval(row: Row | Group, metric: Metric) -> str:
    return "" if row.interval is None else f"{metric.show(row.interval[0])} to {metric.show(row.interval[1])}"


def _print_levels(group: Group) -> None:
    metric = group.metric
    test = f"test {metric.column}"
    if len(group.levels) > 1:
        output().print(f"{group.label}, level by level", markup=False, highlight=False)
        columns = (
            "density", "seeds", test, "95 % interval", "minus dense", "matches", "early stop at step", f"{test} there",
        )  # fmt: skip
        print_table(columns, [_level_cells(row, metric) for row in group.levels])
    if group.controls:
        output().print(f"{group.label} and its controls", markup=False, highlight=False)
        columns = ("control", "data", "density", "seeds", test, "95 % interval", "ticket minus control", "Holm p")
        print_table(columns, [_control_cells(row, metric) for row in group.controls])


def _level_cells(row: Level, metric: Metric) -> tuple[Any, ...]:
    return (
        f"{row.density:.4g}", row.n, metric.show(row.mean), _interval(row, metric), _signed(row.difference, metric),
        "" if row.matching is None else row.matching.in_words(),
        "" if row.early_step is None else f"{row.early_step:.0f}", metric.show(row.early_mean),
    )  # fmt: skip


def _control_cells(row: Control, metric: Metric) -> tuple[Any, ...]:
    how = "trained" if row.trained else "not trained"
    return (
        f"{row.control}, {how}", row.data, f"{row.density:.4g}", row.n, metric.show(row.mean),
        _interval(row, metric), _signed(row.difference, metric), "" if row.p_holm is None else f"{row.p_holm:.2g}",
    )  # fmt: skip


def _signed(found: Difference | None, metric: Metric) -> str:
    if found is None:
        return ""
    form = metric.form
    bounds = "" if found.interval is None else f" ({found.interval[0]:+{form}} to {found.interval[1]:+{form}})"
    return f"{found.mean:+{form}}{bounds}"


def _print_verdicts(found: Comparison) -> None:
    rows = [
        (group.label, answer.question, answer.in_words(), answer.because)
        for group in found.groups
        for answer in (group.verdict.answers.values() if group.verdict else ())
    ]
    if rows:
        print_table(("is it a ticket?", "question", "answer", "because"), rows)


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
