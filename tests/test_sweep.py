"""Many runs: the file, the names, the processes, and what is left when they are stopped."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from ticket_search import RequestError, RunError, search
from ticket_search.running.controls import controls
from ticket_search.running.request import parse_seeds, read_request
from ticket_search.sweeps.engines import local
from ticket_search.sweeps.engines.engine import Order, run_jobs
from ticket_search.sweeps.engines.jobs import Job
from ticket_search.sweeps.progress import CONTROLS, RUNNING, STARTING, Board, BoardProgress, SweepProgress
from ticket_search.sweeps.sweep import plan_sweep, read_sweep, run_sweep
from ticket_search.sweeps.trials import read_trials, trials_of


@pytest.fixture
def sweep_file(tmp_path, monkeypatch):
    """Write `mine.toml` in an empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        Path("mine.toml").write_text(text)
        return Path("mine.toml")

    return write


def problems_of(path: Path, **flags) -> list[str]:
    with pytest.raises(RequestError) as caught:
        read_sweep(path, **flags)
    assert len(set(caught.value.problems)) == len(caught.value.problems), "no sentence twice"
    return caught.value.problems


@pytest.mark.parametrize(
    ("given", "seeds"),
    [
        ("0-4", (0, 1, 2, 3, 4)), ("0-2,7", (0, 1, 2, 7)), ("3", (3,)), ("5-5", (5,)), (" 1 , 2-3", (1, 2, 3)),
        ([0, 1, 7], (0, 1, 7)), (["0-1", 9], (0, 1, 9)), (12, (12,)),
    ],
)  # fmt: skip
def test_seeds(given, seeds):
    assert parse_seeds(given) == seeds


@pytest.mark.parametrize(
    "given", ["", "4-0", "-1", "a", "1,", "1.5", [], [True], [0.5], {}, "0-100000", "9" * 30, "1,1", "0-3,2"]
)
def test_seeds_that_are_none(given):
    with pytest.raises(RequestError, match="--seeds .*: (expected seeds, as 0-4 or 0-2,7|. is given twice)"):
        parse_seeds(given)


def test_every_problem_of_a_sweep_is_told_at_once(sweep_file, tmp_path):
    path = sweep_file("""
        sedes = "0-4"
        epochs = 3
        seeds = "4-0"
        controls = ["reinint"]
        [base]
        seed = 3
        batchsize = 3
        sparsity = 0.5
        config = "lenet-impp"
        [base.impp]
        lr = 1
        [base.imp]
        method = "imp"
        rewind = "soon"
        [grid]
        method = ["imp", "snip"]
        density = 0.3
        lr = []
        [[runs]]
        method = "dense"
        rewind = "100it"
        density = "all"
        [[runs]]
        method = "denze"
        """)
    found = problems_of(path)
    expected = [
        "unknown key 'sedes'; did you mean 'seeds'? The keys are about, base",
        "epochs is a flag of the runs: it belongs in [base]",
        "seeds 4-0: expected seeds",
        "unknown control 'reinint'; did you mean 'reinit'?",
        "seeds, and seed in [base]: give one of them",
        "unknown flag --batchsize; did you mean '--batch-size'?",
        "unknown flag --sparsity",
        "unknown recipe 'lenet-impp'; did you mean 'lenet-imp-2018'?",
        "[base.impp]: unknown method 'impp'; did you mean 'imp'?",
        "[base.imp] method: it belongs in [base]",
        "--rewind soon: expected steps or epochs",
        "grid.density 0.3: expected a list of values, as density = [0.3]",
        "grid.lr []: expected a list of values",
        "--rewind is a flag of imp, one-shot, not of dense (in the run method=dense rewind=100it density=all)",
        "--density 'all': expected a number",
        "unknown method 'denze'; did you mean 'dense'?",
    ]  # fmt: skip
    for sentence in expected:
        assert any(problem.startswith(sentence) for problem in found), (sentence, found)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "mine.toml"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[base]\ndensity = 0.5\n[[runs]]\nmethod = 'snip'\n[[runs]]\nmethod = 'dense'", "--density 0.5: expected a number greater than or equal to 1 (in the run method=dense)"),
        ("[grid]\nlr = [0.1, 0.1]", "the run edge-popup-lenet-300-100-digits-d0.5-s0 is there twice"),
        ("[grid]\nmethod = ['imp']\n[[runs]]\nmethod = 'imp'\nepochs = 12", "is there twice, as imp-lenet-300-100-digits-d0.1-s0 too"),
        ("[grid]\ndensity = [0.12345678, 0.12345679]", "two runs would lie in the folder edge-popup-lenet-300-100-digits-d0.123457-s0"),
        ("seeds = 1\n[grid]\nseed = [0, 1]", "seeds, and seed in [grid] or [[runs]]: give one of them"),
        ("control_levels = [3]", "control_levels goes with controls"),
        ("controls_on = 'mnist1d'", "controls_on goes with controls"),
        ("controls = ['reinit']\ncontrols_on = 'mnist1'", "unknown data set 'mnist1'; did you mean 'mnist1d'?"),
        ("base = 3", "base 3: expected a table"),
        ("[runs]\nlr = 0.1", "runs {'lr': 0.1}: expected a list"),
        ("controls = 'reinit'", "controls 'reinit': expected a list"),
        ("[base]\nname = 'mine'", "--name is a flag of ticket search"),
        ("[base]\nlr = '0.1'", "--lr '0.1': expected a number or true or false, without quotes"),
        ("[base]\nmethod = 5", "unknown method '5'"),
        ("lr = = 3", "cannot be read as TOML"),
    ],
)  # fmt: skip
def test_files_that_are_none(text, problem, sweep_file):
    (found,) = problems_of(sweep_file(text))
    assert problem in found


