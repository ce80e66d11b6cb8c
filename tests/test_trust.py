"""Code is imported for whoever asks for it and for runs that were made here; a folder from elsewhere imports nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import stat
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
import torch
import typer
from torch import nn
from typer.core import TyperGroup

import supermask
import ticket_search
from ticket_search import Interrupted, RequestError, controls, resume, search
from ticket_search.cli import app
from ticket_search.contract.flags import Config
from ticket_search.contract.leave import FLAGS, Leave, can_be_typed, leave_here, refuse
from ticket_search.data.factories import find_factory, load_factory
from ticket_search.runs.progress import Progress
from ticket_search.trust import key, mark

# Small: 2 classes of 8 numbers, and a network of 4 x 8 + 2 x 4 weights.
MINE = """
import torch
from torch import nn

def build(input_shape, classes, width=1.0):
    units = max(1, round(4 * width))
    return nn.Sequential(nn.Linear(input_shape[0], units), nn.ReLU(), nn.Linear(units, classes))

def load():
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    return x, (x.sum(1) > 0).long()

def loss(outputs, targets):
    return nn.functional.multi_margin_loss(outputs, targets)

def metric(outputs, targets):
    return 0.5 * (outputs.argmax(1) == targets).float()
"""
OWN = {"model": "mine:build", "data": "mine:load", "loss": "mine:loss", "metric": "mine:metric"}
TYPED = [word for flag, name in OWN.items() for word in (f"--{flag}", name)]
QUICK = {"epochs": 1, "batch_size": 60, "threads": 1, "progress": False, "density": 0.5}


@pytest.fixture(autouse=True)
def _fresh_modules() -> Iterator[None]:
    """Modules of the tests' own, which are other files in every test, are forgotten after it."""
    yield
    for name in ("mine", "evil", "other"):
        sys.modules.pop(name, None)


def forget() -> None:
    """Be another process, as far as the user's modules go."""
    sys.modules.pop("mine", None)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with the user's module, in which commands are typed."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mine.py").write_text(MINE)
    monkeypatch.chdir(folder)
    # Changed within a second to as many characters, it would not be read again.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return folder


@pytest.fixture
def made(project, monkeypatch) -> Path:
    """A finished run with the user's own model, data, loss and metric; the working folder is another by now."""
    run = search("imp", **OWN, runs="runs", name="own", fraction=0.5, init="kaiming-normal", **QUICK)
    (project.parent / "elsewhere").mkdir()
    monkeypatch.chdir(project.parent / "elsewhere")
    forget()
    return run.path.resolve() if run.path.is_absolute() else project / run.path


def stopped(monkeypatch, method: str = "imp", after: int = 1, **flags) -> Path:
    """A run that was stopped by a signal, after so many steps."""
    steps = iter(range(10**6))

    def stop(self, step):
        if next(steps) == after:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(Interrupted) as caught:
        patch.setattr(Progress, "advance_to", stop)
        search(method, **{**QUICK, "runs": "runs", "name": "stopped", **flags})
    forget()
    return Path(caught.value.path).resolve()


# --- a hostile run folder imports nothing, in any command

EVIL = {flag: f"evil:{flag}" for flag in FLAGS}
EVIL_CODE = "import pathlib\npathlib.Path({place!r}).touch()\ndef model(): pass\ndata = loss = metric = model\n"
# The words after each command; None where there is nothing to name a run, a ticket or a file by.
HOSTILE: dict[str, list[list[str]] | None] = {
    "search": [["--config", "evil.toml"], ["--config", "evil.toml", "--seeds", "0-1"], ["--config", "evil.toml", "--dry-run"]],
    "sweep": [["sweep.toml"], ["sweep.toml", "--dry-run"], ["controls-on.toml"]],
    "study": [["study.toml"], ["study.toml", "--dry-run"]],
    "train": [["runs/finished"], ["runs/finished/ticket.safetensors"], ["runs/finished/levels/01/ticket.safetensors"]],
    "resume": [["runs/stopped"], ["runs/finished"], ["runs/trained"]],
    "runs list": [[]],
    "runs rm": [["runs/trained", "--yes"]],
    "evaluate": [["runs/finished"], ["runs/finished/ticket.safetensors"]],
    "inspect": [["runs/finished"], ["runs/finished/ticket.safetensors"], ["runs/finished", "--activations"]],
    "export": [["runs/finished", "--to", to, "--output", f"{to}.out"] for to in ("onnx", "torch-export", "compact", "npz")],
    "bench": [["runs/finished", "--engines", "eager", "--seconds", "0.01"], ["runs/finished", "--data", "digits"]],
    "controls": [["runs/finished"], ["runs/finished", "--on", "digits"], ["runs/finished", "--controls", "small-dense"]],
    "connect": [["runs/finished", "--rewind", "0"], ["runs/finished", "runs/trained"]],
    "diagnose": [["runs/finished"], ["runs/finished", "--try"]],
    "signs": [["runs/finished"]],
    "compare": [["runs/finished", "runs/trained"], ["runs/finished", "--masks"]],
    "card": [["runs/finished"], ["runs/finished/ticket.safetensors", "--with", "runs/trained"]],
    "push": [["runs/finished", "hf:me/mine", "--dry-run"]],
    "methods": None,
    "models": None,
    "data": None,
    "doctor": None,
}  # fmt: skip
# What reads records and files of tensors only, and so goes on without the code.
NEEDS_NONE = ("inspect", "runs list", "runs rm", "compare", "card", "push")


