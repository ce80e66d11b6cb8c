"""A compacted network as one file: a safetensors file of its state dict, and how to build it in one JSON string."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from ..shrinking.compaction import Compaction
from ..shrinking.slicing import rebuild
from ..weights.architectures import build_within, find_architecture
from ..weights.fitting import set_state, state_of
from .header import COMPACT_KEY as KEY
from .header import most_weights
from .strict_json import parse_json
from .ticket import TicketError, to_json

VERSION = 1


def pack_compaction(found: Compaction, architecture: Mapping[str, Any]) -> bytes:
    """The bytes of a file that `load_compact` reads.

    The metadata holds, under `compact`, `{"version": 1, "architecture": {"name", "arguments"}, "changes": {...}}`, see
    `rebuild`.
    """
    description = {"version": VERSION, "architecture": dict(architecture), "changes": found.changes}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_of(found.model).items()}
    return safetensors.torch.save(tensors, {KEY: to_json(description)})


def load_compact(
    path: str | os.PathLike[str], model: nn.Module | None = None, max_weights: int | None = None
) -> nn.Module:
    """Build the network of a file that `ticket export --to compact` wrote, in eval mode. No code of the file is run.

        net = supermask.load_compact("net.safetensors")
        net = supermask.load_compact("net.safetensors", model=MyNet())   # a network that is not known by name

    Args:
        path: the file.
        model: the whole network, where its architecture is not known by name; it is changed.
        max_weights: refuse a file whose whole network has more weights. If not given, as of `load`: 25 million and
            10,000 for each byte of the file, and never more than two billion.

    Raises:
        ValueError: a file of something else, an architecture that is not known here, or tensors that do not fit.
        OSError: a path that cannot be read.
    """
    metadata, tensors = _read(path)
    architecture, changes = _description(path, metadata)
    most = most_weights(os.path.getsize(path)) if max_weights is None else max_weights
    net = _build(path, architecture, most) if model is None else model
    try:
        set_state(rebuild(net, changes), tensors)
    except ValueError as error:
        raise TicketError(f"{path}: {error}") from None
    return net.eval()


def _read(path: str | os.PathLike[str]) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        # Of a folder it says "no such device".
        raise IsADirectoryError(f"{path} is a folder, expected a file") if os.path.isdir(path) else error from None
    except Exception as error:  # whatever the bytes of a stranger's file make a reader raise
        raise TicketError(f"{path} is not a safetensors file that can be read: {error}") from None


def _build(path: Any, architecture: Mapping[str, Any], most: int) -> nn.Module:
    if "name" not in architecture:
        raise TicketError(f"{path} names no architecture: give the whole network as model=...")
    try:
        build = find_architecture(str(architecture["name"]))
    except ValueError as error:
        raise TicketError(f"{path}: {error}; or give the whole network as model=...") from None
    try:
        way_out = ": if you trust the file, supermask.load_compact(..., max_weights=N) takes N"
        return build_within(build, architecture.get("arguments", {}), most, way_out)
    except ValueError as error:
        raise TicketError(f"{path}: the arguments do not fit its model '{architecture['name']}': {error}") from None


def _description(path: Any, metadata: Mapping[str, str]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    if KEY not in metadata:
        hint = "; supermask.load reads tickets" if metadata else ""
        raise TicketError(f"{path} has no '{KEY}' in its metadata: expected a file of ticket export --to compact{hint}")
    try:
        found = parse_json(metadata[KEY].encode())
    except ValueError as error:
        raise TicketError(f"{path}: '{KEY}' is not JSON that can be read: {error}") from None
    if not isinstance(found, Mapping) or found.get("version") != VERSION:
        version = found.get("version") if isinstance(found, Mapping) else found
        raise TicketError(f"{path} is a compact file of version {version!r}, expected {VERSION}")
    architecture, changes = found.get("architecture"), found.get("changes")
    if not isinstance(architecture, Mapping) or not isinstance(changes, Mapping):
        raise TicketError(f"{path}: expected an architecture and changes")
    return architecture, changes