def test_a_missing_file(tmp_path):
    (found,) = problems_of(tmp_path / "none.toml")
    assert "cannot be read" in found


def test_the_grid_is_every_combination_and_the_listed_runs_stand_beside_it(sweep_file):
    path = sweep_file("""
        about = "Rates and densities."
        seeds = "0-1,5"
        controls = ["reinit", "shuffle"]
        control_levels = [3, 5]
        controls_on = "kmnist"
        [base]
        epochs = 4
        [base.imp]
        rewind = "5it"
        [grid]
        method = ["imp", "magnitude-at-init"]
        density = [0.1, 0.25]
        lr = [1e-3, 0.01]
        flip = [true, false]
        [[runs]]
        method = "dense"
        epochs = 7
        """)
    sweep = read_sweep(path)
    assert (sweep.name, sweep.about) == ("mine", "Rates and densities.")
    assert (sweep.controls, sweep.control_levels, sweep.controls_on) == (("reinit", "shuffle"), (3, 5), "kmnist")
    expected = []
    for method, density, lr, flip in itertools.product(
        ["imp", "magnitude-at-init"], [0.1, 0.25], [1e-3, 0.01], [True, False]
    ):
        for seed in (0, 1, 5):
            name = f"{method}-lenet-300-100-digits-d{density}-s{seed}-lr-{lr}-flip-{'true' if flip else 'false'}"
            expected.append(
                (name, {"method": method, "density": density, "lr": lr, "flip": flip, "seed": seed, "epochs": 4})
            )
    expected += [(f"dense-lenet-300-100-digits-d1-s{seed}-epochs-7", {"method": "dense", "seed": seed, "epochs": 7}) for seed in (0, 1, 5)]  # fmt: skip
    assert [run.name for run in sweep.runs] == [name for name, _ in expected]
    for run, (_, values) in zip(sweep.runs, expected, strict=True):
        assert {key: getattr(run.config, key) for key in values} == values
        assert getattr(run.config, "rewind", None) == ("5it" if values["method"] == "imp" else None)
        assert run.config.threads == 1
    assert sweep.runs[0].configuration == "imp-lenet-300-100-digits-d0.1-lr-0.001-flip-true"


def test_a_recipe_gives_first_values_and_the_threads_are_one_unless_told(sweep_file):
    path = sweep_file(
        "[base]\nconfig = 'lenet-imp-2018'\ndata = 'digits'\nseed = 4\n[[runs]]\nepochs = 3\n[[runs]]\nmethod = 'dense'\nconfig = 'mine-2.toml'"
    )
    Path("mine-2.toml").write_text("lr = 0.5\nmethod = 'imp'\n")
    first, second = read_sweep(path).runs
    assert (first.config.method, first.config.fraction, first.config.epochs, first.config.data) == (
        "imp",
        0.2,
        3,
        "digits",
    )
    assert (second.config.method, second.config.lr) == ("dense", 0.5)
    assert {run.config.seed for run in (first, second)} == {4}
    assert {run.config.threads for run in (first, second)} == {1}
    assert {run.config.threads for run in read_sweep(path, threads=3).runs} == {3}
    path.write_text("[base]\nthreads = 2")
    assert read_sweep(path).runs[0].config.threads == 2


def test_problems_of_this_machine_are_told_at_once_too(sweep_file, tmp_path):
    path = sweep_file("""
        [grid]
        exclude = ["fc9", "fc1"]
        [[runs]]
        model = "nothing:make"
        data = "nowhere:load"
        [[runs]]
        method = "imp"
        warmup = "600it"
        [[runs]]
        method = "snip"
        """)
    taken = tmp_path / "runs/mine/snip-lenet-300-100-digits-d0.1-s0"
    taken.mkdir(parents=True)
    (taken / "cat.png").write_bytes(b"x")
    with pytest.raises(RequestError) as caught:
        plan_sweep(read_sweep(path, code={"model": "nothing:make", "data": "nowhere:load"}))
    expected = [
        "no parameter fits 'fc9'",
        "there is no module nowhere",
        "there is no module nothing",
        "--warmup 600it",
        "is not a run",
    ]
    assert len(caught.value.problems) == len(expected)
    for part in expected:
        assert any(part in problem for problem in caught.value.problems), (part, caught.value.problems)
    for jobs, runs in ((0, "runs"), (1, path)):
        with pytest.raises(RequestError, match="--jobs 0: expected a number|is a file, expected a folder"):
            plan_sweep(read_sweep(path, code={"model": "nothing:make", "data": "nowhere:load"}), runs, jobs)


