"""The states that a run resumes from: the newest and the one before it, each checked whole before it is believed."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from supermask import __version__
from supermask.tickets.file import write_atomically
from supermask.tickets.strict_json import parse_json

from ..contract.errors import RequestError, RunError, command_line
from .forms import check_form
from .names import EARLIER_STATE, METRICS, STATE
from .records import digest_of_start, is_row, seal, unseal
from .versions import too_new

# What every version has saved; what this one may have saved besides. What else there is, only a later one knows.
_KEYS = ("stages", "training", "start", "seconds", "metrics_bytes", "event_bytes")
_MORE = ("data", "metrics_sha256", "bad_images", "warnings")
# A disk with less room than for so many states is told of.
_STATES_TO_COME = 3


def pack_state(content: Mapping[str, Any]) -> bytes:
    """The bytes of a state, which tell whether they are whole."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    return seal(buffer.getvalue())


def write_state(folder: Path, data: bytes) -> None:
    """Keep the bytes of a state as the newest, and the newest so far as the one before it."""
    newest = folder / STATE
    if newest.exists():
        os.replace(newest, folder / EARLIER_STATE)
    write_atomically(newest, data)


def check_room(folder: Path, size: int) -> str:
    """What to say of a disk that has room for few more states of so many bytes; nothing where there is enough.

    Raises:
        RunError: there is not room for one.
    """
    free = shutil.disk_usage(folder).free
    told = f"saving the state of {folder} takes {size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free on its disk"
    if free < size:
        raise RunError(f"{told}; make room, then {_goes_on(folder)} from the state that was saved before")
    return f"{told}: make room while the run goes on" if free < _STATES_TO_COME * size else ""


def read_newest(folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The newest state that is whole, or that of a run that has not begun; `say` is told what is damaged.

    A state belongs to the rows that were logged before it. Where the rows of no state are what they were, the newest
    whole state is taken with those that can be read: its numbers are checked by themselves.

    Raises:
        RequestError: there are states, and none is whole.
    """
    files = [path for name in (STATE, EARLIER_STATE) if (path := folder / name).exists()]
    if not files:
        return {**dict.fromkeys(("training", "start")), "stages": {}, "seconds": 0.0, "metrics_bytes": 0,
                "event_bytes": {}}  # fmt: skip
    if newer := too_new(folder):
        raise RequestError(newer)
    problems: list[str] = []
    whole: list[tuple[Path, dict[str, Any]]] = []
    for path in files:
        try:
            state = read_state(path)
        except RequestError as error:
            problems.append(str(error))
            continue
        if rows_are_whole(folder / METRICS, state):
            if problems:
                say(f"{problems[0]}; going on from {path.name}, which was saved before it")
            return state
        problems.append(f"{folder / METRICS} is damaged: it is not what it was when {path.name} was saved")
        whole.append((path, state))
    if not whole:
        remove = command_line("runs", "rm", folder)
        raise RequestError(f"{'; '.join(problems)}; the run cannot go on: `{remove}` removes it")
    path, state = whole[0]
    size, last = _readable_rows(folder / METRICS, int(state["metrics_bytes"]))
    say(
        f"{folder / METRICS} is damaged: {size:,} of the {int(state['metrics_bytes']):,} bytes that were there when "
        f"{path.name} was saved can be read, up to step {last:,}; what was logged between that step and the state is "
        "missing, and what is there may have been changed. The search itself goes on as it was saved"
    )
    return {**state, "metrics_bytes": size}


def read_state(path: Path) -> dict[str, Any]:
    """A saved state, checked.

    Raises:
        RequestError: it is damaged.
    """
    try:
        state = torch.load(unseal(path), weights_only=True, map_location="cpu")
    except RequestError:
        raise
    except Exception as error:  # whatever the bytes of a stranger's file make a reader raise
        first = str(error).strip().partition("\n")[0]
        raise RequestError(f"{path} is damaged: {type(error).__name__}: {first}") from None
    check_form(path.name, state, str(path))
    strange = sorted(state.keys() - {*_KEYS, *_MORE})
    if strange:
        told = f"{path} was saved by another supermask than this {__version__}, most likely a later one"
        raise RequestError(f"{told}: unknown {', '.join(map(repr, strange))}")
    return dict(state)


def rows_are_whole(rows: Path, state: Mapping[str, Any]) -> bool:
    """Whether the rows that had been logged when a state was saved are still there as they were."""
    size, expected = int(state["metrics_bytes"]), state.get("metrics_sha256")
    if not rows.exists() or rows.stat().st_size < size:
        return size == 0
    return not expected or digest_of_start(rows, size) == expected


def _readable_rows(rows: Path, size: int) -> tuple[int, int]:
    """Of the first bytes of logged rows, how many are whole rows, and the step of the last of these."""
    found, last = 0, 0
    if not rows.exists():
        return found, last
    for line in rows.read_bytes()[:size].splitlines(keepends=True):
        try:
            row = parse_json(line, finite=False)
        except ValueError:
            break
        if not (line.endswith(b"\n") and is_row(row)):
            break
        found, last = found + len(line), int(row["step"])
    return found, last


def _goes_on(folder: Path) -> str:
    return f"`{command_line('resume', folder)}` goes on"