def all_commands() -> list[str]:
    found = []
    for name, command in typer.main.get_command(app).commands.items():
        found += [f"{name} {inner}" for inner in command.commands] if isinstance(command, TyperGroup) else [name]
    return sorted(found)


def test_every_command_is_tried_on_a_hostile_folder():
    assert all_commands() == sorted(HOSTILE)


@pytest.fixture(scope="module")
def hostile_template(tmp_path_factory) -> Path:
    """Runs whose files name code, as someone may send them: finished, stopped, and the training of a ticket."""
    place = tmp_path_factory.mktemp("hostile")
    flags = {**QUICK, "runs": place / "runs", "model_args": ("width=0.1",)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        finished = search("imp", name="finished", fraction=0.5, **flags)
        shutil.copytree(finished.path, place / "runs" / "trained")
        halted = stopped(patch, name="stopped", runs=place / "runs", model_args=("width=0.1",))
    for folder in (finished.path, place / "runs" / "trained", halted):
        config = tomllib.loads((folder / "config.toml").read_text())
        (folder / "config.toml").write_text(tomli_w.dumps({**config, **EVIL}))
        for path in folder.glob("**/ticket.safetensors"):
            found = supermask.load(path)
            meta = {**found.meta, "model": EVIL["model"], "data": EVIL["data"]}
            meta["config"] = {**found.meta["config"], **EVIL}
            meta["architecture"] = {**found.meta["architecture"], "name": EVIL["model"]}
            supermask.save(supermask.Ticket(found.masks, found.states, meta), path, overwrite=True)
        if (folder / "summary.json").exists():
            summary = json.loads((folder / "summary.json").read_text())
            (folder / "summary.json").write_text(json.dumps({**summary, "model": EVIL["model"], "data": EVIL["data"]}))
        (folder / "checksums.json").unlink()
        marked = {
            flag: {"name": name, "folder": str(folder), "file": "", "digest": "", "content": ""}
            for flag, name in EVIL.items()
        }
        (folder / "origin.json").write_text(json.dumps({"names": marked, "hmac": "0" * 64}))
    unfinished = place / "runs" / "trained"
    (unfinished / "summary.json").unlink()
    trained = tomllib.loads((unfinished / "config.toml").read_text())
    for flag in (
        "rewind",
        "fraction",
        "conv_fraction",
        "output_fraction",
        "data_order",
        "allocation",
        "granularity",
        "rewind_optimizer",
    ):
        trained.pop(flag, None)
    trained |= {
        "method": "train",
        "ticket": str(finished.path / "ticket.safetensors"),
        "found_by": "imp",
        "init": "keep",
    }
    (unfinished / "config.toml").write_text(tomli_w.dumps(trained))
    return place


@pytest.fixture
def hostile(hostile_template, tmp_path, monkeypatch) -> Path:
    """The working folder, with the runs in it and `evil.py` wherever a module could be looked for."""
    shutil.copytree(hostile_template / "runs", tmp_path / "runs")
    for folder in (tmp_path, tmp_path / "runs", *(tmp_path / "runs").iterdir()):
        (folder / "evil.py").write_text(EVIL_CODE.format(place=str(tmp_path / "IMPORTED")))
    for name, table in {
        "evil.toml": {"method": "dense", **EVIL},
        "sweep.toml": {"base": {"method": "dense"}, "runs": [EVIL]},
        "controls-on.toml": {"controls": ["reinit"], "controls_on": "evil:data", "base": {"method": "imp"}},
        "study.toml": {
            "title": "t",
            "paper": "p",
            "question": "q",
            "hours": 1.0,
            "sweep": {"grid": {flag: [name] for flag, name in EVIL.items()}},
        },
    }.items():
        (tmp_path / name).write_text(tomli_w.dumps(table))
    return tmp_path


@pytest.mark.parametrize("command", all_commands())
def test_a_hostile_folder_imports_nothing(command, hostile, ticket):
    for words in HOSTILE[command] or [[]]:
        answer = ticket(*command.split(), *words)
        assert not (hostile / "IMPORTED").exists(), words
        assert "evil" not in sys.modules, words
        assert "Traceback" not in answer.out + answer.err
        needs_code = HOSTILE[command] is not None and command not in NEEDS_NONE and words[-1] not in ("npz.out", "npz")
        # A finished run is not resumed, and a hostile one is not compared with anything: both are only read.
        if needs_code and words != ["runs/finished"] and not (command == "bench" and "digits" in words):
            assert answer.code == 2, (words, answer)
        if needs_code and answer.code == 2:
            assert "names code that would be imported" in answer.err or "evil" not in answer.err, answer.err
            *beginning, told = answer.err.strip().splitlines()
            assert len(beginning) <= 2 and told.startswith("error: "), answer.err
            assert "evil:" in told and "evil:" in told.partition("if you trust it")[2], told


def test_what_would_be_imported_is_told_with_the_flags_to_type(hostile, ticket):
    told = ticket("evaluate", "runs/finished").err
    expected = " ".join(f"--{flag} evil:{flag}" for flag in FLAGS)
    assert expected in told and str(hostile) in told
    told = ticket("controls", "runs/finished").err
    assert expected in told and "the run runs/finished, which has a mark" in told


def test_the_flags_import_what_they_name(hostile, ticket):
    answer = ticket("evaluate", "runs/finished", *(word for flag in FLAGS for word in (f"--{flag}", f"evil:{flag}")))
    assert (hostile / "IMPORTED").exists() and answer.code == 2


# --- a run of one's own remembers its code


def work_on(ticket, run: Path, *typed: str, model: tuple[str, ...] = ()) -> dict[str, str]:
    """What each command says of a finished run; every command must succeed."""
    said = {}
    for words in (
        ("evaluate", str(run), "--json", *typed),
        ("controls", str(run), "--controls", "reinit,small-dense", "--json", *typed),
        ("train", str(run), "--seed", "3", "--name", f"t{len(typed)}", "--json", *typed),
        ("train", str(run / "levels" / "01" / "ticket.safetensors"), "--name", f"l{len(typed)}", "--json", *typed),
        ("export", str(run), "--to", "compact", "--output", f"out{len(typed)}", *model),
        ("bench", str(run), "--engines", "eager", "--seconds", "0.01", "--batch-sizes", "4", "--json", *model),
        ("inspect", str(run), "--json"),
        ("resume", str(run), "--json"),
        ("compare", str(run), "--json"),
    ):
        answer = ticket(*words)
        assert answer.code == 0, (words, answer.err)
        forget()
        said.setdefault(words[0], answer.out)
    return said


def in_folder(monkeypatch, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)


def test_every_command_uses_it_from_any_folder(made, ticket, monkeypatch):
    in_folder(monkeypatch, made.parents[2] / "elsewhere")
    said = work_on(ticket, made)
    summary = json.loads((made / "summary.json").read_text())
    measured = json.loads(said["evaluate"])
    # The metric gives half of the accuracy, so that plain accuracy would be seen; the loss is no cross-entropy.
    assert measured["test_metric"] == summary["test_metric"] <= 0.5
    assert measured["val_loss"] == summary["val_loss"]
    assert all(row["test_metric"] <= 0.5 for row in json.loads(said["controls"])["rows"])
    assert json.loads(said["train"])["test_metric"] <= 0.5
    assert json.loads(said["bench"])["data"] == "mine:load"
    assert all(row["accuracy"] is None or row["accuracy"] <= 0.5 for row in json.loads(said["bench"])["rows"])
    # What comes of it remembers its code too.
    assert ticket("evaluate", str(made / "controls" / "reinit-level-01"), "--json").code == 0


def test_a_run_that_is_copied_and_renamed_keeps_its_mark(made, ticket):
    moved = made.parents[2] / "another name"
    shutil.copytree(made, moved)
    shutil.rmtree(made)
    assert ticket("evaluate", str(moved), "--json").code == 0


def edit_config(run: Path) -> None:
    path = run / "config.toml"
    path.write_text(path.read_text().replace("mine:build", "mine:other"))
    (run / "checksums.json").unlink()


def edit_mark(old: str, new: str):
    def edit(run: Path) -> None:
        text = (run / "origin.json").read_text()
        assert old in text
        (run / "origin.json").write_text(text.replace(old, new))

    return edit


VOID = {
    "another name in the configuration": edit_config,
    "another name in the mark": edit_mark("mine:build", "mine:other"),
    "another folder": edit_mark("/project", "/elsewhere"),
    "another code": edit_mark('"hmac": "', '"hmac": "0'),
    "no mark": lambda run: (run / "origin.json").unlink(),
    "a mark that is none": lambda run: (run / "origin.json").write_text("[1]"),
    "half a mark": lambda run: (run / "origin.json").write_bytes((run / "origin.json").read_bytes()[:90]),
}


@pytest.mark.parametrize("edit", VOID.values(), ids=VOID)
def test_what_is_edited_has_no_mark(edit, made, ticket):
    edit(made)
    answer = ticket("controls", str(made))
    assert answer.code == 2 and "names code that would be imported: model mine:" in answer.err
    assert "mine" not in sys.modules


def test_the_run_of_another_user_has_no_mark(made, ticket, monkeypatch, tmp_path):
    monkeypatch.setenv(key.VARIABLE, str(tmp_path / "other user"))
    answer = ticket("evaluate", str(made))
    assert answer.code == 2 and "there is no key" in answer.err and "--model mine:build" in answer.err
    assert not (tmp_path / "other user").exists(), "looking at a mark makes no key"
    key.make_key()
    answer = ticket("evaluate", str(made))
    assert answer.code == 2 and "made by another user" in answer.err
    assert "mine" not in sys.modules


def test_without_a_mark_the_flags_do(made, ticket, monkeypatch):
    (made / "origin.json").unlink()
    monkeypatch.chdir(made.parents[1])
    work_on(ticket, made, *TYPED, model=TYPED[:2])


def test_the_api_takes_what_it_is_given(made, monkeypatch):
    (made / "origin.json").unlink()
    with pytest.raises(RequestError, match="--model mine:build --data mine:load --loss mine:loss --metric mine:metric"):
        controls(made, progress=False)
    monkeypatch.chdir(made.parents[1])
    assert len(controls(made, ["reinit"], **OWN, progress=False)) == 1


def test_a_stopped_run_is_resumed_from_any_folder(project, ticket, monkeypatch):
    monkeypatch.chdir(project)
    run = stopped(monkeypatch, **OWN, fraction=0.5)
    whole = search("imp", **OWN, runs="whole", fraction=0.5, **QUICK)
    in_folder(monkeypatch, project.parent / "elsewhere")
    forget()
    answer = ticket("resume", str(run), "--json")
    assert answer.code == 0, answer.err
    assert (run / "ticket.safetensors").read_bytes() == (project / whole.path / "ticket.safetensors").read_bytes()


def test_functions_passed_in_python_are_remembered(project, monkeypatch):
    sys.path.insert(0, str(project))
    try:
        import mine
    finally:
        sys.path.remove(str(project))
    in_folder(monkeypatch, project.parent / "elsewhere")
    run = search("imp", mine.build, mine.load(), runs="runs", fraction=0.5, init="kaiming-normal", **QUICK)
    names = json.loads((run.path / "origin.json").read_text())["names"]
    assert names["model"]["name"] == "mine:build" and names["model"]["folder"] == str(project)
    forget()
    with pytest.raises(RequestError, match="the data were arrays"):
        controls(run.path, ["reinit"], progress=False)
    forget()
    assert len(controls(run.path, ["reinit"], data=run_data(project), progress=False)) == 1


def run_data(project: Path):
    return load_factory("mine:load", {"mine:load": Leave(str(project))})


def test_what_cannot_be_remembered_is_told_when_it_is_needed(project, ticket):
    run = search(
        "imp", lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), runs="runs", name="lambda", fraction=0.5,
        init="kaiming-normal", **QUICK
    )  # fmt: skip
    assert not (run.path / "origin.json").exists()
    answer = ticket("controls", str(run.path))
    assert answer.code == 2 and "a function of a script, a notebook or another function" in answer.err
    assert "<lambda>" in answer.err and "model=..." in answer.err
    assert not can_be_typed("__main__:build") and not can_be_typed("mine:f.<locals>.g") and can_be_typed("a.b:c.d,e:f")


