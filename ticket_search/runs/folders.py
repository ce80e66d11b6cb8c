"""The folders of runs: what is in them, which of them a run takes, finding them and removing them."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..contract.errors import RequestError, command_line, nearest_hint
from ..contract.flags import Config, differs_from
from ..trust.mark import MARK
from .locks import working_on
from .names import (
    CHECKSUMS,
    CONFIG,
    EARLIER_STATE,
    FAILURE,
    METRICS,
    SENT_TO,
    STATE,
    SUMMARY,
    TICKET,
    WRITTEN_WHOLE,
    default_name,
)  # fmt: skip
from .records import read_record
from .versions import too_new

State = Literal["new", "unfinished", "finished", "another run", "not a run"]
# How `write_atomically` names a temporary file: a dot, the file's name, a dot, and eight characters of `tempfile`.
_LEFTOVER = re.compile(rf"\.({'|'.join(map(re.escape, WRITTEN_WHOLE))})\.[a-z0-9_]{{8}}")


@dataclass(frozen=True)
class FolderState:
    """What is in a folder.

    state: `new` where nothing has been done in it yet: it is not there, or holds hidden files and notes of a failure
        only. `unfinished` and `finished`: a run, of the configuration that was asked about, if one was. `another run`:
        of another configuration, finished or not. `not a run`: anything else.
    why: where the state is `another run` or `not a run`, what is there instead.
    differs: how the configuration of another run differs.
    """

    folder: Path
    state: State
    why: str = ""
    differs: tuple[str, ...] = ()

    @property
    def taken(self) -> str:
        """Why no run may begin or go on there, where it was free a moment ago; nothing where it may."""
        found = {
            "finished": f"another process has finished {self.folder} meanwhile",
            "another run": f"another process has begun another run in {self.folder}: {', '.join(self.differs)}",
            "not a run": self.why,
        }
        return found.get(self.state, "")


def inspect_folder(folder: Path, config: Config | None = None) -> FolderState:
    """What is in a folder, for a run of a configuration or, without one, for any run. Nothing is changed."""
    if not folder.exists():
        return FolderState(folder, "new")
    if not folder.is_dir():
        return FolderState(folder, "not a run", f"{folder} is a file, expected the folder of a run")
    record = folder / CONFIG
    if not record.exists():
        # Hidden files are the file system's, the user's, our locks and what a killed process has left. The mark and the
        # checksums are written before the configuration.
        ours = (FAILURE, CHECKSUMS, MARK)
        if all(path.name.startswith(".") or path.name in ours for path in folder.iterdir()):
            return FolderState(folder, "new")
        # Between the two looks another process may have begun a run.
        if not record.exists():
            return FolderState(folder, "not a run", f"{folder} is not a run: it holds other files, and no {CONFIG}")
    try:
        values = read_record(folder, CONFIG)
    except RequestError as error:
        return FolderState(folder, "not a run", too_new(folder) or f"{folder} is a damaged run: {error}")
    if config is not None and (differs := differs_from(values, config)):
        return FolderState(
            folder, "another run", f"the run {folder} is another one ({', '.join(differs)})", (*differs,)
        )
    return FolderState(folder, "finished" if (folder / SUMMARY).exists() else "unfinished")


def is_finished(folder: Path) -> bool:
    """Whether the run in a folder is finished.

    What a process has left there that was killed just after it had finished the run, is removed.
    """
    if inspect_folder(folder).state != "finished":
        return False
    if any((folder / name).exists() for name in (STATE, EARLIER_STATE)):
        with contextlib.suppress(RequestError), working_on(folder):  # one who works on it removes them
            drop_states(folder)
    return True


def drop_states(folder: Path) -> None:
    """Remove the states of a run that has its result."""
    for name in (STATE, EARLIER_STATE):
        (folder / name).unlink(missing_ok=True)


def choose_folder(
    config: Config, runs: str | os.PathLike[str], name: str | None, dense: bool = False, again: bool = False
) -> Path:
    """The folder for a run of this configuration: a new one, or that of an unfinished run to resume.

    Args:
        config: of the run.
        runs: the folder of all runs.
        name: of the run's folder. If it is not given, the default name, with a number behind it where that is taken.
        dense: whether the run keeps every weight, for its default name.
        again: beside a finished run of this configuration make another, with a number behind the name.

    Raises:
        RequestError: the name that was asked for is no name of a folder, or it is taken by a finished run, by a run of
            another configuration, or by something else.
    """
    if name is not None and not _is_name(name):
        raise RequestError(
            f"--name {name!r}: expected the name of a folder inside --runs, printable and without separators"
        )
    if Path(runs).exists() and not Path(runs).is_dir():
        raise RequestError(f"--runs {runs}: expected a folder, this is a file")
    base = name or default_name(config, dense)
    number = 1
    while True:
        found = inspect_folder(Path(runs) / (base if number == 1 else f"{base}-{number}"), config)
        if found.state in ("new", "unfinished"):
            return found.folder
        if name is not None and not (again and found.state == "finished"):
            why = found.why or f"the run {found.folder} is finished"
            remove = "" if found.state == "not a run" else f", or `{command_line('runs', 'rm', found.folder)}`"
            raise RequestError(f"--name {name}: {why}; choose another name{remove}")
        number += 1


def _is_name(name: str) -> bool:
    return name not in ("", "..") and Path(name).name == name and name.isprintable()


def find_finished(
    config: Config, runs: str | os.PathLike[str], name: str | None, dense: bool = False
) -> Iterator[Path]:
    """The folders of finished runs of this configuration: under the name, or under the default one and its numbers."""
    if name is not None and not _is_name(name):
        return  # which `choose_folder` says
    base = name or default_name(config, dense)
    for number in itertools.count(1):
        found = inspect_folder(Path(runs) / (base if number == 1 else f"{base}-{number}"), config)
        if found.state == "finished" and is_finished(found.folder):
            yield found.folder
        if found.state == "new" or name is not None:
            return


def check_no_links(folder: Path) -> None:
    """Check that nothing that is written to a run's folder would be written elsewhere, by a link that lies in it.

    Raises:
        RequestError: there is a link.
    """
    for path in folder.rglob("*"):
        # Any other file is written beside its place, and then takes it.
        in_place = path.name in (METRICS, *SENT_TO.values()) or path.name.endswith(".lock") or ".tfevents." in path.name
        if path.is_symlink() and (in_place or path.is_dir()):
            raise RequestError(f"{path} is a link to {os.readlink(path)}: a run that goes on writes to its folder only")


_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".pkl", ".npz")


def find_leftovers(folder: Path) -> list[Path]:
    """The temporary files that a process has left in a run's folder because it was killed while it wrote them."""
    places = (folder, *folder.glob("levels/*/"))
    found = (path for place in places for path in place.iterdir() if _LEFTOVER.fullmatch(path.name))
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def find_run(name: str, runs: str | os.PathLike[str] = "runs") -> Path:
    """The folder of a run, given by its path or by its name under `runs`.

    Raises:
        RequestError: there is no such run; the nearest name is given.
    """
    for folder in (Path(name), Path(runs) / name):
        if (folder / CONFIG).exists():
            return folder
        if any((folder / ours).exists() for ours in (STATE, SUMMARY, CHECKSUMS)):
            raise RequestError(
                f"the run {folder} has lost its {CONFIG}, which says how it was searched: put that back, or remove the "
                "folder; a ticket in it can be used by its own path"
            )
    if inside := [path.name for path in list_runs(name)]:
        others = f" and {len(inside) - 1} more" if len(inside) > 1 else ""
        raise RequestError(f"{name} is a folder of runs and no run: choose one, as {Path(name, inside[0])}{others}")
    there = [path.name for path in list_runs(runs)]
    near = nearest_hint(Path(name).name, there)
    raise RequestError(f"there is no run '{name}', neither here nor in {runs}{near}")


