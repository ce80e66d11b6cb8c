"""Signed supermasks: learn which of the random weights to keep, to drop and to flip.

Koster, Grothe & Rettinger, Signing the Supermask: Keep, Hide, Invert, 2022.
"""

from __future__ import annotations

import math
from collections.abc import Set
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from supermask import live

from .. import training
from ..contract.flags import NotNegative, Positive, flag
from ..contract.method import Stage, Traits
from ..training.random_weights import ScoresConfig, plan_as_it_comes, plan_scores

if TYPE_CHECKING:
    from torch import nn

    from supermask import Targets, Ticket

    from ..runs.run import Run

WHEN = "When very few weights may stay and the sign of each may be learned too, but no magnitude."


class Config(ScoresConfig):
    """Flags of signed supermasks.

    The paper decays by 3e-4 in a step, beside the gradient (SGDW); the decay here, which goes through the momentum,
    comes to the same at this rate and this momentum. The paper lowers both rates to 0.9 every 10 epochs, which is
    `--schedule step` here, and its momentum is Nesterov's.
    """

    method: str = "signed"
    lr: Positive = Field(5e-3, description="learning rate of the scores at its highest")
    weight_decay: NotNegative = Field(6e-3, description="weight decay, on the scores")
    schedule: Literal["constant", "cosine", "step"] = Field("constant", description="learning rate over time")
    threshold: NotNegative | None = Field(
        None,
        description="keep what has a score above this in absolute value, however many these are; if not given, the "
        "threshold is searched in every step that keeps as many as --density asks",
    )
    gain: Positive = Field(
        math.sqrt(1.5),
        description="factor of the drawn weights; sqrt(1.5) makes of signed constants those of the paper",
    )

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """A threshold says how many are kept, so that nothing else may."""
        found = super().problems(given)
        if self.threshold is None:
            return found
        others = [name for name in ("density", "allocation", "scaled") if name in given]
        if self.granularity != "weight":
            others.append("granularity")
        return found + [
            f"{flag(name)} goes with a searched threshold: --threshold {self.threshold:g} says itself how many are kept"
            for name in others
        ]


TRAITS = Traits(exact_density=False, weights="computed")


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """One training of the scores.

    Raises:
        RequestError: a density that leaves a tensor without weights, a target that is no weight, or one without groups.
    """
    plan_one = plan_scores if config.threshold is None else plan_as_it_comes
    return plan_one(config, targets, steps_per_epoch)


def search(model: nn.Module, run: Run) -> Ticket:
    """Learn which of the frozen weights of `model` to keep, to drop and to flip."""
    config = run.config
    assert isinstance(config, Config)
    training.learned_scores.learn_scores(model, config, live.Signed(config.threshold, config.gain))
    return training.learned_scores.train_scores(model, run)
