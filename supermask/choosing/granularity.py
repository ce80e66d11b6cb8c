"""In what shape weights are kept or dropped: scores of weights to scores of units, masks over units back to weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from einops import EinopsError, reduce, repeat
from torch import Tensor

from ..masks.targets import Target, Targets, find_named
from ..selection.top_k import best_of_each, top_k

Units = dict[str, Tensor]


class Granularity(Protocol):
    """The contract: `reduce` gives the scores of units, `choose` keeps so many of them, `expand` gives weight masks.

    Units are keyed by the tensor they are counted under; a tensor without units stays whole.
    """

    def reduce(self, scores: Mapping[str, Tensor], targets: Targets) -> Units:
        """Scores of the units, in any shape."""
        ...

    def choose(self, units: Mapping[str, Tensor], counts: Mapping[str, int]) -> Units:
        """A bool mask over the units of each key, with as many True as `counts` says."""
        ...

    def expand(self, kept: Mapping[str, Tensor], targets: Targets) -> Units:
        """Bool masks of the targets' shapes, and of what goes with them."""
        ...


class _PerTensor:
    """Units that lie within one tensor each, the best of which are kept."""

    def reduce(self, scores: Mapping[str, Tensor], targets: Targets) -> Units:
        """Scores of the units of each tensor."""
        self.check(targets)
        return {name: self.reduce_one(scores[name], target) for name, target in targets.items() if self.cuts(target)}

    def choose(self, units: Mapping[str, Tensor], counts: Mapping[str, int]) -> Units:
        """The best units, ties to the first."""
        return {name: top_k(unit, counts[name]) for name, unit in units.items()}

    def expand(self, kept: Mapping[str, Tensor], targets: Targets) -> Units:
        """Each unit's choice for all of its weights."""
        return {
            name: self.expand_one(kept[name], target)
            if name in kept
            else torch.ones(target.parameter.shape, dtype=torch.bool, device=target.parameter.device)
            for name, target in targets.items()
        }

    def check(self, targets: Targets) -> None:
        problems = [problem for target in targets.values() if self.cuts(target) and (problem := self.problem(target))]
        if problems:
            raise ValueError("; ".join(problems) + ": exclude what has no such units")
        if not any(self.cuts(target) for target in targets.values()):
            raise ValueError(f"no target has units of this shape: {', '.join(targets)}")

    def cuts(self, target: Target) -> bool:
        return True

    def problem(self, target: Target) -> str | None:
        return None

    def reduce_one(self, score: Tensor, target: Target) -> Tensor:
        raise NotImplementedError

    def expand_one(self, kept: Tensor, target: Target) -> Tensor:
        raise NotImplementedError


class Weight(_PerTensor):
    """Every weight is a unit of its own (unstructured pruning)."""

    def reduce_one(self, score: Tensor, target: Target) -> Tensor:
        """The scores themselves."""
        return score

    def expand_one(self, kept: Tensor, target: Target) -> Tensor:
        """The mask itself."""
        return kept.reshape(target.parameter.shape)


class Block(_PerTensor):
    """Blocks of any shape, their score the sum of their weights' scores.

        Block(4, 4)                                   # 4 outputs x 4 inputs, at each position of a kernel
        Block(1, 16)                                  # 16 inputs of one output
        Block("o i h w -> o i")                       # whole kernels
        Block("(o a) (i b) -> o i", a=8, b=8)         # an einops pattern from a weight to its units

    Every dimension must be a multiple of the block's.

    Source: Rogozhnikov, Einops: Clear and Reliable Tensor Manipulations with Einstein-like Notation, 2022 (patterns).
    """

    def __init__(self, first: int | str, *more: int, **sizes: int) -> None:
        """Take the sizes of a block along the first dimensions, or a pattern and the sizes that it does not give.

        Raises:
            ValueError: sizes below 1, or a pattern that is none.
        """
        shape = () if isinstance(first, str) else (first, *more)
        if any(not isinstance(size, int) or size < 1 for size in shape) or (isinstance(first, str) and more):
            raise ValueError(f"a block is sizes of at least 1 or one einops pattern, got {(first, *more)}")
        if isinstance(first, str) and first.count("->") != 1:
            raise ValueError(f"'{first}' is no pattern: expected axes of a weight -> axes of its units, as 'o i -> o'")
        self.shape, self.pattern, self.sizes = shape, first if isinstance(first, str) else "", sizes

    def problem(self, target: Target) -> str | None:
        """Why a tensor cannot be cut into these blocks."""
        shape = tuple(target.parameter.shape)
        try:
            self.reduce_one(torch.empty(shape, device="meta"), target)
        except (EinopsError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1]
            block = self.pattern or "x".join(map(str, self.shape))
            return f"{target.name} of shape {list(shape)} cannot be cut into blocks '{block}' ({reason})"
        return None

    def reduce_one(self, score: Tensor, target: Target) -> Tensor:
        """Sums over the blocks."""
        weight, units, sizes = self._axes(tuple(score.shape))
        summed: Tensor = reduce(score, f"{weight} -> {units}", "sum", **sizes)
        return summed

    def expand_one(self, kept: Tensor, target: Target) -> Tensor:
        """Each block's choice for all of its weights."""
        shape = tuple(target.parameter.shape)
        weight, units, sizes = self._axes(shape)
        mask: Tensor = repeat(kept, f"{units} -> {weight}", **_sizes_of_axes(weight, shape, sizes))
        return mask

    def _axes(self, shape: tuple[int, ...]) -> tuple[str, str, dict[str, int]]:
        if not self.pattern:
            if len(self.shape) > len(shape):
                raise ValueError(f"{len(self.shape)} sizes for {len(shape)} dimensions")
            block = self.shape + (1,) * (len(shape) - len(self.shape))
            weight = " ".join(f"(u{axis} b{axis})" for axis in range(len(shape)))
            units = " ".join(f"u{axis}" for axis in range(len(shape)))
            return weight, units, {f"b{axis}": size for axis, size in enumerate(block)}
        weight, units = (part.strip() for part in self.pattern.split("->"))
        hidden = len(shape) - len([term for term in _terms(weight) if term != "..."])
        spelled = " ".join(f"more{axis}" for axis in range(max(0, hidden)))
        return weight.replace("...", spelled), units.replace("...", spelled), self.sizes


