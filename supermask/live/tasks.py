"""Several tasks in one network: all masks in memory, one of them in the weights, and which task a batch is of.

Wortsman et al., Supermasks in Superposition, 2020.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..choosing.gradients import tensors_in
from ..masks.masks import Masks
from ..masks.targets import find_named, nearest, plain_name, unwrap
from ..weights.fitting import plain_state
from .held import carries_masks
from .zeroing import integer

Objective = Literal["entropy", "superfluous"]
Search = Literal["one-shot", "halving"]


def entropy(logits: Tensor) -> Tensor:
    """H, the mean over a batch of the entropy of the softmax of logits [n, outputs], in nats."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()


def superfluous(logits: Tensor, real: int) -> Tensor:
    """G, the mean over a batch of the logsumexp of logits [n, outputs], of which the first `real` are held constant.

    Its gradient goes through the outputs that no class has: training has taught the right mask to keep them low.
    """
    held = torch.cat([logits[:, :real].detach(), logits[:, real:]], 1)
    return held.logsumexp(1).mean()


class Superposition:
    """The network of several tasks over one backbone: it switches between them in place, and infers them.

        net = ticket.superpose()
        net.switch("2")                      # the weights of task 2, in the parameters that the model has
        outputs = net(images)
        net.infer(images, images=16)         # the task of every 16 images, by one gradient each

    The weights of a task are those of the backbone where its mask keeps, and exactly 0 elsewhere. In memory are the
    model, the backbone's masked weights, a byte for each weight and task, and what each task has of its own: no model
    is ever copied. Between switches the model is an ordinary one; what is written to its weights is lost at the next.

    Args:
        model: an ordinary module, changed in place, in evaluation mode from now on.
        backbone: the tensors that all tasks share, without masks, by the names of the state dict.
        masks: those of each task, True = kept.
        own: for each task the tensors that it does not share: statistics and parameters of norms, biases.

    Raises:
        ValueError: fewer than two tasks, tensors that are not the model's, or a model that carries masks.
    """

    def __init__(
        self,
        model: nn.Module,
        backbone: Mapping[str, Tensor],
        masks: Mapping[str, Masks],
        own: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        if carries_masks(model):
            raise ValueError("the model carries masks: supermask.detach(model) takes them off")
        if len(masks) < 2:
            raise ValueError(f"a superposition is of two tasks at least, got {len(masks)}")
        self.model, self.tasks = model.eval(), tuple(masks)
        self._net = unwrap(model)
        self._own = {task: dict((own or {}).get(task, {})) for task in masks}
        there, names = plain_state(model), sorted({name for each in masks.values() for name in each})
        given = {**backbone, **next(iter(self._own.values()))}
        if problems := _misfits(there, given, masks, names):
            raise ValueError("the tasks do not fit the model: " + "; ".join(problems))
        with torch.no_grad():
            for name in backbone.keys() - set(names):
                there[name].copy_(backbone[name])
        self._places = _places_of(self._net, given)
        self._backbone = {name: backbone[name].detach() for name in names}
        self._masks = {
            task: {name: _as_bytes(each.get(name), backbone[name]) for name in names} for task, each in masks.items()
        }
        # The superposition of all tasks, once it has been asked for.
        self._mixed: dict[str, Tensor] = {}
        self.task = self.tasks[0]
        self.switch(self.task)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """What the network of the task that it has been switched to gives."""
        return self.model(*inputs, **named)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each masked weight."""
        return {name: tuple(weight.shape) for name, weight in self._backbone.items()}

    def _live(self, name: str) -> Tensor:
        """A tensor of the model, as it is now."""
        module, attribute = self._places[name]
        tensor = module._parameters.get(attribute)
        found = module._buffers[attribute] if tensor is None else tensor
        assert found is not None, name
        return found.detach()

    def _settle(self) -> None:
        """Lay everything out as the model's weights are: it may have been moved, or have another memory format."""
        for name, weight in self._backbone.items():
            live = self._live(name)
            if (live.device, live.dtype, live.stride()) == (weight.device, weight.dtype, weight.stride()):
                continue
            self._backbone[name] = torch.empty_like(live).copy_(weight)
            for masks in self._masks.values():
                masks[name] = torch.empty_like(live, dtype=torch.int8).copy_(masks[name])
            self._mixed = {}

    @torch.no_grad()
    def switch(self, task: str) -> nn.Module:
        """Make the model that of a task, in place, and give it back.

        Raises:
            ValueError: an unknown task.
        """
        if task not in self._masks:
            raise ValueError(f"no task '{task}'{nearest(task, self.tasks)}; there are {', '.join(self.tasks)}")
        self._settle()
        for name, mask in self._masks[task].items():
            _write_masked(self._live(name), self._backbone[name], mask)
        for name, tensor in self._own[task].items():
            self._live(name).copy_(tensor)
        self.task = task
        return self.model

    def gradient(
        self,
        x: Any,
        tasks: Sequence[str] | None = None,
        objective: Objective = "entropy",
        real: int | None = None,
    ) -> Tensor:
        """dF/dalpha of each task, where the weights are w * sum of alpha_i m_i and every alpha is 1/k.

        The lower it is, the more would more of that task lower F: the entropy H of the outputs, or with `superfluous`
        G (see there). F is the mean over all samples of `x`, of which the network gives logits [n, outputs].

        What a task has of its own beside masks has no alpha: of it the mean over the tasks is taken. Batch norms use
        the statistics of the batch, as in the authors' code, whose pass is in training mode; the tasks' running
        statistics are neither used nor changed, and a batch must have more than one value for each channel.

        Args:
            x: a batch, or a tuple or dictionary of arguments.
            tasks: the k that are superposed; all if not given.
            objective: `entropy` or `superfluous`.
            real: for `superfluous`, how many outputs have a class: the first ones.

        Returns:
            A tensor [k], on the model's device.

        Raises:
            ValueError: an unknown objective, `real` that does not fit it, or outputs that are no logits.
        """
        chosen = tuple(self.tasks if tasks is None else tasks)
        find_named("objective", objective, dict.fromkeys(("entropy", "superfluous")))
        if (objective == "superfluous") != (real is not None):
            raise ValueError("objective='superfluous' goes with real=, the number of outputs that have a class")
        self._settle()
        superposed = self._superpose(chosen)
        with torch.enable_grad(), _batch_statistics(self._net):
            mixed = {name: weight.detach().requires_grad_() for name, weight in superposed.items()}
            logits = self._logits({**self._mean_of_own(chosen), **mixed}, x)
            value = entropy(logits) if real is None else superfluous(logits, _at_most(real, logits))
            gradients = torch.autograd.grad(value, list(mixed.values()), allow_unused=True)
        total = torch.zeros(len(chosen), device=logits.device, dtype=logits.dtype)
        for (name, weight), gradient in zip(self._backbone.items(), gradients, strict=True):
            if gradient is not None:
                product = gradient * weight
                total += torch.stack([(product * self._masks[task][name]).sum() for task in chosen])
        return total

    def infer(
        self,
        x: Any,
        images: int | None = None,
        search: Search = "one-shot",
        objective: Objective = "entropy",
        real: int | None = None,
    ) -> list[str]:
        """Which task each group of samples is of: that of the lowest gradient (see `gradient`).

            net.infer(batch)              # one task for the whole batch
            net.infer(batch, images=1)    # one for each sample: a decision from one image
            net.infer(batch, images=16)   # one for every 16; what is left over at the end is a group too

        Args:
            x: a batch, or a tuple or dictionary of arguments.
            images: how many samples decide together; if not given all of them.
            search: `one-shot`, by one gradient of all tasks; or `halving`, by one gradient after another, each of the
                half of the tasks whose gradient was the lowest before, for many tasks.
            objective: as of `gradient`.
            real: as of `gradient`.

        Returns:
            A name for each group.

        Raises:
            ValueError: an unknown search, fewer than one sample a decision, or as of `gradient`.
        """
        if search not in ("one-shot", "halving"):
            raise ValueError(f"unknown search '{search}'; there are one-shot and halving")
        if images is not None and images < 1:
            raise ValueError(f"images={images}: expected how many samples decide together, 1 or more")
        return [self._decide(group, search, objective, real) for group in _groups(x, images)]

    def _decide(self, x: Any, search: Search, objective: Objective, real: int | None) -> str:
        left = list(self.tasks)
        while len(left) > 1:
            order = self.gradient(x, left, objective, real).argsort(stable=True).tolist()
            stay = 1 if search == "one-shot" else (len(left) + 1) // 2
            # In the order of the tasks, so that equal gradients are decided by it.
            left = [left[place] for place in sorted(order[:stay])]
        return left[0]

    def _superpose(self, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Each weight times the share of the tasks that keep it."""
        if tasks == self.tasks and self._mixed:
            return self._mixed
        mixed = {}
        for name, weight in self._backbone.items():
            count = torch.zeros_like(weight)
            for task in tasks:
                count += self._masks[task][name]
            mixed[name] = count.mul_(weight).div_(len(tasks))
        if tasks == self.tasks:
            self._mixed = mixed
        return mixed

    def _mean_of_own(self, tasks: Sequence[str]) -> dict[str, Tensor]:
        names = [name for name, tensor in self._own[tasks[0]].items() if tensor.is_floating_point()]
        return {
            name: torch.stack([self._own[task][name] for task in tasks]).mean(0).to(self._live(name)) for name in names
        }

    def _logits(self, tensors: Mapping[str, Tensor], x: Any) -> Tensor:
        positional: tuple[Any, ...] = x if isinstance(x, tuple) else () if isinstance(x, Mapping) else (x,)
        named = dict(x) if isinstance(x, Mapping) else {}
        outputs = torch.func.functional_call(self._net, dict(tensors), positional, named)
        logits = next(iter(tensors_in(outputs)), None)
        if logits is None or logits.dim() != 2:
            shape = None if logits is None else list(logits.shape)
            raise ValueError(f"tasks are inferred from logits [n, outputs]; the network gives {shape}")
        return logits


def _misfits(
    there: Mapping[str, Tensor], given: Mapping[str, Tensor], masks: Mapping[str, Masks], masked: Sequence[str]
) -> list[str]:
    problems = [f"the tasks have no tensor '{name}'" for name in there if name not in given]
    for name, tensor in given.items():
        if name not in there:
            problems.append(f"there is no tensor '{name}'{nearest(name, there)}")
        elif tensor.shape != there[name].shape:
            problems.append(f"{name} has shape {list(there[name].shape)}, that of the tasks {list(tensor.shape)}")
    shapes = {task: each.shapes for task, each in masks.items()}
    for name in masked:
        if name not in given:
            problems.append(f"'{name}' is masked, and the tasks have no tensor of that name")
            continue
        wrong = [task for task in masks if shapes[task].get(name, given[name].shape) != tuple(given[name].shape)]
        problems += [f"the mask of {name} of task '{task}' has another shape than the weight" for task in wrong]
    return problems


def _places_of(net: nn.Module, names: Iterable[str]) -> dict[str, tuple[nn.Module, str]]:
    """The module and the attribute of each tensor."""
    places = dict[str, tuple[nn.Module, str]]()
    for path, module in net.named_modules():
        for attribute in (*module._parameters, *module._buffers):
            places.setdefault(plain_name(f"{path}.{attribute}".removeprefix(".")), (module, attribute))
    return {name: places[name] for name in names}


def _as_bytes(mask: Tensor | None, weight: Tensor) -> Tensor:
    """A mask as bytes, laid out as the weight is: the two are walked together. Without one all is kept."""
    bits = torch.empty_like(weight, dtype=torch.int8)
    return bits.fill_(1) if mask is None else bits.copy_(mask)


def _write_masked(live: Tensor, weight: Tensor, mask: Tensor) -> None:
    """The weight where the mask keeps, exactly +0 where it drops, NaN and -0.0 included, into `live`."""
    if live.is_cpu:
        kind = integer(weight)
        # As integers, times 0 or 1, which takes a tenth of the time of a choice.
        np.multiply(weight.view(kind).numpy(), mask.numpy(), out=live.view(kind).numpy())
    else:
        live.copy_(torch.where(mask.bool(), weight, torch.zeros((), dtype=weight.dtype, device=weight.device)))


@contextlib.contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """Within it batch norms use the statistics of the batch, and keep those that they have."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, (training, tracks) in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = training, tracks


def _at_most(real: int, logits: Tensor) -> int:
    if not 1 <= real < logits.shape[1]:
        raise ValueError(
            f"real={real}: the network has {logits.shape[1]} outputs, of which at least one must have no class"
        )
    return real


def _groups(x: Any, size: int | None) -> Iterator[Any]:
    leaves = list(tensors_in(x))
    count = len(leaves[0]) if leaves else 0
    if size is None:
        yield x
        return
    for start in range(0, count, size):
        yield _part(x, start, start + size)


def _part(x: Any, start: int, end: int) -> Any:
    if isinstance(x, Tensor):
        return x[start:end]
    if isinstance(x, Mapping):
        return {key: _part(value, start, end) for key, value in x.items()}
    return tuple(_part(value, start, end) for value in x)
