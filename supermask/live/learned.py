"""Learned masks on a live model: every forward pass sees the weights that a rule makes of what it has learned."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..choosing.gradients import tensors_in
from ..masks.masks import Masks
from ..masks.targets import Targets, forget_learned, mark_learned
from ..weights.inits import Draw, fingerprint
from ..weights.plain import is_shared_out
from .layers import Layer, Layers
from .program import Program
from .recomputation import backward_number, is_filling_in, out_of_sight
from .rule import LearnedMask

# The whole numbers of as many bytes.
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Learned(Program):
    """A learned mask on one live model: all that is the same for every rule.

    During a pass the modules read effective weights; outside of one the model has its weights under their own names and
    the learned tensors beside them as `<weight>_<name>`.

    `rule` says how the masks follow, `layers` are the masked weights, `density` is the one asked, `draws` says how
    tensors were drawn.
    """

    def __init__(self, model: nn.Module, targets: Targets, rule: LearnedMask, layers: Layers) -> None:
        super().__init__(model, targets)
        self.rule, self.layers, self.density = rule, layers, layers.density
        self.trained = {name: p.requires_grad for name, p in model.named_parameters()}
        # What frozen weights must be: their fingerprint, or since they were replaced a copy of them, whose fingerprint
        # is made when it is asked for. To compare with a copy takes a tenth of the time, and no way from the device.
        self._fingerprint: str | None = ""
        self._frozen: dict[str, Tensor] = {}
        self.draws: dict[str, Draw] = {}
        # The law of each weight that was drawn: of one that has been drawn anew too, whose `draws` is gone.
        self.laws: dict[str, Draw] = {}
        self.clamps = type(rule).clamp is not LearnedMask.clamp
        self.step_name = _free_name(model, "supermask_step")
        # The training pass that began last, and the one whose outputs a backward pass has reached last.
        self.begun = self.reached = 0
        # The effective weights of evaluations in `steady`; empty until the first of them, None outside.
        self.kept: list[Tensor] | None = None
        # With which effective weights a backward pass fills in what checkpoints have not kept, and which pass that is.
        self.again: tuple[tuple[int, int], list[Tensor]] | None = None

    def ask(self, density: float) -> None:
        """Ask for another density from now on (see `supermask.change_density`)."""
        self.layers.ask(density)
        self.density = density

    def install(self) -> None:
        """Put the hooks on; where the rule counts steps, the count goes into the state dict and comes from it."""
        super().install()
        if self.rule.counts_steps:
            mark_learned(self.root, self.step_name)
            # Partial, because PyTorch marks the hook by an attribute, which a method cannot have.
            self.handles.append(self.root.register_state_dict_post_hook(partial(self._save_step)))
            self.handles.append(self.root.register_load_state_dict_pre_hook(self._load_step))

    def refuse_shards(self) -> None:
        """Raise ValueError where parameters lie in parts on several processes: a mask is chosen by whole scores."""
        shared = [
            layer.name for layer in self.layers if any(map(is_shared_out, (layer.weight, *layer.learned.values())))
        ]
        # While its own hooks run, the parameters of a network that is shared out as one are whole.
        if shared or any(kind.__name__ == "FSDPModule" for kind in type(self.root).__mro__):
            raise ValueError(
                "masks cannot be learned where parameters are shared out over processes (fully_shard): expected "
                "DistributedDataParallel, which learns them, or masks that are held (supermask.hold)"
            )

    def start(self, seed: int) -> None:
        """Let the rule begin, and keep its tensors in the modules that have the weights.

        Raises:
            ValueError: what the rule gives is not what `LearnedMask` asks for; all of it is told.
        """
        name = type(self.rule).__name__
        started = list(self.rule.start(self.layers, seed))
        if len(started) != len(self.layers):
            raise ValueError(f"{name}.start begins {len(started)} layers, expected {len(self.layers)}")
        for layer, tensors in zip(self.layers, started, strict=True):
            for key, tensor in tensors.items():
                _register(layer, key, tensor, self.layers.score_dtype)
        if problems := self._problems():
            raise ValueError(f"the learned mask {name} does not fit its layers: " + "; ".join(problems))

    def score(self, name: str) -> Tensor:
        """The learned `scores` of a masked parameter, or the first of what is learned for it."""
        layer = self._layer(name)
        return layer["scores" if "scores" in layer.places else next(iter(layer.places))]

    def _layer(self, name: str) -> Layer:
        return next(layer for layer in self.layers if layer.name == name)

    def weights(self) -> dict[str, Tensor]:
        """The weights, unmasked."""
        return {layer.name: layer.weight.detach() for layer in self.layers}

    def masks(self) -> Masks:
        """The masks that an evaluation sees now."""
        return Masks(dict(zip(self.owners, self._evaluated(self.rule.choose), strict=True)))

    @torch.no_grad()
    def _evaluated(self, ask: Callable[[Layers], Sequence[Tensor]]) -> Sequence[Tensor]:
        """What the rule gives in evaluation mode."""
        self._clamp()
        with self.layers.evaluation():
            return self._exactly(ask)

    def _exactly(self, ask: Callable[[Layers], Sequence[Tensor]]) -> Sequence[Tensor]:
        """What the rule gives in its tensors' precision: autocast rounds what the network computes, not the mask."""
        device = next(iter(self.layers)).weight.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return ask(self.layers)
        return ask(self.layers)

    def _problems(self) -> list[str]:
        """What is wrong with the masks and effective weights of an evaluation now."""
        masks, effective = self._evaluated(self.rule.choose), self._evaluated(self.rule.effective)
        if not len(masks) == len(effective) == len(self.layers):
            return [f"{len(masks)} masks and {len(effective)} effective weights for {len(self.layers)} layers"]
        problems = []
        for layer, mask, weight in zip(self.layers, masks, effective, strict=True):
            if found := _misfit(layer, mask, weight):
                problems.append(found)
            elif self.layers.pattern is not None and not self.layers.pattern.fits(mask, layer.output_axis):
                pattern = self.layers.pattern
                problems.append(f"the mask of {layer.name} is not {pattern.kept}:{pattern.group}")
        return problems

    def check(self) -> None:
        """Raise ValueError where a tensor keeps no weight or not what was asked, or something is not as it must be.

        What is learned must be numbers, frozen weights those of the beginning, and dropped weights 0 in evaluation.
        """
        lost: dict[str, list[str]] = {}
        for layer in self.layers:
            for key, tensor in layer.learned.items():
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    lost.setdefault(key, []).append(layer.name)
        if lost:
            told = " and ".join(f"the {key} of {', '.join(names)}" for key, names in lost.items())
            raise ValueError(f"{told} are NaN or infinite: lower the learning rate")
        masks = self.masks()
        empty = [f"{row.name} keeps 0 of {row.size} weights" for row in masks.report() if row.kept == 0]
        if empty:
            raise ValueError(
                "the learned masks cut the network: " + "; ".join(empty) + "; ask for a higher density, "
                "allocation='layerwise', or exclude that tensor"
            )
        if problems := [*self._problems(), *self._miscounts(masks)]:
            raise ValueError("the learned masks are not what they promise: " + "; ".join(problems))
        self._check_frozen()

    @property
    def fingerprint(self) -> str:
        """That of the frozen weights, as they must be; "" where they train."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self._frozen)
        return self._fingerprint

    def _check_frozen(self) -> None:
        """Raise ValueError where frozen weights are not those that were drawn, or written by `replace`, to the bit."""
        if not self.rule.frozen:
            return
        weights = self.weights()
        if self._frozen:
            same = all(_same_bits(weight, self._frozen[name]) for name, weight in weights.items())
        else:
            same = fingerprint(weights) == self._fingerprint
            # Next time no weight goes from a device to the host, to be hashed there.
            if same and not all(weight.is_cpu for weight in weights.values()):
                self._frozen = {name: weight.clone() for name, weight in weights.items()}
        if not same:
            raise ValueError("the frozen weights have changed since supermask.learn: do not train or reload them")

    def _miscounts(self, masks: Masks) -> list[str]:
        """Where a rule that promises a density does not keep it."""
        if not self.rule.exact:
            return []
        if self.layers.allocation == "global":
            wrong = [("the model", masks.kept, self.layers.total, masks.size)]
        else:
            wrong = [(x.name, masks.kept_per_tensor[x.name], x.count, x.size) for x in self.layers]
        return [
            f"{name} keeps {kept} of {size} weights, density {self.density:g} asks for {count}"
            for name, kept, count, size in wrong
            if kept != count
        ]

    def begin(self) -> None:
        """Put the effective weights where the modules read their weights."""
        backward = -1 if torch.compiler.is_compiling() else backward_number()
        if backward >= 0:
            self._begin_again(backward)
            return
        self.again = None
        self._clamp()
        if torch.compiler.is_compiling():
            self._lend(self._exactly(self.rule.effective))
        else:
            with out_of_sight():
                self._lend(self._now())
        if self.rule.counts_steps:
            self._count()

    def _count(self) -> None:
        if not torch.compiler.is_compiling():
            self.begun = self.reached = int(self.layers.passes)
        if any(layer.training for layer in self.layers):
            with torch.inference_mode(False):  # what is made in it could not be differentiated with outside of it
                self.layers.passes = self.layers.passes + 1

    def _begin_again(self, backward: int) -> None:
        """A part runs again in a backward pass: it must see what it saw the first time."""
        if self.rule.counts_steps:
            self.layers.now = torch.tensor(self.reached, device="cpu")
        try:
            self._lend(self._effective_again(backward))
        finally:
            self.layers.now = None

    @contextlib.contextmanager
    def steady(self) -> Iterator[None]:
        """Within it nothing is learned, loaded or written by hand: evaluations choose the masks once.

        Without it they choose anew in every pass.
        """
        self.kept = []
        try:
            yield
        finally:
            self.kept = None

    def _now(self) -> Sequence[Tensor]:
        """The effective weights of a pass that begins."""
        if self.kept is None or torch.is_grad_enabled() or any(layer.training for layer in self.layers):
            return self._exactly(self.rule.effective)
        if not self.kept:
            self.kept = list(self._exactly(self.rule.effective))
        return self.kept

    def _effective_again(self, backward: int) -> Sequence[Tensor]:
        whose = (backward, self.reached) if is_filling_in() else None
        if whose is not None and self.again is not None and self.again[0] == whose:
            return self.again[1]
        with out_of_sight():
            effective = self._exactly(self.rule.effective)
        if whose is None:
            return effective  # what runs now is differentiated itself
        values = [weight.detach().requires_grad_(weight.requires_grad) for weight in effective]
        self.again = whose, values
        return values

    def _clamp(self) -> None:
        if not torch.compiler.is_compiling():
            self.refuse_shards()
        if self.clamps:
            with torch.no_grad(), self.layers.writing():
                self.rule.clamp(self.layers)

    def _lend(self, effective: Sequence[Tensor]) -> None:
        weights = [layer.weight for layer in self.layers]
        for layer, weight, other in zip(self.layers, weights, effective, strict=True):
            lent = other if other.dtype == weight.dtype else other.to(weight.dtype)
            for module, attribute in layer.owners:
                self.layers.resting.append((module, attribute, weight))
                _put(module, attribute, lent)

    def left(self, outputs: Any) -> None:
        """Where noise was drawn: have a backward pass tell whose outputs it comes from."""
        if not self.rule.counts_steps or torch.compiler.is_compiling() or backward_number() >= 0:
            return
        for tensor in tensors_in(outputs):
            if tensor.grad_fn is not None:
                tensor.register_hook(partial(self._reach, self.begun))

    def _reach(self, step: int, gradient: Tensor) -> None:
        self.reached = step

    def end(self) -> None:
        """Put the weights back."""
        for module, attribute, weight in self.layers.resting:
            _put(module, attribute, weight)
        self.layers.resting.clear()

    @torch.no_grad()
    def bake(self) -> None:
        """Make the weights what an evaluation sees, drop what was learned, and thaw what was trainable before."""
        masks, effective = self.masks(), self._evaluated(self.rule.effective)
        for layer, weight in zip(self.layers, effective, strict=True):
            parameter = self.parameter(layer.name)
            parameter.copy_(weight.masked_fill(~masks[layer.name], 0))
            for module, attribute in layer.owners:
                _put(module, attribute, parameter)  # tied again where a checkpoint loaded by assignment has untied it
        self.forget()

    def forget(self) -> None:
        """Drop what was learned, and thaw what was trainable before."""
        for layer in self.layers:
            module = layer.owners[0][0]
            for attribute in layer.places.values():
                module._parameters.pop(attribute, None)
                module._buffers.pop(attribute, None)
            layer.places = {}
            forget_learned(module)
        forget_learned(self.root)
        for name, parameter in self.root.named_parameters():
            parameter.requires_grad_(self.trained.get(name, parameter.requires_grad))

    @torch.no_grad()
    def replace(self, tensors: Mapping[str, Tensor]) -> None:
        """Write other weights; see `supermask.replace_weights`."""
        self._check_frozen()
        for name, tensor in tensors.items():
            self.parameter(name).copy_(tensor)
            self.draws.pop(name, None)
        if self.rule.frozen:
            copies = {name: self._frozen.get(name) for name in self.owners}
            for name, weight in self.weights().items():
                if (copy := copies[name]) is None:
                    self._frozen[name] = weight.clone()
                elif name in tensors:
                    copy.copy_(weight)
            self._fingerprint = None

    def freeze(self) -> None:
        """Remember the weights as those that must not change, if the rule freezes them."""
        if self.rule.frozen:
            self._fingerprint, self._frozen = fingerprint(self.weights()), {}

    def _save_step(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        state[prefix + self.step_name] = self.layers.passes.clone()

    def _load_step(self, module: nn.Module, state: dict[str, Any], prefix: str, *told: Any) -> None:
        _, _, missing, *_ = told  # metadata, strict, missing keys, unexpected keys, messages
        step = state.pop(prefix + self.step_name, None)
        if step is None:
            missing.append(prefix + self.step_name)
        else:
            self.layers.passes = step.to("cpu", torch.int64, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "again": None, "kept": None}


def _register(layer: Layer, key: str, tensor: Tensor, dtype: torch.dtype | None) -> None:
    """Keep a learned tensor in the module that has the weight; what has the weight's shape also has its layout.

    `dtype` is the type of what has the weight's shape, if not the weight's own.
    """
    module, attribute = layer.owners[0]
    weight, place = layer.weight.detach(), _free_name(module, f"{attribute}_{key}")
    if not tensor.is_floating_point():
        module.register_buffer(place, tensor.to(weight.device, copy=True))
    elif tensor.shape == weight.shape:
        module.register_parameter(place, nn.Parameter(torch.empty_like(weight, dtype=dtype).copy_(tensor)))
    else:
        module.register_parameter(place, nn.Parameter(tensor.detach().to(weight.device, weight.dtype, copy=True)))
    layer.places[key] = place
    mark_learned(module, place)


def _free_name(module: nn.Module, name: str) -> str:
    """The name, longer by underscores where the module has something of that name already."""
    while hasattr(module, name):
        name += "_"
    return name


def _misfit(layer: Layer, mask: Tensor, weight: Tensor) -> str:
    """Why this is no mask and no effective weight of the layer, or nothing."""
    for what, tensor, dtype in (("mask", mask, torch.bool), ("effective weight", weight, None)):
        if tensor.shape != layer.shape or tensor.dtype != (dtype or tensor.dtype):
            given, expected = (
                f"{str(kind).removeprefix('torch.')} {list(shape)}"
                for kind, shape in ((tensor.dtype, tensor.shape), (dtype or layer.weight.dtype, layer.shape))
            )
            return f"the {what} of {layer.name} is {given}, expected {expected}"
    alive = int(torch.count_nonzero(weight.detach()[~mask]))
    return f"{layer.name} has {alive} dropped weights that are not 0 in evaluation" if alive else ""


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same bit for bit: -0.0 is not 0.0, and NaN is the same NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    whole = _WORDS[one.element_size()]
    return torch.equal(one.view(whole), other.to(one.device).view(whole))


def _put(module: nn.Module, attribute: str, tensor: Tensor) -> None:
    """Put a tensor where a module reads its weight."""
    module._parameters[attribute] = tensor  # type: ignore[assignment]
    if isinstance(module, nn.RNNBase) and attribute in module._flat_weights_names:
        # Recurrent layers read a list that is kept beside the parameters.
        module._flat_weights[module._flat_weights_names.index(attribute)] = tensor
