"""The bytes of a ticket: a safetensors file of coded masks and surviving weights, and one JSON string.

`docs/ticket_format.md` is the format, byte by byte. The same ticket gives the same bytes.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

from . import hub
from .header import MAX_WEIGHTS as MAX_WEIGHTS
from .reader import read_ticket
from .ticket import Ticket, TicketError
from .writer import write_pieces


def pack(ticket: Ticket) -> bytes:
    """The ticket as the bytes of its file.

    Raises:
        ValueError: tensors of a type that files cannot hold, levels or sets that do not fit the masks, or what `load`
            would refuse: names, metadata or numbers of tensors beyond the limits of the format.
    """
    return b"".join(write_pieces(ticket))


def unpack(data: bytes, max_weights: float | None = None) -> Ticket:
    """The ticket that `pack` made these bytes from.

    Raises:
        TicketError: bytes that are truncated, are not a ticket, are of a newer format, do not match their checksum, or
            describe more than `max_weights` weights (see `load`).
    """
    return read_ticket(io.BytesIO(data), max_weights)


def save(ticket: Ticket, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write the ticket file, by way of a temporary file: an interrupted save leaves the old one.

    Raises:
        FileExistsError: the file exists and `overwrite` is not given.
        ValueError: as of `pack`.
    """
    if Path(path).exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")
    write_atomically(path, *write_pieces(ticket))


def load(source: str | os.PathLike[str] | bytes | BinaryIO, max_weights: float | None = None) -> Ticket:
    """Read a ticket from a file's path, its bytes, an open file, or the hub. No code is run, whatever it holds.

        ticket = supermask.load("runs/edge-popup-lenet-300-100-digits-d0.5-s0/ticket.safetensors")
        ticket = supermask.load("hf:USER/NAME")  # with the extra `hub`; or hf:USER/NAME@REVISION

    The file is checked whole. Masks and weights take their memory when they are read, and not before.

    Args:
        source: a path, bytes, a file open for reading bytes, or a name on the hub: the text `hf:USER/NAME`, behind it
            `@REVISION` for another commit, branch or tag than the newest, and `:FILE.safetensors` for another file of
            the repository than `ticket.safetensors`. What was loaded before is in the cache of huggingface_hub, and
            loads without a network (`HF_HUB_OFFLINE=1`).
        max_weights: refuse a file that describes more: a small file can describe a large network. If not given, 25
            million and 10,000 for each byte of the file, and never more than two billion.

    Raises:
        TicketError: a file that is truncated, is not a ticket, is of a newer format, is damaged or describes too much;
            or a name on the hub that is none.
        OSError: a path that cannot be read. Of a ticket that is not to be had from the hub, `HubError`.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return unpack(bytes(source), max_weights)
    if not isinstance(source, (str, os.PathLike)):
        return read_ticket(source, max_weights)
    path = hub.fetch(hub.read_place(source)) if hub.is_place(source) else Path(source)
    if path.is_dir():
        raise TicketError(f"{path} is a directory, expected a ticket file{_hint_in(path)}")
    try:
        with path.open("rb") as file:
            return read_ticket(file, max_weights)
    except TicketError as error:
        others = "; supermask.foreign.load reads other programs' files" if path.suffix in (".pt", ".pth") else ""
        raise TicketError(f"{source if hub.is_place(source) else path}: {error}{others}") from None


def write_atomically(path: str | os.PathLike[str], *pieces: bytes | memoryview) -> None:
    """Replace a file's content whole or not at all: a temporary file beside it, flushed to disk, then renamed.

    The folder is flushed too, so that after a loss of power it has either the old file under this name or the new one.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_folder(folder: str | os.PathLike[str]) -> None:
    """Have the names in a folder on disk, as they are now."""
    if os.name != "posix":
        return  # elsewhere a folder is no file that could be opened
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot do this for a folder; a disk that fails says so by another number.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    # POSIX can only read the mask by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _hint_in(folder: Path) -> str:
    inside = folder / "ticket.safetensors"
    return f"; did you mean {inside}?" if inside.exists() else ""
