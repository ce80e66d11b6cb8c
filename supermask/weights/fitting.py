"""The tensors of a model and those of a ticket: which goes where, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..masks.masks import Names, mismatches, rename
from ..masks.targets import learned_names, plain_name, unwrap

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Fit:
    """How a ticket's tensors meet a model's.

    `matched` maps a ticket's names to the model's, of tensors that exist in both with one shape. `missing` are the
    model's tensors that get none, `left_out` those of the ticket that were renamed to None. `problems` says in words
    what does not fit, `hint` which names would make all of it fit, if some would.
    """

    matched: Mapping[str, str]
    missing: tuple[str, ...]
    left_out: tuple[str, ...]
    problems: tuple[str, ...]
    hint: str = ""

    def __bool__(self) -> bool:
        """Whether everything fits."""
        return not self.problems

    def __str__(self) -> str:
        if not self.problems:
            return f"all {len(self.matched)} tensors fit"
        return f"{len(self.matched)} tensors fit; " + "; ".join(self.problems) + self.hint


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's state dict under plain names: without what is learned for masks, tied tensors once."""
    return {name: tensor.detach().clone() for name, tensor in plain_state(model).items()}


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of `state_of` themselves, tied ones under their first name."""
    tensors, learned = first_names(unwrap(model).state_dict(keep_vars=True)), learned_names(model)
    return {name: tensor for name, tensor in tensors.items() if name not in learned}


def first_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plain names; of several names for the same memory, the first."""
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            continue  # a module's extra state
        # An empty tensor has no memory to share.
        where = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        first.setdefault(where, name)
    return {plain_name(name): tensors[name] for name in first.values()}


def fit(shapes: Shapes, model: nn.Module, names: Names | None = None) -> Fit:
    """Lay a ticket's tensors, given by name and shape, over a model's.

    Raises:
        ValueError: names of which two become one.
    """
    there = {name: tuple(tensor.shape) for name, tensor in plain_state(model).items()}
    new = rename(shapes, names)
    wanted = {other: shapes[name] for name, other in new.items() if other is not None}
    problems = mismatches(wanted, there, "ticket")
    missing = tuple(name for name in there if name not in wanted)
    matched = {name: other for name, other in new.items() if other is not None and there.get(other) == shapes[name]}
    left_out = tuple(name for name, other in new.items() if other is None)
    problems += [f"the ticket has no tensor '{name}'" for name in missing]
    hint = _hint(shapes, there) if problems and names is None else ""
    return Fit(matched, missing, left_out, tuple(problems), hint)


def _hint(shapes: Shapes, there: Shapes) -> str:
    for ours, theirs in _prefixes(shapes, there):
        renamed = {theirs + name.removeprefix(ours): shape for name, shape in shapes.items() if name.startswith(ours)}
        if renamed == dict(there) and len(renamed) == len(shapes):
            return f"; all fit with names={{'{ours}': '{theirs}'}}"
    if list(shapes.values()) == list(there.values()):
        return (
            "; in order all shapes fit, so if it is the same network under other names: "
            "names=dict(zip(ticket.state_dict(), model.state_dict()))"
        )
    return ""


def _prefixes(shapes: Shapes, there: Shapes) -> Iterator[tuple[str, str]]:
    """Pairs of prefixes by which the ticket's first name could become one of the model's."""
    if not shapes:
        return
    first = next(iter(shapes)).split(".")
    for other in there:
        parts = other.split(".")
        same = 0
        while same < min(len(first), len(parts)) and first[-1 - same] == parts[-1 - same]:
            same += 1
        for count in range(same, 0, -1):
            ours, theirs = first[: len(first) - count], parts[: len(parts) - count]
            yield "".join(f"{part}." for part in ours), "".join(f"{part}." for part in theirs)


def set_state(
    model: nn.Module, tensors: Mapping[str, Tensor], names: Names | None = None, partial: bool = False
) -> Fit:
    """Copy tensors into a model, in place.

    Args:
        model: what they are copied into.
        tensors: those of `state_of`, or of a ticket.
        names: how they are called in the model (see `rename`).
        partial: copy what fits, and leave the rest of the model as it is.

    Raises:
        ValueError: tensors that are missing from the model or not given, or that have another shape; all are named.
            With `partial`: nothing fits.
    """
    there = plain_state(model)
    found = fit({name: tuple(tensor.shape) for name, tensor in tensors.items()}, model, names)
    if found.problems and not (partial and found.matched):
        raise ValueError("the ticket does not fit the model: " + "; ".join(found.problems) + found.hint)
    with torch.no_grad():
        for name, other in found.matched.items():
            there[other].copy_(tensors[name])
    return found
