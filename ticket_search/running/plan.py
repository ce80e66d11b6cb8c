"""What a search would do, and how long it would take: its stages counted, some of its steps and its ending timed."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
from torch import nn

import supermask
from supermask import Targets
from supermask.weights.fitting import state_of

from .. import runs
from ..contract.errors import Interrupted, RequestError
from ..contract.flags import Config, steps_of
from ..contract.method import Stage
from ..contract.stops import Stopped
from ..data.samples import HeldOut, Samples, whole_batches
from ..runs import ranks
from ..runs.experiment import Setup, exact_arithmetic, own_random_numbers
from ..runs.rehearsal import Rehearsal, Rehearsed
from ..runs.run import Run
from ..training.conclude import conclude, keep_all, summarize
from ..training.evaluation import Evaluation, batch_of, evaluate
from ..training.loop import Trained, train_network
from ..training.precision import make_arithmetic
from ..training.shards import sharding_problems
from ..training.trial import check_model, find_objective
from .duration import Costs

# Of a held-out split so many batches are timed; the others take as long.
_BATCHES = 4
_NO_RATE = 1e-12
# The first picture that is drawn takes longer: what draws it is imported.
_DOT = runs.first_layer.Picture(numpy.zeros((1, 1)), "", ("", ""), ({}, {}))
# A step that takes longer than this takes no longer with masks.
_LONG_STEP = 0.2


@dataclass(frozen=True)
class Plan:
    """What a search would do: its targets, remarks on all tensors, stages, and seconds from what was timed.

    `evaluate_every` counts steps.
    """

    config: Config
    targets: Targets
    remarks: list[str]
    stages: list[Stage]
    costs: Costs
    evaluate_every: int

    @property
    def steps(self) -> int:
        """The steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def seconds(self) -> float:
        """How long the search takes."""
        return self.costs.search(self.stages, self.evaluate_every)


def make_plan(config: Config, setup: Setup, ending: Costs | None = None) -> Plan:
    """What the search would do. It is begun in a temporary folder, for some steps, to estimate the time.

    Args:
        config: of the search.
        setup: its network and data.
        ending: what was timed of another search whose network and data are the same: what does not depend on the
            method is taken from it.

    Raises:
        RequestError: what the method cannot do with this network and these data.
        Stopped: by a signal.
    """
    with exact_arithmetic(config), own_random_numbers():
        model = setup.make_model(config)
        check_model(setup, config, model)
        targets = setup.targets(config, model)
        stages = plan_stages(config, setup, targets)
        remarks = setup.remarks(model, targets)
        timed = rehearse(model, config, setup)
        costs = ending or time_ending(config, setup, timed.step)
    costs = replace(costs, preparation=timed.preparation, step=timed.step)
    every = steps_of(config.evaluate_every, whole_batches(setup.data.train_size, config.batch_size))
    return Plan(config, targets, remarks, stages, costs, every)


def plan_stages(config: Config, setup: Setup, targets: Targets) -> list[Stage]:
    """The method's stages.

    Raises:
        RequestError: what the method cannot do with these targets and this number of steps.
    """
    per_epoch = whole_batches(setup.data.train_size, config.batch_size)
    total = config.epochs * per_epoch
    if steps_of(config.warmup, per_epoch) >= total:
        raise RequestError(f"--warmup {config.warmup}: expected less than the {total} steps of a training")
    world, batch = ranks.now().world, min(config.batch_size, setup.data.train_size)
    if batch < world:
        raise RequestError(
            f"{world} ranks and batches of {batch} samples: expected at least one sample of a batch for each rank"
        )
    if problems := sharding_problems(config, setup.method.traits):
        raise RequestError(problems)
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
        except Interrupted as stop:
            raise Stopped(status=stop.status) from None
        _stop_if_asked(run)
    run.rehearsal.ends = ranks.tell(run.rehearsal.ends)
    return run.rehearsal


def _stop_if_asked(run: Run) -> None:
    """End what called for the timing, where a signal has come that no step of training has looked at."""
    run.agree(at_once=True)
    if run.stop_status is not None:
        raise Stopped(status=run.stop_status)


