"""What a ticket file says of itself: the description that stands in it as one JSON string."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Annotated, Any

import pydantic

from ..weights.inits import INITS, WEIGHT_INITS
from .container import DTYPES
from .strict_json import parse_json
from .ticket import STATES, TicketError

# The newest format. A ticket of one task is written as format 1, which every version reads.
FORMAT = 2
KEY = "supermask"
COMPACT_KEY = "compact"
BITS = "bits"
NO_CHECKSUM = "0" * 64
# A file may describe so many weights, and as many more for each byte that it has, but never more than the last number,
# whose masks take 2 GB. Whoever trusts a file of more says so.
FREE_WEIGHTS = 25_000_000
WEIGHTS_PER_BYTE = 10_000
MAX_WEIGHTS = 2_000_000_000
# A file of so much is read within a second: tensors, sets of masks, and coded vectors of bits.
MOST_TENSORS = 20_000
MOST_SETS = 5_000
MOST_VECTORS = 40_000
# Of more mistakes than these their number is told.
_MOST_LISTED = 1_000

Count = Annotated[int, pydantic.Field(ge=0, lt=2**62)]
Shape = Annotated[list[Count], pydantic.Field(max_length=32)]
# Beyond, float32 has no numbers for a network's weights.
Factor = Annotated[float, pydantic.Field(ge=-1e30, le=1e30)]


class _Strict(pydantic.BaseModel, extra="forbid", strict=True, frozen=True):
    pass


class Bits(_Strict):
    """One coded bit vector: how many bits are True, and if it is no bitmap the Rice code (see `coding.Code`).

    `rice` is the number of a remainder's digits and the number of bytes of all quotients.
    """

    kept: Count
    rice: Annotated[list[Count], pydantic.Field(min_length=2, max_length=2)] | None = None


class Mask(Bits):
    """One mask: of blocks of this shape where there is one; `levels` divide what it keeps again and again."""

    block: list[Annotated[int, pydantic.Field(ge=1, lt=2**62)]] | None = None
    levels: Annotated[list[Bits], pydantic.Field(max_length=254)] = []
    uncounted: bool = False


class Tensor(_Strict):
    """One tensor of the network: its shape, and the ticket's mask of it if there is one."""

    shape: Shape
    mask: Mask | None = None


class Drawn(_Strict):
    """Tensors drawn alike."""

    init: str
    seed: Annotated[int, pydantic.Field(ge=-(2**63), lt=2**64)]
    scale: Factor
    names: list[str]


class State(_Strict):
    """Where all tensors of a state come from; `stored` gives their types."""

    fingerprint: Annotated[str, pydantic.Field(pattern="^[0-9a-f]{64}$")]
    drawn: list[Drawn] = []
    signs: dict[str, Bits] = {}
    gains: dict[str, Factor] = {}
    stored: dict[str, str] = {}


# A name stands in those of tensors, between slashes.
TASK_NAME = re.compile(r"[^/\x00-\x1f\x7f]{1,100}")


class Task(_Strict):
    """What one of several tasks has beside its masks, which are the set of its name: tensors, metadata."""

    states: dict[str, State]
    meta: dict[str, Any] = {}


