"""How good each weight is: functions `(model, targets, evidence) -> {name: tensor of its shape}`; the highest are kept.

A unit of several weights, such as a filter, has the sum of its weights' scores: `magnitude` of a filter is its L1 norm.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..masks.random_numbers import uniform
from ..masks.targets import Target, Targets, find_named, find_targets, literal_globs
from ..plugins import entry_points
from .coupling import norms_behind
from .criteria import CRITERIA
from .gradients import (
    Evidence,
    Replay,
    average,
    batches_of,
    call,
    floating_outputs,
    gradients,
    hessian_times,
    over_all,
    wide,
    zeros_for,
)

Scores = dict[str, Tensor]
Score = Callable[[nn.Module, Targets, Evidence], Scores]

# GraSP divides the logits by it, so that the softmax of a network at initialization is not yet saturated.
GRASP_TEMPERATURE = 200.0


def magnitude(model: nn.Module, targets: Targets, evidence: Evidence) -> Scores:
    """|w| (Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015).

    Of a filter: its L1 norm (Li et al., Pruning Filters for Efficient ConvNets, 2016).
    """
    return {name: target.parameter.detach().abs() for name, target in targets.items()}


def l2(model: nn.Module, targets: Targets, evidence: Evidence) -> Scores:
    """w^2: of single weights the order of the magnitude, of filters the order of their L2 norm."""
    return {name: target.parameter.detach().to(wide(target.parameter)).square() for name, target in targets.items()}


def random(model: nn.Module, targets: Targets, evidence: Evidence) -> Scores:
    """Uniform numbers in (0, 1) that depend on the seed and the tensor's name only: the control of other scores."""
    return {
        name: torch.from_numpy(uniform(target.size, evidence.seed, "random/" + name))
        .reshape(target.parameter.shape)
        .to(target.parameter.device, torch.float32)
        for name, target in targets.items()
    }


def snip(model: nn.Module, targets: Targets, evidence: Evidence) -> Scores:
    """|g w|, g the gradient of the loss over all batches: how much the loss depends on having the weight.

    Source: Lee et al., SNIP: Single-shot Network Pruning based on Connection Sensitivity, 2019. The paper divides by
    the sum of all scores, which changes no order.
    """
    mean = average(model, targets, "snip", evidence, lambda gradient, _: gradient)
    return {name: (mean[name] * target.parameter.detach()).abs() for name, target in targets.items()}


def taylor(model: nn.Module, targets: Targets, evidence: Evidence) -> Scores:
    """(g w)^2, the mean over the batches: gradient times weight, the first-order change of the loss without the weight.

    Source: Molchanov et al., Importance Estimation for Neural Network Pruning, 2019.
    """
    return average(model, targets, "taylor", evidence, lambda gradient, weight: (gradient * weight).square())


def movement(model: nn.Module, targets: Targets, evidence: Evidence) -> Scores:
    """-g w, the mean over the batches: positive where a step of training would take the weight away from 0.

    `Movement` sums the same over a training. Source: Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning,
    2020.
    """
    return average(model, targets, "movement", evidence, lambda gradient, weight: -gradient * weight)


def grasp(model: nn.Module, targets: Targets, evidence: Evidence) -> Scores:
    """W (H g): the weights whose loss would lessen the flow of gradients most. May be negative.

    H g is the Hessian of the loss times its gradient, of outputs divided by a temperature of 200. The batches are gone
    through twice; an iterator, which can be gone through only once, is read into a list.

    Source: Wang et al., Picking Winning Tickets Before Training by Preserving Gradient Flow, 2020. The paper scores
    -w (H g) and drops the highest.
    """
    batches = batches_of("grasp", evidence)
    if isinstance(batches, Iterator):
        batches = Replay(batches)
    loss = evidence.loss or torch.nn.functional.cross_entropy

    def cooled(outputs: Any, wanted: Any) -> Tensor:
        if isinstance(outputs, Tensor):
            return loss(outputs / GRASP_TEMPERATURE, wanted)
        if evidence.loss is None:
            raise ValueError(f"grasp with outputs of type {type(outputs).__name__} needs loss=...")
        return loss(outputs, wanted)

    total, gradient = 0, {name: zeros_for(target.parameter) for name, target in targets.items()}
    for samples, grads in gradients(model, targets, batches, cooled):
        total += samples
        for name in targets:
            gradient[name] += samples * grads[name]
        del grads
    total = over_all(batches, total, gradient.values())
    gradient = {name: value / total for name, value in gradient.items()}
    product = hessian_times(model, targets, batches, cooled, gradient)
    return {name: target.parameter.detach() * product[name] for name, target in targets.items()}


def synflow(model: nn.Module, targets: Targets, evidence: Evidence) -> Scores:
    """|w dR/dw|, R the sum of the outputs for an input of ones through the network of absolute weights: path mass.

    Needs no data but the shape of `example_input` (integer inputs stay as they are). Computed in float64, in evaluation
    mode, with running means at 0; made to be used in many rounds (`prune` takes 100 unless told otherwise).

    Source: Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, 2020.

    Raises:
        ValueError: no example input or one that the model does not take, or a network through which nothing flows.
    """
    if evidence.example_input is None:
        raise ValueError("the score 'synflow' needs example_input=..., a tensor of the shape that the model takes")
    linear = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.abs_()
        for module in linear.modules():
            mean = getattr(module, "running_mean", None)
            if isinstance(mean, Tensor):
                mean.zero_()
    copies = find_targets(linear, include=literal_globs(targets))
    weights = {name: copies[name].parameter for name in targets}
    try:
        outputs = call(linear, _ones(evidence.example_input))
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"synflow: the model does not take the example input: {said}") from error
    total = torch.stack([output.sum() for output in floating_outputs(outputs)]).sum()
    grads = torch.autograd.grad(total, list(weights.values()), allow_unused=True, materialize_grads=True)
    scores = {name: (weights[name] * grad).detach().abs() for name, grad in zip(weights, grads, strict=True)}
    flow = sum(float(score.sum()) for score in scores.values())
    if not 0 < flow < math.inf:
        raise ValueError(
            f"synflow: the flow through the weights is {flow:g}: a norm over channels stops it, or a layer that lost "
            "all of its weights; expected a network whose output grows with its input, pruned in more rounds"
        )
    return scores


