"""The user's key: 32 random bytes that no other user can read, made when they are first needed."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

import platformdirs

SIZE = 32
# Another folder than platformdirs' for what belongs to the user and to this machine.
VARIABLE = "TICKET_STATE"


class KeyUnusable(Exception):  # noqa: N818 - it is no failure of a run: that is only not marked
    """There is no key that can be used. The message says why."""


def state_folder() -> Path:
    """`$TICKET_STATE`, or the user's own folder for state (see platformdirs)."""
    return Path(os.environ.get(VARIABLE) or platformdirs.user_state_dir("supermask"))


def key_file() -> Path:
    """Where the key is: in the user's own folder for state."""
    return state_folder() / "key"


def read_key() -> bytes:
    """The key, of 32 bytes. Nothing is written.

    Raises:
        KeyUnusable: there is none, or it cannot be read, has another size, or others can read or change it.
    """
    path = key_file()
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            key = file.read(SIZE + 1)
    except FileNotFoundError:
        raise KeyUnusable(f"there is no key {path}") from None
    except OSError as error:
        raise KeyUnusable(f"the key {path} cannot be read: {error.strerror}") from None
    if len(key) != SIZE:
        raise KeyUnusable(f"the key {path} has not {SIZE} bytes: remove it, and the next run makes another")
    if os.name == "posix" and (stat.S_IMODE(about.st_mode) & 0o077 or about.st_uid != os.geteuid()):
        raise KeyUnusable(f"others can read the key {path}: remove it, and the next run makes another")
    return key


def make_key() -> bytes:
    """The key; made if there is none. Of processes that make it at the same time, all get the same.

    Raises:
        KeyUnusable: it can be neither read nor made.
    """
    path = key_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _write_new(path)
    except OSError as error:
        raise KeyUnusable(f"the key {path} cannot be made: {error.strerror}") from None
    return read_key()


def _write_new(path: Path) -> None:
    """Write a key of mode 0600 beside its place and link it there, which fails where another has come first."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(SIZE))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        Path(temporary).unlink()
