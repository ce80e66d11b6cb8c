"""Pruning layer after layer by what each one is given: later layers see the inputs that the pruned earlier ones give.

The calibration samples go through the whole model once for each layer, one batch at a time, and of the activations only
a sum is kept, that of the layer which is next: beside the model nothing grows with the number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..masks.masks import Masks
from ..masks.targets import LINEAR, Target, Targets, find_targets, learned_names, unwrap
from ..selection.top_k import best_of_each
from .allocation import by_glob, layerwise
from .gradients import Batch, Replay, call, move_to, over_all, undisturbed, wide
from .granularity import NM, Weight, find_granularity

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Share:
    """What each row of a layer keeps, the weights of one output: `count` of its `columns`, or N of every M."""

    count: int
    columns: int
    groups: NM | None = None

    def choose(self, keys: Tensor, first: int = 0) -> Tensor:
        """The best of a piece of each row.

        Args:
            keys: [..., piece], higher is kept, ties to the first.
            first: the column at which the piece begins. Pieces that make up a row keep `count` together.
        """
        if self.groups is not None:
            return best_of_each(keys.reshape(-1, self.groups.group), self.groups.kept).view(keys.shape)
        kept = self._up_to(first + keys.shape[-1]) - self._up_to(first)
        return best_of_each(keys.reshape(-1, keys.shape[-1]), kept).view(keys.shape)

    def _up_to(self, column: int) -> int:
        """`floor(count * column / columns + 0.5)`, in whole numbers."""
        return (2 * self.count * column + self.columns) // (2 * self.columns)


# (inputs [groups, samples, columns]) -> what is summed over all of them, [groups, ...].
Measure = Callable[[Tensor], Tensor]
# (weights [groups, rows, columns], the sum, what is kept) -> masks and new weights of the weights' shape.
Solve = Callable[[Tensor, Tensor, Share], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Rule:
    """How layers are pruned by their inputs: what is summed over them, and what follows for masks and weights."""

    name: str
    measure: Measure
    solve: Solve


def prune_in_order(
    model: nn.Module,
    density: float | Mapping[str, float],
    rule: Rule,
    granularity: str | Any = "weight",
    *,
    batches: Iterable[Any] | None,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    seed: int = 0,
    one_more: Callable[[], None] | None = None,
) -> Masks:
    """Prune a model in place, layer after layer in the order in which they are first called; returns the masks.

    Args:
        model: any module whose targets are linear layers, transformers' Conv1D, or convolutions that are not
            transposed. It is run in evaluation mode, on its own device.
        density: fraction of each output's weights that is kept, `floor(density * n + 0.5)` of n, or densities by glob
            (see `by_glob`).
        rule: what is summed over the inputs, and what follows from it.
        granularity: `weight`, or N:M.
        batches: calibration samples, an iterable that can be gone through many times (an iterator is read into a
            list): tensors of inputs, or batches as `Evidence` has them, whose targets are not looked at.
        include: globs of the parameters to mask (see `find_targets`).
        exclude: globs of parameters or modules to leave dense.
        seed: of what the model draws in evaluation mode.
        one_more: called when a layer is done.

    Raises:
        ValueError: targets that are no such layers or that the samples never reach, a density that keeps nothing of a
            row, a granularity that does not fit, no batches, or inputs that are NaN or infinite; of the last only the
            first is named, and the layers before it are pruned by then.
    """
    model = unwrap(model)
    if learned_names(model):
        raise ValueError("the model's masks are being learned: supermask.bake(model) first")
    if batches is None or not isinstance(batches, Iterable):
        given = "none" if batches is None else f"a {type(batches).__name__}"
        raise ValueError(f"'{rule.name}' looks at inputs: expected batches=..., an iterable of samples, got {given}")
    if isinstance(batches, Iterator):
        batches = Replay(batches)
    targets = find_targets(model, include, exclude)
    shares = shares_of(rule.name, density, granularity, targets)
    masks: dict[str, Tensor] = {}
    with undisturbed(model, seed), torch.no_grad():
        model.eval()
        for name in _order(rule.name, model, targets, batches):
            target = targets[name]
            total = _measure(model, targets, name, batches, rule.measure)
            if not bool(torch.isfinite(total).all()):
                raise ValueError(f"{rule.name}: inputs of {name} are NaN or infinite, expected numbers")
            weight = target.parameter
            kept, changed = rule.solve(to_rows(weight, target).to(total.dtype), total, shares[name])
            masks[name] = from_rows(kept, target)
            weight.copy_(from_rows(changed.masked_fill(~kept, 0), target))
            if one_more is not None:
                one_more()
    return Masks({name: masks[name] for name in targets})


@contextmanager
def put_back(targets: Targets) -> Iterator[None]:
    """The targets' weights as they were, when the block ends."""
    before = [(target.parameter, target.parameter.detach().clone()) for target in targets.values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in before:
                parameter.copy_(values)


def to_rows(weight: Tensor, target: Target) -> Tensor:
    """A weight as [groups, outputs of a group, columns]: at each place of a kernel the inputs, one beside the other."""
    moved = weight.detach().movedim(1 - target.output_axis, -1)
    return moved.reshape(target.groups, len(moved) // target.groups, -1)


def from_rows(rows: Tensor, target: Target) -> Tensor:
    """The other way round: rows in the weight's own shape."""
    moved = target.parameter.movedim(1 - target.output_axis, -1).shape
    return rows.reshape(moved).movedim(-1, 1 - target.output_axis).contiguous()


def inputs_in_rows(module: nn.Module, x: Tensor) -> Tensor:
    """What each product of a layer is given: [groups, number of products, columns as in `to_rows`]."""
    if not isinstance(module, _CONVOLUTIONS):
        return x.reshape(1, -1, x.shape[-1])
    dimensions = len(module.kernel_size)
    x = x if x.dim() == dimensions + 2 else x.unsqueeze(0)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    for axis, (size, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True), start=2
    ):
        x = x.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    # [batch, channels, *places, *kernel] -> [groups, batch, *places, *kernel, channels of a group]
    x = x.unflatten(1, (module.groups, -1)).movedim(1, 0).movedim(2, -1)
    return x.reshape(module.groups, -1, x.shape[-1] * math.prod(module.kernel_size))


def shares_of(
    rule: str, density: float | Mapping[str, float], granularity: str | Any, targets: Targets
) -> dict[str, Share]:
    """What each layer keeps of a row.

    Raises:
        ValueError: what cannot be, all of it.
    """
    shape = find_granularity(granularity)
    if not isinstance(shape, (Weight, NM)):
        raise ValueError(
            f"'{rule}' ranks the weights of an output: expected weight or N:M, as 2:4, got {granularity!r}"
        )
    if others := [f"{name} ({_reader(target)})" for name, target in targets.items() if not _modules(target)]:
        raise ValueError(
            f"'{rule}' looks at the inputs of linear layers and of convolutions that are not transposed; it cannot "
            f"prune {', '.join(others)}: give exclude={_names(others)}"
        )
    columns = {name: target.fans[0] for name, target in targets.items()}
    if isinstance(shape, NM):
        problems = [problem for target in targets.values() if (problem := shape.problem(target))]
        if density != shape.density:
            problems.insert(0, f"{shape.kept}:{shape.group} keeps {shape.density:g} of every tensor, not {density}")
        if problems:
            raise ValueError("; ".join(problems))
        return {name: Share(size * shape.kept // shape.group, size, shape) for name, size in columns.items()}
    rows = {name: torch.empty(size, device="meta") for name, size in columns.items()}
    counts = by_glob(density)(rows, 1.0, targets) if isinstance(density, Mapping) else layerwise(rows, density, targets)
    if empty := [f"{name} ({columns[name]})" for name, count in counts.items() if count == 0]:
        raise ValueError(
            f"density {density} keeps none of the weights that an output has in {', '.join(empty)}: raise it or give "
            f"exclude={_names(empty)}"
        )
    return {name: Share(counts[name], size) for name, size in columns.items()}


def _names(told: list[str]) -> list[str]:
    return [each.partition(" ")[0] for each in told]


def _modules(target: Target) -> list[nn.Module]:
    """The modules that read a target as the weight of such a layer."""
    kinds = (*LINEAR, *_CONVOLUTIONS)
    return [module for module, attribute in target.owners if attribute == "weight" and isinstance(module, kinds)]


def _reader(target: Target) -> str:
    return f"read by {type(target.owners[0][0]).__name__}"


@contextmanager
def _watched(target: Target, see: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
    """Within it `see` is told of each call of a target's modules, with what they are given."""

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(module, args[0] if args else next(iter(kwargs.values())))

    handles = [module.register_forward_pre_hook(before, with_kwargs=True) for module in _modules(target)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _order(rule: str, model: nn.Module, targets: Targets, batches: Iterable[Any]) -> list[str]:
    """The targets in the order in which they are first called.

    Raises:
        ValueError: there is no batch, or no batch reaches them; all of them are named.
    """
    seen: dict[str, None] = {}
    empty = True
    with ExitStack() as watches:
        for name, target in targets.items():
            watches.enter_context(_watched(target, partial(_note, seen, name)))
        for batch in batches:
            empty = False
            _run(model, targets, batch)
            if len(seen) == len(targets):
                break
    if empty:
        raise ValueError("batches is empty: expected at least one batch of samples")
    if lost := [name for name in targets if name not in seen]:
        raise ValueError(
            f"'{rule}' has seen no input of {', '.join(lost)}: no sample calls such a layer as a module; give "
            f"exclude={lost} or samples that reach it"
        )
    return list(seen)


def _note(seen: dict[str, None], name: str, module: nn.Module, x: Tensor) -> None:
    seen.setdefault(name)


def _measure(model: nn.Module, targets: Targets, name: str, batches: Iterable[Any], measure: Measure) -> Tensor:
    """The sum of what is measured over all inputs of one layer, in all of its calls."""
    parts: list[Tensor] = []

    def see(module: nn.Module, x: Tensor) -> None:
        found = measure(inputs_in_rows(module, x.detach()).to(wide(targets[name].parameter)))
        if parts:
            parts[0] += found
        else:
            parts.append(found)

    with _watched(targets[name], see):
        for batch in batches:
            _run(model, targets, batch)
    over_all(batches, 0, parts)
    return parts[0]


def _run(model: nn.Module, targets: Targets, batch: Any) -> None:
    """A pass over the inputs of a batch.

    Raises:
        ValueError: a batch of another form.
    """
    batch = move_to(batch, next(iter(targets.values())).parameter.device)
    if isinstance(batch, (Tensor, Mapping)):
        call(model, batch)
    elif isinstance(batch, Batch):
        call(model, batch.inputs)
    elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
        call(model, batch[:-1])
    else:
        raise ValueError(
            f"a batch is a {type(batch).__name__}, expected a tensor of inputs, (inputs, targets) or a mapping of "
            "keyword arguments"
        )
