"""What stops a run: signals, and the time that it was given. One line at any instant, and nothing is lost."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import pytest
from processes import start_python
from test_sweep import wait_for

from ticket_search import Interrupted, RequestError, search
from ticket_search.contract import stops
from ticket_search.runs import locks
from ticket_search.training import loop

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 130, signal.SIGHUP: 130, signal.SIGUSR1: 75}


@pytest.fixture
def sent(monkeypatch):
    """A signal reaches this process before a step of training: `sent(signal.SIGHUP, step=2)`."""
    train_on = loop._Loop._train_on

    def send(number, step=2, times=1):
        def train(self, x, y):
            if self.step == step:
                for _ in range(times):
                    os.kill(os.getpid(), number)
            train_on(self, x, y)

        monkeypatch.setattr(loop._Loop, "_train_on", train)

    return send


@pytest.mark.parametrize("number", STATUS)
def test_every_signal_saves_and_is_told_with_its_status(number, sent, ticket):
    sent(number)
    words = [
        "search",
        "--method",
        "edge-popup",
        "--epochs",
        "2",
        "--train-size",
        "320",
        "--threads",
        "1",
        "--name",
        "x",
    ]
    stopped = ticket(*words)
    assert stopped.code == STATUS[number]
    assert stopped.err.rstrip().endswith("stopped; continue with:\n  ticket resume runs/x")
    assert Path("runs/x/state.pt").exists() and not Path("runs/x/.holder").exists()


@pytest.mark.parametrize("number", STATUS)
def test_in_python_the_exception_says_what_to_exit_with(number, sent, quick):
    sent(number)
    before = {each: signal.getsignal(each) for each in stops.SIGNALS}
    with pytest.raises(Interrupted) as stopped:
        quick("dense")
    assert stopped.value.status == STATUS[number]
    assert before == {each: signal.getsignal(each) for each in stops.SIGNALS}


def test_a_second_signal_stops_at_once(sent, quick):
    sent(signal.SIGINT, times=2)
    with pytest.raises(KeyboardInterrupt) as stopped:
        quick("dense")
    assert not isinstance(stopped.value, Interrupted)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_is_ignored_stays_ignored(number, sent, quick):
    """As a hangup is under `nohup`."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        sent(number)
        assert quick("dense").finished
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_another_thread_leaves_signals_alone():
    found = []

    def work():
        with stops.stopping_on_signals(found.append):
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


def test_time_that_is_over_stops_a_run(ticket, monkeypatch):
    train_on = loop._Loop._train_on
    monkeypatch.setattr(loop._Loop, "_train_on", lambda *args: (time.sleep(0.05), train_on(*args)))
    words = ["--epochs", "30", "--train-size", "320", "--threads", "1", "--name", "x", "--max-minutes", "0.01"]
    stopped = ticket("search", "--method", "dense", *words)
    assert stopped.code == 75 and "ticket resume runs/x" in stopped.err
    again = ticket("resume", "runs/x", "--max-minutes", "0.005")
    assert again.code == 75 and "ticket resume runs/x" in again.err


@pytest.mark.parametrize("given", ["", "-1", "x", "1e3", "inf"])
@pytest.mark.parametrize("command", ["search", "train"])
def test_minutes_that_are_none(command, given, ticket):
    told = ticket(*{"search": ["search"], "train": ["train", "t.safetensors"]}[command], "--max-minutes", given)
    assert told.code == 2 and f"--max-minutes {given}: expected a number of minutes, 0 or more" in told.err


INTERRUPTED = """
import signal, sys
from ticket_search.contract import stops
stops.end_on_signals()
import {module}
"""


@pytest.mark.parametrize(("number", "status"), STATUS.items())
def test_a_signal_within_an_import_ends_with_one_line(number, status, tmp_path):
    """Also where the import is that of a compiled module, which would make another exception of it."""
    (tmp_path / "slow.py").write_text(
        f"import os, time\ntry:\n    os.kill(os.getpid(), {int(number)})\n    time.sleep(9)\nexcept BaseException as e:\n"
        "    raise ImportError('a module that cannot be imported') from None\n"
    )
    code = INTERRUPTED.format(module="slow")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([".", *filter(None, sys.path)])},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (status, "\nstopped; nothing was written\n")


@pytest.mark.parametrize(("number", "status"), STATUS.items())
def test_a_signal_to_a_command_that_saves_nothing_is_told_too(number, status, ticket, monkeypatch):
    monkeypatch.setattr("ticket_search.cli.catalog.print_table", lambda *_: os.kill(os.getpid(), number))
    before = {each: signal.getsignal(each) for each in stops.SIGNALS}
    try:
        stops.end_on_signals()
        told = ticket("models")
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert (told.code, told.err) == (status, "\nstopped\n")


