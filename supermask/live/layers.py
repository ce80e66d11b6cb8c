"""The masked weights of a model as a learned mask sees them: their tensors now, the density asked, and seeded noise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..choosing.allocation import ALLOCATIONS
from ..choosing.granularity import NM, GroupChooser
from ..masks.targets import Target, Targets, fan_in_and_out, find_named
from ..selection.top_k import count_kept
from ..selection.tracking import Chooser
from .noise import draw_normal, draw_uniform, make_key

# The allocations by which each tensor ranks its own scores, and keeps a density that follows from its shape.
SHARES = {name: ALLOCATIONS[name] for name in ("er", "erk")}


class Layer:
    """One weight under a learned mask.

    layer.weight               # the weight itself, without the mask
    layer["scores"]            # a tensor that the mask has begun with under this name (see `LearnedMask.start`)
    layer.training             # whether the module that has the weight is in training mode
    layer.uniform()            # seeded noise, other numbers in every training pass

    `name` is the weight's name, `shape` and `size` (the number of weights) are its own, `kind`, `output_axis` and
    `groups` those of its `Target`. `count` is how many of its weights the density asks for, None without a density.
    """

    def __init__(self, target: Target, count: int | None, key: Tensor, layers: Layers) -> None:
        self.name, self.kind = target.name, target.kind
        self.shape, self.size = target.parameter.shape, target.size
        self.output_axis, self.groups = target.output_axis, target.groups
        self.owners = target.owners
        self.count = count
        # Where the learned tensors are: `{name: attribute}` of the module that has the weight.
        self.places: dict[str, str] = {}
        self._key, self._layers = key, layers

    def __repr__(self) -> str:
        return f"Layer({self.name}, {list(self.shape)}, {', '.join(self.places) or 'nothing learned'})"

    @property
    def weight(self) -> Tensor:
        """The weight, unmasked: frozen, or trained where the rule lets weights train."""
        module, attribute = self.owners[0]
        if self._layers.resting:
            return next(weight for owner, place, weight in self._layers.resting if (owner, place) == self.owners[0])
        own = module._parameters[attribute]
        assert own is not None, self.name
        return own

    @property
    def fans(self) -> tuple[int, int]:
        """Fan-in and fan-out (see `fan_in_and_out`).

        Raises:
            ValueError: a weight of fewer than two dimensions.
        """
        return fan_in_and_out(self.shape, self.output_axis, self.groups)

    @property
    def training(self) -> bool:
        """Whether this is a pass in training mode; never while masks are read, checked or baked."""
        return self.owners[0][0].training and not self._layers.evaluating

    def __getitem__(self, name: str) -> Tensor:
        """The tensor that `start` has given under this name.

        Raises:
            ValueError: an unknown name.
        """
        module = self.owners[0][0]
        # Looked up here first: every pass asks for it.
        attribute = self.places.get(name) or find_named("learned tensor", name, self.places)
        tensor: Tensor | None = module._parameters.get(attribute)
        if tensor is None:
            tensor = module._buffers[attribute]
        assert tensor is not None, attribute
        # What is written to this way is not seen by the graph of a pass that is still to be differentiated.
        return tensor.data if self._layers.is_written else tensor

    @property
    def learned(self) -> dict[str, Tensor]:
        """All that `start` has given, by name."""
        return {name: self[name] for name in self.places}

    def uniform(self, shape: Iterable[int] | None = None, stream: int = 0) -> Tensor:
        """Uniform numbers strictly inside (0, 1): a float32 tensor of `shape`, the weight's where none is given.

        They follow from the seed, the weight's name, the step and `stream`, bit for bit on every machine; the step is
        the number of training passes before this one, and outside of them that of all so far. So each training pass
        draws anew, an evaluation draws what the next training pass will, and the same call within a pass gives the same
        numbers: other ones come from another `stream`.

        Raises:
            ValueError: the rule does not say that it counts steps.
        """
        return draw_uniform(self._key, self._layers.step, stream, shape or self.shape, self.weight.device)

    def normal(self, shape: Iterable[int] | None = None, stream: int = 0) -> Tensor:
        """Standard normal numbers, otherwise as `uniform`, of which another `stream` must be asked beside it.

        Raises:
            ValueError: the rule does not say that it counts steps.
        """
        return draw_normal(self._key, self._layers.step, stream, shape or self.shape, self.weight.device)


class Layers(list[Layer]):
    """All weights under one learned mask, in the model's order. A list, as what compiles a network reads such best.

    layers.density, layers.allocation           # what was asked of `supermask.learn`
    layers.step                                 # training passes so far
    layers.keep_largest([layer["scores"] for layer in layers])
    """

    def __init__(
        self, targets: Targets, density: float | None, allocation: str, groups: NM | None, seed: int, counted: bool
    ) -> None:
        self.allocation, self.pattern, self._targets = allocation, groups, targets
        # Of learned tensors in a weight's shape, where it is not that of the weight.
        self.score_dtype: torch.dtype | None = None
        super().__init__(Layer(target, None, make_key(seed, f"noise/{name}"), self) for name, target in targets.items())
        self._chooser: Chooser | GroupChooser | None = None if groups is None else GroupChooser(groups, targets)
        self.ask(density)
        # How many training passes have begun, on the CPU: to know it, nobody waits for an accelerator. Never changed in
        # place: a compiled backward pass computes anew from it what it needs.
        self.passes = torch.zeros((), dtype=torch.int64, device="cpu")
        # Of a part that runs again in a backward pass: the count of its own pass.
        self.now: Tensor | None = None
        self.counted, self.evaluating, self.is_written = counted, False, False
        # What modules have lent while they read effective weights: module, attribute, weight.
        self.resting: list[tuple[nn.Module, str, Tensor]] = []

    @property
    def step(self) -> Tensor:
        """How many training passes came before this one: an int64 tensor without dimensions, on the CPU.

        Raises:
            ValueError: the rule does not say that it counts steps.
        """
        if not self.counted:
            raise ValueError("noise and the step need a count of steps: set counts_steps = True on the learned mask")
        return self.passes if self.now is None else self.now

    def keep_largest(self, keys: Sequence[Tensor], signed: bool = False) -> list[Tensor]:
        """Masks of the largest keys: exactly as many as was asked, layer by layer, of all together, or N of every M.

        Args:
            keys: one tensor for each layer, of its weight's shape, none of them NaN.
            signed: rank by value; otherwise by absolute value, which takes less time from step to step.

        Returns:
            A bool tensor for each layer; of equal keys those that come first are kept.

        Raises:
            ValueError: no density was asked.
        """
        if self._chooser is None:
            raise ValueError("this learned mask keeps as many as a density asks for: learn(model, density, ...)")
        return self._chooser.choose_by([key.detach() for key in keys]) if signed else self._chooser.choose(keys)

    def masked_on_gpu(self) -> Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]] | None:
        """What makes of scores and frozen weights the weights of the largest scores, all layers at once; or None."""
        chooser = self._chooser
        if not isinstance(chooser, Chooser) or torch.compiler.is_compiling():
            return None
        if any(layer.weight.requires_grad for layer in self) or not chooser.is_ranked_on_gpu(
            [layer["scores"] for layer in self]
        ):
            return None
        return chooser.mask_on_gpu

    def ask(self, density: float | None) -> None:
        """Ask for another density from now on; what N:M keeps stays as it is."""
        self.density = density
        self.total = None if density is None else count_kept(density, sum(layer.size for layer in self))
        shares = {}
        if density is not None and self.allocation in SHARES:
            units = {layer.name: torch.zeros(layer.size) for layer in self}
            shares = SHARES[self.allocation](units, density, self._targets)
        for layer in self:
            layer.count = None if density is None else shares.get(layer.name, count_kept(density, layer.size))
        if self.pattern is not None or self.total is None:
            return
        wanted = self.total if self.allocation == "global" else [layer.count or 0 for layer in self]
        if isinstance(self._chooser, Chooser):
            self._chooser.recount(wanted)
        else:
            self._chooser = Chooser(wanted)

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """Within it no layer is in training."""
        before, self.evaluating = self.evaluating, True
        try:
            yield
        finally:
            self.evaluating = before

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Within it learned tensors may be written to in place."""
        self.is_written = True
        try:
            yield
        finally:
            self.is_written = False
