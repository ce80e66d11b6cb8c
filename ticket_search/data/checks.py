"""What is wrong with samples in memory, and what is worth telling of them. No loop in Python goes over samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch.utils._pytree import tree_map

from ..contract.errors import RequestError, some_of
from .trees import count, named_leaves

if TYPE_CHECKING:
    from .arrays import Arrays

# Samples and targets, trees of tensors, by split.
Parts: TypeAlias = Mapping[str, tuple[Any, Any]]
# Where a target is this number it does not count, as in PyTorch's cross-entropy.
IGNORED = -100
# Published sets have some samples in both splits; more than this share of the held-out ones is a leak.
MOST_SHARED = 0.01
# That samples differ shows in the first of them already.
_FIRST = 64
_WORDS = 2**17

Rows = npt.NDArray[Any]


def at(wrong: Rows, what: str = "sample") -> str:
    """Where an array is wrong: `at sample 17, and at 3 more` of samples [n, ...] of truths."""
    rows = np.flatnonzero(wrong.reshape(len(wrong), -1).any(1))
    others = f", the first of {len(rows):,}" if len(rows) > 1 else ""
    return f"at {what} {rows[0]}{others}"


def problems_of_values(name: str, array: Rows) -> list[str]:
    """What is NaN or infinite in an array [n, ...], with the first sample's number and how many there are."""
    if array.dtype.kind not in "fc" or not array.size:
        return []
    with np.errstate(all="ignore"):
        # A sum is NaN or infinite where a number is, and takes a twentieth of the time of looking at each.
        if np.isfinite(array.sum()):
            return []
    wrong = ~np.isfinite(array)
    if not wrong.any():
        return []
    return [f"{name} has {int(wrong.sum()):,} values that are NaN or infinite, {at(wrong)}"]


def problems_of_classes(name: str, array: Rows, classes: int | None = None) -> list[str]:
    """What is no class number in an array of whole numbers [n, ...]; `classes` where it is known how many there are.

    Of several targets for a sample -100 is one that does not count.
    """
    counted = array != IGNORED if array.ndim > 1 else np.ones(array.shape, bool)
    counts = array[counted]
    if not counts.size:
        return [f"{name} is {IGNORED} everywhere, so that no target counts"] if array.size else []
    if counts.min() >= 0 and (classes is None or counts.max() < classes):
        return []
    wrong = counted & ((array < 0) | (array >= (counts.max() + 1 if classes is None else classes)))
    first = array[wrong].flat[0]
    upper = "numbers from 0" if classes is None else f"numbers from 0 to {classes - 1}"
    other = f" ({IGNORED} where a target does not count)" if array.ndim > 1 else ""
    return [f"{name} has the class number {first}, expected {upper}{other}, or floats for a regression: {at(wrong)}"]


def problems_of_whole_numbers(name: str, array: Rows) -> list[str]:
    """What is no whole number in an array of floats that are to be class numbers."""
    wrong = array != np.floor(array)
    if array.dtype.kind != "f" or not wrong.any():
        return []
    return [f"{name} is {array[wrong].flat[0]:g}, where --loss cross-entropy needs class numbers, {at(wrong)}"]


def check_arrays(name: str, arrays: Arrays) -> None:
    """Check the samples of a data set as they were read.

    Raises:
        RequestError: every problem at once: a split without samples, values that are NaN or infinite, targets that are
            no class numbers.
    """
    parts = {"train": (arrays.train_x, arrays.train_y), "test": (arrays.test_x, arrays.test_y)}
    if arrays.validation_x is not None:
        parts["validation"] = (arrays.validation_x, arrays.validation_y)
    else:
        size = len(named_leaves(arrays.train_y)[0][1])
        if not 0 < arrays.validation < size:
            raise RequestError(
                f"{name} has {size} training samples, of which {arrays.validation} would be held out for validation"
            )
    _check(name, parts, arrays.classes)


def check_parts(name: str, parts: Parts, classes: int) -> None:
    """The same of samples that are tensors on the CPU, by split.

    Raises:
        RequestError: see `check_arrays`.
    """
    plain = {
        part: tuple(tree_map(lambda tensor: tensor.numpy(), tree) for tree in pair) for part, pair in parts.items()
    }
    _check(name, plain, classes)


