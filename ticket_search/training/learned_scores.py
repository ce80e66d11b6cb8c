"""What the methods share that train scores over frozen weights."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

import supermask
from supermask import Masks, Ticket
from supermask.live.held import program_of
from supermask.live.learned import Learned
from supermask.weights.fitting import state_of

from ..contract.errors import RunError
from ..contract.flags import Config
from ..data.samples import Samples
from ..runs.run import Run
from ..runs.tensorboard import densities
from .conclude import conclude
from .loop import train


class MaskWatch:
    """Hook that logs densities, churn and scores once an epoch, and refuses a network that its masks have cut."""

    def __init__(self, run: Run, model: nn.Module) -> None:
        self.run = run
        self.masks = supermask.masks_of(model)

    def on_step(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Nothing: reading the masks costs a selection."""

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

    def done(self) -> bool:
        """Never: training goes to its end."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """The masks of the last epoch."""
        return {"masks": dict(self.masks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The masks of the last epoch before a stop."""
        self.masks = Masks(state["masks"])


def learn_scores(model: nn.Module, config: Config) -> None:
    """Prepare a model for a method of learned scores: `supermask.learn` with the configured flags."""
    flags = config.model_dump()
    supermask.learn(
        model,
        config.density,
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


def train_scores(model: nn.Module, data: Samples, config: Config, run: Run) -> Ticket:
    """Train the scores of a model that `supermask.learn` has prepared; its weights stay frozen, which is checked."""
    program = program_of(model)
    assert isinstance(program, Learned)
    start = state_of(model)

    def work() -> dict[str, Any]:
        trained = train(model, data, config, run, hook=MaskWatch(run, model))
        supermask.check(model)
        masks = supermask.masks_of(model)
        # The densities were logged with the last epoch.
        result = conclude(
            run, model, masks, start, trained, draws=program.draws, scalars={}, frozen_fingerprint=program.fingerprint
        )
        return {**result, "row": {**result["row"], "frozen_fingerprint": program.fingerprint}}

    run.rows.append(run.stage("training", work)["row"])
    return run.ticket
