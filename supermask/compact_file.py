"""A compacted network as one file: a safetensors file of its state dict, and how to build it in one JSON string."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from .architectures import find_architecture
from .fitting import set_state, state_of
from .slicing import rebuild
from .ticket import Ticket, TicketError, to_json

KEY = "compact"
VERSION = 1


def pack_compact(ticket: Ticket, state: str = "final", example_input: Any = None) -> bytes:
    """The bytes of a file that `load_compact` reads: the ticket's network as a smaller dense one.

    The metadata holds, under `compact`, `{"version": 1, "architecture": {"name", "arguments"}, "changes": {...}}`, see
    `rebuild`.

    Raises:
        ValueError: as of `Ticket.compact`.
    """
    found = ticket.shrink(example_input, state)
    description = {"version": VERSION, "architecture": ticket.meta["architecture"], "changes": found.changes}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_of(found.model).items()}
    return safetensors.torch.save(tensors, {KEY: to_json(description)})


def load_compact(path: str | os.PathLike[str]) -> nn.Module:
    """Build the network of a file that `ticket export --to compact` wrote, in eval mode. No code of the file is run.

    Raises:
        ValueError: a file of something else, an architecture that is not known here, or tensors that do not fit.
        OSError: a path that cannot be read.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise TicketError(f"{path} is not a safetensors file: {error}") from None
    architecture, changes = _description(path, metadata)
    build = find_architecture(str(architecture["name"]))
    try:
        net = build(**architecture.get("arguments", {}))
    except TypeError as error:
        raise TicketError(f"{path}: the arguments do not fit its model '{architecture['name']}': {error}") from None
    try:
        set_state(rebuild(net, changes), tensors)
    except ValueError as error:
        raise TicketError(f"{path}: {error}") from None
    return net.eval()


def _description(path: Any, metadata: Mapping[str, str]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    if KEY not in metadata:
        hint = "; supermask.load reads tickets" if metadata else ""
        raise TicketError(f"{path} has no '{KEY}' in its metadata: expected a file of ticket export --to compact{hint}")
    try:
        found = json.loads(metadata[KEY])
    except json.JSONDecodeError as error:
        raise TicketError(f"{path}: '{KEY}' is not JSON: {error}") from None
    if not isinstance(found, Mapping) or found.get("version") != VERSION:
        version = found.get("version") if isinstance(found, Mapping) else found
        raise TicketError(f"{path} is a compact file of version {version!r}, expected {VERSION}")
    architecture, changes = found.get("architecture"), found.get("changes")
    if not isinstance(architecture, Mapping) or "name" not in architecture or not isinstance(changes, Mapping):
        raise TicketError(f"{path}: expected an architecture with a name, and changes")
    return architecture, changes
