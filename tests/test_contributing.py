"""What CONTRIBUTING.md shows is done as it says: here, and in a package of others."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import packages
import pytest
import torch
from method_tests import Searches, checks_of

import supermask
from supermask.selection.top_k import count_kept

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = dict(re.findall(r"```python (\S+)\n(.*?)```", TEXT, re.DOTALL))
METHOD, SCORE = "ticket_search/methods/grown.py", "supermask/choosing/scores.py"
DATA, COMMAND = "ticket_search/data/sums.py", "ticket_search/cli/layers.py"
SUMS = 8 * 300 + 300 * 100 + 100 * 2  # weights of LeNet-300-100 on these data


def test_every_example_is_executed():
    assert list(BLOCKS) == [METHOD, SCORE, DATA, COMMAND]
    assert TEXT.count("```python") == len(BLOCKS)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of this project with what the examples add."""
    folder = tmp_path_factory.mktemp("house")
    for package in ("supermask", "ticket_search"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (METHOD, DATA, COMMAND):
        assert not (folder / path).exists()
        (folder / path).write_text(BLOCKS[path])
    (line,) = re.findall(r'`("sums": Source\(.*\))`', TEXT)
    edits = [
        (SCORE, "SCORES: Mapping[str, Score] = {\n", f'{BLOCKS[SCORE]}\n\nSCORES: Mapping[str, Score] = {{\n    "lamp": lamp,\n'),
        ("ticket_search/contract/declared.py", "OWN_SCORES = (", 'OWN_SCORES = ("lamp", '),
        ("ticket_search/data/sources.py", "SOURCES = {\n", f"SOURCES = {{\n    {line},\n"),
        ("ticket_search/data/__init__.pyi", "from . import arrays", "from . import sums as sums\nfrom . import arrays"),
        ("ticket_search/cli/__init__.py", "    bench,\n    card,\n", "    bench,\n    card,\n    layers,\n"),
        ("ticket_search/cli/__init__.py", "\nsearch.add_to(app)\n", "\nsearch.add_to(app)\nlayers.add_to(app)\n"),
    ]  # fmt: skip
    for path, place, with_it in edits:
        text = (folder / path).read_text()
        assert text.count(place) == 1, (path, place)
        (folder / path).write_text(text.replace(place, with_it))
    return folder


def carry_out(house: Path, folder: Path, *commands: str) -> list[str]:
    """What each `ticket` command prints, in one process of the copied project; its pictures stay blank, no search is announced."""
    script = """
import contextlib, io, json, sys
from pictures import leave_blank
from ticket_search.runs.loggers import tensorboard
tensorboard.draw = leave_blank
from ticket_search.cli import main, search
search._carry_out_announced = lambda run: search.running.search.carry_out(run)
printed = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["ticket", *words]
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            main()
        except SystemExit as stop:
            assert not stop.code, (words, stop.code)
    printed.append(shown.getvalue())
print(json.dumps(printed))
"""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(house), str(ROOT / "tests")]),
        "COLUMNS": "200",
        "OMP_NUM_THREADS": "1",
    }
    answer = subprocess.run(
        [sys.executable, "-c", script, json.dumps([command.split() for command in commands])],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


@pytest.mark.slow  # a process that imports all anew: what another package adds is met in every run
def test_what_is_added_here(house, tmp_path):
    methods, helped, dense, again, scored, layers, data = carry_out(
        house, tmp_path,
        "methods --json",
        "search --method grown --help",
        "search --method grown --data sums --epochs 2 --density 0.25 --threads 1 --json",
        "search --method grown --data sums --epochs 2 --density 0.25 --threads 1 --name again --json",
        "search --method one-shot --score lamp --data sums --epochs 1 --threads 1 --json",
        "layers grown-lenet-300-100-sums-d0.25-s0",
        "data --json",
    )  # fmt: skip
    row = next(row for row in json.loads(methods)["methods"] if row["name"] == "grown")
    assert row["package"] == f"supermask {supermask.__version__}"
    assert row["paper"].startswith("Zhou et al.") and row["paper"] in " ".join(helped.split())
    summary = json.loads(dense)
    assert summary["kept"] == count_kept(0.25, SUMS)
    assert summary["test_accuracy"] > 80
    assert summary["cost"]["dense_trainings"] == 2
    assert json.loads(again)["test_accuracy"] == summary["test_accuracy"]
    assert json.loads(scored)["kept"] == count_kept(0.1, SUMS)
    assert "fc1.weight" in layers
    assert {"name": "sums", "description": "2,000 vectors of 8 numbers, 2 classes"}.items() <= next(
        row for row in json.loads(data)["data"] if row["name"] == "sums"
    ).items()


@pytest.fixture
def theirs(tmp_path_factory, monkeypatch):
    """A package with the same, declared as the example declares it."""
    site = tmp_path_factory.mktemp("site")
    groups = tomllib.loads(re.search(r"```toml\n(.*?)```", TEXT, re.DOTALL)[1])["project"]["entry-points"]
    packages.declare(site, "their-package", "0.3", groups)
    packages.write(
        site / "their_package",
        __init__="",
        grown=BLOCKS[METHOD],
        scores="import torch\n" + BLOCKS[SCORE],
        sums=BLOCKS[DATA],
        network="""
            from torch import nn
            def make(input_shape, classes):
                return nn.Sequential(nn.Linear(*input_shape, 32), nn.ReLU(), nn.Linear(32, classes))
        """,
    )
    monkeypatch.syspath_prepend(site)
    yield site
    for name in [name for name in sys.modules if name.partition(".")[0] == "their_package"]:
        del sys.modules[name]


def test_what_another_package_adds(theirs, ticket):
    for kind, name in (("methods", "grown"), ("data", "sums"), ("models", "their-net")):
        row = next(row for row in json.loads(ticket(kind, "--json").out)[kind] if row["name"] == name)
        assert row["package"] == "their-package 0.3"
    shared = ("--data", "sums", "--model", "their-net", "--threads", "1", "--json")
    done = ticket("search", "--method", "grown", "--density", "0.25", "--epochs", "2", *shared)
    assert done.code == 0, done.err
    assert json.loads(done.out)["kept"] == count_kept(0.25, 8 * 32 + 32 * 2)
    done = ticket("search", "--method", "one-shot", "--score", "lamp", "--density", "0.25", "--epochs", "1", *shared)
    assert done.code == 0, done.err


def test_the_method_is_what_a_method_must_be(theirs, tmp_path):
    # So wide that a ten-thousandth of the weights is one of them.
    searches = Searches(tmp_path, data="sums", model_args="width=0.6", train_size=640)
    for check in checks_of("grown"):
        check("grown", searches)


def test_the_score_is_what_its_paper_says(theirs):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3))
    scores = supermask.scores.find_score("lamp")(model, supermask.find_targets(model), None)
    for name, found in scores.items():
        weight = model.get_parameter(name).detach()
        expected = [float(w**2) / sum(float(v**2) for v in weight.flatten() if v**2 >= w**2) for w in weight.flatten()]
        torch.testing.assert_close(found.flatten(), torch.tensor(expected))
