"""IteRand: edge-popup by raw scores, whose dropped weights are now and then drawn anew.

Chijiwa et al., Pruning Randomly Initialized Neural Networks with Iterative Randomization, 2021.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Any

from pydantic import Field

import supermask
from supermask import live, masks

from .. import training
from ..contract.errors import RequestError
from ..contract.flags import Duration, is_zero, steps_of
from ..contract.method import Hook, Stage, Traits
from ..data.samples import whole_batches
from ..training.random_weights import ScoresConfig, plan_scores

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from supermask import Targets, Ticket

    from ..runs.run import Run

WHEN = "When edge-popup is not accurate enough and the network cannot be made wider."

# The paper redraws 130 times in its 100 epochs of CIFAR-10: every 300 of 39,000 steps.
REDRAWS = 130


class Config(ScoresConfig):
    """Flags of IteRand."""

    method: str = "iterand"
    redraw_every: Duration | None = Field(
        None,
        description="steps after which dropped weights are drawn anew, as 300it or 1ep; if not given, 130 times in "
        "all, as often as in the paper",
    )
    redraw_share: float = Field(
        0.1,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="probability with which each dropped weight is drawn anew; with 0 none ever is",
    )

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """Weights that are kept as they came have no law to be drawn from."""
        found = super().problems(given)
        if self.init == "keep" and self.redraw_share > 0:
            found.append(
                "--init keep: weights that come with the model have no law to be drawn from anew; expected another "
                "--init, or --redraw-share 0"
            )
        if self.redraw_every is not None and is_zero(self.redraw_every):
            found.append("--redraw-every 0: expected steps or epochs, like 300it or 1ep")
        if "redraw_every" in given and self.redraw_share == 0:
            found.append("--redraw-every goes with --redraw-share above 0")
        return found


TRAITS = Traits(weights="redrawn")


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """One training of the scores.

    Raises:
        RequestError: a density that leaves a tensor without weights, a target that is no weight, or one without groups;
            weights that would never be drawn anew.
    """
    stages = plan_scores(config, targets, steps_per_epoch)
    if config.redraw_share and steps_between(config, steps_per_epoch) > stages[0].steps:
        raise RequestError(
            f"--redraw-every {config.redraw_every}: expected at most the {stages[0].steps} steps of the training"
        )
    return stages


def steps_between(config: Config, steps_per_epoch: int) -> int:
    """After how many steps dropped weights are drawn anew."""
    if config.redraw_every is None:
        return max(1, config.epochs * steps_per_epoch // REDRAWS)
    return steps_of(config.redraw_every, steps_per_epoch)


def search(model: nn.Module, run: Run) -> Ticket:
    """Learn which of the random weights of `model` to use, and draw the others anew."""
    config = run.config
    assert isinstance(config, Config)
    every = steps_between(config, whole_batches(run.data.train_size, config.batch_size))
    training.learned_scores.learn_scores(model, config, live.IteRand())
    hook = Redraws(model, every, config)
    return training.learned_scores.train_scores(
        model, run, hook, lambda: {"redrawn": {"every": every, "share": config.redraw_share}}
    )


class Redraws(Hook):
    """Hook that draws dropped weights anew after every so many steps."""

    def __init__(self, model: nn.Module, every: int, config: Config) -> None:
        self.model, self.every, self.config = model, every, config

    def on_step(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Draw some of the dropped weights anew where it is time to."""
        if self.config.redraw_share and step % self.every == 0:
            words = masks.random_numbers.random_words(1, self.config.seeds["mask"], f"redraw/{step}")
            # Half of a word: a seed is below 2^63.
            supermask.redraw(model, self.config.redraw_share, int(words[0]) >> 1)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The weights of a stopped training are there: they are the ones that must not change."""
        training.learned_scores.learned_program(self.model).freeze()
