"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from supermask.live.rounding import RoundedOptimizer
from supermask.weights.plain import is_shared_out

from ..contract.flags import Config, steps_of


def learning_rate(config: Config, step: int, total: int, per_epoch: int) -> float:
    """The learning rate of a step counted from 0, out of `total`."""
    warmup = steps_of(config.warmup, per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
    return config.lr * config.drop ** sum(step >= epoch * per_epoch for epoch in config.milestones)


def make_optimizer(model: nn.Module, config: Config, groups: Sequence[Mapping[str, Any]] = ()) -> torch.optim.Optimizer:
    """The configured optimizer over all trainable parameters, in one call per step.

    Where some of them are bf16, one that rounds at random, tensor by tensor (see `live.rounding`).

    Args:
        model: whose parameters that require a gradient are trained.
        config: update rule, learning rate, momentum, weight decay.
        groups: parameters with values of their own (see `Hook.groups`).

    Returns:
        The optimizer; `share` of each of its parameter groups is what the scheduled learning rate is multiplied by.

    Raises:
        ValueError: a parameter in two groups.
    """
    own = [{**group, "params": list(group["params"])} for group in groups]
    taken = {id(parameter) for group in own for parameter in group["params"]}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    momentum = {"momentum": config.momentum, "nesterov": config.nesterov} if config.optimizer == "sgd" else {}
    kind: Any = kinds[config.optimizer]
    # For parameters that are shared out over ranks PyTorch has one kernel of Adam's, and none of SGD's.
    other: dict[str, Any] = {"fused": not any(map(is_shared_out, model.parameters())), **momentum}
    if any(parameter.dtype == torch.bfloat16 for parameter in model.parameters() if parameter.requires_grad):
        kind, other = RoundedOptimizer, {"kind": config.optimizer, "seed": config.seeds["mask"], **momentum}
    optimizer: torch.optim.Optimizer = _uncompiled(kind)(
        [{"params": rest}, *own] if own and rest else own or rest,
        lr=config.lr,
        weight_decay=config.weight_decay,
        **other,
    )
    for group in optimizer.param_groups:
        group["share"] = group["lr"] / config.lr
    return optimizer


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put an optimizer into a saved state; that of a run of 0.1.0, which knew no groups, has no shares."""
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        group.setdefault("share", 1.0)


@cache
def _uncompiled(kind: Any) -> Any:
    """An optimizer of PyTorch without what keeps torch.compile off its methods.

    The training loop never compiles its optimizer, and those wrappers import the compiler: as long as all of PyTorch.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(inspect.unwrap(kind.step))})
