"""Masks and weights as a ticket file holds them: decoded, or laid out in their shape, when they are read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..masks.masks import Masks
from ..weights.plain import CARRIERS
from . import bit_coding as coding

Coded = tuple[coding.Code, coding.Bytes]
Shapes = Mapping[str, tuple[int, ...]]

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}  # fmt: skip
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


class CodedMask(NamedTuple):
    """One mask in its coding, checked."""

    shape: tuple[int, ...]
    block: tuple[int, ...]
    kept: int
    code: coding.Code
    data: coding.Bytes

    def decode(self) -> Tensor:
        """The bool tensor."""
        units = tuple(length // size for length, size in zip(self.shape, self.block, strict=True))
        bits = coding.decode(self.code, self.data).reshape(units)
        return torch.from_numpy(bits if math.prod(self.block) == 1 else coding.grow(bits, self.block))


class CodedMasks(Masks):
    """`Masks` whose shapes and counts are known, and whose tensors are decoded when they are first read."""

    def __init__(self, coded: Mapping[str, CodedMask], uncounted: Iterable[str] = ()) -> None:
        super().__init__({})
        self._coded = dict(coded)
        self.uncounted = frozenset(uncounted)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._masks:
            self._masks[name] = self._coded[name].decode()
        return self._masks[name]

    def __contains__(self, name: object) -> bool:
        return name in self._coded

    def __iter__(self) -> Iterator[str]:
        return iter(self._coded)

    def __len__(self) -> int:
        return len(self._coded)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor."""
        return {name: coded.shape for name, coded in self._coded.items()}

    def kept_of(self, name: str) -> int:
        """Number of entries kept in a tensor, in one too that no density counts."""
        return self._coded[name].kept

    @property
    def coded_bytes(self) -> int:
        """What all masks take in their file."""
        return sum(coded.code.size for coded in self._coded.values())

    @property
    def kept_per_tensor(self) -> dict[str, int]:
        """Number of weights kept in each tensor."""
        return {name: coded.kept for name, coded in self._coded.items() if name not in self.uncounted}


class CodedLevels(Mapping[str, Tensor]):
    """`Ticket.levels` of a file: each a chain of bit vectors over what the one before keeps."""

    def __init__(self, chains: Mapping[str, tuple[Coded, ...]], masks: Masks) -> None:
        self._chains, self._masks = dict(chains), masks

    def __getitem__(self, name: str) -> Tensor:
        levels = self._masks_of(name).astype(np.uint8)
        for level, (code, data) in enumerate(self._chains[name], start=1):
            levels[levels == level] += coding.decode(code, data)
        return torch.from_numpy(levels)

    def _masks_of(self, name: str) -> np.ndarray:
        if name not in self._chains:
            raise KeyError(name)
        return self._masks[name].numpy()

    def __contains__(self, name: object) -> bool:
        return name in self._chains

    def __iter__(self) -> Iterator[str]:
        return iter(self._chains)

    def __len__(self) -> int:
        return len(self._chains)


class _Spread(Mapping[str, Tensor]):
    """Tensors of which only the values at kept places are held; elsewhere they are 0."""

    def __init__(self, names: Iterable[str], shapes: Shapes, masks: Masks) -> None:
        self._names, self._shapes, self._masks = dict.fromkeys(names), shapes, masks

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without laying it out."""
        return self._shapes[name]

    def _lay_out(self, name: str, values: Tensor) -> Tensor:
        if name not in self._masks:
            return values.reshape(self._shapes[name])
        tensor = torch.zeros(self._shapes[name], dtype=values.dtype)
        carrier = CARRIERS[values.element_size()]
        tensor.view(carrier).numpy()[self._masks[name].numpy()] = values.view(carrier).numpy()
        return tensor


class StoredTensors(_Spread):
    """`State.stored` of a file."""

    def __init__(self, values: Mapping[str, Tensor], dtypes: Mapping[str, str], shapes: Shapes, masks: Masks) -> None:
        super().__init__(values, shapes, masks)
        self._values, self._dtypes = values, dtypes

    def __getitem__(self, name: str) -> Tensor:
        values = self._values[name]
        return self._lay_out(name, values.float() if self._dtypes[name] == "F32" else values.clone())


class CodedSigns(_Spread):
    """`State.signs` of a file."""

    def __init__(self, signs: Mapping[str, Coded], shapes: Shapes, masks: Masks) -> None:
        super().__init__(signs, shapes, masks)
        self._signs = signs

    def __getitem__(self, name: str) -> Tensor:
        code, data = self._signs[name]
        return self._lay_out(name, torch.from_numpy(coding.decode(code, data)))
