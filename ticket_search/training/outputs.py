"""What networks give: a tensor, a tuple, a dictionary or a dataclass, with the classes in one dimension or another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..contract.errors import RequestError


def main_output(outputs: Any) -> Tensor | None:
    """The output that losses and metrics are of; None where a network gives nothing but a loss.

    That is the tensor itself, the first of a tuple, and of a dictionary or a dataclass `logits`, else `out`, as
    torchvision's networks for segmentation call it.

    Raises:
        RequestError: there is none.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, (tuple, list)) and outputs:
        return main_output(outputs[0])
    named = _named(outputs)
    for name in ("logits", "out"):
        if isinstance(named.get(name), Tensor):
            found: Tensor = named[name]
            return found
    if isinstance(named.get("loss"), Tensor):
        return None
    what = f"{type(outputs).__name__} with {', '.join(map(str, named))}" if named else type(outputs).__name__
    raise RequestError(f"the network gives {what}, expected a tensor, a tuple of some, or logits, out or loss by name")


def find_loss(outputs: Any) -> Tensor | None:
    """The loss that is among the outputs, if there is one."""
    if isinstance(outputs, (Tensor, tuple, list)):
        return None
    loss = _named(outputs).get("loss")
    return loss if isinstance(loss, Tensor) else None


def own_loss(outputs: Any) -> Tensor:
    """The loss that is among the outputs.

    Raises:
        RequestError: there is none.
    """
    loss = find_loss(outputs)
    if loss is None:
        raise RequestError(
            "the network's outputs have no loss of their own: expected a dictionary or dataclass with one"
        )
    return widen(loss)


def plain_outputs(outputs: Any) -> Any:
    """The tensors that a network gives, in tuples and dictionaries alone, in the order of `supermask`'s `tensors_in`.

    What is none, as a cache within other outputs, is left out. None where there is no tensor.
    """
    found = _plain(outputs)
    return _plain(_named(outputs)) if found is None else found


def _plain(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, (tuple, list)):
        return tuple(part for each in outputs if (part := _plain(each)) is not None) or None
    if isinstance(outputs, Mapping) or dataclasses.is_dataclass(outputs):
        return {name: part for name, each in _named(outputs).items() if (part := _plain(each)) is not None} or None
    return None


def _named(outputs: Any) -> dict[str, Any]:
    """The outputs by name; nothing where they have no names."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if dataclasses.is_dataclass(outputs):
        return {each.name: getattr(outputs, each.name) for each in dataclasses.fields(outputs)}
    return dict(getattr(outputs, "__dict__", {}))


def classes_second(outputs: Tensor, targets: Tensor, named: bool) -> Tensor:
    """Logits with the classes in dimension 1, as PyTorch's losses have them.

    Where the classes may be in dimension 1 and in the last one alike, because there are as many as tokens, those of
    outputs with names are last, as Hugging Face's are, and those of images second; of anything else they cannot be
    told.

    Args:
        outputs: [n, classes], [n, classes, ...] or [n, ..., classes].
        targets: class numbers [n] or [n, ...].
        named: whether the outputs had names.

    Raises:
        RequestError: outputs of another shape, or of which it cannot be told.
    """
    ours, theirs = list(outputs.shape), list(targets.shape)
    second = len(ours) == len(theirs) + 1 and ours[:1] + ours[2:] == theirs
    last = ours[:-1] == theirs
    if second and last and len(theirs) == 2 and not named:
        raise RequestError(
            f"the network gives numbers of shape {ours} for targets of shape {theirs}, and the classes may be in "
            "dimension 1 or 2: give {'logits': ...} with the classes last"
        )
    if second and (not last or len(theirs) != 2):
        return outputs
    if last and len(theirs) > 1:
        return outputs.movedim(-1, 1)
    raise RequestError(
        f"the network gives numbers of shape {ours} for class numbers of shape {theirs}, expected {_expected(theirs)}"
    )


def _expected(targets: list[int]) -> str:
    rest = "".join(f", {size}" for size in targets[1:])
    return f"[{targets[0]}, classes{rest}]" + (f" or [{targets[0]}{rest}, classes]" if rest else "")


def number_by_number(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs in the shape of float targets: [n, 1] and [n] are the same numbers.

    Raises:
        RequestError: another shape, which PyTorch's losses might repeat until it fits.
    """
    if outputs.shape == targets.shape:
        return outputs
    if outputs.shape == (*targets.shape, 1) or targets.shape == (*outputs.shape, 1):
        return outputs.reshape(targets.shape)
    raise RequestError(
        f"the network gives numbers of shape {list(outputs.shape)} for targets of shape {list(targets.shape)}, "
        "expected one for each"
    )


def widen(tensor: Tensor) -> Tensor:
    """Floating-point numbers in float32 at least."""
    return tensor if tensor.dtype == torch.float64 or not tensor.is_floating_point() else tensor.float()
