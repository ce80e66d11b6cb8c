"""How much memory a search takes, part by part: planned from two small batches, and checked by a third.

Of each moment of a step, what depends on the batch grows with it and the rest does not: two batches tell the one from
the other, and so what a batch of any size takes. A small run of the method itself shows whether that is right.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import supermask
from supermask.choosing.gradients import call
from supermask.live.learned import Learned
from supermask.live.program import program_of
from supermask.weights.fitting import state_of

from ..contract.errors import Interrupted
from ..contract.flags import Config
from ..contract.stops import Stopped
from ..data.dataset import Data
from ..data.samples import Samples
from ..data.trees import part
from ..runs.experiment import Setup, exact_arithmetic, own_random_numbers
from ..runs.rehearsal import Rehearsal, Rehearsed
from ..runs.run import Run
from ..training.allocated import Allocated, bytes_of
from ..training.conclude import conclude, keep_all
from ..training.evaluation import Evaluation, batch_of
from ..training.loop import Trained, train_network
from ..training.precision import make_arithmetic
from ..training.trial import check_model, find_objective
from .plan import FewHeldOut, plan_stages

# Samples of the batches, for each part that a batch is split into, by which a step is measured; the largest checks.
_SAMPLES = 16
# Steps of a small run: the optimizer's moments are there from the second on.
_STEPS = 3
_OF_SAMPLES = ("data", "a batch", "an evaluation")
# How far what was planned may be from what was measured.
TOLERANCE = 0.2


@dataclass(frozen=True)
class Memory:
    """The bytes that a search takes on its device, at most and part by part, which are not all there at one time.

    `parts` are bytes by what they are; `weights` is the number of the network's parameters that they are shared among.
    `planned` and `measured` are those of a small run with `small_batch` samples: the most that its steps took beside
    the network itself and the data.
    """

    peak: int
    parts: dict[str, int]
    weights: int
    batch: int
    small_batch: int
    planned: int
    measured: int

    @property
    def error(self) -> float:
        """How far the plan of the small run was from what was measured, as a share of that."""
        return self.planned / self.measured - 1

    @property
    def is_right(self) -> bool:
        """Whether that is near enough."""
        return abs(self.error) <= TOLERANCE

    @property
    def per_weight(self) -> dict[str, float]:
        """The bytes of each part that grows with the network, for each of its parameters."""
        grown = {name: size for name, size in self.parts.items() if name not in _OF_SAMPLES}
        return {name: size / max(1, self.weights) for name, size in grown.items()}


def plan_memory(config: Config, setup: Setup) -> Memory:
    """The memory that a search takes on its device.

    What the network's libraries take for themselves within an operation, and Python and PyTorch as such, are not in it,
    nor what the system's allocator keeps after it was freed: on a CPU a process may grow by a third more.

    Args:
        config: of the search.
        setup: its network and data.

    Raises:
        RequestError: what the method cannot do with this network and these data.
        Stopped: by a signal.
    """
    with exact_arithmetic(config), own_random_numbers():
        first = setup.make_model(config)
        check_model(setup, config, first)
        top = min(config.batch_size, setup.data.train_size)
        check = max(config.accumulate, min(top, _SAMPLES * config.accumulate))
        counted = Allocated(config.device)
        with counted:
            _begin(config, setup, check, lambda run: setup.method.search(first, run))
        model = _prepare(first, config, setup)
        few, many = (max(config.accumulate, check // share) for share in (4, 2))
        # Once before it counts: what is made once and kept is no part of a step.
        steps = [_measure_steps(model, config, setup, size) for size in (few, few, many)][1:]
        passes = [_measure_pass(model, config, setup, size) for size in (2, 4)]
        ending = _measure_ending(model, config, setup)
    parts = _parts(model, config, setup)
    evaluated = batch_of(setup.data)
    parts["a batch"] = _growth(steps, (few, many), top)
    parts["an evaluation"] = _growth(passes, (2, 4), evaluated)
    parts["the ending"] = ending
    made = parts["scores"] + parts["masks"]
    begun = parts["the beginning"]
    # The optimizer is there until the ticket is made.
    moving = parts["gradients"] + parts["moments"]
    most = max(begun + _at(steps, (few, many), top), begun + moving + _at(passes, (2, 4), evaluated), moving + ending)
    planned = made + begun + _at(steps, (few, many), check)
    training = made + parts["the best steps"] + parts["the level before"] + most
    # What a method does before its first step, as scoring, may take more than any step.
    peak = parts["parameters"] + parts["data"] + max(training, counted.peak)
    return Memory(peak, parts, setup.parameters, top, check, planned, max(1, counted.peak))


def _begin(config: Config, setup: Setup, batch: int, work: Callable[[Run], Any]) -> None:
    """Do some steps of a training, with batches of some size, in a temporary folder."""
    small = config.model_copy(update={"batch_size": batch})
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder, "small"), small, setup)
        run.rehearsal = Rehearsal(config.device, _STEPS)
        try:
            with run.opened():
                work(run)
        except Rehearsed:
            pass
        except Interrupted as stop:
            raise Stopped(status=stop.status) from None
        run.agree(at_once=True)
        if run.stop_status is not None:
            raise Stopped(status=run.stop_status)


def _prepare(model: nn.Module, config: Config, setup: Setup) -> nn.Module:
    """The network as the method trains it: with the masks that it has put on, or such as are held later."""
    if program_of(model) is None and not setup.method.traits.dense:
        model = setup.make_model(config)
        asked: dict[str, Any] = {"include": config.include or None, "exclude": config.exclude or None}
        supermask.hold(model, supermask.prune(model, config.density, "random", **asked))
    return model


def _measure_steps(model: nn.Module, config: Config, setup: Setup, batch: int) -> list[int]:
    """The bytes after each operation of some steps, beside what is there before."""
    for parameter in model.parameters():
        parameter.grad = None
    counted = Allocated(config.device)
    with counted:
        _begin(config, setup, batch, lambda run: train_network(model, run))
    return counted.history


def _measure_pass(model: nn.Module, config: Config, setup: Setup, batch: int) -> list[int]:
    """The bytes after each operation of a pass in evaluation."""
    objective, arithmetic = find_objective(setup, config, model), make_arithmetic(config)
    x, y = next(setup.data.batches("validation", batch))
    x, y = (part(each, 0, batch) for each in (x, y))
    model.eval()
    counted = Allocated(config.device)
    with torch.inference_mode(), counted, arithmetic.forward():
        call(model, objective.inputs(arithmetic.lay_out(x), y))
    model.train()
    return counted.history


def _measure_ending(model: nn.Module, config: Config, setup: Setup) -> int:
    """The most bytes that it takes to make a ticket of a trained network and to measure it."""
    trained = Trained(0, 0, Evaluation(0.0, 0.0), {})

    def work(run: Run) -> None:
        program, start, more = program_of(model), state_of(model), dict[str, Any]()
        masks = keep_all(model, config) if program is None else supermask.masks_of(model)
        if isinstance(program, Learned):
            more = {"final": state_of(supermask.bake(model)), "draws": dict(program.draws)}
        conclude(run, model, masks, start, trained, scalars={}, **more)

    # What a ticket says of its samples is found once for a setup: by the whole data.
    few, _ = FewHeldOut(setup.data), setup.sample
    counted = Allocated(config.device)
    with setup.using(few), counted:
        _begin(config, setup, 1, work)
    return counted.peak


def _lines(histories: Sequence[list[int]], sizes: tuple[int, int]) -> Iterator[tuple[float, float]]:
    """What each operation leaves there: bytes that do not depend on the batch, and bytes of each sample."""
    (one, other), (few, many) = histories, sizes
    if few == many or len(one) != len(other):
        one, other = [max(one)], [max(other)]
    for low, high in zip(one, other, strict=True):
        # Of one size alone all is taken to be the batch's.
        slope = max(0.0, (high - low) / (many - few)) if many > few else low / few
        yield low - slope * few, slope


def _at(histories: Sequence[list[int]], sizes: tuple[int, int], batch: int) -> int:
    """The most bytes with a batch of another size."""
    return math.ceil(max(fixed + slope * batch for fixed, slope in _lines(histories, sizes)))


def _growth(histories: Sequence[list[int]], sizes: tuple[int, int], batch: int) -> int:
    """The most of those bytes that depend on the batch."""
    return math.ceil(max(slope * batch for _, slope in _lines(histories, sizes)))


def _parts(model: nn.Module, config: Config, setup: Setup) -> dict[str, int]:
    """What does not depend on the batch, in bytes by what it is."""
    program = program_of(model)
    learned = [t for layer in program.layers for t in layer.learned.values()] if isinstance(program, Learned) else []
    own = {id(tensor) for tensor in learned}
    state = bytes_of(tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in own)
    trained = bytes_of(parameter for parameter in model.parameters() if parameter.requires_grad)
    moments = {"sgd": 1 if config.momentum else 0}.get(config.optimizer, 2)
    masked = {} if program is None else program.masks()
    levels = len(plan_stages(config, setup, setup.targets(config, model))) > 1
    return {
        "parameters": state,
        "scores": bytes_of(learned),
        "gradients": trained,
        "moments": moments * trained,
        "masks": 0 if isinstance(program, Learned) else sum(mask.numel() for mask in masked.values()),
        "effective weights": bytes_of(model.get_parameter(name) for name in masked),
        # Of the steps that validation chooses; and what the ticket starts from.
        "the best steps": 2 * (state + bytes_of(learned)),
        "the beginning": state,
        # A ticket of two states, of which the next level is made.
        "the level before": 2 * state if levels else 0,
        "data": bytes_of(_samples(setup.data, config.device)),
    }


def _samples(data: Samples, device: str) -> list[Tensor]:
    """The tensors of samples that lie on a device; none where they are streamed."""
    fields = vars(data).values() if isinstance(data, Data) else ()
    return [each for each in tree_leaves(list(fields)) if isinstance(each, Tensor) and each.device.type == device]
