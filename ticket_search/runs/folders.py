"""Which folder is whose: names of runs, finding them, removing them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import filelock

from ..contract.errors import RequestError, nearest_hint
from ..contract.flags import Config, differences, read_toml, to_plain
from .names import default_name


def choose_folder(config: Config, runs: str | os.PathLike[str], name: str | None, dense: bool = False) -> Path:
    """The folder for a run of this configuration: new, or that of an unfinished run to resume.

    Raises:
        RequestError: a name that was asked for is taken by a finished run or by one of another configuration.
    """
    if name is not None and (name in ("", "..") or Path(name).name != name):
        raise RequestError(f"--name {name!r}: expected the name of a folder inside --runs, without separators")
    if Path(runs).exists() and not Path(runs).is_dir():
        raise RequestError(f"--runs {runs}: expected a folder, this is a file")
    base = name or default_name(config, dense)
    number = 1
    while True:
        folder = Path(runs) / (base if number == 1 else f"{base}-{number}")
        if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):
            return folder
        problem = _why_taken(folder, config)
        if problem is None:
            return folder
        if name is not None:
            raise RequestError(f"--name {name}: {problem}; choose another name, or `ticket runs rm {folder}`")
        number += 1


def _why_taken(folder: Path, config: Config) -> str | None:
    if not (folder / "config.toml").exists():
        return f"{folder} is not a run"
    if (folder / "summary.json").exists():
        return f"the run {folder} is finished"
    other = differences(read_toml(folder / "config.toml"), to_plain(config))
    return f"the unfinished run {folder} is another one ({', '.join(other)})" if other else None


def find_run(name: str, runs: str | os.PathLike[str] = "runs") -> Path:
    """The folder of a run by its path or its name under `runs`.

    Raises:
        RequestError: there is none; the nearest name is given.
    """
    for folder in (Path(name), Path(runs) / name):
        if (folder / "config.toml").exists():
            return folder
    there = [path.name for path in list_runs(runs)]
    near = nearest_hint(Path(name).name, there)
    raise RequestError(f"there is no run '{name}', neither here nor in {runs}{near}")


def list_runs(runs: str | os.PathLike[str] = "runs") -> list[Path]:
    """The folders of all runs under `runs`, by name."""
    return sorted(path.parent for path in Path(runs).glob("*/config.toml"))


def remove_run(folder: Path) -> None:
    """Delete a run's folder.

    Raises:
        RequestError: another process works on this run.
    """
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            shutil.rmtree(folder)
    except filelock.Timeout:
        raise RequestError(f"another process is working on {folder}") from None
