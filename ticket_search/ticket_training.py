"""Train a ticket: its masks held, from its start or its final weights, on its own data or on other.

Frankle & Carbin, The Lottery Ticket Hypothesis, 2018.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from .config import Config as SharedConfig
from .config import flag
from .methods import Stage, Traits
from .problems import RequestError
from .tensorboard import densities

if TYPE_CHECKING:
    from torch import nn

    from supermask import Targets, Ticket

    from .data.samples import Samples
    from .runs import Run


class Config(SharedConfig):
    """Which ticket, from which of its states. What is not given is as in the ticket's own training."""

    method: str = "train"
    ticket: str = Field("", description="the ticket file")
    state: Literal["start", "final"] = Field("start", description="the weights to train from")

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """The masks and the weights are the ticket's own."""
        found = super().problems(given)
        return found + [f"{flag(key)} is the ticket's own" for key in FIXED if key in given]


TRAITS = Traits()

# What a ticket brings with it, so that no flag may say otherwise.
FIXED = ("ticket", "density", "init", "weights", "include", "exclude")

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

    masks = supermask.load(config.ticket).masks
    problems = mismatches(masks, {name: tuple(target.parameter.shape) for name, target in targets.items()})
    if problems:
        raise RequestError(f"the ticket does not fit {config.model} for {config.data}: {'; '.join(problems)}")
    return [Stage("training", config.density, config.epochs * steps_per_epoch)]


def search(model: nn.Module, data: Samples, config: Config, run: Run) -> Ticket:
    """Train the ticket's network with its masks held."""
    import supermask
    from supermask.ticket import state_of

    from .reports import describe_training, make_ticket
    from .training import train

    parent = supermask.load(config.ticket)
    start = parent.state_dict(config.state)
    parent.apply_to(model, config.state)
    supermask.hold(model, parent.masks)

    def work() -> dict[str, Any]:
        trained = train(model, data, config, run)
        supermask.check(model)
        described = {"fingerprint": parent.states[config.state].fingerprint, "state": config.state}
        draws = parent.states["start"].drawn if "start" in parent.states else {}
        ticket = make_ticket(run, parent.masks, start, state_of(model), draws, parent=described)
        run.save_ticket(ticket)
        row = describe_training(run, model, trained, ticket)
        run.log(trained.steps, {"accuracy/test": row["test_accuracy"], **densities(parent.masks)})
        run.log_masks(trained.steps, model, parent.masks)
        return {"steps": trained.steps, "row": row}

    run.rows.append(run.stage("training", work)["row"])
    return run.ticket
