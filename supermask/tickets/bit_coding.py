"""Bits as few bytes: the codings of a ticket's masks, in NumPy alone. `docs/ticket_format.md` describes them.

A bit vector is a bitmap, or the gaps between its rarer bits in a Rice code: the quotients of all gaps in unary, then
one bit plane for each binary digit of the remainders. For random bits the gaps are geometric, and a Rice code comes
within 2 % of their entropy up to a density of a third (Gallager & Van Voorhis, Optimal Source Codes for Geometrically
Distributed Integer Alphabets, 1975; Rice, Some Practical Universal Noiseless Coding Techniques, 1979). Planes, and not
one code word after another, let NumPy do it without a loop over bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

# So many bits at a time: their positions, as integers, fit the processor's cache.
_ENCODED_AT_ONCE = 1 << 15
_DECODED_AT_ONCE = 1 << 11
_LOOKED_AT_AT_ONCE = 1 << 16
_FEW = 1 << 10
# Above, a remainder has more digits than any position.
LARGEST_RICE = 40


@dataclass(frozen=True)
class Code:
    """How `count` bits, `ones` of them True, are written.

    `rice` is None for a bitmap, else the number of binary digits of a remainder; `unary` is then the number of bytes
    that the quotients take.
    """

    count: int
    ones: int
    rice: int | None = None
    unary: int = 0

    @cached_property
    def marks(self) -> int:
        """How many bits' places are written in a Rice code: those of the value, True or False, that is rarer."""
        return self.count - self.ones if self.rarer_is_false else self.ones

    @property
    def rarer_is_false(self) -> bool:
        """Whether more than half of the bits are True."""
        return 2 * self.ones > self.count

    @cached_property
    def size(self) -> int:
        """Number of bytes."""
        return _bytes(self.count) if self.rice is None else self.unary + self.rice * _bytes(self.marks)


def _bytes(bits: int) -> int:
    return (bits + 7) // 8


def encode(bits: Bits) -> tuple[Code, Bytes]:
    """The shortest of the codings of a flat bit vector."""
    count, ones = bits.size, int(np.count_nonzero(bits))
    rice = _best_rice(count, min(ones, count - ones))
    if rice:
        code, data = _encode_gaps(bits, Code(count, ones, rice))
        if code.size < _bytes(count):
            return code, data
    elif ones in (0, count):
        return Code(count, ones, 0), np.empty(0, np.uint8)
    return Code(count, ones), np.packbits(bits, bitorder="little")


def _best_rice(count: int, marks: int) -> int:
    """The number of remainder digits that is shortest for random bits; 0 would be the bitmap again."""
    if not marks:
        return 0

    def bits_per_mark(rice: int) -> float:
        stays = (1.0 - marks / count) ** (1 << rice)
        return 1 + rice + stays / (1.0 - stays)

    rice = 0
    while rice < LARGEST_RICE and bits_per_mark(rice + 1) < bits_per_mark(rice):
        rice += 1
    return rice


class _Bitmap:
    """Bits that come in pieces, as whole bytes."""

    def __init__(self) -> None:
        self._done: list[Bytes] = []
        self._rest = np.empty(0, np.bool_)

    def add(self, bits: Bits) -> None:
        bits = np.concatenate([self._rest, bits])
        whole = bits.size // 8 * 8
        self._done.append(np.packbits(bits[:whole], bitorder="little"))
        self._rest = bits[whole:]

    def finish(self) -> list[Bytes]:
        return [*self._done, np.packbits(self._rest, bitorder="little")]


def _encode_gaps(bits: Bits, code: Code) -> tuple[Code, Bytes]:
    rice = code.rice or 0
    quotients, planes = _Bitmap(), [_Bitmap() for _ in range(rice)]
    last = -1
    for start in range(0, bits.size, _ENCODED_AT_ONCE):
        piece = bits[start : start + _ENCODED_AT_ONCE]
        places = np.flatnonzero(~piece if code.rarer_is_false else piece) + start
        if not places.size:
            continue
        gaps = np.diff(places, prepend=last) - 1
        last = int(places[-1])
        ends = np.cumsum((gaps >> rice) + 1) - 1
        unary = np.zeros(int(ends[-1]) + 1, np.bool_)
        unary[ends] = True
        quotients.add(unary)
        # As 32 bits where they fit: the planes are most of the work.
        digits = gaps.astype(np.uint32) if code.count < 1 << 32 else gaps
        for digit, plane in enumerate(planes):
            plane.add((digits >> digit & 1).astype(np.bool_))
    written = quotients.finish()
    unary_bytes = sum(piece.size for piece in written)
    data = np.concatenate(written + [piece for plane in planes for piece in plane.finish()])
    return Code(code.count, code.ones, rice, unary_bytes), data


