"""Several tickets over one backbone as one ticket of several tasks.

Wortsman et al., Supermasks in Superposition, 2020.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..masks.masks import Masks
from ..weights.inits import Draw, fingerprint
from ..weights.plain import CARRIERS
from .ticket import Part, Ticket, make_state


def join_tasks(tickets: Mapping[str, Ticket], weights: Mapping[str, Tensor] | None = None) -> Ticket:
    """One ticket of several tasks: the network's weights once, and for each task its masks and what else is its own.

        ticket = supermask.join_tasks({"digits": one, "letters": other})
        supermask.save(ticket, "both.safetensors")
        net = ticket.model(task="letters")

    The tickets must keep the same weights wherever two of them keep one, as those of one seed do whose weights were
    frozen while their masks were learned. `joined.task(name)` is then the ticket of that name again, to the bit. What
    all of them have in their metadata stands in the file once.

    Args:
        tickets: two or more, by the names of their tasks: 1 to 100 characters without `/`.
        weights: the weights that were masked, whole, where no seed draws them; if not given, those that no task keeps
            are 0. Kept ones are the tickets' own.

    Raises:
        ValueError: fewer than two tickets, tickets that do not have the same tensors and states, or that keep different
            weights at one place; those with sets or levels; all of it at once.
    """
    if len(tickets) < 2:
        raise ValueError(f"expected two tasks or more, got {len(tickets)}: a ticket of one task is that ticket")
    if problems := _problems(tickets):
        raise ValueError("the tickets share no network: " + "; ".join(problems))
    first = next(iter(tickets.values()))
    order = next(iter(first.states.values())).names
    shared, draws, problems = dict[str, Tensor](), dict[str, Draw](), list[str]()
    for name in order:
        draw = _one_draw(name, tickets)
        if draw is not None:
            shared[name], draws[name] = draw.tensor(name), draw
        elif name in first.masks:
            try:
                shared[name] = _backbone_of(name, tickets, (weights or {}).get(name))
            except ValueError as error:
                problems.append(str(error))
        elif (same := _the_same(name, tickets)) is not None:
            shared[name] = same
    if problems:
        raise ValueError("the tickets share no network: " + "; ".join(problems))
    meta = _common([ticket.meta for ticket in tickets.values()])
    parts = {name: _part(ticket, shared, meta, order) for name, ticket in tickets.items()}
    sets = {name: ticket.masks for name, ticket in tickets.items()}
    return Ticket(Masks({}), {}, meta, sets, backbone=make_state(shared, Masks({}), draws), parts=parts)


def _part(ticket: Ticket, shared: Container[str], meta: Container[str], order: tuple[str, ...]) -> Part:
    """What is a ticket's own."""
    own = {
        which: replace(
            make_state({name: state.tensor(name) for name in state.names if name not in shared}, Masks({})),
            fingerprint=state.fingerprint,
        )
        for which, state in ticket.states.items()
    }
    return Part(own, {key: value for key, value in ticket.meta.items() if key not in meta}, order)


def _problems(tickets: Mapping[str, Ticket]) -> list[str]:
    (first_name, first), *others = tickets.items()
    problems = [
        f"'{name}' is of several tasks, or has sets or levels"
        for name, ticket in tickets.items()
        if ticket.parts or ticket.sets or ticket.levels
    ]
    if not first.states or not first.masks:
        problems.append(f"'{first_name}' has no {'masks' if first.states else 'states'}")
    for name, ticket in others:
        if ticket.masks.shapes != first.masks.shapes:
            problems.append(f"'{name}' masks other tensors than '{first_name}'")
        if {k: set(s.names) for k, s in ticket.states.items()} != {k: set(s.names) for k, s in first.states.items()}:
            problems.append(f"'{name}' has other states or tensors than '{first_name}'")
    return problems


def _one_draw(name: str, tickets: Mapping[str, Ticket]) -> Draw | None:
    """How all tickets draw a tensor, where they draw it alike and use it as it is."""
    states = [state for ticket in tickets.values() for state in ticket.states.values()]
    draws = {state.drawn.get(name) for state in states}
    plain = not any(name in state.signs or name in state.gains for state in states)
    return next(iter(draws)) if len(draws) == 1 and plain else None


def _backbone_of(name: str, tickets: Mapping[str, Ticket], whole: Tensor | None) -> Tensor:
    """A masked tensor without masks, as all tickets have it where they keep it."""
    found = None if whole is None else whole.detach().cpu().clone()
    known = None
    for task, ticket in tickets.items():
        here = ticket.masks[name].cpu()
        for state in ticket.states.values():
            tensor = state.tensor(name)
            if found is None:
                found = torch.zeros_like(tensor)
            if tensor.shape != found.shape or tensor.dtype != found.dtype:
                raise ValueError(
                    f"{name} is {tensor.dtype} {list(tensor.shape)} in '{task}', expected {found.dtype} "
                    f"{list(found.shape)}"
                )
            if known is None:
                known = torch.zeros_like(here)
            if differ := int(torch.count_nonzero((_bits(found) != _bits(tensor)) & here & known)):
                raise ValueError(
                    f"{differ} weights of {name} are other ones in '{task}' than in a task before: they were trained, "
                    "or drawn otherwise"
                )
            found, known = torch.where(here & ~known, tensor, found), known | here
    assert found is not None, name
    return found


def _the_same(name: str, tickets: Mapping[str, Ticket]) -> Tensor | None:
    """An unmasked tensor, where all states of all tickets have the same."""
    found = None
    for state in (state for ticket in tickets.values() for state in ticket.states.values()):
        tensor = state.tensor(name)
        if found is not None and fingerprint({"": tensor}) != fingerprint({"": found}):
            return None
        found = tensor
    return found


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(CARRIERS[tensor.element_size()])


def _common(metas: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What all of them say alike."""
    first, *others = metas
    return {key: value for key, value in first.items() if all(key in each and each[key] == value for each in others)}
