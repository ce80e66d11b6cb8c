"""Edge-popup: learned scores choose which frozen random weights are used.

Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020. The effective weight is w where |s| is
among the largest of its tensor (or of the model) and 0 elsewhere; the gradient of a score goes straight through the
choice: ds = dL/dW_effective * w * sign(s).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .layers import Layers
from .rule import LearnedMask
from .zeroing import masked


class EdgePopup(LearnedMask):
    """Each layer's `scores`, in the weight's shape: the largest |s| are kept, as many as the density asks.

    The scores begin at random (see `draw_scores`), or as the magnitudes of the weights: the first mask is then that of
    magnitude pruning, which is made for weights that are trained already (Zhang et al., Lottery Jackpots Exist in
    Pre-trained Models, 2021).

    Where a subclass lets the weights train, the gradient of those that are kept is dL/dW_effective.
    """

    compares_only = True
    scores: str = "random"

    def __init__(self, scores: Literal["random", "magnitude"] = "random") -> None:
        """Take what the scores begin as.

        Raises:
            ValueError: neither `random` nor `magnitude`.
        """
        if scores not in ("random", "magnitude"):
            raise ValueError(f"scores begin as random or magnitude, got scores={scores!r}")
        self.scores = scores

    def start(self, layers: Layers, seed: int) -> Sequence[Mapping[str, Tensor]]:
        """`scores` in the weight's shape."""
        if self.scores == "magnitude":
            return [{"scores": layer.weight.detach().abs()} for layer in layers]
        return super().start(layers, seed)

    def choose(self, layers: Layers) -> list[Tensor]:
        """The masks of the largest |s|, layer by layer, of all together, or N of every M."""
        return layers.keep_largest([layer["scores"].detach() for layer in layers])

    def effective(self, layers: Layers) -> Sequence[Tensor]:
        """The frozen weights where the masks keep, exactly +0 elsewhere."""
        # One kernel for all layers, where what is chosen is the largest |s| and no mask is wanted beside.
        if type(self).choose is EdgePopup.choose and (mask := layers.masked_on_gpu()) is not None:
            scores, weights = [layer["scores"] for layer in layers], [layer.weight for layer in layers]
            popped: Sequence[Tensor] = _PopupOfAll.apply(mask, len(layers), *scores, *weights)
            return popped
        masks = self.choose(layers)
        return [_Popup.apply(layer["scores"], layer.weight, mask) for layer, mask in zip(layers, masks, strict=True)]


class _Popup(torch.autograd.Function):
    """Frozen weight times mask forward; to the score backward, past the choice of the mask."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        """The effective weight, exactly +0 where `mask` is False."""
        ctx.save_for_backward(score, weight, *([mask] if ctx.needs_input_grad[1] else []))
        return masked(weight, mask)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """dL/ds = dL/dW * w * sign(s): the key that ranks is |s|, and its derivative is the sign."""
        score, weight, *mask = ctx.saved_tensors
        return (grads[0] * weight).mul_(score.sign()), grads[0] * mask[0] if mask else None, None


class _PopupOfAll(torch.autograd.Function):
    """`_Popup` of all layers at once, whose weights are frozen: one operation of each kind for all of them."""

    @staticmethod
    def forward(ctx: Any, mask: Callable[..., list[Tensor]], count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The effective weights; `tensors` are the scores and the weights, `count` of each."""
        ctx.save_for_backward(*tensors)
        ctx.count = count
        ctx.set_materialize_grads(False)
        return tuple(mask(tensors[:count], tensors[count:]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """dL/ds = dL/dW * w * sign(s) of each layer that a gradient has reached."""
        scores, weights = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        given = {place: grad for place, grad in enumerate(grads) if grad is not None}
        there = list(given)
        found: list[Tensor | None] = [None] * ctx.count
        if there:
            products = torch._foreach_mul(list(given.values()), [weights[place] for place in there])
            torch._foreach_mul_(products, torch._foreach_sign([scores[place] for place in there]))
            for place, product in zip(there, products, strict=True):
                found[place] = product
        return None, None, *found, *[None] * ctx.count
