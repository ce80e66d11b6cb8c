"""What the methods share that learn masks over weights that do not train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import supermask
from supermask import LearnedMask, Masks, Ticket
from supermask.live.held import program_of
from supermask.live.learned import Learned
from supermask.weights.fitting import state_of

from ..contract.flags import Config
from ..contract.method import Hook
from ..runs.loggers.tensorboard import densities
from ..runs.run import Run
from .conclude import conclude
from .loop import train_network


class MaskWatch(Hook):
    """Hook that logs densities, churn and scores once an epoch.

    What a method does in each step besides is a hook of its own, which comes first.
    """

    def __init__(self, run: Run, model: nn.Module, own: Hook | None = None) -> None:
        self.run, self.own = run, own or Hook()
        self.masks = supermask.masks_of(model)

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Those of the method."""
        return self.own.groups(model)

    def before_forward(self, step: int) -> None:
        """What the method does before a step."""
        self.own.before_forward(step)

    def is_choice(self, step: int) -> bool:
        """As the method says."""
        return self.own.is_choice(step)

    def extra_loss(self) -> Tensor | None:
        """The method's penalty."""
        return self.own.extra_loss()

    def on_step(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """What the method does after a step."""
        self.own.on_step(step, model, optimizer)

    def on_epoch(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Log densities, the share of mask entries that changed, and the scores."""
        self.own.on_epoch(step, model, optimizer)
        program = learned_program(model)
        masks = program.masks()
        self.run.log(step, {"mask/changed": masks.changed(self.masks), **densities(masks)})
        self.run.log_histograms(step, {f"scores/{name}": program.score(name) for name in masks})
        self.masks = masks

    def state_dict(self) -> dict[str, Any]:
        """The masks of the last epoch, and the method's state where it has one."""
        own = self.own.state_dict()
        return {"masks": dict(self.masks), **({"own": own} if own else {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The masks of the last epoch before a stop."""
        self.masks = Masks(state["masks"])
        self.own.load_state_dict(state.get("own", {}))


def learned_program(model: nn.Module) -> Learned:
    """The learned masks of a model that `learn_scores` has prepared."""
    program = program_of(model)
    assert isinstance(program, Learned)
    return program


def learn_scores(
    model: nn.Module,
    config: Config,
    rule: LearnedMask | None = None,
    density: float | None = None,
    score_seed: int | None = None,
) -> None:
    """Prepare a model for a method of learned scores: `supermask.learn` with the configured flags.

    Args:
        model: the model, changed in place.
        config: of the method; of `granularity`, `scaled`, `allocation` and `train_norms` what it has.
        rule: how scores become masks; edge-popup's if not given.
        density: for rules that are not exact; if not given the configured one.
        score_seed: of the scores; if not given the configured one.
    """
    flags: dict[str, Any] = {
        "granularity": "weight",
        "scaled": False,
        "allocation": "layerwise",
        "train_norms": False,
        "score_dtype": "fp32",
    }
    flags |= config.model_dump()
    supermask.learn(
        model,
        (config.density if density is None else density) if rule is None or rule.exact else density,
        program=rule,
        granularity=flags["granularity"],
        weights=config.init,
        scaled=flags["scaled"],
        allocation=flags["allocation"],
        include=config.include or None,
        exclude=config.exclude or None,
        seed=config.seeds["init"],
        score_seed=config.seeds["mask"] if score_seed is None else score_seed,
        train_norms=flags["train_norms"],
        gain=config.init_gain,
        score_dtype={"fp32": None, "bf16": torch.bfloat16}[flags["score_dtype"]],
    )


def train_scores(
    model: nn.Module,
    run: Run,
    hook: Hook | None = None,
    measure: Callable[[], dict[str, Any]] | None = None,
) -> Ticket:
    """Train the scores of a model that `supermask.learn` has prepared; its weights do not train, which is checked.

    The ticket's final state is what an evaluation sees. Its start has the same weights, with the statistics and norms
    of the beginning: those that the masks were learned for, where the search has drawn weights anew or a rule makes
    others of them.

    Args:
        model: after `learn_scores`.
        run: of which this is the only training.
        hook: what the method does in each step.
        measure: called when the training is done, for more to report.
    """
    run.rows.append(run.stage("training", lambda: fit_scores(model, run, hook, measure))["row"])
    return run.ticket


def fit_scores(
    model: nn.Module,
    run: Run,
    hook: Hook | None = None,
    measure: Callable[[], dict[str, Any]] | None = None,
    *,
    order: str = "order/0",
    keep: Callable[[Ticket], None] | None = None,
    **meta: Any,
) -> dict[str, Any]:
    """What a stage of a run does that trains scores (see `train_scores`).

    Args:
        model: after `learn_scores`.
        run: of which this is a training.
        hook: what the method does in each step.
        measure: called when the training is done, for more to report.
        order: name of the data order.
        keep: what is done with the ticket, in place of saving it as that of the run.
        meta: more for the ticket to record.
    """
    program = learned_program(model)
    draws, start = dict(program.draws), state_of(model)
    trained = train_network(model, run, hook=MaskWatch(run, model, hook), order=order)
    supermask.check(model)
    masks = supermask.masks_of(model)
    final = state_of(supermask.bake(model))
    row = {**(measure() if measure else {}), "frozen_fingerprint": program.fingerprint}
    found = conclude(
        run,
        model,
        masks,
        {**start, **{name: final[name] for name in masks}},
        trained,
        draws=draws,
        scalars={},  # the densities are logged with the last epoch
        final=final,
        gains=_gains(final, program.weights(), masks),
        keep=keep,
        frozen_fingerprint=program.fingerprint,
        **meta,
    )
    return {**found, "row": {**found["row"], **row}}


def _gains(final: Mapping[str, Tensor], frozen: Mapping[str, Tensor], masks: Masks) -> dict[str, float]:
    """For each tensor the factor that makes its kept weights of the frozen ones, where there is one but for signs."""
    gains: dict[str, float] = {}
    for name, mask in masks.items():
        made, weight = final[name][mask].abs(), frozen[name][mask].abs()
        if made.numel() == 0 or made.dtype != torch.float32 or torch.equal(made, weight) or not bool(weight[0]):
            continue
        ratio = made[0] / weight[0]
        # The quotient is rounded: of the numbers beside it one may give the products.
        near = [ratio, *(torch.nextafter(ratio, torch.full_like(ratio, end)) for end in (0.0, torch.inf))]
        found = [float(gain) for gain in near if torch.equal(weight * gain, made)]
        gains |= {name: found[0]} if found else {}
    return gains