class Header(_Strict):
    """The whole description."""

    format: int
    checksum: Annotated[str, pydantic.Field(pattern="^[0-9a-f]{64}$")]
    tensors: dict[str, Tensor]
    sets: dict[str, dict[str, Mask]] = {}
    states: dict[str, State] = {}
    backbone: State | None = None
    tasks: dict[str, Task] = {}
    meta: dict[str, Any] = {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def masks(self) -> dict[str, Mask]:
        """The ticket's masks."""
        return {name: tensor.mask for name, tensor in self.tensors.items() if tensor.mask is not None}

    def problems(self) -> list[str]:
        """What the fields' types do not say."""
        shapes = self.shapes
        found = [f"unknown state '{name}'" for name in self.states if name not in STATES]
        for what, masks in [("mask", self.masks), *((f"set '{name}'", masks) for name, masks in self.sets.items())]:
            for name, mask in masks.items():
                if name not in shapes:
                    found.append(f"{what}: '{name}' has no shape")
                elif mask.block is not None:
                    found += _block_problems(name, shapes[name], mask)
        for name, state in self.states.items():
            found += [f"{name}: {problem}" for problem in _state_problems(state, shapes)]
        return found + self._problems_of_tasks(shapes)

    def _problems_of_tasks(self, shapes: dict[str, tuple[int, ...]]) -> list[str]:
        if not self.tasks and self.backbone is None:
            return []
        if not self.tasks or self.backbone is None:
            return ["a backbone and tasks go together"]
        found = (
            ["a ticket of several tasks has masks and states of its tasks only"] if self.masks or self.states else []
        )
        found += [f"backbone: {problem}" for problem in _state_problems(self.backbone, shapes)]
        shared, first = names_of(self.backbone), next(iter(self.tasks.values()))
        for name, task in self.tasks.items():
            if TASK_NAME.fullmatch(name) is None:
                found.append(f"'{name[:100]}' is no name of a task")
            if not task.states or task.states.keys() != first.states.keys() or not task.states.keys() <= set(STATES):
                found.append(f"task '{name}': unknown states, or others than those of the first task")
            found += [
                f"task '{name}': '{each}' is not in the backbone"
                for each in self.sets.get(name, {})
                if each not in shared
            ]
            if not self.sets.get(name):
                found.append(f"task '{name}' has no set of masks")
            for which, state in task.states.items():
                found += [f"task '{name}', {which}: {problem}" for problem in _state_problems(state, shapes)]
                found += [f"task '{name}', {which}: '{each}' is in the backbone" for each in names_of(state) & shared]
        return found

    @property
    def weights(self) -> int:
        """How many weights there are, or entries of the masks of all sets, whichever is more."""
        # An axis of length 0 must not hide the others' lengths.
        sizes = {name: math.prod(max(1, size) for size in shape) for name, shape in self.shapes.items()}
        in_sets = sum(sizes[name] for chosen in self.sets.values() for name in chosen)
        return max(sum(sizes.values()), in_sets)


def names_of(state: State) -> set[str]:
    """The names of a state's tensors."""
    return {*state.stored, *(name for group in state.drawn for name in group.names)}


def _block_problems(name: str, shape: tuple[int, ...], mask: Mask) -> list[str]:
    block = mask.block or []
    fits = len(block) == len(shape) and all(size % part == 0 for size, part in zip(shape, block, strict=True))
    if not fits or mask.kept % math.prod(block):
        return [f"mask of '{name}': blocks of {block} do not make up {mask.kept} of {list(shape)}"]
    return []


def _state_problems(state: State, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    drawn = [(name, group.init) for group in state.drawn for name in group.names]
    names = [name for name, _ in drawn] + list(state.stored)
    found = [f"'{name}' is there twice" for name, times in Counter(names).items() if times > 1]
    found += [f"'{name}' has no shape" for name in names if name not in shapes]
    found += [f"unknown init '{group.init}'" for group in state.drawn if group.init not in INITS]
    found += [
        f"'{name}' cannot be drawn with shape {list(shapes[name])}"
        for name, init in drawn
        if init in WEIGHT_INITS and name in shapes and (len(shapes[name]) < 2 or not math.prod(shapes[name]))
    ]
    drawn_names = {name for name, _ in drawn}
    found += [f"'{name}' has signs or a gain, but is not drawn" for name in {*state.signs, *state.gains} - drawn_names]
    return found + [f"'{name}' has an unknown type" for name, dtype in state.stored.items() if dtype not in DTYPES]


def format_of(tasks: bool) -> int:
    """The format of a ticket, of one task or of several."""
    return FORMAT if tasks else 1


def most_weights(size: int) -> int:
    """How many weights a file of so many bytes may describe, where nobody has said how many."""
    return min(FREE_WEIGHTS + WEIGHTS_PER_BYTE * size, MAX_WEIGHTS)


def read_header(text: str) -> Header:
    """Read and check a description.

    Raises:
        TicketError: says all that is wrong, or that the file is of a newer format.
    """
    try:
        plain = parse_json(text.encode())
    except ValueError as error:
        raise TicketError(f"the ticket's description is wrong: {error}") from None
    version = plain.get("format") if isinstance(plain, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise TicketError(f"the ticket has format {version}, this version reads up to {FORMAT}: upgrade supermask")
    try:
        header = Header.model_validate(plain)
    except pydantic.ValidationError as error:
        problems = _explain(error)
    else:
        problems = _too_many(header) or header.problems()
        expected = format_of(bool(header.tasks))
        problems += [f"format: expected {expected}"] if version != expected else []
    if problems:
        raise TicketError(f"the ticket's description is wrong: {_some(problems)}")
    return header


def check_weights(header: Header, most: float) -> None:
    """Refuse a description of more weights than `most`.

    Raises:
        TicketError: names the number to give as `max_weights`.
    """
    if (weights := header.weights) > most:
        raise TicketError(
            f"the ticket describes {weights:,} weights, more than {most:,}: if you trust it, "
            f"supermask.load(..., max_weights={weights})"
        )


def _too_many(header: Header) -> list[str]:
    own = [state for task in header.tasks.values() for state in task.states.values()]
    states = [*header.states.values(), *own, *([header.backbone] if header.backbone else [])]
    masks = [mask for chosen in (header.masks, *header.sets.values()) for mask in chosen.values()]
    vectors = sum(1 + len(mask.levels) for mask in masks) + sum(len(state.signs) for state in states)
    counts = (
        (len(header.tensors), MOST_TENSORS, "tensors"),
        (max(len(header.sets), len(header.tasks)), MOST_SETS, "sets of masks"),
        (vectors, MOST_VECTORS, "masks, levels and signs"),
    )
    return [f"{found:,} {what}, at most {most:,} are allowed" for found, most, what in counts if found > most]


def _explain(error: pydantic.ValidationError) -> list[str]:
    # The list of what is wrong with a million values takes longer than all else.
    if (wrong := error.error_count()) > _MOST_LISTED:
        return [f"{wrong:,} values are not what is expected there"]
    items = error.errors(include_url=False, include_context=False, include_input=False)
    return [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in items]


def _some(problems: list[str], most: int = 20, longest: int = 300) -> str:
    shown = [text if len(text) <= longest else f"{text[:longest]}..." for text in problems[:most]]
    rest = len(problems) - most
    return "; ".join(shown) + (f"; and {rest:,} more" if rest > 0 else "")
