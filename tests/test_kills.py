"""Nothing is lost: kills at random instants, a disk that fails at any write, folders that are moved. See kills.py, faults.py."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import faults
import kills
import pytest
from processes import run_python

from ticket_search import Interrupted, resume, search
from ticket_search.cli import main
from ticket_search.running.controls import controls
from ticket_search.runs.outputs import write_output
from ticket_search.training import loop


def program(name: str, folder: Path, *words: str) -> str:
    """What a program of the tests prints, run by itself: it forks, which a process with many threads must not."""
    done = run_python(f"import {name}; {name}.main()", "--folder", folder, *words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


pytestmark = pytest.mark.usefixtures("forkserver_with_torch")


def test_searches_that_are_killed_leave_what_unkilled_ones_leave(tmp_path):
    assert "nothing wrong" in program("kills", tmp_path, "--kills", "3", "--kinds", "imp,edge-popup")


@pytest.mark.slow
def test_commands_of_every_kind_that_are_killed_leave_what_unkilled_ones_leave(tmp_path):
    assert "nothing wrong" in program("kills", tmp_path, "--kills", "300")


def test_a_disk_that_fails_leaves_a_run_that_goes_on(tmp_path):
    assert "nothing wrong" in program("faults", tmp_path, "--every", "76", "--ways", "full,killed")


@pytest.mark.slow
def test_a_disk_that_fails_at_any_write_leaves_a_run_that_goes_on(tmp_path):
    assert "nothing wrong" in program("faults", tmp_path)


def test_the_harness_sees_what_is_wrong(quick, tmp_path):
    """A run that differs in a number, in a file more, in a byte of a mask: each is found."""
    run = quick("dense")
    folder = tmp_path / "copy"
    shutil.copytree(tmp_path / "runs", folder / "runs")
    place = folder / "runs" / run.path.name
    whole = kills.contents(tmp_path)
    assert kills.differences(whole, kills.contents(folder)) == []
    for name, change in [
        ("metrics.jsonl", lambda text: text.replace(b'"step": 5', b'"step": 6')),
        ("summary.json", lambda text: text.replace(b'"kept": ', b'"kept": 1')),
        ("ticket.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("config.toml", lambda text: text.replace(b"epochs = 3", b"epochs = 4")),
    ]:
        was = (place / name).read_bytes()
        (place / name).write_bytes(change(was))
        assert (place / name).read_bytes() != was
        assert [each.partition(": ")[0] for each in kills.differences(whole, kills.contents(folder))] == ["differs"], (
            name
        )
        (place / name).write_bytes(was)
    (place / ".state.pt.abcd1234").touch()
    assert kills.differences(whole, kills.contents(folder)) == [
        f"only in the second: runs/{run.path.name}/.state.pt.abcd1234"
    ]
    assert kills.without_times({"seconds": 1, "speed/x": 2, "a": [{"seconds": 3, "b": 4}]}) == {"a": [{"b": 4}]}
    disk = faults.Disk(tmp_path, 2, "io")
    disk.write(tmp_path / "one")
    disk.write("/elsewhere")
    with pytest.raises(OSError, match="Input/output"):
        disk.write(tmp_path / "two")
    disk.write(tmp_path / "three")


@pytest.fixture
def stopped(quick, monkeypatch):
    """A run with a control that was stopped in its middle."""
    run = quick("one-shot", density=0.5)
    train_on = loop._Loop._train_on

    def stop(self, x, y):
        train_on(self, x, y)
        if self.step == 8:
            self.run.stop()

    with monkeypatch.context() as patched:
        patched.setattr(loop._Loop, "_train_on", stop)
        with pytest.raises(Interrupted):
            controls(run.path, ["reinit"], progress=False)
        with pytest.raises(Interrupted):
            quick("imp", density=0.5, name="stopped")
    return run.path.parent


def moved(folder: Path, to: Path) -> Path:
    return Path(shutil.move(folder, to))


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def linked(folder: Path, to: Path) -> Path:
    to.symlink_to(folder, target_is_directory=True)
    return to


@pytest.mark.parametrize(
    ("way", "name"), [(moved, "elsewhere"), (copied, "a folder with spaces"), (linked, "Ordner-für-Läufe-🎫")]
)
def test_folders_of_runs_may_be_moved(way, name, stopped, tmp_path, quick):
    whole = quick("imp", "whole", density=0.5)
    place = way(stopped, tmp_path / name)
    again = resume(place / "stopped", progress=False)
    assert (again.path / "ticket.safetensors").read_bytes() == (whole.path / "ticket.safetensors").read_bytes()
    (found,) = [path for path in place.iterdir() if path.name.startswith("one-shot")]
    (control,) = (found / "controls").iterdir()
    state = control / "state.pt"
    assert state.exists()
    (row,) = controls(found, ["reinit"], progress=False)
    assert row["trained"] and not state.exists() and len(list((found / "controls").iterdir())) == 1


@pytest.mark.parametrize("content", ["text", b"\0bytes"])
def test_what_a_user_names_is_written_whole_through_links_and_into_pipes(content, tmp_path, monkeypatch):
    data = content.encode() if isinstance(content, str) else content
    (tmp_path / "real").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "file.txt")
    write_output(tmp_path / "link.txt", content)
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real" / "file.txt").read_bytes() == data
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
    write_output(tmp_path / "pipe", content)
    assert reader.communicate()[0] == data
    code = f"from ticket_search.runs.outputs import write_output; write_output('/dev/stdout', {content!r})"
    assert run_python(code).stdout == data.decode()
    monkeypatch.setattr(
        "supermask.tickets.file.os.fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.EIO, "x"))
    )
    with pytest.raises(OSError, match="x"):
        write_output(tmp_path / "real" / "file.txt", b"other")
    assert (tmp_path / "real" / "file.txt").read_bytes() == data
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["file.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_by_every_command(number, ticket, quick, monkeypatch):
    run = quick("one-shot", density=0.5)
    monkeypatch.setattr(
        "ticket_search.cli.compare.write_output",
        lambda path, content: (_ for _ in ()).throw(OSError(number, os.strerror(number), path)),
    )
    told = ticket("compare", str(run.path), "--csv", "table.csv")
    assert told.code == 1 and "error: the disk is full, so that table.csv cannot be written: make room" in told.err


def test_a_run_on_a_full_disk_says_how_it_goes_on(quick, monkeypatch, tmp_path, ticket):
    def fail(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    train_on = loop._Loop._train_on

    def fill(self, x, y):
        train_on(self, x, y)
        if self.step == 7:
            monkeypatch.setattr("supermask.tickets.file.os.fsync", fail)

    monkeypatch.setattr(loop._Loop, "_train_on", fill)
    words = ["search", "--method", "dense", "--epochs", "2", "--train-size", "320", "--threads", "1", "--name", "x"]
    told = ticket(*words)
    assert told.code == 1
    assert "cannot be written: No space left on device; the run is as it was when it was last saved" in told.err
    assert "`ticket resume runs/x` goes on from there" in told.err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ticket", "resume", "runs/x", "--json"])
    with pytest.raises(SystemExit):
        main()
    whole = search("dense", epochs=2, train_size=320, threads=1, name="whole", progress=False)
    left = json.loads((tmp_path / "runs/x/summary.json").read_text())
    assert left["test_accuracy"] == whole.summary["test_accuracy"]
