"""The straight line between two trained networks: loss and error at points on it, and the barrier in between.

Frankle, Dziugaite, Roy & Carbin, Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020. Statistics of norms
estimated anew at each point: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from supermask.choosing.gradients import call
from supermask.weights.fitting import plain_state, set_state

from ..contract.metric import Metric
from ..data.samples import Samples
from ..training.evaluation import evaluate
from ..training.objective import Objective

POINTS = 30


@dataclass(frozen=True)
class Path:
    """What was measured on the test split at POINTS evenly spaced points, from one network to the other.

    errors: of accuracy 100 less its percentage; of another metric its value, or its negative where higher is better.
    losses: the mean losses.
    """

    errors: tuple[float, ...]
    losses: tuple[float, ...]


def find_barrier(values: Sequence[float]) -> float:
    """The highest value on the way less the mean of the two ends. It is never negative, as the ends are on the way."""
    return max(values) - (values[0] + values[-1]) / 2


def find_norms(model: nn.Module) -> dict[str, Any]:
    """The modules that normalize by running statistics, by name, as batch norms."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "running_mean", None), Tensor) and hasattr(module, "reset_running_stats")
    }


def measure_path(
    model: nn.Module,
    ends: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    data: Samples,
    objective: Objective,
    batch_size: int,
    *,
    estimate: bool = True,
) -> Path:
    """Loss and error of the networks between two, on the test split.

    Parameters and buffers of floats are interpolated, those that are dropped in both networks are 0 in between too. The
    running statistics of norms are not those of a trained network there: they are estimated anew at each point, ends
    included, or interpolated like the weights.

    Args:
        model: a network of this architecture on the device of the data; its tensors are overwritten.
        ends: the state dicts of the two, under plain names.
        data: what is measured on, and what statistics are estimated from.
        objective: loss and metric.
        batch_size: of the training samples from which statistics are estimated.
        estimate: whether statistics are estimated; if not, they are interpolated.
    """
    line, norms = _Line(model, ends), list(find_norms(model).values())
    plain = data.without_augmentation()
    errors, losses = [], []
    for point in numpy.linspace(0.0, 1.0, POINTS):
        line.go_to(float(point))
        if estimate and norms:
            estimate_statistics(model, norms, plain, objective, batch_size)
        found = evaluate(model, data, "test", objective)
        errors.append(error_of(found.value, objective.metric))
        losses.append(found.loss)
    return Path(tuple(errors), tuple(losses))


def error_of(value: float, metric: Metric) -> float:
    """How far off a value of the metric is: of two errors the lower is the better."""
    return 100.0 - value if metric.is_accuracy else -metric.merit(value)


@torch.no_grad()
def estimate_statistics(
    model: nn.Module, norms: Sequence[Any], data: Samples, objective: Objective, batch_size: int
) -> None:
    """Set the running statistics of norms to their means over the batches of one pass over the training samples.

    Only the norms are in training mode: nothing is dropped out.
    """
    momenta = [norm.momentum for norm in norms]
    was_training = model.training
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # of each batch the same share
            norm.train()
        for x, y in data.train_batches(numpy.arange(data.train_size), batch_size):
            call(model, objective.inputs(x, y))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(was_training)


class _Line:
    """A model that can be set to any point between two networks, by one operation for all tensors of a type."""

    def __init__(self, model: nn.Module, ends: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]) -> None:
        set_state(model, ends[1])
        set_state(model, ends[0])  # what is not a float, as a count of batches, is that of the first
        there = plain_state(model)
        kinds = {tensor.dtype for tensor in there.values() if tensor.is_floating_point()}
        named = [[name for name in there if there[name].dtype == kind] for kind in kinds]
        self.parts = [([there[name] for name in names], [_flat(end, names, there) for end in ends]) for names in named]

    @torch.no_grad()
    def go_to(self, point: float) -> None:
        """Set the model to a point: 0 is the first network, 1 the other, bit for bit."""
        for tensors, (one, other) in self.parts:
            mixed = torch.lerp(one, other, point).split([tensor.numel() for tensor in tensors])
            for tensor, values in zip(tensors, mixed, strict=True):
                tensor.copy_(values.view(tensor.shape))


def _flat(end: Mapping[str, Tensor], names: Sequence[str], there: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([end[name].to(there[name]).flatten() for name in names])
