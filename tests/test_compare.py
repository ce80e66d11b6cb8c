"""What `ticket compare` prints at terminals of several widths, its tables for papers, and its figure."""

from __future__ import annotations

import io
import json
import re
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy
from matplotlib.container import ErrorbarContainer
from rich.cells import cell_len
from rich.console import Console

from ticket_search import RequestError, compare
from ticket_search.analysis import levels, overview, paper
from ticket_search.analysis.curves import PAPER, Look, draw
from ticket_search.analysis.headlines import Headline, headline, headlines
from ticket_search.analysis.html import to_html
from ticket_search.analysis.plots import plot_comparison
from ticket_search.analysis.tables import CORRECTED, read_csv, to_csv, to_latex, to_markdown
from ticket_search.cli import compare as command

RESULTS = Path(__file__).parent.parent / "results"


def rows_of(method, densities, cost=1.0, seeds=5, accuracy=95.0, fall=3.0, controls=(), **more):
    """Measurements of a method at several densities, the same for a method and a seed each time."""
    rng = np.random.default_rng(len(method))
    rows = []
    for seed in range(seeds):
        for place, density in enumerate(densities):
            at = {"method": method, "seed": seed, "density": density, "model": "net", "data": "digits", **more}
            value = accuracy - fall * np.log2(1 / density) + rng.normal(0, 0.3)
            grown = cost if isinstance(cost, float) else cost(place)
            rows.append({**at, "test_accuracy": float(value), "dense_trainings": grown})
            rows += [
                {**at, "control": kind, "test_accuracy": float(value - 2 + rng.normal(0, 0.3))}
                for kind in controls
                if density < 1
            ]
    return rows


IMP = [0.8**level for level in range(10)]


def seven():
    """Seven methods of many levels each, one of them with controls, and a dense network."""
    rows = rows_of("dense", [1.0])
    for number in range(6):
        kinds = ("reinit", "shuffle") if not number else ()
        rows += rows_of(f"method-of-some-name-{number}", IMP, lambda place: 1.0 + place, controls=kinds)
    return compare([], others=rows)


def perplexity():
    """Another metric, of which lower values are better, without a margin."""
    return compare([], others=read_csv(RESULTS / "gpt-tiny.csv"))


