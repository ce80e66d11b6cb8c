"""A request is checked once, by whatever way it comes and wherever it is carried out; its problems are told at once."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest
from torch import nn

from ticket_search import Interrupted, RequestError, controls, resume, search, train
from ticket_search.contract.errors import RAISED, Problems, command_line
from ticket_search.contract.flags import Config, make_config
from ticket_search.methods import method_names
from ticket_search.running.request import LAUNCH_FLAGS, check_request, read_request, request_of
from ticket_search.running.search import prepare
from ticket_search.sweeps.file import make_sweep, sweep_of_seeds
from ticket_search.sweeps.sweep import run_sweep

QUICK = {"epochs": 1, "threads": 1}


@pytest.fixture
def checks(monkeypatch):
    """The method of each configuration that is checked, in order."""
    made: list[str] = []
    check = Config.model_validate.__func__

    def count(cls, values, **rest):
        made.append(values["method"])
        return check(cls, values, **rest)

    monkeypatch.setattr(Config, "model_validate", classmethod(count))
    return made


def stop_at_the_first_step(monkeypatch) -> None:
    from ticket_search.runs.progress import Progress

    monkeypatch.setattr(Progress, "advance_to", lambda self, step: os.kill(os.getpid(), signal.SIGINT))


def test_a_search_of_the_shell_is_checked_once(ticket, checks):
    words = ("search", "--method", "dense", "--epochs", "1", "--threads", "1")
    assert ticket(*words).code == 0
    assert checks == ["dense"]
    assert ticket(*words, "--dry-run").code == 0
    assert ticket("search", "--config", "lenet-imp-2018", "--data", "digits", "--dry-run").code == 0
    assert checks == ["dense", "dense", "imp"]


def test_a_search_in_python_and_the_training_of_its_ticket_are_checked_once_each(checks, tmp_path):
    flags = {**QUICK, "runs": tmp_path, "progress": False}
    run = search("snip", density=0.5, **flags)
    assert checks == ["snip"]
    train(run.path, seed=1, **flags)
    assert checks == ["snip", "train"]


def test_a_training_of_the_shell_is_checked_once(ticket, checks):
    assert ticket("search", "--method", "snip", "--density", "0.5", "--epochs", "1", "--name", "mine").code == 0
    assert ticket("train", "mine", "--seed", "1", "--threads", "1").code == 0
    assert checks == ["snip", "train"]


def test_a_resumed_run_is_checked_when_it_is_read(checks, monkeypatch, tmp_path):
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as stop:
        stop_at_the_first_step(patch)
        search("dense", **QUICK, runs=tmp_path, progress=False)
    assert resume(stop.value.path, progress=False).finished
    assert checks == ["dense"] * 2


def test_the_controls_of_a_run_are_checked_once_each(checks, tmp_path):
    run = search("edge-popup", **QUICK, runs=tmp_path, progress=False)
    controls(run.path, kinds=["reinit", "shuffle", "random"], progress=False)
    assert checks == ["edge-popup"] * 2, "the run as it was made, and as it was read"
    controls(run.path, kinds=["ticket", "reinit"], survivors=True, progress=False)
    assert checks == ["edge-popup"] * 3 + ["train"] * 2


# The processes of a sweep run this file again, under another name: what is counted here is counted there too.
COUNTING = """
import os
from pathlib import Path
from ticket_search.contract.flags import Config

check = Config.model_validate.__func__

def count(cls, values, **rest):
    with Path("checks.txt").open("a") as file:
        file.write(f"{__name__} {values['method']}\\n")
    return check(cls, values, **rest)

Config.model_validate = classmethod(count)

if __name__ == "__main__":
    from ticket_search import read_sweep, run_sweep
    result = run_sweep(read_sweep("many.toml"), jobs=1, progress=False)
    assert not result.failures, result.failures
    print(len(result.finished))
