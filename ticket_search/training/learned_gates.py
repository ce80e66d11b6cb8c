"""Gates that are learned over weights: what steers them to the density that is asked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import supermask
from supermask import Ticket
from supermask.live.gates import Categorical, GumbelSigmoid, HardConcrete
from supermask.live.held import program_of
from supermask.live.learned import Learned

from ..contract.flags import Config
from ..runs.run import Run
from .conclude import train_once
from .learned_scores import MaskWatch, learn_scores

# Of the penalty's strength, what a step adds to a multiplier for the whole of the weights too many.
ASCENT = 0.01


class Steering(MaskWatch):
    """Hook that adds what the gates cost to the loss: multiplier * excess + penalty / 2 * excess^2.

    The excess is the expected density less the one asked, of each layer, or of all of them together; the multipliers
    rise with it from step to step. Where the gates are categorical nothing is in excess.

    Source: Wang et al., Structured Pruning of Large Language Models, 2020 (a Lagrangian for hard-concrete gates).
    """

    def __init__(self, run: Run, model: nn.Module, penalty: float, lr: float) -> None:
        super().__init__(run, model)
        program = program_of(model)
        assert isinstance(program, Learned)
        self.program, self.penalty, self.lr = program, penalty, lr
        count = 1 if program.layers.allocation == "global" else len(program.layers)
        self.multipliers = torch.zeros(count, device=program.layers[0].weight.device)
        self.excess = torch.zeros_like(self.multipliers)

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The logits, at a rate of their own and without weight decay."""
        logits = [layer["logits"] for layer in self.program.layers]
        return [{"params": logits, "lr": self.lr, "weight_decay": 0.0}]

    def extra_loss(self) -> Tensor | None:
        """What the gates cost."""
        rule, layers = self.program.rule, self.program.layers
        if not isinstance(rule, (HardConcrete, GumbelSigmoid)):
            return None
        means = torch.stack([rule.expected(layer["logits"]).mean() for layer in layers])
        if layers.allocation == "global":
            sizes = torch.tensor([layer.size for layer in layers], device=means.device)
            means = ((means * sizes).sum() / sizes.sum())[None]
        excess = means - (self.program.density or 0.0)
        self.excess = excess.detach()
        cost: Tensor = (self.multipliers * excess + self.penalty / 2 * excess.square()).sum()
        return cost

    def on_step(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Raise the multipliers of what is too dense, lower those of what is too sparse."""
        self.multipliers = self.multipliers + ASCENT * self.penalty * self.excess

    def state_dict(self) -> dict[str, Any]:
        """The multipliers too."""
        return {**super().state_dict(), "multipliers": self.multipliers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The multipliers of before a stop."""
        super().load_state_dict(state)
        self.multipliers = state["multipliers"].to(self.multipliers.device)


def learn_gates(model: nn.Module, config: Config, gate: str, frozen: bool, begin: Any, steps: int) -> None:
    """Put gates on a model whose weights are there already.

    Args:
        model: changed in place.
        config: of the method.
        gate: `hard-concrete`, `gumbel-sigmoid` or `categorical`.
        frozen: leave the weights as they are.
        begin: `magnitude` or `random`.
        steps: of the training, over which the schedules of categorical masks go.
    """
    rule: HardConcrete | GumbelSigmoid | Categorical
    if gate == "categorical":
        rule = Categorical(steps, frozen=frozen, begin=begin)
    else:
        rule = (HardConcrete if gate == "hard-concrete" else GumbelSigmoid)(frozen=frozen, begin=begin)
    learn_scores(model, config.model_copy(update={"init": "keep"}), rule)


def train_gates(model: nn.Module, run: Run, penalty: float, lr: float) -> Ticket:
    """Train the gates of a model, and its weights unless they are frozen, which is checked then."""
    start = supermask.weights.fitting.state_of(model)
    program = program_of(model)
    assert isinstance(program, Learned)
    frozen: dict[str, Any] = {"frozen_fingerprint": program.fingerprint} if program.rule.frozen else {}
    hook = Steering(run, model, penalty, lr)
    return train_once(model, run, hook=hook, start=start, scalars={}, row=frozen, **frozen)