def test_a_run_of_built_in_names_has_no_mark_and_needs_none(project, monkeypatch, tmp_path, ticket):
    monkeypatch.setenv(key.VARIABLE, str(tmp_path / "none"))
    run = search("imp", runs="runs", fraction=0.5, model_args=("width=0.1",), **QUICK)
    assert not (run.path / "origin.json").exists() and not (tmp_path / "none").exists()
    assert ticket("evaluate", str(run.path.resolve())).code == 0


def test_a_dry_run_marks_nothing(project, ticket, monkeypatch, tmp_path):
    monkeypatch.setenv(key.VARIABLE, str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    assert ticket("search", "--method", "dense", "--epochs", "1", *TYPED, "--dry-run").code == 0
    assert not (tmp_path / "none").exists()


# --- code that is gone or has changed


def test_a_module_that_is_gone(made, ticket):
    (made.parents[1] / "mine.py").unlink()
    answer = ticket("evaluate", str(made))
    assert answer.code == 2 and len(answer.err.strip().splitlines()) >= 1
    assert f"there is no {made.parents[1] / 'mine.py'} any more" in answer.err


@pytest.mark.filterwarnings("default")
def test_a_function_that_is_gone(made, ticket):
    path = made.parents[1] / "mine.py"
    path.write_text(path.read_text().replace("def build", "def built"))
    answer = ticket("evaluate", str(made))
    assert f"warning: {path}, which defines the model mine:build, has changed since the run was started\n" in answer.err
    assert answer.code == 2 and "mine has no 'build'; did you mean 'built'?" in answer.err


def test_another_module_in_its_place_is_not_taken(made, ticket, monkeypatch):
    (made.parents[1] / "mine.py").unlink()
    Path("mine.py").write_text(MINE)
    assert ticket("evaluate", str(made)).code == 2


@pytest.mark.filterwarnings("default")
def test_a_network_that_has_changed(made, ticket):
    path = made.parents[1] / "mine.py"
    path.write_text(path.read_text().replace("round(4 * width)", "round(5 * width)"))
    for words in (("evaluate",), ("controls",), ("train",), ("export", "--to", "compact", "--output", "x")):
        forget()
        answer = ticket(words[0], str(made), *words[1:])
        assert answer.code == 2 and "Traceback" not in answer.err, answer
        lines = answer.err.strip().splitlines()
        warned = [line for line in lines if line.startswith("warning: ")]
        assert warned and all("has changed since the run was started" in line for line in warned)
        *beginning, told = (line for line in lines if line not in warned)
        assert len(beginning) <= 1 and told.startswith("error: "), answer.err


@pytest.mark.filterwarnings("default")
def test_samples_that_have_changed(made, ticket):
    path = made.parents[1] / "mine.py"
    path.write_text(path.read_text().replace("manual_seed(0)", "manual_seed(1)"))
    answer = ticket("controls", str(made))
    assert "has changed since the run was started\n" in answer.err and "UserWarning" not in answer.err
    assert answer.code == 2 and "mine:load gives other samples than when the run was started" in answer.err


def test_a_run_does_not_go_on_with_changed_code(project, ticket, monkeypatch):
    monkeypatch.chdir(project)
    run = stopped(monkeypatch, **OWN)
    (project / "mine.py").write_text(MINE.replace("multi_margin_loss(outputs", "multi_margin_loss(2 * outputs"))
    answer = ticket("resume", str(run))
    assert answer.code == 2 and "has changed since the run was started: to go on with it as it is now" in answer.err
    monkeypatch.chdir(project)
    assert ticket("resume", str(run), *TYPED).code == 0


# --- one process has one module of a name


def test_two_modules_of_one_name_are_told_apart(tmp_path):
    for place, number in (("one", 1), ("two", 2)):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine.py").write_text(f"def number(): return {number}\n")
    one, two = ({"mine:number": Leave(str(tmp_path / place))} for place in ("one", "two"))
    assert load_factory("mine:number", one) == 1
    with pytest.raises(
        RequestError, match=r"mine:number means .*two.*mine.py, and this process has loaded another .*one"
    ):
        find_factory("mine:number", two)
    assert load_factory("mine:number", one) == 1
    forget()
    assert load_factory("mine:number", two) == 2


def test_nothing_is_imported_without_leave(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.py").write_text("def f(): return 1\n")
    with pytest.raises(RequestError, match="nobody has typed or passed its name"):
        find_factory("other:f", {})
    with pytest.raises(RequestError, match="nobody has typed or passed its name"):
        find_factory("other:f", leave_here("other:g"))
    assert "other" not in sys.modules
    assert find_factory("other:f", leave_here("other:f"))() == 1


def test_copies_of_a_configuration_keep_its_leave():
    import pickle

    config = Config(loss="a:b", metric="c:d", method="dense").allowing(
        leave_here("a:b"), "the run x, which is no one's"
    )
    for copy in (config, config.model_copy(update={"seed": 1}), pickle.loads(pickle.dumps(config))):
        assert copy.leaves == {"a:b": Leave(os.getcwd())}
        assert copy.refused_code() == refuse("the run x, which is no one's", {"metric": "c:d"})
    assert Config(loss="a:b").refused_code()
    assert "leaves" not in str(config.model_dump())


# --- the key


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(key.VARIABLE, str(tmp_path / "state"))
    return tmp_path / "state" / "key"


def make_one(queue) -> None:
    queue.put(key.make_key())


def test_a_key_is_random_and_the_users_alone(place):
    first = key.make_key()
    assert len(first) == key.SIZE == 32
    assert stat.S_IMODE(place.stat().st_mode) == 0o600 and stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert key.make_key() == key.read_key() == first == place.read_bytes()
    assert [path.name for path in place.parent.iterdir()] == ["key"]
    place.unlink()
    assert key.make_key() != first


def test_processes_that_make_it_at_once_have_one_key(place):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=make_one, args=(queue,)) for _ in range(6)]
    for process in processes:
        process.start()
    assert len({queue.get(timeout=30) for _ in processes}) == 1
    for process in processes:
        process.join()


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [(b"", 0o600, "has not 32 bytes"), (b"x" * 33, 0o600, "has not 32 bytes"), (b"x" * 32, 0o640, "others can read")],
)
def test_keys_that_are_none(content, mode, problem, place):
    place.parent.mkdir()
    place.write_bytes(content)
    place.chmod(mode)
    for ask in (key.read_key, key.make_key):
        with pytest.raises(key.KeyUnusable, match=problem):
            ask()
    assert place.read_bytes() == content


