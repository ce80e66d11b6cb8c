"""What to know of a model's tensors before they are pruned: those that are left out, shared, frozen or never read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..masks.targets import Targets, find_targets, unwrap
from .gradients import Operations, as_written, call, undisturbed

# Tensors of fewer than two dimensions are left out of every model, and say nothing by it.
_REASONS: Mapping[str, str] = {
    "adapter": "it is a part of an adapter, and the mask is that of the layer below",
    "embedding": "it is an embedding, a table in which no weight is multiplied",
    "other": "no layer that is known reads it",
    "parametrized": "a parametrization computes from it what the layer reads",
    "standardized": "its layer subtracts a mean, so that a weight of 0 is none in the pass",
}


def remarks(model: nn.Module, targets: Targets | None = None, example_input: Any = None) -> dict[str, str]:
    """What a person should know of the tensors of a model before it is pruned, so that nothing is left out in silence.

        for name, remark in supermask.remarks(model, example_input=x).items():
            print(f"{name}: {remark}")

    Args:
        model: any module, without masks on it.
        targets: those that are to be masked; `find_targets(model)` if not given.
        example_input: a tensor, or a tuple or mapping of arguments, that the model takes; without it nothing is said of
            targets that no pass reads. The model is run once or twice, in the mode in which it is.

    Returns:
        By name, of tensors of two dimensions or more: why one carries no mask; of those that carry one whether several
        layers share it, whether it is frozen, and whether no operation of a pass reads it. Norms and biases, which
        have one dimension, are counted by `Targets.left_out_by_reason`.

    Raises:
        ValueError: a model that does not take the input.
    """
    model = unwrap(model)
    targets = find_targets(model) if targets is None else targets
    paths = {id(module): path for path, module in model.named_modules()}
    wanted = {id(target.parameter) for target in targets.values()}
    read = wanted if example_input is None else _read(model, example_input, wanted)
    found: dict[str, list[str]] = {}
    for name, target in find_targets(model, include="*").items():
        told = found.setdefault(name, [])
        if name in targets:
            if len(target.owners) > 1:
                layers = [paths.get(id(module), "") or "the model" for module, _ in target.owners]
                told.append(f"{' and '.join(layers)} share it, and one mask")
            if not target.parameter.requires_grad:
                told.append("it is frozen (requires_grad is False): what is kept of it does not train")
            if id(target.parameter) not in read:
                told.append("no pass of the example input reads it: what is dropped of it changes no output")
    for name, entry in targets.left_out.items():
        if entry.dimensions > 1:
            found.setdefault(name, []).insert(0, f"carries no mask: {_REASONS.get(entry.reason, entry.reason)}")
    return {name: "; ".join(told) for name, told in found.items() if told}


class _Functions(TorchFunctionMode):
    """Remembers the identities of the tensors that functions of PyTorch are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.found = set[int]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function."""
        return _note(self.found, func, args, kwargs)


class _Operations(Operations):
    """The same of the operations below the functions, which scripted modules call without any."""

    def __init__(self) -> None:
        super().__init__()
        self.found = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        return _note(self.found, func, args, kwargs)


def _note(found: set[int], func: Any, args: Any, kwargs: Any) -> Any:
    found |= {id(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
    return func(*args, **(kwargs or {}))


def _read(model: nn.Module, example_input: Any, wanted: set[int]) -> set[int]:
    """The identities of what a pass reads: by functions, and where some of those wanted are missing by operations."""
    found = set[int]()
    for kind in (_Functions, _Operations):
        reads = kind()
        try:
            # What PyTorch warns of in a pass it says again in the next, which is the user's own.
            with undisturbed(model), torch.no_grad(), as_written(), warnings.catch_warnings(), reads:
                warnings.simplefilter("ignore")
                call(model, example_input)
        except Exception as error:
            raise ValueError(f"the model does not take the example input: {type(error).__name__}: {error}") from error
        found |= reads.found
        if wanted <= found:
            break
    return found


def sentences(found: Mapping[str, str], limit: int = 5) -> list[str]:
    """Remarks as a line for each kind, with the tensors of which it is said: `limit` of them by name."""
    names: dict[str, list[str]] = {}
    for name, remark in found.items():
        names.setdefault(remark, []).append(name)
    return [
        f"{', '.join(those[:limit])}{f' and {len(those) - limit} more' if len(those) > limit else ''}: {remark}"
        for remark, those in names.items()
    ]
