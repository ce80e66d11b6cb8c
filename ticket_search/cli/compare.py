"""`ticket compare`: runs side by side, and whether they hold a ticket."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..contract.errors import RequestError
from .terminal import duration, errors, output, percent, print_json, print_table

QUESTIONS = ("matching", "as_early", "init", "positions", "trivial")


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(compare)


def compare(
    names: Annotated[list[str], typer.Argument(help="Runs, by folder or by name, as runs/*.")],
    runs: Annotated[str, typer.Option("--runs", help="The folder of all runs.")] = "runs",
    delta: Annotated[float, typer.Option("--delta", help="Percentage points a ticket may be worse than dense.")] = 0.5,
    others: Annotated[
        list[str] | None, typer.Option("--with", help="A CSV of your own method's numbers; --csv writes its columns.")
    ] = None,
    csv: Annotated[str, typer.Option("--csv", help="Write all numbers, a line per seed.")] = "",
    markdown: Annotated[str, typer.Option("--markdown", help="Write the tables in Markdown.")] = "",
    latex: Annotated[str, typer.Option("--latex", help="Write the tables in LaTeX.")] = "",
    plot: Annotated[str, typer.Option("--plot", help="Draw accuracy against density and cost, .png or .svg.")] = "",
    html: Annotated[str, typer.Option("--html", help="Write everything as one page.")] = "",
    board: Annotated[str, typer.Option("--tensorboard", help="A folder for curves by kept weights.")] = "",
    masks: Annotated[
        bool, typer.Option("--masks", help="Show where the masks keep their weights, too; with --html as heat maps.")
    ] = False,
    heat_map: Annotated[str, typer.Option("--heat-map", help="Draw the density of each layer, .png or .svg.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare runs: seeds grouped, tickets beside dense networks and controls, each question answered by itself."""
    files = {"--csv": csv, "--markdown": markdown, "--latex": latex, "--plot": plot, "--html": html}
    files["--heat-map"] = heat_map
    _check(files, delta, overwrite)
    from ..analysis.comparison import compare as compare_runs
    from ..analysis.tables import read_csv

    rows = [row for path in others or () for row in read_csv(path)]
    folders = [Path(name) if Path(name).exists() else Path(runs) / name for name in names]
    found = compare_runs(folders, delta=delta, others=rows)
    if masks or heat_map:
        from ..analysis.geometry import compare_runs_masks

        found["masks"] = compare_runs_masks(found)
        if heat_map and not found["masks"]:
            raise RequestError("--heat-map: none of the runs has a mask")
    _write(found, files, board, overwrite)
    if as_json:
        print_json(found)
        return
    _print_groups(found)
    for group in found["groups"]:
        _print_levels(group)
    if masks:
        _print_masks(found["masks"])
    _print_verdicts(found)
    for line in found["left_out"]:
        errors().print(f"left out: {line}", markup=False, highlight=False, soft_wrap=True)
    for line in found["notes"]:
        errors().print(f"note: {line}", markup=False, highlight=False, soft_wrap=True)


def _check(files: Mapping[str, str], delta: float, overwrite: bool) -> None:
    problems = [] if delta > 0 else [f"--delta {delta:g}: expected percentage points above 0"]
    for flag, path in files.items():
        if path and Path(path).exists() and not overwrite:
            problems.append(f"{flag} {path} is there already: choose another name, or add --overwrite")
        if path and not Path(path).parent.is_dir():
            problems.append(f"{flag} {path}: there is no folder {Path(path).parent}")
    for flag in ("--plot", "--heat-map"):
        if files[flag] and Path(files[flag]).suffix not in (".png", ".svg"):
            problems.append(f"{flag} {files[flag]}: expected a name that ends in .png or .svg")
    if problems:
        raise RequestError(problems)


