"""Ticket: masks, where the weights come from, and what was run to find them."""

from __future__ import annotations

import json
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..live.held import Model, carries_masks, holds
from ..live.tasks import Superposition
from ..masks.masks import Masks, Names, shapes_of
from ..masks.targets import nearest
from ..shrinking.compaction import Compaction, shrink
from ..weights.architectures import build_within, find_architecture
from ..weights.fitting import Fit, first_names, fit, merge_tied, plain_tensors, set_state
from ..weights.inits import Draw, fingerprint
from ..weights.plain import why_not_masked, why_not_plain, zero_where
from . import summary
from .differences import Difference, compare_masks, compare_plain, compare_tensors
from .union import UnionMasks

STATES = ("start", "final")


class TicketError(ValueError):
    """A ticket that cannot be read, or that does not hold what it says: told in one line, whatever names it tells."""

    def __init__(self, told: str) -> None:
        super().__init__(" ".join(told.splitlines()))


@dataclass(frozen=True)
class State:
    """All tensors of a network at one moment: stored, or drawn from a seed.

    `fingerprint` is the SHA-256 of the whole state dict with the masks applied (see `supermask.fingerprint`).
    `signs` and `gains` say how a drawn tensor becomes the effective one: where a sign is True the weight is negated,
    and the gain multiplies all of a tensor. `order` are the tensors' names in the order of the state dict.
    """

    stored: Mapping[str, Tensor]
    drawn: Mapping[str, Draw]
    fingerprint: str
    signs: Mapping[str, Tensor] = field(default_factory=dict)
    gains: Mapping[str, float] = field(default_factory=dict)
    order: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors."""
        return self.order or (*self.drawn, *self.stored)

    def tensors(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict, dropped weights 0; its fingerprint is not verified."""
        return {name: _masked(self.tensor(name), masks.get(name)) for name in self.names}

    def tensor(self, name: str) -> Tensor:
        """One tensor, without a mask: of a drawn one all weights, of a stored one those that were kept, else 0."""
        if name in self.stored:
            return self.stored[name]
        return _flipped(self.drawn[name].tensor(name), self.signs.get(name), self.gains.get(name))


@dataclass(frozen=True)
class Part:
    """What a ticket of several tasks has of one task beside its masks, which are the ticket's set of that name.

    `states` are `start` and `final` without the tensors that all tasks share: statistics and parameters of norms,
    biases. Their fingerprints are those of the whole network of the task. `meta` is the task's own, such as its
    accuracy, and `order` the names of all of the network's tensors.
    """

    states: Mapping[str, State]
    meta: Mapping[str, Any] = field(default_factory=dict)
    order: tuple[str, ...] = ()


def _flipped(drawn: Tensor, signs: Tensor | None, gain: float | None) -> Tensor:
    if gain is not None:
        drawn = drawn * torch.tensor(gain, dtype=torch.float32)
    return drawn if signs is None else torch.where(signs, -drawn, drawn)


