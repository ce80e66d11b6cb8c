"""Train a ticket: its masks held, from its start or its final weights, on its own data or on other.

Frankle & Carbin, The Lottery Ticket Hypothesis, 2018.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from .config import Config as SharedConfig
from .config import flag
from .methods import Stage, Traits
from .problems import RequestError

if TYPE_CHECKING:
    from torch import nn

    from supermask import Masks, Targets, Ticket

    from .data.samples import Samples
    from .runs import Run


class Config(SharedConfig):
    """Which ticket, from which of its states. What is not given is as in the ticket's own training."""

    draws_masks: ClassVar[bool] = True
    method: str = "train"
    ticket: str = Field("", description="the ticket file")
    found_by: str = Field("", description="the method that found the ticket")
    state: Literal["start", "final"] = Field("start", description="the weights to train from")
    control: Literal["none", "shuffle", "reinit", "random"] = Field(
        "none",
        description="instead of the ticket: its mask shuffled in each layer, its weights drawn anew, a random mask",
    )

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """The masks and the weights are the ticket's own."""
        found = super().problems(given)
        if "mask_seed" in given and self.control not in ("shuffle", "random"):
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
    "warmup", "evaluate_every", "model_args", "activation", "crop", "flip", "image_size", "label_smoothing", "clip",
    "accumulate", "precision", "channels_last", "split_seed", "include", "exclude",
)  # fmt: skip


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """One training.

    Raises:
        RequestError: a network that the ticket's masks do not fit.
    """
    import supermask
    from supermask.masks import mismatches

    parent = supermask.load(config.ticket)
    masks = parent.masks
    problems = mismatches(masks.shapes, {name: tuple(target.parameter.shape) for name, target in targets.items()})
    if problems:
        raise RequestError(f"the ticket does not fit {config.model} for {config.data}: {'; '.join(problems)}")
    if config.control != "none":
        make_control(parent, config)
    return [Stage("training", config.density, config.epochs * steps_per_epoch)]


def make_control(ticket: Ticket, config: Config) -> Ticket:
    """A ticket of the same size that differs in one thing: where it keeps weights, or which weights it starts from.

    `shuffle` permutes the mask within each tensor, `random` keeps the same total at random, the same share of each
    tensor; both start from the ticket's own weights, which must therefore be known under the dropped ones too: drawn,
    not stored. `reinit` draws the weights anew.

    Raises:
        RequestError: a ticket whose weights were not drawn, or a seed that would draw its own weights again.
    """
    import dataclasses

    import supermask
    from supermask.allocation import largest_remainder

    start = ticket.states["start"]
    lost = [name for name in ticket.masks if name not in start.drawn]
    if lost:
        raise RequestError(
            f"--control {config.control} needs the weights under the dropped ones; the ticket stores those it keeps of "
            f"{', '.join(lost)}"
        )
    draws, masks = dict(start.drawn), ticket.masks
    if config.control == "reinit":
        seed = config.seeds["init"]
        random_draws = {name: draw for name, draw in draws.items() if name in masks}
        if any(draw.seed == seed for draw in random_draws.values()):
            raise RequestError(
                f"--control reinit: seed {seed} draws the ticket's own weights: give another --init-seed"
            )
        draws |= {name: dataclasses.replace(draw, seed=seed) for name, draw in random_draws.items()}
    elif config.control == "shuffle":
        masks = masks.shuffled(config.seeds["mask"])
    else:
        sizes = {name: mask.numel() for name, mask in masks.counted().items()}
        shares = {name: masks.density * size for name, size in sizes.items()}
        counts = largest_remainder(shares, masks.kept, sizes)
        masks = _random_masks(masks, counts, config.seeds["mask"])
    tensors = {name: draw.tensor(name) for name, draw in draws.items()} | dict(start.stored)
    return supermask.Ticket(masks, {"start": supermask.make_state(tensors, masks, draws)}, dict(ticket.meta))


def _random_masks(masks: Masks, counts: dict[str, int], seed: int) -> Masks:
    import torch

    import supermask
    from supermask.inits import uniform
    from supermask.selection import top_k

    drawn = {
        name: top_k(torch.from_numpy(uniform(mask.numel(), seed, f"random/{name}")), counts[name]).reshape(mask.shape)
        for name, mask in masks.counted().items()
    }
    return supermask.Masks({name: drawn.get(name, mask) for name, mask in masks.items()}, masks.uncounted)


def search(model: nn.Module, data: Samples, config: Config, run: Run) -> Ticket:
    """Train the ticket's network with its masks held."""
    import supermask

    from .reports import conclude
    from .training import train

    parent = supermask.load(config.ticket)
    ticket = parent if config.control == "none" else make_control(parent, config)
    start = ticket.state_dict(config.state)
    ticket.apply_to(model, config.state)
    supermask.hold(model, ticket.masks)

    def work() -> dict[str, Any]:
        trained = train(model, data, config, run)
        supermask.check(model)
        described = {"fingerprint": parent.states[config.state].fingerprint, "state": config.state}
        draws = ticket.states["start"].drawn if "start" in ticket.states else {}
        return conclude(run, model, ticket.masks, start, trained, draws=draws, parent=described)

    run.rows.append(run.stage("training", work)["row"])
    return run.ticket
