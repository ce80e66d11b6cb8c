"""Bernoulli masks: freeze random weights and learn, by a probability each, which of them to use.

Zhou et al., Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask, 2019.
"""

from __future__ import annotations

import statistics
from collections.abc import Set
from typing import TYPE_CHECKING, Any

from pydantic import Field

from supermask import live

from .. import training
from ..contract.flags import Init, NotNegative, Positive
from ..contract.method import Hook, Stage, Traits
from ..training.random_weights import RandomWeightsConfig, plan_as_it_comes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from supermask import Targets, Ticket
    from supermask.live.learned import Learned

    from ..runs.run import Run

WHEN = "To see how good a network of random weights can be where each mask is drawn by a learned chance."

SAMPLES = 10
# How far from the density asked, as a fraction of it, a sample may lie before that is said.
TOLERANCE = 0.02


class Config(RandomWeightsConfig):
    """Flags of Bernoulli masks. The paper asks for no density, which is `--steer 0`."""

    method: str = "bernoulli"
    batch_size: int = Field(250, ge=1, description="number of samples in a training step")
    lr: Positive = Field(100.0, description="learning rate of the logits at its highest")
    init: Init = Field(
        "xavier-normal",
        description="how the frozen random weights are drawn; keep: the weights that the model comes with",
    )
    steer: NotNegative = Field(
        0.01,
        description="weight of a penalty, the squared distance of the mean probability from --density times the number "
        "of weights, which steers the density; the smaller --lr, the larger; with 0 the density is as it comes",
    )
    rescale: bool = Field(
        True, description="multiply what a sample keeps of a layer by the number of its weights over that of those kept"
    )

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """A density needs the penalty."""
        found = super().problems(given)
        if "density" in given and self.steer == 0:
            found.append("--density goes with --steer above 0: without it the density is as it comes")
        return found


TRAITS = Traits(exact_density=False, weights="computed")


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """One training of the probabilities.

    Raises:
        RequestError: a target that is no weight.
    """
    return plan_as_it_comes(config, targets, steps_per_epoch)


def search(model: nn.Module, run: Run) -> Ticket:
    """Learn with which probability to use each of the frozen weights of `model`; the ticket is one sample."""
    config = run.config
    assert isinstance(config, Config)
    training.learned_scores.learn_scores(model, config, live.Bernoulli(rescaled=config.rescale))
    program = training.learned_scores.learned_program(model)

    def measure() -> dict[str, Any]:
        density = program.masks().density
        if config.steer and abs(density - config.density) > TOLERANCE * config.density:
            run.progress.say(
                f"the sampled mask keeps {density:.4g} of the weights, more than 2 % away from the {config.density:g} "
                "asked: raise --steer or --epochs"
            )
        return measure_samples(model, program, run)

    return training.learned_scores.train_scores(model, run, Steering(program, config), measure)


class Steering(Hook):
    """Hook whose penalty draws the mean probability towards the density asked."""

    def __init__(self, program: Learned, config: Config) -> None:
        self.program, self.config = program, config

    def extra_loss(self) -> Tensor | None:
        """Of n weights: steer * n * (mean probability - density)^2."""
        if not self.config.steer:
            return None
        import torch  # the help of this method needs none

        layers = self.program.layers
        size = sum(layer.size for layer in layers)
        expected = torch.stack([layer["logits"].sigmoid().sum() for layer in layers]).sum()
        return (expected / size - self.config.density).square() * (self.config.steer * size)


def measure_samples(model: nn.Module, program: Learned, run: Run) -> dict[str, Any]:
    """Density and metric of ten samples, the ticket's the first of them, and of the mask of probabilities above 1/2.

    The metric on the test split is only reported.
    """
    rule, layers = program.rule, program.layers
    assert isinstance(rule, live.Bernoulli)
    objective = training.trial.find_objective(run.setup, run.config, model)
    passes, densities, values = layers.passes, list[float](), list[float]()

    def look() -> tuple[float, float]:
        return program.masks().density, training.evaluation.evaluate(model, run.data, "test", objective).value

    try:
        for number in range(SAMPLES):
            layers.passes = passes + number
            density, value = look()
            densities.append(density)
            values.append(value)
        rule.thresholded = True
        density, value = look()
    finally:
        layers.passes, rule.thresholded = passes, False
    return {
        "samples": {
            "number": SAMPLES,
            "density_mean": statistics.fmean(densities),
            "density_std": statistics.stdev(densities),
            "test_metric_mean": statistics.fmean(values),
            "test_metric_std": statistics.stdev(values),
        },
        "above_half": {"density": density, "test_metric": value},
    }
