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
from .header import BITS, KEY, NO_CHECKSUM, TASK_NAME, Bits, Drawn, Header, Mask, State, Task, format_of, read_header
from .header import Tensor as Described
from .lazy import DTYPES, TORCH_DTYPES, StoredTensors
from .ticket import State as TicketState
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


class _StateWriter:
    """The tensors of a ticket's states; what cannot be written is added to `problems`."""

    def __init__(self, bits: _BitWriter, shapes: Mapping[str, tuple[int, ...]], problems: list[str]) -> None:
        self.bits, self.shapes, self.problems = bits, shapes, problems
        self.arrays: dict[str, Array] = {}

    def write(self, place: str, source: TicketState, masks: Masks) -> State:
        shapes = self.shapes
        signs = {
            name: self.bits.bits(_survivors(source.signs[name], masks, name)) for name in shapes if name in source.signs
        }
        stored = {}
        for name in (name for name in shapes if name in source.stored):
            tensor = source.stored[name]
            if tensor.dtype not in DTYPES:
                self.problems.append(f"{name} is of type {tensor.dtype}, expected one of {', '.join(TORCH_DTYPES)}")
                continue
            stored[name] = DTYPES[tensor.dtype]
            self.arrays[f"{place}/{name}"] = _values(tensor, masks, name)
        return State(
            fingerprint=source.fingerprint,
            drawn=_group({name: source.drawn[name] for name in shapes if name in source.drawn}),
            signs=signs,
            gains={name: float(source.gains[name]) for name in shapes if name in source.gains},
            stored=stored,
        )


def write_pieces(ticket: Ticket) -> list[memoryview]:
    """The file's bytes in pieces: the head, then one tensor after the other.

    Raises:
        ValueError: tensors of a type that files cannot hold, levels or sets that do not fit the masks, or what the
            reader would refuse.
    """
    shapes = _shapes(ticket)
    problems = _check_additions(ticket, shapes)
    writer = _BitWriter()
    # What several tasks keep together follows from what each of them keeps.
    own = Masks({}) if ticket.parts else ticket.masks
    masks = {name: writer.mask(own, name, ticket.levels.get(name)) for name in shapes if name in own}
    sets = {
        which: {name: writer.mask(chosen, name) for name in shapes if name in chosen}
        for which, chosen in sorted(ticket.sets.items())
    }
    described = _StateWriter(writer, shapes, problems)
    states = {name: described.write(name, state, ticket.masks) for name, state in sorted(ticket.states.items())}
    backbone = None if ticket.backbone is None else described.write("backbone", ticket.backbone, Masks({}))
    tasks = {
        name: Task(
            states={
                which: described.write(f"tasks/{name}/{which}", state, ticket.sets[name])
                for which, state in sorted(part.states.items())
            },
            meta=dict(part.meta),
        )
        for name, part in ticket.parts.items()
    }
    arrays = described.arrays
    if problems:
        raise ValueError("the ticket cannot be written: " + "; ".join(problems))
    bits = np.concatenate([np.empty(0, np.uint8), *writer.pieces])
    arrays[BITS] = Array("U8", (bits.size,), bits)
    try:
        header = Header(
            format=format_of(bool(tasks)),
            checksum=NO_CHECKSUM,
            tensors={name: Described(shape=list(shape), mask=masks.get(name)) for name, shape in shapes.items()},
            sets=sets,
            states=states,
            backbone=backbone,
            tasks=tasks,
            meta=dict(ticket.meta),
        )
    except pydantic.ValidationError as error:
        raise ValueError(f"the ticket cannot be written: {error}") from None
    text = to_json(header.model_dump(exclude_defaults=True), sort_keys=False)
    try:
        # What could not be read back is not written.
        read_header(text)
        head, ordered = layout(arrays, {KEY: text})
    except ValueError as error:
        raise ValueError(f"the ticket cannot be written: {error}") from None
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
    if ticket.parts and (ticket.states or ticket.levels):
        problems.append("a ticket of several tasks has no states and no levels but those of its tasks")
    wrong = [name for name in ticket.parts if TASK_NAME.fullmatch(name) is None]
    return problems + [f"'{name[:100]}' is no name of a task: expected 1 to 100 characters without /" for name in wrong]


def _shapes(ticket: Ticket) -> dict[str, tuple[int, ...]]:
    """All tensors' shapes, in the order of the network as far as a state tells it."""
    shapes: dict[str, tuple[int, ...]] = {}
    whole = [ticket.task(name) for name in ticket.parts]
    for _, state in sorted(
        (pair for each in (ticket, *whole) for pair in each.states.items()), key=lambda pair: pair[0]
    ):
        for name in (name for name in state.names if name not in shapes):
            shape = state.drawn[name].shape if name in state.drawn else _stored_shape(state.stored, name)
            shapes[name] = tuple(shape)
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
