"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math

import torch
from torch import nn

from .config import Config, steps_of


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
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            config.lr,
            config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
            fused=True,
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, config.lr, weight_decay=config.weight_decay, fused=True)