def printed(found, width, monkeypatch, full=False, encoding="utf-8"):
    """The lines that are printed at a width."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    monkeypatch.setattr(command, "output", lambda: Console(file=file, width=width, emoji=False))
    command._print_found(found, full)
    file.flush()
    return file.buffer.getvalue().decode(encoding).splitlines()


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("make", [seven, perplexity])
def test_a_comparison_is_a_screen_with_a_line_for_each_method_and_density(make, width, monkeypatch):
    found = make()
    lines = printed(found, width, monkeypatch)
    said = headlines(found)
    assert [line.partition(": ")[0] for line in lines[: len(said)]] == [f"{one.sign} {one.subject}" for one in said]
    table = lines[len(said) :]
    assert max(map(cell_len, table)) <= width
    (part,) = overview.overview(found)
    head = next(index for index, line in enumerate(table) if "method" in line and "density" in line)
    for line, row in zip(part.lines, table[head + 1 :], strict=False):
        sign = f"{line.headline.sign} " if line.headline else ""
        assert row.lstrip().startswith(sign), row
        assert f"{line.density}  " in row and line.value in row and line.difference in row, row
        assert not line.interval or (line.interval in row) == (width >= 80), row
    assert len(lines) <= 45, "about one screen"
    with pytest.MonkeyPatch.context() as patch:
        assert len(printed(found, width, patch, full=True)) > 2 * len(lines) - 10


def test_long_names_get_a_number_that_is_explained():
    found = compare([], others=read_csv(RESULTS / "ramanujan2020-lenet.csv"))
    (part,) = overview.overview(found)
    short, key = overview.shorten_names(part.lines, 16)
    assert max(map(len, short.values())) <= 16 and len(set(short.values())) == len(short)
    assert short["dense"] == "dense" and len(key) == 4
    told = dict(line.split(": ", 1) for line in key)
    assert all(told[name] == full for full, name in short.items() if name != full)


@pytest.mark.parametrize("width", [60, 80])
def test_one_step_deeper_is_everything(width, monkeypatch):
    found = seven()
    lines = printed(found, width, monkeypatch, full=True)
    text = " ".join("\n".join(lines).split())
    assert max(map(cell_len, lines[len(headlines(found)) :])) <= width
    for group in found.groups:
        for row in group.rows:
            assert overview.show_value(row, group.metric) in text
            if row.difference:
                assert f"{row.difference.mean:+.2f} {overview.show_interval(row.difference, group.metric)}" in text
        for control in group.controls:
            assert f"{control.p_holm:.2g}" in text
        for answer in group.verdict.answers.values() if group.verdict else ():
            assert f"{answer.asked} {answer.in_words()} {answer.because}" in text


def test_it_is_said_over_what_p_values_are_corrected(monkeypatch):
    text = " ".join("\n".join(printed(seven(), 80, monkeypatch, full=True)).split())
    assert text.count(f"Holm p: {CORRECTED}") == 1, "below the controls, of which one method has some"
    assert CORRECTED in to_markdown(seven(), full=True)


@pytest.mark.parametrize(
    ("number", "told"), [(4, "and 1 more command like these"), (6, "and 3 more commands like these")]
)
def test_the_commands_that_are_not_printed_are_counted(number, told, monkeypatch):
    lines = [Headline(f"mine at {place} %", "no", "open", f"ticket controls {place}") for place in range(number)]
    monkeypatch.setattr("ticket_search.analysis.headlines.headlines", lambda found: lines)
    assert any(line.startswith(told) for line in printed(compare([], others=rows_of("mine", [0.5])), 80, monkeypatch))


def test_signs_that_a_terminal_does_not_have_are_written_otherwise(monkeypatch):
    lines = printed(seven(), 80, monkeypatch, encoding="ascii")
    assert any("+-" in line for line in lines)
    assert {line[0] for line in lines if " at " in line and ": " in line} <= {"+", "-", "?"}


def test_a_name_is_no_command_of_the_terminal(monkeypatch):
    rows = rows_of("dense", [1.0]) + rows_of("mine", [0.5], label="\x1b[31m[bold]red\x07[/bold]")
    text = "\n".join(printed(compare([], others=rows), 80, monkeypatch, full=True))
    assert "\x1b" not in text and "\x07" not in text and "[bold]red" in text


def test_runs_that_differ_in_density_are_one_whether_measured_here_or_read(tmp_path):
    found = compare([], others=read_csv(RESULTS / "synflow2020-lenet.csv"))
    joined = levels.join_densities(found.groups)
    assert [group.label for group in joined] == ["dense", "grasp", "magnitude-at-init", "random", "snip", "synflow"]
    assert {len(group.levels) for group in joined} == {1, 5}
    # Labels say a density once, however often they are written and read.
    assert all(group.label.split().count(f"d{group.density:.3g}") <= 1 for group in found.groups)
    path = tmp_path / "again.csv"
    path.write_text(to_csv(found))
    assert [group.label for group in compare([], others=read_csv(path)).groups] == [g.label for g in found.groups]
    one, *others = levels.join_densities(list(found.groups[1:6:5]) * 2)
    assert not others and len(one.levels) == 1, "a density that two have is there once"


def test_the_dense_network_comes_first_then_method_by_method():
    found = compare([], others=read_csv(RESULTS / "synflow2020-lenet.csv"))
    ordered = [(group.curve, group.density) for group in levels.in_order(found.groups)]
    assert ordered[0] == ("dense", 1.0)
    for before, after in pairwise(ordered[1:]):
        assert before[0] < after[0] or (before[0] == after[0] and before[1] > after[1])
    assert [line.subject.partition(" at ")[0] for line in headlines(found)] == [name for name, _ in ordered[1:]]


def test_a_table_for_a_paper_has_methods_by_densities_and_the_best_of_each():
    found = compare([], others=read_csv(RESULTS / "synflow2020-lenet.csv"))
    (table,) = paper.paper_tables(found)
    assert table.densities == ("100", "30", "10", "3", "1", "0.3")
    values = {(group.curve, f"{100 * group.density:.3g}"): group for group in found.groups}
    for column, density in enumerate(table.densities):
        here = {name: group for (name, at), group in values.items() if at == density}
        assert {row.name for row in table.methods if row.cells[column]} == set(here)
        top = max(here.values(), key=lambda group: group.mean)
        for method in table.methods:
            if (cell := method.cells[column]) is None:
                continue
            group = here[method.name]
            assert (cell.mean, cell.std) == (f"{group.mean:.2f}", f"{group.std:.2f}")
            assert method.cost == "1"
            gaps = np.subtract(top.levels[-1].values, group.levels[-1].values)
            tied = (
                group is top or scipy.stats.t.interval(0.95, len(gaps) - 1, gaps.mean(), scipy.stats.sem(gaps))[0] <= 0
            )
            assert cell.best == (tied and density != "100")
    assert "over 3 seeds" in table.note and not any(method.seeds for method in table.methods)


@pytest.mark.parametrize(("direction", "best"), [("lower", "low"), ("higher", "high")])
def test_the_best_of_another_metric_is_on_its_good_side(direction, best):
    measured = {"metric": "error-of-mine", "direction": direction}
    rows = [
        {"method": name, "seed": seed, "density": 0.5, "test_metric": value + 0.01 * seed, **measured}
        for name, value in (("low", 1.0), ("high", 9.0))
        for seed in range(3)
    ]
    (table,) = paper.paper_tables(compare([], others=rows))
    assert [method.name for method in table.methods if method.cells[0].best] == [best]


def test_of_many_densities_those_that_are_told_and_those_of_several_methods_are_columns():
    rows = rows_of("dense", [1.0]) + rows_of("imp", IMP, lambda place: 1.0 + place)
    rows += [row for d in (0.5, 0.03) for row in rows_of("snip", [d], label=f"snip d{d}", seeds=3)]
    found = compare([], others=rows)
    (table,) = paper.paper_tables(found)
    told = {f"{100 * row.density:.3g}" for group in found.groups for row in levels.worth_telling(group)}
    assert told <= set(table.densities) and len(table.densities) == 6
    left = {f"{100 * density:.3g}" for density in (*IMP, 0.5, 0.03)} - set(table.densities)
    assert f"; {len(left)} other densities are left out" in table.note
    assert {method.name: method.seeds for method in table.methods} == {"dense": "5", "imp": "5", "snip": "3"}
    imp = next(method for method in table.methods if method.name == "imp")
    assert imp.cost == "10"
    lines = to_markdown(found).splitlines()
    body = [line for line in lines if line.startswith("|")]
    assert len(body) == 2 + 3 and len({line.count("|") for line in body}) == 1
    latex = [line for line in to_latex(found).splitlines() if line.endswith(r" \\")]
    assert len(latex) == 1 + 3 and {line.count("&") for line in latex} == {8}
    assert r"{\scriptstyle\,\pm\," in latex[1]


def labels_of(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_the_cost_panel_joins_the_levels_of_a_search_and_nothing_else():
    rows = rows_of("dense", [1.0]) + rows_of("imp", IMP, lambda place: 1.0 + place)
    rows += [row for d in (0.5, 0.2, 0.1) for row in rows_of("snip", [d], label=f"snip d{d}")]
    figure = draw(compare([], others=rows), (), Look())
    density, cost = figure.axes
    assert sorted(labels_of(figure)[:2]) == ["imp", "snip"]
    drawn = {len(line.get_xdata()): line for line in density.lines if line.get_marker() == "o"}
    assert {number: line.get_linestyle() for number, line in drawn.items()} == {10: "-", 3: "-"}
    beside = {len(line.get_xdata()): line for line in cost.lines if line.get_marker() == "o"}
    assert {number: line.get_linestyle() for number, line in beside.items()} == {10: "-", 3: "None"}
    assert len(set(np.round(beside[3].get_xdata(), 6))) == 1
    assert sum(isinstance(part, ErrorbarContainer) for part in cost.containers) == 3


def test_no_interval_of_accuracies_leaves_0_to_100():
    rows = [
        {"method": name, "seed": seed, "density": 0.5, "test_accuracy": value}
        for name, values in {"top": (99.9, 95.0, 100.0), "bottom": (0.0, 0.4, 3.0)}.items()
        for seed, value in enumerate(values)
    ]
    found = compare([], others=rows)
    assert found.groups[0].interval[0] < 0 or found.groups[1].interval[0] < 0
    (panel,) = draw(found, (), Look()).axes
    ends = [y for part in panel.collections for path in part.get_paths() for y in path.vertices[:, 1]]
    assert min(ends) == 0 and max(ends) == 100
    low, high = panel.get_ylim()
    assert -4 < low < 0 and 100 < high < 104


@pytest.mark.parametrize("least", [0.9, 0.3, 0.02, 0.001, 0.00002])
@pytest.mark.parametrize("look", [Look(), PAPER])
def test_densities_are_read_in_percent(least, look):
    rows = rows_of("dense", [1.0]) + rows_of("mine", [1.0, least**0.5, least], fall=0.1)
    figure = draw(compare([], others=rows), (), look)
    figure.canvas.draw()
    panel = figure.axes[0]
    texts = [label for label in panel.get_xticklabels() if label.get_text()]
    places = [float(label.get_text()) for label in texts]
    assert np.allclose(places, 100 * panel.get_xticks()) and places[-1] == 100 and len(places) >= 2
    boxes = sorted((label.get_window_extent() for label in texts), key=lambda box: box.x0)
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes)), "they do not touch"


def test_a_figure_for_a_column_of_a_paper(tmp_path, ticket):
    rows = rows_of("dense", [1.0]) + rows_of("imp", IMP, lambda place: 1.0 + place, controls=("reinit", "shuffle"))
    found = compare([], others=rows)
    figure = draw(found, (), PAPER)
    figure.canvas.draw()
    assert figure.get_figwidth() == 3.3
    sizes = {text.get_fontsize() for panel in figure.axes for text in (panel.xaxis.label, *panel.get_xticklabels())}
    assert sizes <= {7, 7.875}
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert (
        box.x0 >= 0
        and box.x1 <= figure.bbox.x1
        and box.y1 <= min(panel.get_tightbbox().y0 for panel in figure.axes) + 1
    )
    assert "control: reinit" in labels_of(figure)
    pdf = plot_comparison(found, tmp_path / "a.pdf", look=PAPER).read_bytes()
    assert pdf.startswith(b"%PDF-") and b"/Type3" not in pdf and b"/MediaBox [ 0 0 237.6 " in pdf
    refused = ticket("compare", "none", "--paper")
    assert refused.code == 2 and "--paper: expected --plot" in refused.err


@pytest.fixture
def _no_figure(monkeypatch):
    """Figures take long to draw and are looked at elsewhere."""
    monkeypatch.setattr("ticket_search.analysis.html.figure_inline", lambda *arguments: "<svg></svg>")


@pytest.mark.usefixtures("_no_figure")
def test_the_page_says_nothing_wrong_of_another_metric():
    found = perplexity()
    assert found.delta is None
    text = re.sub(r"<(style|script|svg)\b.*?</\1>", "", to_html(found, "Perplexity"), flags=re.S)
    words = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    assert "accurac" not in words.lower() and "percentage point" not in words and "None" not in words
    assert "no margin given: with --delta, in perplexity" in words and "lower values are better" in words
    given = to_html(compare([], others=read_csv(RESULTS / "gpt-tiny.csv"), delta=0.3), "Perplexity")
    assert "lies above -0.3 perplexity" in " ".join(given.split())


@pytest.mark.usefixtures("_no_figure")
def test_the_page_opens_with_what_it_has_found():
    found = seven()
    text = to_html(found, "All")
    order = [
        text.index(word)
        for word in ("<h1>", 'class="headlines"', 'class="compact"', "<svg", 'class="card', "<details>")
    ]
    assert order == sorted(order)
    kinds = re.findall(r'class="card (\w+)"', text)
    said = {group.label: [headline(group, row).kind for row in levels.worth_telling(group)] for group in found.groups}
    assert kinds == ["good" if "good" in own else own[-1] for own in said.values() if own]


def planted(**changes):
    """One group that matches at its last level but one, as if it had been searched here."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(5):
        base = 95 + rng.normal(0, 0.1)
        rows.append({"method": "mine", "seed": seed, "density": 1.0, "test_accuracy": base})
        for density, gap in ((0.5, 0.3), (0.1, -9.0)):
            rows.append({"method": "mine", "seed": seed, "density": density, "test_accuracy": base + gap})
            for kind in ("reinit", "shuffle"):
                if seed < changes.get("controlled", 0):
                    value = base + gap - 3 + rng.normal(0, 0.1)
                    rows.append(
                        {"method": "mine", "seed": seed, "density": density, "control": kind, "test_accuracy": value}
                    )
    (group,) = compare([], others=rows).groups
    return replace(group, start="initialization", runs=tuple(f"runs/a {seed}" for seed in range(5)))


