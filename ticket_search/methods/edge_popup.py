"""Edge-popup: freeze random weights and learn, by a score each, which of them to use.

Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

import supermask
from supermask import choosing, live

from .. import training
from ..contract.errors import RequestError
from ..contract.flags import Duration, Init, ShapedConfig, flag, steps_of
from ..contract.method import Hook, Stage, Traits
from ..data.samples import whole_batches
from ..training.random_weights import ScoreDtype, plan_scores

if TYPE_CHECKING:
    from torch import nn

    from supermask import Targets, Ticket

    from ..runs.run import Run

WHEN = "To find a subnetwork that is good without training its weights, in a file of one bit a weight."


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
    score_dtype: ScoreDtype = "fp32"
    train_norms: bool = Field(False, description="train the scale and shift of normalization layers too")
    fall: Literal["none", "cubic", "linear"] = Field(
        "none",
        description="let the density fall to --density step by step, fast at first (cubic) or evenly (linear), so that "
        "no layer loses all of its weights at once",
    )
    fall_from: float = Field(1.0, gt=0, le=1, allow_inf_nan=False, description="density that the fall begins with")
    fall_until: Duration | None = Field(
        None,
        description="step at which the fall has reached --density, as 500it or 2ep; half of the training if not given",
    )

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """Weights that are kept as they are cannot be scaled; scores choose single weights or N of every M."""
        found = super().problems(given)
        if self.init == "keep" and "scaled" in given:
            found.append("--scaled goes with weights that are drawn, not with --init keep")
        if self.scores == "magnitude" and self.init in ("signed-constant", "unsigned-constant"):
            found.append(f"--scores magnitude ranks the weights, and --init {self.init} gives all of a tensor the same")
        if self.granularity != "weight" and self.group_density is None:
            found.append(f"--granularity {self.granularity}: expected weight, or N:M with N below M, as 2:4")
        if self.fall == "none":
            found += [
                f"{flag(name)} goes with --fall cubic or linear"
                for name in ("fall_from", "fall_until")
                if name in given
            ]
            return found
        if self.group_density is not None:
            found.append(f"--fall {self.fall}: --granularity {self.granularity} has one density, the fall many")
        if self.compile:
            found.append(f"--fall {self.fall}: other counts in each step would be compiled anew: leave out --compile")
        if self.fall_from < self.density:
            found.append(f"--fall-from {self.fall_from:g}: expected at least the --density of {self.density:g}")
        return found

    def falls_until(self, steps_per_epoch: int) -> int:
        """The step from which on the density is that asked."""
        if self.fall == "none":
            return 0
        total = self.epochs * steps_per_epoch
        return total // 2 if self.fall_until is None else steps_of(self.fall_until, steps_per_epoch)


TRAITS = Traits(weights="frozen")


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """One training of the scores.

    Raises:
        RequestError: a density that leaves a tensor without weights, a target that is no weight, or one without groups.
    """
    stages = plan_scores(config, targets, steps_per_epoch)
    if config.falls_until(steps_per_epoch) >= stages[0].steps:
        raise RequestError(
            f"--fall-until {config.fall_until}: expected a step before the training's {stages[0].steps} are done"
        )
    return stages


def search(model: nn.Module, run: Run) -> Ticket:
    """Learn which of the frozen weights of `model` to use."""
    config = run.config
    assert isinstance(config, Config)
    training.learned_scores.learn_scores(model, config, live.EdgePopup(config.scores))
    until = config.falls_until(whole_batches(run.data.train_size, config.batch_size))
    return training.learned_scores.train_scores(model, run, Fall(model, config, until))


class Fall(Hook):
    """Hook that lets the density fall from step to step, where that is asked: at its last step it is the one asked."""

    def __init__(self, model: nn.Module, config: Config, until: int) -> None:
        self.model, self.config, self.until = model, config, until

    def density(self, step: int) -> float:
        """The density of the training step that `step` others have come before."""
        if step >= self.until:
            return self.config.density
        fall = choosing.schedules.SCHEDULES[self.config.fall]
        return fall(step / self.until, self.config.density, self.config.fall_from)

    def before_forward(self, step: int) -> None:
        """The density of this step."""
        # One step more than there are to be changed: the last change is to the density asked.
        if step <= self.until and self.until:
            supermask.change_density(self.model, self.density(step))

    def is_choice(self, step: int) -> bool:
        """Only networks of the density asked are compared."""
        return step > self.until or not self.until

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is kept: each step says what its density is, and after a stop it is said again."""
