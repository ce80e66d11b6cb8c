"""What masks do on a live model: hooks on every module that contains a masked tensor (see `link`).

The outermost module entered does the work, so a call of the whole model, of a part of it, and a recomputation of a part
all see the masks.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ..masks.masks import Masks
from ..masks.targets import Target, plain_name, unwrap
from ..selection.tracking import is_exporting
from .link import Link, OwnMask, is_symbolic, link_of, links_in, refusal

_ATTRIBUTE = "_supermask_program"
# What masked modules have among their parameters.
_MASKED = "_supermask_masked"


class Program:
    """What masks do on one live model; `Hold` and the learned programs say what happens on entering and leaving.

    `alone` says that no part of the model may carry masks of its own.
    """

    alone = True

    def __init__(self, model: nn.Module, targets: Mapping[str, Target]) -> None:
        self.root = model
        self.owners = {name: target.owners for name, target in targets.items()}
        self.shapes = {name: target.parameter.shape for name, target in targets.items()}
        self.depth = 0
        self.thread = 0
        self.outermost = model
        self.links: list[Link] = []
        self.handles: list[Any] = []

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copied or read with its model: what stands on the modules finds its program again.
        self.__dict__.update(state)
        for link in self.links:
            link.program = self

    def install(self) -> None:
        """Put the hooks on every module that contains a target.

        Raises:
            ValueError: the model, or a part of it, or a model of which it is a part, carries a program already.
        """
        owning = {id(module) for module in self.owning()}
        hooked = {id(self.root): self.root}
        for path, module in self.root.named_modules(remove_duplicate=False):
            if id(module) in owning:
                parts = path.split(".") if path else []
                for length in range(len(parts) + 1):
                    above = self.root.get_submodule(".".join(parts[:length]))
                    hooked[id(above)] = above
        self._refuse_others(hooked)
        self.links = [Link(self, module, self.own_masks(module)) for module in hooked.values()]
        self.handles.append(self.root.register_state_dict_pre_hook(self._before_state_dict))
        self.root.__dict__[_ATTRIBUTE] = self
        # torch.compile guards the type of this dict, in PyTorch 2.6 its length, and not the hooks: what it made of the
        # unmasked model runs no more. A parameter that is None is to all others as the bias of a layer without one.
        for module in self.owning():
            module.__dict__["_parameters"] = OrderedDict({**module._parameters, _MASKED: None})

    def remove(self) -> None:
        """Take all hooks off."""
        for each in (*self.links, *self.handles):
            each.remove()
        self.links, self.handles = [], []
        self.root.__dict__.pop(_ATTRIBUTE, None)
        for module in self.owning():
            module.__dict__["_parameters"] = {key: it for key, it in module._parameters.items() if key != _MASKED}

    def _refuse_others(self, hooked: Mapping[int, nn.Module]) -> None:
        if program_of(self.root) is not None:
            raise ValueError("the model carries masks already: supermask.detach(model) takes them off first")
        if link_of(self.root) is not None:
            raise ValueError(
                "the model is a part of one that carries masks: supermask.detach(whole) takes them off first"
            )
        parts = [path for path, link in links_in(self.root).items() if self.alone or id(link.module) in hooked]
        if parts:
            raise ValueError(
                f"parts of the model carry masks already: supermask.detach(model.{parts[0]}) takes them off first, or "
                "hold the masks of the whole model"
            )

    def names_in(self, part: nn.Module) -> dict[str, str]:
        """The masked parameters of a part of the model: what they are called here, and there."""
        paths = {id(module): path for path, module in part.named_modules()}
        return {
            name: plain_name(f"{paths[id(module)]}.{attribute}".removeprefix("."))
            for name, owners in self.owners.items()
            for module, attribute in reversed(owners)
            if id(module) in paths
        }

    def own_masks(self, module: nn.Module) -> dict[str, OwnMask]:
        """The masks of a module's own parameters that go with it where it is copied or saved by itself."""
        return {}

    def owning(self) -> list[nn.Module]:
        """The modules that own a masked parameter."""
        return list({id(module): module for owners in self.owners.values() for module, _ in owners}.values())

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

    def copies(self, name: str) -> list[Tensor]:
        """What is read under this name: more than one tensor where loading by assignment has untied it.

        Raises:
            ValueError: it is no parameter of that shape any more.
        """
        copies: list[Tensor] = []
        for module, attribute in self.owners[name]:
            weight = module._parameters.get(attribute)
            if weight is None or weight.shape != self.shapes[name]:
                now = "no parameter of its module" if weight is None else f"of shape {list(weight.shape)}"
                raise ValueError(
                    f"{name} has a mask of shape {list(self.shapes[name])} and is now {now}: supermask.detach(model) "
                    "before parameters are replaced, parametrized or flattened (fully_shard keeps them, FSDP1 does not)"
                )
            if not any(weight is other for other in copies):
                copies.append(weight)
        return copies

    def masks(self) -> Masks:
        """The masks in force now."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise ValueError where the masks do not hold."""
        raise NotImplementedError

    def bake(self) -> None:
        """Make the weights what the forward pass sees, for good."""
        raise NotImplementedError

    def zero_own(self, module: nn.Module) -> None:
        """Called when a module with masks of its own (see `own_masks`) gives or has taken a state dict."""

    @classmethod
    def revive(cls, part: nn.Module) -> Program:
        """The program of a part that was copied or read without its model, put up when it is first called.

        Raises:
            RuntimeError: it needs the model.
        """
        raise RuntimeError(
            f"this {type(part).__name__} was copied or saved without the model that its masks are learned in: "
            "copy or save the whole model, or the part of what supermask.bake(model) returns"
        )

    @classmethod
    def meet_stranger(cls, module: nn.Module) -> None:
        """Called where another module has been given the hooks of a masked one, as quantized layers are.

        Raises:
            RuntimeError: it does not see the masks.
        """
        raise RuntimeError(
            f"a {module._get_name()} has taken the place of a layer whose mask is learned, and does not see it: "
            "supermask.bake(model) first, and change what it returns"
        )

    @classmethod
    def meet_tracer(cls, tracer: str) -> None:
        """Called with the name of a tracer that records a pass, or nothing.

        Raises:
            RuntimeError: what is learned would be in its graph as constants, or choose anew at every call.
        """
        if tracer:
            raise RuntimeError(refusal(tracer))

    def tracer(self, compiling: bool) -> str:
        """Which tracer records this pass, if one does."""
        if is_exporting():
            return "torch.export"
        if compiling:
            return ""
        if torch.jit.is_tracing():
            return "torch.jit.trace"
        return "torch.fx.symbolic_trace" if is_symbolic() else "make_fx" if get_proxy_mode() is not None else ""

    def begin(self) -> None:
        """Called when a forward pass enters the model."""

    def left(self, outputs: Any) -> None:
        """Called with what a pass gives when it has left, ahead of `end`; with None where an exception has ended it."""

    def end(self) -> None:
        """Called when it has left, by an exception too."""

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        compiling = torch.compiler.is_compiling()
        if self.depth and not compiling and self.thread != threading.get_ident():
            raise RuntimeError(
                "two threads run one masked model at once: give each thread its own copy.deepcopy(model)"
            )
        if module is self.root or (not compiling and module is self.outermost):
            self.settle()
        self.depth += 1
        if self.depth == 1:
            if not compiling:
                self.thread, self.outermost = threading.get_ident(), module
            self.meet_tracer(self.tracer(compiling))
            self.begin()

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        # Already 0 where the model has called itself: the inner pass was taken for a new one.
        if self.depth:
            self.depth -= 1
            if self.depth == 0:
                self.left(output)
                self.end()

    def _before_state_dict(self, module: nn.Module, prefix: str, keep_vars: bool) -> None:
        self.settle()


def program_of(model: nn.Module) -> Program | None:
    """The program on a model, if it carries one."""
    program = unwrap(model).__dict__.get(_ATTRIBUTE)
    assert program is None or isinstance(program, Program)
    return program