def test_each_question_says_at_which_density_it_is_asked(monkeypatch):
    """Matching is asked of the sparsest level, the controls where they are: here at the one that matches."""
    values = {1.0: 95.0, 0.5: 95.3, 0.1: 86.0}
    rows = [
        {"method": "mine", "seed": seed, "density": density, "test_accuracy": value + seed / 10}
        for seed in range(5) for density, value in values.items()
    ]  # fmt: skip
    beside = [
        {**row, "control": kind, "test_accuracy": row["test_accuracy"] - 5 - row["seed"] / 10}
        for row in rows for kind in ("reinit", "shuffle", "random") if row["density"] == 0.5
    ]  # fmt: skip
    found = compare([], others=[*rows, *beside])
    text = " ".join("\n".join(printed(found, 100, monkeypatch, full=True)).split())
    assert "at 10 %: does it match the dense network? no" in text
    for question in ("does its initialization matter?", "does it matter which weights are kept?", "is it trivial"):
        assert f"at 50 %: {question}" in text
    (group,) = found.groups
    assert [row.matching and row.matching.density for row in group.levels] == [None, 0.5, 0.1]
    assert group.verdict.as_early.density == 0.5


@pytest.mark.parametrize(("controlled", "expected"), [(0, range(5)), (3, (3, 4)), (5, ())])
def test_controls_are_asked_for_where_they_are_missing_and_at_the_level_that_is_told(controlled, expected):
    group = planted(controlled=controlled)
    line = headline(group, group.levels[1])
    assert line.kind == "good"
    if not expected:
        assert line.command == "" and line.text.startswith("a winning ticket")
        return
    names = " ".join(shlex.quote(f"runs/a {seed}") for seed in expected)
    assert line.command == f"ticket controls {names} --levels 1"


