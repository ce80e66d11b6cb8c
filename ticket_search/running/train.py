"""Train a ticket: its masks held, from its start or its final weights, on its own data or on other.

Frankle & Carbin, The Lottery Ticket Hypothesis, 2018.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

import supermask
from supermask import choosing, selection, weights

from .. import data, training
from ..contract.errors import RequestError
from ..contract.flags import Config as SharedConfig
from ..contract.flags import flag
from ..contract.method import Stage, Traits
from ..data.samples import whole_batches
from ..runs.names import SIGNS
from .signed_starts import make_signed, signed_problem

if TYPE_CHECKING:
    from torch import Tensor, nn

    from supermask import Masks, Targets, Ticket

    from ..data.samples import Samples
    from ..runs.run import Run


class Config(SharedConfig):
    """Which ticket, from which of its states. What is not given is as in the ticket's own training."""

    draws_masks: ClassVar[bool] = True
    method: str = "train"
    ticket: str = Field("", description="the ticket file")
    found_by: str = Field("", description="the method that found the ticket")
    state: Literal["start", "final"] = Field(
        "start", description="weights to train from: those that the ticket started from, or its trained ones"
    )
    control: Literal[
        "none", "shuffle", "reinit", "random", "random-erk", "initial-signs", "trained-signs", "magnitudes"
    ] = Field(
        "none",
        description="train a control instead of the ticket: its mask shuffled within each layer, its weights drawn "
        "anew (reinit), a random mask of the same density in each layer, or of ERK densities; or its mask over the "
        "signs of its initial or its trained weights, all of a layer of one magnitude, or over its initial magnitudes "
        "with random signs",
    )
    head: Literal["ticket", "fresh"] = Field(
        "ticket",
        description="output layer: that of the ticket, or one that is drawn anew and carries no mask (fresh), as for "
        "data of another number of classes",
    )
    task: str | None = Field(None, description="which task of a ticket of several")
    whole: str = Field("", description="ticket file of the dense network at the step that a rewound ticket starts from")

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """The masks and the weights are the ticket's own."""
        found = super().problems(given)
        if "mask_seed" in given and self.control in ("none", "reinit", *SIGNS):
            found.append("--mask-seed goes with --control shuffle or random")
        if self.control != "none" and self.state != "start":
            found.append(f"--control {self.control} is of what a ticket starts from: expected --state start")
        return found + [f"{flag(key)} is the ticket's own" for key in FIXED if key in given]


TRAITS = Traits()

# What a ticket brings with it, so that no flag may say otherwise.
FIXED = ("ticket", "found_by", "density", "init", "weights", "include", "exclude")

# Of the training that found the ticket, what another training of it repeats unless told otherwise. No name of a
# function is among them: a ticket file never names code to import.
REPEATED = (
    "epochs", "batch_size", "optimizer", "lr", "momentum", "nesterov", "weight_decay", "schedule", "milestones", "drop",
    "warmup", "evaluate_every", "model_args", "activation", "crop", "flip", "image_size", "image_mean", "image_std",
    "max_bad_images", "label_smoothing", "clip", "accumulate", "precision", "channels_last", "train_size", "split_seed",
    "include", "exclude",
)  # fmt: skip


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """One training."""
    whole = config.epochs * steps_per_epoch
    return [Stage("training", config.density, whole - start_step(read_parent(config), config, whole))]


def check(model: nn.Module, samples: Samples, config: Config) -> None:
    """Check that the network for these data is the ticket's, but for an output layer that is drawn anew.

    Raises:
        RequestError: it is not, or a control that cannot be made.
    """
    parent = read_parent(config)
    if problem := _misfit(parent, model, samples, config):
        raise RequestError(problem)
    _find_start(copy.deepcopy(model), config)


def _misfit(ticket: Ticket, model: nn.Module, samples: Samples, config: Config) -> str:
    """Why the ticket's tensors are not those of a network, in one sentence; "" if they are."""
    fit = ticket.fit(model, config.state)
    head = _head_of(model)
    there = {name: tuple(tensor.shape) for name, tensor in weights.fitting.plain_state(model).items()}
    strange = [name for name in there if name not in fit.matched.values() and name not in head]
    lost = [name for name in ticket.states[config.state].names if name not in fit.matched and name not in head]
    found_on, known = ticket.meta.get("data", "other data"), ticket.meta.get("architecture", {}).get("arguments", {})
    if strange or lost:
        shape = data.trees.to_lists(samples.input_shape)
        if "input_shape" in known and known["input_shape"] != shape:
            return (
                f"the ticket does not fit {config.data}: it was found on {found_on}, samples of shape "
                f"{known['input_shape']}, and those of {config.data} have shape {shape}"
            )
        return f"the ticket does not fit {config.model} for {config.data}: {'; '.join(fit.problems)}"
    if fit or config.head == "fresh":
        return "" if head or config.head != "fresh" else "--head fresh: the network has no output layer of its own"
    classes = (
        f"{known['classes']} classes, {config.data} has {samples.classes}" if "classes" in known else fit.problems[0]
    )
    return (
        f"the ticket was found on {found_on}, {classes}: --head fresh draws the output layer "
        f"{next(iter(head)).rpartition('.')[0]} anew, without a mask, and keeps the rest of the ticket"
    )


