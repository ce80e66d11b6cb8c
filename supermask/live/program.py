"""What masks do on a live model: hooks on every module that contains a masked tensor.

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
from torch.utils.hooks import RemovableHandle

from ..masks.masks import Masks
from ..masks.targets import Target, unwrap

_ATTRIBUTE = "_supermask_program"


class Program:
    """What masks do on one live model; `Hold` and the learned programs say what happens on entering and leaving."""

    def __init__(self, model: nn.Module, targets: Mapping[str, Target]) -> None:
        self.root = model
        self.owners = {name: target.owners for name, target in targets.items()}
        self.shapes = {name: target.parameter.shape for name, target in targets.items()}
        self.depth = 0
        self.thread = 0
        self.outermost = model
        self.handles: list[Any] = []

    def install(self) -> None:
        """Put the hooks on every module that contains a target.

        Raises:
            ValueError: the model carries a program already.
        """
        if program_of(self.root) is not None:
            raise ValueError("the model carries masks already: supermask.detach(model) takes them off first")
        owning = {id(module) for module in self.owning()}
        hooked = {id(self.root): self.root}
        for path, module in self.root.named_modules(remove_duplicate=False):
            if id(module) in owning:
                parts = path.split(".") if path else []
                for length in range(len(parts) + 1):
                    above = self.root.get_submodule(".".join(parts[:length]))
                    hooked[id(above)] = above
        for module in hooked.values():
            self.handles.append(module.register_forward_pre_hook(self._enter, prepend=True))
            self.handles.append(_numbered(module, module.register_forward_hook(self._leave, always_call=True)))
        self.handles.append(self.root.register_state_dict_pre_hook(self._before_state_dict))
        self.root.__dict__[_ATTRIBUTE] = self
        # torch.compile guards the type of this dict, not the hooks: what it made of the unmasked model runs no more.
        for module in self.owning():
            module.__dict__["_parameters"] = OrderedDict(module._parameters)

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in self.handles:
            handle.remove()
        self.handles = []
        self.root.__dict__.pop(_ATTRIBUTE, None)
        for module in self.owning():
            module.__dict__["_parameters"] = dict(module._parameters)

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

    def begin(self) -> None:
        """Called when a forward pass enters the model."""

    def left(self, outputs: Any) -> None:
        """Called with what a pass gives when it has left, ahead of `end`; with None where an exception has ended it."""

    def end(self) -> None:
        """Called when it has left, by an exception too."""

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        # In the module's own dictionary: asking the module for what it has not takes as long as all the rest here.
        if "_is_replica" in module.__dict__:
            raise RuntimeError(
                "nn.DataParallel copies modules without their masks: use torch.nn.parallel.DistributedDataParallel"
            )
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


def _numbered(module: nn.Module, handle: RemovableHandle) -> RemovableHandle:
    """The hook under the first free number below 0 instead of the next of the process.

    torch.compile guards the numbers: what it has made of a model serves again when other masks are put on it.
    """
    number = min(0, *module._forward_hooks) - 1
    tables: tuple[dict[int, Any], ...] = (module._forward_hooks, module._forward_hooks_always_called)
    for table in tables:
        table[number] = table.pop(handle.id)
    handle.id = number
    return handle


def program_of(model: nn.Module) -> Program | None:
    """The program on a model, if it carries one."""
    program = unwrap(model).__dict__.get(_ATTRIBUTE)
    assert program is None or isinstance(program, Program)
    return program
