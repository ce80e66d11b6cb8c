"""Which ReLU units of a network are active on data, and how many of the kept weights take part on an average input.

A weight takes part for an input where what it multiplies is not 0 and what it adds to can change an output. A unit is a
feature of a linear layer or a channel of a convolution, which is active where it is at any position.

Frankle & Carbin, The Lottery Ticket Hypothesis, 2018 (tickets of networks of ReLUs); Lu et al., Dying ReLU and
Initialization, 2019 (units that are never active).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from ..choosing.gradients import call, tensors_in, undisturbed
from ..live.held import carries_masks, masks_of
from ..masks.masks import Masks
from ..masks.targets import find_targets, unwrap
from .flow import flow

_RELUS = frozenset({F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})
_CLAMPS = frozenset({torch.clamp, torch.clamp_min, Tensor.clamp, Tensor.clamp_, Tensor.clamp_min, Tensor.clamp_min_})
_CONVOLUTIONS = frozenset({
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
})  # fmt: skip
# What a network may have in place of ReLUs, to be named where it has none.
_OTHERS = frozenset({
    F.gelu, F.leaky_relu, F.elu, F.selu, F.celu, F.silu, F.mish, F.hardswish, F.softplus, F.prelu, F.rrelu, F.glu,
    F.tanh, F.sigmoid, F.hardsigmoid, torch.tanh, torch.sigmoid, Tensor.tanh, Tensor.sigmoid,
})  # fmt: skip
# In place of the names of layers: what no layer with a name has made, as the network's input or a residual sum.
_ELSEWHERE = ""
# The seed of the random sum of outputs whose gradient is taken, so that what moves two outputs apart cancels nowhere.
_SEED = 0
# As many numbers are held at once to see on which inputs weights take part.
_MOST_AT_ONCE = 1 << 24


@dataclass(frozen=True, eq=False)
class ReluCall:
    """A ReLU at one place of the forward pass, as its `units` are on the data.

    name: the module that calls it, and which of its calls it is where there are several.
    layers: the names of the weights whose layers give what it gets.
    share: for each unit the share of inputs on which it is active, at any position.
    positions: the share of all positions of all inputs at which it is; where there is one position the same.
    emptied: the units that no path of kept weights goes through from the input to the output; None where that is not
        known.
    """

    name: str
    layers: tuple[str, ...]
    share: Tensor
    positions: Tensor
    emptied: Tensor | None

    @property
    def units(self) -> int:
        """How many there are."""
        return self.share.numel()

    @property
    def never(self) -> Tensor:
        """The units that are active on no input."""
        return self.share == 0

    @property
    def always(self) -> Tensor:
        """The units that are active at every position of every input: for these data they are linear."""
        return self.positions == 1


@dataclass(frozen=True, eq=False)
class LayerPart:
    """A masked weight: how many numbers it has and keeps, and for each the share of inputs for which it takes part."""

    name: str
    size: int
    kept: int
    share: Tensor

    @property
    def in_effect(self) -> float:
        """How many kept weights take part on an average input."""
        return float(self.share.sum())


@dataclass(frozen=True, eq=False)
class Activity:
    """What `activity` finds on a number of `inputs`.

    `unseen` names the masked tensors whose use could not be followed: no density counts them. `others` names activation
    functions that are no ReLU, and `unknown` says why it is not known which units pruning has emptied.
    """

    inputs: int
    calls: tuple[ReluCall, ...]
    layers: tuple[LayerPart, ...]
    unseen: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    unknown: str = ""

    def __repr__(self) -> str:
        return (
            f"Activity({self.inputs:,} inputs: {self.units:,} ReLU units, {self.never:,} never active, "
            f"{self.always:,} always; density {self.density:.4g}, in effect {self.in_effect:.4g})"
        )

    @property
    def units(self) -> int:
        """How many units there are."""
        return sum(each.units for each in self.calls)

    @property
    def never(self) -> int:
        """How many of them are active on no input."""
        return sum(int(each.never.sum()) for each in self.calls)

    @property
    def always(self) -> int:
        """How many are active at every position of every input."""
        return sum(int(each.always.sum()) for each in self.calls)

    @property
    def emptied(self) -> int | None:
        """How many no path of kept weights goes through; None where that is not known of all."""
        found = [each.emptied for each in self.calls]
        return (
            None if any(each is None for each in found) else sum(int(each.sum()) for each in found if each is not None)
        )

    @property
    def never_and_emptied(self) -> int | None:
        """How many of the units that are never active pruning has emptied."""
        if self.emptied is None:
            return None
        return sum(int((each.never & each.emptied).sum()) for each in self.calls if each.emptied is not None)

    @property
    def active(self) -> float:
        """The mean share of units that are active on an input."""
        return sum(float(each.share.sum()) for each in self.calls) / max(1, self.units)

    @property
    def density(self) -> float:
        """Fraction of the weights that is kept."""
        return sum(each.kept for each in self.layers) / max(1, sum(each.size for each in self.layers))

    @property
    def in_effect(self) -> float:
        """Fraction of the weights that is kept and takes part on an average input."""
        return sum(each.in_effect for each in self.layers) / max(1, sum(each.size for each in self.layers))


def activity(model: nn.Module, batches: Iterable[Any], masks: Mapping[str, Tensor] | None = None) -> Activity:
    """Run a network on data and count which ReLU units are active, and which kept weights take part.

        found = activity(net, [images], masks)
        found.never, found.density, found.in_effect
        found.calls[0].share                     # of each unit of the first ReLU

    Every ReLU counts, whether it is a module or a function: `nn.ReLU`, `torch.relu`, `F.relu6`, `Tensor.relu_`,
    `clamp(min=0)`. The model runs in evaluation mode and stays as it is. A weight takes part for an input where, at any
    position, what it multiplies is not 0 and the gradient of a random sum of the outputs at what it adds to is not 0.

    Args:
        model: any module.
        batches: an iterable of inputs, each a tensor, a tuple of arguments or a mapping of keyword arguments, batch
            first in all of them.
        masks: `{parameter name: bool tensor}`, True = kept; if not given, those that the model carries, or else every
            weight of a linear or convolution layer that is not 0.

    Raises:
        ValueError: no inputs, masks that do not fit, or a network that calls its ReLUs otherwise from batch to batch.
    """
    model = unwrap(model)
    targets = find_targets(model, include="*")
    if masks is None and carries_masks(model):
        masks = masks_of(model)
    if masks is None:
        masks = {name: each.parameter.detach() != 0 for name, each in find_targets(model).items()}
    masks = masks if isinstance(masks, Masks) else Masks(masks)
    masks.check(model)
    counted = {name: mask for name, mask in masks.counted().items() if mask.dim() > 1}
    watch = _Watch(model, {id(targets[name].parameter): name for name in counted})
    inputs, first = 0, None
    with undisturbed(model), watch.named():
        model.eval()
        for batch in batches:
            first = batch if first is None else first
            inputs += watch.run(batch)
    if first is None or not inputs:
        raise ValueError("there are no inputs: expected at least one batch")
    dead, unknown = _dead_rows(model, masks, first, [name for call in watch.calls for name in call.layers])
    parts = [
        LayerPart(name, mask.numel(), int(mask.sum()), watch.took_part[name].cpu() / inputs * mask.cpu())
        for name, mask in counted.items()
        if name in watch.took_part
    ]
    calls = tuple(_finish(each, inputs, dead) for each in watch.calls)
    unseen = tuple(name for name in counted if name not in watch.took_part)
    return Activity(inputs, calls, tuple(parts), unseen, tuple(sorted(watch.others)), unknown)


def _dead_rows(
    model: nn.Module, masks: Masks, example: Any, names: Sequence[str]
) -> tuple[dict[str, frozenset[int]] | None, str]:
    """The units of each layer that no path goes through, or why they are not known."""
    if not names:
        return {}, ""
    try:
        found = flow(model, masks, example)
    except ValueError as error:
        return None, str(error)
    return {name: frozenset(units) for name, units in found.dead.items()}, ""


@dataclass(eq=False)
class _Call:
    """A ReLU while it is counted."""

    name: str
    layers: tuple[str, ...]
    inputs: Tensor
    positions: Tensor
    seen: int


def _finish(each: _Call, inputs: int, dead: Mapping[str, frozenset[int]] | None) -> ReluCall:
    units, named = each.inputs.numel(), tuple(name for name in each.layers if name != _ELSEWHERE)
    emptied: Tensor | None = None
    if dead is not None and named == each.layers and all(name in dead for name in named) and named:
        emptied = torch.tensor([all(unit in dead[name] for name in named) for unit in range(units)])
    elif dead is not None and _ELSEWHERE in each.layers:
        emptied = torch.zeros(units, dtype=torch.bool)  # what comes past the layers reaches every unit
    return ReluCall(each.name, named, each.inputs.cpu() / inputs, each.positions.cpu() / each.seen, emptied)


@dataclass(eq=False)
class _Use:
    """A layer's weight in one pass: what it multiplies, what it gives, and how."""

    name: str
    weight: Tensor
    function: Callable[..., Tensor]
    given: Tensor
    output: Tensor
    rest: tuple[Any, ...]
    named: Mapping[str, Any]


