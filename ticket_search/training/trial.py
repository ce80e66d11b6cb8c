"""One batch in evaluation and in training mode, before anything is written: does the network do what is asked?"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from supermask.choosing.gradients import call, undisturbed
from supermask.plugins.entry_points import one_line

from ..contract.errors import RAISED, RequestError
from ..contract.flags import Config
from ..data.dataset import Data
from ..data.samples import Samples
from ..data.trees import move, take, to_lists
from ..runs.experiment import Setup
from .measures import cross_entropy
from .objective import Objective, Task, check_values, has_floats, make_objective
from .outputs import classes_second, find_loss, main_output, widen

# The model's own loss is that of the next token where it is within this part of it.
_SAME_LOSS = 1e-3
_SAMPLES = 2
# Of so many columns each may be a table of its own.
_COLUMNS = 8


def check_model(setup: Setup, config: Config, model: nn.Module) -> Objective:
    """Check that the network takes the samples and that the loss and the metric take what it gives, in both modes.

    Then what the method wants of it. The model is left as it was.

    Returns:
        The objective, which the setup keeps.

    Raises:
        RequestError: it does not.
    """
    setup.objective = None
    objective = find_objective(setup, config, model)
    data = setup.data
    # Batch norm takes two samples at least in training, and validation may have one.
    batches = {
        False: next(data.batches("validation", _SAMPLES)),
        True: next(data.train_batches(torch.arange(min(_SAMPLES, data.train_size)), _SAMPLES)),
    }
    with undisturbed(model):
        for training, (x, y) in batches.items():
            model.train(training)
            _check_batch(setup, objective, model, x, y)
        model.eval()
        _check_extremes(setup, objective, model)
    if setup.method.check is not None:
        with torch.no_grad():
            setup.method.check(model, setup.data, config)
    return objective


def find_objective(setup: Setup, config: Config, model: nn.Module) -> Objective:
    """The objective of a run: made once from its configuration and from what a first batch shows.

    Raises:
        RequestError: the network does not take the samples, or a loss or metric that has to be named.
    """
    if setup.objective is None:
        task = look_at(setup.data, setup.architecture["name"], config, model)
        setup.objective = make_objective(config, setup.functions, task)
        setup.metric = setup.objective.metric
    found: Objective = setup.objective
    return found


@torch.no_grad()
def look_at(data: Samples, name: str, config: Config, model: nn.Module) -> Task:
    """What the task is, as two samples of the validation split and what the network gives for them show.

    Raises:
        RequestError: the network does not take them, or gives what cannot be read.
    """
    x, y = next(data.batches("validation", _SAMPLES))
    floats, several, language = has_floats(y), not isinstance(y, Tensor), _is_language_model(model)
    if config.loss not in (None, "model"):
        return Task(floats=floats, several=several, language=language)
    arguments = _arguments(model) if "labels" in inspect.signature(model.forward).parameters else ()
    asking = Objective("model", task=Task(arguments=arguments))
    outputs = _run(data, name, model, asking.inputs(x, y))
    loss = find_loss(outputs)
    if loss is None:
        return Task(floats=floats, several=several, language=language)
    shifted = not several and not floats and _is_shifted(outputs, y, float(loss))
    if shifted and _are_next_tokens(x, y):
        # Its loss would shift them once more, and learn to predict the token after the next.
        if config.loss == "model":
            raise RequestError(
                f"--loss model: the loss of {name} is that of the next token, and the targets of "
                f"{data.name} are the next tokens already; expected --loss cross-entropy"
            )
        return Task(floats=floats, several=several, language=language)
    return Task(floats, several, True, arguments, language, shifted)


def _arguments(model: nn.Module) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(model.forward).parameters if name != "labels")


def _is_language_model(model: nn.Module) -> bool:
    embeddings = getattr(model, "get_output_embeddings", None)
    return callable(embeddings) and embeddings() is not None


def _is_shifted(outputs: Any, y: Tensor, loss: float) -> bool:
    """Whether the loss is the cross-entropy of each token's logits with the token after it."""
    logits = main_output(outputs)
    if y.dim() != 2 or logits is None or list(logits.shape[:-1]) != list(y.shape) or y.shape[1] < 2:
        return False
    second = classes_second(widen(logits), y, named=True)
    same, following = float(cross_entropy(second, y)), float(cross_entropy(second[:, :, :-1], y[:, 1:]))
    near = abs(following - loss) <= _SAME_LOSS * max(abs(loss), 1e-6)
    return near and abs(following - loss) < abs(same - loss)


def _are_next_tokens(x: Any, y: Tensor) -> bool:
    """Whether the targets are the tokens of the samples, one place on."""
    return any(
        isinstance(tokens, Tensor) and tokens.shape == y.shape and torch.equal(tokens[:, 1:], y[:, :-1])
        for tokens in tree_leaves(x)
    )


def _run(data: Samples, name: str, model: nn.Module, inputs: Any) -> Any:
    """The outputs of the network in evaluation mode, which it is taken out of again."""
    mode = model.training
    model.eval()
    try:
        return _forward(data, name, model, inputs)
    finally:
        model.train(mode)


