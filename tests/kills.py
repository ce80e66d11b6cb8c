"""Commands that are killed at random instants and given again: what they leave in the end is what they leave unkilled.

    python tests/kills.py --kills 300 --folder EMPTY     # from the project's root; some half an hour

Killed is the whole of a command, or of a sweep also its first process alone, or one of the others. In the end every file
must be that of a command that was never killed, but for times; no file may be left over, no process, and no exception.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FLAGS = [
    "--runs", "runs", "--name", "run", "--threads", "1", "--epochs", "3", "--train-size", "640", "--evaluate-every",
    "5it",
]  # fmt: skip
_SEARCHES = {
    "imp": ["--density", "0.4", "--fraction", "0.4", "--rewind", "4it"],
    "edge-popup": [],
    "gradual": ["--density", "0.2"],
    "filters": ["--model", "conv2", "--model-args", "width=0.25"],
    "rigl": ["--density", "0.2"],
    "iterand": [],
    "gates": [],
}
SWEEP = """seeds = "0-1"
controls = ["reinit"]
[base]
method = "imp"
density = 0.5
fraction = 0.3
epochs = 2
train_size = 640
threads = 1
"""
# The words of each kind of command; those that are given to a finished run begin with a search that is not killed.
COMMANDS: dict[str, list[str]] = {
    **{name: ["search", "--method", name, *FLAGS, *more] for name, more in _SEARCHES.items()},
    "controls": ["controls", "runs/run", "--controls", "reinit,shuffle"],
    "connect": ["connect", "runs/run", "--rewind", "0,4it", "--arms", "dense,ticket"],
    "sweep": ["sweep", "some.toml", "--jobs", "2"],
}
BEFORE = {name: COMMANDS["imp"] for name in ("controls", "connect")}
# Where a process looks whether the first one of its sweep is still there, it ends within so many seconds.
_ORPHANS_END = 5.0
_TIMES = ("seconds", "started", "command", "time")


def start(words: Sequence[str], folder: Path) -> int:
    """`ticket WORDS` in a folder, in a process and a group of its own: what it says is in `out.txt`."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setsid()
        os.chdir(folder)
        with Path("out.txt").open("a") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        code = _carry_out(words)
    except BaseException:
        traceback.print_exc()
    finally:
        leave(code)