@dataclass(frozen=True)
class _Source:
    """Where a tensor comes from: the layers that it is a sum of, and the axis of their units."""

    layers: frozenset[str]
    axis: int | None


class _Watch(TorchFunctionMode):
    """Sees every function that a model calls: counts its ReLUs and keeps what its layers get and give."""

    def __init__(self, model: nn.Module, names: Mapping[int, str]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.calls: list[_Call] = []
        self.took_part: dict[str, Tensor] = {}
        self.others: set[str] = set()
        self._inside: list[str] = []
        self._begin(0)

    def _begin(self, size: int) -> None:
        self.size, self.number = size, 0
        self.uses: list[_Use] = []
        self.sources: Any = WeakIdKeyDictionary()

    @contextmanager
    def named(self) -> Iterator[None]:
        """Within it modules say when they run."""
        own = type(self.model).__name__
        handles = []
        for name, module in self.model.named_modules():

            def enter(module: nn.Module, args: Any, name: str = name or own) -> None:
                self._inside.append(name)

            def leave(module: nn.Module, args: Any, output: Any) -> None:
                self._inside.pop()

            handles.append(module.register_forward_pre_hook(enter, prepend=True))
            handles.append(module.register_forward_hook(leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def run(self, batch: Any) -> int:
        """Count what is active on a batch; how many inputs it has."""
        given = list(tensors_in(batch))
        if not given:
            raise ValueError(f"a batch is {type(batch).__name__}, expected a tensor, or a tuple or mapping of some")
        before, self._inside = len(self.calls), []
        self._begin(len(given[0]))
        for tensor in given:
            self.sources[tensor] = _Source(frozenset({_ELSEWHERE}), None)
        with self:
            outputs = call(self.model, batch)
        if before and self.number != before:
            raise ValueError(
                f"the network calls {before} ReLUs on one batch and {self.number} on another: expected the same"
            )
        self._count_uses([each for each in tensors_in(outputs) if each.requires_grad])
        self._begin(0)
        return len(given[0])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _RELUS or _clips_below_zero(func, args, kwargs):
            return self._relu(func, args, kwargs)
        if func is F.linear or func in _CONVOLUTIONS:
            return self._layer(func, *args, **kwargs)
        if func in _OTHERS:
            self.others.add(func.__name__)
        output = func(*args, **kwargs)
        self._hand_on((args, kwargs), output)
        return output

    def _layer(self, func: Any, input: Tensor, weight: Tensor, *rest: Any, **named: Any) -> Tensor:
        output: Tensor = func(input, weight, *rest, **named)
        name = self.names.get(id(weight), _ELSEWHERE)
        if name != _ELSEWHERE:
            if not output.requires_grad:
                output.requires_grad_()
            rest = (None, *rest[1:])
            named = {key: value for key, value in named.items() if key != "bias"}
            self.uses.append(_Use(name, weight.detach(), func, input.detach() != 0, output, rest, named))
            # A copy, because what follows may write into it.
            output = output.clone()
        self.sources[output] = _Source(frozenset({name}), -1 if func is F.linear else 1)
        return output

    def _hand_on(self, given: Any, output: Any) -> None:
        """What comes from tensors has their sources."""
        sources = [(x, self.sources[x]) for x in tree_leaves(given) if isinstance(x, Tensor) and x in self.sources]
        if not sources:
            return
        layers = frozenset[str]().union(*(source.layers for _, source in sources))
        origin, source = next(((x, s) for x, s in sources if s.axis is not None), sources[0])
        for each in tree_leaves(output):
            if isinstance(each, Tensor):
                axis = source.axis
                if axis is not None and (each.dim() != origin.dim() or each.shape[axis] != origin.shape[axis]):
                    axis = None
                self.sources[each] = _Source(layers, axis)

    def _relu(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        given = args[0] if args else kwargs["input"]
        source = self.sources.get(given, _Source(frozenset({_ELSEWHERE}), None))
        output: Tensor = func(*args, **kwargs)
        axis = source.axis if source.axis is not None else 1 if output.dim() > 3 else -1
        self.sources[output] = _Source(frozenset({_ELSEWHERE}), axis)
        active = self._by_input(output.detach() > 0, axis)
        inputs, positions = active.any(1).sum(0), active.sum((0, 1))
        seen = active.shape[0] * active.shape[1]
        if self.number == len(self.calls):
            layers = tuple(sorted(source.layers))
            self.calls.append(_Call(self._name_call(), layers, inputs, positions, seen))
        else:
            here = self.calls[self.number]
            if here.inputs.shape != inputs.shape:
                raise ValueError(
                    f"{here.name} has {here.inputs.numel()} units on one batch and {inputs.numel()} on another"
                )
            here.inputs, here.positions, here.seen = here.inputs + inputs, here.positions + positions, here.seen + seen
        self.number += 1
        return output

    def _name_call(self) -> str:
        name = self._inside[-1] if self._inside else type(self.model).__name__
        before = sum(each.name.partition(", call ")[0] == name for each in self.calls)
        return f"{name}, call {before + 1}" if before else name

    def _by_input(self, values: Tensor, axis: int) -> Tensor:
        """Values as [inputs, positions, units]."""
        moved = values.movedim(axis, -1)
        if moved.shape[0] % self.size:
            raise ValueError(f"a layer sees {moved.shape[0]} rows of {self.size} inputs: expected batch first")
        return moved.reshape(self.size, -1, moved.shape[-1])

    def _count_uses(self, outputs: list[Tensor]) -> None:
        """Add for each weight on how many inputs it takes part."""
        if not self.uses or not outputs:
            return
        draw = torch.Generator().manual_seed(_SEED)
        total = torch.zeros((), device=outputs[0].device)
        for each in outputs:
            factors = torch.randn(each.shape, generator=draw, dtype=torch.float32).to(each)
            total = total + (each * factors).sum()
        gradients = torch.autograd.grad(
            total, [use.output for use in self.uses], allow_unused=True, materialize_grads=True
        )
        together: dict[str, list[tuple[_Use, Tensor]]] = {}
        for use, gradient in zip(self.uses, gradients, strict=True):
            together.setdefault(use.name, []).append((use, gradient != 0))
        for name, uses in together.items():
            found = self._took_part(uses)
            self.took_part[name] = self.took_part[name] + found if name in self.took_part else found

    def _took_part(self, uses: list[tuple[_Use, Tensor]]) -> Tensor:
        """For each weight the number of inputs on which any of its uses counts."""
        (use, changes), *others = uses
        total = torch.zeros(use.weight.shape, device=use.weight.device)
        if others or not _is_product(use):
            for number in range(self.size):
                total += torch.stack([self._part_of(number, *each) for each in uses]).any(0)
            return total
        given, changes = (each.reshape(self.size, -1, *each.shape[1:]) for each in (use.given, changes))
        # What a chunk of inputs takes: the result for each of them, and all that is multiplied.
        each_takes = use.weight.numel() + changes[0].numel() // use.weight.shape[0] * use.weight[0].numel()
        step = max(1, _MOST_AT_ONCE // each_takes)
        for begin in range(0, self.size, step):
            chunk = slice(begin, begin + step)
            rows, columns = _as_product(use, given[chunk], changes[chunk])
            part = rows[:, 0].t() @ columns[:, 0] if rows.shape[1] == 1 else (torch.bmm(rows.mT, columns) > 0).sum(0)
            total += part.reshape(total.shape)
        return total

    def _part_of(self, number: int, use: _Use, changes: Tensor) -> Tensor:
        """Whether each weight takes part on one input: as a gradient of zeros and ones, which nothing cancels in."""
        given, goes = (each.reshape(self.size, -1, *each.shape[1:])[number].float() for each in (use.given, changes))
        weight = torch.zeros_like(use.weight, dtype=torch.float32).requires_grad_()
        output = use.function(given, weight, *use.rest, **use.named)
        (found,) = torch.autograd.grad(output, weight, goes)
        return found > 0.5


def _how(use: _Use) -> dict[str, Any]:
    """How a convolution is called: `stride padding dilation groups`, as far as that is said."""
    names = ("bias", "stride", "padding", "dilation", "groups")
    return dict(zip(names, use.rest, strict=False)) | dict(use.named)


def _is_product(use: _Use) -> bool:
    """Whether a layer can be written as a product of two matrices for each input."""
    if use.function is F.linear:
        return True
    said = _how(use)
    plain = said.get("groups", 1) == 1 and not isinstance(said.get("padding", 0), str)
    return use.function is F.conv2d and use.given.dim() == 4 and plain


def _as_product(use: _Use, given: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer gives and gets as matrices, [inputs, positions, outputs] and [inputs, positions, weights of one]."""
    size = len(given)
    if use.function is F.linear:
        return changes.reshape(size, -1, changes.shape[-1]).float(), given.reshape(size, -1, given.shape[-1]).float()
    said = _how(use)
    columns = F.unfold(
        given.flatten(0, 1).float(), use.weight.shape[2:], said.get("dilation", 1), said.get("padding", 0),
        said.get("stride", 1),
    )  # fmt: skip
    rows = changes.flatten(0, 1).flatten(2).mT.float()
    return rows.reshape(size, -1, rows.shape[-1]), columns.mT.reshape(size, -1, columns.shape[1])


def _clips_below_zero(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a function is a ReLU by another name: numbers below 0 become 0."""
    if func in (F.hardtanh, F.hardtanh_):
        return bool((args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)) == 0)
    if func not in _CLAMPS:
        return False
    least = args[1] if len(args) > 1 else kwargs.get("min")
    return isinstance(least, int | float) and least == 0