def test_a_run_without_a_key_runs_and_says_so_once(place, project, ticket, monkeypatch):
    place.parent.write_text("a file where the folder should be")
    monkeypatch.chdir(project)
    run = (
        "search",
        "--method",
        "imp",
        "--fraction",
        "0.5",
        "--density",
        "0.5",
        "--epochs",
        "1",
        "--name",
        "bare",
        *TYPED,
    )
    (project.parent / "mine.py").write_text(MINE)
    answer = ticket(*run)
    assert answer.code == 0, answer.err
    assert answer.err.count("will not remember its own code") == 1
    where = Path("runs/bare").resolve()
    assert not (where / "origin.json").exists()
    assert ticket("controls", str(where)).code == 2


# --- sweeps


def test_the_files_of_sweeps_and_studies_import_what_is_typed(project, ticket, forked, monkeypatch, tmp_path):
    """Their processes have leave through their jobs: the run has no mark."""
    (tmp_path / "mine.py").write_text(MINE)
    flags = {"fraction": 0.5, "epochs": 1, "batch_size": 60, "init": "kaiming-normal", "threads": 1}
    run = search("imp", **OWN, **flags, runs="runs/mine", progress=False)
    (run.path / "origin.json").unlink()
    forget()
    table = {"controls": ["reinit"], "base": {**OWN, "method": "imp", **flags}}
    (tmp_path / "mine.toml").write_text(tomli_w.dumps(table))
    refused = ticket("sweep", "mine.toml")
    assert refused.code == 2 and " ".join(TYPED) in refused.err
    assert ticket("sweep", "mine.toml", *TYPED[2:]).code == 2
    done = ticket("sweep", "mine.toml", *TYPED)
    assert done.code == 0, done.err
    assert [path.name for path in (tmp_path / "runs" / "mine").iterdir()] == [run.path.name]
    assert len(json.loads((run.path / "controls.json").read_text())["rows"]) == 1


