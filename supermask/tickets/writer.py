"""From a ticket to the bytes of its file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pydantic
import torch
from torch import Tensor

from ..masks.masks import Masks
from ..weights.inits import Draw
from ..weights.plain import CARRIERS, to_bytes
from . import bit_coding as coding
from .container import Array, layout
from .header import BITS, FORMAT, KEY, NO_CHECKSUM, Bits, Drawn, Header, Mask, State
from .header import Tensor as Described
from .lazy import DTYPES, TORCH_DTYPES, StoredTensors
from .ticket import Ticket, to_json

# Types that float32 values are written in where not one of them changes.
_NARROWER = (torch.bfloat16, torch.float16)


def _rice(code: coding.Code) -> list[int] | None:
    return None if code.rice is None else [code.rice, code.unary]


class _BitWriter:
    """All coded bits of a ticket, one after the other."""

    def __init__(self) -> None:
        self.pieces: list[coding.Bytes] = []

    def bits(self, flat: coding.Bits) -> Bits:
        code, data = coding.encode(flat)
        self.pieces.append(data)
        return Bits(kept=code.ones, rice=_rice(code))

    def mask(self, masks: Masks, name: str, levels: Tensor | None = None) -> Mask:
        array = masks[name].detach().cpu().contiguous().numpy()
        code, data = coding.encode(array.reshape(-1))
        block = coding.find_block(array)
        chosen = None
        if math.prod(block) > 1:
            of_blocks, shorter = coding.encode(coding.shrink(array, block).reshape(-1))
            if shorter.size < data.size:
                code, data, chosen = of_blocks, shorter, list(block)
        self.pieces.append(data)
        kept = int(np.count_nonzero(array))
        deeper = [] if levels is None else self._levels(levels.cpu().numpy()[array])
        uncounted = name in masks.uncounted
        return Mask(kept=kept, rice=_rice(code), block=chosen, levels=deeper, uncounted=uncounted)

    def _levels(self, survivors: npt.NDArray[np.uint8]) -> list[Bits]:
        found = []
        for level in range(2, int(survivors.max(initial=0)) + 1):
            stays = survivors >= level
            found.append(self.bits(stays))
            survivors = survivors[stays]
        return found


def write_pieces(ticket: Ticket) -> list[memoryview]:
    """The file's bytes in pieces: the head, then one tensor after the other.

    Raises:
        ValueError: tensors of a type that files cannot hold, or levels or sets that do not fit the masks.
    """
    shapes = _shapes(ticket)
    problems = _check_additions(ticket, shapes)
    writer = _BitWriter()
    masks = {name: writer.mask(ticket.masks, name, ticket.levels.get(name)) for name in shapes if name in ticket.masks}
    sets = {
        which: {name: writer.mask(chosen, name) for name in shapes if name in chosen}
        for which, chosen in sorted(ticket.sets.items())
    }
    arrays: dict[str, Array] = {}
    states = {}
    for state, source in sorted(ticket.states.items()):
        signs = {
            name: writer.bits(_survivors(source.signs[name], ticket.masks, name))
            for name in shapes
            if name in source.signs
        }
        stored = {}
        for name in (name for name in shapes if name in source.stored):
            tensor = source.stored[name]
            if tensor.dtype not in DTYPES:
                problems.append(f"{name} is of type {tensor.dtype}, expected one of {', '.join(TORCH_DTYPES)}")
                continue
            stored[name] = DTYPES[tensor.dtype]
            arrays[f"{state}/{name}"] = _values(tensor, ticket.masks, name)
        states[state] = State(
            fingerprint=source.fingerprint,
            drawn=_group({name: source.drawn[name] for name in shapes if name in source.drawn}),
            signs=signs,
            gains={name: float(source.gains[name]) for name in shapes if name in source.gains},
            stored=stored,
        )
    if problems:
        raise ValueError("the ticket cannot be written: " + "; ".join(problems))
    bits = np.concatenate([np.empty(0, np.uint8), *writer.pieces])
    arrays[BITS] = Array("U8", (bits.size,), bits)
    try:
        header = Header(
            format=FORMAT,
            checksum=NO_CHECKSUM,
            tensors={name: Described(shape=list(shape), mask=masks.get(name)) for name, shape in shapes.items()},
            sets=sets,
            states=states,
            meta=dict(ticket.meta),
        )
    except pydantic.ValidationError as error:
        raise ValueError(f"the ticket cannot be written: {error}") from None
    text = to_json(header.model_dump(exclude_defaults=True), sort_keys=False)
    head, ordered = layout(arrays, {KEY: text})
    digest = hashlib.sha256(head)
    for array in ordered:
        digest.update(array.data.data)
    head = head.replace(NO_CHECKSUM.encode(), digest.hexdigest().encode(), 1)
    return [memoryview(head), *(array.data.data for array in ordered)]


def _check_additions(ticket: Ticket, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    problems = []
    for name, levels in ticket.levels.items():
        mask = ticket.masks.get(name)
        if mask is None or levels.dtype != torch.uint8 or not torch.equal(levels.cpu() > 0, mask.cpu()):
            problems.append(
                f"the levels of {name} are not uint8 numbers that are 0 where its mask drops, and only there"
            )
    for which, masks in ticket.sets.items():
        for name, shape in masks.shapes.items():
            if shapes[name] != shape:
                problems.append(f"set '{which}': {name} has shape {list(shape)}, elsewhere {list(shapes[name])}")
    return problems


def _shapes(ticket: Ticket) -> dict[str, tuple[int, ...]]:
    """All tensors' shapes, in the order of the network as far as a state tells it."""
    shapes: dict[str, tuple[int, ...]] = {}
    for _, state in sorted(ticket.states.items()):
        for name in state.names:
            shape = state.drawn[name].shape if name in state.drawn else _stored_shape(state.stored, name)
            shapes.setdefault(name, tuple(shape))
    for masks in (ticket.masks, *ticket.sets.values()):
        for name, shape in masks.shapes.items():
            shapes.setdefault(name, shape)
    return shapes


def _stored_shape(stored: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return stored.shape(name) if isinstance(stored, StoredTensors) else tuple(stored[name].shape)


def _group(drawn: Mapping[str, Draw]) -> list[Drawn]:
    groups: dict[tuple[str, int, float], list[str]] = {}
    for name, how in drawn.items():
        groups.setdefault((how.init, how.seed, float(how.scale)), []).append(name)
    return [Drawn(init=init, seed=seed, scale=scale, names=names) for (init, seed, scale), names in groups.items()]


def _survivors(tensor: Tensor, masks: Mapping[str, Tensor], name: str) -> npt.NDArray[Any]:
    array = tensor.detach().cpu().contiguous().numpy()
    return array[masks[name].cpu().numpy()] if name in masks else array.reshape(-1)


def _values(tensor: Tensor, masks: Mapping[str, Tensor], name: str) -> Array:
    carrier = tensor.detach().resolve_conj().resolve_neg().contiguous().view(CARRIERS[tensor.element_size()])
    values = torch.from_numpy(_survivors(carrier, masks, name)).view(tensor.dtype)
    if tensor.dtype == torch.float32:
        for narrower in _NARROWER:
            if _same_bits(values[:1000], narrower) and _same_bits(values, narrower):
                values = values.to(narrower)
                break
    return Array(DTYPES[values.dtype], (values.numel(),), to_bytes(values))


def _same_bits(values: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(values.to(dtype).float().view(torch.int32), values.view(torch.int32))
