"""What is minimized and what is reported: cross-entropy and accuracy, or functions of one's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from ..contract.flags import Config
from ..data.factories import find_factory

Measure = Callable[[Tensor, Tensor], Tensor]


def is_right(logits: Tensor, targets: Tensor) -> Tensor:
    """1 for each sample whose largest logit is its class, else 0: [n] from logits [n, classes] and targets [n]."""
    return (logits.argmax(1) == targets).float()


@dataclass(frozen=True)
class Objective:
    """`loss(outputs, targets)` gives a mean over samples; `score(outputs, targets)` one number in [0, 1] per sample."""

    loss: Measure = functional.cross_entropy
    score: Measure = is_right
    label_smoothing: float = 0.0

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss that is minimized: with label smoothing, which evaluation goes without."""
        if self.label_smoothing:
            return functional.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)
        return self.loss(outputs, targets)


CLASSIFICATION = Objective()


def make_objective(config: Config) -> Objective:
    """The configured objective.

    Raises:
        RequestError: a loss or a metric that cannot be loaded.
    """
    return Objective(
        find_factory(config.loss, config.leaves) if config.loss else functional.cross_entropy,
        find_factory(config.metric, config.leaves) if config.metric else is_right,
        config.label_smoothing,
    )