def _check(name: str, parts: Mapping[str, Any], classes: int) -> None:
    problems = []
    for part, (x, y) in parts.items():
        targets = named_leaves(y)
        if not len(targets[0][1]):
            problems.append(f"{name}: {part} has no samples")
            continue
        found = [told for where, array in named_leaves(x) for told in problems_of_values(f"x{where}", array)]
        for where, array in targets:
            found += problems_of_values(f"y{where}", array)
            if array.dtype.kind in "ui":
                found += problems_of_classes(f"y{where}", array, classes or None)
        problems += [f"{name}: {part}: {told}" for told in found]
    if problems:
        raise RequestError(problems)


def remarks(name: str, parts: Parts, classes: int) -> Iterator[str]:
    """What to know of samples before they are trained on: that nothing can be learned from them, or measured with them.

    Args:
        name: of the data set.
        parts: the samples and targets of each split, tensors on the CPU.
        classes: how many there are.
    """
    alike = [part for part, (x, _) in parts.items() if _all_alike(x)]
    if alike:
        yield f"{name}: all samples are alike in {', '.join(alike)}: nothing tells their targets apart"
    train_x, y = parts["train"]
    if hasattr(y, "dim") and y.dim() == 1 and not y.is_floating_point():
        there = np.bincount(y.numpy(), minlength=classes)
        if lacking := [str(number) for number in np.flatnonzero(there == 0)]:
            yield f"{name}: no training sample is of the classes {some_of(lacking)}, of {classes}"
    if "train" in alike:
        return
    known = _hashes(train_x)
    for part in ("validation", "test"):
        x, _ = parts[part]
        shared = int(np.isin(_hashes(x), known).sum())
        if shared > MOST_SHARED * count(x):
            yield (
                f"{name}: {shared:,} of {count(x):,} samples of {part} are among those of training too: what is "
                "measured on them tells nothing of samples that are new"
            )


def _all_alike(tree: Any) -> bool:
    """Whether all samples are equal: of one there is nothing to say."""
    leaves = [leaf for _, leaf in named_leaves(tree)]
    some = all(bool((leaf[:_FIRST] == leaf[:1]).all()) for leaf in leaves)
    return len(leaves[0]) > 1 and some and all(bool((leaf == leaf[:1]).all()) for leaf in leaves)


def _hashes(tree: Any) -> npt.NDArray[np.uint64]:
    """64 bits for each sample, alike for those whose bytes are: sums of words times odd numbers."""
    total = np.zeros(count(tree), np.uint64)
    with np.errstate(over="ignore"):
        for number, (_, leaf) in enumerate(named_leaves(tree)):
            bytes_of = np.ascontiguousarray(leaf.numpy()).reshape(len(leaf), -1).view(np.uint8)
            if bytes_of.shape[1] % 8:
                bytes_of = np.pad(bytes_of, ((0, 0), (0, -bytes_of.shape[1] % 8)))
            words = bytes_of.view(np.uint64)
            odd = np.random.default_rng(number).integers(0, 2**63, words.shape[1], dtype=np.uint64) * 2 + 1
            # In pieces that stay in the caches.
            step = max(1, _WORDS // words.shape[1])
            for start in range(0, len(words), step):
                rows = words[start : start + step]
                # Of round floats only the upper bits differ, which a product does not bring down.
                total[start : start + step] += (rows ^ (rows >> np.uint64(29))) @ odd
    return total


def digests(arrays: Arrays) -> dict[str, str]:
    """What tells the contents of a data set from others, by part: how many there are, and the start of a SHA-256."""
    parts = {
        f"{part} {kind}": getattr(arrays, f"{part}_{short}")
        for part in ("train", "validation", "test")
        for kind, short in (("samples", "x"), ("targets", "y"))
    }
    found = {}
    for name, tree in parts.items():
        if tree is None:
            continue
        digest = hashlib.sha256()
        for where, array in named_leaves(tree):
            digest.update(f"{where}{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        found[name] = f"{len(named_leaves(tree)[0][1]):,} of SHA-256 {digest.hexdigest()[:16]}"
    return found
