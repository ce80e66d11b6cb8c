"""What a search would do, and how long it would take: its stages counted, a few of its steps timed."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import numpy as np
from torch import nn

import supermask
from supermask import Targets

from ..contract.errors import RequestError
from ..contract.flags import Config, steps_of
from ..contract.method import Method, Stage
from ..data.samples import Samples, whole_batches
from ..runs.experiment import Setup, exact_arithmetic, own_random_numbers
from ..training.evaluation import evaluate
from ..training.learned_scores import learn_scores
from ..training.objective import make_objective
from ..training.optimization import make_optimizer
from ..training.precision import make_arithmetic


@dataclass(frozen=True)
class Plan:
    """What a search would do: its targets, stages, and seconds estimated from a few timed steps."""

    config: Config
    targets: Targets
    stages: list[Stage]
    seconds: float


def make_plan(config: Config, setup: Setup) -> Plan:
    """What the search would do. Trains a copy for a few steps to estimate the time; writes nothing."""
    with exact_arithmetic(config), own_random_numbers():
        model = setup.make_model(config)
        setup.check_model(config, model)
        targets = setup.targets(config, model)
        per_epoch = whole_batches(setup.data.train_size, config.batch_size)
        stages = plan_stages(config, setup, targets)
        steps = sum(stage.steps for stage in stages)
        evaluations = steps // max(1, steps_of(config.evaluate_every, per_epoch)) + len(stages)
        step, evaluation = time_step(model, setup.data, config, setup.method)
        return Plan(config, targets, stages, steps * step + evaluations * evaluation)


def plan_stages(config: Config, setup: Setup, targets: Targets) -> list[Stage]:
    """The method's stages.

    Raises:
        RequestError: what the method cannot do with these targets and this number of steps.
    """
    per_epoch = whole_batches(setup.data.train_size, config.batch_size)
    total = config.epochs * per_epoch
    if steps_of(config.warmup, per_epoch) >= total:
        raise RequestError(f"--warmup {config.warmup}: expected less than the {total} steps of a training")
    return setup.method.plan(config, targets, per_epoch)


def time_step(model: nn.Module, data: Samples, config: Config, method: Method) -> tuple[float, float]:
    """Seconds of a training step (the median of ten, on a copy) and of an evaluation."""
    copied = copy.deepcopy(model)
    if method.traits.frozen_weights:
        learn_scores(copied, config)
    elif not method.traits.dense:
        include, exclude = config.include or None, config.exclude or None
        supermask.hold(copied, supermask.prune(copied, 0.5, score="random", include=include, exclude=exclude))
    optimizer = make_optimizer(copied, config)
    objective, arithmetic = make_objective(config), make_arithmetic(config)
    x, y = next(data.train_batches(np.arange(data.train_size), config.batch_size))
    seconds = []
    for _ in range(12):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with arithmetic.forward():
            outputs = copied(arithmetic.lay_out(x))
        loss = objective.training_loss(outputs.float(), y)
        loss.backward()
        optimizer.step()
        loss.item()
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    evaluate(copied, data, "validation", objective, arithmetic)
    return sorted(seconds[2:])[5], time.perf_counter() - began
