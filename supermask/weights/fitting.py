"""The tensors of a model and those of a ticket: which goes where, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..masks.masks import Masks, Names, first_few, mismatches, rename
from ..masks.memory import find_overlaps
from ..masks.targets import learned_names, plain_name, unwrap
from ..masks.texts import harmless
from .plain import place, to_bytes, why_not_plain

# As PyTorch calls it.
_EXTRA_STATE = "_extra_state"

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Fit:
    """How a ticket's tensors meet a model's.

    `matched` maps a ticket's names to the model's, of tensors that exist in both with one shape; any name of a tied
    tensor is that of the tensor. `missing` are the model's tensors that get none, `left_out` those of the ticket that
    were renamed to None. `problems` says in words what does not fit, `hint` which names would make all of it fit, if
    some would. `untouched` names what the model's modules keep by `get_extra_state`, which no ticket holds.
    """

    matched: Mapping[str, str]
    missing: tuple[str, ...]
    left_out: tuple[str, ...]
    problems: tuple[str, ...]
    hint: str = ""
    untouched: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether everything fits."""
        return not self.problems

    def __str__(self) -> str:
        if not self.problems:
            rest = f"; {', '.join(self.untouched)} of the model stays as it is" if self.untouched else ""
            return f"all {len(self.matched)} tensors fit{rest}"
        return harmless(f"{len(self.matched)} tensors fit; " + first_few(self.problems) + self.hint)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's state dict under plain names (see `plain_state`)."""
    return {name: tensor.detach().clone() for name, tensor in plain_state(model).items()}


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of `state_of` themselves: those of `plain_tensors`, without what is learned for masks."""
    learned = learned_names(model)
    tensors = plain_tensors(unwrap(model).state_dict(keep_vars=True))
    return {name: tensor for name, tensor in tensors.items() if name not in learned}


def plain_tensors(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a ticket holds of a state dict: its tensors under plain names, of several names for one tensor the first.

    What a module's `get_extra_state` gives is left out: it may be anything, and a `set_extra_state` may run what it is
    given.
    """
    first = first_names(tensors)
    return {plain_name(name): tensors[name] for name in tensors if first.get(plain_name(name)) == plain_name(name)}


def first_names(tensors: Mapping[str, Any]) -> dict[str, str]:
    """For each plain name of a state dict, the first under which the same tensor stands there: itself, but for ties."""
    first: dict[tuple[Any, ...], str] = {}
    return {
        plain_name(name): first.setdefault(place(tensor), plain_name(name))
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor) and not is_extra_state(name)
    }


def is_extra_state(name: str) -> bool:
    """Whether this is what a module's `get_extra_state` gives."""
    return name.rpartition(".")[2] == _EXTRA_STATE


def fit(shapes: Shapes, model: nn.Module, names: Names | None = None) -> Fit:
    """Lay a ticket's tensors, given by name and shape, over a model's.

    Raises:
        ValueError: names of which two become one.
    """
    state = unwrap(model).state_dict(keep_vars=True)
    there, first = {name: tuple(tensor.shape) for name, tensor in plain_state(model).items()}, first_names(state)
    new = {name: other for name, other in rename(shapes, names).items() if not is_extra_state(name)}
    goals = {name: first.get(other, other) for name, other in new.items() if other is not None}
    problems = mismatches(((other, shapes[name]) for name, other in goals.items()), there, "ticket")
    given = set(goals.values())
    missing = tuple(name for name in there if name not in given)
    matched = {name: other for name, other in goals.items() if there.get(other) == shapes[name]}
    left_out = tuple(name for name, other in new.items() if other is None)
    problems += [f"the ticket has no tensor '{name}'" for name in missing]
    hint = _hint({name: shapes[name] for name in new}, there) if problems and names is None else ""
    untouched = tuple(plain_name(name) for name in state if is_extra_state(name))
    return Fit(matched, missing, left_out, tuple(dict.fromkeys(problems)), hint, untouched)


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
        ValueError: tensors that are missing from the model or not given, that have another shape, that the model's
            tensor cannot hold, or that differ where the model has one tied tensor; the first are named, with their
            number (`fit` has all). With `partial`: nothing fits.
    """
    there = plain_state(model)
    found = fit({name: tuple(tensor.shape) for name, tensor in tensors.items()}, model, names)
    problems = list(found.problems) if not (partial and found.matched) else []
    problems += _misfits(found.matched, tensors, there)
    given = {other: tensors[name] for name, other in found.matched.items()}
    overlaps = find_overlaps({other: there[other] for other in given})
    problems += [
        f"the model's {one} repeats its entries in memory (expanded)" for one, other in overlaps if one == other
    ]
    if problems:
        raise ValueError("the ticket does not fit the model: " + first_few(problems) + found.hint)
    with torch.no_grad():
        for name, other in found.matched.items():
            there[other].copy_(tensors[name])
        for pair in overlaps:
            if any(
                to_bytes(there[other]).tobytes() != to_bytes(given[other].to(there[other])).tobytes() for other in pair
            ):
                raise ValueError(f"{' and '.join(pair)} of the model lie over the same memory, and the ticket's differ")
    return found


def _misfits(matched: Mapping[str, str], tensors: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> list[str]:
    """What names and shapes do not say: tensors that cannot take the values, and two of them for one tied tensor."""
    problems, given = [], dict[str, str]()
    for name, other in matched.items():
        tensor, goal = tensors[name], there[other]
        if why := why_not_plain(goal):
            problems.append(f"the model's {other} {why}")
        elif not torch.can_cast(tensor.dtype, goal.dtype):
            problems.append(f"{other} is of type {goal.dtype}, the ticket's {tensor.dtype}")
        twin = given.setdefault(other, name)
        if twin != name and to_bytes(tensors[twin]).tobytes() != to_bytes(tensor).tobytes():
            problems.append(f"{twin} and {name} are one tied tensor of the model, and differ in the ticket")
    return problems


def merge_tied(masks: Masks, model: nn.Module) -> Masks:
    """The same masks with the masks of a tied tensor as one, under its first name.

    Raises:
        ValueError: two masks of one tensor that differ.
    """
    first = first_names(unwrap(model).state_dict(keep_vars=True))
    merged: dict[str, str] = {}
    for name in masks:
        other = merged.setdefault(first.get(name, name), name)
        if other != name and not torch.equal(masks[other], masks[name].to(masks[other].device)):
            raise ValueError(f"{other} and {name} are one tied tensor of the model, and their masks differ")
    if all(name == other for name, other in merged.items()) and len(merged) == len(masks):
        return masks
    uncounted = (name for name, other in merged.items() if other in masks.uncounted)
    return Masks({name: masks[other] for name, other in merged.items()}, uncounted)
