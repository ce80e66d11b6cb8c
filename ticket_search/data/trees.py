"""Samples that are a tensor, or several of one length in tuples and dictionaries: trees, in PyTorch's word."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map


def count(tree: Any) -> int:
    """How many samples there are: the length of every tensor of the tree."""
    return len(tree) if isinstance(tree, Tensor) else len(tree_leaves(tree)[0])


def take(tree: Any, rows: Tensor) -> Any:
    """The samples of the given numbers, in their order."""
    # On a CPU twice as fast as tensor[rows].
    if isinstance(tree, Tensor):
        return tree.index_select(0, rows)
    return tree_map(lambda tensor: tensor.index_select(0, rows), tree)


def part(tree: Any, start: int, end: int) -> Any:
    """The samples from `start` to before `end`."""
    return tree[start:end] if isinstance(tree, Tensor) else tree_map(lambda tensor: tensor[start:end], tree)


def chunks(tree: Any, number: int) -> list[Any]:
    """The samples in so many chunks of one size, the last of which may be smaller, as `torch.chunk` cuts them."""
    if isinstance(tree, Tensor):
        return list(tree.chunk(number))
    size = -(-count(tree) // number)
    return [part(tree, start, start + size) for start in range(0, count(tree), size)]


def split_evenly(tree: Any, number: int) -> list[Any]:
    """The samples in exactly so many parts, of sizes that differ by one at most."""
    size = count(tree)
    ends = [size * place // number for place in range(number + 1)]
    return [part(tree, start, end) for start, end in itertools.pairwise(ends)]


def move(tree: Any, device: torch.device | str) -> Any:
    """The same samples on a device."""
    return tree_map(lambda tensor: tensor.to(device), tree)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The arrays of a tree with where they are: `['input_ids']`, `[0]`, and nothing for a tree of one array."""
    return [(keystr(path), leaf) for path, leaf in tree_flatten_with_path(tree)[0]]


def flat_names(tree: Any, name: str, within: bool = False) -> list[str]:
    """A name for each tensor of a tree: its key; else `name`, of the next ones of a tuple with `_1`, `_2` behind it.

    Deeper ones have the names of all that they are in: `pair.left_1`. `within` is whether `name` is that of a part.
    """
    if isinstance(tree, Mapping):
        parts = [(f"{name}.{key}" if within else str(key), part) for key, part in tree.items()]
    elif isinstance(tree, (tuple, list)):
        parts = [(f"{name}_{place}" if place else name, part) for place, part in enumerate(tree)]
    else:
        return [name]
    return [found for each, part in parts for found in flat_names(part, each, True)]


def shape_of_sample(tree: Any) -> Any:
    """The shape of one sample: a tuple for a tensor, else the tree of such tuples."""
    return tuple(tree.shape[1:]) if isinstance(tree, Tensor) else tree_map(lambda tensor: tuple(tensor.shape[1:]), tree)


def to_lists(shape: Any) -> Any:
    """A shape, or a tree of shapes, as JSON has it."""
    if isinstance(shape, Mapping):
        return {key: to_lists(value) for key, value in shape.items()}
    return [to_lists(value) for value in shape] if isinstance(shape, Sequence) else int(shape)
