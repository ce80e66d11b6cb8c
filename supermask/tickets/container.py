"""Safetensors bytes, read strictly: arrays by name, and one string of metadata. NumPy alone.

The files are ordinary safetensors files, which the safetensors library reads too. Ours is read here because a ticket
comes from strangers: no name twice, no byte that belongs to no tensor, nothing allocated that the file does not hold.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from .strict_json import LONGEST, parse_json

# A network of many tensors has two states of each, see `docs/ticket_format.md`.
MOST_TENSORS = 40_000

_READ_AT_ONCE = 1 << 20

# Bytes of one value.
DTYPES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "C64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U64": 8, "U32": 4, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
}  # fmt: skip


class Array(NamedTuple):
    """One tensor as bytes: little-endian, row-major."""

    dtype: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]


class Container(NamedTuple):
    """A file's tensors and metadata; `head` is all that comes before the tensors' bytes, `body` those bytes."""

    arrays: dict[str, Array]
    metadata: Mapping[str, str]
    head: bytes
    body: npt.NDArray[np.uint8]


def layout(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> tuple[bytes, list[Array]]:
    """The bytes before the tensors, and the tensors in the order in which their bytes follow.

    Raises:
        ValueError: `read` would refuse such a header.
    """
    ordered = dict(sorted(arrays.items(), key=lambda item: (-DTYPES[item[1].dtype], item[0])))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in ordered.items():
        start, end = end, end + array.data.size
        header[name] = {"dtype": array.dtype, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LONGEST:
        raise ValueError(f"its header would have {len(text):,} bytes, at most {LONGEST:,} are allowed")
    _read_header(text)  # what could not be read back is not written
    return struct.pack("<Q", len(text)) + text, list(ordered.values())


def read(file: BinaryIO) -> Container:
    """Read a whole safetensors file, of which nothing is believed.

    Raises:
        ValueError: says what is wrong.
    """
    start = file.read(8)
    if len(start) < 8:
        raise ValueError(f"it has {len(start)} bytes")
    (length,) = struct.unpack("<Q", start)
    if length > LONGEST:
        raise ValueError(f"its header should have {length:,} bytes, at most {LONGEST:,} are allowed")
    text = bytes(_read_exactly(file, length, "its header"))
    header, metadata = _read_header(text)
    spans = {name: _span(name, entry) for name, entry in header.items()}
    end = 0
    for name, (_, _, first, last) in sorted(spans.items(), key=lambda item: item[1][2:]):
        if first != end:
            raise ValueError(f"the tensor '{name[:100]}' starts at byte {first}, expected {end}")
        end = last
    body = np.frombuffer(_read_exactly(file, end, "its tensors"), np.uint8)
    if file.read(1):
        raise ValueError(f"there is more behind its {end} bytes of tensors")
    arrays = {name: Array(dtype, shape, body[first:last]) for name, (dtype, shape, first, last) in spans.items()}
    return Container(arrays, metadata, start + text, body)


def _read_header(text: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """What a header says of its tensors, by name, and its metadata."""
    try:
        header = parse_json(text)
    except ValueError as error:
        raise ValueError(f"its header is not JSON that can be read: {error}") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not texts")
    if len(header) > MOST_TENSORS:
        raise ValueError(f"it has {len(header):,} tensors, at most {MOST_TENSORS:,} are allowed")
    return header, metadata


def _span(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    try:
        dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, first, last]
        fits = len(entry) == 3 and len(shape) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in numbers)
        if fits and last - first == math.prod(shape) * DTYPES[dtype]:
            return dtype, tuple(shape), first, last
    except (TypeError, ValueError, KeyError):
        pass
    raise ValueError(f"the tensor '{name[:100]}' is described wrongly, or has a type that is not known here")


def _read_exactly(file: BinaryIO, count: int, what: str) -> bytearray:
    # Piece by piece: a length that lies must not allocate what the file does not have.
    data = bytearray()
    while len(data) < count:
        piece = file.read(min(_READ_AT_ONCE, count - len(data)))
        if not piece:
            raise ValueError(f"{what} should have {count} bytes, {len(data)} are there")
        data += piece
    return data
