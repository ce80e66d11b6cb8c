"""Biprop: scores choose among random weights, of which only the signs are used, times one gain for each layer.

Diffenderfer & Kailkhura, Multi-Prize Lottery Ticket Hypothesis: Finding Accurate Binary Neural Networks by Pruning A
Randomly Weighted Network, 2021. The effective weight is alpha * sign(w) where |s| is among the largest of its tensor
(or of the model) and 0 elsewhere; the gradient of a score is that of edge-popup, ds = dL/dW_effective * w * sign(s), in
which the gain alpha does not appear.

In the paper alpha is the mean |w| of what is kept. The authors' code divides the sum of the kept |w| by the count only
where all layers are ranked together; layer by layer it divides by int(density * n), which can be one less than what it
keeps. So it is here. Where int(density * n) is 0 and one weight is kept, the code divides by 0; here by 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .edge_popup import EdgePopup
from .layers import Layer, Layers
from .rule import straight_through


class Biprop(EdgePopup):
    """Each layer's `scores`, in the weight's shape: the largest |s| are kept, as signs times the layer's gain."""

    def effective(self, layers: Layers) -> Sequence[Tensor]:
        """The gain times the sign where the masks keep, 0 elsewhere."""
        made = []
        for layer, mask in zip(layers, self.choose(layers), strict=True):
            weight = layer.weight
            binary = torch.where(mask, weight.detach().sign() * self.gain(layers, layer, mask), 0.0)
            made.append(straight_through(binary, weight * layer["scores"].abs()))
        return made

    def gain(self, layers: Layers, layer: Layer, mask: Tensor) -> Tensor:
        """What the signs of a layer are multiplied by: a tensor without dimensions."""
        total = torch.where(mask, layer.weight.detach().abs(), 0.0).sum()
        if layers.allocation == "global":
            return total / mask.sum().clamp(min=1)
        return total / max(1, int((layers.density or 0.0) * layer.size))
