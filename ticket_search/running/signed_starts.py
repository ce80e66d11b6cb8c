"""A ticket's mask over its signs without its magnitudes, or over its magnitudes without its signs.

Zhou et al., Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask, 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import supermask

from ..contract.errors import RequestError

if TYPE_CHECKING:
    from supermask import Draw, Ticket


def signed_problem(ticket: Ticket, kind: str, draws: Mapping[str, Draw]) -> str:
    """Why this start cannot be made of tensors that were drawn so, in one sentence; "" if it can."""
    lost = [name for name in ticket.masks if name not in draws]
    if kind == "magnitudes" or not lost:
        return ""
    return (
        f"--control {kind} gives all kept weights of a layer the standard deviation of their init, and the weights of "
        f"{', '.join(lost)} come from elsewhere (a checkpoint, or the model itself with --init keep): a search that "
        "starts from scratch has this control"
    )


def make_signed(ticket: Ticket, kind: str, draws: Mapping[str, Draw], seed: int) -> Ticket:
    """A ticket of the same mask that starts from less than the ticket does.

    Of each masked tensor that was drawn at random, the kept weights are, by kind: `initial-signs`, the signs of the
    ticket's own start times the standard deviation of the init that the tensor was drawn from; `trained-signs`, the
    same with the signs of its trained weights; `magnitudes`, the magnitudes of its own start with signs drawn anew.
    What carries no mask, and biases and norms that started from zeros or ones, is that of the ticket's own start.

    Args:
        ticket: with the states `start` and `final`.
        kind: `initial-signs`, `trained-signs` or `magnitudes`.
        draws: how the tensors of the dense network were drawn.
        seed: of the new signs.

    Raises:
        RequestError: tensors for which it is not known how they were drawn, where a standard deviation is needed.
    """
    import torch

    inits, random_numbers = supermask.weights.inits, supermask.masks.random_numbers
    tensors = ticket.state_dict("start")
    constant = [name for name, draw in draws.items() if draw.init not in inits.WEIGHT_INITS]
    weights = [name for name in ticket.masks if name not in constant]
    if problem := signed_problem(ticket, kind, draws):
        raise RequestError(problem)
    source = ticket.state_dict("final") if kind == "trained-signs" else tensors
    for name in weights:
        start = tensors[name]
        if kind == "magnitudes":
            signs = torch.from_numpy(random_numbers.signs(start.numel(), seed, f"signs/{name}"))
            tensors[name] = start.abs() * signs.reshape(start.shape).to(start.dtype)
        else:
            std = torch.full_like(start, inits.std_of(draws[name]))
            tensors[name] = torch.where(source[name] < 0, -std, std)
    return supermask.Ticket(
        ticket.masks, {"start": supermask.make_state(tensors, ticket.masks, draws)}, dict(ticket.meta)
    )
