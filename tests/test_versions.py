"""Runs of other versions: what this one does not know is told with the file, the nearest name, and who has made it."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from test_recorded import stopped

from supermask import __version__
from ticket_search import RequestError, compare, resume
from ticket_search.questions.connectivity import _read as read_connect
from ticket_search.running.read_config import read_config
from ticket_search.runs.earlier_run import read_weights
from ticket_search.runs.folders import inspect_folder
from ticket_search.runs.records import read_record, seal, unseal
from ticket_search.runs.run import Run
from ticket_search.runs.states import _KEYS, _MORE
from ticket_search.runs.versions import too_new

pytestmark = pytest.mark.quick

FIXTURES = Path(__file__).parent / "fixtures" / "runs-0.1.0"
LATER = f"(this is supermask {__version__}; a later one may know it)"
# What a line of `config.toml` becomes, and what is said of it.
STRANGE = {
    "a flag that is none": (r"\Z", "dropout = 0.1\n", f"unknown flag --dropout; did you mean '--drop'? {LATER}"),
    "a flag of another spelling": ("batch_size", "batchsize", "unknown flag --batchsize; did you mean '--batch-size'?"),
    "a flag of another method": (r"\Z", 'rewind = "0"\n', f"unknown flag --rewind {LATER}"),
    "the fraction that is dropped": (r"\Z", "sparsity = 0.7\n", "unknown flag --sparsity; did you mean --density ..."),
    "a table": (r"\Z", "[extra]\na = 1\n", "extra: expected true or false, a number, text, or a list of these"),
    "a choice": ('optimizer = "adam"', 'optimizer = "lion"', "--optimizer lion: expected 'sgd', 'adam' or 'adamw'"),
    "a choice, misspelt": ('schedule = "constant"', 'schedule = "cosin"', "did you mean 'cosine'?"),
    "a kind": ("epochs = 2", 'epochs = "many"', "--epochs many: expected a whole number"),
    "a bound": ("density = 0.3", "density = 3.0", "--density 3.0: expected a number less than or equal to 1"),
    "a method": ('method = "snip"', 'method = "lottery"', "unknown method 'lottery'; did you mean 'imp'?"),
    "a method, misspelt": ('method = "snip"', 'method = "snipp"', "unknown method 'snipp'; did you mean 'snip'?"),
}


def made_by(folder: Path, version: object) -> None:
    record = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps({**record, "supermask": version}))


def change(path: Path, pattern: str, text: str) -> None:
    changed, count = re.subn(pattern, text.replace("\\", r"\\"), path.read_text(), count=1)
    assert count == 1
    path.write_text(changed)


@pytest.fixture
def run(tmp_path) -> Path:
    """A finished run of version 0.1, whose records have no checksums."""
    return Path(shutil.copytree(FIXTURES / "finished" / "snip", tmp_path / "snip"))


@pytest.fixture
def begun(tmp_path) -> Path:
    return Path(shutil.copytree(FIXTURES / "stopped" / "snip", tmp_path / "begun"))


def upgrade(folder: Path, version: str = "0.9.0") -> str:
    return f"the run {folder} was made by supermask {version}, this is {__version__}: upgrade supermask"


@pytest.mark.parametrize("name", STRANGE)
def test_what_this_version_does_not_know_is_told(run, name):
    pattern, text, told = STRANGE[name]
    change(run / "config.toml", pattern, text)
    with pytest.raises(RequestError) as caught:
        read_config(run)
    (problem,) = caught.value.problems
    assert problem.startswith((f"{run / 'config.toml'}: ", f"{run / 'config.toml'} is damaged: "))
    assert told in problem
    made_by(run, "0.9.0")
    with pytest.raises(RequestError) as caught:
        read_config(run)
    assert caught.value.problems == [upgrade(run)]


def test_all_that_is_strange_is_told_at_once(run):
    for name in ("a flag that is none", "a flag of another spelling", "a choice"):
        change(run / "config.toml", *STRANGE[name][:2])
    with pytest.raises(RequestError) as caught:
        read_config(run)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("command", ["controls", "signs", "diagnose", "connect", "resume", "compare", "evaluate"])
def test_commands_tell_of_a_newer_run(run, ticket, command):
    """None of them ends in a traceback; a ticket, whose own format is known, is evaluated."""
    change(run / "config.toml", *STRANGE["a method"][:2])
    made_by(run, "0.9.0")
    answer = ticket(command, str(run))
    assert answer.code == (0 if command == "evaluate" else 2)
    assert (upgrade(Path("snip")) in answer.err or upgrade(run) in answer.err) == (command != "evaluate")


@pytest.mark.parametrize("version", ["0.9.0", "0.1.1", "0.10.0", "1.0.0rc1", "2.0.0.dev3+local"])
def test_a_newer_version(run, version):
    made_by(run, version)
    assert too_new(run) == upgrade(run, version)


@pytest.mark.parametrize("version", [__version__, "0.0.9", "0.1.0rc1", "", None, 9, "9", ["9.0.0"], "\x1b[31m9.0.0"])
def test_no_newer_version(run, version):
    made_by(run, version)
    assert too_new(run) == ""
    (run / "environment.json").unlink()
    assert too_new(run) == ""


def test_a_newer_run_without_anything_new_is_read(run):
    made_by(run, "0.9.0")
    assert read_config(run).method == "snip"
    assert compare([run])["groups"][0]["method"] == "snip"


RECORDS = {
    "config.toml": ('method = "snip"\n', lambda folder: read_record(folder, "config.toml")),
    "config.toml of a folder": ('method = "snip"\n', lambda folder: inspect_folder_or_raise(folder)),
    "summary.json": ('"cost": ', lambda folder: read_record(folder, "summary.json")),
    "summary.json of --weights": ('"dense_trainings": ', lambda folder: read_weights(str(folder))),
    "controls.json": ('"rows": ', lambda folder: read_record(folder, "controls.json")),
    "connect.json": ('"points": ', lambda folder: read_connect(Run(folder, read_config(folder)))),
}


def inspect_folder_or_raise(folder: Path) -> None:
    if (found := inspect_folder(folder)).state == "not a run":
        raise RequestError(found.why)


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_another_form_is_damaged_or_of_a_newer_version(run, name):
    pattern, read = RECORDS[name]
    file = name.partition(" ")[0]
    if file == "connect.json":
        (run / file).write_text('{"metric": {}, "points": 3, "rows": []}')
    change(run / file, pattern, pattern.replace('"', '"new-', 1) if file.endswith(".json") else 'way = "snip"\n')
    for version, told in ((__version__, "damaged"), ("0.9.0", upgrade(run))):
        made_by(run, version)
        with pytest.raises(RequestError) as caught:
            read(run)
        assert told in str(caught.value)


def test_a_stopped_run_of_a_newer_version_does_not_go_on(begun):
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    made_by(begun, "0.9.0")
    with pytest.raises(RequestError) as caught:
        resume(begun, progress=False)
    assert caught.value.problems == [upgrade(begun)]
    made_by(begun, "0.1.0")
    assert (begun / "state.pt").read_bytes() == before[begun / "state.pt"]
    assert resume(begun, progress=False).finished


@pytest.mark.parametrize("form", ["keys", "kind"])
def test_a_state_of_a_later_form_is_told(begun, form):
    path = begun / "state.pt"
    state, buffer = torch.load(path, weights_only=True), io.BytesIO()
    torch.save({**state, "wheels": 4} if form == "keys" else state, buffer)
    data = seal(buffer.getvalue())
    path.write_bytes(data if form == "keys" else data.replace(b"supermask state 1", b"supermask state 2", 1))
    with pytest.raises(RequestError, match=r"later one.*'wheels'" if form == "keys" else "kind 2.* a later one"):
        resume(begun, progress=False)


def test_the_form_of_a_state_is_known(monkeypatch, tmp_path):
    state = torch.load(unseal(stopped(monkeypatch, tmp_path) / "state.pt"), weights_only=True)
    assert state.keys() | {"warnings"} == {*_KEYS, *_MORE}