def test_numbers_of_another_program_come_with_no_command_of_ours():
    found = compare([], others=read_csv(RESULTS / "synflow2020-lenet.csv"))
    assert all(line.command == "" for line in headlines(found)), "their flags are not known"


def test_commands_are_printed_in_one_line_and_the_same_one_once(ticket, monkeypatch, tmp_path):
    group = planted()
    monkeypatch.setattr(
        "ticket_search.analysis.headlines.headlines", lambda found: [headline(group, group.levels[1])] * 2
    )
    lines = printed(seven(), 60, monkeypatch)
    command_line = headline(group, group.levels[1]).command
    assert len(command_line) > 60 and lines.count(f"  {command_line}") == 1


def test_compare_writes_what_it_is_asked_for(ticket, tmp_path):
    path = tmp_path / "numbers.csv"
    path.write_text(to_csv(seven()))
    words = ["--with", str(path), "--markdown", "a.md", "--latex", "a.tex"]
    short = ticket("compare", *words)
    assert short.code == 0, short.err
    assert "add --full" in short.out and "100 %" in Path("a.md").read_text()
    full = ticket("compare", *words, "--full", "--overwrite")
    assert full.code == 0 and len(full.out) > len(short.out) and "**Controls**" in Path("a.md").read_text()
    assert "Holm p" in Path("a.tex").read_text() and "Holm p" in full.out
    assert json.loads(ticket("compare", "--with", str(path), "--json").out)["groups"]
    assert ticket("compare", "--with", str(path), "--plot", "a.eps").code == 2
    nothing = ticket("compare")
    assert nothing.code == 2 and "expected folders or names of runs" in nothing.err
    with pytest.raises(RequestError, match="there is no finished run"):
        compare([])