def leave(code: int) -> None:
    """End a process that was forked: what is flushed is told, and nothing else is taken apart."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _carry_out(words: Sequence[str]) -> int:
    from ticket_search.cli import main

    # Spawned processes import PyTorch each, which takes longer than the runs.
    get_context = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: get_context("fork")
    sys.argv = ["ticket", *words]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def wait(pid: int) -> int:
    """The exit code of a process that was started."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def members(group: int) -> list[int]:
    """The processes of a group that are alive."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                state, _, members_of = (path / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(members_of) == group and state != "Z":
                found.append(int(path.name))
    return found


def kill(pid: int, draw: random.Random) -> str:
    """Kill a command, or a part of it; what was killed."""
    others = [each for each in members(pid) if each != pid]
    target = draw.choice(["all", "first", "other"]) if others else "all"
    if target == "all":
        os.killpg(pid, signal.SIGKILL)
    else:
        os.kill(pid if target == "first" else draw.choice(others), signal.SIGKILL)
    return target


def prepare(kind: str, folder: Path, before: Path | None) -> None:
    """What is there before a command is given."""
    folder.mkdir(parents=True)
    if before is not None:
        shutil.copytree(before / "runs", folder / "runs")
    (folder / "some.toml").write_text(SWEEP)


def contents(folder: Path) -> dict[str, Any]:
    """All files that are left in the folder of runs, without times."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "runs").rglob("*")):
        if path.is_dir() or path.name in (".lock", ".controls.lock", ".connect.lock", "checksums.json"):
            continue
        name = str(path.relative_to(folder))
        if path.name.startswith("events.out"):
            place = str(path.parent.relative_to(folder)) + "/events@" + path.name.partition("@")[2]
            found.setdefault(place, []).extend(events_in(path))
        elif path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = [without_times(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".toml":
            found[name] = tomllib.loads(path.read_text())
        else:
            found[name] = path.read_bytes()
    return found


def events_in(path: Path) -> list[tuple[str, int, Any]]:
    """Tag, step and value of what an event file holds."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return [
        (value.tag, event.step, value.simple_value if value.HasField("simple_value") else value.WhichOneof("value"))
        for event in LegacyEventFileLoader(str(path)).Load()
        for value in event.summary.value
        if not value.tag.startswith("speed/")
    ]


def without_times(value: Any) -> Any:
    """A value of JSON without what depends on how long something takes."""
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if key not in _TIMES and not key.startswith("speed/")}
        return {key: without_times(each) for key, each in kept.items()}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The files that only one has, or that differ."""
    found = [f"only in the first: {name}" for name in one.keys() - other.keys()]
    found += [f"only in the second: {name}" for name in other.keys() - one.keys()]
    return found + [f"differs: {name}" for name in one.keys() & other.keys() if one[name] != other[name]]


def whole(kind: str, folder: Path) -> tuple[dict[str, Any], float, Path | None]:
    """What a command leaves that is not killed, how long it takes, and what it begins with."""
    before = None
    if kind in BEFORE:
        before = folder / f"before-{kind}"
        prepare(kind, before, None)
        assert wait(start(BEFORE[kind], before)) == 0, (before / "out.txt").read_text()
    place = folder / f"whole-{kind}"
    prepare(kind, place, before)
    began = time.monotonic()
    assert wait(start(COMMANDS[kind], place)) == 0, (place / "out.txt").read_text()
    return contents(place), time.monotonic() - began, before


def kill_and_resume(
    kind: str, folder: Path, expected: dict[str, Any], seconds: float, before: Path | None, draw: random.Random
) -> tuple[list[str], list[str]]:
    """Kill a command once or more, then let it end. What is wrong with what it leaves, and what was killed."""
    prepare(kind, folder, before)
    killed: list[str] = []
    wrong: list[str] = []
    while not killed or draw.random() < 0.3:
        pid = start(COMMANDS[kind], folder)
        time.sleep(draw.uniform(0, 1.05 * seconds))
        killed.append(kill(pid, draw))
        if killed[-1] == "other":
            wrong += _end_of(pid, folder)
        else:
            wait(pid)
        deadline = time.monotonic() + _ORPHANS_END
        while (left := members(pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if left:
            wrong.append(f"{len(left)} processes are left after {_ORPHANS_END:g} s")
            os.killpg(pid, signal.SIGKILL)
    wrong += _end_of(start(COMMANDS[kind], folder), folder)
    return wrong + differences(expected, contents(folder)), killed


def _end_of(pid: int, folder: Path) -> list[str]:
    code, said = wait(pid), (folder / "out.txt").read_text()
    wrong = [f"exit code {code}: {said[-2000:]}"] if code else []
    return wrong + ([said[-2000:]] if "Traceback" in said else [])


def run(kinds: Sequence[str], kills: int, seed: int, folder: Path) -> Counter[str]:
    """So many kills over the kinds of commands. Raises AssertionError with all that is wrong."""
    draw, done, problems = random.Random(seed), Counter[str](), []
    known = {kind: whole(kind, folder) for kind in kinds}
    number = 0
    while sum(done.values()) < kills:
        kind = kinds[number % len(kinds)]
        place = folder / f"killed-{number}"
        wrong, killed = kill_and_resume(kind, place, *known[kind], draw)
        number += 1
        done[kind] += len(killed)
        if wrong:
            problems.append(f"{kind} ({place}, {killed}): {'; '.join(wrong)}")
            print(problems[-1], flush=True)
        else:
            shutil.rmtree(place)
    assert not problems, "\n".join(problems)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(COMMANDS))
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder, best in memory")
    given = parser.parse_args()
    began = time.monotonic()
    done = run(given.kinds.split(","), given.kills, given.seed, given.folder)
    print(f"{sum(done.values())} kills in {time.monotonic() - began:.0f} s, nothing wrong: {dict(done)}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import forked

    assert forked.IMPORTED
    main()
