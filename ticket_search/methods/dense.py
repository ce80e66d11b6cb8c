"""Train the whole network: the ordinary run that every ticket is measured against.

Rumelhart, Hinton & Williams, Learning Representations by Back-propagating Errors, 1986.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .. import training
from ..contract.flags import Config as SharedConfig
from ..contract.method import Stage, Traits

if TYPE_CHECKING:
    from torch import nn

    from supermask import Targets, Ticket

    from ..runs.run import Run

WHEN = "First: the accuracy, the time and the seeds that every other run is compared with."


class Config(SharedConfig):
    """No flags of its own: density is 1 whatever is asked."""

    method: str = "dense"
    density: float = Field(1.0, ge=1, le=1, description="always 1: every weight is kept")
    batch_size: int = Field(60, ge=1, description="samples per step")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("adam", description="update rule")
    lr: float = Field(1.2e-3, gt=0, allow_inf_nan=False, description="learning rate at its highest")


TRAITS = Traits(dense=True)


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """One training."""
    return [Stage("training", 1.0, config.epochs * steps_per_epoch)]


def search(model: nn.Module, run: Run) -> Ticket:
    """Train `model` and keep all of it."""
    return training.conclude.train_once(model, run, training.conclude.keep_all(model, run.config))
