"""From the bytes of a file to a ticket, believing none of them."""

from __future__ import annotations

import gc
import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from torch import Tensor

from ..weights.inits import Draw
from ..weights.plain import from_bytes
from . import bit_coding as coding
from .container import Array, Container, read
from .header import BITS, COMPACT_KEY, KEY, NO_CHECKSUM, Bits, Header, Mask, check_weights, most_weights, read_header
from .header import State as Described
from .lazy import TORCH_DTYPES, CodedLevels, CodedMask, CodedMasks, CodedSigns, StoredTensors
from .ticket import STATES, Part, State, Ticket, TicketError


def read_ticket(file: BinaryIO, max_weights: float | None = None) -> Ticket:
    """The ticket in an open file. All of the file is checked; nothing in it is decoded or laid out.

    Args:
        file: at its first byte.
        max_weights: how many weights it may describe. If not given, that follows from its size (see `most_weights`).

    Raises:
        TicketError: says what is wrong.
    """
    with _without_collector():
        return _read(file, max_weights)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Without the collector of cycles: of a network of many tensors it would take half the time, for nothing."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _read(file: BinaryIO, max_weights: float | None) -> Ticket:
    try:
        container = read(file)
    except ValueError as error:
        raise TicketError(f"not a whole ticket file: {error}") from None
    if KEY not in container.metadata and COMPACT_KEY in container.metadata:
        raise TicketError("a compact network, not a ticket: supermask.load_compact reads it")
    if KEY not in container.metadata:
        raise TicketError(f"not a ticket file: expected a safetensors file with a '{KEY}' description")
    header = read_header(container.metadata[KEY])
    size = len(container.head) + container.body.size
    check_weights(header, most_weights(size) if max_weights is None else max_weights)
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
    states_of = _StateReader(reader, arrays, shapes)
    states = {name: states_of.read(name, described, masks) for name, described in header.states.items()}
    backbone, parts, order = None, {}, tuple(shapes)
    if header.backbone is not None:
        backbone = states_of.read("backbone", header.backbone, CodedMasks({}))
        for name, task in header.tasks.items():
            own = {
                which: states_of.read(f"tasks/{name}/{which}", described, sets[name])
                for which, described in task.states.items()
            }
            parts[name] = Part(_in_order(own), task.meta, order)
    reader.finish()
    if arrays:
        named = ", ".join(name[:100] for name in sorted(arrays)[:20])
        raise ValueError(f"there are {len(arrays):,} tensors that it does not describe: {named}")
    return Ticket(masks, _in_order(states), header.meta, sets, CodedLevels(levels, masks), backbone, parts)


def _in_order(states: dict[str, State]) -> dict[str, State]:
    return {name: states[name] for name in STATES if name in states}


class _StateReader:
    """The states of a file, one after the other, as they take the next bits."""

    def __init__(self, bits: _BitReader, arrays: dict[str, Array], shapes: dict[str, tuple[int, ...]]) -> None:
        self.bits, self.arrays, self.shapes = bits, arrays, shapes
        self.places = {name: place for place, name in enumerate(shapes)}

    def read(self, where: str, described: Described, masks: CodedMasks) -> State:
        """A state whose stored tensors are called `where/NAME`."""
        signs = {}
        for name, plane in described.signs.items():
            signs[name] = self.bits.take(f"the signs of '{name}'", plane, self._count(name, masks), plane.kept)
        values = {name: _take_values(self.arrays, where, name, dtype) for name, dtype in described.stored.items()}
        for name, tensor in values.items():
            if tensor.numel() != (expected := self._count(name, masks)):
                raise ValueError(f"the tensor '{where}/{name}' has {tensor.numel()} values, expected {expected}")
        drawn = {n: Draw(g.init, g.seed, g.scale, self.shapes[n]) for g in described.drawn for n in g.names}
        return State(
            StoredTensors(values, described.stored, self.shapes, masks),
            drawn,
            described.fingerprint,
            CodedSigns(signs, self.shapes, masks),
            described.gains,
            tuple(sorted({*drawn, *values}, key=self.places.__getitem__)),
        )

    def _count(self, name: str, masks: CodedMasks) -> int:
        return masks.kept_of(name) if name in masks else math.prod(self.shapes[name])


def _take_values(arrays: dict[str, Array], state: str, name: str, dtype: str) -> Tensor:
    array = arrays.pop(f"{state}/{name}", None)
    if array is None:
        raise ValueError(f"the tensor '{state}/{name}' is not there")
    if array.dtype != dtype and not (dtype == "F32" and array.dtype in ("BF16", "F16")):
        raise ValueError(f"the tensor '{state}/{name}' is of type {array.dtype}, expected {dtype}")
    if len(array.shape) != 1:
        raise ValueError(f"the tensor '{state}/{name}' has shape {list(array.shape)}, expected one axis")
    return from_bytes(array.data, TORCH_DTYPES[array.dtype])
