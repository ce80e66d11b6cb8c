"""Who works on a run: one process at a time.

The operating system holds the lock and gives it back when its process ends, however that ends. The file `.holder`
beside it only tells the others who it is; it counts for nothing where the lock is free.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import filelock
import pydantic
from pydantic import Field

from supermask import tickets

from ..contract.errors import RequestError
from .names import HOLDER, LOCK

_LOOKS, _SECONDS_BETWEEN_LOOKS = 20, 0.05


class Holder(pydantic.BaseModel, frozen=True):
    """A process that works on a run: since when is in local time."""

    host: Annotated[str, Field(max_length=255)]
    pid: Annotated[int, Field(ge=0, lt=2**63)]
    since: Annotated[str, Field(max_length=40)]
    command: Annotated[str, Field(max_length=40)] = ""


@contextmanager
def working_on(folder: Path) -> Iterator[None]:
    """Be the only one who works on the run in a folder, which is there.

    Raises:
        RequestError: another process does, with who that is.
    """
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RequestError(f"another process is working on {folder}{_describe(_wait_for_holder(folder))}") from None
    try:
        _write_holder(folder)
        yield
    finally:
        # Who it was counts for nothing any more. The lock's own file stays: removing it while others wait for it would
        # let two of them in.
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink()
        lock.release()


def read_holder(folder: Path) -> Holder | None:
    """Who has said last that it works on a run; None where nobody has, or not readably."""
    try:
        return Holder.model_validate_json((folder / HOLDER).read_bytes())
    except (OSError, pydantic.ValidationError):
        return None


def _wait_for_holder(folder: Path) -> Holder | None:
    """Who works on a run that is locked: one who has locked it just now has not said so yet."""
    for _ in range(_LOOKS):
        holder = read_holder(folder)
        if holder is not None and not _is_dead(holder):
            return holder
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return None


def _is_dead(holder: Holder) -> bool:
    """Whether a holder was a process of this machine that is no more."""
    if holder.host != socket.gethostname() or os.name != "posix":
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is somebody else's
        return False
    return False


def _write_holder(folder: Path) -> None:
    holder = Holder(
        host=socket.gethostname()[:255],
        pid=os.getpid(),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        command=Path(sys.argv[0]).name[:40],
    )
    tickets.file.write_atomically(folder / HOLDER, (json.dumps(holder.model_dump()) + "\n").encode())


def _describe(holder: Holder | None) -> str:
    if holder is None:
        return ""
    here = " (this machine)" if holder.host == socket.gethostname() else ""
    named = f" ({holder.command})" if holder.command else ""
    return f": process {holder.pid}{named} on {holder.host}{here}, since {holder.since}"
