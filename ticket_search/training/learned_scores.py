"""What the methods share that train scores over frozen weights."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

import supermask
from supermask import LearnedMask, Masks, Ticket
from supermask.live.held import program_of
from supermask.live.learned import Learned

from ..contract.errors import RunError
from ..contract.flags import Config
from ..contract.method import Hook
from ..runs.run import Run
from ..runs.tensorboard import densities
from .conclude import train_once


class MaskWatch(Hook):
    """Hook that logs densities, churn and scores once an epoch, and refuses a network that its masks have cut."""

    def __init__(self, run: Run, model: nn.Module) -> None:
        self.run = run
        self.masks = supermask.masks_of(model)

    def on_epoch(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Log densities, the share of mask entries that changed, and the scores.

        Raises:
            RunError: a tensor keeps none of its weights.
        """
        try:
            supermask.check(model)
        except ValueError as error:
            raise RunError(f"{error} (at step {step})") from None
        program = program_of(model)
        assert isinstance(program, Learned)
        masks = program.masks()
        self.run.log(step, {"mask/changed": masks.changed(self.masks), **densities(masks)})
        self.run.log_histograms(step, {f"scores/{name}": program.score(name) for name in masks})
        self.masks = masks

    def state_dict(self) -> dict[str, Any]:
        """The masks of the last epoch."""
        return {"masks": dict(self.masks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The masks of the last epoch before a stop."""
        self.masks = Masks(state["masks"])


def learn_scores(model: nn.Module, config: Config, rule: LearnedMask | None = None) -> None:
    """Prepare a model for a method of learned scores: `supermask.learn` with the configured flags.

    Args:
        model: the model, changed in place.
        config: of the method; of `granularity`, `scaled`, `allocation` and `train_norms` what it has.
        rule: how scores become masks; edge-popup's if not given.
    """
    flags: dict[str, Any] = {
        "granularity": "weight",
        "scaled": False,
        "allocation": "layerwise",
        "train_norms": False,
    }
    flags |= config.model_dump()
    supermask.learn(
        model,
        config.density,
        program=rule,
        granularity=flags["granularity"],
        weights=config.init,
        scaled=flags["scaled"],
        allocation=flags["allocation"],
        include=config.include or None,
        exclude=config.exclude or None,
        seed=config.seeds["init"],
        score_seed=config.seeds["mask"],
        train_norms=flags["train_norms"],
    )


def train_scores(model: nn.Module, run: Run) -> Ticket:
    """Train the scores of a model that `supermask.learn` has prepared; its weights stay frozen, which is checked."""
    program = program_of(model)
    assert isinstance(program, Learned)
    # The densities are logged with the last epoch.
    return train_once(
        model,
        run,
        hook=MaskWatch(run, model),
        draws=program.draws,
        scalars={},
        row={"frozen_fingerprint": program.fingerprint},
        frozen_fingerprint=program.fingerprint,
    )