def _terms(axes: str) -> list[str]:
    return re.findall(r"\([^)]*\)|\.\.\.|\S+", axes)


def _sizes_of_axes(axes: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> dict[str, int]:
    """The size of every named axis; of those in brackets at most one is not given."""
    known = dict(sizes)
    for term, size in zip(_terms(axes), shape, strict=True):
        names = re.findall(r"[A-Za-z]\w*", term)
        given = math.prod(known.get(name, 1) for name in names) * math.prod(map(int, re.findall(r"\b\d+", term)))
        known |= {name: size // given for name in names if name not in known}
    return known


class Filter(_PerTensor):
    """All weights of one output: a row of a linear layer, a filter of a convolution, by themselves.

    The last linear layer stays whole: its rows are the network's outputs. `coupling.couple` adds what belongs to the
    filter's channel. Source: Li et al., Pruning Filters for Efficient ConvNets, 2016.
    """

    output: str | None = None

    def reduce(self, scores: Mapping[str, Tensor], targets: Targets) -> Units:
        """Sums over the filters."""
        self.output = targets.output
        return super().reduce(scores, targets)

    def cuts(self, target: Target) -> bool:
        """Not the network's outputs."""
        return target.name != self.output

    def problem(self, target: Target) -> str | None:
        """Why a tensor has no filters."""
        if target.parameter.dim() < 2:
            return f"{target.name} of shape {list(target.parameter.shape)} has no filters"
        if target.output_axis == 1 and target.groups > 1:
            return f"{target.name} is a grouped transposed convolution: its filters are spread over its groups"
        return None

    def reduce_one(self, score: Tensor, target: Target) -> Tensor:
        """[outputs]."""
        return score.movedim(target.output_axis, 0).flatten(1).sum(1)

    def expand_one(self, kept: Tensor, target: Target) -> Tensor:
        """Each filter's choice for all of its weights."""
        shape = [1] * target.parameter.dim()
        shape[target.output_axis] = -1
        return kept.reshape(shape).expand(target.parameter.shape).contiguous()


class Channel(_PerTensor):
    """All weights that read one input: a column of a linear layer, an input channel of a convolution."""

    def problem(self, target: Target) -> str | None:
        """Why a tensor has no channels."""
        if target.parameter.dim() < 2:
            return f"{target.name} of shape {list(target.parameter.shape)} has no input channels"
        return None

    def reduce_one(self, score: Tensor, target: Target) -> Tensor:
        """[inputs], over all groups."""
        by_input = self._by_group(score, target)
        return by_input.sum(dim=tuple(d for d in range(by_input.dim()) if d not in (0, 2))).reshape(-1)

    def expand_one(self, kept: Tensor, target: Target) -> Tensor:
        """Each channel's choice for all weights that read it."""
        weight = target.parameter
        by_input = self._by_group(torch.empty(weight.shape, dtype=torch.bool, device=weight.device), target)
        shape = [1] * by_input.dim()
        shape[0], shape[2] = by_input.shape[0], by_input.shape[2]
        full = kept.reshape(shape).expand(by_input.shape)
        if target.output_axis == 1:
            full = full.movedim(2, 1)
        return full.reshape(weight.shape).contiguous()

    @staticmethod
    def _by_group(score: Tensor, target: Target) -> Tensor:
        """[groups, outputs per group, inputs per group, *kernel]."""
        rows, columns, *kernel = score.shape
        if target.output_axis == 1:  # (inputs, outputs / groups, *kernel)
            return score.reshape(target.groups, rows // target.groups, columns, *kernel).movedim(1, 2)
        return score.reshape(target.groups, rows // target.groups, columns, *kernel)


class NM(_PerTensor):
    """N of every M consecutive inputs of an output are kept, at every position of a kernel: `NM(2, 4)`, or "2:4".

    The density is N / M in every tensor. Source: Mishra et al., Accelerating Sparse Deep Neural Networks, 2021.
    """

    def __init__(self, kept: int, group: int) -> None:
        """Take N and M.

        Raises:
            ValueError: not 1 <= N < M.
        """
        if not 1 <= kept < group:
            raise ValueError(f"N:M keeps N of M weights with 1 <= N < M, got {kept}:{group}")
        self.kept, self.group = kept, group

    @property
    def density(self) -> float:
        """N / M."""
        return self.kept / self.group

    def problem(self, target: Target) -> str | None:
        """Why a tensor cannot be cut into groups."""
        shape = list(target.parameter.shape)
        inputs = target.fans[0] // math.prod(shape[2:]) if len(shape) > 1 else 0
        if inputs == 0 or inputs % self.group:
            return f"{target.name} of shape {shape} reads {inputs} inputs, not a multiple of {self.group}"
        return None

    def reduce_one(self, score: Tensor, target: Target) -> Tensor:
        """[outputs * kernel * inputs / M, M]."""
        return score.movedim(1 - target.output_axis, -1).reshape(-1, self.group)

    def choose(self, units: Mapping[str, Tensor], counts: Mapping[str, int]) -> Units:
        """The best N of each group, ties to the first.

        Raises:
            ValueError: counts of another density, or groups of which fewer than N can be kept.
        """
        wrong = [
            f"{name} {counts[name]} of {unit.numel()}"
            for name, unit in units.items()
            if counts[name] != len(unit) * self.kept
        ]
        if wrong:
            raise ValueError(
                f"{self.kept}:{self.group} keeps {self.density:g} of every tensor; expected that density and "
                f"allocation='layerwise', got {', '.join(wrong)}"
            )
        chosen = {}
        for name, unit in units.items():
            chosen[name] = best_of_each(unit, self.kept)
            if bool((chosen[name] & (unit == -torch.inf)).any()):
                raise ValueError(f"{name} has groups of {self.group} of which fewer than {self.kept} were kept before")
        return chosen

    def fits(self, mask: Tensor, output_axis: int) -> bool:
        """Whether a mask keeps N of every M inputs."""
        groups = mask.movedim(1 - output_axis, -1).reshape(-1, self.group)
        return bool((groups.sum(-1) == self.kept).all())

    def expand_one(self, kept: Tensor, target: Target) -> Tensor:
        """The choices in the weight's own order."""
        moved = target.parameter.movedim(1 - target.output_axis, -1).shape
        return kept.reshape(moved).movedim(-1, 1 - target.output_axis).contiguous()


class GroupChooser:
    """The masks that scores choose in groups: the N largest absolute values of each; `tracking.Chooser`: of a whole."""

    def __init__(self, shape: NM, targets: Targets) -> None:
        self.shape = shape
        self.axes = [1 - target.output_axis for target in targets.values()]

    def choose(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """A bool mask for each tensor of scores, none of them NaN; ties to the first."""
        return self.choose_by([score.detach().abs() for score in scores])

    def choose_by(self, keys: Sequence[Tensor]) -> list[Tensor]:
        """The masks of the largest keys of each group, by value and not by absolute value."""
        masks = []
        for key, axis in zip(keys, self.axes, strict=True):
            moved = key.movedim(axis, -1)
            kept = best_of_each(moved.reshape(-1, self.shape.group), self.shape.kept)
            masks.append(kept.view(moved.shape).movedim(-1, axis))
        return masks

    # Nothing is remembered from one time to the next.
    choose_from_nothing = choose


GRANULARITIES: Mapping[str, type[_PerTensor]] = {"weight": Weight, "filter": Filter, "channel": Channel}
_BLOCK, _NM = re.compile(r"block:(\d+(?:x\d+)*)"), re.compile(r"(\d+):(\d+)")


def find_granularity(granularity: str | Granularity) -> Granularity:
    """The granularity of a name (`weight`, `filter`, `channel`, `block:4x4`, `2:4`), or the object itself.

    Raises:
        ValueError: an unknown name.
    """
    if not isinstance(granularity, str):
        return granularity
    if match := _NM.fullmatch(granularity):
        return NM(int(match[1]), int(match[2]))
    if match := _BLOCK.fullmatch(granularity):
        return Block(*map(int, match[1].split("x")))
    if granularity not in GRANULARITIES:
        known: dict[str, None] = dict.fromkeys([*GRANULARITIES, "block:4x4", "2:4"])
        find_named("granularity", granularity, known)
    return GRANULARITIES[granularity]()
