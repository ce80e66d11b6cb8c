"""What is minimized and reported: losses and metrics by name, of the model itself, or functions of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from supermask.choosing import gradients

from ..contract.errors import RequestError
from ..contract.flags import Config
from ..contract.metric import METRICS, Metric, metric_of_function
from ..data.checks import IGNORED
from ..data.factories import find_factory
from ..data.trees import count
from .measures import Accuracy, Batch, Measure, Own, bce, cross_entropy, main_of, make_measure, mse
from .outputs import classes_second, main_output, number_by_number, own_loss, widen

Kind = Literal["cross-entropy", "mse", "bce", "model", "own"]
Functions = Mapping[str, Callable[..., Any]]
_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross-entropy": cross_entropy, "mse": mse, "bce": bce}
# The metrics that say something beside a loss; of a function of one's own, and of the model's loss, any may.
_FITTING: dict[str, tuple[str, ...]] = {
    "cross-entropy": ("accuracy", "perplexity"),
    "mse": ("r2", "mse", "mae"),
    "bce": ("accuracy", "r2", "mse", "mae"),
}


@dataclass(frozen=True)
class Task:
    """What the data and the network say of the task, as the first batch shows it (see `trial.look_at`).

    floats: the targets are floats, not class numbers.
    several: the targets are a tree, which only functions of one's own and the model's own loss can read.
    own_loss: the outputs have a loss of their own.
    arguments: the names of the network's arguments, where it is also given the targets, as `labels`.
    language: it is a language model: it has output embeddings.
    shifted: its loss is that of the next token, as that of causal language models.
    """

    floats: bool = False
    several: bool = False
    own_loss: bool = False
    arguments: tuple[str, ...] = ()
    language: bool = False
    shifted: bool = False


@dataclass(frozen=True)
class Objective:
    """A loss, a metric, and how outputs are read for them.

    The main output is the tensor that a network gives, the first of a tuple, or `logits`, else `out`, of a dictionary
    or dataclass. What else it gives is auxiliary: it counts in the model's own loss and in a loss function of one's
    own, which is given the whole output, and nowhere else.
    """

    kind: Kind = "cross-entropy"
    measure: Measure = field(default_factory=Accuracy)
    function: Callable[[Any, Any], Tensor] | None = None
    label_smoothing: float = 0.0
    task: Task = Task()

    @property
    def metric(self) -> Metric:
        """The metric's name, direction and unit."""
        return self.measure.metric

    def inputs(self, x: Any, y: Any) -> Any:
        """What the network is called with: the samples, and for a loss of its own the targets as `labels`."""
        if not self.task.arguments or self.kind != "model":
            return x
        if not isinstance(x, Mapping):
            x = dict(zip(self.task.arguments, x if isinstance(x, (tuple, list)) else (x,), strict=False))
        return {**x, "labels": y}

    def score_batch(self, x: Any, y: Any) -> Any:
        """A batch as scores of weights take it: `(input, targets)`, `(input, input, ..., targets)`, or named inputs."""
        inputs = self.inputs(x, y)
        if isinstance(inputs, Mapping):
            return gradients.Batch(inputs, y)
        return (*inputs, y) if isinstance(inputs, (tuple, list)) else (inputs, y)

    def weight(self, y: Any) -> Tensor | int:
        """How many targets of a batch count: its samples, or the class numbers that are not -100, on the device."""
        if not isinstance(y, Tensor) or y.dim() == 1 or y.is_floating_point() or self.kind in ("mse", "bce"):
            return count(y)
        return ((y[:, 1:] if self.task.shifted else y) != IGNORED).sum()

    def loss(self, outputs: Any, y: Any) -> Tensor:
        """The mean loss over the targets that count, without label smoothing.

        Raises:
            RequestError: outputs that do not fit the targets, or that have no loss of their own.
        """
        if self.kind == "model":
            return own_loss(outputs)
        if self.function is not None:
            return self.function(_to_float(outputs), y)
        return _LOSSES[self.kind](*self._aligned(outputs, y))

    def training_loss(self, outputs: Any, y: Any) -> Tensor:
        """The loss that is minimized: with label smoothing, which evaluation goes without."""
        if self.label_smoothing and self.kind == "cross-entropy":
            return cross_entropy(*self._aligned(outputs, y), label_smoothing=self.label_smoothing)
        return self.loss(outputs, y)

    def batch(self, outputs: Any, y: Any, loss: Tensor) -> Batch:
        """What the metric sees of a batch, cut off from the graph.

        Raises:
            RequestError: outputs that do not fit the targets.
        """
        weight, main = self.weight(y), main_output(outputs)
        if main is None or isinstance(self.measure, Own):
            return Batch(None if main is None else widen(main.detach()), y, loss, weight)
        if not isinstance(y, Tensor) or self.metric == METRICS["perplexity"]:
            return Batch(main.detach(), y, loss, weight)
        aligned, targets = self._aligned(outputs, y)
        return Batch(aligned.detach(), targets, loss, weight)

    def _aligned(self, outputs: Any, y: Any) -> tuple[Tensor, Tensor]:
        """The main output and the targets as losses and metrics compare them."""
        main = main_output(outputs)
        if main is None or not isinstance(y, Tensor):
            what = "the network gives a loss only" if main is None else "the targets are several"
            raise RequestError(
                f"{what}: expected a loss and a metric of one's own, --loss and --metric module:function"
            )
        main = widen(main)
        if y.is_floating_point() or self.kind in ("mse", "bce"):
            return number_by_number(main, y), y.to(main.dtype)
        main = classes_second(main, y, named=not isinstance(outputs, Tensor))
        return (main[:, :, :-1], y[:, 1:]) if self.task.shifted and self.kind == "model" else (main, y)


