"""Bernoulli masks: each weight is used with a probability of its own, which is learned.

Zhou et al., Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask, 2019. A weight is kept with probability
sigmoid(logit), drawn anew in every pass, and what is kept is multiplied by size / ones, the number of the layer's
weights over that of those just kept. The gradient goes through the sigmoid and through the rescaling: a kept or dropped
entry counts as its probability, so that d mask / d logit = p (1 - p), in the count of ones too. Logits start at 0.

The paper speaks of masks that are sampled while training; the authors' code samples them at test time too, and so does
this: an evaluation sees the masks that the next training pass will.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .layers import Layers
from .rule import LearnedMask, straight_through


class Bernoulli(LearnedMask):
    """Each layer's `logits`, in the weight's shape: sigmoid(logit) is the probability that a weight is kept.

    With `thresholded` an evaluation keeps the weights of probability above 1/2 instead of drawing some. With
    `rescaled=False` what is kept is not multiplied by anything.
    """

    exact, counts_steps = False, True

    def __init__(self, thresholded: bool = False, rescaled: bool = True) -> None:
        self.thresholded, self.rescaled = thresholded, rescaled

    def start(self, layers: Layers, seed: int) -> list[dict[str, Tensor]]:
        """Probabilities of 1/2."""
        return [{"logits": torch.zeros(layer.shape)} for layer in layers]

    def choose(self, layers: Layers) -> list[Tensor]:
        """Masks drawn for this pass; thresholded, in an evaluation, those of the probabilities above 1/2."""
        return [
            layer["logits"] > 0
            if self.thresholded and not layer.training
            else layer.uniform() < layer["logits"].detach().sigmoid()
            for layer in layers
        ]

    def effective(self, layers: Layers) -> Sequence[Tensor]:
        """The weights that are kept, times size / ones."""
        made = []
        for layer, mask in zip(layers, self.choose(layers), strict=True):
            gate = straight_through(mask, layer["logits"].sigmoid())
            # Never by 0: a layer may draw no weight at all.
            scale = layer.size / gate.sum().clamp(min=1) if self.rescaled else 1.0
            made.append(layer.weight * scale * gate)
        return made
