"""The folder of a run as bytes, for workers that have a folder of their own: what they make is sent back."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path, PurePosixPath

from supermask.tickets.file import write_atomically

from ...contract.flags import Config, to_plain
from ...runs.names import EARLIER_STATE, FAILURE, HOLDER, LOCK, STATE, SUMMARY
from ...trust.mark import MARK, write_mark

# A state says how long the logs are, so that it is read before them and written after them; the summary says that all
# is there.
_LAST = (EARLIER_STATE, STATE, SUMMARY)


def pack(folder: Path) -> bytes:
    """The files of a run, also of one that goes on meanwhile."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if _belongs(path)]
    names.sort(key=lambda name: (name not in _LAST, name))
    buffer = io.BytesIO()
    with tarfile.TarFile(fileobj=buffer, mode="w") as parcel:
        for name in names:
            try:
                content = (folder / name).read_bytes()
            except FileNotFoundError:  # replaced or removed by the run since
                continue
            item = tarfile.TarInfo(PurePosixPath(name).as_posix())
            item.size = len(content)
            parcel.addfile(item, io.BytesIO(content))
    return buffer.getvalue()


def _belongs(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and not path.name.startswith(".")


def unpack(data: bytes, folder: Path) -> None:
    """Write the files of a run, each whole or not at all, so that a run which is cut short here goes on.

    Raises:
        ValueError: a name leads out of the folder.
    """
    with tarfile.open(fileobj=io.BytesIO(data)) as parcel:
        items = sorted(parcel.getmembers(), key=lambda item: _LAST.index(item.name) if item.name in _LAST else -1)
        for item in items:
            name = PurePosixPath(item.name)
            if not item.isreg() or name.is_absolute() or ".." in name.parts or name.name in (LOCK, HOLDER):
                raise ValueError(f"{item.name!r} is no file of a run")
            content = parcel.extractfile(item)
            assert content is not None, "a file has content"
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, content.read())
    if FAILURE not in {item.name for item in items}:
        (folder / FAILURE).unlink(missing_ok=True)


def sign(folder: Path, config: Config) -> None:
    """Mark a run that a worker has made as this user's own, who has given leave for its code here.

    The worker's mark is made with the key of its own machine.
    """
    if not (folder / MARK).exists():
        return
    names = json.loads((folder / MARK).read_bytes()).get("names", {})
    content = str(names.get("data", {}).get("content", ""))
    os.unlink(folder / MARK)
    write_mark(folder, to_plain(config), config.leaves, content)