def test_what_is_done_is_not_undone_by_a_signal(tmp_path):
    """Python puts every signal back that it has taken over, before it has taken itself apart."""
    code = (
        "import atexit, os, signal, sys\n"
        "from ticket_search.__main__ import main\n"
        "from ticket_search.contract import stops\n"
        "sys.argv = ['ticket', '--version']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "[os.kill(os.getpid(), number) for number in stops.SIGNALS]\n"
        "assert {signal.getsignal(number) for number in stops.SIGNALS} == {signal.SIG_IGN}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("supermask")


def _wait_for_first_line(process: subprocess.Popen) -> None:
    """Until the process takes the last of the signals over, as its first line does: on a busy machine that takes long."""
    bit = 1 << (signal.SIGUSR1 - 1)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if int(re.search(r"SigCgt:\s*([0-9a-f]+)", status)[1], 16) & bit:
            return
        time.sleep(0.01)


@pytest.mark.slow
def test_ctrl_c_at_any_instant_is_one_line(tmp_path):
    """From the first line of ours on: before it, Python says what it says."""
    words = [sys.executable, "-m", "ticket_search", "search", "--epochs", "2", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for number in range(40):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True, env=environment)
        _wait_for_first_line(process)
        time.sleep(0.15 * number)
        if process.poll() is None:
            process.send_signal(list(STATUS)[number % 4])
        err = process.communicate(timeout=60)[1]
        assert "Traceback" not in err
        assert process.returncode == 0 or (process.returncode == list(STATUS.values())[number % 4] and "stopped" in err)


RACE = """
import sys, time
from pathlib import Path
from ticket_search.cli import main, search
from ticket_search.training import loop
search._carry_out_announced = search.running.search.carry_out
train_on = loop._Loop._train_on
def slowly(*args):
    time.sleep(0.05)
    train_on(*args)
loop._Loop._train_on = slowly
while not Path(sys.argv[-1]).exists():
    time.sleep(0.001)
sys.argv = sys.argv[:-1]
main()
"""


def race(folder: Path, pairs: int) -> None:
    """Two processes begin one run at the same time: one is told who the other is, and the run is whole."""
    for number in range(pairs):
        gun = folder / f"gun-{number}"
        words = ["search", "--method", "dense", "--epochs", "2", "--train-size", "320", "--threads", "1", "--name", "x",
                 "--runs", folder / f"runs-{number}", gun]  # fmt: skip
        places = [folder / f"{number}-{which}" for which in "ab"]
        for place in places:
            place.mkdir()
        both = [start_python(place, RACE, *words) for place in places]
        time.sleep(0.3)
        gun.touch()
        for process in both:
            process.join(60)
        run = folder / f"runs-{number}" / "x"
        told = {process.exitcode: (place / "stderr").read_text() for process, place in zip(both, places, strict=True)}
        assert told.keys() == {0, 2}, told
        other = next(process.pid for process in both if process.exitcode == 0)
        assert re.search(
            rf"another process is working on .*x: process {other} \(-c\) on .*this machine.*, since 20", told[2]
        )
        assert (run / "summary.json").exists() and not (run / ".holder").exists()


def test_of_two_that_begin_at_once_one_works_and_the_other_is_told_who(forkserver_with_torch, tmp_path):
    race(tmp_path, 2)


@pytest.mark.slow
def test_of_a_hundred_pairs_that_begin_at_once_one_works_each(forkserver_with_torch, tmp_path):
    race(tmp_path, 100)


@pytest.mark.parametrize("left", [None, "{", '{"host": "h", "pid": 1, "since": "x", "command": "\\u001b[31m"}'])
def test_who_holds_a_run_is_told_where_it_is_known(left, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_LOOKS", 2)
    folder = tmp_path / "runs" / "x"
    folder.mkdir(parents=True)
    with filelock.FileLock(folder / ".lock"):
        if left is not None:
            (folder / ".holder").write_text(left)
        with pytest.raises(RequestError, match="another process is working on .*/x") as told:
            quick("dense", name="x")
        assert (": process 1" in str(told.value)) == bool(left and "host" in left)


def test_a_dead_holder_is_not_named(tmp_path, monkeypatch):
    process = subprocess.Popen(["true"])
    process.wait()
    monkeypatch.setattr(locks, "_LOOKS", 2)
    holder = locks.Holder(host=socket.gethostname(), pid=process.pid, since="now")
    (tmp_path / ".holder").write_text(holder.model_dump_json())
    assert locks.read_holder(tmp_path) == holder and locks._wait_for_holder(tmp_path) is None
    (tmp_path / ".holder").write_text(holder.model_copy(update={"pid": os.getpid()}).model_dump_json())
    assert locks._wait_for_holder(tmp_path).pid == os.getpid()


def test_a_dead_holder_holds_nothing(forkserver_with_torch, tmp_path):
    code = RACE.replace("time.sleep(0.05)", "time.sleep(60)")
    (tmp_path / "go").touch()
    (tmp_path / "said").mkdir()
    words = ["search", "--method", "dense", "--epochs", "1", "--train-size", "320", "--threads", "1", "--name", "x", "--runs",
             tmp_path / "runs", tmp_path / "go"]  # fmt: skip
    process = start_python(tmp_path / "said", code, *words)
    run = tmp_path / "runs" / "x"
    wait_for((run / "config.toml").exists)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert (run / ".holder").exists()
    flags = {"epochs": 1, "train_size": 320, "threads": 1, "name": "x", "runs": tmp_path / "runs", "progress": False}
    assert search("dense", **flags).finished
    assert not (run / ".holder").exists()


def test_a_time_limit_never_kills_a_process_that_listens_to_no_signal():
    code = "import time; from ticket_search.contract.stops import stop_after; stop_after(0.001); time.sleep(0.5)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