def _head_of(model: nn.Module) -> list[str]:
    """The tensors of the last linear layer; none where it is shared with another layer, as with an embedding."""
    everything = supermask.find_targets(model, include="*")
    name = everything.output
    if name is None or len(everything[name].owners) > 1:
        return []
    layer = everything[name].owners[0][0]
    return [other for other, target in everything.items() if target.owners[0][0] is layer]


def _find_start(model: nn.Module, config: Config) -> Ticket:
    """What is trained: the ticket, or a control of it, with the output layer that is asked for.

    The output layer of `model` is drawn anew where a fresh one is asked for.

    Raises:
        RequestError: a control that cannot be made.
    """
    ticket, head = read_parent(config), list[str]()
    whole = supermask.load(config.whole) if config.whole else None
    if config.head == "fresh":
        head = _head_of(model)
        recorded = ticket.meta.get("config", {})
        init, gain = recorded.get("init", "keep"), recorded.get("init_gain")
        # As the search drew it; where it kept the weights that it was given, as the network is built.
        draws = {} if init == "keep" else supermask.initialize(model, init, config.seeds["init"], gain=gain)
        fresh = {name: tensor for name, tensor in weights.fitting.state_of(model).items() if name in head}
        ticket = _replace_head(ticket, fresh, draws)
        whole = None if whole is None else _replace_head(whole, fresh, draws)
    if config.control == "none":
        return ticket
    named = supermask.masks.targets.literal_globs(ticket.masks.counted())
    return make_control(ticket, config, supermask.find_targets(model, include=named), whole, head)


def _replace_head(ticket: Ticket, fresh: dict[str, Tensor], draws: dict[str, supermask.Draw]) -> Ticket:
    """A ticket with other tensors of the output layer, which carry no mask."""
    kept = {name: mask for name, mask in ticket.masks.items() if name not in fresh}
    masks = supermask.Masks(kept, ticket.masks.uncounted)
    drawn = {name: draw for name, draw in draws.items() if name in fresh}
    states = {
        name: supermask.make_state(
            {**ticket.state_dict(name), **fresh}, masks, {**state.drawn, **drawn}, gains=state.gains
        )
        for name, state in ticket.states.items()
    }
    return supermask.Ticket(masks, states, ticket.meta)


def read_parent(config: Config) -> Ticket:
    """The ticket that is trained: of several tasks that of the one that was chosen.

    Raises:
        TicketError: the file is no whole ticket, or has no such task.
    """
    ticket = supermask.load(config.ticket)
    return ticket if config.task is None else ticket.task(config.task)


def start_step(ticket: Ticket, config: Config, whole: int) -> int:
    """The step of the schedule that training starts at: the one that the ticket was rewound to, on its own data.

    A ticket whose weights are drawn anew starts from the beginning, as does one trained further or on other data.
    """
    own = config.state == "start" and config.control != "reinit" and config.data == ticket.meta.get("data")
    step = int(ticket.meta.get("rewound_to", 0)) if own else 0
    return step if step < whole else 0


def make_control(
    ticket: Ticket, config: Config, targets: Targets, whole: Ticket | None = None, fresh: Sequence[str] = ()
) -> Ticket:
    """A ticket of the same size that differs in one thing: where it keeps weights, or which weights it starts from.

    `shuffle` permutes the mask within each tensor, `random` keeps the same total at random, the same share of each
    tensor, and `random-erk` shares in proportion to dimensions (see `allocation.erk`). All start from the ticket's own
    weights, which must therefore be known under the dropped ones too: drawn, not stored, or those of `whole`, the dense
    network that the ticket was rewound to. `reinit` draws the weights anew, but for `fresh` ones, which are it already.
    What starts from signs or magnitudes only is made by `signed_starts.make_signed`.

    Raises:
        RequestError: a ticket whose weights were not drawn, or a seed that would draw its own weights again.
    """
    masks, origin = ticket.masks, ticket.states["start"]
    if whole is not None:
        origin = whole.states["start"]
    if problem := start_problem(ticket, config.control, whole):
        raise RequestError(problem)
    if config.control in SIGNS:
        return make_signed(ticket, config.control, origin.drawn, config.seeds["init"])
    draws = dict(origin.drawn)
    tensors = {name: draw.tensor(name) for name, draw in draws.items()} | dict(origin.stored)
    if whole is not None and config.control != "reinit":
        tensors = whole.state_dict("final")
    if config.control == "reinit":
        seed = config.seeds["init"]
        # What carries no mask too: biases and norms alone are no draw.
        constant = ("zeros", "ones")
        random_draws = {n: draw for n, draw in draws.items() if draw.init not in constant and n not in fresh}
        if any(draw.seed == seed for draw in random_draws.values()):
            raise RequestError(
                f"--control reinit: seed {seed} draws the ticket's own weights: give another --init-seed"
            )
        drawn_anew = {name: dataclasses.replace(draw, seed=seed) for name, draw in random_draws.items()}
        draws |= drawn_anew
        tensors |= {name: draw.tensor(name) for name, draw in drawn_anew.items()}
    elif config.control == "shuffle":
        masks = masks.shuffled(config.seeds["mask"])
    else:
        masks = random_masks(masks, config.control == "random-erk", targets, config.seeds["mask"])
    return supermask.Ticket(masks, {"start": supermask.make_state(tensors, masks, draws)}, dict(ticket.meta))


