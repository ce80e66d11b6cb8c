"""The only training loop."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import numpy
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from supermask.choosing.gradients import call, seed_generators
from supermask.live.held import mask_gradients
from supermask.masks.random_numbers import permutation, random_words

from ..contract.errors import RunError, command_line, some_of
from ..contract.flags import Config, steps_of
from ..contract.method import Hook
from ..data.samples import Samples, whole_batches
from ..data.trees import chunks, split_evenly
from ..runs import ranks
from ..runs.run import Run
from . import watch
from .evaluation import Evaluation, evaluate, share_bad_images
from .optimization import learning_rate, load_optimizer, make_optimizer
from .precision import compile_whole, make_arithmetic
from .replica import Replica
from .running_mean import Tally
from .shards import Shards, WholeState
from .trial import find_objective

StateDict = dict[str, Any]


@dataclass
class Moment:
    """The network at one step chosen on validation: at minimum validation loss, or at the best value of the metric."""

    step: int
    loss: float
    value: float
    tensors: dict[str, Tensor]


@dataclass
class Trained:
    """What a training leaves beside the model itself: its number of steps, and what was measured on the way."""

    steps: int
    last_step: int
    final: Evaluation
    moments: dict[str, Moment]


def train_network(
    model: nn.Module,
    run: Run,
    *,
    config: Config | None = None,
    hook: Hook | None = None,
    start: int = 0,
    order: str = "order/0",
    optimizer_state: Mapping[str, Any] | None = None,
) -> Trained:
    """Train `model` in place from step `start` to the end of the configured epochs, as a part of the run's stage.

    A stopped training goes on where its state was saved, as if never stopped.

    Args:
        model: on the data's device; what requires a gradient is trained.
        run: its data, where to log and to save state.
        config: optimizer, schedule, epochs, seeds, where they are not those of the run.
        hook: what the method does in each step.
        start: the step to begin at, of the schedule and of the data order.
        order: name of the data order; the same name and order seed give the same batches.
        optimizer_state: moments to begin with, which are copied; the learning rate is the schedule's.

    Raises:
        RunError: the loss or a weight became NaN or infinite, the masks do not hold, or there is no memory.
        Interrupted: a signal came; the state is saved.
    """
    config = config or run.config
    # Dropout and whatever else the model draws; the data order and the augmentation have seeds of their own. Ranks see
    # other samples each, and drop other activations.
    seed_generators(_derive(config, f"dropout/{order}{_mark_of_rank()}"))
    data = run.data.with_seed(_derive(config, f"augmentation/{order}"))
    loop = _Loop(model, data, config, run, hook or Hook(), start, order)
    if optimizer_state is not None:
        # A copy: PyTorch trains on in the very tensors that it is given, and the next level begins with them too.
        loop.load_optimizer(copy.deepcopy(dict(optimizer_state)))
    saved = run.training_state(order)
    if saved is not None:
        loop.load_state_dict(saved)
    try:
        loop.run_to_end()
    except (RuntimeError, MemoryError) as error:
        if not watch.is_out_of_memory(error):
            raise
        resumes = command_line("resume", run.path)
        raise RunError(watch.describe_out_of_memory(error, config.batch_size, resumes)) from error
    return loop.trained()


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _copied_to(tensor: Tensor, device: str) -> Tensor:
    return tensor.detach().to(device, copy=True)


def _mark_of_rank() -> str:
    return "" if ranks.now().first else f"/rank-{ranks.now().rank}"


def _derive(config: Config, name: str) -> int:
    return int(random_words(1, config.seeds["order"], name)[0] >> numpy.uint64(1))


class _Loop:
    """One training in progress: everything that must be saved for it to go on is an attribute of this."""

    def __init__(
        self, model: nn.Module, data: Samples, config: Config, run: Run, hook: Hook, start: int, order: str
    ) -> None:
        self.model, self.data, self.config, self.run, self.hook, self.order = model, data, config, run, hook, order
        self.objective, self.arithmetic = find_objective(run.setup, config, model), make_arithmetic(config)
        self.batch_size = min(config.batch_size, data.train_size)
        self.per_epoch = whole_batches(data.train_size, config.batch_size)
        self.total = config.epochs * self.per_epoch
        self.evaluate_every = steps_of(config.evaluate_every, self.per_epoch)
        if self.arithmetic.channels_last:
            model.to(memory_format=torch.channels_last)
        # A compiled pass of a GPU is a CUDA graph, and the next writes over what it has given: outputs, and gradients,
        # which of a batch in parts are still to be added to.
        several = ranks.now().several
        self.writes_over = config.compile and data.device.type == "cuda" and config.accumulate == 1 and not several
        self.forward = compile_whole(model, self.writes_over) if config.compile else partial(call, model)
        self.shards = Shards(model) if several and config.fsdp else None
        trained = model if self.shards is None else self.shards.trained
        self.parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
        self.replica = self.shards or (Replica(model, self.forward, self.parameters) if several else None)
        self.optimizer = make_optimizer(trained, config, hook.groups(model))
        # `step` counts from the start of the schedule, so that a training which begins at a rewind point has its rate
        # and its batches; what is logged counts from `start`.
        self.step = self.logged_step = self.start = start
        self.tally = Tally(self.objective, data.device)
        self.seconds = self.logged_seconds = self.clock = 0.0
        self.final: Evaluation | None = None
        self.moments: dict[str, Moment] = {}
        self.told_dead = False

    def run_to_end(self) -> None:
        """Step after step; evaluate, and save the state, where it is time to."""
        batches: Iterator[tuple[Any, Any]] = iter(())
        # The clock of the logged speed runs while training only: evaluating, saving and what is done once an epoch are
        # taken out.
        self._go_on()
        self.model.train()
        begun = False
        while self.step < self.total and not self.hook.done():
            if self.run.interrupted:
                self._pause()
                self._save()
                self.run.stop_if_asked()
            epoch, position = divmod(self.step, self.per_epoch)
            # A training that begins in the middle of an epoch takes up its order there.
            if position == 0 or not begun:
                batches, begun = self._batches_of(epoch, position), True
            self._train_on(*next(batches))
            self.step += 1
            self._show_step()
            if self.run.rehearsal is not None:
                self.run.rehearsal.tick()
            self.run.agree()
            evaluates = self.step % self.evaluate_every == 0 or self.step == self.total
            ends_epoch, saves = self.step % self.per_epoch == 0, self.run.is_save_due
            if evaluates or ends_epoch or saves:
                self._pause()
                if evaluates:
                    self._evaluate()
                if ends_epoch:
                    self.hook.on_epoch(self.step, self.model, self.optimizer)
                    self._watch()
                if saves:
                    self._save()
                self._go_on()
            self.run.progress.advance_to(self.run.steps_done + self.step - self.start)

    def _show_step(self) -> None:
        optimizer: Any = self.optimizer
        if self.replica is not None and self.hook.sees(self.step):
            self.replica.settle()
            optimizer = optimizer if self.shards is None else WholeState(self.shards, optimizer)
        self.hook.on_step(self.step, self.model, optimizer)

    def _pause(self) -> None:
        """Stop the clock, once the device has done what it was given."""
        if self.data.device.type == "cuda":
            torch.cuda.synchronize(self.data.device)
        self.seconds += time.perf_counter() - self.clock

    def _go_on(self) -> None:
        self.clock = time.perf_counter()

    def _save(self) -> None:
        """Save the state, unless it has gone bad: the one from before would be lost."""
        self._check_losses()
        self._share()
        self._check_weights()
        self.run.save_training(self.order, self.state_dict())

    def _watch(self) -> None:
        """Once an epoch, what no step has time to look at."""
        self._check_losses()
        self._share()
        self._check_weights()
        watch.check_masks(self.model, self.step)
        if little := watch.describe_memory():
            self.run.progress.say(little)

    def _check_losses(self) -> None:
        """Check that the losses since the last row are numbers.

        Raises:
            RunError: with the first step whose loss is none.
        """
        if (first := self.tally.first_bad()) is not None:
            step = self.logged_step + first // self.config.accumulate + 1
            self._end_badly(f"the training loss is NaN or infinite at step {step}")

    def _check_weights(self) -> None:
        """Check that the weights are numbers.

        Raises:
            RunError: with the names of those that are not.
        """
        if bad := watch.bad_weights(self.model):
            self._end_badly(f"the weights of {some_of(bad)} are NaN or infinite after step {self.step}")

    def _end_badly(self, told: str) -> NoReturn:
        raise RunError(
            f"{told} of {self.run.training_stage}: lower --lr (now {self.config.lr:g}) or add --warmup; what was saved "
            "before is kept"
        )

    def _look_whether_dead(self, validation: Evaluation) -> None:
        classes = self.data.classes or 0
        if self.told_dead or not watch.is_near_guessing(self.objective, validation, classes):
            return
        if watch.gives_one_output(self.model, self.data, self.objective):
            self.told_dead = True
            metric, rate = self.objective.metric, self.config.lr
            told = (self.step, self.run.training_stage, validation, metric, classes, rate)
            self.run.warn(watch.describe_dead(*told))

    def _batches_of(self, epoch: int, first: int) -> Iterator[tuple[Any, Any]]:
        order = permutation(self.data.train_size, self.config.seeds["order"], f"{self.order}/{epoch}")
        group = ranks.now()
        data = self.data.with_share(group.rank, group.world) if group.several else self.data
        return data.train_batches(order, self.config.batch_size, first, epoch)

    def _train_on(self, x: Any, y: Any) -> None:
        """One step. Nothing here asks for a number: to read one would be to wait for the device."""
        rate = learning_rate(self.config, self.step, self.total, self.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        # To None and not to 0: the first gradient is then stored instead of added.
        for parameter in self.parameters:
            parameter.grad = None
        self.hook.before_forward(self.step)
        if self.config.accumulate == 1 and self.replica is None:
            self._differentiate(x, y, 1.0, penalized=True)
        else:
            self._differentiate_in_parts(x, y)
        if not self.hook.before_step(self.step, self.model, self.optimizer):
            return
        if self.config.clip is not None:
            # The norm that is clipped is that of the weights which are there.
            mask_gradients(self.model if self.shards is None else self.shards.trained)
            torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimizer.step()

    def _differentiate_in_parts(self, x: Any, y: Any) -> None:
        """Forward and backward of this rank's share of a batch, in as many parts as are configured."""
        parts = list(zip(*(self._cut(tree) for tree in (x, y)), strict=True))
        whole = self._weight_of_batch(y)
        for number, (part_x, part_y) in enumerate(parts):
            share = self.objective.weight(part_y) / (whole.clamp(min=1) if isinstance(whole, Tensor) else whole)
            is_last = number == len(parts) - 1
            with contextlib.nullcontext() if self.replica is None or is_last else self.replica.apart():
                self._differentiate(part_x, part_y, share, penalized=number == 0)
        if self.replica is not None:
            self.replica.after_backward()

    def _cut(self, tree: Any) -> list[Any]:
        """The parts of a batch, or of a share of one; of shares that are not of one size all ranks have as many."""
        if self.replica is None:
            return chunks(tree, self.config.accumulate)
        return split_evenly(tree, min(self.config.accumulate, self.batch_size // ranks.now().world))

    def _weight_of_batch(self, y: Any) -> Tensor | int:
        """How many targets count in the whole batch, of which `y` may be one rank's share."""
        own = self.objective.weight(y)
        if self.replica is None:
            return own
        return ranks.add(own.clone()) if isinstance(own, Tensor) else self.batch_size

    def _differentiate(self, x: Any, y: Any, share: Tensor | float, penalized: bool) -> None:
        """Forward and backward of a batch or of its `share`; a penalty counts once for the batch."""
        with self.arithmetic.forward():
            outputs = (self.replica or self.forward)(self.objective.inputs(self.arithmetic.lay_out(x), y))
        loss = self.objective.training_loss(outputs, y)
        # Of several ranks the gradients are averaged, where those of shares are to be added up.
        part = share if self.replica is None else share * ranks.now().world
        total = loss if not isinstance(part, Tensor) and part == 1 else loss * part
        if penalized and (extra := self.hook.extra_loss()) is not None:
            total = total + extra
        total.backward()
        if self.writes_over:
            outputs = tree_map_only(Tensor, _copied, outputs)
        self.tally.add(loss.detach(), outputs, y, share)

    def _evaluate(self) -> None:
        steps = self.step - self.logged_step
        self._check_losses()
        self._share()
        loss, value = self.tally.read()
        loss /= steps
        validation = self._validate()
        if not (math.isfinite(loss) and math.isfinite(validation.loss)):
            raise RunError(
                f"the loss is {loss} on training and {validation.loss} on validation data at step {self.step} of "
                f"{self.run.training_stage}: lower --lr (now {self.config.lr:g}) or add --warmup"
            )
        self._look_whether_dead(validation)
        metric = self.objective.metric
        if not (math.isfinite(value) and math.isfinite(validation.value)):
            raise RunError(
                f"the metric {metric.name} is {value} on training and {validation.value} on validation data at step "
                f"{self.step} of {self.run.training_stage}"
            )
        values = {
            "loss/train": loss,
            f"{metric.name}/train": value,
            "loss/validation": validation.loss,
            f"{metric.name}/validation": validation.value,
            "learning-rate": learning_rate(self.config, self.step - 1, self.total, self.per_epoch),
            "speed/samples-per-second": steps * self.batch_size / max(1e-9, self.seconds - self.logged_seconds),
        }
        self.run.log(self.step - self.start, values)
        self.run.progress.numbers(values)
        if self.hook.is_choice(self.step):
            self._remember("min_validation_loss", validation, -validation.loss)
            self._remember("best_validation", validation, metric.merit(validation.value))
        self.final = validation
        self.logged_step, self.logged_seconds = self.step, self.seconds

    def _share(self) -> None:
        """Have all ranks know what each has by itself: statistics of norms, shards, and images that are bad."""
        if self.replica is not None:
            self.replica.settle()
        share_bad_images(self.data)

    def _validate(self) -> Evaluation:
        # On a CPU to compile for another mode and size takes longer than many evaluations.
        compiled = self.forward if self.config.compile and self.data.device.type != "cpu" else None
        return evaluate(self.model, self.data, "validation", self.objective, self.arithmetic, compiled)

    def _remember(self, name: str, validation: Evaluation, merit: float) -> None:
        best = self.moments.get(name)
        if best is not None:
            value = -best.loss if name == "min_validation_loss" else self.objective.metric.merit(best.value)
            if merit <= value:
                return
        # A network that is shared out is large: what is kept of it is kept off its device.
        keep = _copied if self.shards is None else partial(_copied_to, device="cpu")
        tensors = {key: keep(tensor) for key, tensor in self.model.state_dict().items()}
        self.moments[name] = Moment(self.step, validation.loss, validation.value, tensors)

    def _load_moment(self, accuracy: float | None = None, **values: Any) -> Moment:
        """A moment of a stopped training; version 0.1 gave every metric in percent, as `accuracy`."""
        if accuracy is None:
            return Moment(**values)
        return Moment(**values, value=accuracy if self.objective.metric.is_accuracy else accuracy / 100)

    def trained(self) -> Trained:
        self._share()
        if self.final is None or self.logged_step != self.step:
            self.final = self._validate()
        return Trained(self.step - self.start, self.step, self.final, self.moments)

    def load_optimizer(self, state: StateDict) -> None:
        load_optimizer(self.optimizer, self.shards.share_state(self.optimizer, state) if self.shards else state)

    def state_dict(self) -> StateDict:
        return {
            "step": self.step,
            "logged_step": self.logged_step,
            "seconds": self.seconds,
            "logged_seconds": self.logged_seconds,
            "tally": self.tally.state_dict(),
            "final": tuple(self.final) if self.final else None,
            "moments": {name: vars(moment) for name, moment in self.moments.items()},
            "model": self.model.state_dict(),
            "optimizer": self.shards.optimizer_state(self.optimizer) if self.shards else self.optimizer.state_dict(),
            "hook": self.hook.state_dict(),
            "told_dead": self.told_dead,
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state() if self.data.device.type == "cuda" else None,
            **({"random_of_ranks": ranks.gather(self._random_numbers())} if ranks.now().several else {}),
        }

    def _random_numbers(self) -> tuple[Tensor, Tensor | None]:
        return torch.get_rng_state(), torch.cuda.get_rng_state() if self.data.device.type == "cuda" else None

    def load_state_dict(self, state: StateDict) -> None:
        self.step, self.logged_step = state["step"], state["logged_step"]
        self.seconds, self.logged_seconds = state["seconds"], state["logged_seconds"]
        self.tally.load_state_dict(state["tally"], (self.step - self.logged_step) * self.batch_size)
        self.final = Evaluation(*state["final"]) if state["final"] else None
        self.moments = {name: self._load_moment(**values) for name, values in state["moments"].items()}
        self.model.load_state_dict(state["model"])
        if self.shards is not None:
            self.shards.load()
        self.load_optimizer(state["optimizer"])
        # A run of 0.1.0 that trained without a hook has None here.
        self.hook.load_state_dict(state["hook"] or {})
        self.told_dead = state.get("told_dead", False)
        self._load_random_numbers(state)

    def _load_random_numbers(self, state: StateDict) -> None:
        group, every = ranks.now(), state.get("random_of_ranks", ())
        own = (state["random"], state["cuda_random"])
        if len(every) == group.world:
            own = every[group.rank]
        elif not group.first:
            # With another number of ranks there is nothing to go on with.
            seed_generators(_derive(self.config, f"dropout/{self.order}/{self.step}{_mark_of_rank()}"))
            return
        torch.set_rng_state(own[0])
        # Of a training that goes on elsewhere the numbers of the other device are of no use.
        if own[1] is not None and self.data.device.type == "cuda":
            torch.cuda.set_rng_state(own[1])
