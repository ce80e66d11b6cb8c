"""From the bytes of a file to a ticket, believing none of them."""

from __future__ import annotations

import hashlib
import math
from typing import BinaryIO

from torch import Tensor

from ..weights.inits import Draw
from ..weights.plain import from_bytes
from . import bit_coding as coding
from .container import Array, Container, read
from .header import BITS, COMPACT_KEY, KEY, NO_CHECKSUM, Bits, Header, Mask, read_header
from .lazy import TORCH_DTYPES, CodedLevels, CodedMask, CodedMasks, CodedSigns, StoredTensors
from .ticket import STATES, State, Ticket, TicketError


def read_ticket(file: BinaryIO, max_weights: float) -> Ticket:
    """The ticket in an open file. All of the file is checked; nothing in it is decoded or laid out.

    Raises:
        TicketError: says what is wrong.
    """
    try:
        container = read(file)
    except ValueError as error:
        raise TicketError(f"not a whole ticket file: {error}") from None
    if KEY not in container.metadata and COMPACT_KEY in container.metadata:
        raise TicketError("a compact network, not a ticket: supermask.load_compact reads it")
    if KEY not in container.metadata:
        raise TicketError(f"not a ticket file: expected a safetensors file with a '{KEY}' description")
    header = read_header(container.metadata[KEY], max_weights)
    _verify_checksum(container, header)
    try:
        return _build_ticket(container, header)
    except (ValueError, RecursionError) as error:
        raise TicketError(f"the ticket's content is wrong: {error}") from None


def _verify_checksum(container: Container, header: Header) -> None:
    digest = hashlib.sha256(container.head.replace(header.checksum.encode(), NO_CHECKSUM.encode(), 1))
    digest.update(container.body.data)
    if digest.hexdigest() != header.checksum:
        raise TicketError("the ticket file is damaged: its content does not match its checksum")


class _BitReader:
    """The coded bits of a file, taken one after the other and checked as they are."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        array = arrays.pop(BITS, None)
        if array is None or array.dtype != "U8":
            raise ValueError(f"expected a tensor '{BITS}' of type U8")
        self._data, self._place = array.data, 0

    def take(self, what: str, entry: Bits, count: int, ones: int) -> tuple[coding.Code, coding.Bytes]:
        code = coding.Code(count, ones, *(entry.rice or ()))
        data = self._data[self._place : self._place + code.size]
        self._place += code.size
        try:
            coding.check(code, data)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None
        return code, data

    def mask(self, name: str, entry: Mask, shape: tuple[int, ...]) -> CodedMask:
        block = tuple(entry.block or (1,) * len(shape))
        each = math.prod(block)
        code, data = self.take(f"the mask of '{name}'", entry, math.prod(shape) // each, entry.kept // each)
        return CodedMask(shape, block, entry.kept, code, data)

    def finish(self) -> None:
        if self._place != self._data.size:
            raise ValueError(f"{self._data.size} bytes of bits, expected {self._place}")


def _build_ticket(container: Container, header: Header) -> Ticket:
    shapes = header.shapes
    arrays = dict(container.arrays)
    reader = _BitReader(arrays)
    coded: dict[str, CodedMask] = {}
    levels = {}
    for name, entry in header.masks.items():
        coded[name] = reader.mask(name, entry, shapes[name])
        count, chain = entry.kept, []
        for deeper in entry.levels:
            chain.append(reader.take(f"the levels of '{name}'", deeper, count, deeper.kept))
            count = deeper.kept
        if chain:
            levels[name] = tuple(chain)
    masks = CodedMasks(coded, [name for name, entry in header.masks.items() if entry.uncounted])
    sets = {
        which: CodedMasks(
            {name: reader.mask(name, entry, shapes[name]) for name, entry in chosen.items()},
            [name for name, entry in chosen.items() if entry.uncounted],
        )
        for which, chosen in header.sets.items()
    }
    states = {}
    for state, described in header.states.items():
        signs = {}
        for name, plane in described.signs.items():
            count = coded[name].kept if name in coded else math.prod(shapes[name])
            signs[name] = reader.take(f"the signs of '{name}'", plane, count, plane.kept)
        values = {name: _take_values(arrays, state, name, dtype) for name, dtype in described.stored.items()}
        for name, tensor in values.items():
            expected = coded[name].kept if name in coded else math.prod(shapes[name])
            if tensor.numel() != expected:
                raise ValueError(f"the tensor '{state}/{name}' has {tensor.numel()} values, expected {expected}")
        drawn = {n: Draw(g.init, g.seed, g.scale, shapes[n]) for g in described.drawn for n in g.names}
        states[state] = State(
            StoredTensors(values, described.stored, shapes, masks),
            drawn,
            described.fingerprint,
            CodedSigns(signs, shapes, masks),
            described.gains,
            tuple(name for name in shapes if name in drawn or name in values),
        )
    reader.finish()
    if arrays:
        raise ValueError(f"there are tensors that it does not describe: {', '.join(sorted(arrays))}")
    states = {name: states[name] for name in STATES if name in states}
    return Ticket(masks, states, header.meta, sets, CodedLevels(levels, masks))


def _take_values(arrays: dict[str, Array], state: str, name: str, dtype: str) -> Tensor:
    array = arrays.pop(f"{state}/{name}", None)
    if array is None:
        raise ValueError(f"the tensor '{state}/{name}' is not there")
    if array.dtype != dtype and not (dtype == "F32" and array.dtype in ("BF16", "F16")):
        raise ValueError(f"the tensor '{state}/{name}' is of type {array.dtype}, expected {dtype}")
    if len(array.shape) != 1:
        raise ValueError(f"the tensor '{state}/{name}' has shape {list(array.shape)}, expected one axis")
    return from_bytes(array.data, TORCH_DTYPES[array.dtype])
