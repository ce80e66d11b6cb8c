"""A mask on a live model: hold it through training, read it, check it, bake it in, take it off.

Nothing is parametrized and no layer is replaced: the model keeps its classes, its parameters and their names. A
program stands beside the model and hooks every module that contains a masked tensor; the outermost one entered does the
work, so a call of the whole model, of a part of it, and a recomputation of a part all see the masks.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from .masks import Masks
from .targets import Target, Targets, find_targets, literal_globs, unwrap

Model = TypeVar("Model", bound=nn.Module)
_ATTRIBUTE = "_supermask_program"
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Program:
    """What masks do on one live model; `Hold` and the learned programs say what happens on entering and leaving."""

    def __init__(self, model: nn.Module, targets: Mapping[str, Target]) -> None:
        self.root = model
        self.owners = {name: target.owners for name, target in targets.items()}
        self.depth = 0
        self.thread = 0
        self.handles: list[Any] = []

    def install(self) -> None:
        """Put the hooks on every module that contains a target.

        Raises:
            ValueError: the model carries a program already.
        """
        if program_of(self.root) is not None:
            raise ValueError("the model carries masks already: supermask.detach(model) takes them off first")
        owning = {id(module) for owners in self.owners.values() for module, _ in owners}
        hooked = {id(self.root): self.root}
        for path, module in self.root.named_modules(remove_duplicate=False):
            if id(module) in owning:
                parts = path.split(".") if path else []
                for length in range(len(parts) + 1):
                    above = self.root.get_submodule(".".join(parts[:length]))
                    hooked[id(above)] = above
        for module in hooked.values():
            self.handles.append(module.register_forward_pre_hook(self._enter, prepend=True))
            self.handles.append(module.register_forward_hook(self._leave, always_call=True))
        self.handles.append(self.root.register_state_dict_pre_hook(self._before_state_dict))
        self.root.__dict__[_ATTRIBUTE] = self

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in self.handles:
            handle.remove()
        self.handles = []
        self.root.__dict__.pop(_ATTRIBUTE, None)

    def settle(self) -> None:
        """Put back what a pass that was broken off by a KeyboardInterrupt has left: PyTorch skips its hooks then."""
        if self.depth:
            self.depth = 0
            self.end()

    def parameter(self, name: str) -> nn.Parameter:
        """The masked parameter as it is now: a checkpoint loaded by assignment may have replaced it."""
        module, attribute = self.owners[name][0]
        parameter = module._parameters[attribute]
        assert isinstance(parameter, nn.Parameter), name
        return parameter

    def masks(self) -> Masks:
        """The masks in force now."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise ValueError where the masks do not hold."""
        raise NotImplementedError

    def bake(self) -> None:
        """Make the weights what the forward pass sees, for good."""
        raise NotImplementedError

    def begin(self) -> None:
        """Called when a forward pass enters the model."""

    def end(self) -> None:
        """Called when it has left, by an exception too."""

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        if getattr(module, "_is_replica", False):
            raise RuntimeError(
                "nn.DataParallel copies modules without their masks: use torch.nn.parallel.DistributedDataParallel"
            )
        if self.depth and not torch.compiler.is_compiling() and self.thread != threading.get_ident():
            raise RuntimeError(
                "two threads run one masked model at once: give each thread its own copy.deepcopy(model)"
            )
        if module is self.root:
            self.settle()
        self.depth += 1
        if self.depth == 1:
            if not torch.compiler.is_compiling():
                self.thread = threading.get_ident()
            self.begin()

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        # Already 0 where the model has called itself: the inner pass was taken for a new one.
        if self.depth:
            self.depth -= 1
            if self.depth == 0:
                self.end()

    def _before_state_dict(self, module: nn.Module, prefix: str, keep_vars: bool) -> None:
        self.settle()


_HELD: weakref.WeakSet[Hold] = weakref.WeakSet()