def test_a_flag_stands_for_what_no_run_of_a_sweep_says(project):
    sweep = ticket_search.sweeps.file.make_sweep({"base": {"method": "dense"}}, "s", code={"model": "mine:build"})
    assert sweep.runs[0].config.model == "mine:build"
    both = {"base": {"method": "dense"}, "grid": {"model": ["mine:build", "mine:other", "conv2"]}}
    assert len(ticket_search.sweeps.file.make_sweep(both, "s", code={"model": "mine:build,mine:other"}).runs) == 3
    with pytest.raises(
        RequestError,
        match=r"names code that would be imported: model mine:build,mine:other; .*--model mine:build,mine:other",
    ):
        ticket_search.sweeps.file.make_sweep(both, "s")


# --- damaged files


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """`never` is a run that was never stopped, `stopped` the same stopped on level 1, with two states."""
    place = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("ticket_search.runs.run._SECONDS_BETWEEN_STATES", (0.0, 0.0))
        flags = {
            "model_args": ("width=0.03",),
            "fraction": 0.5,
            "epochs": 2,
            "batch_size": 400,
            "evaluate_every": "1it",
        }
        search("imp", **{**QUICK, **flags}, runs="runs", name="never")
        stopped(patch, after=10, **flags)
    run = place / "runs" / "stopped"
    assert (run / "state.pt").exists() and (run / "state-before.pt").exists() and (run / "levels" / "00").exists()
    return place / "runs"


