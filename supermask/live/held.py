"""A mask on a live model: hold it through training, read it, check it, bake it in, take it off.

Nothing is parametrized and no layer is replaced: the model keeps its classes, its parameters and their names. A
program (see `program`) stands beside the model.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..masks.masks import Masks
from ..masks.targets import (
    Target,
    Targets,
    computed_weights,
    find_targets,
    literal_globs,
    plain_name,
    refuse_computed,
    unwrap,
)
from ..selection.tracking import is_exporting
from ..weights.fitting import merge_tied
from .adapters import under_adapters, unmasked_adapters
from .link import OwnMask, link_of, links_in, refusal
from .program import Program as Program
from .program import program_of as program_of
from .zeroing import dropped_values, integer, local, make_bits, zero, zero_all

Model = TypeVar("Model", bound=nn.Module)


# By their ids: a WeakSet takes longer to walk through than the rest of what follows an optimizer's step.
_HELD: dict[int, weakref.ref[Hold]] = {}


class _Seen:
    """An ordinary weight, whole and of one owner, as it was when last zeroed; `view` is its memory as integers."""

    def __init__(self, module: nn.Module, attribute: str, weight: nn.Parameter, bits: Tensor) -> None:
        self.module, self.attribute, self.weight, self.bits = module, attribute, weight, bits
        # What is made in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            self.view = weight.data.view(bits.dtype)
        self.address, self.shape, self.stride = weight.data_ptr(), weight.shape, weight.stride()

    def is_as_it_was(self) -> bool:
        """Whether the module still has this weight, and the weight the memory that `view` is."""
        weight = self.weight
        if self.module._parameters.get(self.attribute) is not weight or weight.data_ptr() != self.address:
            return False
        return weight.shape == self.shape and weight.stride() == self.stride


class Hold(Program):
    """Fixed masks: dropped weights are exactly 0 after every optimizer step and at every forward pass."""

    alone = False

    def __init__(self, model: nn.Module, targets: Mapping[str, Target], masks: Masks) -> None:
        super().__init__(model, targets)
        self.kept = masks
        self.bits: dict[tuple[str, torch.Size, torch.dtype], Tensor] = {}
        self.seen: dict[str, _Seen] = {}
        self.borrowed: list[tuple[nn.Module, str, Tensor, Tensor]] = []
        self._be_found()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A deep copy of the model gets a copy of this program, which optimizers must find too.
        super().__setstate__(state)
        self._be_found()
        _hook_optimizers()

    def _be_found(self) -> None:
        """Let optimizers know of these masks, as long as the model is there."""
        number = id(self)
        _HELD[number] = weakref.ref(self, lambda _: _HELD.pop(number, None))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "bits": {}, "seen": {}}

    def install(self) -> None:
        """Hook the forward passes, `state_dict`, `load_state_dict` and, once per process, all optimizers."""
        super().install()
        _hook_optimizers()
        self.zero()

    def own_masks(self, module: nn.Module) -> dict[str, OwnMask]:
        """The masks of this module's own parameters."""
        return {
            attribute: OwnMask(self.kept[name], name not in self.kept.uncounted)
            for name, owners in self.owners.items()
            for owner, attribute in owners
            if owner is module
        }

    @classmethod
    def revive(cls, part: nn.Module) -> Program:
        """Hold the masks that its modules have brought along."""
        links = links_in(part)
        for program in {link.program for link in links.values()} - {None}:
            program.remove()  # of a part of it that was called before
        masks, uncounted = {}, []
        for path, link in links.items():
            for attribute, own in link.masks.items():
                name = plain_name(f"{path}.{attribute}".removeprefix("."))
                masks[name] = own.mask
                uncounted += [] if own.counted else [name]
            link.remove()
        hold(part, Masks(masks, uncounted))
        return _program(part)

    @classmethod
    def meet_stranger(cls, module: nn.Module) -> None:
        """What is made of a layer whose dropped weights are 0 has zeros too."""

    @classmethod
    def meet_tracer(cls, tracer: str) -> None:
        """Refuse what exports: that weights are written to before a pass is not for a graph, and weights are 0."""
        if tracer == "torch.export":
            raise RuntimeError(refusal(tracer))

    def tracer(self, compiling: bool) -> str:
        """The tracer that records this pass, if it is one that is refused."""
        return super().tracer(compiling) if is_exporting() else ""

    def remove(self) -> None:
        """Take all hooks off; optimizers leave the model alone from now on."""
        super().remove()
        _HELD.pop(id(self), None)

    def zero(self, names: Iterable[str] | None = None) -> None:
        """Set the dropped weights, of these tensors or of all, to exactly +0."""
        compiling, on_gpu = torch.compiler.is_compiling(), []
        for name in self.owners if names is None else names:
            seen = None if compiling else self.seen.get(name)
            # This runs twice in every step: what is known of a weight that is where it was is not asked again.
            if seen is not None and seen.is_as_it_was():
                if seen.view.is_cuda:
                    on_gpu.append(seen)
                else:
                    seen.view.bitwise_and_(seen.bits)
                continue
            self._zero_anew(name)
            if not compiling:
                self._see(name)
        if on_gpu:
            zero_all([seen.weight for seen in on_gpu], [seen.bits for seen in on_gpu])

    @torch.no_grad()
    def _zero_anew(self, name: str) -> None:
        for weight in self.copies(name):
            if isinstance(weight, nn.Parameter):
                zero(weight, self.bits_of(name, weight))

    def _see(self, name: str) -> None:
        self.seen.pop(name, None)
        ((module, attribute), *others) = self.owners[name]
        weight = module._parameters[attribute]
        if type(weight) is nn.Parameter and not others and weight.device.type in ("cpu", "cuda"):
            self.seen[name] = _Seen(module, attribute, weight, self.bits_of(name, weight))

    def touches(self, parameters: set[int]) -> bool:
        """Whether one of the masked parameters is among these ids."""
        for owners in self.owners.values():
            for module, attribute in owners:
                if id(module._parameters.get(attribute)) in parameters:
                    return True
        return False

    def masks(self) -> Masks:
        """The masks that are held."""
        return self.kept

    def check(self) -> None:
        """Raise ValueError with each tensor in which dropped weights are not 0, and their number."""
        alive = []
        for name, mask in self.kept.items():
            dropped = [dropped_values(mask, weight) for weight in self.copies(name)]
            if count := sum(int(torch.count_nonzero(values)) for values in dropped):
                alive.append(f"{name} has {count} of {dropped[0].numel()} dropped weights different from 0")
        if alive:
            raise ValueError("the masks do not hold: " + "; ".join(alive))

    def bake(self) -> None:
        """Zero the dropped weights once more."""
        self.zero()

    def begin(self) -> None:
        """Zero whatever was written by hand since the last pass.

        What `torch.func.functional_call` lends is the caller's and may be differentiated: the pass reads it masked.
        """
        self.zero()
        for name, mask in self.kept.items():
            for module, attribute in self.owners[name]:
                weight: Any = module._parameters[attribute]
                if not isinstance(weight, nn.Parameter):
                    masked: Any = torch.where(mask.to(weight.device), weight, torch.zeros_like(weight))
                    module._parameters[attribute] = masked
                    self.borrowed.append((module, attribute, weight, masked))

    def end(self) -> None:
        """Give back what was lent."""
        for module, attribute, weight, masked in self.borrowed:
            if module._parameters[attribute] is masked:
                module._parameters[attribute] = weight  # type: ignore[assignment]
        self.borrowed = []

    def zero_own(self, module: nn.Module) -> None:
        """Zero what the masks drop of this module's own parameters."""
        self.zero(name for name, owners in self.owners.items() if any(owner is module for owner, _ in owners))

    def bits_of(self, name: str, weight: Tensor) -> Tensor:
        """The mask of a weight as bits of its type, on its device (see `make_bits`); kept from one time to the next."""
        key = name, local(weight).shape, integer(weight)
        bits = self.bits.get(key)
        if bits is None or bits.device != weight.device:
            bits = self.bits[key] = make_bits(self.kept[name], weight)
        return bits


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if not _HELD:
        return
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for reference in tuple(_HELD.values()):
        program = reference()
        if program is not None and program.touches(stepped):
            program.zero()


