"""Over trained weights, learn a gate for each that is soft in training and open or shut in the end.

Louizos et al., Learning Sparse Neural Networks through L0 Regularization, 2018.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from .. import training
from ..contract.errors import RequestError
from ..contract.flags import NotNegative, Positive, ShapedConfig
from ..contract.method import Stage, Traits
from ..data.samples import whole_batches
from ..training.at_init import density_problems, group_problems

if TYPE_CHECKING:
    from torch import nn

    from supermask import Targets, Ticket

    from ..runs.run import Run

WHEN = "When each layer's share should be learned with the weights, by a penalty on what is kept."

TRAITS = Traits(changes_masks=True)


class Config(ShapedConfig):
    """Flags of learned gates."""

    draws_masks: ClassVar[bool] = True
    method: str = "gates"
    epochs: int = Field(60, ge=1, description="number of epochs of training gates and weights")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("adam", description="optimizer that updates the weights")
    lr: Positive = Field(1.2e-3, description="learning rate of the weights after warmup, which the schedule may lower")
    allocation: Literal["layerwise", "global"] = Field(
        "layerwise", description="keep the same density in each tensor, or rank the gates of all of them together"
    )
    gate: Literal["hard-concrete", "gumbel-sigmoid", "categorical"] = Field(
        "hard-concrete",
        description="what a gate is in training: a number from 0 to 1; 0 or 1; or, of --granularity N:M, a mixture of "
        "all patterns of a group (MaskLLM)",
    )
    begin: Literal["magnitude", "random"] = Field(
        "magnitude", description="what the gates begin from: the magnitudes of the weights, or seeded noise"
    )
    gate_lr: Positive = Field(0.1, description="learning rate of the gates after warmup")
    penalty: NotNegative = Field(
        10.0, description="strength of the penalty that steers the expected density to the one asked"
    )
    freeze: bool = Field(False, description="leave the weights as they are, so that the gates alone learn")

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """Gates are of single weights or of N:M; categorical ones of N:M only, whose density needs no penalty."""
        found = super().problems(given)
        if self.granularity != "weight" and self.group_density is None:
            found.append(f"--granularity {self.granularity}: expected weight, or N:M with N below M, as 2:4")
        if self.gate == "categorical" and self.group_density is None:
            found.append("--gate categorical chooses N of every M weights: give --granularity, as 2:4")
        if self.gate == "categorical" and "penalty" in given:
            found.append("--penalty goes with --gate hard-concrete or gumbel-sigmoid: patterns have one density")
        if self.freeze and (idle := [name for name in ("lr", "weight_decay") if name in given]):
            flags = " and ".join("--" + name.replace("_", "-") for name in idle)
            found.append(f"--freeze leaves no weight to train: leave {flags} out, the gates have --gate-lr")
        return found


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """One training, of gates and weights.

    Raises:
        RequestError: a density that leaves a tensor without weights, or a target without groups of N:M.
    """
    if problems := group_problems(config, targets) + density_problems(config, targets):
        raise RequestError(problems)
    return [Stage("training", config.density, config.epochs * steps_per_epoch)]


def search(model: nn.Module, run: Run) -> Ticket:
    """Learn which of the weights of `model` to use, and train them along unless they are frozen."""
    config = run.config
    assert isinstance(config, Config)
    steps = config.epochs * whole_batches(run.data.train_size, config.batch_size)
    training.learned_gates.learn_gates(model, config, config.gate, config.freeze, config.begin, steps)
    return training.learned_gates.train_gates(model, run, config.penalty, config.gate_lr)
