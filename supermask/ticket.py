"""Ticket: masks, where the weights come from, and what was run to find them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .architectures import find_architecture
from .inits import Draw, fingerprint
from .live import Hold, Model, program_of
from .masks import Masks, mismatches
from .targets import SCORES_SUFFIX, nearest, plain_name, unwrap

STATES = ("start", "final")


class TicketError(ValueError):
    """A ticket that cannot be read, or that does not hold what it says."""


@dataclass(frozen=True)
class State:
    """All tensors of a network at one moment: stored, or drawn from a seed.

    `fingerprint` is the SHA-256 of the whole state dict with the masks applied (see `supermask.fingerprint`).
    """

    stored: Mapping[str, Tensor]
    drawn: Mapping[str, Draw]
    fingerprint: str


def to_json(value: Any) -> str:
    """Text that is the same for the same value: keys sorted, no spaces.

    Raises:
        ValueError: a value that is not plain JSON, such as a NaN.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a ticket's metadata is plain JSON without NaN: {error}") from None


def make_state(tensors: Mapping[str, Tensor], masks: Masks, draws: Mapping[str, Draw] | None = None) -> State:
    """Describe a state dict under masks: tensors that equal their draw are not stored, nor those of zeros or ones.

    Args:
        tensors: the state dict; dropped weights may hold any value.
        masks: True = kept.
        draws: how tensors were drawn; each is compared with its tensor, and a tensor that has changed is stored.
    """
    draws = draws or {}
    full = {name: _masked(tensor.detach().cpu(), masks.get(name)) for name, tensor in _first_names(tensors).items()}
    stored: dict[str, Tensor] = {}
    drawn: dict[str, Draw] = {}
    for name, tensor in full.items():
        constant = _constant(tensor)
        if name in draws and _bits_equal(_masked(draws[name].tensor(name), masks.get(name)), tensor):
            drawn[name] = draws[name]
        elif constant is not None:
            drawn[name] = constant
        else:
            stored[name] = tensor.contiguous().clone()
    return State(stored, drawn, fingerprint(full))


def _constant(tensor: Tensor) -> Draw | None:
    for init, value in (("zeros", 0.0), ("ones", 1.0)):
        if tensor.numel() and _bits_equal(tensor, torch.full(tensor.shape, value)):
            return Draw(init, 0, 1.0, tuple(tensor.shape))
    return None


def _bits_equal(one: Tensor, other: Tensor) -> bool:
    # -0.0 equals 0.0 and NaN nothing; a tensor is rebuilt from its draw only where every bit is the same.
    if one.dtype != torch.float32 or other.dtype != torch.float32 or one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().view(torch.int32), other.contiguous().view(torch.int32))


def _masked(tensor: Tensor, mask: Tensor | None) -> Tensor:
    return tensor if mask is None else tensor.masked_fill(~mask.to(tensor.device), 0)


