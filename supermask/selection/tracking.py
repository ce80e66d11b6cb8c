"""Selection from keys that move a little from one time to the next: a search begins where the last one ended.

The result is that of `selection.top_k`, to the bit and whatever has become of the keys; what is remembered decides how
long it takes. Scores in training move by about as much in each step, so the threshold of the next step lies in a band
around that of the last one, and only the few keys in the band are partitioned: two comparisons of all keys and a count,
where a search from nothing must look for the threshold first.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels import build as native
from . import gpu
from .top_k import SMALL, Keys, Marks, flatten, mark_by_partition, mark_largest, top_k

# The band reaches so many times as far as the threshold was last seen to move beyond what was foreseen.
_REACH = 3.0
# What is kept of a reach with every time that a smaller one would have done.
_KEPT = 0.9
# A band of more keys than this share of them costs more than a search from nothing.
_MOST = 0.1


class Cut(NamedTuple):
    """What divides keys: kept are those above `threshold`, and of those equal to it the ones up to position `last`."""

    threshold: float
    last: int

    def mark(self, keys: Keys, positions: NDArray[np.intp]) -> Marks:
        """Which of the keys at these positions are kept."""
        marks: Marks = keys >= self.threshold
        if self.last < positions[-1]:
            marks &= (keys > self.threshold) | (positions <= self.last)
        return marks


# No key is above it: what is left of keys that are not numbers.
NOTHING = Cut(math.nan, -1)


def cut_by_sorting(keys: Keys, k: int, positions: NDArray[np.intp] | None = None) -> Cut:
    """The cut of the k largest of a few keys, 0 < k <= size; `positions` says where they are among more, ascending."""
    ordered = np.sort(keys)
    if np.isnan(ordered[-1]):
        return NOTHING
    threshold = ordered[keys.size - k]
    below = keys.size - k - 1
    last = keys.size - 1
    if below >= 0 and ordered[below] == threshold:
        tied = (keys == threshold).nonzero()[0]
        last = int(tied[k - int(np.count_nonzero(keys > threshold)) - 1])
    return Cut(float(threshold), last if positions is None else int(positions[last]))


class Tracker:
    """The k largest of as many keys, asked for again and again."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.cut: Cut | None = None
        self.velocity = 0.0
        self.reach = 0.0

    @property
    def band(self) -> tuple[float, float]:
        """Where the threshold is expected, the ends included; NaN before the first time."""
        if self.cut is None:
            return math.nan, math.nan
        foreseen = self.cut.threshold + self.velocity
        return foreseen - self.reach, foreseen + self.reach

    def mark(self, keys: Keys) -> Marks:
        """What `mark_largest(keys, k)` gives, 0 < k < size: the k largest of a flat array, ties by position."""
        if keys.size < SMALL:
            return mark_by_partition(keys, self.k)
        if self.cut is not None:
            with np.errstate(over="ignore"):
                # In the keys' own type, so that a comparison converts nothing.
                low, high = (keys.dtype.type(end) for end in self.band)
            marks: Marks = keys >= low
            surplus = int(np.count_nonzero(marks)) - self.k
            if 0 <= surplus <= _MOST * keys.size:
                above = keys > high
                positions = np.not_equal(above, marks, out=above).nonzero()[0]
                values = keys[positions]
                if (cut := self.settle(positions, values, surplus, keys.size)) is not None:
                    marks[positions] = cut.mark(values, positions)
                    return marks
        return self.mark_from_nothing(keys)

    def mark_from_nothing(self, keys: Keys) -> Marks:
        """`mark_largest`, and the cut remembered."""
        marks = mark_largest(keys, self.k)
        kept = keys[marks]
        if kept.size < self.k:  # NaN among the keys: nothing to remember, and for others to report
            self.cut = None
        else:
            threshold = kept.min()
            self.remember(Cut(float(threshold), int((marks & (keys == threshold)).nonzero()[0][-1])))
        return marks

    def settle(self, positions: NDArray[np.intp], values: Keys, surplus: int, size: int) -> Cut | None:
        """The cut, if it is in the band.

        Args:
            positions: of the keys in the band, ascending.
            values: these keys.
            surplus: how many keys from the band on there are more than k.
            size: the number of all keys.

        Returns:
            None if the threshold is elsewhere, or too many keys are in the band.
        """
        kept = positions.size - surplus
        if surplus < 0 or kept <= 0 or positions.size > _MOST * size:
            return None
        return self.remember(cut_by_sorting(values, kept, positions))

    def remember(self, cut: Cut) -> Cut:
        """Foresee the next cut from this one; gives it back."""
        if cut == self.cut:
            return cut  # the same scores again, as in evaluation: nothing has moved
        moved = math.nan if self.cut is None else cut.threshold - self.cut.threshold
        if math.isfinite(moved):
            self.reach = max(_REACH * abs(moved - self.velocity), _KEPT * self.reach)
            self.velocity = moved
        else:
            self.reach, self.velocity = 0.01 * abs(cut.threshold), 0.0
        self.cut = cut
        return cut