SMALL = """
seeds = [0, 3]
[base]
epochs = 1
evaluate_every = "10it"
model_args = "width=0.1"
[base.imp]
rewind = "5it"
fraction = 0.3
[grid]
method = ["imp", "edge-popup"]
density = [0.5]
[[runs]]
method = "dense"
"""


def tickets_in(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/ticket.safetensors")}


@pytest.mark.slow
def test_a_sweep_gives_the_bytes_of_single_searches_and_redoes_nothing(sweep_file, ticket, monkeypatch, forked):
    path = sweep_file(SMALL)
    planned = json.loads(ticket("sweep", str(path), "--dry-run", "--json").out)
    assert not Path("runs").exists()
    assert [(row["configuration"], row["runs"], row["done"], row["steps"]) for row in planned["configurations"]] == [
        ("imp-lenet-300-100-digits-d0.5", 2, 0, 2 * (21 + 2 * 16)),
        ("edge-popup-lenet-300-100-digits-d0.5", 2, 0, 2 * 10),
        ("dense-lenet-300-100-digits-d1", 2, 0, 2 * 21),
    ]
    assert planned["steps"] == sum(run["steps"] for run in planned["runs"])
    assert 0 < planned["seconds"] == pytest.approx(3600 * planned["hours"])

    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    done = ticket("sweep", str(path), "--jobs", "2")
    assert done.code == 0, done.err
    assert "warning: 2 jobs of 1 thread on 1 core slow" in done.err
    assert "6 runs, 0 of them done: 168 steps" in done.out
    assert "ticket compare runs/mine/*" in done.out
    assert len(re.findall(r"^\d of 6  finished  \S+  test \d", done.err, re.MULTILINE)) == 6
    both = tickets_in(Path("runs/mine"))
    assert set(both) == {run["name"] for run in planned["runs"]}

    path.write_text(f"controls = ['reinit', 'shuffle']\ncontrol_levels = [2, 9]\n{SMALL}")
    result = run_sweep(read_sweep(path), "alone", progress=False)
    assert (len(result.finished), result.failures, result.interrupted) == (6, {}, False)
    assert tickets_in(Path("alone/mine")) == both
    for folder in result.finished:
        kept = folder / "controls.json"
        rows = json.loads(kept.read_text())["rows"] if kept.exists() else []
        level = 2 if folder.name.startswith("imp") else None
        kinds = [] if folder.name.startswith("dense") else ["reinit", "shuffle"]
        assert [(row["control"], row["level"]) for row in rows] == [(kind, level) for kind in kinds]
    path.write_text(SMALL)
    for method, seed in itertools.product(["imp", "edge-popup", "dense"], [0, 3]):
        own = {"density": 0.5, "rewind": "5it", "fraction": 0.3} if method == "imp" else {}
        flags = {"epochs": 1, "evaluate_every": "10it", "threads": 1, "model_args": "width=0.1", **own}
        run = search(method, runs="single", progress=False, seed=seed, **flags)
        assert both[run.path.name] == (run.path / "ticket.safetensors").read_bytes()

    before = {file: file.stat().st_mtime_ns for file in Path("runs").rglob("*")}
    again = ticket("sweep", str(path), "--jobs", "2", "--json")
    assert again.code == 0, again.err
    found = json.loads(again.out)
    assert len(found["runs"]) == 6
    assert found["failures"] == {}
    path.write_text(SMALL.replace("epochs = 1", "epochs = 2"))
    other = ticket("sweep", str(path))
    assert other.code == 2
    assert other.err.count("is another one (--epochs 1 there, 2 here): choose another --runs") == 6
    assert {file: file.stat().st_mtime_ns for file in Path("runs").rglob("*")} == before


CHOICE = """
seeds = [3, 0]
[base]
epochs = 1
evaluate_every = "10it"
model_args = "width=0.1"
optimizer = "sgd"
[[grid]]
method = ["snip", "edge-popup"]
density = [0.5, 0.25]
[[grid]]
method = ["imp"]
levels = [[0.6, 0.4]]
[[runs]]
method = "dense"
lr = 0.02
[choose]
lr = [1e-6, 0.1, 1e10]
[choose.imp]
lr = [0.1, 1e-6]
batch_size = [60, 100]
[choose.at]
density = 0.25
"""


def test_what_is_chosen_and_by_which_runs(sweep_file):
    sweep = read_sweep(sweep_file(CHOICE))
    told = [
        (run.config.method, run.config.density, run.config.seed, len(run.options), run.decides) for run in sweep.runs
    ]
    assert told == [
        ("snip", 0.5, 3, 3, False), ("snip", 0.5, 0, 3, False), ("snip", 0.25, 3, 3, True), ("snip", 0.25, 0, 3, False),
        ("edge-popup", 0.5, 3, 3, False), ("edge-popup", 0.5, 0, 3, False),
        ("edge-popup", 0.25, 3, 3, True), ("edge-popup", 0.25, 0, 3, False),
        ("imp", 0.4, 3, 4, True), ("imp", 0.4, 0, 4, False), ("dense", 1.0, 3, 0, False), ("dense", 1.0, 0, 0, False),
    ]  # fmt: skip
    assert [dict(option.values) for option in sweep.runs[0].options] == [{"lr": lr} for lr in (1e-6, 0.1, 1e10)]
    assert [dict(option.values) for option in sweep.runs[8].options] == [
        {"lr": 0.1, "batch_size": 60}, {"lr": 0.1, "batch_size": 100},
        {"lr": 1e-6, "batch_size": 60}, {"lr": 1e-6, "batch_size": 100},
    ]  # fmt: skip
    for run in sweep.runs:
        for option in run.options:
            assert {key: getattr(option.run.config, key) for key, _ in option.values} == dict(option.values)
            assert option.run.config.seed == run.config.seed
    trials = trials_of(sweep)
    assert (trials.name, len(trials.runs), trials.controls) == ("mine-choice", 10, ())
    assert trials_of(read_sweep(sweep_file(SMALL))) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[choose]\nlr = 0.1", "choose.lr 0.1: expected a list of two or more different values"),
        ("[choose]\nlr = [0.1]", "choose.lr [0.1]: expected a list of two or more different values"),
        ("[choose.denze]\nlr = [0.1, 0.2]", "[choose.denze]: unknown method 'denze'; did you mean 'dense'?"),
        ("[choose]\nat = 3\nlr = [0.1, 0.2]", "choose.at 3: expected a table of flags"),
        ("[choose.at]\ndensity = 0.1", "[choose.at] goes with candidates in [choose]"),
        ("[choose]\nseed = [1, 2]", "choose.seed: the choice is made at the first seed"),
        ("[choose]\nlr = [0.1, -1.0]", "--lr -1.0: expected"),
        ("[choose]\nrate = [0.1, 1.0]", "unknown flag --rate"),
        ("[choose]\nlr = [0.1, 1.0]\n[choose.at]\ndensity = 0.3\n[grid]\ndensity = [0.1, 0.2]", "[choose.at] density = 0.3: none of the runs"),
        ("controls_for = [{method = 'imp'}]", "controls_for goes with controls"),
        ("controls = ['shuffle']\ncontrols_for = [{method = 'imp'}]", "controls_for {'method': 'imp'}: no run has method = \"imp\"; there is"),
        ("[[grid]]\nlr = 3", "grid.lr 3: expected a list of values, as lr = [3]"),
        ("grid = 3", "grid 3: expected a table of lists, [grid], or several of them, [[grid]]"),
        ("[[predictions]]\ntext = 'x'", "predictions.0.better is missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_choice(text, problem, sweep_file):
    assert any(found.startswith(problem) for found in problems_of(sweep_file(text))), problems_of(sweep_file(text))


PREDICTED = """
[[grid]]
method = ["snip"]
density = [0.1, 0.2]
[[grid]]
method = ["imp"]
levels = [[0.5, 0.2]]
rewind = ["0", "5it"]
[[runs]]
method = "edge-popup"
density = 0.3
[[runs]]
method = "dense"
[choose.snip]
lr = [0.01, 0.1]
[[predictions]]
text = "so"
"""


@pytest.mark.parametrize(
    ("sides", "problem"),
    [
        ("better = {method = 'snip'}\nthan = {method = 'imp', rewind = '0'}", ""),
        ("better = {method = 'snip', lr = 0.1}\nthan = {method = 'dense'}\ndensities = [0.2]", ""),
        ("better = {method = 'snap'}\nthan = {method = 'dense'}", ", better: no run has method = \"snap\"; did you mean 'snip'?; there is \"snip\", \"imp\", \"edge-popup\", \"dense\""),
        ("better = {method = 'snip'}\nthan = {metod = 'dense'}", ", than: no run has a flag metod; did you mean 'method'?"),
        ("better = {method = 'snip'}\nthan = {method = 'imp', rewind = '6it'}", ", than: of the runs with method = \"imp\" none has rewind = \"6it\"; did you mean '5it'?; there is \"0\", \"5it\""),
        ("better = {method = 'snip', lr = 0.2}\nthan = {method = 'dense'}", ", better: of the runs with method = \"snip\" none has lr = 0.2; there is 0.01, 0.1"),
        ("better = {method = 'snip'}\nthan = {method = 'imp'}", ", than: several configurations have these flags, as imp-lenet-300-100-digits-d0.2-levels-0.5-0.2-rewind-0 and imp-lenet-300-100-digits-d0.2-levels-0.5-0.2-rewind-5it: add what tells them apart, as rewind"),
        ("better = {method = 'snip'}\nthan = {method = 'dense'}\ndensities = [0.3]", ", better: no run with method = \"snip\" is at density 0.3; there is 0.2, 0.1"),
        ("better = {method = 'snip'}\nthan = {method = 'edge-popup'}", ": its two sides have no density in common, they are at 0.2, 0.1 and 0.3"),
    ],
)  # fmt: skip
def test_a_prediction_is_about_runs_that_are_there(sides, problem, sweep_file):
    path = sweep_file(PREDICTED + sides)
    assert ([] if not problem else problems_of(path)) == ([f"the prediction 'so'{problem}"] if problem else [])
    assert problem or len(read_sweep(path).predictions) == 1


def test_runs_that_are_there_twice_are_told_with_all_else(sweep_file):
    runs = "[[runs]]\nmethod = 'imp'\n" * 2 + "[[runs]]\nmethod = 'snip'\nlr = -1.0\n" * 2
    wrong = "[[predictions]]\ntext = 'so'\nbetter = {lr = -1.0}\nthan = {method = 'rigl'}\n"
    found = problems_of(sweep_file("[base]\nepochs = 0\n" + runs.replace("'imp'\n", "'imp'\nepochs = 3\n") + wrong))
    expected = (
        "--epochs 0: expected", "--lr -1.0: expected", "the run imp-lenet-300-100-digits-d0.1-s0-epochs-3 is there twice",
        "the run method=snip lr=-1.0 is there twice", "the prediction 'so', than: no run has method = \"rigl\"",
    )  # fmt: skip
    assert len(found) == len(expected), found
    for sentence in expected:
        assert any(problem.startswith(sentence) for problem in found), (sentence, found)


def test_a_study_is_no_sweep_and_a_sweep_no_study(ticket, tmp_path):
    Path("one.toml").write_text("[base]\nepochs = 1\n")
    assert (
        ticket("study", "one.toml").err
        == "error: one.toml is a sweep, and no study: `ticket sweep one.toml` carries it out\n"
    )
    assert (
        ticket("sweep", "mnist1d").err
        == "error: mnist1d is a study of this package: `ticket study mnist1d` carries it out\n"
    )
    Path("two.toml").write_text("title = 'x'\n[sweep]\nseeds = [0]\n")
    assert (
        ticket("sweep", "two.toml").err
        == "error: two.toml is a study, and no sweep: `ticket study two.toml` carries it out\n"
    )


def test_only_some_runs_are_controlled(sweep_file):
    text = "controls = ['shuffle']\ncontrols_for = [{method = 'snip', density = 0.2}, {method = 'imp'}]\n"
    sweep = read_sweep(
        sweep_file(text + "[[grid]]\nmethod = ['snip', 'gradual']\ndensity = [0.1, 0.2]\n[[runs]]\nmethod = 'imp'")
    )
    assert [sweep.controls_of(run.config) for run in sweep.runs] == [(), ("shuffle",), (), (), ("shuffle",)]


def test_the_best_on_validation_is_run_with_every_seed_and_nothing_is_done_twice(sweep_file, ticket, forked):
    path = sweep_file(
        "seeds = [3, 0]\n[base]\nepochs = 1\nmodel_args = 'width=0.1'\noptimizer = 'sgd'\nmethod = 'snip'\n"
        "[choose]\nlr = [1e-6, 0.1, 1e10]"
    )
    done = ticket("sweep", str(path), "--jobs", "2", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    (choice,) = found["choices"]
    said = [
        json.loads(Path(f"runs/mine-choice/snip-lenet-300-100-digits-d0.1-s3-lr-{rate}/summary.json").read_text())
        for rate in (1e-6, 0.1)
    ]
    assert [candidate["values"]["lr"] for candidate in choice["candidates"]] == [1e-6, 0.1, 1e10]
    assert [candidate["validation"] for candidate in choice["candidates"]] == [
        *(row["val_metric"] for row in said),
        None,
    ]
    assert said[0]["val_metric"] < said[1]["val_metric"]
    assert choice["best"] == 1
    assert sorted(row["name"] for row in found["runs"]) == [
        "snip-lenet-300-100-digits-d0.1-s0",
        "snip-lenet-300-100-digits-d0.1-s3-lr-0.1",
    ]
    tried, run = Path(choice["folder"]), Path("runs/mine/snip-lenet-300-100-digits-d0.1-s3")
    assert tried.name == "snip-lenet-300-100-digits-d0.1-s3-lr-0.1"
    assert {file.name: file.read_bytes() for file in run.iterdir()} == {
        file.name: file.read_bytes() for file in tried.iterdir()
    }, "what was tried is not run again"
    before = {file: file.stat().st_mtime_ns for file in Path("runs/mine").rglob("ticket.safetensors")}
    again = ticket("sweep", str(path), "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["choices"] == found["choices"]
    assert {file: file.stat().st_mtime_ns for file in Path("runs/mine").rglob("ticket.safetensors")} == before

    tell_what_is_left(ticket, path, run)


def tell_what_is_left(ticket, path: Path, tried: Path) -> None:
    """Check what a plan says of the finished sweep, one of whose candidates has failed, and of less and less of it."""
    plan = ticket("sweep", str(path), "--dry-run").out
    assert "3 trials at the first seed come first, 2 of them done: 21 steps" in plan, "what has failed is tried again"
    assert "2 runs, 2 of them done: 0 steps. In all about" in plan
    path.write_text(path.read_text().replace(", 1e10]", "]"))
    plan = ticket("sweep", str(path), "--dry-run").out
    assert "all of the 2 trials at the first seed are done" in plan
    assert "All of the 2 runs are done: nothing is left to do. Nothing was written." in plan
    path.write_text("controls = ['shuffle']\n" + path.read_text())
    assert (
        "2 runs, 2 of them done: 0 steps, and the controls shuffle after each run"
        in ticket("sweep", str(path), "--dry-run").out
    )
    for folder in tried.parent.iterdir():
        controls(folder, ["shuffle"], progress=False)
    again = ticket("sweep", str(path))
    assert "All of the 2 runs are done, and so are the controls shuffle: nothing is left to do." in again.out
    assert "finished" not in again.err, "no process looks at what is done"
    path.write_text(path.read_text().replace("controls = ['shuffle']", "controls = ['shuffle', 'reinit']"))
    assert "2 runs, 2 of them done: 0 steps, and" in ticket("sweep", str(path), "--dry-run").out
    path.write_text(path.read_text().replace("controls = ['shuffle', 'reinit']", ""))
    shutil.rmtree(tried)
    assert "All of the 2 runs are done" in ticket("sweep", str(path), "--dry-run").out, "its trial will be copied"
    shutil.rmtree(tried.with_name(tried.name.replace("-s3", "-s0")))
    plan = json.loads(ticket("sweep", str(path), "--dry-run", "--json").out)
    assert [(row["done"], row["steps"]) for row in plan["configurations"]] == [(1, 21)]
    assert (plan["trials"]["done"], plan["trials"]["steps"]) == (2, 0)


def test_a_choice_of_nothing_that_works_is_an_error(sweep_file):
    sweep = read_sweep(sweep_file("[base]\nmethod = 'dense'\n[choose]\nlr = [1e10, 1e11]"))
    with pytest.raises(RunError, match=r"dense-lenet-300-100-digits-d1: every candidate of \[choose\] has failed"):
        read_trials(sweep)


MODELS = """
import os
from torch import nn

class Fails(nn.Sequential):
    count = 0
    def forward(self, x):
        self.count += self.training
        if self.count > 15:
            FAIL
        return super().forward(x)

def fails(classes):
    return Fails(nn.Flatten(), nn.Linear(64, classes))
"""
FAILING = """
[base]
method = "dense"
epochs = 1
evaluate_every = "10it"
[grid]
model = ["MODULE:fails", "lenet-300-100"]
[[runs]]
method = "snip"
density = 0.5
"""


def write_models(module: str, statement: str, calls: int = 15) -> str:
    """A module of a network that does something when it is trained once more than so many times; the sweep's file."""
    Path(f"{module}.py").write_text(MODELS.replace("FAIL", statement).replace("15", str(calls)))
    return FAILING.replace("MODULE", module)


def test_a_run_that_fails_is_told_and_the_others_finish(sweep_file, ticket, forked):
    path = sweep_file(write_models("raising", "raise RuntimeError('no more')"))
    name = "dense-raising-fails-digits-d1-s0"
    own = ("--model", "raising:fails")
    done = ticket("sweep", str(path), *own, "--jobs", "2")
    assert done.code == 1, done.err
    assert f"failed: {name}: RuntimeError: no more (the whole message is in runs/mine/{name}/failure.txt)" in done.err
    assert "in forward" in Path(f"runs/mine/{name}/failure.txt").read_text()
    assert len(tickets_in(Path("runs/mine"))) == 2
    assert name not in done.out.partition("test %")[2]

    write_models("raising", "pass")
    # This process has imported the module as it was; those of the sweep are new.
    again = ticket("sweep", str(path), *own, "--json")
    assert again.code == 0, again.err
    assert len(json.loads(again.out)["runs"]) == 3
    assert not list(Path("runs/mine").rglob("failure.txt"))


@pytest.mark.slow
def test_a_run_that_kills_its_process_takes_no_other_with_it(sweep_file, forked):
    path = sweep_file("seeds = '0-2'\n" + write_models("killing", "os.kill(os.getpid(), 9)"))
    result = run_sweep(read_sweep(path, code={"model": "killing:fails"}), jobs=2, progress=False)
    died = "its process died twice: killed, or out of memory?"
    assert result.failures == {f"dense-killing-fails-digits-d1-s{seed}": died for seed in range(3)}
    assert len(result.finished) == 6
    assert not result.interrupted


def test_a_step_that_fails_is_told_before_anything_starts(sweep_file):
    path = sweep_file(write_models("early", "raise KeyError('oh')", calls=2))
    with pytest.raises(RequestError, match="dense-early-fails-digits-d1: a step of training raises KeyError: 'oh'"):
        plan_sweep(read_sweep(path, code={"model": "early:fails"}))


TICKET = [sys.executable, "-m", "ticket_search"]
OWN = ("--model", "slowly:network")
LONG = "seeds = '0-2'\n[base]\nmethod = 'edge-popup'\nmodel = 'slowly:network'\nepochs = 20\n"


def children_of(process: int) -> set[int]:
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    pairs = [(int(text.split()[0]), int(text.rpartition(")")[2].split()[1])) for text in stats]
    return {child for child, parent in pairs if parent == process}


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start_and_stop(path: Path, runs: str, stop) -> tuple[subprocess.Popen, str]:
    """A sweep of two jobs, stopped in the middle of its first runs; nothing that it has started is left."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    Path("slowly").touch()
    process = subprocess.Popen(
        [*TICKET, "sweep", str(path), *OWN, "--jobs", "2", "--runs", runs], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: len(list(Path(runs).glob("mine/*/state.pt"))) == 2 or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        children = children_of(process.pid)
        assert len(children) >= 2
        stop(process)
        _, err = process.communicate(timeout=60)
        wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    finally:
        process.kill()
        Path("slowly").unlink()
    return process, err


SLOW_TO_START = """
import multiprocessing, time
from torch import nn
if multiprocessing.parent_process() is not None:
    time.sleep(60)
def network(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""


def test_processes_that_start_are_ended_at_once(sweep_file, forked):
    path = sweep_file("[base]\nmethod = 'dense'\nmodel = 'slow_to_start:network'\n[grid]\nseed = [0, 1]")
    Path("slow_to_start.py").write_text(SLOW_TO_START)
    sweep = read_sweep(path, code={"model": "slow_to_start:network"})
    jobs = [Job(place, f"runs/{run.name}", run.config) for place, run in enumerate(sweep.runs)]
    board, stopped = Board(2), []
    shows = SweepProgress(["one", "two"], [100, 100], board)
    shows.console = Console(file=io.StringIO(), width=100)

    def stop() -> None:
        wait_for(lambda: board.read(0)[0] == STARTING)
        stopped.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    others = children_of(os.getpid())
    thread = threading.Thread(target=stop)
    thread.start()
    assert run_jobs(local, Order(jobs, 2, board, shows)) == {}
    assert time.monotonic() - stopped[0] < 4
    thread.join()
    assert (
        shows.console.file.getvalue().count("no run has begun to train, so that the processes which start are ended")
        == 1
    )
    assert children_of(os.getpid()) <= others
    assert not Path("runs").exists()


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    for seed in range(3):
        search("edge-popup", "slowly:network", epochs=20, seed=seed, threads=1, runs=folder, progress=False)
    return tickets_in(folder)


def to_the_group(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGINT)


def to_the_first_process(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGTERM)


def killed(process: subprocess.Popen) -> None:
    process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [to_the_group, to_the_first_process, killed])
def test_a_stopped_sweep_leaves_runs_that_go_on_to_the_same_bytes(stop, sweep_file, never_stopped, forked):
    path = sweep_file(LONG)
    process, err = start_and_stop(path, "stopped", stop)
    if stop is not killed:
        assert process.returncode == 130, err
        assert "stopped; continue with:\n  ticket sweep mine.toml --model slowly:network --jobs 2 --runs stopped" in err
        assert "Traceback" not in err
        assert err.count("stopping: each run ends after the step that it is at") == 1
    assert len(list(Path("stopped").glob("mine/*/state.pt"))) == 2
    assert not list(Path("stopped").glob("mine/*/summary.json")), "stopped too late to tell anything"
    again = run_sweep(read_sweep(path, code={"model": "slowly:network"}), "stopped", jobs=2, progress=False)
    assert not again.interrupted
    assert tickets_in(Path("stopped/mine")) == never_stopped


def test_seeds_of_a_search_lie_beside_other_runs(ticket, tmp_path, forked):
    other = search("dense", epochs=2, threads=1, seed=1, runs="runs", progress=False)
    words = ("search", "--method", "dense", "--epochs", "1", "--seeds", "0-1")
    assert re.search(r"dense-lenet-300-100-digits-d1 +2 ", ticket(*words, "--dry-run").out)
    done = ticket(*words, "--jobs", "2")
    assert done.code == 0, done.err
    paths = ["runs/dense-lenet-300-100-digits-d1-s0", f"{other.path}-2"]
    assert f"ticket compare {' '.join(paths)}" in done.out
    assert {json.loads((Path(path) / "summary.json").read_text())["seed"] for path in paths} == {0, 1}
    again = json.loads(ticket(*words, "--json").out)
    assert [row["path"] for row in again["runs"]] == paths
    assert set(again) == {"runs"}
    assert len(list(Path("runs").iterdir())) == 3


@pytest.mark.parametrize(
    ("words", "problems"),
    [
        ("--seeds 0-1 --seed 3 --name x --lr 0", ["--seed 3 and --seeds 0-1: give one of them", "--name x names one run", "--lr 0:"]),
        ("--seeds 3-1", ["--seeds 3-1: expected seeds"]),
        ("--jobs 2", ["--jobs 2 goes with --seeds"]),
        ("--seeds 0-1 --jobs 0", ["--jobs 0: expected a number of runs"]),
        ("--seeds 0-1 --jobs two", ["--jobs two: expected a number of runs"]),
        ("--seeds", ["--seeds needs a value, as --seeds 0-4"]),
    ],
)  # fmt: skip
def test_seeds_that_do_not_go_with_a_search(words, problems):
    with pytest.raises(RequestError) as caught:
        read_request(words.split())
    assert len(caught.value.problems) == len(problems)
    for problem, expected in zip(sorted(caught.value.problems), sorted(problems), strict=True):
        assert problem.startswith(expected)


def shown(terminal: bool) -> tuple[SweepProgress, Board]:
    board = Board(3)
    shows = SweepProgress(["one", "two", "three"], [100, 100, 0], board)
    shows.console = Console(file=io.StringIO(), force_terminal=terminal, width=100, legacy_windows=False)
    return shows, board


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_shown_of_a_sweep(terminal):
    shows, board = shown(terminal)
    with shows:
        board.enter(0, RUNNING)
        board.enter(2, CONTROLS)
        report = BoardProgress(board, 0)
        report.advance_to(30)
        report.numbers({"accuracy/validation": 91.5, "loss/train": 3.0})
        plain = Console(file=io.StringIO(), width=100)
        plain.print(shows._render())
        table = plain.file.getvalue()
        assert re.search(r"one +30 of 100 +validation 91.5\nthree +controls *\n2 running, 1 waiting", table)
        assert "15 %" in table
        shows.ended(0, "finished", "test 90.00 %  1.0 s")
        shows.ended(1, "failed", "oh")
    written = shows.console.file.getvalue()
    assert "1 of 3  finished  one  test 90.00 %  1.0 s\n" in written.replace("\r", "")
    assert "2 of 3  failed  two  oh" in written
    assert ("\x1b[" in written) == terminal


def test_controls_on_data_of_another_shape_are_said_in_the_plan(tmp_path, small_mnist1d):
    path = tmp_path / "many.toml"
    path.write_text('controls = ["reinit"]\ncontrols_on = "mnist1d"\n[base]\nmethod = "snip"\nepochs = 1\n')
    with pytest.raises(
        RequestError, match=r"controls_on mnist1d: samples of shape \[40\].* fit \[1, 8, 8\] in 10 classes"
    ):
        plan_sweep(read_sweep(path), tmp_path / "runs")


def test_controls_that_cannot_be_are_said_before_anything_starts(tmp_path):
    path = tmp_path / "many.toml"
    base = '[base]\nmethod = "snip"\ndensity = 0.5\ngranularity = "2:4"\nallocation = "layerwise"\n'
    path.write_text(f'controls = ["shuffle"]\n{base}')
    with pytest.raises(RequestError) as error:
        read_sweep(path)
    assert any("keeps units of 2:4" in problem for problem in error.value.problems)
    path.write_text('controls = ["shuffle"]\n[base]\nmethod = "gradual"\n')
    with pytest.raises(RequestError, match="controls: gradual-.* prunes while it trains"):
        read_sweep(path)


def test_what_makes_a_run_doubtful_is_told_by_a_sweep(sweep_file, ticket, forked):
    """Tried: a sweep of dead networks printed their accuracies and no word."""
    sweep_file(
        "seeds = '0'\n[base]\nmethod = 'random'\ndensity = 0.0005\nepochs = 1\ntrain_size = 160\nmodel_args = ['width=0.2']\n"
    )
    answer = ticket("sweep", "mine.toml")
    assert answer.code == 0 and "  warning: fc3.weight keeps none of its" in answer.err
