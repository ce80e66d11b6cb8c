"""Train a network for its first steps, as its whole training would, and keep it at some of them.

Frankle, Dziugaite, Roy & Carbin, Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

import supermask
from supermask import weights

from .. import training
from ..contract.flags import Config as SharedConfig
from ..contract.flags import Words, steps_of
from ..contract.method import Hook, Stage, Traits
from ..data.samples import whole_batches

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from supermask import Masks, Targets, Ticket

    from ..runs.run import Run


class Config(SharedConfig):
    """The flags of the whole training, and at which of its steps the network is kept."""

    method: str = "beginning"
    density: float = Field(1.0, ge=1, le=1, description="always 1: every weight is kept")
    keep: Words = Field((), description="the steps at which the network is kept, as 100it,400it; the last is the end")

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """There is a step to end at."""
        return super().problems(given) + ([] if self.keep else ["--keep: expected steps, as 100it,400it"])


TRAITS = Traits(dense=True)
WHEN = "For `ticket connect`, whose networks share their first steps."


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """One training, up to the last step that is kept."""
    return [Stage("training", 1.0, max(_steps(config, steps_per_epoch)))]


def kept_at(folder: Path, step: int) -> Path:
    """The file of the network after so many steps, in the folder of such a run."""
    return folder / f"step-{step:06d}.safetensors"


def search(model: nn.Module, run: Run) -> Ticket:
    """Train `model` up to the last step that is kept, with the schedule of the whole training."""
    config = run.config
    assert isinstance(config, Config)
    masks = training.conclude.keep_all(model, config)
    per_epoch = whole_batches(run.data.train_size, config.batch_size)
    hook = _Keeping(_steps(config, per_epoch), masks, run.path)
    return training.conclude.train_once(model, run, masks, hook=hook)


def _steps(config: Config, steps_per_epoch: int) -> list[int]:
    return [steps_of(word, steps_per_epoch) for word in config.keep]


class _Keeping(Hook):
    """Writes the network at some steps, and ends the training with the last of them."""

    def __init__(self, steps: list[int], masks: Masks, folder: Path) -> None:
        self.steps, self.masks, self.folder = steps, masks, folder
        self.step = 0

    def on_step(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Write the network. A training that is taken up before this step writes the same again."""
        self.step = step
        if step in self.steps:
            state = supermask.make_state(weights.fitting.state_of(model), self.masks)
            ticket = supermask.Ticket(self.masks, {"final": state}, {"step": step})
            supermask.save(ticket, kept_at(self.folder, step), overwrite=True)

    def done(self) -> bool:
        """Whether the last step has been kept."""
        return self.step >= max(self.steps)

    def state_dict(self) -> dict[str, Any]:
        """The step."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The step of a stopped training."""
        self.step = state["step"]
