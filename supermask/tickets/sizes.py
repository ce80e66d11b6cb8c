"""What a ticket's file is made of, in bytes: masks, weights, and what describes them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .container import read
from .header import BITS, KEY, read_header


@dataclass(frozen=True)
class Stored:
    """Tensors that a file stores as numbers, all of one state: how many bytes, of how many numbers of which types.

    `masked` counts weights under masks, of which only the kept ones are there, `unmasked` what no mask drops: biases,
    the parameters and statistics of norms. `dtypes` are the types of the former: `F32`, `BF16`, `F16`, ...
    """

    masked: int = 0
    unmasked: int = 0
    dtypes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """The bytes of a ticket's file.

    total: all of them.
    bits: masks, and signs and levels where there are any.
    states: what is stored as numbers, by state: `start`, `final`, or `backbone` and `2/final` of several tasks. Of
        weights that a seed draws nothing is stored.
    description: names, shapes, seeds, configuration: what is left.
    """

    total: int
    bits: int
    states: Mapping[str, Stored]
    description: int


def sizes_of(source: str | Path | bytes) -> Sizes:
    """The sizes of the parts of a ticket's file, which is given by its path or its bytes.

        sizes_of("ticket.safetensors").states["final"].masked

    Raises:
        ValueError: it is no ticket file.
        OSError: a path that cannot be read.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    container = read(io.BytesIO(data))
    header = read_header(container.metadata[KEY])
    masked = {"": set(header.masks)} | {name: set(masks) for name, masks in header.sets.items()}
    states: dict[str, Stored] = {}
    bits = 0
    for name, array in container.arrays.items():
        if name == BITS:
            bits = array.data.size
            continue
        # `start/fc1.weight`, `backbone/fc1.weight`, `tasks/2/final/fc1.bias`.
        where, _, tensor = name.removeprefix("tasks/").partition("/")
        task = ""
        if name.startswith("tasks/"):
            task, (state, _, tensor) = where, tensor.partition("/")
            where = f"{task}/{state}"
        under = tensor in masked[task] or (where == "backbone" and any(tensor in names for names in masked.values()))
        before = states.get(where, Stored())
        states[where] = Stored(
            before.masked + (array.data.size if under else 0),
            before.unmasked + (0 if under else array.data.size),
            tuple(dict.fromkeys((*before.dtypes, *([array.dtype] if under else [])))),
        )
    total = len(data)
    stored = sum(each.masked + each.unmasked for each in states.values())
    return Sizes(total, bits, states, total - bits - stored)
