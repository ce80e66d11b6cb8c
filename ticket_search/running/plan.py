"""What a search would do, and how long it would take: its stages counted, a few of its steps timed."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from supermask import Targets

from ..contract.errors import Interrupted, RequestError
from ..contract.flags import Config, steps_of
from ..contract.method import Stage
from ..data.samples import whole_batches
from ..runs.experiment import Setup, exact_arithmetic, own_random_numbers
from ..runs.rehearsal import Rehearsal, Rehearsed
from ..runs.run import Run
from ..training.trial import check_model


@dataclass(frozen=True)
class Plan:
    """What a search would do: its targets, remarks on all tensors, stages, and seconds estimated from timed steps."""

    config: Config
    targets: Targets
    remarks: list[str]
    stages: list[Stage]
    seconds: float


def make_plan(config: Config, setup: Setup) -> Plan:
    """What the search would do. It is begun in a temporary folder, for a few steps, to estimate the time.

    Raises:
        RequestError: what the method cannot do with this network and these data.
        KeyboardInterrupt: stopped by a signal.
    """
    with exact_arithmetic(config), own_random_numbers():
        model = setup.make_model(config)
        check_model(setup, config, model)
        targets = setup.targets(config, model)
        stages = plan_stages(config, setup, targets)
        remarks = setup.remarks(model, targets)
        timed = rehearse(model, config, setup)
    per_epoch = whole_batches(setup.data.train_size, config.batch_size)
    steps = sum(stage.steps for stage in stages)
    evaluations = steps // max(1, steps_of(config.evaluate_every, per_epoch)) + len(stages)
    seconds = timed.preparation + steps * timed.step + evaluations * timed.evaluation
    return Plan(config, targets, remarks, stages, seconds)


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


def rehearse(model: nn.Module, config: Config, setup: Setup) -> Rehearsal:
    """Begin the search with `model`, and end it when enough steps of the method's own have been timed."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder, "rehearsal"), config, setup)
        run.rehearsal = Rehearsal(config.device)
        try:
            with run.opened():
                setup.method.search(model, run)
        except Rehearsed:
            pass
        except Interrupted:
            raise KeyboardInterrupt from None
    return run.rehearsal