"""


@pytest.mark.slow  # imports PyTorch three times
def test_a_sweep_checks_each_configuration_once_and_its_processes_none(tmp_path):
    (tmp_path / "many.toml").write_text(
        "seeds = '0-1'\n[grid]\nlr = [0.1]\n[base]\nmethod = 'dense'\nepochs = 1\nmodel_args = 'width=0.1'\n"
    )
    (tmp_path / "count.py").write_text(COUNTING)
    command = [sys.executable, "count.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 2
    lines = (tmp_path / "checks.txt").read_text().splitlines()
    assert lines == ["__main__ dense"]


def test_searches_with_several_seeds_are_checked_once(checks):
    words = ["--method", "snip", "--seeds", "0-4", "--density", "0.3", "--lr", "0.01"]
    sweep = sweep_of_seeds(read_request(words))
    assert checks == ["snip"]
    assert [run.config.seed for run in sweep.runs] == [0, 1, 2, 3, 4]
    assert {run.config.threads for run in sweep.runs} == {1}
    assert {run.config.threads for run in sweep_of_seeds(read_request([*words, "--threads", "3"])).runs} == {3}


def test_the_controls_of_several_seeds_follow_each_of_them():
    words = ["--method", "imp", "--seeds", "5-6", "--levels", "0.5,0.2", "--controls", "reinit,shuffle"]
    sweep = sweep_of_seeds(read_request([*words, "--control-levels", "1"]))
    assert sweep.controls == ("reinit", "shuffle") and sweep.control_levels == (1,)
    assert sweep_of_seeds(read_request(words)).control_levels == ()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--method imp --controls reinit", "--controls goes with --seeds: after a single search it is `ticket controls RUN`"),
        ("--method imp --seeds 0-1 --control-levels 1", "--control-levels goes with --controls"),
        ("--method dense --seeds 0-1 --controls reinit", "a run of dense has no mask to control"),
        ("--method imp --seeds 0-1 --controls reinint", "did you mean 'reinit'"),
        ("--method imp --seeds 0-1 --controls reinit --control-levels 0", "expected numbers from 1 on"),
        ("--method filters --seeds 0-1 --controls shuffle", "would move single weights"),
    ],
)  # fmt: skip
def test_controls_that_cannot_follow_are_refused_before_the_first_search(words, problem):
    with pytest.raises(RequestError, match=re.escape(problem)):
        read_request(words.split())


def test_what_a_request_holds():
    words = "--config lenet-imp-2018 --data digits --lr 0.01 --sparsity 0.9 --name x --json"
    request = read_request(words.split())
    assert request.method.name == request.config.method == "imp"
    assert (request.model, request.data) == ("lenet-300-100", "digits") == (request.config.model, request.config.data)
    assert (request.config.lr, request.config.density, request.config.fraction) == (0.01, 0.1, 0.2)
    assert request.given == {"data", "lr", "density"}, "what was typed, and not what the recipe says"
    assert request.asks("--json") and not request.asks("--dry-run")
    assert request.launch["--name"] == "x"


@pytest.mark.parametrize("name", [*method_names(), "train"])
def test_a_configuration_comes_to_another_process_as_it_is_and_unchecked(name, checks):
    request = check_request(name, "lenet-300-100", "digits", {"epochs": 3, "lr": "0.25"})
    there = pickle.loads(pickle.dumps(request.config))
    assert there == request.config
    assert type(there) is type(request.config)
    again = request_of(there)
    assert (again.config, again.model, again.data) == (request.config, "lenet-300-100", "digits")
    assert again.method.name == name
    assert checks == [name]


def make_small(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def test_a_request_of_ones_own_objects(tmp_path):
    request = check_request("imp", make_small, ([[1.0]], [0]), {"density": 0.5}, model_name="mine:make")
    assert (request.model, request.config.model, request.config.data) == (make_small, "mine:make", "arrays")
    assert request.config.init == "keep", "the weights of one's own network are kept"
    assert check_request("edge-popup", make_small, "digits", {}, model_name="m:f").config.init == "signed-constant"
    config, setup = prepare(check_request("dense", make_small, "digits", {}, model_name=f"{__name__}:make_small"))
    assert config.device in ("cpu", "cuda") and config.threads >= 1
    assert setup.architecture["name"] == f"{__name__}:make_small"
    assert request_of(config, make_small).model is make_small


def test_what_this_machine_does_not_have_is_told_at_once():
    flags = {"device": "mps", "loss": "somewhere:loss"}
    with pytest.raises(RequestError) as caught:
        prepare(check_request("dense", "nowhere:make", "elsewhere:load", flags))
    words = ("--device mps: this machine has", "no module elsewhere", "no module nowhere", "no module somewhere")
    for problem, expected in zip(caught.value.problems, words, strict=True):
        assert expected in problem


# --- problems, collected


def fail(*sentences: str):
    raise RequestError(sentences)


def test_problems_are_collected_in_order_and_told_once():
    problems = Problems()
    problems.raise_if_any()
    assert problems.attempt(lambda: 3) == 3
    problems.add("first")
    assert problems.attempt(lambda: fail("second", "third")) is None
    problems.attempt(lambda: fail("first", "fourth"))
    problems.add("third", "fifth", "fifth")
    with pytest.raises(RequestError) as caught:
        problems.raise_if_any()
    assert caught.value.problems == ["first", "second", "third", "fourth", "fifth"]
    assert str(caught.value) == "first; second; third; fourth; fifth"


@pytest.mark.parametrize(
    "error", [ValueError("no request"), KeyError("x"), OSError(), KeyboardInterrupt(), SystemExit(3)]
)
def test_nothing_but_a_wrong_request_is_collected(error):
    problems = Problems()

    def work() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        problems.attempt(work)
    assert caught.value is error
    assert problems.found == []


def test_a_fault_of_our_own_is_not_taken_for_a_wrong_request(monkeypatch, tmp_path):
    """Of the places that collect problems, none swallows another error."""
    from ticket_search.running import request
    from ticket_search.running import search as searching
    from ticket_search.sweeps import counting
    from ticket_search.sweeps import sweep as sweeping

    class FaultError(RuntimeError):
        pass

    def broken(*args, **kinds):
        raise FaultError

    asked = check_request("dense", "lenet-300-100", "digits", QUICK)
    table = {"base": {"method": "dense", "epochs": 1}}
    made = make_sweep(table, "many")
    for module, name, call in (
        (request, "make_config", lambda: check_request("dense", "lenet-300-100", "digits", {})),
        (request, "make_config", lambda: read_request([])),
        (request, "make_config", lambda: make_sweep(table, "many")),
        (request, "find_recipe", lambda: read_request(["--config", "lenet-imp-2018"])),
        (searching, "load_data", lambda: prepare(asked)),
        (counting, "load_data", lambda: run_sweep(made, tmp_path)),
        (sweeping, "inspect_folder", lambda: run_sweep(made, tmp_path)),
    ):
        with monkeypatch.context() as patch, pytest.raises(FaultError):
            patch.setattr(module, name, broken)
            call()


# --- the words


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("epochs", "many", "a whole number"),
        ("epochs", 1.5, "a whole number"),
        ("epochs", 0, "a number greater than or equal to 1"),
        ("label_smoothing", 1, "a number less than 1"),
        ("lr", [1], "a number"),
        ("clip", "nan", "a finite number"),
        ("flip", "perhaps", "true or false"),
        ("data_dir", 3, "text"),
        ("include", 3, "a list"),
        ("milestones", "1,x", "a whole number"),
        ("warmup", "soon", "steps or epochs, like 500it or 2ep, or 0"),
        ("optimizer", "adm", "'sgd', 'adam' or 'adamw'; did you mean 'adam'?"),
        ("device", "quantum", "'auto', 'cpu', 'cuda' or 'mps'"),
        ("device", 3, "'auto', 'cpu', 'cuda' or 'mps'"),
    ],
)
def test_what_was_expected_in_place_of_a_value(field, value, words):
    with pytest.raises(RequestError) as caught:
        check_request("dense", "lenet-300-100", "digits", {field: value})
    (problem,) = caught.value.problems
    assert problem.startswith(f"--{field.replace('_', '-')} ")
    assert problem.endswith(f": expected {words}")


class Falling(Config):
    """A method's own check, in its own words."""

    powers: tuple[float, ...] = ()

    @pydantic.field_validator("powers")
    @classmethod
    def _check(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if value != tuple(sorted(value, reverse=True)):
            raise ValueError("powers fall from level to level")
        return value


def test_the_words_of_a_methods_own_check_are_left_as_they_are():
    with pytest.raises(RequestError, match=r"^--powers \[1, 2\]: powers fall from level to level$"):
        make_config(Falling, {"powers": [1, 2]})


@pytest.mark.parametrize("flag", LAUNCH_FLAGS)
def test_every_launch_flag_is_described_in_words(flag):
    described = LAUNCH_FLAGS[flag][1]
    assert len(described.split()) >= 4
    assert not described.endswith(".") and "so many" not in described


@pytest.mark.parametrize("field", Config.model_fields)
def test_every_shared_flag_is_described_in_words(field):
    described = Config.model_fields[field].description or ""
    assert len(described.split()) >= 2, described
    assert described[0].islower() and not described.endswith("."), "a phrase: help joins it with choices and default"
    assert "so many" not in described


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
def test_a_network_that_does_not_take_the_samples_is_told_in_a_line(kind, tmp_path):
    class Picky(nn.Linear):
        def forward(self, x):
            raise kind("height (8) doesn't match model (64)")

    with pytest.raises(RequestError, match=r"does not take samples of shape \[1, 8, 8\]: .*height \(8\)"):
        search("one-shot", lambda: Picky(8, 10), runs=tmp_path, epochs=1, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_command_to_type_takes_any_path():
    assert command_line("resume", Path("runs/a run")) == "ticket resume 'runs/a run'"
    assert str(Interrupted("runs/it's")) == """stopped; `ticket resume 'runs/it'"'"'s'` goes on"""