def start_problem(ticket: Ticket, control: str, whole: Ticket | None = None) -> str:
    """Why a control cannot be made of what is known of a ticket's weights, in one sentence; "" if it can."""
    origin = ticket.states["start"] if whole is None else whole.states["start"]
    if control in SIGNS:
        return signed_problem(ticket, control, origin.drawn)
    if control == "reinit" and (lost := [name for name in ticket.masks.counted() if name not in origin.drawn]):
        return (
            f"--control reinit: the weights of {', '.join(lost)} come from elsewhere (a checkpoint, or the model "
            "itself with --init keep), so how fresh ones would be drawn is not known: a search that starts from "
            "scratch has this control"
        )
    there = [] if whole is None else whole.states["start" if control == "reinit" else "final"].names
    lost = [name for name in ticket.masks if name not in origin.drawn and name not in there]
    if not lost:
        return ""
    return (
        f"--control {control} needs the weights under the dropped ones; the ticket stores those it keeps of "
        f"{', '.join(lost)}; --whole names the dense network that it was rewound to (rewind.safetensors)"
    )


def random_masks(masks: Masks, by_dimensions: bool, targets: Targets, seed: int) -> Masks:
    """Random masks that keep as many weights as `masks` in all: the same share of each tensor, or shares by ERK."""

    counted = masks.counted()
    sizes = {name: mask.numel() for name, mask in counted.items()}
    if by_dimensions:
        counts = choosing.allocation.erk({name: mask.float() for name, mask in counted.items()}, masks.density, targets)
    else:
        counts = choosing.allocation.largest_remainder(
            {name: masks.density * size for name, size in sizes.items()}, masks.kept, sizes
        )
    return _draw_masks(masks, counts, seed)


def _draw_masks(masks: Masks, counts: dict[str, int], seed: int) -> Masks:
    import torch

    drawn = {
        name: selection.top_k.top_k(
            torch.from_numpy(supermask.masks.random_numbers.uniform(mask.numel(), seed, f"random/{name}")), counts[name]
        ).reshape(mask.shape)
        for name, mask in masks.counted().items()
    }
    return supermask.Masks({name: drawn.get(name, mask) for name, mask in masks.items()}, masks.uncounted)


def search(model: nn.Module, run: Run) -> Ticket:
    """Train the ticket's network with its masks held."""
    config = run.config
    assert isinstance(config, Config)
    parent = read_parent(config)
    ticket = _find_start(model, config)
    ticket.apply_to(model, config.state)
    supermask.hold(model, ticket.masks)
    # As the ticket's task sees them, where it is of one of several.
    of_task = {"task": parent.meta["task"]} if "task" in parent.meta else {}
    with run.setup.using(data.tasks.through_task(parent.meta, run.data)):
        return training.conclude.train_once(
            model,
            run,
            ticket.masks,
            start=ticket.state_dict(config.state),
            begin=start_step(parent, config, config.epochs * whole_batches(run.data.train_size, config.batch_size)),
            order=_order(parent, config),
            draws=ticket.states["start"].drawn if "start" in ticket.states else {},
            row={"found_by": config.found_by, "found_on": str(parent.meta.get("data", ""))},
            parent={"fingerprint": parent.states[config.state].fingerprint, "state": config.state},
            **of_task,
        )


def _order(ticket: Ticket, config: Config) -> str:
    """The data order that the ticket's own training had, so that with its own seed it is that training again."""
    fresh = ticket.meta.get("config", {}).get("data_order") == "fresh" and config.state == "start"
    return f"order/{ticket.meta.get('level', 0)}" if fresh else "order/0"
