"""Gem-Miner: learn rounded masks over random weights, and flag off the lowest now and then.

Sreenivasan et al., Rare Gems: Finding Lottery Tickets at Initialization, 2022.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Set
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from supermask import live

from .. import training
from ..contract.flags import NotNegative
from ..contract.method import Hook, Stage, Traits
from ..data.samples import whole_batches
from ..training.random_weights import RandomWeightsConfig, plan_scores

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from supermask import Targets, Ticket
    from supermask.live.layers import Layers

    from ..runs.run import Run

WHEN = "When a mask over random weights should be good as it is, and better still after a short training."

# The authors' penalties by density; between them it goes by the logarithms of both.
PENALTIES = ((0.0144, 1e-4), (0.0372, 3e-5), (0.5, 1e-8))


class Config(RandomWeightsConfig):
    """Flags of Gem-Miner."""

    method: str = "gem-miner"
    epochs: int = Field(150, ge=1, description="epochs of learning the masks")
    schedule: Literal["constant", "cosine", "step"] = Field("cosine", description="learning rate over time")
    penalty: NotNegative | None = Field(
        None,
        description="factor of the sum of all p squared that is added to the loss; if not given, by density from the "
        "authors' recipes: 1e-4 up to 0.0144, 3e-5 at 0.0372, 1e-8 from 0.5",
    )
    flag_every: int | None = Field(
        None, ge=1, description="epochs between two flaggings of the lowest; if not given, a thirtieth of all epochs"
    )
    return_unflagged: bool = Field(
        False,
        description="in the end bring back every weight that is not flagged off, as the authors do before they train "
        "them; the density asked is then met, else the rounded mask may keep fewer",
    )

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """To meet a density some epochs must end with a flagging."""
        found = super().problems(given)
        if self.density < 1 and self.rounds == 0:
            found.append(
                f"--epochs {self.epochs}: no epoch is left to flag weights off in, so the density of {self.density:g} "
                f"cannot be met; expected more than the {self.every} of --flag-every"
            )
        return found

    @property
    def every(self) -> int:
        """Epochs between two flaggings."""
        return self.flag_every or max(1, self.epochs // 30)

    @property
    def rounds(self) -> int:
        """How many flaggings there are: not before the first epoch, and none after the last."""
        return (self.epochs - 1) // self.every

    @property
    def strength(self) -> float:
        """The factor of the penalty."""
        return penalty_at(self.density) if self.penalty is None else self.penalty


TRAITS = Traits(exact_density=False, weights="frozen")


def penalty_at(density: float) -> float:
    """The penalty for a density: the authors' for theirs, between two of them on the line through the logarithms."""
    (first, most), *_, (last, least) = PENALTIES
    if density <= first:
        return most
    if density >= last:
        return least
    pairs = itertools.pairwise(PENALTIES)
    (low, high), (next_low, next_high) = next(pair for pair in pairs if pair[0][0] <= density <= pair[1][0])
    share = math.log(density / low) / math.log(next_low / low)
    return float(high * (next_high / high) ** share)


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """One training of p.

    Raises:
        RequestError: a target that is no weight, or a density that keeps none.
    """
    return plan_scores(config, targets, steps_per_epoch)


def search(model: nn.Module, run: Run) -> Ticket:
    """Learn which of the frozen weights of `model` to use."""
    config = run.config
    assert isinstance(config, Config)
    training.learned_scores.learn_scores(model, config, live.GemMiner())
    layers = training.learned_scores.learned_program(model).layers
    hook = Flags(layers, config, whole_batches(run.data.train_size, config.batch_size))

    def measure() -> dict[str, Any]:
        flagged = live.gem_miner.unflagged_density(layers)
        return {"unflagged_density": flagged, "penalty": config.strength, "flagged_every": config.every}

    return training.learned_scores.train_scores(model, run, hook, measure)


class Flags(Hook):
    """Hook with the penalty, and with a flagging after every so many epochs; what it keeps lies in the model."""

    def __init__(self, layers: Layers, config: Config, per_epoch: int) -> None:
        self.layers, self.config, self.per_epoch = layers, config, per_epoch

    def extra_loss(self) -> Tensor | None:
        """The penalty: lambda times the sum of all p squared, of those that are flagged off too."""
        import torch  # the help of this method needs none

        squares = torch.stack([layer["p"].square().sum() for layer in self.layers]).sum()
        return squares * self.config.strength

    def is_choice(self, step: int) -> bool:
        """Only networks of the last flags are compared, and only the last one where the unflagged return."""
        if self.config.return_unflagged:
            return step == self.config.epochs * self.per_epoch
        return self.config.density == 1 or step >= self.config.rounds * self.config.every * self.per_epoch

    def on_step(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """After an epoch flag off the lowest where it is time to, and after the last let the unflagged return."""
        done, rest = divmod(step, self.per_epoch)
        if rest:
            return
        if self.config.density < 1 and done < self.config.epochs and done % self.config.every == 0:
            alive = sum(int(layer["alive"].sum()) for layer in self.layers)
            rate = 1 - self.config.density ** (1 / self.config.rounds)
            live.gem_miner.flag_lowest(self.layers, math.ceil(rate * alive))
        if done == self.config.epochs and self.config.return_unflagged:
            live.gem_miner.return_unflagged(self.layers)
