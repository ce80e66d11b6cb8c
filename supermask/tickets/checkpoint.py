"""What a file of another program holds: its state dict, or which one of several. No code in such a file is run."""

from __future__ import annotations

import argparse
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..masks.targets import nearest, plain_name
from ..weights.fitting import is_extra_state
from ..weights.plain import why_not_plain
from .header import KEY, MAX_WEIGHTS

# Where training programs put the state dict inside of what they save.
_USUAL = ("state_dict", "model_state_dict", "model")
# Where they put what has names and tensors too and is no network: moments, master copies, states of random numbers.
_NO_NETWORK = re.compile(r"optim|sched|scaler|rng|random", re.IGNORECASE)
_DEEPEST = 4
# Data that training programs leave among the tensors, which weights_only=True does not know by itself.
_SCALAR: Any = np.float64(0).__reduce__()[0]
_PLAIN_DATA: list[Any] = [
    np.dtype,
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(type(np.dtype(code)) for code in "bBhHiIlLqQefd?"),
    argparse.Namespace,
]
_UNKNOWN = re.compile(r"Unsupported (?:global|class|type)\S*:? (?:GLOBAL )?([\w.]+)")


def read_file(path: str | os.PathLike[str]) -> Any:
    """What a file saved by torch, or a safetensors file, holds: tensors, numbers, texts, mappings and lists of them.

    Raises:
        ValueError: a file that cannot be read, that holds anything else, or that is a ticket.
        OSError: a path that cannot be opened.
    """
    with open(path, "rb"):
        pass  # a path that cannot be opened is no matter of formats
    try:
        if str(path).endswith(".safetensors"):
            ours = _is_ticket(path)
            found = {} if ours else safetensors.torch.load_file(path)
        else:
            check_members(path)
            with torch.serialization.safe_globals(_PLAIN_DATA):
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes of a stranger's file make a reader raise
        raise ValueError(f"{path} cannot be read: {_explain(error)}") from None
    if ours:
        raise ValueError(f"{path} is a ticket: supermask.load reads it")
    return found


def is_ticket(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a ticket, by its header. Of one that cannot be read, `read_file` says what is wrong with it."""
    if not str(path).endswith(".safetensors"):
        return False
    try:
        return _is_ticket(path)
    except (OSError, safetensors.SafetensorError):
        return False


def _is_ticket(path: str | os.PathLike[str]) -> bool:
    with safetensors.safe_open(path, "pt") as file:
        return KEY in (file.metadata() or {})


def check_members(file: str | os.PathLike[str] | BinaryIO) -> None:
    """Check the members of a file that `torch.save` has written by the checksums of its zip format.

    `torch.load` does not look at them, and would read a damaged file as other numbers. A file of the format before
    that, or one that was saved without checksums, has none.

    Raises:
        ValueError: a member does not match its checksum, is compressed or larger than the file, or the file breaks
            off, or asks for a buffer.
    """
    _refuse_buffers(file)
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _refuse_bombs(file, members)
            has_none = all(member.CRC == 0 for member in members)
            damaged = None if has_none else archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise ValueError(f"its zip format is damaged: {error}") from None
    if damaged is not None:
        raise ValueError(f"its part {damaged} does not match its checksum")


# `torch.load` makes a buffer of any length that a file of a few bytes asks for; no tensor needs one.
_BUFFER = b"bytearray\n"


def _refuse_bombs(file: Any, members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse parts that are compressed, or that lie over one another: PyTorch writes neither."""
    size = os.path.getsize(file) if isinstance(file, (str, os.PathLike)) else file.seek(0, os.SEEK_END)
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its parts are compressed, which torch.save never does")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its parts are larger than the file")


def _refuse_buffers(file: str | os.PathLike[str] | BinaryIO) -> None:
    with open(file, "rb") if isinstance(file, (str, os.PathLike)) else nullcontext(file) as opened:
        opened.seek(0)
        end = b""
        while piece := opened.read(1 << 20):
            if _BUFFER in end + piece:
                raise ValueError(
                    "it holds a bytearray; expected tensors and plain data, as torch.save(model.state_dict(), path) "
                    "writes them"
                )
            end = piece[-len(_BUFFER) :]


def _explain(error: Exception) -> str:
    unknown = _UNKNOWN.search(str(error))
    if unknown is None:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return (
        f"it holds a {unknown[1]}, and no code of a file is run; expected tensors and plain data, as "
        "torch.save(model.state_dict(), path) writes them"
    )


