"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import inspect
import math
from functools import cache
from typing import Any

import torch
from torch import nn

from ..contract.flags import Config, steps_of


def learning_rate(config: Config, step: int, total: int, per_epoch: int) -> float:
    """The learning rate of a step counted from 0, out of `total`."""
    warmup = steps_of(config.warmup, per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
    return config.lr * config.drop ** sum(step >= epoch * per_epoch for epoch in config.milestones)


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The configured optimizer over all trainable parameters, in one fused call per step."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    momentum = {"momentum": config.momentum, "nesterov": config.nesterov} if config.optimizer == "sgd" else {}
    kind = _uncompiled(kinds[config.optimizer])
    optimizer: torch.optim.Optimizer = kind(
        parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True, **momentum
    )
    return optimizer


@cache
def _uncompiled(kind: Any) -> Any:
    """An optimizer of PyTorch without what keeps torch.compile off its methods.

    The training loop never compiles its optimizer, and those wrappers import the compiler: as long as all of PyTorch.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(inspect.unwrap(kind.step))})
