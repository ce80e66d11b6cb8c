"""What one module of a masked model has of the program: hooks that know the program of their model, and stand alone.

A part that is copied or pickled without its model must neither take the whole model along nor lose its masks. So hooks
and what they need are kept for each module, and the way from them to the program is not copied: a whole model's program
is copied with its root and finds the links again.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_MARK = "_supermask_link"
# What `torch.jit.script` asks a module for, and `torch.fx.symbolic_trace` the model whose hooks it passes by.
_SCRIPTED, _TRACED = "__prepare_scriptable__", "_get_name"


def is_symbolic() -> bool:
    """Whether `torch.fx.symbolic_trace` runs."""
    now = getattr(torch.fx._symbolic_trace, "is_fx_symbolic_tracing", None)
    return bool((now or torch.fx._symbolic_trace.is_fx_tracing)())


def refusal(tracer: str) -> str:
    """Why a tracer cannot take a model with masks, and what it can take."""
    return f"{tracer} cannot take a model with masks on it: supermask.bake(model) first, and what it returns"


class OwnMask(NamedTuple):
    """The mask of one parameter of a module, and whether densities count it."""

    mask: Tensor
    counted: bool


class Link:
    """The hooks of one module, and the masks that go with it when it leaves its model.

    `program` is None in a part that was copied or pickled by itself: the program's kind then says what becomes of it.
    """

    def __init__(self, program: Any, module: nn.Module, masks: dict[str, OwnMask]) -> None:
        self.program, self.module, self.kind = program, module, type(program)
        self.masks = masks
        self.handles: list[Any] = [
            module.register_forward_pre_hook(self.enter, prepend=True),
            _numbered(module, module.register_forward_hook(self.leave, always_call=True)),
        ]
        if masks:
            # Afterwards, when `fully_shard` has put back what is saved, whose memory the state shares. And partial,
            # because PyTorch marks the hook by an attribute, which a method cannot have.
            self.handles.append(module.register_state_dict_post_hook(partial(self.zero)))
            self.handles.append(module.register_load_state_dict_post_hook(self.zero))
        module.__dict__.update({_MARK: self, _SCRIPTED: self.refuse_script, _TRACED: self.name})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "program": None}

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()
        self.handles = []
        for attribute in (_MARK, _SCRIPTED, _TRACED):
            self.module.__dict__.pop(attribute, None)

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """The hook before a module's forward."""
        # In the module's own dictionary: asking the module for what it has not takes as long as all the rest here.
        if "_is_replica" in module.__dict__:
            raise RuntimeError(
                "nn.DataParallel copies modules without their masks: use torch.nn.parallel.DistributedDataParallel"
            )
        if module is not self.module:
            self.kind.meet_stranger(module)
            return
        if self.program is None:
            self.kind.revive(module)._enter(module, inputs)
        else:
            self.program._enter(module, inputs)

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """The hook after it."""
        if module is self.module and self.program is not None:
            self.program._leave(module, inputs, output)

    @torch.no_grad()
    def zero(self, module: nn.Module, *args: Any) -> None:
        """The hook on what a module saves and loads: what its masks drop is 0."""
        if self.program is not None:
            self.program.zero_own(module)
        elif module is self.module:
            for attribute, (mask, _) in self.masks.items():
                weight = module._parameters.get(attribute)
                if weight is not None and weight.shape == mask.shape:
                    weight.masked_fill_(~mask.to(weight.device), 0)

    def refuse_script(self) -> Any:
        """What `torch.jit.script` calls: it would compile the hooks."""
        raise RuntimeError(refusal("torch.jit.script"))

    def name(self) -> str:
        """What `torch.fx.symbolic_trace` calls before it runs a model past its hooks."""
        if is_symbolic():
            self.kind.meet_tracer("torch.fx.symbolic_trace")
            self.zero(self.module)
        name: str = type(self.module)._get_name(self.module)
        return name


def link_of(module: nn.Module) -> Link | None:
    """The link on a module, if a program has put one there."""
    link = module.__dict__.get(_MARK)
    assert link is None or isinstance(link, Link)
    return link


def links_in(model: nn.Module) -> dict[str, Link]:
    """The links on the modules of a model, by path."""
    return {path: link for path, module in model.named_modules() if (link := link_of(module)) is not None}


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
