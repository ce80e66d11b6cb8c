"""Train, prune once by any score, then rewind and train again, or fine-tune.

Renda, Frankle & Carbin, Comparing Rewinding and Fine-tuning in Neural Network Pruning, 2020.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

import supermask
from supermask import weights

from .. import training
from ..contract.declared import OWN_SCORES, ScoreName
from ..contract.errors import RequestError
from ..contract.flags import Duration, Positive, steps_of
from ..contract.method import Stage
from ..data.samples import whole_batches
from ..training.at_init import TRAITS as TRAITS
from ..training.at_init import (
    PruningConfig,
    check_own_score,
    check_pruning,
    choose_masks,
    evidence_of,
    fine_tuning,
    retraining_problems,
    score_problems,
    warn_of_collapse,
)

if TYPE_CHECKING:
    from torch import nn

    from supermask import Targets, Ticket

    from ..runs.run import Run

WHEN = "When several trainings are too many: one dense training, one cut, one retraining."


class Config(PruningConfig):
    """Flags of one-shot pruning."""

    draws_masks: ClassVar[bool] = True
    method: str = "one-shot"
    score: Annotated[str, ScoreName(tuple(name for name in OWN_SCORES if name != "l1"))] = Field(
        "magnitude",
        description="score by which the trained weights are ranked; magnitude-increase and the like compare them with "
        "those that are rewound to, or without rewinding with those of the start",
    )
    samples_per_class: int = Field(
        10, ge=1, description="training samples of each class on which scores of gradients are measured"
    )
    then: Literal["rewind", "lr-rewind", "fine-tune"] = Field(
        "rewind",
        description="after pruning: rewind weights and learning rate, or the rate only, or fine-tune at a constant one",
    )
    rewind: Duration = Field("0", description="training step to rewind to, as 0, 500it or 2ep")
    retrain_epochs: int | None = Field(
        None,
        ge=0,
        description="epochs of fine-tuning; those of the training if not given; with 0 the weights stay as they were "
        "when they were pruned",
    )
    retrain_lr: Positive | None = Field(
        None, description="learning rate of fine-tuning; the last rate of the training if not given"
    )

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """Rewinding has a step, fine-tuning a rate and a length."""
        found = super().problems(given) + retraining_problems(self, given) + score_problems(self, given)
        if self.rewind.endswith("ep") and steps_of(self.rewind, 1) >= self.epochs:
            found.append(f"--rewind {self.rewind}: expected less than the {self.epochs} epochs of a training")
        return found


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """The dense training, then that of what is left.

    Raises:
        RequestError: a granularity or density that does not fit, or a rewind point at or after the end of training.
    """
    check_pruning(config, targets)
    whole, rewind = config.epochs * steps_per_epoch, steps_of(config.rewind, steps_per_epoch)
    if rewind >= whole:
        raise RequestError(f"--rewind {config.rewind}: expected less than the {whole} steps of a training")
    again = _retraining(config) * steps_per_epoch if config.then == "fine-tune" else whole - rewind
    return [Stage("level-00", 1.0, whole), Stage("level-01", config.density, again)]


def _retraining(config: Config) -> int:
    """The epochs of fine-tuning."""
    return config.epochs if config.retrain_epochs is None else config.retrain_epochs


def search(model: nn.Module, run: Run) -> Ticket:
    """Train, prune, train again; the dense network is level 0, the ticket level 1."""
    config, data = run.config, run.data
    assert isinstance(config, Config)
    per_epoch = whole_batches(data.train_size, config.batch_size)
    rewind = steps_of(config.rewind, per_epoch)
    initial = weights.fitting.state_of(model)

    def train_dense() -> dict[str, Any]:
        hook = training.rewinding.RewindPoint(rewind)
        check_own_score(model, config, run)
        trained = training.loop.train_network(model, run, hook=hook)
        everything = training.conclude.keep_all(model, config)
        if hook.tensors and config.then == "rewind":
            # What a control of the ticket needs: the weights under the dropped ones too.
            states = {"start": supermask.make_state(initial, everything, run.setup.draws)}
            states["final"] = supermask.make_state(hook.tensors, everything)
            run.save_rewind_point(supermask.Ticket(everything, states, {"step": rewind}))
        result = training.conclude.conclude(run, model, everything, initial, trained, level=0)
        return {**result, "trained": weights.fitting.state_of(model), "point": hook.tensors or initial}

    dense = run.stage("level-00", train_dense)
    run.rows.append(dense["row"])

    def retrain() -> dict[str, Any]:
        weights.fitting.set_state(model, dense["trained"])
        start = dense["point"] if config.then == "rewind" else initial
        masks = choose_masks(model, config, config.score, run, **evidence_of(model, config, run, start))
        warn_of_collapse(model, masks, run)
        start = dense["point"] if config.then == "rewind" else dense["trained"]
        weights.fitting.set_state(model, start)
        supermask.hold(model, masks)
        if config.then == "fine-tune":
            again = fine_tuning(config, _retraining(config), config.retrain_lr, per_epoch)
            trained = training.loop.train_network(model, run, config=again, order="order/1")
        else:
            trained = training.loop.train_network(model, run, start=rewind, order="order/1")
        supermask.check(model)
        rewound: dict[str, Any] = {"rewound_to": rewind} if rewind and config.then != "fine-tune" else {}
        result = training.conclude.conclude(run, model, masks, start, trained, level=1, **rewound)
        result["row"] |= {"retrained": True} if config.then != "rewind" else {}
        return result

    run.rows.append(run.stage("level-01", retrain)["row"])
    ticket = run.load_level(1)
    run.save_ticket(ticket)
    return ticket