def check_ticket_file(path: Path) -> None:
    """Check that a file may be a ticket by its name: the rest is seen when it is read.

    Raises:
        RequestError: it is code, or a checkpoint, with what it is good for.
    """
    if path.suffix == ".py":
        raise RequestError(
            f"{path} is Python code: expected a ticket, a .safetensors file, or the folder or name of a run; a network "
            f"of your own is --model {path.stem}:FUNCTION"
        )
    if path.suffix in _CHECKPOINTS:
        raise RequestError(
            f"{path} is a checkpoint: expected a ticket, a .safetensors file, or the folder or name of a run; "
            f"`ticket search --weights {path}` starts from its weights"
        )


def folder_of_ticket(ticket: Path) -> Path:
    """The folder that would be that of a ticket file's run: the one that it lies in, or, of a level's, two above."""
    place = ticket.resolve().parent
    return place.parents[1] if place.parent.name == "levels" and place.name.isdecimal() else place


def describe_missing_ticket(folder: Path) -> str:
    """Why a run's folder has no ticket, and what to do."""
    if not (folder / SUMMARY).exists():
        return f"the run {folder} is not finished; `{command_line('resume', folder)}` goes on"
    levels = sorted(folder.glob(f"levels/*/{TICKET}"))
    kept = f"that of its last level is {levels[-1]}, which may be copied there; otherwise " if levels else ""
    remove = f"`{command_line('runs', 'rm', folder)}` removes it"
    return f"the run {folder} is finished, but {TICKET} is missing: {kept}{remove}"


def list_runs(runs: str | os.PathLike[str] = "runs") -> list[Path]:
    """The folders of all runs under `runs`, sorted by name."""
    return sorted(path.parent for path in Path(runs).glob(f"*/{CONFIG}"))


def remove_run(folder: Path) -> None:
    """Delete a run's folder with all that is in it.

    Raises:
        RequestError: another process is working on this run, or it is a link to one.
    """
    if folder.is_symlink():
        raise RequestError(f"{folder} is a link to {folder.resolve()}: remove the link itself, or name that run")
    with working_on(folder):
        shutil.rmtree(folder)
