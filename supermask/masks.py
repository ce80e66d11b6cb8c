"""Masks: a mapping from parameter names to bool tensors, True = kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .inits import permutation
from .targets import find_targets, nearest


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
    masks & other, masks | other, ~masks

    `uncounted` names the tensors that no density counts: biases and norm parameters that go with dropped channels.
    """

    def __init__(self, masks: Mapping[str, Tensor], uncounted: Iterable[str] = ()) -> None:
        """Take the masks as they are, without a copy.

        Raises:
            ValueError: a value that is not a bool tensor; all of them are named.
        """
        wrong = [f"{name} ({_describe(mask)})" for name, mask in masks.items() if not _is_mask(mask)]
        if wrong:
            raise ValueError(f"a mask is a bool tensor, True = kept; got {', '.join(wrong)}")
        self._masks = dict(masks)
        self.uncounted = frozenset(name for name in uncounted if name in self._masks)

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

    def __and__(self, other: Mapping[str, Tensor]) -> Masks:
        """What both keep."""
        return self._like({name: mask & theirs for name, mask, theirs in self._pairs(other)})

    def __or__(self, other: Mapping[str, Tensor]) -> Masks:
        """What either keeps."""
        return self._like({name: mask | theirs for name, mask, theirs in self._pairs(other)})

    def __invert__(self) -> Masks:
        """What is dropped."""
        return self._like({name: ~mask for name, mask in self.items()})

    @property
    def size(self) -> int:
        """Number of maskable weights."""
        return sum(mask.numel() for mask in self.counted().values())

    @property
    def kept(self) -> int:
        """Number of weights kept."""
        return sum(self.kept_per_tensor.values())

    @property
    def kept_per_tensor(self) -> dict[str, int]:
        """Number of weights kept in each tensor."""
        return {name: int(torch.count_nonzero(mask)) for name, mask in self.counted().items()}

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
        return [
            LayerDensity(name, tuple(self[name].shape), kept, self[name].numel(), kept / max(1, self[name].numel()))
            for name, kept in self.kept_per_tensor.items()
        ]

    def overlap(self, other: Mapping[str, Tensor]) -> float:
        """Intersection over union of the kept weights, in [0, 1]; 1 where both keep nothing."""
        both = either = 0
        for _, mask, theirs in self._counted_pairs(other):
            both += int(torch.count_nonzero(mask & theirs))
            either += int(torch.count_nonzero(mask | theirs))
        return both / either if either else 1.0

    def changed(self, other: Mapping[str, Tensor]) -> float:
        """Share of all mask entries that differ between the two, in [0, 1]."""
        differ = (int(torch.count_nonzero(mask ^ theirs)) for _, mask, theirs in self._counted_pairs(other))
        return sum(differ) / max(1, self.size)

    def within(self, other: Mapping[str, Tensor]) -> bool:
        """Whether every weight kept here is kept by `other` too (masks that only shrink)."""
        return not any(bool((mask & ~theirs).any()) for _, mask, theirs in self._pairs(other))

    def to(self, device: torch.device | str) -> Masks:
        """The same masks on a device."""
        return self._like({name: mask.to(device) for name, mask in self.items()})

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
            ValueError: names every mask that does not fit, with what came and what was expected.
        """
        problems = mismatches(self, {name: tuple(p.shape) for name, p in _maskable_parameters(model).items()})
        if problems:
            raise ValueError("the masks do not fit the model: " + "; ".join(problems))

    def _like(self, masks: Mapping[str, Tensor]) -> Masks:
        return Masks(masks, self.uncounted)

    def _counted_pairs(self, other: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
        return (pair for pair in self._pairs(other) if pair[0] not in self.uncounted)

    def _pairs(self, other: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
        shapes = {name: tuple(mask.shape) for name, mask in other.items()}
        problems = mismatches(self, shapes) + [f"{name} is only in the second" for name in shapes if name not in self]
        if problems:
            raise ValueError("the two masks are not over the same tensors: " + "; ".join(problems))
        for name, mask in self.items():
            yield name, mask, other[name].to(mask.device)


def mismatches(given: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], noun: str = "mask") -> list[str]:
    """One sentence for each tensor given whose name is missing from `shapes` or whose shape differs."""
    problems = []
    for name, tensor in given.items():
        if name not in shapes:
            problems.append(f"there is no parameter '{name}'{nearest(name, shapes)}")
        elif tuple(tensor.shape) != tuple(shapes[name]):
            problems.append(f"{name} has shape {list(shapes[name])}, its {noun} {list(tensor.shape)}")
    return problems


def _maskable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: target.parameter for name, target in find_targets(model, include="*").items()}


def _is_mask(mask: object) -> bool:
    return isinstance(mask, Tensor) and mask.dtype == torch.bool


def _describe(value: object) -> str:
    return str(value.dtype).removeprefix("torch.") + " tensor" if isinstance(value, Tensor) else type(value).__name__
