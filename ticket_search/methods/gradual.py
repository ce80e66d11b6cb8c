"""Prune while training: now and then the smallest weights, many at first, few in the end.

Zhu & Gupta, To Prune, or Not to Prune: Exploring the Efficacy of Pruning for Model Compression, 2017.
"""

from __future__ import annotations

import copy
from collections.abc import Set
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

import supermask
from supermask import choosing, live, weights

from .. import runs, training
from ..contract.errors import RequestError
from ..contract.flags import Duration, is_zero, steps_of
from ..contract.method import Hook, Stage, Traits
from ..data.samples import whole_batches
from ..training.at_init import PruningConfig, check_pruning, choose_masks, example_of, warn_of_collapse

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from supermask import Masks, Targets, Ticket

    from ..runs.run import Run

WHEN = "When a sparse network is wanted for the price of one training, and no winning ticket."

TRAITS = Traits(changes_masks=True)


class Config(PruningConfig):
    """Flags of gradual pruning."""

    method: str = "gradual"
    prune_from: Duration = Field("0", description="step at which pruning begins, as 0, 500it or 2ep")
    prune_until: Duration | None = Field(
        None, description="step at which the density asked is reached; half of the training if not given"
    )
    prune_every: Duration | None = Field(
        None, description="steps between two prunings; 20 prunings in all if not given"
    )
    fall: Literal["cubic", "exponential", "linear"] = Field("cubic", description="curve by which the density falls")

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """Pruning takes steps."""
        found = super().problems(given)
        if self.group_density is not None:
            found.append(f"--granularity {self.granularity} has one density, gradual pruning goes through many")
        if self.prune_every is not None and is_zero(self.prune_every):
            found.append("--prune-every 0: expected steps or epochs, like 100it or 1ep")
        return found


def prune_steps(config: Config, steps_per_epoch: int) -> tuple[int, list[int]]:
    """Where pruning begins, and the steps after which weights are dropped: after the last the density is that asked.

    Raises:
        RequestError: pruning that would end before it begins, or not before the training's end.
    """
    total = config.epochs * steps_per_epoch
    first = steps_of(config.prune_from, steps_per_epoch)
    last = total // 2 if config.prune_until is None else steps_of(config.prune_until, steps_per_epoch)
    if not first < last < total:
        raise RequestError(
            f"pruning from step {first} until step {last}: expected it to end after that and before the training's "
            f"{total} steps: --prune-from, --prune-until"
        )
    every = max(1, (last - first) // 20)
    if config.prune_every is not None:
        every = steps_of(config.prune_every, steps_per_epoch)
    return first, [*range(first + every, last, every), last]


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """Training while pruning, then training of what is left.

    Raises:
        RequestError: a granularity or density that does not fit, or pruning steps outside of the training.
    """
    check_pruning(config, targets)
    last = prune_steps(config, steps_per_epoch)[1][-1]
    rest = config.epochs * steps_per_epoch - last
    return [Stage("pruning", 1.0, last), Stage("training", config.density, rest)]


def search(model: nn.Module, run: Run) -> Ticket:
    """Train and prune, then train on, with the optimizer's moments as they were."""
    config, data = run.config, run.data
    assert isinstance(config, Config)
    first, steps = prune_steps(config, whole_batches(data.train_size, config.batch_size))
    start = weights.fitting.state_of(model)

    def prune() -> dict[str, Any]:
        hook = Pruner(config, first, steps, model, example_of(data), run)
        trained = training.loop.train_network(model, run, hook=hook)
        return {"steps": trained.steps, "model": weights.fitting.state_of(model), **hook.state_dict()}

    pruned = run.stage("pruning", prune)
    masks = supermask.Masks(pruned["masks"], pruned["uncounted"])
    weights.fitting.set_state(model, pruned["model"])
    warn_of_collapse(model, masks, run)
    _replace_masks(model, masks)

    def work() -> dict[str, Any]:
        moments = pruned["optimizer"]
        trained = training.loop.train_network(model, run, start=steps[-1], optimizer_state=moments)
        supermask.check(model)
        return training.conclude.conclude(run, model, masks, start, trained)

    run.rows.append(run.stage("training", work)["row"])
    return run.ticket


class Pruner(Hook):
    """Hook that drops weights at its steps and ends the training at the last of them."""

    def __init__(
        self, config: Config, first: int, steps: list[int], model: nn.Module, example: Tensor, run: Run
    ) -> None:
        self.config, self.first, self.steps, self.run = config, first, steps, run
        self.model, self.example = model, example
        self.masks: Masks | None = None
        self.optimizer: dict[str, Any] = {}

    def on_step(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Drop the smallest weights where it is time to."""
        if step not in self.steps:
            return
        done = (step - self.first) / (self.steps[-1] - self.first)
        density = (
            choosing.schedules.SCHEDULES[self.config.fall](done, self.config.density, 1.0)
            if done < 1
            else self.config.density
        )
        now = self.config.model_copy(update={"density": density})
        before = self.masks
        self.masks = choose_masks(model, now, "magnitude", self.run, previous=before, example_input=self.example)
        _replace_masks(model, self.masks)
        changed = {} if before is None else {"mask/changed": self.masks.changed(before)}
        self.run.log(step, {**changed, **runs.loggers.tensorboard.densities(self.masks)})
        if step == self.steps[-1]:
            self.optimizer = copy.deepcopy(optimizer.state_dict())

    def done(self) -> bool:
        """Whether the density asked is reached."""
        return bool(self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """The masks, and the optimizer's state at the end."""
        masks, uncounted = ({}, []) if self.masks is None else (dict(self.masks), sorted(self.masks.uncounted))
        return {"masks": masks, "uncounted": uncounted, "optimizer": self.optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The masks of a stopped training, held again."""
        if state["masks"]:
            self.masks = supermask.Masks(state["masks"], state["uncounted"])
            _replace_masks(self.model, self.masks)
        self.optimizer = state["optimizer"]


def _replace_masks(model: nn.Module, masks: Masks) -> None:
    if live.program.program_of(model) is not None:
        supermask.detach(model)
    supermask.hold(model, masks)