@dataclass(frozen=True, eq=False)
class Ticket:
    """A subnetwork: which weights are kept, and their values at the start of training and at its end.

        ticket = supermask.load("ticket.safetensors")
        ticket.density, ticket.masks["fc1.weight"], ticket.meta
        net = ticket.model()                     # an architecture known by name, at its final state
        net = ticket.apply_to(my_model)          # any module of the same parameters

    `states` maps `start` (what the subnetwork is trained from) and `final` to a `State`; `meta` is plain JSON.
    """

    masks: Masks
    states: Mapping[str, State]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # As it would be read back from a file: tuples become lists, keys text.
        object.__setattr__(self, "meta", json.loads(to_json(dict(self.meta))))

    @property
    def density(self) -> float:
        """Fraction of the maskable weights kept."""
        return self.masks.density

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ticket):
            return NotImplemented
        same_states = self.states.keys() == other.states.keys() and all(
            self.states[name].fingerprint == other.states[name].fingerprint for name in self.states
        )
        return self.masks == other.masks and same_states and dict(self.meta) == dict(other.meta)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        about = ", ".join(str(self.meta[key]) for key in ("method", "model", "data") if key in self.meta)
        return f"Ticket({about + ': ' if about else ''}density {self.density:.4g}, {self.masks.kept} weights kept)"

    def state_dict(self, state: str = "final") -> dict[str, Tensor]:
        """All tensors of the network at `start` or `final`, masks applied.

        Raises:
            ValueError: a state that the ticket does not have.
            TicketError: the tensors are not those that were saved.
        """
        if state not in self.states:
            raise ValueError(
                f"the ticket has no state '{state}'{nearest(state, self.states)}; {', '.join(self.states)}"
            )
        source = self.states[state]
        tensors = {name: how.tensor(name) for name, how in source.drawn.items()} | dict(source.stored)
        tensors = {name: _masked(tensor, self.masks.get(name)) for name, tensor in tensors.items()}
        if (found := fingerprint(tensors)) != source.fingerprint:
            raise TicketError(
                f"the {state} weights are not those that were saved: their fingerprint is {found[:16]}..., "
                f"the ticket says {source.fingerprint[:16]}..."
            )
        return tensors

    def apply_to(self, model: Model, state: str = "final") -> Model:
        """Load the ticket's tensors into `model`, in place, and return it. `hold(model, ticket.masks)` keeps the masks.

        Raises:
            ValueError: tensors that are missing from the model, that the ticket does not have, or that have another
                shape (all of them are named); or a model that carries other masks.
        """
        program = program_of(model)
        if program is not None and not (isinstance(program, Hold) and program.masks() == self.masks):
            raise ValueError("the model carries other masks than the ticket's: supermask.detach(model) takes them off")
        set_state(model, self.state_dict(state))
        return model

    def model(self, state: str = "final") -> nn.Module:
        """Build the ticket's network from the file alone, masks applied, in evaluation mode.

        The architecture's name is looked up in the entry-point group `supermask.models`; no code is ever imported
        because a file names it.

        Raises:
            ValueError: an architecture that is not known here by name; the message says what to call instead.
            TicketError: arguments that the architecture does not take.
        """
        architecture = self.meta.get("architecture")
        if not isinstance(architecture, Mapping) or "name" not in architecture:
            raise ValueError(
                "the ticket names no architecture: build the model yourself and call ticket.apply_to(model)"
            )
        build = find_architecture(str(architecture["name"]))
        try:
            net = build(**architecture.get("arguments", {}))
        except TypeError as error:
            raise TicketError(
                f"the ticket's arguments do not fit its model '{architecture['name']}': {error}"
            ) from None
        return self.apply_to(net, state).eval()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's state dict under plain names: without learned scores, tied tensors under their first name."""
    return {name: tensor.detach().clone() for name, tensor in _plain_state(model).items()}


def _plain_state(model: nn.Module) -> dict[str, Tensor]:
    tensors = _first_names(unwrap(model).state_dict(keep_vars=True))
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not (name.endswith(SCORES_SUFFIX) and name.removesuffix(SCORES_SUFFIX) in tensors)
    }


def set_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy the tensors of `state_of` into a model, in place.

    Raises:
        ValueError: tensors that are missing from the model or not given, or that have another shape; all are named.
    """
    there = _plain_state(model)
    problems = mismatches(tensors, {name: tuple(tensor.shape) for name, tensor in there.items()}, "ticket")
    problems += [f"the ticket has no tensor '{name}'" for name in there if name not in tensors]
    if problems:
        raise ValueError("the ticket does not fit the model: " + "; ".join(problems))
    with torch.no_grad():
        for name, tensor in tensors.items():
            there[name].copy_(tensor)


def _first_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plain names; of several names for the same memory, the first."""
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            continue  # a module's extra state
        # An empty tensor has no memory to share.
        where = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        first.setdefault(where, name)
    return {plain_name(name): tensors[name] for name in first.values()}
