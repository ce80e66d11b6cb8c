"""A disk that fails at one write of a search after another: what is left resumes to what an unharmed search leaves.

    python tests/faults.py --folder EMPTY          # from the project's root; every write, each in four ways

A write is whatever changes the disk: a file made, bytes written to it, flushed, synced, renamed, cut short or removed. The
disk is full from there on, or the one write fails (EIO, or no permission), or the process is killed in its middle, with
half of the bytes written.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import io
import os
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kills import contents, differences, leave, wait

WAYS = ("full", "io", "permission", "killed")
_ERRORS = {"full": errno.ENOSPC, "io": errno.EIO, "permission": errno.EACCES}
# A process that was killed by us.
_KILLED = 77
FLAGS: dict[str, Any] = {
    "density": 0.5, "fraction": 0.5, "epochs": 2, "threads": 1, "train_size": 160, "batch_size": 80, "name": "run",
    "evaluate_every": "1it", "model_args": ("width=0.1",), "progress": False, "runs": "runs",
}  # fmt: skip


class Disk:
    """Counts the writes below a folder, and fails at one of them."""

    def __init__(self, folder: Path, fails_at: int | None = None, way: str = "full") -> None:
        self.folder, self.fails_at, self.way = str(folder.resolve()), fails_at, way
        self.writes = 0

    def write(self, name: Any, half: Callable[[], Any] | None = None) -> None:
        """A write to a file of this name is due; `half` does half of it."""
        if isinstance(name, int) or not os.path.abspath(os.fsdecode(name)).startswith(self.folder):
            return
        self.writes += 1
        if self.fails_at is None or self.writes < self.fails_at or (self.writes > self.fails_at and self.way != "full"):
            return
        if half is not None and self.writes == self.fails_at:
            half()
        if self.way == "killed":
            os._exit(_KILLED)
        raise OSError(_ERRORS[self.way], os.strerror(_ERRORS[self.way]), os.fsdecode(name))

    def install(self) -> None:
        """From now on all writes of this process are counted."""
        for name in ("replace", "unlink", "mkdir", "truncate", "chmod"):
            setattr(os, name, self._before(getattr(os, name), frees=name in ("unlink", "truncate")))
        opened, fdopened, made, synced = io.open, os.fdopen, os.open, os.fsync

        def open_file(file: Any, mode: str = "r", *args: Any, **keywords: Any) -> Any:
            if set(mode) & set("wax+"):
                self.write(file)
                return _File(opened(file, mode, *args, **keywords), self, file)
            return opened(file, mode, *args, **keywords)

        def make(path: Any, flags: int, *args: Any, **keywords: Any) -> int:
            if flags & os.O_CREAT:
                self.write(path)
            return made(path, flags, *args, **keywords)

        def open_handle(handle: int, *args: Any, **keywords: Any) -> Any:
            return _File(fdopened(handle, *args, **keywords), self, os.readlink(f"/proc/self/fd/{handle}"))

        def sync(handle: int) -> None:
            self.write(os.readlink(f"/proc/self/fd/{handle}"))
            synced(handle)

        io.open = builtins.open = open_file
        os.fdopen, os.open, os.fsync = open_handle, make, sync

    def _before(self, function: Callable[..., Any], frees: bool) -> Callable[..., Any]:
        def counted(path: Any, *args: Any, **keywords: Any) -> Any:
            if not (frees and self.way == "full"):  # what frees room needs none
                self.write(path)
            return function(path, *args, **keywords)

        return counted


class _File:
    """A file that tells the disk of what is written to it."""

    def __init__(self, file: Any, disk: Disk, name: Any) -> None:
        self.__dict__.update(_file=file, _disk=disk, _name=name)

    def __getattr__(self, key: str) -> Any:
        return getattr(self._file, key)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)

    def write(self, data: Any) -> int:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._disk.write(self._name, half)
        return int(self._file.write(data))

    def truncate(self, *args: Any) -> int:
        if self._disk.way != "full":
            self._disk.write(self._name)
        return int(self._file.truncate(*args))


def search_in(folder: Path, disk: Disk | None) -> int:
    """The exit code of a process that searches in a folder: what it says is in `out.txt` beside it."""
    if pid := os.fork():
        return wait(pid)
    code = 99
    try:
        said = folder.with_suffix(".txt").open("a")
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        os.chdir(folder)
        code = _search(disk)
    except BaseException:
        traceback.print_exc()
    finally:
        leave(code)


def _search(disk: Disk | None) -> int:
    from ticket_search import RequestError, RunError, search
    from ticket_search.runs import run

    run._SECONDS_BETWEEN_STATES = (0.0, 0.0)
    if disk is not None:
        disk.install()
    try:
        search("imp", **FLAGS)
    except (RunError, RequestError) as error:
        print(f"told: {error}")
        return 1
    except OSError as error:
        print(f"told by the command: {error}")
        return 2
    if disk is not None:
        print(f"writes: {disk.writes}")
    return 0


def count_writes(folder: Path) -> tuple[int, dict[str, Any]]:
    """How many writes a search takes, and what it leaves."""
    whole = folder / "whole"
    whole.mkdir()
    assert search_in(whole, Disk(whole)) == 0, whole.with_suffix(".txt").read_text()
    return int(whole.with_suffix(".txt").read_text().rpartition("writes: ")[2]), contents(whole)


def fail_at(number: int, way: str, folder: Path, expected: dict[str, Any]) -> list[str]:
    """Let one write fail, and search again on a disk that works. What is wrong then."""
    place = folder / f"{way}-{number}"
    place.mkdir()
    code, wrong = search_in(place, Disk(place, number, way)), []
    if code not in (0, 1, 2, _KILLED):
        wrong.append("it ended with an exception that is not ours")
    again = search_in(place, None)
    said = place.with_suffix(".txt").read_text()
    if again:
        wrong.append(f"it does not go on: exit code {again}")
    else:
        wrong += differences(expected, contents(place))
    if wrong:
        return [f"write {number}, {way}: {'; '.join(wrong)}: {said[-1500:]}"]
    shutil.rmtree(place)
    place.with_suffix(".txt").unlink()
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder, best in memory")
    parser.add_argument("--ways", default=",".join(WAYS), help="some of them")
    parser.add_argument("--first", type=int, default=1, help="the first write that fails")
    parser.add_argument("--every", type=int, default=1, help="only each of so many writes")
    given = parser.parse_args()
    began = time.monotonic()
    writes, expected = count_writes(given.folder)
    print(f"{writes} writes", flush=True)
    problems, done = [], 0
    for number in range(given.first, writes + 1, given.every):
        for way in given.ways.split(","):
            done += 1
            found = fail_at(number, way, given.folder, expected)
            problems += found
            for problem in found:
                print(problem, flush=True)
    assert not problems, f"{len(problems)} of {done} go wrong"
    print(f"{done} faults at {writes} writes in {time.monotonic() - began:.0f} s, nothing wrong")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import forked

    assert forked.IMPORTED
    main()