def state_dict_in(found: Any, key: str | None = None, max_weights: float = MAX_WEIGHTS) -> dict[str, Tensor]:
    """The state dict of a checkpoint: plain tensors under plain names.

    What wrappers add to names is dropped: `module.`, `_orig_mod.`, and the `n_averaged` of an AveragedModel. So is what
    modules keep by `get_extra_state`. Sparse tensors become dense.

    Args:
        found: a state dict, or mappings in which there is one.
        key: where it is, as `state_dict_ema`, or `ema/shadow` in mappings of mappings. If not given: the only one, or
            the one under a usual name, if there is no second copy of the same network.
        max_weights: refuse what describes more and does not hold it, as sparse tensors do.

    Raises:
        ValueError: there is none, there are several to choose from, or there are tensors that are not plain numbers.
    """
    chosen = _choose(find_state_dicts(found), key, found)
    tensors = _unwrapped(chosen)
    _check_size(tensors, max_weights)
    dense = {name: _as_dense(tensor.detach()) for name, tensor in tensors.items()}
    if odd := [f"{name} {why}" for name, tensor in dense.items() if (why := why_not_plain(tensor))]:
        raise ValueError("tensors that are not plain numbers: " + "; ".join(odd))
    return dense


def find_state_dicts(found: Any) -> dict[str, Mapping[str, Any]]:
    """All state dicts of a checkpoint by their place in it: "" for the whole, else its keys, joined by `/`."""
    places = dict(_walk(found, (), set()))
    # Statistics may have names and tensors too; a network has a matrix.
    networks = {place: each for place, each in places.items() if any(_dims(tensor) > 1 for tensor in each.values())}
    return networks or places


def _walk(found: Any, place: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(found, Mapping) or id(found) in seen or "param_groups" in found:
        return
    # By identity: a small file can hold one mapping many times over, and itself.
    seen.add(id(found))
    if _is_state_dict(found) or not (found or place):
        yield "/".join(place), found
    elif len(place) < _DEEPEST:
        for key, value in found.items():
            if isinstance(key, str) and not _NO_NETWORK.search(key):
                yield from _walk(value, (*place, key), seen)


def _is_state_dict(found: Mapping[Any, Any]) -> bool:
    tensors = [key for key, value in found.items() if isinstance(value, Tensor) and isinstance(key, str)]
    others = (key for key, value in found.items() if not isinstance(value, Tensor))
    return bool(tensors) and all(isinstance(key, str) and is_extra_state(key) for key in others)


def _dims(value: Any) -> int:
    return value.dim() if isinstance(value, Tensor) else 0


def _choose(places: Mapping[str, Mapping[str, Any]], key: str | None, found: Any) -> Mapping[str, Any]:
    told = ", ".join(f"{place} ({len(each)} tensors)" for place, each in places.items() if place)
    if key is not None:
        if key in places:
            return places[key]
        there = f"; it has {told}" if told else "; it is one by itself" if places else ""
        raise ValueError(f"it holds no state dict '{key}'{nearest(key, places)}{there}")
    if not places:
        raise ValueError(f"it holds no state dict: expected names and tensors{_odd_entries(found)}")
    usual = [place for place in places if all(part in _USUAL for part in place.split("/"))]
    if len(places) == 1 or (len(usual) == 1 and not _has_copy(usual[0], places)):
        return next(iter(places.values())) if len(places) == 1 else places[usual[0]]
    raise ValueError(f"it holds several state dicts, {told}: choose one by its key, as key='{next(iter(places))}'")


def _has_copy(place: str, places: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether another state dict is of the same network, as moving averages are."""
    mine = {(name, tensor.shape) for name, tensor in _unwrapped(places[place]).items()}
    others = [each for other, each in places.items() if other != place]
    return any(
        2 * len(mine & {(name, tensor.shape) for name, tensor in _unwrapped(each).items()}) >= len(mine)
        for each in others
    )


def _odd_entries(found: Any) -> str:
    if not isinstance(found, Mapping):
        return f", got a {type(found).__name__}"
    odd = [f"{key} ({type(value).__name__})" for key, value in found.items() if not isinstance(value, Tensor)]
    return f", got {', '.join(odd[:5])}{' and more' if len(odd) > 5 else ''}" if odd else ""


def _unwrapped(found: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors = {plain_name(name): each for name, each in found.items() if not is_extra_state(name)}
    averaged = {name: each for name, each in tensors.items() if name != "n_averaged"}
    for chosen in (averaged, tensors):
        if chosen and all(name.startswith("module.") for name in chosen):
            inner = {name.removeprefix("module."): each for name, each in chosen.items()}
            return _unwrapped(inner) if len(chosen) < len(tensors) else inner
    return tensors


def _check_size(tensors: Mapping[str, Tensor], max_weights: float) -> None:
    described = sum(tensor.numel() for tensor in tensors.values() if not tensor.is_nested)
    if described <= max_weights:
        return
    stored = [tensor.untyped_storage() for tensor in tensors.values() if not why_not_plain(tensor)]
    held = {storage.data_ptr(): storage.nbytes() for storage in stored}
    if described > sum(held.values()):
        raise ValueError(
            f"it describes {described:,} weights, which it does not hold, more than {max_weights:,}: if you trust it, "
            f"supermask.foreign.load(..., max_weights={described})"
        )


def _as_dense(tensor: Tensor) -> Tensor:
    sparse = tensor.layout not in (torch.strided, torch.jagged)
    return tensor.to_dense() if sparse and not tensor.is_nested and not tensor.is_meta else tensor
