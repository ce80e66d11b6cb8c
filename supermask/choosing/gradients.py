"""Gradients of a loss over a person's own batches, one batch in memory at a time, the model left as it was."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from ..masks.targets import Targets

Tensors = dict[str, Tensor]
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Batch:
    """Inputs as `call` takes them, a mapping of keyword arguments among others, and targets that are no argument."""

    inputs: Any
    targets: Any


@dataclass(frozen=True)
class Evidence:
    """What a score may look at beside the weights.

    seed: of scores that draw random numbers, and of dropout.
    batches: any iterable, or `Shared`, of `(inputs, targets)`, `(input, input, ..., targets)`, `Batch`, or mappings of
        keyword arguments.
    loss: `loss(outputs, targets)`, a mean over the samples; cross-entropy if not given. For batches that are mappings
        it is called as `loss(outputs, batch)`, and if not given the outputs' own `loss` is taken.
    example_input: what the model takes, of any batch size: its shape is all that counts.
    start: the weights that training began from, by name.
    """

    seed: int = 0
    batches: Iterable[Any] | None = None
    loss: Loss | None = None
    example_input: Any = None
    start: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Shared:
    """Batches of which each of several processes has its own: what is summed over them is summed over all processes.

        batches = Shared(my_batches, all_reduce)      # all_reduce: adds a tensor up over the processes, in place

    Every process then has the scores of all batches. Each needs one batch at least.
    """

    batches: Iterable[Any]
    add: Callable[[Tensor], Any]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def over_all(batches: Iterable[Any], samples: int, sums: Iterable[Tensor]) -> int:
    """Add up what was summed over batches over all processes that share them, in place.

    Returns:
        The number of samples of all.
    """
    if not isinstance(batches, Shared):
        return samples
    number = torch.tensor(samples)
    for each in (number, *sums):
        batches.add(each)
    return int(number)


class Replay:
    """An iterator that can be gone through again: what it gives is kept."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches, self.kept = batches, list[Any]()

    def __iter__(self) -> Iterator[Any]:
        yield from self.kept
        for batch in self.batches:
            self.kept.append(batch)
            yield batch


def batches_of(score: str, evidence: Evidence) -> Iterable[Any]:
    """The batches that a score needs.

    Raises:
        ValueError: there are none.
    """
    if evidence.batches is None:
        raise ValueError(
            f"the score '{score}' looks at gradients: expected batches=..., an iterable of (inputs, targets)"
        )
    if not isinstance(evidence.batches, Iterable):
        raise ValueError(f"batches is {type(evidence.batches).__name__}, expected an iterable of (inputs, targets)")
    return evidence.batches


def gradients(
    model: nn.Module, targets: Targets, batches: Iterable[Any], loss: Loss | None, *, graph: bool = False
) -> Iterator[tuple[int, Tensors]]:
    """Of each batch: its number of samples and the gradient of its loss for each target.

    A target that the loss does not depend on has a gradient of zeros. With `graph` the gradients can be
    differentiated again.

    Raises:
        ValueError: no batch at all, a batch of another form, or a loss that is no single number.
    """
    parameters = {name: target.parameter for name, target in targets.items()}
    found = False
    for batch in batches:
        found = True
        samples, value = _loss_of(model, move_to(batch, next(iter(parameters.values())).device), loss)
        if not value.requires_grad:
            raise ValueError("the loss of a batch depends on no weight: expected one that can be differentiated")
        grads = torch.autograd.grad(
            value, list(parameters.values()), create_graph=graph, allow_unused=True, materialize_grads=True
        )
        # Deleted, here and by who asked: a name that lives on would keep this batch's graph beside the next one's.
        del batch, value
        yield samples, dict(zip(parameters, grads, strict=True))
        del grads
    if not found:
        raise ValueError("batches is empty: expected at least one batch of (inputs, targets)")


def average(
    model: nn.Module, targets: Targets, score: str, evidence: Evidence, term: Callable[[Tensor, Tensor], Tensor]
) -> Tensors:
    """The mean over all samples of `term(gradient of a batch, weight)`, for each target."""
    total, sums = 0, {name: zeros_for(target.parameter) for name, target in targets.items()}
    batches = batches_of(score, evidence)
    for samples, grads in gradients(model, targets, batches, evidence.loss):
        total += samples
        for name, target in targets.items():
            sums[name] += samples * term(grads[name].to(sums[name]), target.parameter.detach())
        del grads
    total = over_all(batches, total, sums.values())
    return {name: value / total for name, value in sums.items()}