class Chooser:
    """The masks that scores choose: the largest of their absolute values.

    `counts` says how many of each tensor, or, if it is one number, how many of all tensors ranked together.
    """

    def __init__(self, counts: Sequence[int] | int) -> None:
        self.counts = counts
        self.moving: Tensor | None = None
        self._start()

    def _start(self) -> None:
        self.trackers = [Tracker(k) for k in ([self.counts] if isinstance(self.counts, int) else self.counts)]
        # How a compiled pass finds it again.
        number = next(_NUMBERS)
        # A tensor: of a number, what is compiled would be compiled anew for every model.
        self.number = torch.tensor(number, device="cpu")
        _CHOOSERS[number] = self

    def __getstate__(self) -> dict[str, Any]:
        return {"counts": self.counts, "moving": self.moving}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.counts, self.moving = state["counts"], state.get("moving")
        self._start()

    def recount(self, counts: Sequence[int] | int) -> None:
        """Keep as many from now on; what is remembered of the thresholds goes on, for counts move by little."""
        self.counts = counts
        # Numbers would be constants of what is compiled.
        self.moving = torch.tensor(_listed(counts), dtype=torch.int32, device="cpu")
        for tracker, k in zip(self.trackers, [counts] if isinstance(counts, int) else counts, strict=True):
            tracker.k = k

    def choose_from_nothing(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """What `choose` is: `top_k` of the absolute values."""
        return self.choose_by([score.detach().abs() for score in scores])

    def choose_by(self, keys: Sequence[Tensor]) -> list[Tensor]:
        """The masks of the largest keys, by value and not by absolute value; nothing is remembered."""
        if not isinstance(self.counts, int):
            return [top_k(key, k) for key, k in zip(keys, self.counts, strict=True)]
        joint = top_k(torch.cat([key.reshape(-1) for key in keys]), self.counts)
        parts = joint.split([key.numel() for key in keys])
        return [part.view(key.shape) for part, key in zip(parts, keys, strict=True)]

    def choose(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """A bool mask for each tensor of scores, none of them NaN, in the scores' memory layout."""
        # What is exported must not depend on what this process remembers.
        if is_exporting():
            return self.choose_from_nothing(scores)
        if self.is_ranked_on_gpu(scores):
            return self._choose_on_gpu(list(scores))
        if not all(score.is_cpu for score in scores):
            return self.choose_from_nothing(scores)
        if torch.compiler.is_compiling():
            return self._choose_compiled(list(scores))
        return [mask for group, tracker in self._groups(scores) for mask in _mark(group, tracker)]

    def is_ranked_on_gpu(self, scores: Sequence[Tensor]) -> bool:
        """Whether these scores are ranked by kernels for all of them at once."""
        return len(scores) > 0 and gpu.ranks(scores)

    def _wanted(self) -> list[int] | Tensor:
        return _listed(self.counts) if self.moving is None else self.moving

    def _choose_on_gpu(self, scores: list[Tensor]) -> list[Tensor]:
        joint = isinstance(self.counts, int)
        if not torch.compiler.is_compiling():
            return gpu.mark(scores, self._wanted(), joint)
        counts = [] if self.moving is not None else _listed(self.counts)
        thresholds, last = torch.ops.supermask.radix_cut(scores, counts, self.moving, joint)
        return [
            gpu.compare(score, threshold, end)
            for score, threshold, end in zip(scores, thresholds.unbind(), last.unbind(), strict=True)
        ]

    def mask_on_gpu(self, scores: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        """The weights where `choose` keeps, exactly +0 elsewhere; of scores that are ranked on a GPU, not compiled."""
        return gpu.mask(scores, weights, self._wanted(), isinstance(self.counts, int))

    def _groups(self, parts: Sequence[Any]) -> list[tuple[list[Any], Tracker]]:
        """What is ranked together, each with its tracker."""
        groups = [list(parts)] if isinstance(self.counts, int) else [[part] for part in parts]
        return list(zip(groups, self.trackers, strict=True))

    def _choose_compiled(self, scores: list[Tensor]) -> list[Tensor]:
        """`choose` for torch.compile: an operation that is not compiled finds the cuts, one pass compares with them.

        So nothing in the graph depends on how many keys are found, and no mask is written to memory.
        """
        thresholds, last = torch.ops.supermask.cut(scores, self.number)
        masks = []
        for score, threshold, end in zip(scores, thresholds.unbind(), last.unbind(), strict=True):
            key = _wide(score).abs()
            position = torch.arange(key.numel(), dtype=last.dtype, device=key.device).view(key.shape)
            masks.append((key > threshold) | ((key == threshold) & (position <= end)))
        return masks

    def cut(self, scores: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The cut of each tensor: thresholds, and the last positions kept of what equals them."""
        thresholds, last = [], []
        for group, tracker in self._groups(scores):
            found, start = _cut(group, tracker), 0
            for score in group:
                thresholds.append(found.threshold)
                last.append(max(-1, min(found.last - start, score.numel())))
                start += score.numel()
        kinds = _kinds_of_cuts(scores)
        return torch.tensor(thresholds, dtype=kinds[0], device="cpu"), torch.tensor(last, dtype=kinds[1], device="cpu")


def is_exporting() -> bool:
    """Whether `torch.export` records this pass. PyTorch 2.6 tells it of the way only that is not strict."""
    if hasattr(torch.compiler, "is_exporting"):
        return torch.compiler.is_exporting()
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def _listed(counts: Sequence[int] | int) -> list[int]:
    return [counts] if isinstance(counts, int) else list(counts)


_NUMBERS = itertools.count()
_CHOOSERS: weakref.WeakValueDictionary[int, Chooser] = weakref.WeakValueDictionary()


def _wide(score: Tensor) -> Tensor:
    """NumPy has no bfloat16; as float32 all shorter numbers keep their order."""
    return score.float() if score.dtype.itemsize < 4 else score


def _kinds_of_cuts(scores: list[Tensor]) -> tuple[torch.dtype, torch.dtype]:
    """The types of thresholds and of positions."""
    wide = any(score.dtype == torch.float64 for score in scores)
    large = sum(score.numel() for score in scores) >= 2**31
    return torch.float64 if wide else torch.float32, torch.int64 if large else torch.int32


def _mark(scores: list[Tensor], tracker: Tracker) -> list[Tensor]:
    sizes = [score.numel() for score in scores]
    if tracker.k in (0, sum(sizes)):
        return [torch.full_like(score, tracker.k > 0, dtype=torch.bool) for score in scores]
    keys = _join([np.abs(flatten(score)) for score in scores])
    return _lay_out(tracker.mark(keys), scores)


def _cut(scores: list[Tensor], tracker: Tracker) -> Cut:
    size = sum(score.numel() for score in scores)
    if tracker.k in (0, size):
        return Cut(-1.0, size) if tracker.k else Cut(math.inf, -1)
    small = size < SMALL
    band, room = ((0.0, math.inf), size) if small else (tracker.band, int(_MOST * size))
    if (found := native.find_cut(scores, tracker.k, band, room)) is not None:
        return Cut(*found) if small else tracker.remember(Cut(*found))
    keys = np.abs(_join([flatten(score) for score in scores]))
    if small:
        return cut_by_sorting(keys, tracker.k)
    tracker.mark(keys)
    return tracker.cut or NOTHING


def _join(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _lay_out(marks: Marks, scores: list[Tensor]) -> list[Tensor]:
    """Masks in the scores' shapes, and in their memory layout, in which they meet the weights."""
    masks, start = [], 0
    for score in scores:
        end = start + score.numel()
        mask = torch.from_numpy(marks[start:end].reshape(score.shape))
        masks.append(mask if score.is_contiguous() else torch.empty_like(score, dtype=torch.bool).copy_(mask))
        start = end
    return masks


torch.library.define("supermask::cut", "(Tensor[] scores, Tensor chooser) -> (Tensor, Tensor)")


@torch.library.impl("supermask::cut", "CPU")
def _cut_all(scores: list[Tensor], chooser: Tensor) -> tuple[Tensor, Tensor]:
    return _CHOOSERS[int(chooser)].cut(scores)


@torch.library.register_fake("supermask::cut")  # type: ignore[untyped-decorator]
def _shapes_of_cut(scores: list[Tensor], chooser: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(torch.empty(len(scores), dtype=kind, device="cpu") for kind in _kinds_of_cuts(scores))  # type: ignore[return-value]
