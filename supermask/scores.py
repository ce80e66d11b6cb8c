"""How good each weight is: functions `(model, targets, seed) -> {name: tensor of its shape}`, the highest are kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .inits import uniform
from .targets import Targets, find_named

Scores = dict[str, Tensor]
Score = Callable[[nn.Module, Targets, int], Scores]


def magnitude(model: nn.Module, targets: Targets, seed: int = 0) -> Scores:
    """|w| (Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015)."""
    return {name: target.parameter.detach().abs() for name, target in targets.items()}


def random(model: nn.Module, targets: Targets, seed: int = 0) -> Scores:
    """Uniform numbers in (0, 1) that depend on `seed` and the tensor's name only: the control of every other score."""
    return {
        name: torch.from_numpy(uniform(target.size, seed, "random/" + name))
        .reshape(target.parameter.shape)
        .to(target.parameter.device, torch.float32)
        for name, target in targets.items()
    }


SCORES: dict[str, Score] = {"magnitude": magnitude, "random": random}


def find_score(score: str | Score) -> Score:
    """The score of a name, or the function itself.

    Raises:
        ValueError: an unknown name.
    """
    return find_named("score", score, SCORES) if isinstance(score, str) else score