def _forward(data: Samples, name: str, model: nn.Module, inputs: Any) -> Any:
    try:
        return call(model, inputs)
    except RAISED as error:
        shape = to_lists(data.input_shape)
        raise RequestError(f"the network {name} does not take samples of shape {shape}: {one_line(error)}") from None


def _check_batch(setup: Setup, objective: Objective, model: nn.Module, x: Any, y: Any) -> None:
    """A batch through the network, the loss, the metric and, in training mode, the gradients.

    Raises:
        RequestError: what fails, or is NaN, or no number, or depends on no parameter.
    """
    name, where = setup.architecture["name"], "in training" if model.training else "in evaluation"
    outputs = _forward(setup.data, name, model, objective.inputs(x, y))
    main = main_output(outputs)
    if objective.kind == "cross-entropy" and main is not None:
        _check_classes(setup, main, y)
    try:
        loss = objective.training_loss(outputs, y) if model.training else objective.loss(outputs, y)
    except RequestError as error:
        raise RequestError([f"the network {name}, {where} mode: {problem}" for problem in error.problems]) from None
    except RAISED as error:
        raise RequestError(f"the loss does not take what the network {name} gives: {one_line(error)}") from None
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        gives = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise RequestError(f"the loss of a batch is {gives}, expected one number, the mean over the batch")
    if not bool(torch.isfinite(loss)):
        value = float(loss.detach())
        raise RequestError(f"the loss of the first batch is {value} {where} mode, expected a finite number")
    if model.training and any(parameter.requires_grad for parameter in model.parameters()):
        if not loss.requires_grad:
            raise RequestError("the loss depends on no parameter of the network: expected one that has gradients")
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        torch.autograd.grad(loss.reshape(()), parameters, allow_unused=True)
    _check_metric(objective, outputs, y, loss.detach())


@torch.no_grad()
def _check_extremes(setup: Setup, objective: Objective, model: nn.Module) -> None:
    """Check that the network takes the samples with the smallest and the largest whole numbers, and the loss theirs.

    A token for which there is no row, or a class without an output, would end the training where it comes first.

    Raises:
        RequestError: it does not, with the number, the split and the numbers.
    """
    data, name = setup.data, setup.architecture["name"]
    if not isinstance(data, Data):
        return
    for part, (x, y) in data.parts.items():
        tokens = [leaf for leaf in tree_leaves(x) if leaf.dtype == torch.int64]
        classes = [leaf for leaf in tree_leaves(y) if leaf.dtype == torch.int64 and leaf.dim() > 1]
        for row in sorted({row for leaf in tokens + classes for row in _extremes(leaf)}):
            where, what, numbers = torch.tensor([row]), f"the network {name}", tokens
            some_x, some_y = (move(take(tree, where), data.device) for tree in (x, y))
            try:
                outputs = call(model, objective.inputs(some_x, some_y))
                what, numbers = "the loss", classes
                objective.loss(outputs, some_y)
            except RAISED as error:
                kind = "tokens" if numbers is tokens else "targets"
                lie = [f"whose {kind} are {int(leaf[row].min())} to {int(leaf[row].max())}" for leaf in numbers]
                told = ", ".join([f"sample {row} of {part}", *lie])
                raise RequestError(f"{what} does not take {told}: {one_line(error)}") from None


def _extremes(leaf: Tensor) -> set[int]:
    """The numbers of the samples with the smallest and the largest numbers, of few columns of each."""
    flat = leaf.flatten(1)
    if not flat.numel():
        return set()
    if flat.shape[1] > _COLUMNS:
        flat = torch.stack([flat.amin(1), flat.amax(1)], 1)
    return set(torch.cat([flat.argmin(0), flat.argmax(0)]).tolist())


def _check_classes(setup: Setup, main: Tensor, y: Any) -> None:
    """Check that there is a number for each class.

    Raises:
        RequestError: there are fewer.
    """
    name, data = setup.architecture["name"], setup.data
    if not isinstance(y, Tensor) or y.dim() != 1:
        return
    if main.dim() != 2 or main.shape[1] < data.classes:
        gives = main.shape[1] if main.dim() == 2 else f"{list(main.shape)} for {len(y)} samples, not that many"
        hint = ""
        if main.dim() == 2 and main.shape[1] == data.classes - 1 and not bool((y == 0).any()):
            hint = "; class numbers begin at 0: do those of your data begin at 1?"
        raise RequestError(
            f"the network {name} gives {gives} numbers per sample, {data.name} has {data.classes} classes{hint}"
        )


def _check_metric(objective: Objective, outputs: Any, y: Any, loss: Tensor) -> None:
    measure = objective.measure
    try:
        with torch.no_grad():
            batch = objective.batch(outputs, y, loss)
            check_values(measure, batch)
            value = measure.value(measure.add(measure.start(loss.device), batch))
    except RequestError:
        raise
    except RAISED as error:
        name = objective.metric.name
        raise RequestError(f"the metric {name} does not take what the network gives: {one_line(error)}") from None
    if value != value or abs(value) == float("inf"):
        raise RequestError(
            f"the metric {objective.metric.name} is {value} for the first batch, expected a finite number"
        )
