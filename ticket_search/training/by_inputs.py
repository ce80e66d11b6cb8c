"""What the methods share that prune trained weights by the inputs of each layer, and retrain what is left."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

import supermask
from supermask import choosing, weights

from .. import training
from ..contract.errors import RequestError, RunError
from ..contract.flags import Positive, ShapedConfig
from ..contract.method import Stage, Traits
from ..data.samples import whole_batches
from .at_init import NO_RATE, fine_tuning, group_problems, score_batches, shared, warn_of_collapse

if TYPE_CHECKING:
    from torch import nn

    from supermask import Masks, Targets, Ticket

    from ..runs.run import Run

# Each output keeps its own share, so the total is that of the rounded rows.
TRAITS = Traits(exact_density=False)


class Config(ShapedConfig):
    """The flags of the methods that prune trained weights by the inputs of each layer."""

    draws_masks: ClassVar[bool] = True
    from_checkpoint: ClassVar[bool] = True
    score: ClassVar[str] = ""
    density: float = Field(
        0.5, gt=0, le=1, allow_inf_nan=False, description="fraction of the weights of each output that is kept"
    )
    epochs: int = Field(
        12,
        ge=1,
        description="number of epochs of the dense training; with --weights there is none, and they only say at which "
        "rate its schedule would have ended",
    )
    batch_size: int = Field(60, ge=1, description="number of samples in a training step")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("adam", description="optimizer that updates the weights")
    lr: Positive = Field(1.2e-3, description="learning rate after warmup, which the schedule may lower")
    samples_per_class: int = Field(
        10, ge=1, description="training samples of each class (or for each float target) that the layers are shown"
    )
    retrain_epochs: int = Field(
        0, ge=0, description="epochs of fine-tuning after pruning; 0 leaves the weights as pruning gives them"
    )
    retrain_lr: Positive | None = Field(
        None, description="constant learning rate of fine-tuning; the last rate of the training if not given"
    )

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """Fine-tuning has a rate and a length; single weights or N of every M are ranked."""
        found = super().problems(given)
        if self.retrain_lr is not None and not self.retrain_epochs:
            found.append("--retrain-lr goes with --retrain-epochs above 0")
        if self.retrain_epochs and self.schedule == "cosine" and self.retrain_lr is None:
            found.append(NO_RATE)
        if self.granularity != "weight" and self.group_density is None:
            found.append(f"--granularity {self.granularity}: expected weight, or N:M with N below M, as 2:4")
        return found


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """The dense training, which a checkpoint (`--weights`) has behind it, then the fine-tuning.

    Raises:
        RequestError: layers that the score cannot look into, that keep nothing, or that have no groups of N:M.
    """
    if problems := group_problems(config, targets):
        raise RequestError(problems)
    try:
        choosing.calibration.shares_of(config.score, config.density, config.granularity, targets)
    except ValueError as error:
        raise RequestError(f"{config.method}: {error}") from None
    whole = 0 if config.weights else config.epochs * steps_per_epoch
    return [Stage("level-00", 1.0, whole), Stage("level-01", config.density, config.retrain_epochs * steps_per_epoch)]


def search(model: nn.Module, run: Run) -> Ticket:
    """Train, or take the weights of a checkpoint; prune them layer after layer; fine-tune if that is asked.

    The dense network is level 0, the ticket level 1. It starts where its training does: from the weights that pruning
    has left if they are fine-tuned, else from those that the dense training began with.
    """
    config = run.config
    assert isinstance(config, Config)
    per_epoch = whole_batches(run.data.train_size, config.batch_size)
    whole = config.epochs * per_epoch
    initial = weights.fitting.state_of(model)

    def train_dense() -> dict[str, Any]:
        # A checkpoint was trained elsewhere: all of the schedule lies behind it.
        trained = training.loop.train_network(model, run, start=whole if config.weights else 0)
        everything = training.conclude.keep_all(model, config)
        found = training.conclude.conclude(run, model, everything, initial, trained, level=0)
        return {**found, "trained": weights.fitting.state_of(model)}

    dense = run.stage("level-00", train_dense)
    run.rows.append(dense["row"])

    def prune() -> dict[str, Any]:
        weights.fitting.set_state(model, dense["trained"])
        masks = _prune(model, config, run)
        warn_of_collapse(model, masks, run)
        return {"masks": dict(masks), "pruned": weights.fitting.state_of(model)}

    chosen = run.stage("pruning", prune)

    def fine_tune() -> dict[str, Any]:
        weights.fitting.set_state(model, chosen["pruned"])
        masks = supermask.Masks(chosen["masks"])
        supermask.hold(model, masks)
        start = chosen["pruned"] if config.retrain_epochs else initial
        if config.retrain_epochs:
            again = fine_tuning(config, config.retrain_epochs, config.retrain_lr, per_epoch)
            trained = training.loop.train_network(model, run, config=again, order="order/1")
        else:
            trained = training.loop.train_network(model, run, start=whole, order="order/1")
        supermask.check(model)
        found = training.conclude.conclude(run, model, masks, start, trained, level=1)
        found["row"] |= {"retrained": True}
        return found

    run.rows.append(run.stage("level-01", fine_tune)["row"])
    ticket = run.load_level(1)
    run.save_ticket(ticket)
    return ticket


def _prune(model: nn.Module, config: Config, run: Run) -> Masks:
    """Prune in place, with a bar over the layers.

    Raises:
        RunError: a layer that no sample reaches, or inputs that are no numbers.
    """
    objective = training.trial.find_objective(run.setup, config, model)
    batches = shared(list(score_batches(run.data, config, config.samples_per_class, objective)), config.score)
    globs = {"include": config.include or None, "exclude": config.exclude or None}
    layers = len(supermask.find_targets(model, **globs))
    try:
        with run.progress.count(f"pruning by {config.score}", layers) as one_more:
            return choosing.calibration.prune_in_order(
                model, config.density, choosing.pruning.BY_INPUTS[config.score], config.granularity,
                batches=batches, seed=config.seeds["mask"], one_more=one_more, **globs,
            )  # fmt: skip
    except ValueError as error:
        raise RunError(f"{config.method}: {error}") from None
