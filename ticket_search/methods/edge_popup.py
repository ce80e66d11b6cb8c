"""Edge-popup: freeze random weights and learn, by a score each, which of them to use.

Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from .. import training
from ..contract.flags import Init, ShapedConfig
from ..contract.method import Stage, Traits
from ..training.random_weights import plan_scores

if TYPE_CHECKING:
    from torch import nn

    from supermask import Targets, Ticket

    from ..runs.run import Run


class Config(ShapedConfig):
    """Flags of edge-popup."""

    draws_masks: ClassVar[bool] = True
    method: str = "edge-popup"
    epochs: int = Field(60, ge=1, description="epochs of training the scores")
    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False, description="weight decay, on the scores")
    schedule: Literal["constant", "cosine", "step"] = Field("cosine", description="learning rate over time")
    init: Init = Field(
        "signed-constant",
        description="how the frozen random weights are drawn; keep: the weights that the model comes with",
    )
    scaled: bool = Field(
        True, description="multiply the drawn weights by sqrt(1/density), which keeps the variance of a layer's outputs"
    )
    allocation: Literal["layerwise", "global"] = Field(
        "layerwise", description="rank the scores of each layer by themselves, or those of all layers together"
    )
    train_norms: bool = Field(False, description="train the scale and shift of normalization layers too")

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """Weights that are kept as they are cannot be scaled; scores choose single weights or N of every M."""
        found = super().problems(given)
        if self.init == "keep" and "scaled" in given:
            found.append("--scaled goes with weights that are drawn, not with --init keep")
        if self.granularity != "weight" and self.group_density is None:
            found.append(f"--granularity {self.granularity}: expected weight, or N:M with N below M, as 2:4")
        return found


TRAITS = Traits(weights="frozen")


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """One training of the scores.

    Raises:
        RequestError: a density that leaves a tensor without weights, a target that is no weight, or one without groups.
    """
    return plan_scores(config, targets, steps_per_epoch)


def search(model: nn.Module, run: Run) -> Ticket:
    """Learn which of the frozen weights of `model` to use."""
    training.learned_scores.learn_scores(model, run.config)
    return training.learned_scores.train_scores(model, run)
