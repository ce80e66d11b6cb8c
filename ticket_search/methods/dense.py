"""Train the whole network: the ordinary run that every ticket is measured against.

Rumelhart, Hinton & Williams, Learning Representations by Back-propagating Errors, 1986.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ..contract.flags import Config as SharedConfig
from ..contract.method import Stage, Traits

if TYPE_CHECKING:
    from torch import nn

    from supermask import Targets, Ticket

    from ..data.samples import Samples
    from ..runs.run import Run


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


def search(model: nn.Module, data: Samples, config: Config, run: Run) -> Ticket:
    """Train `model` and keep all of it."""
    import supermask
    from supermask.weights.fitting import state_of

    from ..training.conclude import conclude
    from ..training.loop import train

    start = state_of(model)
    masks = supermask.prune(model, 1.0, include=config.include or None, exclude=config.exclude or None)

    def work() -> dict[str, Any]:
        trained = train(model, data, config, run)
        return conclude(run, model, masks, start, trained)

    run.rows.append(run.stage("training", work)["row"])
    return run.ticket
