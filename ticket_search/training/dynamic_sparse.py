"""What the methods share that train a sparse network whose masks move: a random mask, then drops and growths."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

import supermask
from supermask import masks, weights

from .. import training
from ..contract.errors import RequestError, RunError
from ..contract.flags import Duration, is_zero, steps_of
from ..contract.method import Hook, Stage, Traits
from ..data.samples import whole_batches
from .at_init import PruningConfig, check_pruning, choose_masks, choose_once, example_of, warn_of_collapse

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from supermask import Masks, Targets, Ticket

    from ..runs.run import Run

TRAITS = Traits(changes_masks=True)


class Config(PruningConfig):
    """The flags of dynamic sparse training."""

    draws_masks: ClassVar[bool] = True
    # Where a weight grows; and whether that takes the place of the optimizer's step, or follows it.
    grow: ClassVar[Literal["gradient", "random"]] = "gradient"
    instead: ClassVar[bool] = True
    allocation: Literal["global", "layerwise", "erk", "er", "balanced"] = Field(
        "erk", description="how the kept weights are shared among tensors"
    )
    granularity: str = Field("weight", description="what is kept or dropped as one: single weights only")
    regrow_every: Duration | None = Field(
        None,
        description="steps between two updates of the masks, as 100it or 1ep; if not given, 100, or fewer (at least 5) "
        "where a short training would have less than 20 updates",
    )
    regrow_until: Duration | None = Field(
        None, description="step after which the masks stay as they are; three quarters of the training if not given"
    )
    regrow_fraction: float = Field(
        0.3,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="fraction of the kept weights of each tensor that the first update drops and grows elsewhere",
    )
    regrow_fall: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="how that fraction falls to 0 until --regrow-until; constant: it does not fall"
    )

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """Masks move weight by weight, now and then."""
        found = super().problems(given)
        if self.granularity != "weight":
            found.append(
                f"--granularity {self.granularity}: expected weight; {self.method} drops and grows single weights"
            )
        if self.regrow_every is not None and is_zero(self.regrow_every):
            found.append("--regrow-every 0: expected steps or epochs, like 100it or 1ep")
        return found


def update_steps(config: Config, steps_per_epoch: int) -> tuple[int, int]:
    """The number of steps between two updates of the masks, and the step after which they stay as they are.

    Raises:
        RequestError: there is none, or none is left to train the last masks in.
    """
    total = config.epochs * steps_per_epoch
    until = total * 3 // 4 if config.regrow_until is None else steps_of(config.regrow_until, steps_per_epoch)
    # RigL spends a step on each update: a training of a few steps must not consist of them.
    every = min(100, max(5, until // 20))
    if config.regrow_every is not None:
        every = steps_of(config.regrow_every, steps_per_epoch)
    if not every <= until < total:
        raise RequestError(
            f"masks that are updated every {every} steps until step {until}: expected at least one update after the "
            f"first steps, and some of the training's {total} steps after the last: --regrow-every, --regrow-until"
        )
    return every, until


def fraction_at(config: Config, step: int, until: int) -> float:
    """The fraction of the kept weights that an update at a step drops."""
    done = step / until
    falls = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
    return config.regrow_fraction * falls[config.regrow_fall]


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """One training, sparse from its first step.

    Raises:
        RequestError: a density that keeps nothing, or updates outside of the training.
    """
    check_pruning(config, targets)
    update_steps(config, steps_per_epoch)
    return [Stage("training", config.density, config.epochs * steps_per_epoch)]


def search(model: nn.Module, run: Run) -> Ticket:
    """Draw masks at random, and train while they move.

    The ticket starts from the weights of the initialization under the last masks, as if those had been there.
    """
    config = run.config
    assert isinstance(config, Config)
    every, until = update_steps(config, whole_batches(run.data.train_size, config.batch_size))
    start = weights.fitting.state_of(model)

    def choose() -> Masks:
        return choose_masks(model, config, "random", run, example_input=example_of(run.data))

    first = choose_once(run, "drawing", choose)
    warn_of_collapse(model, first, run)
    supermask.hold(model, first)
    hook = Regrowth(config, run, model, every, until)
    row = {"regrown": {"every": every, "until": until}}
    return training.conclude.train_once(model, run, hook=hook, start=start, row=row)


class Regrowth(Hook):
    """Hook that moves the masks at its steps: RigL's in place of the optimizer's step, SET's after it."""

    def __init__(self, config: Config, run: Run, model: nn.Module, every: int, until: int) -> None:
        self.config, self.run, self.model, self.every, self.until = config, run, model, every, until

    def before_step(self, step: int, model: nn.Module, optimizer: Optimizer) -> bool:
        """Update the masks by this step's gradients where it is time to, in place of the step."""
        due = self.config.instead and self._is_due(step)
        if due:
            self._update(step, model, optimizer)
        return not due

    def on_step(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Update the masks after the step where it is time to."""
        if not self.config.instead and self._is_due(step):
            self._update(step, model, optimizer)

    def is_choice(self, step: int) -> bool:
        """Only networks of the last masks are compared."""
        return step > self.until

    def _is_due(self, step: int) -> bool:
        return step % self.every == 0 and step <= self.until

    def _update(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        words = masks.random_numbers.random_words(1, self.config.seeds["mask"], f"regrow/{step}")
        before = supermask.masks_of(model)
        try:
            after = supermask.regrow(
                model,
                fraction_at(self.config, step, self.until),
                optimizer,
                grow=self.config.grow,
                seed=int(words[0]) >> 1,
            )
        except ValueError as error:
            raise RunError(f"{error} (at step {step}); lower --lr (now {self.config.lr:g}) or add --warmup") from None
        self.run.log(step, {"mask/changed": after.changed(before)})

    def state_dict(self) -> dict[str, Any]:
        """The masks, and the weights under them: a network with the first masks would lose those that have grown."""
        held: Masks = supermask.masks_of(self.model)
        state = weights.fitting.state_of(self.model)
        return {"masks": dict(held), "uncounted": sorted(held.uncounted), "kept": {name: state[name] for name in held}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The masks of a stopped training, held again, and the weights that they keep."""
        supermask.detach(self.model)
        supermask.hold(self.model, supermask.Masks(state["masks"], state["uncounted"]))
        weights.fitting.set_state(self.model, {**weights.fitting.state_of(self.model), **state["kept"]})
