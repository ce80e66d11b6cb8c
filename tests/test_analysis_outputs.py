"""How a comparison is shown: figure, tables, page and board, of comparisons that are made up here."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import statistics
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from ticket_search import RequestError
from ticket_search.analysis import html as page
from ticket_search.analysis import to_tensorboard as board
from ticket_search.analysis.curves import COLOURS, Look, draw, join_densities
from ticket_search.analysis.findings import Answer, Comparison, Control, Group, Level, Verdict, to_rows
from ticket_search.analysis.headlines import headlines
from ticket_search.analysis.html import to_html
from ticket_search.analysis.intervals import Difference, confidence_interval, difference
from ticket_search.analysis.plots import (
    _draw_heat_map,
    figure_png,
    figure_svg,
    heat_map_png,
    plot_comparison,
    plot_heat_map,
)
from ticket_search.analysis.tables import (
    COLUMNS,
    REQUIRED,
    make_tables,
    read_csv,
    right_aligned,
    to_csv,
    to_latex,
    to_markdown,
)
from ticket_search.analysis.to_tensorboard import (
    BEST,
    CONTROL,
    COST,
    EARLY,
    FIGURE,
    GAP,
    HEADLINES,
    KEPT,
    OVERVIEW,
    STEP,
    TABLE,
    TAGS,
    TEXT,
    ends_of,
    write_board,
)

WEIGHTS = 266_200
HOSTILE = (
    "<script>alert('x')</script>",
    "a_b & 100 % of $x^2$ {#1} ~\\",
    '"><img src=x onerror=y>',
    "_a|b\n`c`*d*",
    "=1+1",
)
PUBLISHED = [{"label": "Frankle & Carbin, 2019", "density": 0.212, "accuracy": 97.4}]
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
QUESTIONS = {
    "matching": "does it match the dense network?",
    "as_early": "does it get there as early?",
    "init": "does its initialization matter?",
    "positions": "does it matter where its weights are?",
    "trivial": "is it trivial: does a random mask match too?",
}


def summary(values: list[float]) -> dict[str, Any]:
    return {
        "n": len(values), "seeds": tuple(range(len(values))), "values": tuple(values), "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None, "interval": confidence_interval(values),
    }  # fmt: skip


def gap(values: list[float], others: list[float]) -> Difference | None:
    return difference(dict(enumerate(values)), dict(enumerate(others)))


def make_group(name: str, label: str, densities: list[float], accuracy: float, *, seeds: int = 5, **more: Any) -> Group:
    """A made-up group: accuracy falls towards low densities, the controls lie below."""
    rng = np.random.default_rng(sum(map(ord, name + label)))
    dense = [98.1 + float(rng.normal(0, 0.1)) for _ in range(seeds)]
    levels, controls = [], []
    for level, density in enumerate(densities):
        values = [accuracy - 0.05 / density + 0.1 * float(rng.normal()) for _ in range(seeds)]
        steps = tuple(int(4000 + 100 * rng.normal()) for _ in range(seeds))
        at = {"density": density, "kept": round(density * WEIGHTS)}
        levels.append(
            Level(
                level=level if len(densities) > 1 else None, **at, **summary(values),
                early_step=statistics.fmean(steps), early_steps=steps, early_mean=accuracy, dense_trainings=1.0 + level,
                difference=None if density == 1 else gap(values, dense),
                matching=None if density == 1 else Answer("?", "yes", ""),
            )
        )  # fmt: skip
        for control, below in more.get("controls", {}).items() if density < 1 else ():
            worse = [max(10.0, value - below * (1 + 0.1 * level)) for value in values]
            controls.append(
                Control(
                    control=control, trained=below < 50, data="digits", level=level, **at, **summary(worse),
                    early_step=None, early_steps=None, early_mean=None, difference=gap(values, worse),
                    p_holm=0.013 if seeds > 1 else None,
                )
            )  # fmt: skip
    last = levels[-1]
    because = "-0.12 pp over 5 seeds, at least -0.31 and at most +0.07 (95 % each); the margin is -0.50"
    answers = {
        key: Answer(question, answer, because, 3 if answer == "undecided" else None)
        for (key, question), answer in zip(QUESTIONS.items(), ("yes", "undecided", "yes", "no", "unknown"), strict=True)
    }
    return Group(
        id=f"group-{sum(map(ord, label))}", label=label, curve=label, method=name, model="lenet-300-100",
        data="digits", precision="fp32",
        **{key: last[key] for key in ("density", "kept", "n", "seeds", "mean", "std", "interval", "dense_trainings")},
        val_mean=97.0, seconds=61.5, runs=tuple(f"runs/{label}-{seed}" for seed in range(seeds)),
        differs={"fraction": 0.5}, baseline="dense", levels=tuple(levels), controls=tuple(controls),
        verdict=None if densities == [1] else Verdict(**answers, sparsest_matching=0.21, controls_at=0.41),
    )  # fmt: skip


IMP = [0.8**level for level in range(0, 21, 2)]
CONTROLS = {"reinit": 0.4, "shuffle": 0.7, "random": 0.9}


def make_comparison(groups: list[Group]) -> Comparison:
    return Comparison(0.5, tuple(groups), ("runs/x: not finished",), ("one note",))


def few() -> list[Group]:
    return [
        make_group("dense", "dense", [1], 98.1),
        make_group("imp", "imp fraction=0.5", IMP, 98.3, controls=CONTROLS),
        make_group("snip", "snip", [0.2], 97.4, controls=CONTROLS),
        make_group("edge-popup", "edge-popup", [0.5], 96.8, controls={"shuffle": 85, "reinit": 86}),
    ]


def twelve() -> list[Group]:
    lines = [
        make_group("imp", f"imp rewind={rewind}it epochs={rewind + 12}", IMP, 98.3 - 0.1 * rewind, controls=CONTROLS)
        for rewind in range(5)
    ]
    points = [make_group("snip", f"snip number={n}", [0.5 if n < 5 else 0.1], 97 - 0.1 * n) for n in range(6)]
    return [make_group("dense", "dense", [1], 98.1), *lines, *points]


CASES = {
    "few": few(),
    "one": [make_group("imp", "imp", IMP, 98.2)],
    "one point": [make_group("snip", "snip", [0.05], 97)],
    "one seed": [
        make_group("imp", "imp", IMP, 98.2, seeds=1, controls=CONTROLS),
        make_group("dense", "dense", [1], 98, seeds=1),
    ],
    "only dense": [make_group("dense", "dense", [1], 98.1)],
    "twelve": twelve(),
    "hostile": [make_group(name, name, [0.5], 90.0, controls={name: 1.0}) for name in HOSTILE],
}


SLOW = ("one", "one point", "one seed", "only dense", "twelve")


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES],
    ids=lambda name: name.replace(" ", "-"),
)
def comparison(request) -> Comparison:
    return make_comparison(CASES[request.param])


def test_the_figure_in_both_formats(comparison, tmp_path):
    png, svg = (plot_comparison(comparison, tmp_path / f"a.{kind}", PUBLISHED).read_bytes() for kind in ("png", "svg"))
    image = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    assert (image < 128).sum() > 1000, "something is drawn"
    assert ElementTree.fromstring(svg).tag.endswith("svg")


@pytest.mark.slow
def test_the_figure_is_the_same_each_time():
    for render in (figure_png, figure_svg):
        assert render(make_comparison(few()), PUBLISHED) == render(make_comparison(few()), PUBLISHED)


def colours_of(svg: bytes) -> set[str]:
    return {colour.upper() for colour in re.findall(r"#[0-9a-f]{6}", svg.decode())}


def test_the_figure_has_a_colour_for_each_group_and_black_for_what_is_published():
    for case, expected in (("few", 3), ("twelve", 6), ("only dense", 0)):
        found = colours_of(figure_svg(make_comparison(CASES[case]), PUBLISHED))
        assert found & set(COLOURS) == set(COLOURS[:expected])
    axes = draw(make_comparison(few()), PUBLISHED, Look()).axes[0]
    (black,) = [line for line in axes.lines if line.get_color() == "black"]
    assert (black.get_xdata().item(), black.get_ydata().item()) == (0.212, 97.4)


def test_nothing_is_overwritten_and_the_suffix_says_the_format(tmp_path):
    comparison = make_comparison(few())
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(RequestError, match="nothing is overwritten"):
        plot_comparison(comparison, path)
    assert path.read_bytes() == b"mine"
    plot_comparison(comparison, path, overwrite=True)
    assert path.read_bytes() == figure_png(comparison)
    with pytest.raises(RequestError) as error:
        plot_comparison(comparison, tmp_path / "no" / "a.eps")
    assert len(error.value.problems) == 2
    assert ".png, .svg or .pdf" in error.value.problems[0]
    with pytest.raises(RequestError, match=r"\.png, \.svg or \.pdf"):
        plot_heat_map(["a"], ["b"], [[1.0]], tmp_path / "a.jpg", "title")


def test_the_accuracy_axis_shows_groups_and_not_controls_far_below():
    comparison = make_comparison(few())
    figure = draw(comparison, (), Look())
    for panel in figure.axes:
        bottom, top = panel.get_ylim()
        means = [row.mean for group in comparison.groups for row in group.levels]
        assert bottom < min(means) < max(means) < top
        assert bottom > 50, "evaluated controls are at chance"
    left, right = figure.axes[0].get_xlim()
    assert left > 1 > right, "dense at the left"
    controls = [row.mean for row in comparison.groups[3].controls]
    assert [text.get_text() for text in figure.axes[0].texts] == [", ".join(f"{mean:.1f}" for mean in controls)]
    assert draw(comparison, (), Look(lowest=20)).axes[0].get_ylim()[0] == 20
    assert len(draw(comparison, (), Look(stacked=True)).axes) == 2
    free = [
        replace(group, levels=tuple(replace(row, dense_trainings=None) for row in group.levels))
        for group in comparison.groups
    ]
    assert len(draw(make_comparison(free), (), Look()).axes) == 1, "there is no cost to show"


def test_a_legend_covers_no_data():
    for case in ("one", "twelve", "hostile"):
        figure = draw(make_comparison(CASES[case]), PUBLISHED, Look())
        figure.canvas.draw()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        for panel in figure.axes:
            assert box.y1 <= panel.get_tightbbox().y0 + 1
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y0 >= -1


def test_the_legend_names_groups_controls_and_what_is_published():
    texts = [text.get_text() for text in draw(make_comparison(few()), PUBLISHED, Look()).legends[0].get_texts()]
    assert texts == [
        "imp fraction=0.5", "snip", "edge-popup", "dense (mean)", "control: reinit", "control: shuffle", "control: random",
        "control: shuffle, not trained", "control: reinit, not trained", "Frankle & Carbin, 2019", "95 % interval",
    ]  # fmt: skip
    alone = draw(make_comparison(CASES["one"]), (), Look()).legends[0].get_texts()
    assert "dense: level 0 of imp" in [text.get_text() for text in alone]


def test_heat_map(tmp_path):
    values = [[1.0, 0.5, None], [float("nan"), 0.0123, 0.25]]
    path = plot_heat_map(["a_b $x", "c"], ["1", "2", "3"], values, tmp_path / "map.svg", "layers <&> $")
    ElementTree.fromstring(path.read_bytes())
    png = heat_map_png(["a", "b"], ["1", "2", "3"], values, "layers")
    assert png == heat_map_png(["a", "b"], ["1", "2", "3"], values, "layers")
    assert min(Image.open(io.BytesIO(png)).size) > 200
    heat_map_png(["a"], ["b"], [[None]], "nothing")


def test_the_title_of_a_narrow_heat_map_is_not_cut():
    figure = _draw_heat_map(["level 0"], ["fc1.weight"], [[1.0]], f"Density of each layer, {'imp-lenet-300-100-' * 5}")
    figure.canvas.draw()
    title = figure.get_suptitle()
    drawn = next(text for text in figure.texts if text.get_text() == title).get_window_extent()
    assert drawn.x0 >= 0 and drawn.x1 <= figure.bbox.width and "\n" in title


def test_rows_are_those_of_levels_and_controls(comparison):
    rows = to_rows(comparison)
    expected = [row for group in comparison.groups for row in (*group.levels, *group.controls)]
    assert [row["mean"] for row in rows] == [row.mean for row in expected]
    assert [row["control"] for row in rows] == [getattr(row, "control", None) for row in expected]
    for row, source in zip(rows, expected, strict=True):
        assert (row["low"], row["high"]) == (source.interval or (None, None))
        beside = source.difference or Difference(0, None)
        assert row["difference"] == beside.mean
        assert (row["difference_low"], row["difference_high"]) == (beside.interval or (None, None))


def test_csv_comes_back_as_it_was(comparison, tmp_path):
    path = tmp_path / "all.csv"
    path.write_text(to_csv(comparison), encoding="utf-8", newline="")
    found = iter(read_csv(path))
    for group in comparison.groups:
        for row in (*group.levels, *group.controls):
            for index, (seed, value) in enumerate(zip(row.seeds, row.values, strict=True)):
                line = next(found)
                assert (line["seed"], line["test_accuracy"], line["density"]) == (seed, value, row.density)
                assert (line["kept"], line.get("level")) == (row.kept, row.level)
                for key in ("control", "trained", "dense_trainings"):
                    assert line.get(key) == getattr(row, key, None)
                assert (line["label"], line["method"]) == (group.label, group.method)
                assert line.get("early_step") == (row.early_steps[index] if row.early_steps else None)
    assert next(found, None) is None
    assert tuple(next(csv.reader(io.StringIO(to_csv(comparison))))) == tuple(COLUMNS)


def test_csv_of_ones_own(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("\ufeffseed, test_accuracy,density,method\n0,97.5,0.2,mine\n\n1,97,1e-1,mine\n")
    assert read_csv(path) == [
        {"seed": 0, "test_accuracy": 97.5, "density": 0.2, "method": "mine"},
        {"seed": 1, "test_accuracy": 97.0, "density": 0.1, "method": "mine"},
    ]
    assert REQUIRED == ("method", "density", "seed"), "and test_accuracy, or test_metric with its name"


def problems_of(path: Path, text: str | bytes) -> list[str]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RequestError) as error:
        read_csv(path)
    assert all(str(path) in problem for problem in error.value.problems)
    return [problem.removeprefix(f"{path}: ") for problem in error.value.problems]


def test_everything_wrong_with_a_csv_is_said_at_once(tmp_path):
    text = (
        "method,density,test_acuracy,test_accuracy,seed,kept,trained\n"
        "mine,0,,101,0,,\n"
        ",0.5,,97,1.5,-1,perhaps\n"
        "mine,0.5,,nan,0,1,\n"
        "mine,0.5\n"
    )
    found = problems_of(tmp_path / "a.csv", text)
    assert "unknown column 'test_acuracy'; did you mean 'test_accuracy'?" in found[0]
    assert found[1:] == [
        "line 2: density '0': expected greater than 0",
        "line 2: test_accuracy '101': expected less than or equal to 100",
        "line 3: method is empty",
        "line 3: trained 'perhaps': expected a valid boolean",
        "line 3: kept '-1': expected greater than or equal to 0",
        "line 3: seed '1.5': expected a valid integer",
        "line 4: test_accuracy 'nan': expected a finite number",
        "line 5: it has 2 cells, but the header has 7",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "there is no column method"),
        ("method,density,seed,test_accuracy\n", "no measurements below the header"),
        ("method,density,seed,test_accuracy\nm,0.5,0,0.97\nm,0.5,1,0.98\n", "expected percent"),
        ("method,density,seed,test_accuracy\nm,0.5,0,97\nm,0.50,0,98\n", "line 3 repeats the measurement of line 2"),
        ("method,method,density,seed,test_accuracy\nm,m,0.5,0,97\n", "column method occurs more than once"),
        (b"method,density,seed,test_accuracy\n\xff,0.5,0,97\n", "UTF-8"),
        ('method,density,seed,test_accuracy\n"m"x,0.5,0,97\n', "expected after"),
    ],
)
def test_a_csv_that_cannot_be_right(text, expected, tmp_path):
    assert any(expected in problem for problem in problems_of(tmp_path / "a.csv", text))


def test_many_problems_are_counted(tmp_path):
    text = "method,density,seed,test_accuracy\n" + "m,2,0,97\n" * 50
    found = problems_of(tmp_path / "a.csv", text)
    assert found[-1] == "and 30 more"
    assert len(found) == 21
    with pytest.raises(RequestError, match="No such file"):
        read_csv(tmp_path / "none.csv")
    with pytest.raises(RequestError, match="directory"):
        read_csv(tmp_path)


def test_tables_leave_out_empty_columns():
    (levels, controls) = make_tables(make_comparison(few()))
    assert "on" not in levels.columns, "all are of one network and data set"
    assert "Holm p" in controls.columns
    assert "Holm p" not in levels.columns
    (point,) = make_tables(make_comparison(CASES["one point"]))
    assert "level" not in point.columns
    assert point.rows[0][:4] == ("snip", "0.05", "13,310", "5")
    other = few()
    other[0] = replace(other[0], data="mnist1d")
    assert "on" in make_tables(make_comparison(other))[0].columns
    seed = make_tables(make_comparison(CASES["one seed"]))
    assert not {"interval", "interval of difference", "Holm p"} & {name for table in seed for name in table.columns}


def test_markdown_has_as_many_cells_in_each_line(comparison):
    text = to_markdown(comparison, full=True)
    for table, block in zip(make_tables(comparison), re.split(r"\n\n(?=\*\*)", text), strict=True):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len(lines) == len(table.rows) + 2
        assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {len(table.columns) + 2}
    assert not re.search(r"(?<!\\)[<`]", text)


def test_latex_escapes(comparison):
    text = to_latex(comparison, full=True)
    body = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(body) == sum(1 + len(table.rows) for table in make_tables(comparison))
    for table in make_tables(comparison):
        kinds = "".join("r" if right else "l" for right in right_aligned(table))
        assert rf"\begin{{tabular}}{{{kinds}}}" in text
        cells = [line for line in body if len(re.split(r"(?<!\\)&", line)) == len(table.columns)]
        assert len(cells) >= len(table.rows) + 1
    for line in body:
        bare = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar)\{\}", "", line)
        bare = re.sub(r"\\[&%$#_{}\\]", "", bare).replace("$-$", "")
        assert not re.search(r"[%$#_{}~^\\<>|]", bare), line


@pytest.fixture
def _quick_figures(monkeypatch):
    """Figures take long to draw and are looked at elsewhere."""
    monkeypatch.setattr(page, "figure_inline", lambda *arguments: "<svg></svg>")
    monkeypatch.setattr(board, "figure_png", lambda *arguments: PNG)


class Page(HTMLParser):
    """Tags that are open at the end, references, and the text."""

    VOID = {"meta", "img", "source", "br", "link", "hr", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.titles: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "title":
            self.titles.append(data)


def page_script() -> str:
    return (Path(page.__file__).parent / "page.js").read_text("utf-8")


@pytest.mark.usefixtures("_quick_figures")
def test_the_page_is_whole_and_asks_for_nothing(comparison):
    text = to_html(comparison, "A <title> & more", PUBLISHED, [("layers <b>", PNG)])
    found = Page(text)
    assert found.open == []
    # Our own script and nothing else: what it may be stands in the head by its digest.
    assert found.tags.count("script") == 1 and text.count(page_script()) == 1
    digest = base64.b64encode(hashlib.sha256(page_script().encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and "default-src 'none'" in text
    assert "link" not in found.tags
    assert len(found.references) == 1
    assert all(reference.startswith("data:image/") for reference in found.references)
    assert "http:" not in text and "https:" not in text
    assert "url(" not in text
    assert "A <title> & more" in found.text
    for group in comparison.groups:
        assert group.label in found.text
        assert all(run in found.text for run in group.runs)
        if group.verdict:
            assert list(group.verdict.answers) == list(QUESTIONS)
            assert all(answer.because in found.text for answer in group.verdict.answers.values())
    for table in make_tables(comparison):
        assert table.title in found.text
    assert "runs/x: not finished" in found.text
    assert "one note" in found.text


def test_the_page_has_the_figure_wide_and_narrow_and_says_what_its_points_are():
    comparison = make_comparison(CASES["hostile"][:2])
    text = to_html(comparison, "hostile")
    found = Page(text)
    assert found.tags.count("svg") == 2 and found.tags.count("script") == 1 and found.tags.count("img") == 0
    # Figures are paths; the only references are to their own parts, each of which is there once.
    names = re.findall(r' id="([^"]*)"', text)
    referred = re.findall(r'url\(#([^)]*)\)| href="#([^"]*)"', text)
    assert len(set(names)) == len(names)
    assert {one or other for one, other in referred} <= set(names)
    assert len(re.findall(r"url\((?!#)", text)) == 0 and "http:" not in text
    for group in comparison.groups:
        (row,) = group.levels
        low, high = (f"{end:.2f}" for end in row.interval)
        told = f"{group.label} at 50 %: {row.mean:.2f} %, 95 % interval {low} to {high}, 5 seeds"
        assert found.titles.count(f"{told}, cost 1 dense trainings") == 2
        assert sum(title.startswith(f"{group.label}, control {group.label} at") for title in found.titles) == 2


@pytest.mark.usefixtures("_quick_figures")
def test_the_page_says_the_verdict_in_words():
    text = " ".join(Page(to_html(make_comparison([few()[1]]), "one")).text.split())
    for sentence in (
        "does it match the dense network? \N{CHECK MARK} yes",
        "does it matter where its weights are? \N{BALLOT X} no",
        "3 more seeds would probably decide",
        "sparsest matching density: 21 %",
        "controls at 41 %",
        "a ticket may be 0.5 percentage points worse",
    ):
        assert sentence in text
    group = few()[1]
    none = replace(group, verdict=replace(group.verdict, sparsest_matching=None, matching=None))
    assert "sparsest" not in Page(to_html(make_comparison([none]), "one")).text


def read(path: Path) -> EventAccumulator:
    events = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def scalars(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    found = events.Scalars(tag) if tag in events.Tags()["scalars"] else []
    return [(event.step, event.value) for event in found]


@pytest.mark.usefixtures("_quick_figures")
def test_the_board_has_an_entry_for_each_method_with_curves_upwards(comparison, tmp_path):
    folders = write_board(comparison, tmp_path / "board", PUBLISHED)
    assert len(set(folders)) == len(folders)
    entries = join_densities(comparison.groups)
    assert sorted(path.parent for path in (tmp_path / "board").rglob("events.*")) == sorted(folders)
    assert len(folders) == 1 + len(entries), "no entry but those of methods, and one of all together"
    kept = [row.kept for group in comparison.groups for row in group.levels]
    for group, folder in zip(entries, folders[1:], strict=True):
        events = read(folder)
        rows = sorted(group.levels, key=lambda row: row.kept)
        if group.verdict is None:
            by_kept = {KEPT: [(end, rows[0].mean) for end in (min(kept), max(kept))]}
            low, _ = ends_of(KEPT)
            by_kept[low] = [(end, rows[0].interval[0]) for end, _ in by_kept[KEPT] if rows[0].interval]
        else:
            by_kept = {KEPT: [(row.kept, row.mean) for row in rows]}
            for index, tag in enumerate(ends_of(KEPT)):
                by_kept[tag] = [(row.kept, row.interval[index]) for row in rows if row.interval]
            by_kept[EARLY] = [(row.kept, row.early_step) for row in rows]
            by_kept[GAP] = [(row.kept, row.difference.mean) for row in rows if row.difference]
            by_kept[COST] = sorted((round(100 * row.dense_trainings), row.mean) for row in rows)
        for tag, values in by_kept.items():
            found = scalars(events, tag)
            assert [step for step, _ in found] == [step for step, _ in dict(values).items()], tag
            assert np.allclose(found, list(dict(values).items())) if values else not found
            if found and tag in TAGS:
                assert events.SummaryMetadata(tag).summary_description == TAGS[tag]
                assert events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"
    with pytest.raises(RequestError, match="choose a new folder"):
        write_board(comparison, tmp_path)


def test_the_board_lays_the_methods_over_one_another(tmp_path):
    comparison = make_comparison(few())
    folders = write_board(comparison, tmp_path, PUBLISHED)
    assert [folder.name for folder in folders] == [OVERVIEW, "dense", "imp-fraction=0.5", "snip", "edge-popup"]
    entries = {folder.name: read(folder) for folder in folders}
    for kind in CONTROLS:
        assert len(scalars(entries["imp-fraction=0.5"], CONTROL.format(kind))) == len(IMP) - 1
    assert scalars(entries["edge-popup"], CONTROL.format("shuffle-untrained"))
    events = entries[OVERVIEW]
    assert sorted(events.Tags()["images"]) == sorted([BEST, HEADLINES, FIGURE])
    for tag in (BEST, HEADLINES, FIGURE):
        (image,) = events.Images(tag)
        drawn = Image.open(io.BytesIO(image.encoded_image_string))
        assert (image.width, image.height) == drawn.size and (np.asarray(drawn.convert("L")) < 128).sum() > 500
    assert events.Images(FIGURE)[0].encoded_image_string == figure_png(comparison, PUBLISHED)
    (event,) = events.Tensors("custom_scalars__config__")
    assert events.SummaryMetadata("custom_scalars__config__").plugin_data.plugin_name == "custom_scalars"
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = [chart for category in layout.category for chart in category.chart]
    assert not any(category.closed for category in layout.category)
    margins = [series for chart in charts for series in chart.margin.series]
    assert [margin.value for margin in margins] == [KEPT, COST, GAP], "that by weights kept first"
    assert all((margin.lower, margin.upper) == ends_of(margin.value) for margin in margins)
    written = {tag for entry in entries.values() for tag in entry.Tags()["scalars"]}
    assert {tag for margin in margins for tag in (margin.value, margin.lower, margin.upper)} <= written
    patterns = [pattern for chart in charts for pattern in chart.multiline.tag]
    assert all(any(re.match(pattern, tag) for tag in written) for pattern in patterns)
    (text,) = events.Tensors(TEXT)
    words = text.tensor_proto.string_val[0].decode()
    assert all(f"- {line.subject}".partition(" at")[0] in words.replace("\\", "") for line in headlines(comparison))


@pytest.mark.usefixtures("_quick_figures")
def test_the_board_has_a_table_of_methods_by_density(tmp_path):
    comparison = make_comparison(few())
    folders = write_board(comparison, tmp_path)
    cells = {}
    for folder in folders[1:]:
        events = read(folder)
        found = {
            tag: plugin_data_pb2.HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)
            for tag in events.Tags()["tensors"]
        }
        start = found["_hparams_/session_start_info"].session_start_info
        values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
        infos = found["_hparams_/experiment"].experiment.metric_infos
        shown = {info.display_name: scalars(events, info.name.tag) for info in infos}
        cells[values["method"]] = values, {name: points[-1][1] for name, points in shown.items() if points}
    labels = [group.label for group in comparison.groups]
    assert list(cells) == labels
    for group in comparison.groups:
        values, shown = cells[group.label]
        assert values["density"] == min(row.density for row in group.levels)
        assert ("matches_dense_down_to" in values) == (group.verdict is not None)
        means = {f"test % at {100 * row.density:.3g} %": row.mean for row in group.levels}
        sparsest = min(group.levels, key=lambda row: row.density)
        means["test %"] = sparsest.mean
        assert len(shown) >= 2 and all(shown[name] == pytest.approx(means[name]) for name in shown)
        assert f"test % at {100 * sparsest.density:.3g} %" in shown
    assert TABLE.format("0.2") in read(folders[3]).Tags()["scalars"]


@pytest.mark.usefixtures("_quick_figures")
def test_the_board_shows_validation_over_the_steps_of_the_search(tmp_path):
    logs = {0: {10: 80.0, 20: 90.0, 25: 91.0}, 1: {10: 82.0, 20: 94.0}, 2: {10: 87.0, 20: 95.0}}
    for seed, log in logs.items():
        folder = tmp_path / "runs" / f"{seed}"
        folder.mkdir(parents=True)
        rows = [
            {"step": step, "stage": "a", "accuracy/validation": value, "loss/train": 1} for step, value in log.items()
        ]
        lines = [*rows, {"step": 10, "stage": "a", "density/total": 1.0}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    runs = tuple(str(tmp_path / "runs" / f"{seed}") for seed in logs)
    dense, snip, other = few()[0], replace(few()[2], runs=runs), few()[3]
    folders = write_board(make_comparison([replace(dense, runs=runs), snip, other]), tmp_path / "board")
    tag, low, high = STEP.format("0.2"), *ends_of(STEP.format("0.2"))
    events = read(folders[2])
    for step, value, below, above in zip((10, 20), *(scalars(events, name) for name in (tag, low, high)), strict=True):
        values = [log[step] for log in logs.values()]
        interval = confidence_interval(values)
        assert (value[0], below[0], above[0]) == (step, step, step)
        assert np.allclose((value[1], below[1], above[1]), (np.mean(values), *interval))
    assert scalars(read(folders[1]), tag) == scalars(events, tag), "the dense network is in every chart"
    assert scalars(read(folders[1]), STEP.format("0.5")) and not scalars(read(folders[3]), STEP.format("0.5"))


@pytest.mark.usefixtures("_quick_figures")
def test_the_board_leaves_out_curves_of_what_has_no_number_of_weights(tmp_path):
    groups = few()
    groups[3] = replace(groups[3], levels=tuple(replace(row, kept=None) for row in groups[3].levels))
    groups[1] = replace(groups[1], label=OVERVIEW, curve=OVERVIEW)
    groups[2] = replace(groups[2], label=OVERVIEW, curve=OVERVIEW, model="another")
    folders = write_board(make_comparison(groups), tmp_path)
    # That of another network comes last.
    tags = read(folders[3]).Tags()["scalars"]
    assert KEPT not in tags and COST in tags
    assert len(set(folders)) == len(folders) == 5


@pytest.mark.usefixtures("_quick_figures")
def test_the_names_of_entries_are_names_of_folders(tmp_path):
    folders = write_board(make_comparison(CASES["hostile"]), tmp_path)
    assert all(folder.parent == tmp_path and re.fullmatch(r"[A-Za-z0-9=,_.-]+", folder.name) for folder in folders)
    (text,) = read(folders[0]).Tensors(TEXT)
    assert "<script>" not in text.tensor_proto.string_val[0].decode()


def test_single_measurements_that_differ_in_density_are_one_curve():
    comparison = make_comparison(CASES["one"])
    (group,) = (group for group in comparison.groups if group.verdict)
    rows = [replace(row, dense_trainings=1.0) for row in group.levels if row.density < 1]
    single = [replace(group, label=f"imp d{row.density:.3g}", curve="imp", levels=(row,), controls=()) for row in rows]
    figure = draw(make_comparison(single), (), Look())
    (panel,) = figure.axes
    (drawn,) = [line for line in panel.lines if len(line.get_xdata()) == len(rows)]
    assert list(drawn.get_xdata()) == sorted((row.density for row in rows), reverse=True)
    assert next(text.get_text() for text in figure.legends[0].get_texts()) == "imp"


def test_numbers_of_a_file_are_compared_by_themselves(ticket):
    """Those of a study of ours: a ticket that is better than its controls."""
    numbers = Path(__file__).parent.parent / "results" / "frankle2018-lenet.csv"
    answer = ticket("compare", "--with", str(numbers), "--json")
    assert answer.code == 0, answer.err
    (group,) = json.loads(answer.out)["groups"]
    assert (group["method"], group["n"]) == ("imp", 5)
    assert [group["verdict"][key]["answer"] for key in ("matching", "init", "positions", "trivial")] == [
        "yes",
        "yes",
        "yes",
        "no",
    ]
    nothing = ticket("compare")
    assert nothing.code == 2
    assert "expected folders or names of runs, as runs/*, or a CSV file after --with" in nothing.err