def flipped(data: bytes, share: float) -> bytes:
    changed = bytearray(data)
    changed[min(len(data) - 1, int(share * len(data)))] ^= 1 << (len(data) % 8)
    return bytes(changed)


def cut(data: bytes, share: float) -> bytes:
    return data[: int(share * len(data))]


SOME = [(flipped, 0.05), (flipped, 0.5), (cut, 0.6)]
MANY = [(flipped, share / 40) for share in range(41)] + [(cut, share / 20) for share in range(20)]
READ_BACK = ("config.toml", "metrics.jsonl", "checksums.json", "levels/00/ticket.safetensors", "environment.json")
damages = pytest.mark.parametrize(
    ("damage", "share"),
    [*(pytest.param(*one) for one in SOME), *(pytest.param(*one, marks=pytest.mark.slow) for one in MANY)],
    ids=lambda value: getattr(value, "__name__", value),
)


def said_of(run: Path, ticket, *words: str) -> tuple[int, str]:
    answer = ticket(*words)
    assert "Traceback" not in answer.err
    if answer.code:
        assert answer.code == 2 and len(answer.err.strip().splitlines()) == 1, answer.err
    return answer.code, answer.err


@damages
@pytest.mark.parametrize("name", ["state.pt", *READ_BACK])
def test_a_stopped_run_with_a_damaged_file(name, damage, share, whole, tmp_path, ticket):
    """It goes on to the same ticket, or does not go on and names the file."""
    run = tmp_path / "runs" / "stopped"
    shutil.copytree(whole / "stopped", run)
    (run / name).write_bytes(damage((run / name).read_bytes(), share))
    code, told = said_of(run, ticket, "resume", str(run), "--json")
    if code:
        assert Path(name).name in told or "config.toml" in told, told
    else:
        expected = (whole / "never" / "ticket.safetensors").read_bytes()
        assert (run / "ticket.safetensors").read_bytes() == expected
    if name == "state.pt":
        assert code == 0 and "going on from state-before.pt" in told


