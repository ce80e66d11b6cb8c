"""The bytes of a ticket: a safetensors file of packed masks and surviving weights, and one JSON string.

Tensors `mask/NAME` hold one bit per weight, row-major, lowest bit first; `STATE/NAME` holds the surviving values of a
masked tensor in order, or all values of another. The same ticket gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .inits import INITS, Draw
from .masks import Masks
from .ticket import STATES, State, Ticket, TicketError, to_json

FORMAT = 1
_KEY = "supermask"
_LONGEST_HEADER = 100_000_000


class _Group(pydantic.BaseModel, extra="forbid", strict=True):
    init: str
    seed: int
    scale: float = pydantic.Field(allow_inf_nan=False)
    tensors: dict[str, list[pydantic.NonNegativeInt]]


class _State(pydantic.BaseModel, extra="forbid", strict=True):
    fingerprint: str
    drawn: list[_Group]
    stored: dict[str, list[pydantic.NonNegativeInt]]


class _Mask(pydantic.BaseModel, extra="forbid", strict=True):
    shape: list[pydantic.NonNegativeInt]
    kept: pydantic.NonNegativeInt


class _Header(pydantic.BaseModel, extra="forbid", strict=True):
    format: int
    checksum: str
    masks: dict[str, _Mask]
    states: dict[str, _State]
    meta: dict[str, Any]
    uncounted: list[str] = []


def pack(ticket: Ticket) -> bytes:
    """The ticket as the bytes of its file.

    Raises:
        ValueError: metadata that is not JSON, such as a NaN.
    """
    payload = {f"mask/{name}": _pack_mask(mask) for name, mask in ticket.masks.items()}
    for state, source in ticket.states.items():
        for name, tensor in source.stored.items():
            payload[f"{state}/{name}"] = _survivors(tensor, ticket.masks.get(name))
    header = {
        "format": FORMAT,
        "masks": {
            name: {"shape": list(mask.shape), "kept": int(torch.count_nonzero(mask))}
            for name, mask in ticket.masks.items()
        },
        "states": {state: _describe_state(source) for state, source in ticket.states.items()},
        "meta": dict(ticket.meta),
    }
    if ticket.masks.uncounted:
        header["uncounted"] = sorted(ticket.masks.uncounted)
    header["checksum"] = _checksum(header, payload)
    return safetensors.torch.save(payload, {_KEY: to_json(header)})


def unpack(data: bytes) -> Ticket:
    """The ticket that `pack` made these bytes from.

    Raises:
        TicketError: bytes that are truncated, are not a ticket, are of a newer format, or do not match their checksum.
    """
    header, described = _read_header(data)
    try:
        payload = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise TicketError(f"not a whole ticket file: {error}") from None
    if _checksum(described, payload) != header.checksum:
        raise TicketError("the ticket file is damaged: its content does not match its checksum")
    masks = {name: _unpack_mask(name, entry, payload) for name, entry in header.masks.items()}
    states = {state: _unpack_state(state, entry, masks, payload) for state, entry in header.states.items()}
    if payload:
        raise TicketError(f"the ticket file holds tensors that it does not describe: {', '.join(sorted(payload))}")
    return Ticket(Masks(masks, header.uncounted), states, header.meta)


def save(ticket: Ticket, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write the ticket file, by way of a temporary file: an interrupted save leaves the old one.

    Raises:
        FileExistsError: the file exists and `overwrite` is not given.
    """
    if Path(path).exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")
    write_atomically(path, pack(ticket))


def load(source: str | os.PathLike[str] | bytes) -> Ticket:
    """Read a ticket from a file's path or from its bytes. No code is run, whatever the file holds.

        ticket = supermask.load("runs/edge-popup-lenet-300-100-digits-d0.5-s0/ticket.safetensors")

    Raises:
        TicketError: a file that is truncated, is not a ticket, is of a newer format or is damaged.
        OSError: a path that cannot be read.
    """
    if isinstance(source, bytes):
        return unpack(source)
    path = Path(source)
    if path.is_dir():
        raise TicketError(f"{path} is a directory, expected a ticket file{_hint_in(path)}")
    try:
        return unpack(path.read_bytes())
    except TicketError as error:
        raise TicketError(f"{path}: {error}") from None


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace a file's content whole or not at all: a temporary file beside it, flushed to disk, then renamed."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    # POSIX can only read the mask by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _hint_in(folder: Path) -> str:
    inside = folder / "ticket.safetensors"
    return f"; did you mean {inside}?" if inside.exists() else ""


