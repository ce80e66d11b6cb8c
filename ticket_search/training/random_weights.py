"""What the methods share that learn masks over random weights: their flags, and which networks they refuse."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ..contract.errors import RequestError
from ..contract.flags import Config as SharedConfig
from ..contract.flags import Init, ShapedConfig
from ..contract.method import Stage
from .at_init import density_problems, group_problems

if TYPE_CHECKING:
    from supermask import Targets


ScoreDtype = Annotated[
    Literal["fp32", "bf16"],
    Field(
        description="number format of the scores, their gradients and their optimizer's moments; bf16 halves their "
        "memory: each step is computed in fp32 and rounded at random, so that its mean is exact"
    ),
]


class RandomWeightsConfig(SharedConfig):
    """The flags of every method that learns masks over weights that do not train."""

    draws_masks: ClassVar[bool] = True
    epochs: int = Field(60, ge=1, description="epochs of learning the masks")
    init: Init = Field(
        "signed-constant",
        description="how the frozen random weights are drawn; keep: the weights that the model comes with",
    )
    train_norms: bool = Field(False, description="train the scale and shift of normalization layers too")


class ScoresConfig(RandomWeightsConfig, ShapedConfig):
    """The flags of those that rank a score for each weight, and so keep exactly as many as the density asks."""

    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False, description="weight decay, on the scores")
    schedule: Literal["constant", "cosine", "step"] = Field("cosine", description="learning rate over time")
    scaled: bool = Field(
        False,
        description="multiply the drawn weights by sqrt(1/density), which keeps the variance of a layer's outputs",
    )
    allocation: Literal["layerwise", "global"] = Field(
        "layerwise", description="rank the scores of each layer by themselves, or those of all layers together"
    )
    score_dtype: ScoreDtype = "fp32"

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """Scores choose single weights or N of every M; weights that are kept as they came are not scaled."""
        found = super().problems(given)
        if self.init == "keep" and "scaled" in given:
            found.append("--scaled goes with weights that are drawn, not with --init keep")
        if self.granularity != "weight" and self.group_density is None:
            found.append(f"--granularity {self.granularity}: expected weight, or N:M with N below M, as 2:4")
        return found


def plan_scores(config: SharedConfig, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """One training of what is learned for each weight.

    Raises:
        RequestError: a density that leaves a tensor without weights, a target that is no weight, or one without groups.
    """
    problems = flat_problems(targets)
    weights = {name: target for name, target in targets.items() if target.parameter.dim() >= 2}
    if isinstance(config, ShapedConfig):
        problems += group_problems(config, weights)
    problems += density_problems(config, targets)
    if problems:
        raise RequestError(problems)
    return [Stage("training", config.density, config.epochs * steps_per_epoch)]


def plan_as_it_comes(config: SharedConfig, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """One training, whose density is not asked or is met on average only, so that none keeps too little.

    Raises:
        RequestError: a target that is no weight.
    """
    if problems := flat_problems(targets):
        raise RequestError(problems)
    return [Stage("training", config.density, config.epochs * steps_per_epoch)]


def flat_problems(targets: Targets) -> list[str]:
    """What is wrong with targets that are no weights: they have no fan-in, by which scores and weights are drawn."""
    flat = [name for name, target in targets.items() if target.parameter.dim() < 2]
    return [f"--include takes {', '.join(flat)} too: scores need the fan-in of a weight; exclude them"] if flat else []
