"""What a run's folder and its ticket record of the flags: new flags change nothing for who does not use them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pydantic import Field

import supermask
from ticket_search import Interrupted, RequestError, resume, search
from ticket_search.contract.flags import Config, differs_from, make_config, to_plain
from ticket_search.contract.recorded import always_recorded
from ticket_search.methods import dense, method_names
from ticket_search.running.read_config import find_kind, read_config
from ticket_search.runs.progress import Progress

pytestmark = pytest.mark.quick

RUNS = sorted(Path(__file__).parent.glob("fixtures/runs-0.1.0/*/*/config.toml"))
QUICK = {"epochs": 1, "threads": 1, "progress": False, "train_size": 320}


class Later(dense.Config):
    """The flags of a later version: one more."""

    extra: int = Field(3, ge=0, description="a flag that an older version does not know")


@pytest.fixture
def later_version(monkeypatch):
    """Call it to go on as the version whose dense training has one flag more."""

    def upgrade() -> None:
        monkeypatch.setattr(dense, "Config", Later)

    return upgrade


def recorded(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return tomllib.loads((run / "config.toml").read_text()), supermask.load(run / "ticket.safetensors").meta["config"]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.parent.name}-{path.parent.name}")
def test_every_flag_of_version_0_1_is_recorded_as_it_was(path):
    config = read_config(path.parent)
    assert tomli_w.dumps(to_plain(config)) == path.read_text()
    assert differs_from(tomllib.loads(path.read_text()), config) == []


def test_there_are_records_of_every_method_of_that_version():
    assert len(RUNS) == 22


@pytest.mark.parametrize("name", [*method_names(), "train"])
def test_a_record_gives_the_configuration_back(name):
    kind = find_kind(name).Config
    config = make_config(kind, {"method": name})
    assert make_config(kind, to_plain(config)) == config
    for field in kind.model_fields.keys() - always_recorded(name):
        entry = kind.model_fields[field]
        optional = type(None) in getattr(entry.annotation, "__args__", ())
        assert not optional or entry.default is None, f"{field}: a record cannot say that it is not set"


def test_a_new_flag_changes_no_ticket_of_who_does_not_use_it(later_version, tmp_path):
    before = search("dense", runs=tmp_path / "before", **QUICK)
    later_version()
    for place, flags in {"silent": {}, "said": {"extra": 3}}.items():
        run = search("dense", runs=tmp_path / place, **QUICK, **flags)
        assert run.config.extra == 3
        for file in ("ticket.safetensors", "config.toml"):
            assert (run.path / file).read_bytes() == (before.path / file).read_bytes()


def test_a_new_flag_that_is_used_is_recorded_and_told_apart(later_version, tmp_path):
    later_version()
    plain, used = (search("dense", runs=tmp_path, **QUICK, **flags) for flags in ({}, {"extra": 5}))
    assert [record.get("extra") for record in recorded(plain.path)] == [None, None]
    assert [record["extra"] for record in recorded(used.path)] == [5, 5]
    assert used.path.name == f"{plain.path.name}-2"
    assert read_config(used.path).extra == 5
    assert read_config(plain.path).extra == 3
    for config, folder, there, here in ((used.config, plain, 3, 5), (plain.config, used, 5, 3)):
        found = differs_from(recorded(folder.path)[0], config)
        assert found == [f"--extra {there} there, {here} here"]


def stopped(monkeypatch, place: Path, **flags) -> Path:
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as stop:
        patch.setattr(Progress, "advance_to", lambda self, step: os.kill(os.getpid(), signal.SIGINT))
        search("dense", runs=place, **QUICK, **flags)
    return Path(stop.value.path)


def test_an_older_folder_goes_on_to_the_same_ticket(later_version, monkeypatch, tmp_path):
    whole = search("dense", runs=tmp_path / "whole", **QUICK)
    by_resume = stopped(monkeypatch, tmp_path / "stopped")
    by_search = Path(shutil.copytree(by_resume.parent, tmp_path / "copied")) / by_resume.name
    record = (by_resume / "config.toml").read_bytes()
    later_version()
    assert resume(by_resume, progress=False).finished
    with pytest.raises(RequestError, match=r"is another one \(--extra 3 there, 4 here\)"):
        search("dense", runs=by_search.parent, name=by_search.name, extra=4, **QUICK)
    assert search("dense", runs=by_search.parent, **QUICK).path == by_search
    for folder in (by_resume, by_search):
        assert (folder / "ticket.safetensors").read_bytes() == (whole.path / "ticket.safetensors").read_bytes()
        assert (folder / "config.toml").read_bytes() == record


def test_a_folder_that_names_a_default_is_of_the_same_configuration(later_version, monkeypatch, tmp_path):
    later_version()
    folder = stopped(monkeypatch, tmp_path)
    with (folder / "config.toml").open("a") as file:
        file.write("extra = 3\n")
    (folder / "checksums.json").unlink()  # as of a version that had none
    assert search("dense", runs=tmp_path, **QUICK).path == folder
    assert json.loads((folder / "summary.json").read_text())["method"] == "dense"


class Shared(Config):
    """The shared flags of a later version."""

    patience: int = 7


class Patient(Shared):
    """A method of that version which sets another default."""

    method: str = "patient"
    patience: int = 9
    own: tuple[str, ...] = ()
    grown: list[int] = Field(default_factory=lambda: [1])


def test_the_record_of_a_shared_flag_is_for_those_who_know_the_method_and_for_those_who_do_not():
    """Who trains a ticket reads what it records, and where it is silent takes the default that all methods share."""
    for patience, said in ((7, True), (9, True), (5, True)):
        assert ("patience" in to_plain(Patient(patience=patience))) == said
    assert "patience" not in to_plain(Shared(method="dense"))
    plain = to_plain(Patient())
    assert plain.keys() & {"own", "grown"} == set()
    assert to_plain(Patient(own=("a",), grown=[2]))["own"] == ["a"]
    assert to_plain(Patient(own=("a",), grown=[2]))["grown"] == [2]
    assert make_config(Patient, plain) == Patient()


def test_the_list_is_of_version_0_1_and_closed():
    """Nothing is added to it: not the flags of a method that is new, and no name that another method had before."""
    assert always_recorded("patient") == always_recorded("dense") == always_recorded("")
    assert "rewind" in always_recorded("imp") and "rewind" not in always_recorded("dense")
    names = [name for path in RUNS for name in tomllib.loads(path.read_text())]
    assert set(names) <= set().union(*(always_recorded(path.parent.name) for path in RUNS))
    assert sum(len(always_recorded(name)) for name in (*{path.parent.name for path in RUNS}, "train")) == 591