def _read_header(data: bytes) -> tuple[_Header, dict[str, Any]]:
    if len(data) < 8:
        raise TicketError(f"not a ticket file: {len(data)} bytes")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(_LONGEST_HEADER, len(data) - 8):
        raise TicketError(f"not a whole ticket file: its header should have {length} bytes, {len(data) - 8} are there")
    try:
        outer = json.loads(data[8 : 8 + length])
        text = outer["__metadata__"][_KEY]
        plain = json.loads(text)
        version = plain["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise TicketError("not a ticket file: expected a safetensors file with a 'supermask' description") from None
    if isinstance(version, int) and version > FORMAT:
        raise TicketError(f"the ticket has format {version}, this version reads up to {FORMAT}: upgrade supermask")
    try:
        header = _Header.model_validate(plain)
    except pydantic.ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise TicketError(f"the ticket's description is wrong: {problems}") from None
    unknown = [state for state in header.states if state not in STATES]
    unknown += [name for name in header.uncounted if name not in header.masks]
    unknown += [group.init for state in header.states.values() for group in state.drawn if group.init not in INITS]
    if unknown:
        raise TicketError(f"the ticket's description is wrong: unknown state, init or tensor {', '.join(unknown)}")
    return header, plain


def _pack_mask(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1), bitorder="little"))


def _unpack_mask(name: str, entry: _Mask, payload: dict[str, Tensor]) -> Tensor:
    size = math.prod(entry.shape)
    packed = _take(payload, f"mask/{name}", torch.uint8, (size + 7) // 8)
    bits = np.unpackbits(packed.numpy(), count=size, bitorder="little").astype(bool)
    if int(bits.sum()) != entry.kept:
        raise TicketError(f"the mask of {name} keeps {int(bits.sum())} weights, its description says {entry.kept}")
    return torch.from_numpy(bits).reshape(entry.shape)


def _describe_state(state: State) -> dict[str, Any]:
    groups: dict[tuple[str, int, float], dict[str, list[int]]] = {}
    for name, how in state.drawn.items():
        groups.setdefault((how.init, how.seed, float(how.scale)), {})[name] = list(how.shape)
    drawn = [
        {"init": init, "seed": seed, "scale": scale, "tensors": tensors}
        for (init, seed, scale), tensors in groups.items()
    ]
    stored = {name: list(tensor.shape) for name, tensor in state.stored.items()}
    return {"fingerprint": state.fingerprint, "drawn": drawn, "stored": stored}


def _unpack_state(state: str, entry: _State, masks: Mapping[str, Tensor], payload: dict[str, Tensor]) -> State:
    drawn = {
        name: Draw(group.init, group.seed, group.scale, tuple(shape))
        for group in entry.drawn
        for name, shape in group.tensors.items()
    }
    for name, draw in drawn.items():
        if name in masks and masks[name].shape != draw.shape:
            raise TicketError(
                f"{state} {name} is drawn with shape {list(draw.shape)}, its mask has {list(masks[name].shape)}"
            )
    stored = {}
    for name, shape in entry.stored.items():
        mask = masks.get(name)
        if mask is None:
            stored[name] = _take(payload, f"{state}/{name}", None, math.prod(shape)).reshape(shape)
        elif list(mask.shape) != shape:
            raise TicketError(f"{state} {name} has shape {shape}, its mask {list(mask.shape)}")
        else:
            values = _take(payload, f"{state}/{name}", None, int(torch.count_nonzero(mask)))
            stored[name] = torch.zeros(shape, dtype=values.dtype).masked_scatter_(mask, values)
    return State(stored, drawn, entry.fingerprint)


def _survivors(tensor: Tensor, mask: Tensor | None) -> Tensor:
    return tensor.reshape(-1).clone() if mask is None else tensor[mask.cpu()]


def _take(payload: dict[str, Tensor], key: str, dtype: torch.dtype | None, count: int) -> Tensor:
    tensor = payload.pop(key, None)
    if tensor is None:
        raise TicketError(f"the ticket file lacks the tensor {key}")
    if tensor.dim() != 1 or tensor.numel() != count or dtype not in (None, tensor.dtype):
        raise TicketError(f"the tensor {key} is {tensor.dtype} {list(tensor.shape)}, expected {count} values")
    return tensor


def _checksum(header: Mapping[str, Any], payload: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(to_json({key: value for key, value in header.items() if key != "checksum"}).encode())
    for key in sorted(payload):
        tensor = payload[key].contiguous()
        digest.update(f"{key}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
