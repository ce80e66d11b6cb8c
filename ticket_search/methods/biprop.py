"""Biprop: edge-popup over the signs of random weights, times one gain for each layer.

Diffenderfer & Kailkhura, Multi-Prize Lottery Ticket Hypothesis: Finding Accurate Binary Neural Networks by Pruning A
Randomly Weighted Network, 2021.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from supermask import live

from .. import training
from ..contract.flags import Init
from ..contract.method import Stage, Traits
from ..training.random_weights import ScoresConfig, plan_scores

if TYPE_CHECKING:
    from torch import nn

    from supermask import Targets, Ticket

    from ..runs.run import Run

WHEN = "When the network should have binary weights, one bit and a sign each, without training any weight."


class Config(ScoresConfig):
    """Flags of biprop."""

    method: str = "biprop"
    init: Init = Field(
        "kaiming-normal",
        description="how the frozen random weights are drawn, whose signs are used and whose size gives the gain; "
        "keep: the weights that the model comes with",
    )
    scaled: bool = Field(
        True, description="multiply the drawn weights, and so the gain, by sqrt(1/density), as the authors do"
    )


TRAITS = Traits(weights="computed")


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """One training of the scores.

    Raises:
        RequestError: a density that leaves a tensor without weights, a target that is no weight, or one without groups.
    """
    return plan_scores(config, targets, steps_per_epoch)


def search(model: nn.Module, run: Run) -> Ticket:
    """Learn the signs of which of the frozen weights of `model` to use."""
    training.learned_scores.learn_scores(model, run.config, live.Biprop())
    return training.learned_scores.train_scores(model, run)
