"""The metrics: what each adds up over batches, on the device, and the value that follows from the sums.

A state is a tensor in which everything seen so far is summed up; nothing here waits for the device but `value`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ..contract.errors import RequestError
from ..contract.metric import METRICS, Metric
from ..data.checks import IGNORED


@dataclass(frozen=True)
class Batch:
    """What a metric sees of a batch.

    outputs: the network's main output, with the classes in dimension 1 where targets are class numbers; None where the
        network gives a loss only.
    targets: as the data has them.
    loss: the mean loss over the targets that count.
    weight: how many count.
    """

    outputs: Tensor | None
    targets: Any
    loss: Tensor
    weight: Tensor | int


class Measure(Protocol):
    """How a metric is computed."""

    metric: Metric
    # Whether a value is that of the sums over samples: then the batches of many steps are added at once.
    joins: bool

    def start(self, device: torch.device) -> Tensor:
        """The state before the first batch."""
        ...

    def add(self, state: Tensor, batch: Batch) -> Tensor:
        """The state with a batch."""
        ...

    def merge(self, state: Tensor, other: Tensor) -> Tensor:
        """The state of two sets of batches, from the states of each."""
        ...

    def value(self, state: Tensor) -> float:
        """The metric of all batches."""
        ...


def wide(device: torch.device) -> torch.dtype:
    """The dtype that sums are kept in: Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


class _Sums(ABC):
    """The base of metrics that are the mean of something: the state is its sum and the number of its terms."""

    joins = True

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    def start(self, device: torch.device) -> Tensor:
        """Nothing summed yet."""
        return torch.zeros(2, device=device, dtype=wide(device))

    def add(self, state: Tensor, batch: Batch) -> Tensor:
        """Add the sum of a batch and its number of terms."""
        total, number = self.sums(batch)
        terms = number if isinstance(number, Tensor) else torch.full_like(total, number)
        return state + torch.stack([total.to(state.dtype), terms.to(state.dtype)])

    @abstractmethod
    def sums(self, batch: Batch) -> tuple[Tensor, Tensor | int]:
        """The sum of a batch and its number of terms."""

    def merge(self, state: Tensor, other: Tensor) -> Tensor:
        """The sums of both."""
        return state + other

    def value(self, state: Tensor) -> float:
        """The mean; NaN of nothing."""
        total, number = state.tolist()
        return total / number if number else math.nan


class Accuracy(_Sums):
    """Percent of the targets that count whose class has the largest output; of labels, those on their side of 0."""

    def __init__(self) -> None:
        super().__init__(METRICS["accuracy"])

    def sums(self, batch: Batch) -> tuple[Tensor, Tensor | int]:
        """How many are right, and how many there are."""
        outputs, targets = main_of(batch, self.metric), batch.targets
        if targets.is_floating_point():
            right = (outputs > 0) == (targets > 0.5)
            return right.sum(), right.numel()
        right = outputs.argmax(1) == targets
        return right.sum(), batch.weight

    def value(self, state: Tensor) -> float:
        """In percent."""
        right, number = state.tolist()
        return 100.0 * right / number if number else math.nan


class Perplexity(_Sums):
    """e to the mean loss of a target."""

    def __init__(self) -> None:
        super().__init__(METRICS["perplexity"])
        self.joins = False

    def sums(self, batch: Batch) -> tuple[Tensor, Tensor | int]:
        """The losses of all targets that count, and their number."""
        # In the type of the state already: a product of float32 would lose digits of a large number of tokens.
        return batch.loss.detach().reshape(()).to(wide(batch.loss.device)) * batch.weight, batch.weight

    def value(self, state: Tensor) -> float:
        """The exponential of the mean; infinite where that is too large for a number."""
        mean = super().value(state)
        return math.exp(mean) if not mean > 700 else math.inf


