"""Files that a user has named: tables, pages and pictures. Written whole or not at all, as the files of a run are."""

from __future__ import annotations

import os
from pathlib import Path

from supermask import tickets

# Names of what is open already: to put another file in its place would leave what is open as it is.
_OPEN = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")


def write_output(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file that a user has named, text as UTF-8.

    Where the name is a link, its target is written. What is no file, as /dev/stdout or a pipe, is written into.
    """
    data = content.encode() if isinstance(content, str) else content
    target = Path(os.path.realpath(path))
    if os.fspath(path).startswith(_OPEN) or (Path(path).exists() and not target.is_file()):
        Path(path).write_bytes(data)
    else:
        tickets.file.write_atomically(target, data)
