"""How large a ticket's file is beside its dense network; where it is the larger one, why, and what makes it small."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from supermask import Ticket
from supermask.tickets.sizes import Sizes, sizes_of

# Bytes of a weight.
_DENSE = {"fp32": 4, "fp16": 2}
_TYPES = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
# Parts of a file that are less than this share of it are not told.
_SMALL = 0.01


@dataclass(frozen=True)
class FileSize:
    """The size of a ticket's file.

    sizes: of its parts.
    dense_bytes: of the dense network's parameters in fp32, one network for each task; None where the ticket does not
        say how many there are.
    larger_than: the type in which the dense network is smaller than the file: `fp32`, else `fp16`, else nothing.
    why: where it is, in one sentence, what takes the place and what would take less; else empty.
    """

    sizes: Sizes
    dense_bytes: int | None
    larger_than: Literal["fp32", "fp16", ""]
    why: str

    @property
    def in_words(self) -> str:
        """The size beside that of the dense network, as `9,123 bytes, 5.6 times smaller than the dense network`."""
        told = f"{self.sizes.total:,} bytes"
        if self.dense_bytes is None:
            return told
        if self.larger_than == "fp32":
            return f"{told}, {self.sizes.total / self.dense_bytes:.2f} times as large as the dense network in fp32"
        return f"{told}, {self.dense_bytes / self.sizes.total:.2f} times smaller than the dense network in fp32"


def size_of_file(source: str | Path | bytes, ticket: Ticket) -> FileSize:
    """The size of a ticket's file, by its path or its bytes.

        size_of_file(path, supermask.load(path)).why

    Args:
        source: the file.
        ticket: what was read from it.

    Raises:
        ValueError: it is no ticket file.
        OSError: a path that cannot be read.
    """
    sizes = sizes_of(source)
    parameters = ticket.meta.get("parameters")
    if type(parameters) is not int or not 0 < ticket.masks.size <= parameters:
        return FileSize(sizes, None, "", "")
    networks = parameters * max(1, len(ticket.tasks))
    dense_bytes = _DENSE["fp32"] * networks
    for dtype in ("fp32", "fp16"):
        if sizes.total > (limit := _DENSE[dtype] * networks):
            why = f"The file is larger than its dense network in {dtype} ({limit:,} bytes): {_parts(sizes)}"
            return FileSize(sizes, dense_bytes, dtype, f"{why}. {_advice(sizes, ticket, limit)}")
    return FileSize(sizes, dense_bytes, "", "")


def _parts(sizes: Sizes) -> str:
    """What takes the place, the largest first."""
    parts: dict[str, int] = {}
    for name, stored in sizes.states.items():
        state = name.rpartition("/")[2]
        types = " and ".join(_TYPES.get(dtype, dtype) for dtype in stored.dtypes)
        for what, count in ((f"{state} weights in {types}", stored.masked), ("biases and norms", stored.unmasked)):
            parts[what] = parts.get(what, 0) + count
    parts |= {"masks": sizes.bits, "its description": sizes.description}
    told = sorted(((count, what) for what, count in parts.items() if count >= _SMALL * sizes.total), reverse=True)
    return f"of {sizes.total:,} bytes " + ", ".join(f"{count:,} are {what}" for count, what in told)


def _advice(sizes: Sizes, ticket: Ticket, limit: int) -> str:
    """What would take less, and how much less where that is known."""
    found = []
    start = sum(stored.masked for name, stored in sizes.states.items() if name.rpartition("/")[2] == "start")
    if start:
        rewound = ticket.meta.get("rewound_to")
        where = (
            f"`--rewind 0` in place of step {rewound:,}"
            if type(rewound) is int and rewound > 0
            else "weights that a seed draws (`--init`) in place of given ones"
        )
        found.append(f"{where} ({start:,} bytes less, as the start is then a seed)")
    wide = sum(stored.masked for stored in sizes.states.values() if stored.dtypes == ("F32",))
    if wide:
        found.append(f"`--dtype bf16` ({wide // 2:,} bytes less)")
    masked = sum(stored.masked for stored in sizes.states.values())
    # Kept weights, and about as much of the masks, shrink with the density.
    by_density = masked + sizes.bits
    rest, smaller = sizes.total - by_density, ""
    if masked and rest < limit:
        bound = math.floor(1000 * ticket.density * (limit - rest) / by_density) / 1000
        if bound > 0:
            smaller = f"at densities of at most {bound:g} the file is the smaller one, with all else as it is"
    if not masked:
        return "None of that shrinks with the density: in a larger network it is a smaller share."
    told = " and ".join(found)
    advice = "; ".join(part for part in (f"less is stored with {told}" if told else "", smaller) if part)
    why = "Each kept weight is stored, because no seed draws it as it is after training"
    return f"{why}; {advice}." if advice else f"{why}."