class Error(_Sums):
    """The mean over all numbers of the squared error (mse) or of its absolute value (mae)."""

    def __init__(self, name: str) -> None:
        super().__init__(METRICS[name])
        self.squared = name == "mse"

    def sums(self, batch: Batch) -> tuple[Tensor, Tensor | int]:
        """The sum over samples and outputs, and their number."""
        outputs, kind = main_of(batch, self.metric), wide(batch.loss.device)
        apart = outputs.to(kind) - batch.targets.to(kind)
        return (apart.square() if self.squared else apart.abs()).sum(), apart.numel()


class R2:
    """1 minus the squared error over the variance of the targets, of each output; the mean over the outputs.

    The state is [4, outputs]: number, mean, squared deviations from it, squared errors. Means are joined as Chan, Golub
    and LeVeque do (Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979): sums of squares
    would lose the variance of targets that lie far from 0.
    """

    metric = METRICS["r2"]
    joins = True

    def start(self, device: torch.device) -> Tensor:
        """No sample yet."""
        return torch.zeros(4, 1, device=device, dtype=wide(device))

    def add(self, state: Tensor, batch: Batch) -> Tensor:
        """The state with the samples of a batch."""
        outputs, targets = (
            tensor.to(state.dtype).reshape(len(tensor), -1) for tensor in (main_of(batch, self.metric), batch.targets)
        )
        here, mean = torch.full_like(targets[0], len(targets)), targets.mean(0)
        squares, errors = (targets - mean).square().sum(0), (outputs - targets).square().sum(0)
        return self.merge(state, torch.stack([here, mean, squares, errors]))

    def merge(self, state: Tensor, other: Tensor) -> Tensor:
        """The state of two sets of samples."""
        before, mean_before, squares_before, errors_before = state
        here, mean, squares, errors = other
        whole, apart = before + here, mean - mean_before
        squares = squares_before + squares + apart.square() * before * here / whole.clamp(min=1)
        mean = mean_before + apart * here / whole.clamp(min=1)
        return torch.stack([whole, mean, squares, errors_before + errors])

    def value(self, state: Tensor) -> float:
        """The mean over outputs. An output whose targets are all one number has 1 where it is met, else 0."""
        _, _, squares, errors = state
        found = torch.where(squares > 0, 1 - errors / squares.clamp(min=torch.finfo(state.dtype).tiny), errors == 0)
        return float(found.to(state.dtype).mean())


class Own(_Sums):
    """The mean of a function of one's own, which gives a number for each sample."""

    def __init__(self, metric: Metric, function: Callable[[Any, Any], Tensor]) -> None:
        super().__init__(metric)
        self.function = function

    def sums(self, batch: Batch) -> tuple[Tensor, Tensor | int]:
        """The sum over the samples, and their number."""
        found = self.function(main_of(batch, self.metric), batch.targets)
        return found.sum(), found.numel()


def main_of(batch: Batch, metric: Metric) -> Tensor:
    """The main output of a batch.

    Raises:
        RequestError: the network gives a loss only.
    """
    if batch.outputs is None:
        raise RequestError(
            f"the metric {metric.name} is of outputs, and the network gives a loss only: expected logits beside it, or "
            "--metric perplexity"
        )
    return batch.outputs


def make_measure(name: str) -> Measure:
    """The metric of a name in METRICS."""
    if name in ("mse", "mae"):
        return Error(name)
    makers: dict[str, Callable[[], Measure]] = {"accuracy": Accuracy, "r2": R2, "perplexity": Perplexity}
    return makers[name]()


def cross_entropy(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The mean cross-entropy over the targets that count; 0 where none does.

    Args:
        outputs: logits [n, classes, ...].
        targets: class numbers [n, ...], -100 where none counts.
        label_smoothing: as in PyTorch.
    """
    if targets.dim() == 1:
        return functional.cross_entropy(outputs, targets, label_smoothing=label_smoothing)
    total = functional.cross_entropy(outputs, targets, reduction="sum", label_smoothing=label_smoothing)
    return total / (targets != IGNORED).sum().clamp(min=1)


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean squared error."""
    return functional.mse_loss(outputs, targets.to(outputs.dtype))


def bce(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean binary cross-entropy of logits; targets in [0, 1]."""
    return functional.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))
