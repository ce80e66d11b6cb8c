"""What is in a folder, told once for all who ask; and what is left of a folder's other files when a run is opened."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path

import pytest
import tomli_w
from products import thin

import ticket_search
from ticket_search import Interrupted, RequestError, compare, controls, search
from ticket_search.contract.flags import Config, make_config, to_plain
from ticket_search.methods import find_method
from ticket_search.runs.experiment import resolve
from ticket_search.runs.folders import choose_folder, find_leftovers, inspect_folder
from ticket_search.sweeps.file import make_sweep
from ticket_search.sweeps.sweep import plan_sweep

NAME = "dense-lenet-300-100-digits-d1-s0"
FLAGS = {"method": "dense", "epochs": 1, "threads": 1}


def dense(**flags) -> Config:
    return resolve(make_config(find_method("dense").Config, {**FLAGS, **flags}))


def nothing(folder: Path) -> None:
    pass


def empty(folder: Path) -> None:
    folder.mkdir(parents=True)


def hidden(folder: Path) -> None:
    (folder / ".git").mkdir(parents=True)
    for name in (".gitignore", ".DS_Store", ".nfs000", ".lock", ".controls.lock", ".config.toml.k3x_9abz"):
        (folder / name).write_text("x")


def failed(folder: Path) -> None:
    hidden(folder)
    (folder / "failure.txt").write_text("no more")


def begun(folder: Path, **flags) -> None:
    failed(folder)
    (folder / "config.toml").write_text(tomli_w.dumps(to_plain(dense(**flags))))


def done(folder: Path, **flags) -> None:
    begun(folder, **flags)
    numbers = dict.fromkeys(("kept", "weights", "density", "test_accuracy", "val_accuracy", "seconds"), 1)
    cost = dict.fromkeys(("steps", "flops", "seconds", "dense_trainings"), 1)
    (folder / "summary.json").write_text(json.dumps({"name": NAME, "method": "dense", "cost": cost, **numbers}))


def other_begun(folder: Path) -> None:
    begun(folder, lr=0.5)


def other_done(folder: Path) -> None:
    done(folder, lr=0.5)


def photos(folder: Path) -> None:
    empty(folder)
    (folder / "cat.png").write_bytes(b"x")


def results_alone(folder: Path) -> None:
    done(folder)
    (folder / "config.toml").unlink()


def damaged(folder: Path) -> None:
    done(folder)
    (folder / "config.toml").write_text("method = ")


def file(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("x")


# What is there, what it is to a run of the configuration, and what to any run.
CASES = {
    nothing: ("new", "new"),
    empty: ("new", "new"),
    hidden: ("new", "new"),
    failed: ("new", "new"),
    begun: ("unfinished", "unfinished"),
    done: ("finished", "finished"),
    other_begun: ("another run", "unfinished"),
    other_done: ("another run", "finished"),
    photos: ("not a run", "not a run"),
    results_alone: ("not a run", "not a run"),
    damaged: ("not a run", "not a run"),
    file: ("not a run", "not a run"),
}
cases = pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)


@cases
def test_the_state_of_a_folder(make, tmp_path):
    folder = tmp_path / "runs" / NAME
    make(folder)
    before = sorted(tmp_path.rglob("*"))
    of_ours, of_any = (inspect_folder(folder, config) for config in (dense(), None))
    assert (of_ours.state, of_any.state) == CASES[make]
    assert of_ours.folder == of_any.folder == folder
    assert bool(of_ours.why) == (of_ours.state in ("another run", "not a run"))
    assert (of_ours.differs == ("--lr 0.5 there, 0.0012 here",)) == (of_ours.state == "another run")
    assert sorted(tmp_path.rglob("*")) == before, "looking changes nothing"


@pytest.mark.parametrize("make", thin(CASES, 2), ids=lambda make: make.__name__)
def test_a_search_and_a_sweep_take_the_same_folders(make, tmp_path):
    folder = tmp_path / "runs" / NAME
    make(folder)
    state = CASES[make][0]
    chosen = choose_folder(dense(), tmp_path / "runs", None, dense=True)
    assert chosen.name == (NAME if state in ("new", "unfinished") else f"{NAME}-2")
    if state in ("new", "unfinished"):
        assert choose_folder(dense(), tmp_path / "runs", NAME) == folder
    else:
        with pytest.raises(RequestError, match=f"--name {NAME}: .*; choose another name") as caught:
            choose_folder(dense(), tmp_path / "runs", NAME)
        assert ("ticket runs rm" in str(caught.value)) == (state != "not a run"), "what is no run is not removed as one"
    sweep = make_sweep({"base": FLAGS}, "")
    (planned,) = plan_sweep(sweep, tmp_path / "runs").runs
    taken = state in ("another run", "not a run")
    assert planned.folder.name == (f"{NAME}-2" if taken else NAME)
    assert planned.state == ("new" if taken else state)


@cases
def test_a_named_sweep_has_no_second_folder_for_a_run(make, tmp_path):
    make(tmp_path / "runs" / "many" / NAME)
    state = CASES[make][0]
    sweep = make_sweep({"base": FLAGS}, "many")
    if state in ("another run", "not a run"):
        with pytest.raises(RequestError, match="choose another --runs") as caught:
            plan_sweep(sweep, tmp_path / "runs")
        assert ("ticket runs rm" in str(caught.value)) == (state == "another run")
    else:
        assert plan_sweep(sweep, tmp_path / "runs").runs[0].state == state


@cases
def test_opening_a_run_agrees(make, tmp_path):
    from ticket_search.runs.run import Run

    folder = tmp_path / "runs" / NAME
    make(folder)
    if make is file:
        return  # no folder to lock
    state = CASES[make][0]
    run = Run(folder, dense())
    if state in ("new", "unfinished"):
        with run.opened():
            assert inspect_folder(folder, dense()).state == "unfinished"
        return
    words = {"finished": "has finished", "another run": "another run in .*: --lr 0.5 there", "not a run": "run"}
    before = contents(folder)
    with pytest.raises(RequestError, match=words[state]), run.opened():
        raise AssertionError("opened")
    assert contents(folder) == before


def contents(folder: Path) -> dict[Path, bytes]:
    """Of all files but the lock, which some versions of filelock empty, and some remove."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@cases