class Hold(Program):
    """Fixed masks: dropped weights are exactly 0 after every optimizer step and at every forward pass."""

    def __init__(self, model: nn.Module, targets: Mapping[str, Target], masks: Masks) -> None:
        super().__init__(model, targets)
        self.kept = masks
        self.bits: dict[str, Tensor] = {}
        _HELD.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A deep copy of the model gets a copy of this program, which optimizers must find too.
        self.__dict__.update(state)
        _HELD.add(self)
        _hook_optimizers()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "bits": {}}

    def install(self) -> None:
        """Hook the forward passes, `load_state_dict` and, once per process, all optimizers."""
        super().install()
        for module in {id(module): module for owners in self.owners.values() for module, _ in owners}.values():
            self.handles.append(module.register_load_state_dict_post_hook(self._loaded))
        _hook_optimizers()
        self.zero()

    def remove(self) -> None:
        """Take all hooks off; optimizers leave the model alone from now on."""
        super().remove()
        _HELD.discard(self)

    @torch.no_grad()
    def zero(self, names: Iterable[str] | None = None) -> None:
        """Set the dropped weights, of these tensors or of all, to exactly +0.

        The bits are and-ed with all ones or all zeros: what is NaN or -0.0 becomes +0.0, which a product would not do,
        at the speed of a product, which masked_fill has not. Through `.data`, because the autograd graph of a pass that
        is still to be differentiated must not see a new version of weights that do not change.
        """
        for name in self.owners if names is None else names:
            weight = self.parameter(name).data
            weight.view(_integer(weight)).bitwise_and_(self._bits(name, weight))

    def touches(self, parameters: set[int]) -> bool:
        """Whether one of the masked parameters is among these ids."""
        return any(id(self.parameter(name)) in parameters for name in self.owners)

    def masks(self) -> Masks:
        """The masks that are held."""
        return self.kept

    def check(self) -> None:
        """Raise ValueError with each tensor in which dropped weights are not 0, and their number."""
        alive = []
        for name, mask in self.kept.items():
            weight = self.parameter(name).detach()
            dropped = ~mask.to(weight.device)
            if count := int(torch.count_nonzero(weight[dropped])):
                alive.append(f"{name} has {count} of {int(dropped.sum())} dropped weights different from 0")
        if alive:
            raise ValueError("the masks do not hold: " + "; ".join(alive))

    def bake(self) -> None:
        """Zero the dropped weights once more."""
        self.zero()

    def begin(self) -> None:
        """Zero whatever was written by hand since the last pass."""
        self.zero()

    def _loaded(self, module: nn.Module, keys: Any) -> None:
        self.zero(name for name, owners in self.owners.items() if any(owner is module for owner, _ in owners))

    def _bits(self, name: str, weight: Tensor) -> Tensor:
        bits = self.bits.get(name)
        if bits is None or bits.device != weight.device or bits.dtype != _integer(weight):
            # Laid out in memory like the weight, so that the two are walked together.
            bits = torch.empty_like(weight, dtype=_integer(weight)).copy_(self.kept[name]).neg_()
            self.bits[name] = bits
        return bits


def _integer(weight: Tensor) -> torch.dtype:
    return _INTEGERS[weight.element_size()]


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if not _HELD:
        return
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for program in tuple(_HELD):
        if program.touches(stepped):
            program.zero()


_optimizer_hook: Any = None


def _hook_optimizers() -> None:
    global _optimizer_hook
    if _optimizer_hook is None:
        _optimizer_hook = register_optimizer_step_post_hook(_after_step)


def program_of(model: nn.Module) -> Program | None:
    """The program on a model, if it carries one."""
    program = unwrap(model).__dict__.get(_ATTRIBUTE)
    assert program is None or isinstance(program, Program)
    return program


def _program(model: nn.Module) -> Program:
    program = program_of(model)
    if program is None:
        raise ValueError("the model carries no masks: supermask.hold(model, masks) or supermask.learn(model, density)")
    return program


def hold(model: nn.Module, masks: Mapping[str, Tensor]) -> Targets:
    """Keep the dropped weights of a model at exactly 0 from now on, whoever trains it.

        masks = supermask.prune(model, density=0.1)
        supermask.hold(model, masks)
        ...any training loop...

    They are zeroed now, after every step of any `torch.optim` optimizer, before every forward pass and after
    `load_state_dict`; a deep copy of the model holds them too. The state dict stays that of the plain model.

    Args:
        model: any module.
        masks: `{parameter name: bool tensor of its shape}`, True = kept.

    Returns:
        The targets masked.

    Raises:
        ValueError: masks that do not fit the model (all misfits named), or a model that carries masks already.
    """
    model = unwrap(model)
    masks = masks if isinstance(masks, Masks) else Masks(masks)
    if not masks:
        raise ValueError("there are no masks to hold: expected {parameter name: bool tensor}")
    masks.check(model)
    targets = find_targets(model, include=literal_globs(masks))
    kept = Masks({name: masks[name] for name in targets})
    Hold(model, targets, kept).install()
    return targets


def masks_of(model: nn.Module) -> Masks:
    """The masks that a model carries now: those it holds, or those its scores choose at this moment.

    Raises:
        ValueError: the model carries none.
    """
    return _program(model).masks()


def check(model: nn.Module) -> None:
    """Check that the masks on a model hold.

    Raises:
        ValueError: names each tensor whose dropped weights are not 0 (or whose frozen weights have changed) with the
            number of them; or the model carries no masks.
    """
    program = _program(model)
    program.settle()
    program.check()


@torch.no_grad()
def mask_gradients(model: nn.Module) -> None:
    """Zero the gradients of weights that a model holds at 0, for what reads gradients as a whole, such as clipping."""
    program = program_of(model)
    if isinstance(program, Hold):
        for name, mask in program.kept.items():
            if (gradient := program.parameter(name).grad) is not None:
                gradient.masked_fill_(~mask.to(gradient.device), 0)


def detach(model: Model) -> Model:
    """Take the masks off in place: an ordinary module again, its weights those that the masks left.

    Raises:
        ValueError: the model carries none.
    """
    program = _program(model)
    program.settle()
    program.bake()
    program.remove()
    return model


def bake(model: Model) -> Model:
    """A copy of the model as an ordinary module, masks applied to its weights; the original keeps working.

    Raises:
        ValueError: the model carries no masks.
    """
    _program(model).settle()
    return detach(copy.deepcopy(model))