def _to_float(outputs: Any) -> Any:
    """The whole output with its floating-point tensors in float32 at least."""
    if isinstance(outputs, Tensor):
        return widen(outputs)
    return tree_map_only(Tensor, widen, outputs)


CLASSIFICATION = Objective()


def make_objective(config: Config, functions: Functions | None = None, task: Task | None = None) -> Objective:
    """The configured objective.

    Args:
        config: its `loss` and `metric` are names of ours, `package.module:function`, or None.
        functions: the functions that a caller in Python has given, by `loss` and `metric`, in place of those names.
        task: what the data and the network are. If not given, the classification of one class a sample, and whether the
            metric goes with the loss is not looked at.

    Raises:
        RequestError: every problem: functions that cannot be loaded, a loss or a metric that has to be named, or that
            does not go with the other.
    """
    found, problems = dict(functions or {}), list[str]()
    for name in ("loss", "metric"):
        spec = getattr(config, name)
        if name not in found and spec is not None and ":" in spec:
            try:
                found[name] = find_factory(spec, config.leaves)
            except RequestError as error:
                problems += error.problems
    if problems:
        raise RequestError(problems)
    known, task = task is not None, task or Task()
    kind = _choose_kind(config, "loss" in found, task)
    measure = _choose_measure(config, found.get("metric"), kind, task, known)
    if config.label_smoothing and kind != "cross-entropy":
        raise RequestError(f"--label-smoothing goes with cross-entropy, and the loss is {_KINDS[kind]}")
    return Objective(kind, measure, found.get("loss"), config.label_smoothing, task)


_KINDS = {"model": "the model's own: --loss cross-entropy asks for the other", "mse": "mse", "bce": "bce"} | {
    "own": "a function"
}


def _choose_kind(config: Config, own: bool, task: Task) -> Kind:
    if own:
        return "own"
    kinds: dict[str | None, Kind] = {"cross-entropy": "cross-entropy", "mse": "mse", "bce": "bce", "model": "model"}
    if config.loss in kinds:
        kind = kinds[config.loss]
    elif task.own_loss:
        kind = "model"
    elif task.floats:
        raise RequestError(
            "the targets are floats: name the loss, --loss mse (numbers) or bce (labels that are on or off)"
        )
    else:
        kind = "cross-entropy"
    if kind == "cross-entropy" and task.floats:
        raise RequestError("--loss cross-entropy needs class numbers, and the targets are floats: expected mse or bce")
    if task.several and kind != "model":
        raise RequestError(
            "the targets are several arrays: expected --loss module:function, which is given all of them"
        )
    return kind


def _choose_measure(config: Config, own: Callable[..., Any] | None, kind: Kind, task: Task, known: bool) -> Measure:
    if own is not None:
        return Own(metric_of_function(own), own)
    if task.several:
        raise RequestError(
            "the targets are several arrays: expected --metric module:function, which is given all of them"
        )
    if config.metric is not None:
        if known and config.metric not in _FITTING.get(kind, METRICS):
            raise RequestError(f"--metric {config.metric}: with the loss {kind} expected {', '.join(_FITTING[kind])}")
        return make_measure(config.metric)
    if task.language and kind in ("model", "cross-entropy"):
        return make_measure("perplexity")
    if task.floats and kind in ("model", "own"):
        raise RequestError("the targets are floats: name the metric, --metric r2, mse, mae or (labels) accuracy")
    return make_measure("r2" if kind == "mse" else "accuracy")


def has_floats(y: Any) -> bool:
    """Whether targets are floats: one of them, where they are several."""
    return any(leaf.is_floating_point() for leaf in tree_leaves(y))


def check_values(measure: Measure, batch: Batch) -> None:
    """Check that a function of one's own gives a number for each sample.

    Raises:
        RequestError: it does not.
    """
    if not isinstance(measure, Own):
        return
    found, samples = measure.function(main_of(batch, measure.metric), batch.targets), count(batch.targets)
    shape = list(found.shape) if isinstance(found, torch.Tensor) else None
    if shape != [samples]:
        what = type(found).__name__ if shape is None else f"shape {shape}"
        raise RequestError(f"the metric {measure.metric.name} gives {what} for {samples} samples, expected [{samples}]")