def hessian_times(
    model: nn.Module, targets: Targets, batches: Iterable[Any], loss: Loss | None, vector: Mapping[str, Tensor]
) -> Tensors:
    """The Hessian of the mean loss times a vector, over all samples: the gradient of (gradient . vector)."""
    parameters = [target.parameter for target in targets.values()]
    total, sums = 0, [zeros_for(parameter) for parameter in parameters]
    # Only this kernel of attention can be differentiated twice.
    with sdpa_kernel(SDPBackend.MATH):
        for samples, grads in gradients(model, targets, batches, loss, graph=True):
            product = sum(((grads[name] * vector[name]).sum() for name in targets), torch.zeros(()))
            total += samples
            if product.requires_grad:  # not of a loss that is linear in the weights
                parts = torch.autograd.grad(product, parameters, allow_unused=True, materialize_grads=True)
                for held, part in zip(sums, parts, strict=True):
                    held += samples * part
            del grads, product
    total = over_all(batches, total, sums)
    return {name: held / total for name, held in zip(targets, sums, strict=True)}


def wide(parameter: Tensor) -> torch.dtype:
    """The dtype to add up in what belongs to a parameter: float32 at least, lower precisions stop growing."""
    return torch.promote_types(parameter.dtype, torch.float32)


def zeros_for(parameter: Tensor) -> Tensor:
    """Zeros to add up what belongs to a parameter."""
    return torch.zeros_like(parameter, dtype=wide(parameter))


@contextmanager
def undisturbed(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Leave the model's buffers, modes, gradient flags and the global random numbers as they were."""
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        seed_generators(seed)
        try:
            for parameter, _ in flags:
                if parameter.is_floating_point():
                    parameter.requires_grad_(True)
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            with torch.no_grad():
                for module, name, buffer, before in buffers:
                    module._buffers[name] = buffer
                    if buffer is not None and before is not None:
                        buffer.copy_(before)


class Operations(TorchDispatchMode):
    """A mode that sees every operation of a pass.

    PyTorch's own would keep torch.compile off itself, and to do so imports the compiler, which takes as long as all of
    PyTorch: what is compiled is kept out of such a pass by `as_written`.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def as_written() -> AbstractContextManager[Any]:
    """Inside, what torch.compile has compiled runs as it was written. To ask for it would import the compiler."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager


def seed_generators(seed: int) -> None:
    """Seed PyTorch's global generators, on the CPU and on every device that there is.

    Where there is no device, `torch.manual_seed` seeds those to come, and keeps a stack trace of the caller for each
    kind: that takes a hundred times as long, and longer than a step of a small network.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a model on a tensor, on a tuple of positional or on a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def floating_outputs(outputs: Any) -> list[Tensor]:
    """All floating-point tensors of what a model gives: a network with several heads has several.

    Raises:
        ValueError: there is none.
    """
    if found := [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()]:
        return found
    raise ValueError(
        f"the model's output is {_form(outputs)}, expected a tensor of floating-point numbers, or a tuple, mapping or "
        "dataclass of some"
    )


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in what a model takes or gives, in order: in tuples, mappings and dataclasses, however deep.

    A model's own kind of output is opened too where it is the whole of it.
    """
    found = list(_tensors_in(value))
    yield from found or _tensors_in(list(getattr(value, "__dict__", {}).values()))


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        parts: Iterable[Any] = value.values()
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, each.name, None) for each in fields(value)]
    else:
        parts = value if isinstance(value, (tuple, list, set, frozenset)) else ()
    for part in () if isinstance(value, Tensor) else parts:
        yield from _tensors_in(part)


def _loss_of(model: nn.Module, batch: Any, loss: Loss | None) -> tuple[int, Tensor]:
    value: Any
    if isinstance(batch, Batch):
        value = (loss or F.cross_entropy)(call(model, batch.inputs), batch.targets)
        expected = "loss(outputs, targets) to give one number"
    elif isinstance(batch, Mapping):
        outputs = model(**batch)
        value = loss(outputs, batch) if loss is not None else getattr(outputs, "loss", None)
        expected = "outputs with a loss of their own, or loss=..."
    elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
        *inputs, wanted = batch
        outputs = model(*inputs)
        value = (loss or F.cross_entropy)(outputs, wanted)
        expected = "loss(outputs, targets) to give one number"
    else:
        raise ValueError(f"a batch is {_form(batch)}, expected (inputs, targets) or a mapping of keyword arguments")
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ValueError(f"the loss of a batch is {_form(value)}, expected {expected}")
    return next((len(tensor) for tensor in tensors_in(batch) if tensor.dim()), 1), value.reshape(())


def move_to(batch: Any, device: torch.device) -> Any:
    """A batch of any form with its tensors on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Batch):
        return Batch(move_to(batch.inputs, device), move_to(batch.targets, device))
    if isinstance(batch, Mapping):
        return {key: move_to(part, device) for key, part in batch.items()}
    return type(batch)(move_to(part, device) for part in batch) if type(batch) in (tuple, list) else batch


def _form(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list)) else type(value).__name__
