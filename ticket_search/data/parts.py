"""A part of a person's data, in whatever form it comes, as inputs and targets in NumPy arrays.

A part is a pair (x, y), a dictionary of arrays of which one holds the targets, a PyTorch `Dataset` or `DataLoader` of
either, or a data set of Hugging Face's `datasets` that is in memory. `x` and `y` may be trees: tuples and dictionaries
of arrays of one length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten
from torch.utils.data import DataLoader, Dataset, IterableDataset

from supermask.plugins.entry_points import one_line

from ..contract.errors import RequestError, nearest_hint
from .checks import IGNORED, problems_of_classes, problems_of_values, problems_of_whole_numbers
from .trees import named_leaves

# What the targets are called in a dictionary of arrays.
LABELS = ("labels", "label", "y", "targets", "target")
_LEAST, _LEAST_VALIDATION = 10, 2
_FORMS = "(x, y) or {'train': (x, y), 'test': (x, y)} of arrays or tensors"


def read_part(given: Any, what: str, whole: bool = False) -> tuple[Any, Any]:
    """The inputs and the targets of a part, checked: trees of arrays of one length, integer targets as int64.

    Args:
        given: see above. A `DataLoader` is read once, in its own order: the size of its batches is not that of
            training.
        what: `data`, `train`, `validation` or `test`, for sentences.
        whole: whether targets that are floats are to be class numbers.

    Raises:
        RequestError: anything else, with what came and what was expected.
    """
    try:
        pair = _read(given, what)
        # A list is an array that is written out, as it is to NumPy.
        x, y = (tree_map(_to_numpy, tree, is_leaf=lambda value: isinstance(value, list)) for tree in pair)
    except RequestError:
        raise
    # Files are read when an array or a sample is asked for, and a person's own code may raise anything at all.
    except Exception as error:
        raise RequestError(f"{what} cannot be read: {one_line(error)}") from error
    if problems := [f"{what}: {problem}" for problem in _problems(x, y, what, whole)]:
        raise RequestError(problems)
    return x, tree_map(lambda array: array.astype(np.int64) if np.issubdtype(array.dtype, np.integer) else array, y)


def _read(given: Any, what: str) -> tuple[Any, Any]:
    if isinstance(given, Mapping) or _is_table(given):
        return split_labels(_columns(given) if _is_table(given) else given, what)
    if isinstance(given, DataLoader):
        return _join_batches(given, what)
    if isinstance(given, Dataset):
        return _collect(given, what)
    if isinstance(given, (tuple, list)) and len(given) == 2:
        return given[0], given[1]
    raise RequestError(f"{what} is {type(given).__name__}, expected {_FORMS}")


def _is_table(given: Any) -> bool:
    """Whether this is a data set of Hugging Face's `datasets`, which need not be installed."""
    return hasattr(given, "column_names") and hasattr(given, "with_format")


def _columns(table: Any) -> dict[str, Any]:
    """The columns of such a data set, in memory."""
    whole = table.with_format("numpy")[:]
    return {name: whole[name] for name in table.column_names}


def split_labels(columns: Mapping[str, Any], what: str) -> tuple[dict[str, Any], Any]:
    """The inputs and the targets in a dictionary of arrays, of which one is called as LABELS has it.

    Raises:
        RequestError: none or several of them are, or there are no inputs.
    """
    found = [name for name in LABELS if name in columns]
    if len(found) != 1:
        near = next((hint for name in columns if (hint := nearest_hint(str(name), LABELS))), "")
        why = (
            f"the targets are in several, {', '.join(found)}"
            if found
            else f"none of them is called as targets are{near}"
        )
        raise RequestError(f"{what} has {', '.join(map(str, columns))}: {why}; expected one of {', '.join(LABELS)}")
    x = {str(name): column for name, column in columns.items() if name != found[0]}
    if not x:
        raise RequestError(f"{what} has {found[0]} only, expected inputs beside it, as input_ids")
    return x, columns[found[0]]