def check(code: Code, data: Bytes) -> None:
    """Check, without decoding, that bytes are what their code says: `decode` cannot fail on them afterwards.

    Raises:
        ValueError: another number of bits, a place beyond the end, or padding that is not zero.
    """
    if not 0 <= code.ones <= code.count:
        raise ValueError(f"{code.ones} of {code.count} bits")
    if code.size != data.size:
        raise ValueError(f"{data.size} bytes, expected {code.size}")
    if code.rice is None:
        _check_bitmap(data, code.count, code.ones)
        return
    if not 0 <= code.rice <= LARGEST_RICE:
        raise ValueError(f"remainders of {code.rice} digits, expected at most {LARGEST_RICE}")
    unary, planes = data[: code.unary], list(_planes(code, data))
    if (found := _population(unary)) != code.marks:
        raise ValueError(f"{found} gaps, expected {code.marks}")
    if not code.marks:
        if data.size:
            raise ValueError(f"{data.size} bytes for no gap")
        return
    if not unary[-1]:
        raise ValueError("quotients that end in nothing")
    end = 8 * unary.size - (8 - int(unary[-1]).bit_length())
    sum_of_gaps = end - code.marks << code.rice
    for digit, plane in enumerate(planes):
        _check_padding(plane, code.marks)
        sum_of_gaps += _population(plane) << digit
    if (last := sum_of_gaps + code.marks - 1) >= code.count:
        raise ValueError(f"a place {last} of {code.count} bits")


def _check_bitmap(data: Bytes, count: int, ones: int) -> None:
    _check_padding(data, count)
    if (found := _population(data)) != ones:
        raise ValueError(f"{found} bits set, expected {ones}")


def _check_padding(data: Bytes, count: int) -> None:
    if count % 8 and data[-1] >> (count % 8):
        raise ValueError("padding that is not zero")


def _population(data: Bytes) -> int:
    if data.size <= _FEW:
        # Of many small tensors the calls of NumPy would be most of the time.
        return int.from_bytes(data.tobytes(), "little").bit_count()
    pieces = (data[start : start + _LOOKED_AT_AT_ONCE] for start in range(0, data.size, _LOOKED_AT_AT_ONCE))
    return sum(int(np.bitwise_count(piece).sum(dtype=np.int64)) for piece in pieces)


def _planes(code: Code, data: Bytes) -> Iterator[Bytes]:
    size = _bytes(code.marks)
    for digit in range(code.rice or 0):
        start = code.unary + digit * size
        yield data[start : start + size]


def decode(code: Code, data: Bytes) -> Bits:
    """The bits that `encode` made the bytes from, a flat vector. The bytes must have passed `check`."""
    if code.rice is None:
        return np.unpackbits(data, count=code.count, bitorder="little").view(np.bool_)
    bits = np.full(code.count, code.rarer_is_false)
    planes = list(_planes(code, data))
    done, last_end, last_place = 0, -1, -1
    for start in range(0, code.unary, _DECODED_AT_ONCE):
        piece = data[start : min(start + _DECODED_AT_ONCE, code.unary)]
        ends = np.flatnonzero(np.unpackbits(piece, bitorder="little").view(np.bool_)) + 8 * start
        if not ends.size:
            continue
        places = np.diff(ends, prepend=last_end) - 1
        last_end = int(ends[-1])
        places <<= code.rice
        for digit, plane in enumerate(planes):
            remainder = np.unpackbits(plane[done // 8 : _bytes(done + ends.size)], bitorder="little")
            places += remainder[done % 8 : done % 8 + ends.size].astype(np.int64) << digit
        places += 1
        np.cumsum(places, out=places)
        places += last_place
        last_place = int(places[-1])
        done += ends.size
        bits[places] = not code.rarer_is_false
    return bits


def find_block(mask: Bits) -> tuple[int, ...]:
    """The largest block shape such that a mask is the same all over each of its blocks; all ones if there is none.

    Whole filters of a convolution give (1, in, height, width), whole input channels (out, 1, height, width).
    """
    return tuple(_period(mask, axis) for axis in range(mask.ndim)) if mask.size else (1,) * mask.ndim


def _period(mask: Bits, axis: int) -> int:
    """The greatest common divisor of an axis's length and of all places along it where neighbouring slices differ."""
    length = int(mask.shape[axis])
    slices = mask.reshape(math.prod(mask.shape[:axis]), length, -1)
    period = length
    # In pieces, so that of most masks, which have no blocks, only the first is looked at.
    rows = max(1, _LOOKED_AT_AT_ONCE // (length * slices.shape[2]))
    columns = max(1, _LOOKED_AT_AT_ONCE // slices.shape[2])
    for row in range(0, slices.shape[0], rows):
        for column in range(0, length - 1, columns):
            part = slices[row : row + rows, column : column + columns + 1]
            differ = (part[:, 1:] != part[:, :-1]).any(axis=(0, 2))
            period = math.gcd(period, *(np.flatnonzero(differ) + column + 1).tolist())
            if period == 1:
                return 1
    return period


def shrink(mask: Bits, block: Sequence[int]) -> Bits:
    """One bit for each block."""
    return mask[tuple(slice(None, None, size) for size in block)]


def grow(units: Bits, block: Sequence[int]) -> Bits:
    """A mask from one bit for each block: the inverse of `shrink`."""
    lengths = [length * size for length, size in zip(units.shape, block, strict=True)]
    mask = np.empty(lengths, np.bool_)
    pairs = [size for pair in zip(units.shape, block, strict=True) for size in pair]
    mask.reshape(pairs)[...] = units.reshape([size for length in units.shape for size in (length, 1)])
    return mask
