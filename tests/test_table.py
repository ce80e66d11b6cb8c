"""A table of methods: the measurements of several sweeps, what came of predictions, and the page made of both."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from ticket_search import RequestError
from ticket_search.contract.recipes import find_study
from ticket_search.sweeps.file import Prediction, make_sweep
from ticket_search.sweeps.study import Study, read_study
from ticket_search.sweeps.table import (
    Line,
    choices_as_text,
    dense_values,
    entries_at,
    judge,
    judge_all,
    read_csv,
    table_at,
    write_csv,
)
from ticket_search.sweeps.table import lines_of as lines_of_sweep
from ticket_search.sweeps.table_page import write_table

ONE = Line(
    sweep="a", role="run", model="lenet-300-100", epochs=3, label="snip", method="snip", control="", asked=0.1, seed=0, kept=100, weights=1000,
    effective=90, value=80.0, validation=81.5, trainings=1.0, seconds=30.0, file_bytes=2500, lr=0.01, sampled="", flags="{}",
)  # fmt: skip


def lines_of(values, **changes) -> list[Line]:
    return [replace(ONE, seed=seed, value=value, **changes) for seed, value in enumerate(values)]


@pytest.fixture
def lines() -> list[Line]:
    dense = lines_of([90.0, 91.0, 92.0], label="dense", method="dense", asked=1.0, kept=1000)
    other = {"label": "snip, allocation layerwise", "flags": json.dumps({"allocation": "layerwise"})}
    return [
        *dense, *lines_of([80.0, 82.0, 84.5]), *lines_of([79.9, 82.1, 84.0], **other),
        *lines_of([10.0], role="trial", lr=1.0, validation=9.0), *lines_of([80.0], role="trial"),
        *lines_of([70.0, 71.0, 72.0], role="control", control="shuffle", trainings=None, validation=None, effective=None,
                  file_bytes=None),
        *lines_of([85.0, 86.0], label="bernoulli", method="bernoulli", sweep="b", kept=98),
    ]  # fmt: skip


def test_what_is_written_is_what_is_read_whatever_the_order(lines, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(write_csv(lines))
    assert sorted(map(repr, read_csv(path))) == sorted(map(repr, lines))
    assert write_csv(lines[::-1]) == path.read_text()


@pytest.mark.parametrize("text", ["method,density\nsnip,0.1\n", "", "one word"])
def test_another_file_is_no_table(text, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(RequestError, match=r"a\.csv is no table of methods: it lacks the columns sweep, role, model"):
        read_csv(path)


def test_a_damaged_line_is_named(lines, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(write_csv(lines).replace("2500", "many", 1))
    with pytest.raises(RequestError, match=r"a\.csv: line 5 cannot be read: .*many"):
        read_csv(path)
    with pytest.raises(RequestError, match="none.csv cannot be read"):
        read_csv(tmp_path / "none.csv")


def test_rows_of_the_table_are_means_over_seeds_and_differences_in_pairs(lines):
    entries = entries_at(lines, 0.1)
    assert [entry.label for entry in entries] == ["bernoulli", "snip", "snip, allocation layerwise", "snip: shuffle"]
    assert [len(entry.lines) for entry in entries] == [2, 3, 3, 3], "what was tried is no measurement"
    gaps = [80.0 - 90.0, 82.0 - 91.0, 84.5 - 92.0]
    low, high = stats.t.interval(0.95, 2, statistics.fmean(gaps), stats.sem(gaps))
    row = next(row for row in table_at(lines, 0.1, {"snip": "good"}).splitlines() if row.startswith("| snip |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:7] == [
        "snip",
        "3",
        "3",
        "82.17",
        cells[4],
        f"{statistics.fmean(gaps):+.2f}",
        f"{low:+.2f} to {high:+.2f}",
    ]
    assert cells[7:] == ["1.0", "0.5", "2.5", "0.1000", "0.0900", "0.01", "good"]
    assert dense_values(lines) == {0: 90.0, 1: 91.0, 2: 92.0}


@pytest.mark.parametrize(
    ("gaps", "by", "holds"),
    [
        ((1.0, 1.1, 0.9), "above", True),
        ((1.0, -0.9, 1.0), "above", False),
        ((-1.0, -1.1, -0.9), "above", False),
        ((-0.2, -0.21, -0.19), "not below", True),
        ((-0.6, -0.61, -0.59), "not below", False),
        ((3.0, -2.0, 2.0), "not below", False),
    ],
)
def test_what_comes_of_a_prediction(gaps, by, holds):
    base = [50.0, 60.0, 70.0]
    lines = lines_of(base) + lines_of([b + g for b, g in zip(base, gaps, strict=True)], label="imp", method="imp")
    prediction = Prediction(text="x", better={"method": "imp"}, than={"method": "snip"}, by=by)
    (judged,) = judge(lines, prediction, [0.1])
    low, high = stats.t.interval(0.95, 2, statistics.fmean(gaps), stats.sem(gaps))
    assert judged.found.mean == pytest.approx(statistics.fmean(gaps))
    assert judged.found.interval == pytest.approx((low, high))
    assert judged.holds is holds
    (unknown,) = judge(lines, prediction, [0.5])
    assert unknown.found is None and unknown.holds is None


def test_flags_of_a_prediction_name_one_configuration(lines):
    than = {"method": "snip", "allocation": "layerwise"}
    prediction = Prediction(text="x", better={"method": "bernoulli"}, than=than, densities=(0.1,))
    (judged,) = judge(lines, prediction, [0.02])
    assert (judged.density, judged.found.n) == (0.1, 2)
    with pytest.raises(RequestError, match="fit several configurations: snip; snip, allocation layerwise"):
        judge(lines, Prediction(text="x", better={"method": "snip"}, than=than), [0.1])
    # A flag that is default is not recorded, and names those that do not say it.
    default = Prediction(text="x", better={"method": "snip", "allocation": None}, than=than)
    assert judge(lines, default, [0.1])[0].found.mean == pytest.approx(statistics.fmean((0.1, -0.1, 0.5)))


def test_flags_that_no_label_names_tell_configurations_apart(lines):
    flags = [{"flags": json.dumps({"lr": lr}), "lr": lr} for lr in (0.1, 0.2)]
    pair = [line for own in flags for line in lines_of([50.0, 60.0], label="imp", method="imp", **own)]
    with pytest.raises(RequestError, match=r'fit several configurations: imp \{"lr": 0.1\}; imp \{"lr": 0.2\}'):
        judge(lines + pair, Prediction(text="x", better={"method": "imp"}, than={"method": "bernoulli"}), [0.1])


def test_the_dense_network_stands_beside_any_density(lines):
    layerwise = {"method": "snip", "allocation": "layerwise"}
    predictions = [
        Prediction(text="x", better=layerwise, than={"method": "dense"}, by="not below"),
        Prediction(text="y", better={"method": "bernoulli"}, than={"method": "rigl"}),
    ]
    first, second = judge_all(lines, predictions)
    assert (first.density, first.in_words) == (0.1, "no")
    assert first.found.mean == pytest.approx(statistics.fmean((79.9 - 90.0, 82.1 - 91.0, 84.0 - 92.0)))
    assert second.in_words == "not run"
    alone = Prediction(text="z", better={"method": "snip"}, than={"method": "dense"})
    assert judge(lines[:1] + lines[3:4], alone, [0.1])[0].in_words == "one seed in common"


def test_what_was_tried_is_told(lines):
    row = choices_as_text(lines).splitlines()[-1]
    assert row == "| lenet-300-100 | snip | 3 | 0.1 | 0.01: 81.50, 1: 9.00 | 0.01 |"


def test_what_was_tried_is_told_of_each_network_by_itself(lines):
    tried = [line for line in lines if line.role == "trial"]
    others = [replace(line, model="resnet", lr=2 * line.lr, validation=None) for line in tried[:1]]
    longer = [replace(line, epochs=20, validation=0.0) for line in tried[:1]]
    assert choices_as_text([*tried, *others, *longer]).splitlines()[2:] == [
        "| lenet-300-100 | snip | 3 | 0.1 | 0.01: 81.50, 1: 9.00 | 0.01 |",
        "| lenet-300-100 | snip | 20 | 0.1 | 1: 0.00 | 1 |",
        "| resnet | snip | 3 | 0.1 | 2: - | 2 |",
    ]


BASE = "[base]\nepochs = 1\nmodel_args = 'width=0.1'\noptimizer = 'sgd'\n"
JOINED = """
title = "Two sweeps"
paper = "Nobody, Nothing, 2026"
question = "Which is better?"
hours = 0.1
densities = [0.3]
differs = ["Everything."]
sweeps = ["parts/one.toml", "parts/two.toml"]
[claims]
snip = "the best"
"""
ONE_SWEEP = (
    f"seeds = [0, 1]\ncontrols = ['shuffle']\ncontrols_for = [{{method = 'snip'}}]\n{BASE}"
    "[[grid]]\nmethod = ['snip']\ndensity = [0.3]\n[[runs]]\nmethod = 'dense'\nlr = 0.1\n"
    "[choose]\nlr = [0.1, 1e-6]\n[[predictions]]\ntext = 'snip beats imp'\n"
    "better = {method = 'snip'}\nthan = {method = 'imp'}\n"
)
TWO_SWEEP = f"seeds = [0, 1]\n{BASE}[[runs]]\nmethod = 'imp'\nlevels = [0.6, 0.3]\nlr = 0.1\n"


def test_sweeps_are_joined_from_their_measurements(ticket, tmp_path, monkeypatch, forked):
    monkeypatch.chdir(tmp_path)
    Path("parts").mkdir()
    Path("mine.toml").write_text(JOINED)
    Path("parts/one.toml").write_text(ONE_SWEEP)
    Path("parts/two.toml").write_text(TWO_SWEEP)
    done = ticket("study", "mine.toml", "--sweep", "one")
    assert done.code == 0, done.err
    first = Path("results/mine.md").read_text()
    assert "Not measured yet: two (`ticket study mine --sweep two`)" in first
    assert "| snip beats imp | 0.3 |  |  | not run |" in first
    own = read_csv(Path("results/mine-one.csv"))
    told = sorted((line.role, line.method, line.control, line.seed, line.lr) for line in own)
    assert told == [
        ("control", "snip", "shuffle", 0, 0.1), ("control", "snip", "shuffle", 1, 0.1),
        ("run", "dense", "", 0, 0.1), ("run", "dense", "", 1, 0.1), ("run", "snip", "", 0, 0.1), ("run", "snip", "", 1, 0.1),
        ("trial", "snip", "", 0, 1e-6), ("trial", "snip", "", 0, 0.1),
    ]  # fmt: skip
    for line in own:
        if line.role == "run":
            name = f"{line.method}-lenet-300-100-digits-d{0.3 if line.method == 'snip' else 1}-s{line.seed}"
            name += "-lr-0.1" if line.method == "dense" else ""
            summary = json.loads(Path(f"runs/mine-one/{name}/summary.json").read_text())
            assert (line.value, line.validation, line.kept) == tuple(
                summary[key] for key in ("test_metric", "val_metric", "kept")
            )
            assert line.file_bytes == Path(f"runs/mine-one/{name}/ticket.safetensors").stat().st_size
            assert 0 < line.effective <= line.kept
    Path("runs").rename("elsewhere")  # the page is of the measurements alone
    again = ticket("study", "mine.toml")
    assert again.code == 2 and "mine.md" in again.err and "--overwrite" in again.err
    both = ticket("study", "mine.toml", "--overwrite")
    assert both.code == 0, both.err
    assert not Path("runs/mine-one").exists(), "what is measured is not measured again"
    page = Path("results/mine.md").read_text()
    for text in (
        "# Two sweeps",
        "snip beats imp",
        "| imp | 1 | 2 |",
        "| snip: shuffle | 1 | 2 |",
        "the best",
        "![",
        "Everything.",
    ):
        assert text in page, text
    assert "not run" not in page
    assert {(line.asked, line.trainings) for line in read_csv(Path("results/mine-two.csv"))} == {(0.6, 2.0), (0.3, 3.0)}
    assert Path("results/mine.png").stat().st_size > 2000


def test_a_sweep_beside_the_others_has_tables_where_its_runs_end(tmp_path):
    parts = {name: make_sweep({"seeds": [0], "runs": [{"method": "imp"}]}, name) for name in ("one", "two")}
    parts["two"] = replace(parts["two"], about="Longer trainings")
    study = Study(
        name="mine", title="A", paper="B", question="C?", hours=1.0, delta=None, differs=(), statements=(), published=(),
        claims={}, densities=(0.1,), parts=parts, beside=("two",),
    )  # fmt: skip
    long = {"sweep": "two", "label": "imp", "method": "imp", "flags": json.dumps({"density": 0.1})}
    passed = [line for asked in (0.5, 0.25, 0.1) for line in lines_of([60 + asked, 62 + asked], asked=asked, **long)]
    half = lines_of([50.0], **{**long, "model": "conv4", "asked": 0.5, "flags": "{}"})
    write = {"one": lines_of([70.0, 71.0]), "two": [*passed, *half]}
    for name, lines in write.items():
        (tmp_path / f"mine-{name}.csv").write_text(write_csv(lines))
    write_table(study, tmp_path)
    page = (tmp_path / "mine.md").read_text()
    own = page[page.index("## Longer trainings") : page.index("## How the")]
    assert [line for line in own.splitlines() if "density" in line and not line.startswith("|")] == [
        "conv4, density 0.5:", "lenet-300-100, density 0.1:",
    ]  # fmt: skip
    assert "\n\nimp, test accuracy at the densities before the last: 61.50 % at 0.5, 61.25 % at 0.25.\n\n" in own
    assert own.count("| imp | 3 |") == 2
    assert "imp" not in page[: page.index("## Longer trainings")]


def test_a_network_that_masks_are_put_on_is_named_as_in_the_sweep_whatever_the_machine(quick, tmp_path):
    dense = quick("dense", folder="runs/base")
    flags = {"weights": str(dense.path), "init": "keep", "density": 0.5}
    run = quick("edge-popup", folder="runs/masks", **flags)
    sweep = make_sweep({"seeds": [0], "runs": [{"method": "edge-popup", **flags}]}, "masks")
    (line,) = lines_of_sweep("masks", sweep, [run.path], tmp_path / "runs")
    assert json.loads(line.flags)["weights"] == f"base/{dense.path.name}"
    (line,) = lines_of_sweep("masks", sweep, [run.path], tmp_path / "others")
    assert json.loads(line.flags)["weights"] == str(dense.path), "what lies elsewhere is named in full"


def test_what_a_study_of_sweeps_lacks_is_told(ticket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(JOINED)
    with pytest.raises(RequestError, match=r"one\.toml cannot be read.*two\.toml cannot be read"):
        read_study("mine.toml")
    Path("mine.toml").write_text(JOINED.replace('sweeps = ["parts/one.toml", "parts/two.toml"]', ""))
    with pytest.raises(RequestError, match=r"expected either \[sweep\], or sweeps"):
        read_study("mine.toml")
    wrong = ticket("study", "methods", "--sweep", "edge-pop", "--results", "elsewhere")
    assert wrong.code == 2 and "did you mean 'edge-popup'?" in wrong.err
    none = ticket("study", "mnist1d", "--sweep", "one")
    assert none.code == 2 and "does not join several sweeps" in none.err


def test_a_prediction_of_a_joined_sweep_is_about_runs_of_any_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("parts").mkdir()
    Path("mine.toml").write_text(JOINED)
    Path("parts/one.toml").write_text(ONE_SWEEP.replace("'imp'}", "'imp', sweep = 'two'}"))
    Path("parts/two.toml").write_text(TWO_SWEEP)
    assert read_study("mine.toml").parts["one"].predictions
    Path("parts/two.toml").write_text(
        TWO_SWEEP.replace("'imp'", "'gradual'").replace("levels = [0.6, 0.3]", "density = 0.3")
    )
    with pytest.raises(RequestError, match="the prediction 'snip beats imp', than: no run has method = \"imp\"; "):
        read_study("mine.toml")


def test_the_predictions_of_a_study_that_ships_name_runs_that_it_has():
    study = read_study(find_study("methods"))
    runs = [run for part in study.parts.values() for run in part.runs]
    for part in study.parts.values():
        for prediction in part.predictions:
            for flags in (prediction.better, prediction.than):
                found = [
                    run for run in runs if all(getattr(run.config, key, None) == value for key, value in flags.items())
                ]
                assert found, (prediction.text, flags)