def test_no_state_is_left_that_is_whole(whole, tmp_path, ticket):
    run = tmp_path / "runs" / "stopped"
    shutil.copytree(whole / "stopped", run)
    for name in ("state.pt", "state-before.pt"):
        (run / name).write_bytes(flipped((run / name).read_bytes(), 0.5))
    code, told = said_of(run, ticket, "resume", str(run))
    assert code == 2 and "state.pt is damaged" in told and "state-before.pt is damaged" in told
    (run / "state.pt").unlink()
    (run / "state-before.pt").write_bytes((whole / "stopped" / "state-before.pt").read_bytes())
    assert said_of(run, ticket, "resume", str(run))[0] == 0


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0, None])
@pytest.mark.parametrize("padded", [False, True], ids=["shorter", "padded with NUL bytes"])
def test_rows_that_a_loss_of_power_has_taken_are_told_and_the_search_goes_on(share, padded, whole, tmp_path, ticket):
    """Shorter than any state says, or of the right length and full of NUL bytes, as some file systems leave a file."""
    run = tmp_path / "runs" / "stopped"
    shutil.copytree(whole / "stopped", run)
    rows = run / "metrics.jsonl"
    there = rows.read_bytes()
    if share is None:
        rows.unlink()
    else:
        kept = there[: int(share * (len(there) - 1))]
        rows.write_bytes(kept + b"\0" * (len(there) - len(kept)) if padded else kept)
    code, told = said_of(run, ticket, "resume", str(run), "--json")
    assert code == 0 and "metrics.jsonl is damaged: " in told
    assert (run / "ticket.safetensors").read_bytes() == (whole / "never" / "ticket.safetensors").read_bytes()
    assert any(
        "metrics.jsonl is damaged" in text for text in json.loads((run / "summary.json").read_text())["warnings"]
    )
    left, never = ((folder / "metrics.jsonl").read_text() for folder in (run, whole / "never"))
    steps = [json.loads(line)["step"] for line in left.splitlines()]
    assert steps == sorted(steps) and len(left.splitlines()) <= len(never.splitlines())
    begin = 0 if share is None else kept.rfind(b"\n") + 1
    assert left.encode().startswith(there[:begin])