def bn_scale(model: nn.Module, targets: Targets, evidence: Evidence) -> Scores:
    """|scale| of the batch norm behind a filter, shared out over the filter's weights: a filter's sum is the scale.

    The norm is found by running the model on `example_input`. A tensor without a batch norm right behind it, as a head,
    has scores of infinity: it stays dense, carries no mask of its own and counts in no density.

    Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, 2017.

    Raises:
        ValueError: no example input, or no target that has a batch norm behind it.
    """
    if evidence.example_input is None:
        raise ValueError("the score 'bn-scale' needs example_input=..., to find the norm behind each filter")
    scores = share_scales(targets, norms_behind(model, targets, evidence.example_input))
    if not any(bool(torch.isfinite(score).any()) for score in scores.values()):
        raise ValueError(f"bn-scale: no batch norm stands behind {', '.join(targets)}: take another score")
    return scores


def share_scales(targets: Targets, behind: Mapping[str, Tensor]) -> Scores:
    """Of each target |scale| of the norm behind it, shared out over the weights of each filter; infinity without one.

    Args:
        targets: the tensors.
        behind: the scales of the norms, by the target's name (see `coupling.norms_behind`).
    """
    scores = {}
    for name, target in targets.items():
        weight = target.parameter.detach()
        if name not in behind or len(behind[name]) != outputs_of(target):
            scores[name] = torch.full_like(weight, math.inf, dtype=wide(weight))
            continue
        scale = behind[name].detach().abs()
        each = scale / (weight.numel() // len(scale))
        if target.output_axis == 1:  # (inputs, outputs / groups, *kernel)
            each = each.reshape(target.groups, -1).repeat_interleave(len(weight) // target.groups, 0)
        scores[name] = each.reshape(*each.shape, *[1] * (weight.dim() - each.dim())).expand_as(weight)
    return scores


def outputs_of(target: Target) -> int:
    """The number of outputs of a layer."""
    return target.parameter.shape[target.output_axis] * (target.groups if target.output_axis else 1)


class Movement:
    """-g w summed over the steps of a training: the score of what has moved away from 0.

        movement = supermask.Movement(model)
        ...any training loop with a torch.optim optimizer...
        masks = supermask.prune(model, density=0.1, score=movement)

    Takes each gradient as the optimizer is given it, before the step: accumulated, reduced over processes, clipped.
    Source: Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning, 2020.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = {name: target.parameter for name, target in find_targets(model).items()}
        self.sums = {name: zeros_for(parameter) for name, parameter in self.parameters.items()}
        self.steps = 0
        self.handle = register_optimizer_step_pre_hook(self._before_step)

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        moved = [name for name, parameter in self.parameters.items() if id(parameter) in stepped]
        self.steps += bool(moved)
        for name in moved:
            if (gradient := self.parameters[name].grad) is not None:
                self.sums[name].addcmul_(gradient, self.parameters[name], value=-1)

    def __call__(self, model: nn.Module, targets: Targets, evidence: Evidence) -> Scores:
        """The sums so far.

        Raises:
            ValueError: no step was seen, or a target that is not of the model given at the start.
        """
        lost = [name for name in targets if name not in self.sums]
        if lost or not self.steps:
            raise ValueError(f"movement was not recorded for {', '.join(lost)}" if lost else "no step was recorded")
        return {name: self.sums[name].clone() for name in targets}

    def stop(self) -> None:
        """Record no more."""
        self.handle.remove()


SCORES: Mapping[str, Score] = {
    "magnitude": magnitude,
    "l1": magnitude,
    "l2": l2,
    "random": random,
    "snip": snip,
    "taylor": taylor,
    "movement": movement,
    "grasp": grasp,
    "synflow": synflow,
    "bn-scale": bn_scale,
    **CRITERIA,
}
# Rounds of pruning that a score is made for, where it is not one.
ROUNDS = {"synflow": 100}


def find_score(score: str | Score) -> Score:
    """The score of a name, of this package or declared by another one, or the function itself.

    Raises:
        ValueError: an unknown name, or one that is declared and cannot be used, with the reason.
    """
    if not isinstance(score, str):
        return score
    declared = entry_points.declarations(entry_points.SCORES, own=SCORES)
    if score in declared:
        return declared[score].load_function()
    return find_named("score", score, SCORES, also=declared)


def _ones(example: Any) -> Any:
    if isinstance(example, Tensor):
        return torch.ones_like(example[:1], dtype=torch.float64) if example.is_floating_point() else example[:1]
    if isinstance(example, Mapping):
        return {key: _ones(part) for key, part in example.items()}
    return tuple(_ones(part) for part in example) if isinstance(example, (tuple, list)) else example