def to_json(value: Any, sort_keys: bool = True) -> str:
    """Text that is the same for the same value: no spaces, keys sorted.

    Raises:
        ValueError: a value that is not plain JSON, such as a NaN.
    """
    try:
        return json.dumps(value, sort_keys=sort_keys, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a ticket's metadata is plain JSON without NaN: {error}") from None


def make_state(
    tensors: Mapping[str, Tensor],
    masks: Masks,
    draws: Mapping[str, Draw] | None = None,
    gains: Mapping[str, float] | None = None,
    dtype: torch.dtype | None = None,
) -> State:
    """Describe a state dict under masks: tensors that equal their draw are not stored, nor those of zeros or ones.

    Args:
        tensors: the state dict; dropped weights may hold any value.
        masks: True = kept.
        draws: how tensors were drawn; each is compared with its tensor. Where only signs differ, they are stored, one
            bit for each kept weight; a tensor that has changed otherwise is stored itself.
        gains: factors of drawn tensors, multiplied in float32.
        dtype: bfloat16 or float16: round the kept weights of masked float32 tensors, so that they take half the bytes.

    Of a tied tensor's names the first is taken; what a module's `get_extra_state` gives is not.

    Raises:
        ValueError: masks of tensors that are not there or have other shapes, tensors that are not plain numbers, or
            weights that are too large for float16; all of them are named.
    """
    draws, gains = draws or {}, gains or {}
    plain = plain_tensors(tensors)
    if problems := _problems(plain, masks, first_names(tensors)):
        raise ValueError("no state can be made of the tensors: " + "; ".join(problems))
    full = {name: _masked(tensor.detach().cpu(), masks.get(name)) for name, tensor in plain.items()}
    stored: dict[str, Tensor] = {}
    drawn: dict[str, Draw] = {}
    signs: dict[str, Tensor] = {}
    for name, tensor in full.items():
        if name in draws:
            base = _masked(_flipped(draws[name].tensor(name), None, gains.get(name)), masks.get(name))
            if tensor.dtype == torch.float32 and _bits_equal(base.abs(), tensor.abs()):
                drawn[name] = draws[name]
                # Of the bits, not the values: -0.0 is negative too.
                negative = torch.signbit(base) ^ torch.signbit(tensor)
                if negative.any():
                    signs[name] = negative
                continue
        if (constant := _constant(tensor)) is not None:
            drawn[name] = constant
        else:
            stored[name] = tensor.contiguous().clone()
    if dtype is not None:
        stored = _rounded(stored, masks, dtype)
        full |= stored
    used = {name: float(gains[name]) for name in drawn if name in gains and name in draws}
    return State(stored, drawn, fingerprint(full), signs, used, tuple(full))


def _problems(tensors: Mapping[str, Tensor], masks: Masks, first: Mapping[str, str]) -> list[str]:
    problems = [f"{name} {why}" for name, tensor in tensors.items() if (why := why_not_plain(tensor))]
    if problems:
        return problems
    for name, shape in shapes_of(masks).items():
        if name not in tensors:
            tied = f" (it is tied: {first[name]})" if name in first else ""
            problems.append(f"there is no tensor of the mask '{name}'{tied or nearest(name, tensors)}")
        elif tensors[name].shape != shape:
            problems.append(f"{name} has shape {list(tensors[name].shape)}, its mask {list(shape)}")
        elif why := why_not_masked(tensors[name]):
            problems.append(f"{name} {why}: no mask can drop a part of it")
    return problems


def _rounded(stored: Mapping[str, Tensor], masks: Masks, dtype: torch.dtype) -> dict[str, Tensor]:
    rounded = {
        name: tensor.to(dtype).float() if name in masks and tensor.dtype == torch.float32 else tensor
        for name, tensor in stored.items()
    }
    too_large = [
        f"{name} (up to {float(stored[name].abs().max()):.3g})"
        for name, tensor in rounded.items()
        if tensor.is_floating_point() and bool((tensor.isinf() & stored[name].isfinite()).any())
    ]
    if too_large:
        raise ValueError(
            f"{str(dtype).removeprefix('torch.')} ends at {torch.finfo(dtype).max:.6g}, and these weights are larger: "
            f"{', '.join(too_large)}; bfloat16 holds them"
        )
    return rounded


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
    return tensor if mask is None else zero_where(tensor, ~mask.to(tensor.device))


@dataclass(frozen=True, eq=False)
class Ticket:
    """A subnetwork: which weights are kept, and their values at the start of training and at its end.

        ticket = supermask.load("ticket.safetensors")
        ticket.density, ticket.masks["fc1.weight"], ticket.meta
        net = ticket.model()                     # an architecture known by name, at its final state
        net = ticket.apply_to(my_model)          # any module of the same parameters

    `states` maps `start` (what the subnetwork is trained from) and `final` to a `State`; `meta` is plain JSON. Two
    things are there where a method has them: `sets`, further masks by name over tensors of the same network, such as
    one for each task; and `levels`, `{name: uint8 tensor}` that say more than a mask does: how many of a chain of
    nested masks keep each weight, 0 where `masks` drops it (`ticket.at_level(2)` is the second mask of the chain).

    A ticket may be of several tasks over one network, whose weights never train (see `supermask.join_tasks`):

        ticket.tasks                             # their names
        ticket.task("2")                         # the ticket of one of them
        net = ticket.model(task="2")
        net = ticket.superpose()                 # all masks in memory; net.switch("2") in place, net.infer(images)

    Then `backbone` are the tensors that all tasks share, without masks, `sets` the masks, and `parts` what else each
    task has of its own. `masks` is what any task keeps, `states` is empty; what needs one task raises a `TicketError`.
    """

    masks: Masks
    states: Mapping[str, State]
    meta: Mapping[str, Any] = field(default_factory=dict)
    sets: Mapping[str, Masks] = field(default_factory=dict)
    levels: Mapping[str, Tensor] = field(default_factory=dict)
    backbone: State | None = None
    parts: Mapping[str, Part] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # As it would be read back from a file: tuples become lists, keys text.
        object.__setattr__(self, "meta", json.loads(to_json(dict(self.meta))))
        if self.parts:
            object.__setattr__(self, "masks", UnionMasks(self.sets[name] for name in self.parts))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, where there are several over one network; else empty."""
        return tuple(self.parts)

    @property
    def density(self) -> float:
        """Fraction of the maskable weights kept; of several tasks the mean over them."""
        if not self.parts:
            return self.masks.density
        return sum(self.sets[name].density for name in self.parts) / len(self.parts)

    @property
    def kept(self) -> int:
        """Number of weights kept; of several tasks the mean over them, rounded."""
        if not self.parts:
            return self.masks.kept
        return round(sum(self.sets[name].kept for name in self.parts) / len(self.parts))

    def task(self, name: str) -> Ticket:
        """The ticket of one of several tasks: an ordinary one.

        Raises:
            TicketError: there is no such task; those that there are are named.
        """
        if name not in self.parts or self.backbone is None:
            there = f"; there are {', '.join(self.parts)}" if self.parts else ": the ticket is of one task"
            raise TicketError(f"no task '{name}'{nearest(name, self.parts)}{there}")
        part = self.parts[name]
        states = {state: _joined(own, self.backbone, part.order) for state, own in part.states.items()}
        return Ticket(self.sets[name], states, {**self.meta, **part.meta})

    def superpose(self, model: nn.Module | None = None, state: str = "final") -> Superposition:
        """The network of all tasks, their masks in memory: it switches in place, and infers tasks (`Superposition`).

        Args:
            model: a module of the ticket's parameters, into which the tasks' weights are written; if not given, the
                architecture that the ticket names.
            state: `start` or `final`.

        Raises:
            TicketError: a ticket of one task, or tensors that are not those that were saved.
            ValueError: a model that does not fit, or carries masks; a state that the tasks do not have.
        """
        if self.backbone is None:
            raise TicketError("the ticket is of one task: there is nothing to superpose")
        first = self.task(self.tasks[0])
        net = first.model(state) if model is None else first.apply_to(model, state)
        weights = self.backbone.tensors({})
        _verify("backbone", weights, self.backbone)
        own = {name: part.states[state].tensors(self.sets[name]) for name, part in self.parts.items()}
        return Superposition(net, weights, {name: self.sets[name] for name in self.parts}, own)

    def __eq__(self, other: object) -> bool:
        return not self.diff(other) if isinstance(other, Ticket) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return summary.in_a_line(self.meta, self.density, self.kept, len(self.parts))

    def _repr_html_(self) -> str:
        return summary.to_html(self.meta, self.masks, self.states, {name: self.sets[name] for name in self.parts})

    def at_level(self, level: int) -> Masks:
        """The mask number `level`, from 1, of the chain of nested masks; tensors without levels keep their mask.

        Raises:
            ValueError: a ticket without levels, or a level below 1 or above all.
        """
        highest = max((int(levels.max()) for levels in self.levels.values() if levels.numel()), default=0)
        if not 1 <= level <= highest:
            raise ValueError(f"no level {level}: the ticket has {f'levels 1 to {highest}' if highest else 'no levels'}")
        chosen = {name: self.levels[name] >= level if name in self.levels else self.masks[name] for name in self.masks}
        return Masks(chosen, self.masks.uncounted)

    def overlap(self, other: Ticket) -> float:
        """Intersection over union of the weights that two tickets keep, in [0, 1] (see `Masks.overlap`)."""
        return self.masks.overlap(other.masks)

    def diff(self, other: Ticket) -> Difference:
        """What differs between two tickets: metadata, masks tensor by tensor, weights. False if nothing does."""
        none = Masks({})
        # What several tasks keep together follows from what each of them keeps.
        pairs = [] if self.parts and other.parts else [("", self.masks, other.masks)]
        pairs += [(name, self.sets.get(name, none), other.sets.get(name, none)) for name in {**self.sets, **other.sets}]
        mine, theirs = self._all_states(), other._all_states()
        states: dict[str, tuple[str, ...]] = {}
        for name in {**mine, **theirs}:
            if not (name in mine and name in theirs):
                states[name] = ("only in the first" if name in mine else "only in the second",)
            elif mine[name][0].fingerprint != theirs[name][0].fingerprint:
                one, two = (_tensors(name, state, masks) for state, masks in (mine[name], theirs[name]))
                states[name] = compare_tensors(one, two)
        masks = tuple(row for name, one, two in pairs for row in compare_masks(name, one, two))
        levels = compare_tensors(self.levels, other.levels)
        return Difference(compare_plain(self._whole_meta(), other._whole_meta()), masks, states, levels)

    def _all_states(self) -> dict[str, tuple[State, Masks]]:
        """The states with the masks over them: `final`, or of several tasks `backbone` and `2/final`."""
        found = {name: (state, self.masks) for name, state in self.states.items()}
        if self.backbone is not None:
            found["backbone"] = (self.backbone, Masks({}))
        for name in self.parts:
            ticket = self.task(name)
            found |= {f"{name}/{state}": (each, ticket.masks) for state, each in ticket.states.items()}
        return found

    def _whole_meta(self) -> dict[str, Any]:
        return {
            **self.meta,
            **({"tasks": {name: part.meta for name, part in self.parts.items()}} if self.parts else {}),
        }

    def _state(self, name: str) -> State:
        if self.parts:
            first, *_ = self.parts
            raise TicketError(
                f"the ticket is of {len(self.parts)} tasks: choose one, as ticket.task('{first}'); there are "
                f"{', '.join(self.parts)}"
            )
        if name not in self.states:
            raise ValueError(f"the ticket has no state '{name}'{nearest(name, self.states)}; {', '.join(self.states)}")
        return self.states[name]

    def state_dict(self, state: str = "final") -> dict[str, Tensor]:
        """All tensors of the network at `start` or `final`, masks applied.

        Raises:
            ValueError: a state that the ticket does not have.
            TicketError: the tensors are not those that were saved.
        """
        return _tensors(state, self._state(state), self.masks)

    def fit(self, model: nn.Module, state: str = "final", names: Names | None = None) -> Fit:
        """How the ticket's tensors meet a model's, without changing it: what `apply_to` would say.

        Raises:
            ValueError: a state that the ticket does not have, or names of which two become one.
        """
        tensors = self.state_dict(state)
        return fit({name: tuple(tensor.shape) for name, tensor in tensors.items()}, model, names)

    def apply_to(self, model: Model, state: str = "final", names: Names | None = None, partial: bool = False) -> Model:
        """Load the ticket's tensors into `model`, in place, and return it. `hold(model, ticket.masks)` keeps the masks.

            ticket.apply_to(model, names={"": "encoder."})                # a prefix more; {"encoder.": ""}: one less
            ticket.apply_to(model, names={"fc3.weight": "head.weight"})   # whole names
            supermask.hold(model, ticket.masks.renamed({"": "encoder."}))

        Args:
            model: a module of the ticket's parameters.
            state: `start` or `final`.
            names: how the ticket's tensors are called in the model: a function of the name, or a mapping of whole names
                and of prefixes that end in a dot (`""` is a prefix of all). None for a name leaves its tensor out.
            partial: load what fits and leave the rest of the model as it is; `fit` says what that is.

        Raises:
            ValueError: tensors that are missing from the model, that the ticket does not have, or that have another
                shape (all of them are named); or a model that carries other masks.
        """
        if carries_masks(model) and not holds(model, merge_tied(self.masks.renamed(names), model)):
            raise ValueError("the model carries other masks than the ticket's: supermask.detach(model) takes them off")
        set_state(model, self.state_dict(state), names, partial)
        return model

    def model(self, state: str = "final", task: str | None = None) -> nn.Module:
        """Build the ticket's network from the file alone, masks applied, in evaluation mode; of several tasks of one.

        The architecture's name is looked up in the entry-point group `supermask.models`; no code is ever imported
        because a file names it.

        Raises:
            ValueError: an architecture that is not known here by name; the message says what to call instead.
            TicketError: arguments that the architecture does not take; or of several tasks none is named, or one that
                is not there.
        """
        if task is not None:
            return self.task(task).model(state)
        if self.parts:
            self._state(state)
        architecture = self.meta.get("architecture")
        if not isinstance(architecture, Mapping) or "name" not in architecture:
            raise ValueError(
                "the ticket names no architecture: build the model yourself and call ticket.apply_to(model)"
            )
        build = find_architecture(str(architecture["name"]))
        tensors = self.state_dict(state)
        # A network with more than the ticket's tensors does not fit them; a tied one counts under each of its names.
        most = 4 * sum(tensor.numel() for tensor in tensors.values()) + 1_000_000
        try:
            net = build_within(build, architecture.get("arguments", {}), most)
        except ValueError as error:
            raise TicketError(
                f"the ticket's arguments do not fit its model '{architecture['name']}': {error}"
            ) from None
        set_state(net, tensors)
        return net.eval()

    def compact(self, example_input: Any = None, state: str = "final") -> nn.Module:
        """The ticket's network as a smaller dense one, in evaluation mode (see `supermask.compact`).

        Args:
            example_input: what the network takes; without it, two inputs of the architecture's `input_shape`.
            state: `start` or `final`.

        Raises:
            ValueError: no example input and no `input_shape` in the file, or as of `model` and `supermask.compact`.
        """
        return self.shrink(example_input, state).model

    def shrink(self, example_input: Any = None, state: str = "final") -> Compaction:
        """What `compact` gives, and what was done (see `supermask.shrink`)."""
        net = self.model(state)
        if example_input is not None:
            return shrink(net, self.masks, example_input)
        shape = self.meta.get("architecture", {}).get("arguments", {}).get("input_shape")
        if not isinstance(shape, list) or not all(isinstance(size, int) and 0 < size < 2**31 for size in shape):
            said = "no input_shape" if shape is None else f"the input_shape {shape}, which is no tensor's"
            raise ValueError(f"the ticket's architecture says {said}: give example_input=...")
        try:
            return shrink(net, self.masks, torch.ones(1).expand(2, *shape))
        except (RuntimeError, ValueError) as error:
            raise TicketError(f"on inputs of the ticket's input_shape {shape}: {error}") from None


def _joined(own: State, backbone: State, order: tuple[str, ...]) -> State:
    """A task's whole state: what is its own, and what all tasks share."""
    there = {*backbone.names, *own.names}
    return replace(
        own,
        stored=_either(own.stored, backbone.stored),
        drawn={**backbone.drawn, **own.drawn},
        signs=_either(own.signs, backbone.signs),
        gains={**backbone.gains, **own.gains},
        order=tuple(name for name in dict.fromkeys((*order, *backbone.names, *own.names)) if name in there),
    )


def _either(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Both mappings as one, of which nothing is read before it is asked for."""
    maps: Any = one, other  # never written to
    return ChainMap(*maps)


def _tensors(name: str, state: State, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = state.tensors(masks)
    _verify(name, tensors, state)
    return tensors


def _verify(name: str, tensors: Mapping[str, Tensor], state: State) -> None:
    if (found := fingerprint(tensors)) != state.fingerprint:
        raise TicketError(
            f"the {name} weights are not those that were saved: their fingerprint is {found[:16]}..., "
            f"the ticket says {state.fingerprint[:16]}..."
        )