def _to_numpy(value: Any) -> Any:
    if isinstance(value, Tensor):
        # NumPy has no bfloat16.
        return (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy()
    try:
        return np.asarray(value)
    except ValueError:  # of rows of several lengths, which is said of such arrays
        return np.fromiter(value, object)


def _with_tuples(tree: Any) -> Any:
    """A tree with tuples in place of lists, as which a loader gives the tuples of its samples."""
    if isinstance(tree, Mapping):
        return {key: _with_tuples(value) for key, value in tree.items()}
    return tuple(map(_with_tuples, tree)) if isinstance(tree, (tuple, list)) else tree


def _problems(x: Any, y: Any, what: str, whole: bool) -> list[str]:
    """What is wrong with the arrays of a part."""
    inputs, targets = (
        [(f"{name}{where}", array) for where, array in named_leaves(tree)] for name, tree in (("x", x), ("y", y))
    )
    if not inputs or not targets:
        return [f"{'x' if targets else 'y'} holds no array"]
    if objects := [name for name, array in (*inputs, *targets) if array.dtype.kind == "O"]:
        return [
            f"{name} holds rows of several lengths, or objects: expected numbers, padded to one" for name in objects
        ]
    shapes = [f"{name} has shape {array.shape}" for name, array in (*inputs, *targets)]
    flat = not isinstance(x, np.ndarray) or x.ndim >= 2
    if not flat or any(array.ndim == 0 for _, array in targets + inputs):
        return [f"{' and '.join(shapes)}, expected [n, ...] and [n] or [n, ...]"]
    if len(lengths := {len(array) for _, array in (*inputs, *targets)}) > 1:
        return [f"{' and '.join(shapes)}, expected [n, ...] and [n] or [n, ...] of one n"]
    found = [problem for name, array in (*inputs, *targets) for problem in _problems_of_numbers(name, array)]
    if not found:
        found += [problem for name, array in targets for problem in _problems_of_targets(name, array, what, whole)]
    count, least = lengths.pop(), _LEAST_VALIDATION if what == "validation" else _LEAST
    if count < least:
        found.append(f"{count} sample{'' if count == 1 else 's'}, expected at least {least}")
    return found


def _problems_of_numbers(name: str, array: Any) -> list[str]:
    if array.dtype.kind not in "uifb":
        return [f"{name} is {array.dtype}, expected numbers; text is given as the numbers of its tokens"]
    return problems_of_values(name, array)


def _problems_of_targets(name: str, array: Any, what: str, whole: bool) -> list[str]:
    if not array.size:
        return []
    if whole and (problems := problems_of_whole_numbers(name, array)):
        return problems
    if array.dtype.kind in "fb":
        same = what in ("data", "train") and array.ndim == 1 and array.min() == array.max()
        return [f"{name} is {array[0]} in every sample, so that there is nothing to learn"] if same else []
    if problems := problems_of_classes(name, array):
        return problems
    counts = array[array != IGNORED] if array.ndim > 1 else array
    if what in ("data", "train") and counts.min() == counts.max():
        return [f"{name} has the class {counts.min()} only, expected two classes or more"]
    return []


def _join_batches(loader: DataLoader[Any], what: str) -> tuple[Any, Any]:
    """The batches of a loader, one behind the other."""
    pairs = [_pair_of(batch, f"{what}: batch {number}", what) for number, batch in enumerate(loader)]
    if not pairs:
        raise RequestError(f"{what}: the loader gives no batch")
    return _stack([tree_flatten(pair) for pair in pairs], torch.cat, "batch", what, skip=1)


def _collect(dataset: Dataset[Any], what: str) -> tuple[Any, Any]:
    """The samples of a data set of PyTorch."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise RequestError(
            f"{what} is {type(dataset).__name__}, expected a torch Dataset with a length and samples by number, or "
            "{'train': Dataset, 'test': Dataset}"
        )
    if len(dataset) == 0:
        raise RequestError(f"{what}: the dataset is empty")
    samples = []
    for number in range(len(dataset)):
        try:
            sample = dataset[number]
        except Exception as error:
            raise RequestError(f"{what}: sample {number} cannot be read: {one_line(error)}") from error
        x, y = _pair_of(sample, f"{what}: sample {number}", what)
        for _, leaf in named_leaves(x):
            if not isinstance(leaf, (Tensor, np.ndarray, int, float)):
                raise RequestError(
                    f"{what}: x of sample {number} is {type(leaf).__name__}, expected a tensor; for pictures add "
                    "transform=torchvision.transforms.v2.PILToTensor()"
                )
        samples.append(tree_flatten((x, y)))
    return _stack(samples, torch.stack, "sample", what, skip=0)


def _pair_of(given: Any, where: str, what: str) -> tuple[Any, Any]:
    """The inputs and the targets in a sample or in a batch."""
    if isinstance(given, Mapping):
        return split_labels(given, where)
    if isinstance(given, (tuple, list)) and len(given) == 2:
        return given[0], given[1]
    raise RequestError(f"{where} is {type(given).__name__}, expected a pair (x, y) or a dictionary with labels")


def _stack(flattened: list[tuple[list[Any], TreeSpec]], join: Any, kind: str, what: str, skip: int) -> tuple[Any, Any]:
    """Trees of one structure joined leaf by leaf; they must agree in all but the first `skip` dimensions."""
    rows: list[list[Tensor]] = []
    first, structure = [_to_tensor(leaf, f"{what}: {kind} 0") for leaf in flattened[0][0]], flattened[0][1]
    for number, (leaves, spec) in enumerate(flattened):
        if spec != structure:
            raise RequestError(f"{what}: {kind} {number} is built otherwise than {kind} 0: {spec}, not {structure}")
        row = [_to_tensor(leaf, f"{what}: {kind} {number}") for leaf in leaves]
        for here, there in zip(row, first, strict=True):
            if here.dtype != there.dtype or here.shape[skip:] != there.shape[skip:]:
                raise RequestError(
                    f"{what}: {kind} {number} is {here.dtype} {tuple(here.shape)}, {kind} 0 is {there.dtype} "
                    f"{tuple(there.shape)}"
                )
        rows.append(row)
    x, y = tree_unflatten([join(column) for column in zip(*rows, strict=True)], structure)
    return _with_tuples(x), _with_tuples(y)


def _to_tensor(leaf: Any, where: str) -> Tensor:
    try:
        tensor = torch.as_tensor(leaf).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise RequestError(f"{where} holds {leaf!r:.60}, expected numbers") from None
    # Class numbers come as int, as NumPy's numbers and as tensors, in one data set.
    return (
        tensor.long() if tensor.dim() == 0 and not tensor.is_floating_point() and tensor.dtype != torch.bool else tensor
    )
