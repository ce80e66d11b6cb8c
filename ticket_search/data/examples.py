"""Samples for what has to run a network and not to measure it: real ones, or random ones of a form that is recorded.

A form is what a sample is made of, as JSON has it: of a tensor `{"dtype": "int64", "shape": [64], "range": [0, 102]}`,
of a tuple a list of forms, of a dictionary a dictionary of forms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..contract.errors import RequestError
from .samples import Samples
from .trees import count, take

# A batch of so many samples: a tensor, or a tree of tensors.
Examples: TypeAlias = Callable[[int], Any]

_FLOATS, _WHOLE, _BITS = "float32", "int64", "bool"
_LOOKED_AT = 1024
# More than any network's arguments: a file may say anything.
_DEPTH = 8


def form_of(samples: Samples) -> Any:
    """The form of samples. The range of whole numbers, as those of tokens, is that of the validation split."""
    batches = [next(samples.batches("validation", 1))[0]]
    if any(leaf.dtype == torch.int64 for leaf in tree_leaves(batches[0])):
        batches = [x for x, _ in samples.batches("validation", _LOOKED_AT)]
    return _form(batches)


def _form(batches: list[Any]) -> Any:
    first = batches[0]
    if isinstance(first, Mapping):
        return {str(key): _form([batch[key] for batch in batches]) for key in first}
    if not isinstance(first, Tensor):
        return [_form([batch[place] for batch in batches]) for place in range(len(first))]
    shape = list(first.shape[1:])
    if first.dtype == torch.int64 and first.numel():
        low, high = (int(edge) for edge in torch.stack([torch.stack(batch.aminmax()) for batch in batches]).aminmax())
        return {"dtype": _WHOLE, "shape": shape, "range": [low, high]}
    return {"dtype": _BITS if first.dtype == torch.bool else _FLOATS, "shape": shape}


def floats(shape: Any) -> dict[str, Any]:
    """The form of samples that are a tensor of floats."""
    return {"dtype": _FLOATS, "shape": shape}


def is_of_one_tensor(form: Any) -> bool:
    """Whether samples of a form are one tensor, not several in a tuple or a dictionary."""
    return isinstance(form, Mapping) and isinstance(form.get("dtype"), str)


def random_samples(form: Any) -> Examples:
    """Random samples of a form, the same in every call: normal floats, whole numbers in their range.

    Raises:
        RequestError: it is none.
    """
    if not _is_form(form, _DEPTH):
        raise RequestError(
            f"the ticket says that a sample is {form!r:.80}, expected dtype, shape and, of whole numbers, range of a "
            "tensor, or a list or a dictionary of such"
        )
    return partial(_draw_all, form)


def real_samples(samples: Samples) -> Examples:
    """The first samples of the validation split, again from the first where there are not as many."""

    def first(size: int) -> Any:
        x = next(samples.batches("validation", size))[0]
        return x if count(x) == size else take(x, torch.arange(size, device=samples.device) % count(x))

    return first


def _is_form(form: Any, depth: int) -> bool:
    if isinstance(form, (list, Mapping)) and not is_of_one_tensor(form):
        parts = list(form.values()) if isinstance(form, Mapping) else form
        return bool(parts) and depth > 0 and all(_is_form(part, depth - 1) for part in parts)
    if not is_of_one_tensor(form) or not _are_whole(form.get("shape")) or any(size < 0 for size in form["shape"]):
        return False
    edges = form.get("range", [])
    known = _are_whole(edges) and len(edges) == 2 and -(2**63) <= edges[0] <= edges[1] < 2**63 - 1
    return known if form["dtype"] == _WHOLE else form["dtype"] in (_FLOATS, _BITS)


def _are_whole(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int for number in numbers)


def _draw_all(form: Any, size: int) -> Any:
    return _draw(form, size, torch.Generator().manual_seed(0))


def _draw(form: Any, size: int, generator: torch.Generator) -> Any:
    if isinstance(form, list):
        return tuple(_draw(part, size, generator) for part in form)
    if not is_of_one_tensor(form):
        return {key: _draw(part, size, generator) for key, part in form.items()}
    shape = (size, *form["shape"])
    if form["dtype"] == _FLOATS:
        return torch.randn(shape, generator=generator)
    low, high = form.get("range", (0, 1))
    drawn = torch.randint(low, high + 1, shape, generator=generator)
    return drawn.bool() if form["dtype"] == _BITS else drawn