def time_ending(config: Config, setup: Setup, step: float) -> Costs:
    """What does not depend on the method: a step with masks that are held, an evaluation, the ending of a training.

    A network whose masks keep everything is trained for some steps and concluded as any other, on a part of the data
    that are held out.

    Args:
        config: of the search.
        setup: its network and data.
        step: the seconds of a step without masks.
    """
    began = time.perf_counter()
    runs.first_layer.draw(_DOT)
    first, began = time.perf_counter() - began, time.perf_counter()
    model = setup.make_model(config)
    masks, start = keep_all(model, config), state_of(model)
    supermask.hold(model, masks)
    built = time.perf_counter() - began
    # What a ticket says of its samples is found once for a setup: by the whole data.
    few, _ = FewHeldOut(setup.data), setup.sample
    with tempfile.TemporaryDirectory() as folder, setup.using(few):
        run = Run(Path(folder, "ending"), config, setup)
        run.rehearsal = Rehearsal(config.device)
        with run.opened():
            held = step if step > _LONG_STEP or config.compile else _time_steps(model, run)
            passes = {split: _time_pass(model, config, setup, few, split) for split in few.splits}
            trained = Trained(0, 0, Evaluation(0.0, 0.0), {})

            began = time.perf_counter()
            row = run.stage("ending", lambda: conclude(run, model, masks, start, trained))["row"]
            ending = time.perf_counter() - began
            run.rows.append(row)
            began = time.perf_counter()
            run.finish(summarize(run, run.ticket, setup.make_model(config)))
            finish = time.perf_counter() - began
        _stop_if_asked(run)
    # Both states of a ticket are measured on both splits; what is missing of these was not held out for the timing.
    missing = 2 * sum(whole - part for whole, part in passes.values())
    return Costs(
        held_step=held,
        evaluation=passes["validation"][0],
        ending=ending + missing,
        finish=finish,
        first=first,
        untrained=built + sum(whole for whole, _ in passes.values()),
    )


def _time_steps(model: nn.Module, run: Run) -> float:
    assert run.rehearsal is not None, "a rehearsal is what this is"
    # A rate at which nothing is learned: at that of the method, this training might not stay finite.
    still = run.config.model_copy(update={"lr": _NO_RATE})
    try:
        train_network(model, run, config=still)
    except Rehearsed:
        pass
    except Interrupted as stop:
        raise Stopped(status=stop.status) from None
    return run.rehearsal.step


def time_untrained(config: Config, setup: Setup) -> float:
    """The seconds of a control that is evaluated and not trained: a network built, and measured on both splits."""
    with exact_arithmetic(config), own_random_numbers():
        began, few = time.perf_counter(), FewHeldOut(setup.data)
        model = setup.make_model(config)
        built = time.perf_counter() - began
        return built + sum(_time_pass(model, config, setup, few, split)[0] for split in few.splits)


def _time_pass(model: nn.Module, config: Config, setup: Setup, few: FewHeldOut, split: HeldOut) -> tuple[float, float]:
    """The seconds of an evaluation on a whole split, and on the part of it that was timed."""
    objective, arithmetic = find_objective(setup, config, model), make_arithmetic(config)
    began = time.perf_counter()
    evaluate(model, few, split, objective, arithmetic)
    part = time.perf_counter() - began
    return part * max(1.0, few.batches_of(split) / _BATCHES), part


class FewHeldOut:
    """Samples of whose held-out splits only the first batches are there; all else is as it is."""

    splits: tuple[HeldOut, HeldOut] = ("validation", "test")

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __getattr__(self, name: str) -> Any:
        return getattr(self._samples, name)

    def with_share(self, rank: int, world: int) -> FewHeldOut:
        """The same, of whose batches a share is given out."""
        return FewHeldOut(self._samples.with_share(rank, world))

    def batches(self, split: HeldOut, batch_size: int) -> Iterator[tuple[Any, Any]]:
        """The first batches of a split."""
        return itertools.islice(self._samples.batches(split, batch_size), _BATCHES)

    def batches_of(self, split: HeldOut) -> int:
        """How many batches the whole split has."""
        return math.ceil(self._samples.held_out_size(split) / batch_of(self._samples))