def _write(found: dict[str, Any], files: Mapping[str, str], board: str, overwrite: bool) -> None:
    from ..analysis import html as page
    from ..analysis import plots, tables
    from ..analysis.geometry import heat_maps

    maps = [found_map for network in found.get("masks", ()) for found_map in heat_maps(network)]

    def pictures() -> list[tuple[str, bytes]]:
        return [(one.title, plots.heat_map_png(one.rows, one.columns, one.values, one.title)) for one in maps]

    texts: dict[str, Callable[[], str]] = {
        "--csv": lambda: tables.to_csv(found),
        "--markdown": lambda: tables.to_markdown(found),
        "--latex": lambda: tables.to_latex(found),
        "--html": lambda: page.to_html(found, "Comparison of runs", extra_pictures=pictures()),
    }
    for flag, text in texts.items():
        if files[flag]:
            Path(files[flag]).write_text(text(), encoding="utf-8")
    if files["--plot"]:
        plots.plot_comparison(found, files["--plot"], overwrite=overwrite)
    if files["--heat-map"]:
        # Level by level where there are levels of one ticket, else ticket by ticket.
        one = maps[-1] if len(found["masks"]) == 1 and len(found["masks"][0]["labels"]) == 1 else maps[0]
        plots.plot_heat_map(one.rows, one.columns, one.values, files["--heat-map"], one.title, overwrite=overwrite)
    if board:
        from ..analysis.to_tensorboard import write_board

        write_board(found, board)
    for path in filter(None, [*files.values(), board]):
        errors().print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def _print_groups(found: Mapping[str, Any]) -> None:
    rows = [
        (
            row["label"], f"{row['model']} {row['data']}", f"{row['density']:.4g}", row["kept"], row["n"],
            percent(row["mean"]), percent(row["std"]) or "one seed", _interval(row),
            "" if row["dense_trainings"] is None else f"{row['dense_trainings']:.1f}",
            "" if row["seconds"] is None else duration(row["seconds"]),
        )
        for row in found["groups"]
    ]  # fmt: skip
    columns = ("method", "on", "density", "kept", "seeds", "test %", "std", "95 % interval", "dense trainings", "time")
    print_table(columns, rows)


def _interval(row: Mapping[str, Any]) -> str:
    return "" if row["interval"] is None else f"{row['interval'][0]:.2f} to {row['interval'][1]:.2f}"


def _print_levels(group: Mapping[str, Any]) -> None:
    if len(group["levels"]) > 1:
        output().print(f"{group['label']}, level by level", markup=False, highlight=False)
        columns = ("density", "seeds", "test %", "95 % interval", "minus dense", "matches", "at step", "test % there")
        print_table(columns, [_level_cells(row) for row in group["levels"]])
    if group["controls"]:
        output().print(f"{group['label']} and its controls", markup=False, highlight=False)
        columns = ("control", "on", "density", "seeds", "test %", "95 % interval", "ticket minus control", "Holm p")
        print_table(columns, [_control_cells(row) for row in group["controls"]])


def _level_cells(row: Mapping[str, Any]) -> tuple[Any, ...]:
    from ..analysis.verdict import in_words

    answer = row["matching"]
    return (
        f"{row['density']:.4g}", row["n"], percent(row["mean"]), _interval(row), _signed(row["difference"]),
        "" if answer is None else in_words(answer),
        "" if row["early_step"] is None else f"{row['early_step']:.0f}", percent(row["early_mean"]),
    )  # fmt: skip


def _control_cells(row: Mapping[str, Any]) -> tuple[Any, ...]:
    how = "trained" if row["trained"] else "as it is"
    return (
        f"{row['control']}, {how}", row["data"], f"{row['density']:.4g}", row["n"], percent(row["mean"]),
        _interval(row), _signed(row["difference"]), "" if row["p_holm"] is None else f"{row['p_holm']:.2g}",
    )  # fmt: skip


def _signed(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    bounds = "" if found["interval"] is None else f" ({found['interval'][0]:+.2f} to {found['interval'][1]:+.2f})"
    return f"{found['mean']:+.2f}{bounds}"


def _print_verdicts(found: Mapping[str, Any]) -> None:
    from ..analysis.verdict import in_words

    rows = []
    for group in found["groups"]:
        for key in QUESTIONS if group["verdict"] else ():
            answer = group["verdict"][key]
            if answer is not None:
                rows.append((group["label"], answer["question"], in_words(answer), answer["because"]))
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
        print_table(("mask", "and mask", "overlap (IoU)", "by chance"), rows)
        print_table(
            ("density of", *found["layers"]),
            [
                (label, *(f"{density:.4g}" for density in row))
                for label, row in zip(found["labels"], found["densities"], strict=True)
            ],
        )