def test_listing_and_comparing_agree(make, ticket, tmp_path):
    make(Path("runs") / NAME)
    state = CASES[make][1]
    listed = {row["name"]: row["state"] for row in json.loads(ticket("runs", "list", "--json").out)["runs"]}
    if make is damaged:
        assert listed[NAME].startswith("damaged")
    else:
        assert listed == ({NAME: state} if state in ("unfinished", "finished") else {})
    with pytest.raises(RequestError) as caught:
        compare([Path("runs") / NAME])
    expected = {"finished": "ticket.safetensors is missing", "unfinished": "not finished", "new": "not a run"}
    text = str(caught.value)
    assert expected.get(state, "run") in text, text


# --- what is removed when a run is opened: our own temporary files, and nothing else

STRANGERS = (
    ".gitignore", ".DS_Store", ".nfs000", ".nfs00000000deadbeef00000001", ".gitignore.abcdefgh", ".notes.md.abcdefgh",
    ".config.toml.abc", ".config.toml.abcdefghi", ".config.toml.ABCDEFGH", ".config.toml.abcdefgh~",
    ".state.pt.swp", ".summary.json",
)  # fmt: skip
OURS = (".config.toml.k3x_9abz", ".state.pt.00000000", ".ticket.safetensors.abcdefgh")


def test_a_run_leaves_what_is_not_its_own(quick, tmp_path):
    folder = tmp_path / "runs" / NAME
    (folder / ".git" / "objects").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (folder / ".state.pt.abcdefgh").mkdir()
    (folder / ".summary.json.abcdefgh").symlink_to(folder / ".git" / "HEAD")
    for name in (*STRANGERS, *OURS):
        (folder / name).write_text(name)
    (tmp_path / "config.toml.abcdefgh").write_text("x")
    assert find_leftovers(tmp_path) == [], "a file that is not hidden"
    assert {path.name for path in find_leftovers(folder)} == set(OURS)
    run = quick("dense", epochs=1)
    assert run.path == folder
    assert {path.name for path in folder.glob(".*")} == {
        *STRANGERS,
        ".git",
        ".lock",
        ".state.pt.abcdefgh",
        ".summary.json.abcdefgh",
    }
    assert (folder / ".git" / "HEAD").read_text() == "ref: refs/heads/main"
    assert (folder / ".git" / "objects").is_dir()
    assert all((folder / name).read_text() == name for name in STRANGERS)


