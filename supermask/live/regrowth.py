"""Dynamic sparse training: drop the smallest weights of a sparse network and grow as many others.

Mocanu et al., Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity inspired by Network
Science, 2018 (SET, which grows at random); Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020 (RigL,
which grows where the gradient is largest). As in RigL's code, a weight that is dropped may be grown again in the same
update, and then keeps its value and its momentum; one that was not there before starts at 0 without momentum. Their
noise of 1e-5 on the magnitudes is left out: of equal ones the first are kept, as everywhere here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..masks.masks import Masks
from ..masks.random_numbers import uniform
from ..selection.top_k import top_k
from .held import Hold, detach, hold
from .program import program_of
from .zeroing import local

Growth = Literal["gradient", "random"]


def drop_and_grow(mask: Tensor, magnitude: Tensor, growth: Tensor, kept: int, count: int) -> Tensor:
    """The mask of one tensor after `count` of its kept weights were dropped and as many others grown.

    Args:
        mask: bool, True = kept.
        magnitude: of its shape, not below 0: the least of those kept are dropped.
        growth: of its shape, not below 0: the largest of all that are then not kept are grown, those just dropped among
            them.
        kept: how many the mask keeps.
        count: how many are dropped, at most those kept.

    Returns:
        A mask with as many True as the given one.
    """
    absent = torch.full_like(magnitude, -1.0)
    left = top_k(torch.where(mask, magnitude, absent), kept - count)
    return left | top_k(torch.where(left, absent.to(growth.dtype), growth), count)


@torch.no_grad()
def regrow(
    model: nn.Module,
    fraction: float = 0.3,
    optimizer: Optimizer | None = None,
    *,
    grow: Growth = "gradient",
    seed: int = 0,
) -> Masks:
    """Drop the smallest weights of each tensor that a model holds masks on, and grow as many others.

        loss.backward()
        if step % 100 == 0 and step < 0.75 * steps:
            supermask.regrow(model, fraction=0.3, optimizer=optimizer)    # RigL: in place of the optimizer's step
        else:
            optimizer.step()

    Each tensor keeps its number of weights; of those that it keeps, `int(fraction * kept)` are dropped. Masks of units
    that do not count towards the density (see `Masks.uncounted`) stay as they are.

    Args:
        model: after `supermask.hold(model, masks)`.
        fraction: of the kept weights of each tensor, from 0 to 1.
        optimizer: whose momentum of weights that are new is set to 0.
        grow: `gradient`, where its absolute value is largest (RigL; after `backward()`), or `random` (SET).
        seed: of random growth; give another one every time.

    Returns:
        The new masks, which the model holds from now on.

    Raises:
        ValueError: a fraction outside [0, 1], a model that holds no masks, weights in shards, weights or
            gradients that are not finite, or no gradients.

    Source: Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"expected the fraction of the kept weights that is dropped, from 0 to 1, got {fraction}")
    program = program_of(model)
    if not isinstance(program, Hold):
        raise ValueError("the model holds no masks to regrow: expected supermask.hold(model, masks) before")
    masks = program.masks()
    weights = {name: program.copies(name)[0] for name in masks.counted()}
    if sharded := [name for name, weight in weights.items() if local(weight) is not weight]:
        raise ValueError(f"{', '.join(sharded)} lie in shards; expected whole weights on every device, as under DDP")
    if wrong := _not_finite(weights):
        raise ValueError(f"{', '.join(wrong)} has values that are not finite: no smallest weights can be named")
    growths = {name: _growth(name, weight, grow, seed) for name, weight in weights.items()}
    if grow == "gradient" and (wrong := _not_finite(growths)):
        raise ValueError(f"the gradient of {', '.join(wrong)} is not finite: no weight can be grown by it")
    kept = masks.kept_per_tensor
    grown = {
        name: drop_and_grow(mask, weights[name].abs(), growths[name], kept[name], int(fraction * kept[name]))
        if name in weights
        else mask
        for name, mask in masks.items()
    }
    found = Masks(grown, masks.uncounted, masks.left_whole)
    detach(model)
    hold(model, found)
    if optimizer is not None:
        for name, weight in weights.items():
            _forget(optimizer, weight, found[name] & ~masks[name])
    return found


def _growth(name: str, weight: Tensor, grow: str, seed: int) -> Tensor:
    """What is largest where a weight shall grow.

    Raises:
        ValueError: a gradient that is missing or not finite, or no such way to grow.
    """
    if grow == "random":
        return torch.from_numpy(uniform(weight.numel(), seed, "regrow/" + name)).view(weight.shape).to(weight.device)
    if grow != "gradient":
        raise ValueError(f"unknown growth {grow!r}; expected gradient or random")
    if weight.grad is None:
        raise ValueError(f"{name} has no gradient to grow by: expected loss.backward() before, or grow='random'")
    return weight.grad.abs()


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors with values that are not finite; the device is waited for once."""
    if not tensors:
        return []
    good = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist()
    return [name for name, each in zip(tensors, good, strict=True) if not each]


def _forget(optimizer: Optimizer, weight: Tensor, new: Tensor) -> None:
    """Set to 0 what an optimizer remembers of new weights, as their momentum."""
    for value in optimizer.state.get(weight, {}).values():
        if isinstance(value, Tensor) and value.shape == weight.shape:
            value.masked_fill_(new, 0)