READERS = {
    "config.toml": [("controls", "--controls", "reinit"), ("compare",), ("runs", "list")],
    "summary.json": [("compare",), ("resume", "--json"), ("controls", "--controls", "reinit")],
    "metrics.jsonl": [],
    "ticket.safetensors": [
        ("evaluate",),
        ("inspect",),
        ("compare",),
        ("train",),
        ("export", "--to", "npz", "--output", "x"),
    ],
    "levels/01/ticket.safetensors": [("controls", "--controls", "reinit", "--levels", "1")],
    "controls.json": [("compare",), ("controls", "--controls", "reinit")],
    "checksums.json": [("compare",), ("resume", "--json")],
}


@damages
@pytest.mark.parametrize("name", READERS)
def test_a_finished_run_with_a_damaged_file(name, damage, share, whole, tmp_path, ticket):
    """Every command that reads the file says the same as before, or names the file."""
    run, twin = tmp_path / "runs" / "never", tmp_path / "whole" / "never"
    for folder in (run, twin):
        shutil.copytree(whole / "never", folder)
        (folder / "controls.json").write_text('{"rows": []}\n')
        ticket_search.runs.records.add_checksum(folder, "controls.json", mark.digest_of(folder / "controls.json"))
    (run / name).write_bytes(damage((run / name).read_bytes(), share))
    if name == "metrics.jsonl":
        with pytest.raises(RequestError, match="metrics.jsonl is damaged"):
            resume(run, progress=False).metrics  # noqa: B018
    for words in READERS[name]:
        where = [] if words == ("runs", "list") else [str(run)]
        answer = (
            ticket(*words[:2], *(["--runs", str(run.parent)] if not where else []))
            if not where
            else ticket(words[0], *where, *words[1:])
        )
        assert "Traceback" not in answer.out + answer.err, answer
        told = answer.out + answer.err
        assert Path(name).name in told or "checksums.json" in told or answer.code == 0, (words, told)
        if answer.code == 0 and words != ("runs", "list"):
            assert name == "checksums.json", (words, told)


def test_a_state_of_version_0_1_is_checked_by_the_checksums_of_its_zip_file(tmp_path):
    found = Path(__file__).parent / "fixtures" / "runs-0.1.0" / "stopped" / "imp"
    run = tmp_path / "imp"
    shutil.copytree(found, run)
    data = (run / "state.pt").read_bytes()
    assert data.startswith(b"PK")
    for share in (0.3, 0.5, 0.7):
        (run / "state.pt").write_bytes(flipped(data, share))
        with pytest.raises(RequestError, match=r"state.pt is damaged"):
            resume(run, progress=False)
    (run / "state.pt").write_bytes(data)
    assert resume(run, progress=False).finished


@damages
def test_a_damaged_checkpoint(damage, share, tmp_path, ticket):
    """A search from it is the same as from the whole one, or names it."""
    net = ticket_search.models.lenet.lenet_300_100([1, 8, 8], 10, width=0.1)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    data = (tmp_path / "net.pt").read_bytes()
    words = (
        "search",
        "--method",
        "dense",
        "--model-args",
        "width=0.1",
        "--epochs",
        "1",
        "--threads",
        "1",
        "--weights",
        "net.pt",
    )
    assert ticket(*words, "--name", "whole").code == 0
    (tmp_path / "net.pt").write_bytes(damage(data, share))
    answer = ticket(*words, "--name", "damaged")
    if answer.code:
        assert answer.code == 2 and "net.pt" in answer.err and "Traceback" not in answer.err, answer
    else:
        one, other = (Path("runs", name, "ticket.safetensors").read_bytes() for name in ("whole", "damaged"))
        assert one == other


def test_a_checkpoint_without_checksums_is_read(tmp_path):
    from supermask.tickets.checkpoint import read_file

    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.ones(3)}, tmp_path / "net.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(read_file(tmp_path / "net.pt")["weight"], torch.ones(3))