def test_a_resumed_run_leaves_them_too(quick, tmp_path, monkeypatch):
    from ticket_search.runs.progress import Progress

    with monkeypatch.context() as patch, pytest.raises(Interrupted) as stop:
        patch.setattr(Progress, "advance_to", lambda self, step: os.kill(os.getpid(), signal.SIGINT))
        quick("dense", epochs=1)
    folder = Path(stop.value.path)
    hidden(folder.parent / "beside")
    for path in (folder.parent / "beside").iterdir():
        if path.name != ".lock":
            path.rename(folder / path.name)
    assert ticket_search.resume(folder, progress=False).finished
    left = {".git", ".gitignore", ".DS_Store", ".nfs000", ".controls.lock", ".lock"}
    assert {path.name for path in folder.glob(".*")} == left


def test_every_temporary_file_of_a_run_would_be_known_again(tmp_path, monkeypatch):
    """Whatever is written beside its place and then renamed is among what a killed process may leave."""
    written: list[Path] = []
    make = tempfile.mkstemp

    def remember(*args, **kinds):
        handle, path = make(*args, **kinds)
        written.append(Path(path))
        return handle, path

    monkeypatch.setattr(tempfile, "mkstemp", remember)
    flags = {"runs": tmp_path, "epochs": 1, "threads": 1, "progress": False}
    run = search("imp", density=0.5, rewind="5it", **flags)
    controls(run.path, kinds=["reinit"], progress=False)
    search("filters", density=0.5, retrain_epochs=1, **flags)
    from ticket_search.sweeps.engines.jobs import Job, fail

    fail(Job(0, str(run.path), run.config), "no more")
    names = {path.name.rpartition(".")[0] for path in written}
    assert {
        ".config.toml",
        ".state.pt",
        ".rewind.safetensors",
        ".controls.json",
        ".compact.safetensors",
        ".failure.txt",
    } <= names
    for path in written:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
        assert path in find_leftovers(path.parent), path.name


def test_a_finished_run_without_its_ticket_says_what_to_do(ticket, tmp_path, monkeypatch):
    """Tried: `evaluate` said that `resume` goes on, and `resume` that the run is finished."""
    monkeypatch.chdir(tmp_path)
    run = search("imp", model_args="width=0.1", density=0.5, fraction=0.5, epochs=1, threads=1, progress=False)
    whole = (run.path / "ticket.safetensors").read_bytes()
    (run.path / "ticket.safetensors").unlink()
    told = " ".join(ticket("evaluate", str(run.path)).err.split())
    assert f"the run {run.path} is finished, but ticket.safetensors is missing" in told
    last = run.path / "levels/01/ticket.safetensors"
    assert f"that of its last level is {last}, which may be copied there" in told and last.read_bytes() == whole
    assert "resume" not in told


def test_a_run_that_has_lost_its_configuration_is_there(ticket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = search("dense", model_args="width=0.1", epochs=1, threads=1, progress=False, name="mine")
    (run.path / "config.toml").unlink()
    for words in (("resume", "mine"), ("evaluate", "mine"), ("runs", "rm", "mine", "--yes")):
        answer = ticket(*words)
        assert answer.code == 2 and "the run runs/mine has lost its config.toml" in " ".join(answer.err.split())
    assert run.path.exists()


def test_a_link_to_a_run_is_not_removed_as_one(ticket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = search("dense", model_args="width=0.1", epochs=1, threads=1, progress=False, name="mine")
    Path("link").symlink_to(run.path)
    answer = ticket("runs", "rm", "link", "--yes")
    assert answer.code == 2 and f"link is a link to {run.path.resolve()}" in " ".join(answer.err.split())
    assert (run.path / "summary.json").exists()


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "a/b", "..", ""])
def test_names_that_are_none(name, tmp_path):
    with pytest.raises(RequestError, match="expected the name of a folder"):
        choose_folder(dense(), tmp_path, name)


def test_a_run_that_begins_between_two_looks_is_a_run(tmp_path, monkeypatch):
    """Tried: of 100 pairs that began at once one was told that the run of the other was no run."""
    folder, listed = tmp_path / NAME, Path.iterdir

    def begins_meanwhile(path):
        if path == folder:
            monkeypatch.setattr(Path, "iterdir", listed)
            begun(folder)
            (folder / "environment.json").write_text("{}")
        return listed(path)

    folder.mkdir()
    monkeypatch.setattr(Path, "iterdir", begins_meanwhile)
    assert inspect_folder(folder, dense()).state == "unfinished"
