"""Masks: a mapping from parameter names to bool tensors, True = kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import notebook
from .random_numbers import permutation
from .targets import find_targets, nearest

Names = Mapping[str, str | None] | Callable[[str], str | None]


class LayerDensity(NamedTuple):
    """One row of a report: the tensor's name and shape, kept and all weights, and their ratio."""

    name: str
    shape: tuple[int, ...]
    kept: int
    size: int
    density: float


class Masks(Mapping[str, Tensor]):
    """An immutable mapping `{parameter name: bool tensor}` of the parameters' shapes, True = kept.

    masks.density                 # kept / all, over every tensor
    masks.densities["fc1.weight"] # the same of one tensor
    masks.overlap(other)          # intersection over union of what two masks keep
    masks & other, masks | other, masks - other, masks ^ other, ~masks

    `uncounted` names the tensors that no density counts: biases and norm parameters that go with dropped channels.
    `left_whole` says of tensors why none of their filters could be dropped, where whole channels were chosen; it is
    neither stored nor taken along to other masks.
    """

    def __init__(
        self, masks: Mapping[str, Tensor], uncounted: Iterable[str] = (), left_whole: Mapping[str, str] | None = None
    ) -> None:
        """Take the masks as they are, without a copy.

        Raises:
            ValueError: a value that is not a bool tensor; all of them are named.
        """
        wrong = [f"{name} ({_describe(mask)})" for name, mask in masks.items() if not _is_mask(mask)]
        if wrong:
            raise ValueError(f"a mask is a bool tensor, True = kept; got {', '.join(wrong)}")
        self._masks = dict(masks)
        self.uncounted: frozenset[str] = frozenset(name for name in uncounted if name in self._masks)
        self.left_whole = dict(left_whole or {})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping) or set(self) != set(other):
            return False
        return all(torch.equal(mask, other[name].to(mask.device)) for name, mask in self.items())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Masks({len(self)} tensors, {self.kept} of {self.size} weights kept, density {self.density:.4g})"

    def _repr_html_(self) -> str:
        facts = {"weights kept": notebook.share(self.kept, self.size), "tensors": len(self)}
        bars = notebook.bars_of((row.name, row.kept, row.size) for row in self.report())
        return notebook.page("Masks", facts, bars)

    def __and__(self, other: Mapping[str, Tensor]) -> Masks:
        """What both keep."""
        return self._like({name: mask & theirs for name, mask, theirs in self._pairs(other)}, other)

    def __or__(self, other: Mapping[str, Tensor]) -> Masks:
        """What either keeps."""
        return self._like({name: mask | theirs for name, mask, theirs in self._pairs(other)}, other)

    def __sub__(self, other: Mapping[str, Tensor]) -> Masks:
        """What this keeps and the other does not."""
        return self._like({name: mask & ~theirs for name, mask, theirs in self._pairs(other)}, other)

    def __xor__(self, other: Mapping[str, Tensor]) -> Masks:
        """What one of the two keeps."""
        return self._like({name: mask ^ theirs for name, mask, theirs in self._pairs(other)}, other)

    def __invert__(self) -> Masks:
        """What is dropped."""
        return self._like({name: ~mask for name, mask in self.items()})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor."""
        return {name: tuple(mask.shape) for name, mask in self.items()}

    @property
    def size(self) -> int:
        """Number of maskable weights."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if name not in self.uncounted)

    @property
    def kept(self) -> int:
        """Number of weights kept."""
        return sum(self.kept_per_tensor.values())

    @property
    def kept_per_tensor(self) -> dict[str, int]:
        """Number of weights kept in each tensor."""
        masks = self.counted()
        return dict(zip(masks, read_numbers([torch.count_nonzero(mask) for mask in masks.values()]), strict=True))

    @property
    def density(self) -> float:
        """Fraction of the maskable weights that is kept, in [0, 1]."""
        return self.kept / max(1, self.size)

    @property
    def densities(self) -> dict[str, float]:
        """Density of each tensor."""
        return {row.name: row.density for row in self.report()}

    def report(self) -> list[LayerDensity]:
        """One row per tensor: name, shape, kept, size, density."""
        shapes = self.shapes
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        return [
            LayerDensity(name, shapes[name], kept, sizes[name], kept / max(1, sizes[name]))
            for name, kept in self.kept_per_tensor.items()
        ]

    def overlap(self, other: Mapping[str, Tensor]) -> float:
        """Intersection over union of the kept weights, in [0, 1]; 1 where both keep nothing."""
        pairs = list(self._counted_pairs(other))
        both = sum(read_numbers([torch.count_nonzero(mask & theirs) for _, mask, theirs in pairs]))
        either = sum(read_numbers([torch.count_nonzero(mask | theirs) for _, mask, theirs in pairs]))
        return both / either if either else 1.0

    def changed(self, other: Mapping[str, Tensor]) -> float:
        """Share of all mask entries that differ between the two, in [0, 1]."""
        differ = [torch.count_nonzero(mask ^ theirs) for _, mask, theirs in self._counted_pairs(other)]
        return sum(read_numbers(differ)) / max(1, self.size)

    def within(self, other: Mapping[str, Tensor]) -> bool:
        """Whether every weight kept here is kept by `other` too (masks that only shrink)."""
        return not any(read_numbers([(mask & ~theirs).any() for _, mask, theirs in self._pairs(other)]))

    def to(self, device: torch.device | str) -> Masks:
        """The same masks on a device."""
        return self._like({name: mask.to(device) for name, mask in self.items()})

    def renamed(self, names: Names | None) -> Masks:
        """The same masks under other names (see `Ticket.apply_to`), for a model that calls its parameters otherwise.

        Raises:
            ValueError: two masks that get the same name.
        """
        new = {name: other for name, other in rename(self, names).items() if other is not None}
        return Masks({other: self[name] for name, other in new.items()}, (new.get(n, "") for n in self.uncounted))

    def counted(self) -> dict[str, Tensor]:
        """The masks of the weights that densities count."""
        return {name: mask for name, mask in self.items() if name not in self.uncounted}

    def shuffled(self, seed: int) -> Masks:
        """The same number of weights at random places within each tensor: the control of where a mask keeps them.

        What is not counted stays. Source: Frankle et al., Pruning Neural Networks at Initialization: Why Are We Missing
        the Mark?, 2021.
        """
        moved = {
            name: mask.reshape(-1)[torch.from_numpy(permutation(mask.numel(), seed, f"shuffle/{name}")).to(mask.device)]
            for name, mask in self.counted().items()
        }
        return self._like(
            {name: moved[name].reshape(mask.shape) if name in moved else mask for name, mask in self.items()}
        )

    def check(self, model: nn.Module) -> None:
        """Check that every mask has a parameter of its name and shape in `model`.

        Raises:
            ValueError: names the first masks that do not fit, with what came and what was expected, and their number.
        """
        problems = mismatches(
            self.shapes.items(), {name: tuple(p.shape) for name, p in _maskable_parameters(model).items()}
        )
        if problems:
            raise ValueError("the masks do not fit the model: " + first_few(problems))

    def _like(self, masks: Mapping[str, Tensor], other: Mapping[str, Tensor] | None = None) -> Masks:
        return Masks(masks, self.uncounted | (other.uncounted if isinstance(other, Masks) else frozenset()))

    def _counted_pairs(self, other: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
        return (pair for pair in self._pairs(other) if pair[0] not in self.uncounted)

    def _pairs(self, other: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
        shapes = shapes_of(other)
        problems = mismatches(self.shapes, shapes) + [
            f"{name} is only in the second" for name in shapes if name not in self
        ]
        if problems:
            raise ValueError("the two masks are not over the same tensors: " + first_few(problems))
        for name, mask in self.items():
            yield name, mask, other[name].to(mask.device)


def rename(given: Iterable[str], names: Names | None) -> dict[str, str | None]:
    """What each name becomes.

    Args:
        given: the names.
        names: a function of the name, or a mapping of whole names and of prefixes that end in a dot (`""` is a prefix
            of all); the longest that fits counts. What becomes None is left out.

    Raises:
        ValueError: two names that become one.
    """
    new = {name: _rename(name, names) for name in given}
    seen: dict[str, str] = {}
    for name, other in new.items():
        if other is not None and seen.setdefault(other, name) != name:
            raise ValueError(f"'{seen[other]}' and '{name}' both become '{other}'")
    return new


def _rename(name: str, names: Names | None) -> str | None:
    if names is None:
        return name
    if callable(names):
        return names(name)
    if name in names:
        return names[name]
    prefixes = [prefix for prefix in names if (not prefix or prefix.endswith(".")) and name.startswith(prefix)]
    if not prefixes:
        return name
    prefix = max(prefixes, key=len)
    return None if names[prefix] is None else f"{names[prefix]}{name.removeprefix(prefix)}"


_SHOWN = 5


def first_few(problems: Sequence[str], most: int = _SHOWN) -> str:
    """The first of many sentences, and how many more there are: of another network every tensor has one."""
    rest = len(problems) - most
    return "; ".join(problems[:most]) + (f"; and {rest} more of {len(problems)}" if rest > 0 else "")


def mismatches(
    given: Mapping[str, tuple[int, ...]] | Iterable[tuple[str, tuple[int, ...]]],
    shapes: Mapping[str, tuple[int, ...]],
    noun: str = "mask",
) -> list[str]:
    """One sentence for each shape given, by name, whose name is missing from `shapes` or that differs."""
    problems: list[str] = []
    for name, shape in given.items() if isinstance(given, Mapping) else given:
        if name not in shapes:
            # To look for a name takes long, and of many sentences only the first are shown.
            near = nearest(name, shapes) if len(problems) < _SHOWN else ""
            problems.append(f"there is no parameter '{name}'{near}")
        elif tuple(shape) != tuple(shapes[name]):
            problems.append(f"{name} has shape {list(shapes[name])}, its {noun} {list(shape)}")
    return problems


def shapes_of(masks: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor; of `Masks` without decoding one."""
    return masks.shapes if isinstance(masks, Masks) else {name: tuple(mask.shape) for name, mask in masks.items()}


def _maskable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: target.parameter for name, target in find_targets(model, include="*").items()}


def _is_mask(mask: object) -> bool:
    return isinstance(mask, Tensor) and mask.dtype == torch.bool


def _describe(value: object) -> str:
    return str(value.dtype).removeprefix("torch.") + " tensor" if isinstance(value, Tensor) else type(value).__name__


def read_numbers(numbers: Sequence[Tensor]) -> list[int]:
    """The values of tensors without dimensions; a device is waited for once, and not for each of them."""
    if len({number.device for number in numbers}) == 1:
        return [int(value) for value in torch.stack(list(numbers)).tolist()]
    return [int(number) for number in numbers]
