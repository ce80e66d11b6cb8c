"""Methods, scores, data sets and networks of other packages, found by what they declare."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import packages
import pytest
import torch
from method_tests import Searches, checks_of
from processes import check_not_imported
from products import thin

import supermask
from supermask.plugins import entry_points
from supermask.plugins.entry_points import DeclarationError, declarations
from supermask.selection.top_k import count_kept
from supermask.weights.architectures import find_architecture
from ticket_search import Interrupted, RequestError, compare, resume, search, training
from ticket_search.contract.declared import LOOKS_AT_DATA, OWN_SCORES, looks_at_data
from ticket_search.contract.flags import flag, public_fields
from ticket_search.data.sources import SOURCES, find_source, read_arrays, read_samples, source_names
from ticket_search.methods import find_method, method_names, own_methods, usable_methods
from ticket_search.runs.progress import Progress

FAST = {"epochs": 2, "threads": 1, "density": 0.25, "progress": False}


@pytest.fixture
def site(tmp_path_factory, monkeypatch):
    """A folder of installed packages, for this process and those that it starts."""
    folder = tmp_path_factory.mktemp("site")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return folder


@pytest.fixture
def plugged(site):
    """The package of the tests, with one of each kind."""
    packages.install(packages.OTHER_PACKAGE, site)
    return site


METHODS = ["popular", "shrunk"]


# --- found


def test_what_a_package_declares_is_listed_with_its_name(plugged, ticket):
    methods = {row["name"]: row for row in json.loads(ticket("methods", "--json").out)["methods"]}
    assert methods["shrunk"]["package"] == "plugged 1.2"
    assert methods["shrunk"]["paper"] == find_method("shrunk").paper
    assert methods["shrunk"]["when"] == "To find a sparse network whose weights are trained.", (
        "it does not say so itself"
    )
    assert methods["popular"]["when"] == "To find a subnetwork that is good without training its weights."
    assert methods["imp"]["package"] == f"supermask {supermask.__version__}"
    assert set(methods) == {*own_methods(), *METHODS}
    models = {row["name"]: row for row in json.loads(ticket("models", "--json").out)["models"]}
    assert models["plug-net"] == {"name": "plug-net", "factory": "plugged.network:make", "package": "plugged 1.2"}
    data = {row["name"]: row for row in json.loads(ticket("data", "--json").out)["data"]}
    assert data["petals"]["description"] == "900 points in three petals, 16 numbers each."
    assert data["noisy-petals"]["description"].endswith("more noise, 16 numbers each")
    assert set(data) == {*SOURCES, "petals", "noisy-petals"}
    for kind in ("methods", "models", "data"):
        assert "plugged 1.2" in ticket(kind).out
        assert "cannot be used" not in ticket(kind).out


def test_without_other_packages_nothing_is_said_of_packages(ticket):
    for kind in ("methods", "models", "data"):
        shown = ticket(kind)
        assert shown.code == 0
        assert "package" not in shown.out.splitlines()[1] and "\nof " not in shown.out
        assert "refused" not in json.loads(ticket(kind, "--json").out)


@pytest.mark.parametrize("name", METHODS)
def test_help_shows_a_method_of_another_package(name, plugged, ticket):
    shown = ticket("search", "--help")
    assert shown.code == 0
    assert find_method(name).idea in shown.out
    shown = ticket("search", "--method", name, "--help")
    assert shown.code == 0
    assert find_method(name).paper in " ".join(shown.out.split())
    for field in public_fields(find_method(name).Config):
        assert flag(field) in shown.out


@pytest.mark.parametrize("method", ["one-shot", "filters"])
def test_help_lists_the_scores_of_other_packages(method, plugged, ticket):
    shown = " ".join(ticket("search", "--method", method, "--help").out.split())
    choices = re.search(r"--score NAME .*?; one of ([^;]*);", shown)[1].split(", ")
    assert choices[-2:] == ["cube", "gradient"]
    assert choices[0] == "magnitude"


@pytest.mark.parametrize("name", METHODS)
def test_dry_run(name, plugged, ticket, tmp_path):
    plan = json.loads(
        ticket("search", "--method", name, "--model", "plug-net", "--data", "petals", "--dry-run", "--json").out
    )
    assert plan["config"]["method"] == name
    assert plan["weights"] == 16 * 24 + 24 * 3
    assert plan["seconds"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_switch_of_a_foreign_method_takes_no_value(plugged, ticket, tmp_path):
    words = ("search", "--growing", "--method", "shrunk", "--dry-run", "--json")
    assert json.loads(ticket(*words).out)["config"]["growing"] is True
    (tmp_path / "mine.toml").write_text('method = "shrunk"\n')
    words = ("search", "--config", "mine.toml", "--no-growing", "--strength", "0.5", "--dry-run", "--json")
    config = json.loads(ticket(*words).out)["config"]
    assert (config["growing"], config["strength"]) == (False, 0.5)
    refused = ticket("search", "--method", "imp", "--strength", "3")
    assert refused.code == 2
    assert "--strength is a flag of shrunk, not of imp" in refused.err


# --- run


@pytest.mark.parametrize("name", thin(METHODS, 2, 1))
def test_a_search_stopped_and_resumed_is_never_stopped(name, plugged, tmp_path, monkeypatch):
    steps = 0

    def advance_to(self, step):
        nonlocal steps
        steps += 1
        if steps == 17:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "advance_to", advance_to)
    asked = {"model": "plug-net", "data": "petals", **FAST, "epochs": 12}
    with pytest.raises(Interrupted) as stop:
        search(name, runs=tmp_path, **asked)
    run = resume(stop.value.path, progress=False)
    whole = search(name, runs=tmp_path / "whole", **asked)
    assert (run.path / "ticket.safetensors").read_bytes() == (whole.path / "ticket.safetensors").read_bytes()
    assert run.path.name == f"{name}-plug-net-petals-d0.25-s0"
    ticket = supermask.load(run.path / "ticket.safetensors")
    assert ticket.masks.kept == count_kept(0.25, 16 * 24 + 24 * 3)
    assert ticket.model()(torch.zeros(2, 16)).shape == (2, 3)
    assert run.summary["test_accuracy"] > 50


@pytest.mark.parametrize("name", thin(METHODS, 2))
def test_what_holds_for_every_method_holds_for_that_of_a_package(name, plugged, tmp_path):
    # So wide that a ten-thousandth of the weights is one of them.
    searches = Searches(tmp_path, model="plug-net", model_args="width=400", data="petals")
    for check in checks_of(name):
        check(name, searches)


def test_the_command_line_runs_evaluates_and_compares(plugged, ticket):
    shared = ("--model", "plug-net", "--data", "noisy-petals", "--epochs", "2", "--threads", "1")
    for words in (("--method", "shrunk", "--density", "0.5"), ("--method", "popular"), ("--method", "dense")):
        done = ticket("search", *words, *shared)
        assert done.code == 0, done.err
    folders = [str(path) for path in Path("runs").iterdir()]
    found = json.loads(ticket("compare", *folders, "--json").out)
    assert {group["method"] for group in found["groups"]} == {"shrunk", "popular", "dense"}
    for folder in folders:
        evaluated = json.loads(ticket("evaluate", folder, "--json").out)
        assert evaluated["test_accuracy"] == json.loads((Path(folder) / "summary.json").read_text())["test_accuracy"]


@pytest.mark.slow
def test_a_sweep_of_two_processes(plugged, ticket, tmp_path):
    """New processes, not forked ones, find what this one finds."""
    (tmp_path / "many.toml").write_text(
        '[base]\nmodel = "plug-net"\ndata = "petals"\nepochs = 1\n'
        '[grid]\nmethod = ["shrunk", "popular"]\ndensity = [0.5]\n[[runs]]\nmethod = "one-shot"\nscore = "gradient"\ndensity = 0.5\n'
    )
    done = ticket("sweep", "many.toml", "--jobs", "2", "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)["runs"]
    assert sorted(row["method"] for row in rows) == ["one-shot", "popular", "shrunk"]
    assert not compare([row["path"] for row in rows])["left_out"]


def test_a_run_of_a_method_that_is_not_installed_is_left_out_and_said_to_be(plugged, ticket, monkeypatch):
    shared = ("--density", "0.5", "--epochs", "1", "--threads", "1")
    assert ticket("search", "--method", "shrunk", *shared).code == 0
    assert ticket("search", "--method", "snip", *shared).code == 0
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(plugged)])
    folders = sorted(map(str, Path("runs").iterdir()))
    found = json.loads(ticket("compare", *folders, "--json").out)
    assert [group["method"] for group in found["groups"]] == ["snip"]
    assert [line for line in found["left_out"] if "unknown method 'shrunk'" in line] == found["left_out"] != []
    assert ticket("runs", "list").code == 0
    assert ticket("evaluate", folders[0]).code == 0, "the ticket is whole without its method"


# --- scores


@pytest.mark.parametrize("score", ["cube", "gradient"])
def test_prune_by_a_score_of_another_package(score, plugged):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    batches = [(torch.randn(5, 8), torch.arange(5) % 3) for _ in range(3)]
    masks = supermask.prune(model, 0.25, score=score, batches=batches)
    with pytest.raises(ValueError, match=f"unknown score '{score}s'; did you mean '{score}'.*, cube, gradient"):
        supermask.prune(model, 0.25, score=score + "s")
    if score == "cube":
        assert masks == supermask.prune(model, 0.25, score="magnitude")
        return
    total = {name: torch.zeros_like(model.get_parameter(name)) for name in masks}
    for x, y in batches:
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        for name in total:
            total[name] += model.get_parameter(name).grad.abs()
    assert masks == supermask.prune(model, 0.25, score=lambda *_: total)


@pytest.mark.parametrize(("method", "score"), [("one-shot", "cube"), ("one-shot", "gradient"), ("filters", "cube")])
def test_a_method_by_a_score_of_another_package(method, score, plugged, quick):
    flags = {"model": "plug-net", "density": 0.5, "epochs": 1}
    run = quick(method, "foreign", score=score, **flags)
    # A density of filters counts filters: that of weights lies beside it.
    assert run.summary["density"] == pytest.approx(0.5, abs=0.1)
    if score == "cube" and method == "one-shot":
        assert run.ticket.masks == quick(method, "ours", score="magnitude", **flags).ticket.masks


WRONG_SCORES = {
    "shape": ("flat", "1.weight has shape [30, 64], its scores [1920]; 3.weight has shape"),
    "nan": ("nan", "1.weight has 1920 NaN among its 1920 scores"),
    "key": ("raises", "KeyError: 'fc9'"),
}


def flat(model, targets, evidence):
    return {name: target.parameter.abs().flatten() for name, target in targets.items()}


def nan(model, targets, evidence):
    return {name: target.parameter * float("nan") for name, target in targets.items()}


def raises(model, targets, evidence):
    return {"fc9": targets["fc9"]}


def moved(model, targets, evidence):
    """NaN where nothing has moved, as before training."""
    gaps = {name: target.parameter.detach() - evidence.start[name] for name, target in targets.items()}
    return {name: gap.abs() / gap.abs().max() for name, gap in gaps.items()}


@pytest.mark.parametrize("method", ["one-shot", "imp"])
@pytest.mark.parametrize("wrong", WRONG_SCORES)
def test_a_wrong_score_is_told_before_anything_is_trained(wrong, method, site, quick, monkeypatch):
    name, told = WRONG_SCORES[wrong]
    packages.declare(site, "scoring", "1.0", {"supermask.scores": {"mine": f"test_plugins:{name}"}})
    trained = []
    monkeypatch.setattr(training.loop, "train_network", lambda *_, **__: trained.append(1))
    with pytest.raises(RequestError, match=re.escape("--score mine, tried on the initial weights: ")) as error:
        quick(method, model="test_plugins:two_layers", score="mine", density=0.5)
    assert told in str(error.value) and not trained


def test_a_score_that_compares_with_the_start_passes(site, quick):
    packages.declare(site, "scoring", "1.0", {"supermask.scores": {"mine": "test_plugins:moved"}})
    assert quick("one-shot", score="mine", density=0.5, epochs=1).summary["density"] == pytest.approx(0.5)


def two_layers(classes):
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 30), torch.nn.ReLU(), torch.nn.Linear(30, classes)
    )


def test_flags_of_scores(plugged, ticket):
    shared = ("search", "--method", "one-shot", "--dry-run", "--samples-per-class", "3", "--mask-seed", "1")
    assert ticket(*shared, "--score", "gradient").code == 0, "it may look at data"
    refused = ticket("search", "--method", "one-shot", "--score", "cub")
    assert refused.code == 2
    assert "--score cub: expected magnitude, " in refused.err
    assert "did you mean 'cube'?" in refused.err
    assert ticket("search", "--method", "one-shot", "--score", "l1").code == 2, "another word for magnitude"


def test_scores_that_flags_know_are_those_of_the_core():
    from supermask.choosing.scores import SCORES

    assert set(OWN_SCORES) == set(SCORES)
    assert set(LOOKS_AT_DATA) < set(OWN_SCORES)
    assert looks_at_data("snip") and looks_at_data("theirs") and not looks_at_data("magnitude")


# --- data


def test_data_of_another_package(plugged):
    x, y = find_source("petals").read()["train"]
    plain = read_arrays("petals")
    assert np.array_equal(plain.train_x, x) and np.array_equal(plain.train_y, y)
    assert (plain.classes, plain.validation, len(plain.test_y)) == (3, 70, 200)
    noisy = read_samples("noisy-petals", None, 0)
    assert (len(noisy.validation_y), noisy.train_size, noisy.classes, noisy.name) == (100, 600, 3, "noisy-petals")
    with pytest.raises(RequestError, match="unknown data set 'petal'; did you mean 'petals'"):
        read_samples("petal", None, 0)


WRONG_DATA = {
    "raises": ("def read():\n    raise OSError('the disk\\nis gone')", "cannot be read: OSError: the disk is gone"),
    "a number": ("def read():\n    return 3", "data is int, expected \\(x, y\\)"),
    "shapes": (
        "import numpy as np\ndef read():\n    y = np.arange(20) % 2\n"
        "    return {'train': (np.zeros((20, 3)), y), 'test': (np.zeros((20, 4)), y)}",
        "train samples have shape \\(3,\\), test samples \\(4,\\)",
    ),
    "classes": (
        "import numpy as np\nfrom ticket_search.data.arrays import Arrays\ndef read():\n    y = np.arange(20) % 7\n"
        "    return Arrays(np.zeros((20, 3)), y, np.zeros((20, 3)), y, classes=5, validation=0)",
        "classes=5 and the class number 6, .*validation=0, expected some of the 20 training samples",
    ),
    "no function": ("read = 'a file'", "is str, expected a function that reads it"),
    "streamed": (
        "from ticket_search.data.sources import Source\nread = Source('many', print, streamed=True)",
        "is Source, expected a function that reads it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_DATA)
def test_data_that_are_none_are_refused_with_the_package(case, site):
    code, problem = WRONG_DATA[case]
    name = f"wrong_{case.replace(' ', '_')}"
    packages.write(site, **{name: code})
    packages.declare(site, name, "3.0", {"ticket_search.data": {name: f"{name}:read"}})
    with pytest.raises(RequestError, match=f"the data set .?{name}.? of {name} 3.0") as refusal:
        read_samples(name, None, 0)
    assert re.search(problem, str(refusal.value)), refusal.value
    assert "\n" not in str(refusal.value)


# --- refused

KINDS = {
    "method": ("ticket_search.methods", "imp", ("search", "--method")),
    "score": ("supermask.scores", "magnitude", ("search", "--method", "one-shot", "--score")),
    "data set": ("ticket_search.data", "digits", ("search", "--data")),
    "model": ("supermask.models", "conv2", ("search", "--model")),
}
LISTS = {"method": "methods", "data set": "data", "model": "models"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_of_two_packages_is_refused(kind, site, ticket, tmp_path):
    group, _, ask = KINDS[kind]
    packages.declare(site, "left-hand", "1.0", {group: {"twin": "left:twin"}})
    packages.declare(site, "right-hand", "2.0", {group: {"twin": "right:twin"}})
    refused = ticket(*ask, "twin")
    assert refused.code == 2
    assert f"the {kind} 'twin' is declared by left-hand 1.0 and right-hand 2.0" in refused.err
    assert list(tmp_path.iterdir()) == []
    if kind in LISTS:
        (row,) = json.loads(ticket(LISTS[kind], "--json").out)["refused"]
        assert (row["name"], row["package"]) == ("twin", "left-hand 1.0 and right-hand 2.0")


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_of_ours_is_refused(kind, site, ticket):
    group, name, ask = KINDS[kind]
    packages.declare(site, "taker", "1.0", {group: {name: "taker:thing"}})
    refused = ticket(*ask, name)
    assert refused.code == 2
    assert f"the {kind} '{name}' " in refused.err
    assert "supermask" in refused.err and "taker 1.0" in refused.err
    if kind in LISTS:
        shown = json.loads(ticket(LISTS[kind], "--json").out)
        assert [row["name"] for row in shown["refused"]] == [name]
        assert name not in {row["name"] for row in shown[LISTS[kind]]}
        assert len(shown[LISTS[kind]]) > 5, "the others are there"
    if kind == "score":
        with pytest.raises(DeclarationError, match="taker 1.0"):
            supermask.prune(torch.nn.Linear(3, 3), 0.5)


def test_a_ticket_whose_networks_name_means_two_is_refused(site, ticket, monkeypatch):
    assert ticket("search", "--epochs", "1", "--name", "mine").code == 0
    packages.declare(site / "more", "taker", "1.0", {"supermask.models": {"lenet-300-100": "taker:thing"}})
    monkeypatch.syspath_prepend(site / "more")
    refused = ticket("evaluate", "mine")
    assert refused.code == 2
    assert "taker 1.0" in refused.err


@pytest.mark.parametrize("name", ["a/b", "a:b", "..", "", "a b", "\x1b[31mred"])
def test_a_name_that_is_none(name, site, monkeypatch):
    point = entry_points.EntryPoint(name, "x:y", "supermask.scores")
    monkeypatch.setattr(entry_points, "_all_entry_points", lambda path: _Points([point]))
    entry_points._read.cache_clear()
    with pytest.raises(DeclarationError, match="is no name: expected letters") as refusal:
        declarations(entry_points.SCORES)[name].load()
    assert str(refusal.value).isprintable()
    entry_points._read.cache_clear()


class _Points(list):
    def select(self, group):
        return [point for point in self if point.group == group]


def test_reserved_names(site):
    packages.declare(
        site, "taker", "1.0", {"ticket_search.methods": {"train": "t"}, "ticket_search.data": {"arrays": "t"}}
    )
    for find, name in ((find_method, "train"), (find_source, "arrays")):
        with pytest.raises(RequestError, match=f"'{name}' is one of supermask's own, and taker 1.0 declares it too"):
            find(name)


def test_one_package_seen_twice_is_one(site, tmp_path_factory, monkeypatch):
    """As a checkout on the path of what is installed too."""
    other = tmp_path_factory.mktemp("other")
    for place in (site, other):
        packages.declare(place, "same", "1.0", {"supermask.scores": {"once": "builtins:len"}})
    monkeypatch.syspath_prepend(other)
    assert declarations(entry_points.SCORES)["once"].load() is len


BROKEN = {
    "module": ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
    "error": ("raise RuntimeError('line one\\nline two\\n' + 'x' * 900)", "RuntimeError: line one line two xxx"),
    "exit": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "syntax": ("def (", "SyntaxError: invalid syntax"),
}


def break_one(case: str, site: Path) -> tuple[str, str]:
    """A package of which no part can be imported: its name, and why."""
    code, reason = BROKEN[case]
    name = f"broken_{case}"
    packages.write(site, **{name: code})
    packages.declare(site, name, "0.1", {group: {name: f"{name}:thing"} for group, _, _ in KINDS.values()})
    return name, reason


@pytest.mark.parametrize("case", BROKEN)
def test_what_fails_to_import_says_why(case, plugged, ticket):
    name, reason = break_one(case, plugged)
    for kind, (_, _, ask) in KINDS.items():
        refused = ticket(*ask, name)
        assert refused.code == 2, kind
        assert f"the {kind} '{name}' of {name} 0.1 cannot be imported: {reason}" in refused.err
        assert "Traceback" not in refused.err
    for command in LISTS.values():
        (row,) = json.loads(ticket(command, "--json").out)["refused"]
        assert row["name"] == name
        assert "\n" not in row["reason"]
        assert len(row["reason"]) < 400
    assert name in usable_methods()[1]


def test_what_fails_to_import_breaks_nothing_else(plugged, ticket, tmp_path):
    name, reason = break_one("exit", plugged)
    for command in LISTS.values():
        shown = ticket(command)
        assert shown.code == 0
        assert name in shown.out and reason[:20] in shown.out
    shown = ticket("search", "--help")
    assert shown.code == 0
    assert reason[:20] in shown.out
    assert find_method("shrunk").idea in shown.out and find_method("imp").idea in shown.out
    assert ticket("search", "--method", "shrunk", "--help").code == 0
    assert ticket("search", "--method", "one-shot", "--help").code == 0
    assert ticket("search", "--method", "shrunk", "--dry-run").code == 0
    assert "unknown flag --densty" in ticket("search", "--densty", "1").err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["score", "model"])
def test_a_score_or_a_model_that_is_no_function(kind, site):
    group = KINDS[kind][0]
    packages.declare(site, f"constant-{kind}", "1.0", {group: {"pi": "math:pi"}})
    with pytest.raises(ValueError, match=f"the {kind} 'pi' of constant-{kind} 1.0 is float, expected a function"):
        (supermask.scores.find_score if kind == "score" else find_architecture)("pi")


NO_METHOD = {
    "empty": ("", ["it has no Config, TRAITS, plan, search", "its docstring does not open with the idea"]),
    "no paper": ('"""An idea."""', ["its docstring does not open with the idea in one line and the paper after it"]),
    "config": (
        "class Config: pass\nTRAITS = {}\nplan = search = WHEN = 3",
        ["its WHEN is 3, expected one line of text", "no subclass of ticket_search.contract.flags.Config", "its TRAITS are no ticket_search", "its plan is no function", "its search is no function"],
    ),
    "name": (
        "from ticket_search.contract.flags import Config as Shared\nclass Config(Shared):\n    speed: int = 3\n"
        "TRAITS = plan = search = check = None",
        ["the method of its Config is '', expected 'none-name'", "the flags --speed have no description", "its check is no function"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_METHOD)
def test_a_module_that_is_no_method_is_refused_with_all_that_is_wrong(case, site, ticket):
    code, problems = NO_METHOD[case]
    name = f"none-{case.replace(' ', '-')}"
    packages.write(site, **{name.replace("-", "_"): code})
    packages.declare(site, name, "1.0", {"ticket_search.methods": {name: name.replace("-", "_")}})
    refused = ticket("search", "--method", name)
    assert refused.code == 2
    assert f"the method '{name}' of {name} 1.0 is none: " in refused.err
    for problem in problems:
        assert problem in refused.err
    assert ticket("methods").code == ticket("search", "--help").code == 0


# --- trust


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    return search("edge-popup", runs=tmp_path_factory.mktemp("runs"), epochs=1, threads=1, progress=False).path


@pytest.mark.parametrize("word", ["os", "os.path", "antigravity", "planted", "planted:run", "plugged.shrunk", "../imp"])
def test_a_run_folder_names_no_code(word, plugged, ticket, tmp_path, untrained):
    """A method is what is declared or is ours; a module that lies about is not imported."""
    shutil.copytree(untrained, tmp_path / "runs" / "mine")
    packages.write(tmp_path, planted="raise AssertionError('imported')")
    path = tmp_path / "runs" / "mine" / "config.toml"
    for name in ("summary.json", "checksums.json"):
        (tmp_path / "runs" / "mine" / name).unlink()
    path.write_text(path.read_text().replace('"edge-popup"', f'"{word}"'))
    before = set(sys.modules)
    refused = ticket("resume", "mine")
    assert refused.code == 2
    assert f"unknown method '{word}'" in refused.err
    assert {"planted", "antigravity"} & (set(sys.modules) - before) == set()


@pytest.mark.parametrize("name", ["os:system", "builtins:print", "planted:make", "plugged.network:make"])
def test_a_ticket_names_no_code(name, plugged, tmp_path):
    packages.write(plugged, planted="raise AssertionError('imported')")
    masks = supermask.Masks({"weight": torch.ones(2, 2, dtype=torch.bool)})
    states = {"final": supermask.make_state({"weight": torch.ones(2, 2)}, masks)}
    supermask.save(supermask.Ticket(masks, states, {"architecture": {"name": name}}), tmp_path / "ticket")
    with pytest.raises(ValueError, match="is not known here by name"):
        supermask.load(tmp_path / "ticket").model()
    assert "planted" not in sys.modules


# --- speed


def test_entry_points_are_read_once(plugged, ticket, monkeypatch):
    read = []
    real = entry_points.importlib.metadata.entry_points
    monkeypatch.setattr(entry_points.importlib.metadata, "entry_points", lambda: read.append(1) or real())
    entry_points._all_entry_points.cache_clear()
    entry_points._read.cache_clear()
    assert ticket("search", "--method", "shrunk", "--score", "x", "--help").code == 0
    assert ticket("methods").code == ticket("models").code == ticket("data").code == 0
    assert "shrunk" in method_names() and "petals" in source_names()
    supermask.prune(torch.nn.Linear(4, 4), 0.5, score="cube")
    assert len(read) == 1
    monkeypatch.syspath_prepend(plugged.parent)
    assert "shrunk" in method_names()
    assert len(read) == 2, "another path is looked through"


def test_what_other_packages_declare_costs_our_own_methods_no_import_of_torch(site):
    """A method that imports PyTorch is imported where all methods are listed, and where it is asked for: only there."""
    packages.declare(
        site, "heavy", "1.0", {"supermask.scores": {"heavy": "torch:abs"}, "supermask.models": {"heavy": "torch:abs"}}
    )
    check_not_imported("torch", [["--help"], ["search", "--help"], ["methods"], ["search", "--density", "7"]])


def test_a_foreign_method_is_not_imported_for_another(site):
    packages.write(site, loud="import torch")
    packages.declare(site, "loud", "1.0", {"ticket_search.methods": {"loud": "loud"}})
    imp = ["search", "--method", "imp"]
    check_not_imported("loud", [["--help"], [*imp, "--help"], [*imp, "--density", "7"]])
