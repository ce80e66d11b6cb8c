"""Edge-popup: freeze random weights and learn, by a score each, which of them to use.

Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from supermask import live, selection

from .. import training
from ..contract.errors import RequestError
from ..contract.flags import Init, ShapedConfig
from ..contract.method import Stage, Traits
from ..training.at_init import group_problems

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
    scores: Literal["random", "magnitude"] = Field(
        "random",
        description="what the scores begin as: seeded noise, or the magnitudes of the weights, as of trained ones that "
        "--init keep leaves",
    )
    train_norms: bool = Field(False, description="train the scale and shift of normalization layers too")

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """Weights that are kept as they are cannot be scaled; scores choose single weights or N of every M."""
        found = super().problems(given)
        if self.init == "keep" and "scaled" in given:
            found.append("--scaled goes with weights that are drawn, not with --init keep")
        if self.scores == "magnitude" and self.init in ("signed-constant", "unsigned-constant"):
            found.append(f"--scores magnitude ranks the weights, and --init {self.init} gives all of a tensor the same")
        if self.granularity != "weight" and self.group_density is None:
            found.append(f"--granularity {self.granularity}: expected weight, or N:M with N below M, as 2:4")
        return found


TRAITS = Traits(weights="frozen")


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """One training of the scores.

    Raises:
        RequestError: a density that leaves a tensor without weights, a target that is no weight, or one without groups.
    """
    problems = []
    flat = [name for name, target in targets.items() if target.parameter.dim() < 2]
    if flat:
        problems.append(f"--include takes {', '.join(flat)} too: scores need the fan-in of a weight; exclude them")
    weights = {name: target for name, target in targets.items() if name not in flat}
    problems += group_problems(config, weights)
    empty = [name for name, target in targets.items() if selection.top_k.count_kept(config.density, target.size) == 0]
    if config.allocation == "layerwise" and empty:
        problems.append(f"--density {config.density:g} keeps none of {', '.join(empty)}: raise it or --exclude them")
    if selection.top_k.count_kept(config.density, targets.size) == 0:
        problems.append(f"--density {config.density:g} keeps none of the {targets.size:,} weights")
    if problems:
        raise RequestError(problems)
    return [Stage("training", config.density, config.epochs * steps_per_epoch)]


def search(model: nn.Module, run: Run) -> Ticket:
    """Learn which of the frozen weights of `model` to use."""
    config = run.config
    assert isinstance(config, Config)
    rule = live.EdgePopup(config.scores)
    training.learned_scores.learn_scores(model, run.config, rule)
    return training.learned_scores.train_scores(model, run)
