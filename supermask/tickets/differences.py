"""What differs between two tickets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..masks.texts import harmless


class MaskDifference(NamedTuple):
    """Two masks of one tensor: what each keeps, what both keep, and their intersection over union.

    `by_chance` is the intersection over union that random masks of the same densities have on average. `set` names the
    mask set, "" for the ticket's own masks. A mask that only one of the two has is -1 in the other.
    """

    set: str
    name: str
    kept: int
    other_kept: int
    both: int
    overlap: float
    by_chance: float


@dataclass(frozen=True)
class Difference:
    """What differs between two tickets; False if nothing does.

    `meta` maps dotted keys to the two values (None: not there), `masks` has a row for each mask that differs, `states`
    maps `start` and `final` to the names of tensors that differ, `levels` names tensors whose levels do.
    """

    meta: Mapping[str, tuple[Any, Any]]
    masks: tuple[MaskDifference, ...]
    states: Mapping[str, tuple[str, ...]]
    levels: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.meta or self.masks or self.states or self.levels)

    def __str__(self) -> str:
        if not self:
            return "no difference"
        lines = [f"{key}: {json.dumps(one)} | {json.dumps(other)}" for key, (one, other) in self.meta.items()]
        for row in self.masks:
            name = f"{row.set}: {row.name}" if row.set else row.name
            if min(row.kept, row.other_kept) < 0:
                lines.append(f"mask of {name}: only in the {'first' if row.other_kept < 0 else 'second'}")
            else:
                lines.append(
                    f"mask of {name}: {row.kept} | {row.other_kept} kept, {row.both} by both, "
                    f"overlap {row.overlap:.4f} (by chance {row.by_chance:.4f})"
                )
        lines += [f"{state} weights: {', '.join(names)}" for state, names in self.states.items()]
        return "\n".join(map(harmless, lines + ([f"levels: {', '.join(self.levels)}"] if self.levels else [])))


def compare_masks(which: str, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Iterator[MaskDifference]:
    """A row for each mask that is not the same in both."""
    for name in dict.fromkeys([*one, *other]):
        if name not in one or name not in other or one[name].shape != other[name].shape:
            kept, other_kept = (int(masks[name].sum()) if name in masks else -1 for masks in (one, other))
            yield MaskDifference(which, name, kept, other_kept, 0, 0.0, 0.0)
            continue
        mask, theirs = one[name].cpu(), other[name].cpu()
        if torch.equal(mask, theirs):
            continue
        kept, other_kept = int(torch.count_nonzero(mask)), int(torch.count_nonzero(theirs))
        both = int(torch.count_nonzero(mask & theirs))
        expected = kept * other_kept / mask.numel()
        overlap, by_chance = (shared / (kept + other_kept - shared) for shared in (both, expected))
        yield MaskDifference(which, name, kept, other_kept, both, overlap, by_chance)


def compare_plain(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*one, *other]):
        mine, theirs = one.get(key), other.get(key)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            found |= compare_plain(mine, theirs, f"{prefix}{key}.")
        elif mine != theirs or (key in one) != (key in other):
            found[prefix + key] = (mine, theirs)
    return found


def compare_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of tensors that only one of the two has, or that differ."""
    return tuple(
        name
        for name in dict.fromkeys([*one, *other])
        if name not in one
        or name not in other
        or one[name].dtype != other[name].dtype
        or not torch.equal(one[name], other[name])
    )