_optimizer_hook: Any = None


def _hook_optimizers() -> None:
    global _optimizer_hook
    if _optimizer_hook is None:
        _optimizer_hook = register_optimizer_step_post_hook(_after_step)


def _program(model: nn.Module) -> Program:
    """The program on a model, or on the model that this is a part of."""
    model = unwrap(model)
    program, link = program_of(model), link_of(model)
    if program is None and link is not None:
        program = link.program if link.program is not None else link.kind.revive(model)
    if program is None:
        parts = [path for path, link in links_in(model).items() if program_of(link.module) is not None]
        raise ValueError(
            "the model carries no masks: "
            + (f"its parts {', '.join(parts)} do" if parts else "supermask.hold(model, masks) or ")
            + ("" if parts else "supermask.learn(model, density)")
        )
    return program


def hold(model: nn.Module, masks: Mapping[str, Tensor]) -> Targets:
    """Keep the dropped weights of a model at exactly 0 from now on, whoever trains it.

        masks = supermask.prune(model, density=0.1)
        supermask.hold(model, masks)
        ...any training loop...

    They are zeroed now, after every step of any `torch.optim` optimizer, before every forward pass and after
    `load_state_dict`, and in what `state_dict` returns, which is that of the plain model. A deep copy holds them too.
    What adapters (LoRA) add to a weight is masked by `masked_adapters`.

    Several processes must hold the same masks: prune once DistributedDataParallel has given them the same weights, or
    before `fully_shard`. `torch.func.functional_call` reads the weights it is given masked and does not write them.

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
    masks = merge_tied(_renamed(masks, under_adapters(masks, model)), model)
    refuse_computed(computed_weights(model), literal_globs(masks))
    masks.check(model)
    targets = find_targets(model, include=literal_globs(masks))
    kept = Masks({name: masks[name] for name in targets}, masks.uncounted)
    Hold(model, targets, kept).install()
    return targets


def masks_of(model: nn.Module) -> Masks:
    """The masks that a model carries now: those it holds, or those it has learned, as an evaluation would see them.

    Of a part of such a model, `masks_of(model.encoder)`, those of its own parameters under its own names.

    Raises:
        ValueError: the model carries none.
    """
    program = _program(model)
    masks = program.masks()
    if program.root is not unwrap(model):
        return masks_in(program, masks, model)
    # A layer is called otherwise while it is below adapters.
    return _renamed(masks, {name: now for name, now in program.names_in(program.root).items() if now != name})


def _renamed(masks: Masks, names: Mapping[str, str]) -> Masks:
    if not names:
        return masks
    uncounted = [names.get(name, name) for name in masks.uncounted]
    left_whole = {names.get(name, name): why for name, why in masks.left_whole.items()}
    return Masks({names.get(name, name): mask for name, mask in masks.items()}, uncounted, left_whole)


def masks_in(program: Program, masks: Masks, part: nn.Module) -> Masks:
    """Those of a program's masks that are of a part of its model, under the part's names."""
    names = program.names_in(unwrap(part))
    return Masks({other: masks[name] for name, other in names.items()}, (names.get(n, "") for n in masks.uncounted))


def carries_masks(model: nn.Module) -> bool:
    """Whether there are masks on the model, or on one that it is a part of."""
    return program_of(model) is not None or link_of(unwrap(model)) is not None


def holds(model: nn.Module, masks: Masks) -> bool:
    """Whether it is these masks that the model, or the part of a model, holds."""
    return isinstance(_program(model), Hold) and masks_of(model) == masks


def check(model: nn.Module) -> None:
    """Check that the masks on a model hold.

    Raises:
        ValueError: names each tensor whose dropped weights are not 0 (or whose frozen weights have changed) with the
            number of them; or whose layer has been replaced by another; or over which adapters add an update that is
            not masked; or the model carries no masks.
    """
    program = _program(model)
    program.settle()
    modules = {id(module) for module in program.root.modules()}
    if gone := [name for name, own in program.owners.items() if any(id(owner) not in modules for owner, _ in own)]:
        raise ValueError(
            f"the masks of {', '.join(gone)} are on layers that the model no longer has: supermask.detach(model), then "
            "masks for the layers that it has now"
        )
    program.check()
    if open_to := unmasked_adapters(program):
        raise ValueError(
            f"adapters add to dropped weights of {', '.join(open_to)}: supermask.masked_adapters(model) masks it"
        )


@torch.no_grad()
def mask_gradients(model: nn.Module) -> None:
    """Zero the gradients of weights that a model holds at 0, for what reads gradients as a whole, such as clipping."""
    program = _program(model) if carries_masks(model) else None
    if isinstance(program, Hold):
        for name in program.kept:
            for gradient in (weight.grad for weight in program.copies(name)):
                if gradient is not None:
                    zero(gradient, program.bits_of(name, gradient))


def detach(model: Model) -> Model:
    """Take the masks off in place: an ordinary module again, its weights those that the masks left.

    Raises:
        ValueError: the model carries none, or is a part of one that does.
    """
    program = _program(model)
    if program.root is not unwrap(model):
        raise ValueError("the masks are those of a model that this is a part of: supermask.detach the whole model")
    program.settle()
    program.bake()
    program.remove()
    if isinstance(model, nn.parallel.DistributedDataParallel):
        # It would broadcast the buffers of learned masks, which are gone, at the next forward pass.
        model._assign_modules_buffers()
    return model


def copy_of(model: Model) -> Model:
    """A deep copy; what layers computed and kept, such as the weight of the old `spectral_norm`, is constant in it."""
    kept = [value for module in model.modules() for value in vars(module).values()]
    kept += [value for table in kept if isinstance(table, dict) for value in table.values()]
    computed = [value for value in kept if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})


def bake(model: Model) -> Model:
    """A copy of the model as an ordinary module, masks applied to its weights; the original keeps working.

    Of a part of a model that carries masks, `bake(model.encoder)`, a copy of the part. Under learned masks the weights
    are those that an evaluation sees, whatever mode the model is in.

    Raises:
        ValueError: the model carries no masks.
    """
    program, part = _program(model), unwrap(model)
    program.settle()
    if program.root is part:
        return detach(copy_of(model))
    path = next(path for path, module in program.root.named_modules() if module is part)
    baked: Any = detach(copy_of(program.root)).get_submodule(path)
    return baked  # type: ignore[no-any-return]
