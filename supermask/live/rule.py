"""What a learned mask is: tensors that are trained, the masks that they choose, and the weights that come of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..masks.random_numbers import uniform
from .layers import Layer as Layer
from .layers import Layers


class LearnedMask(ABC):
    """The rule of a learned mask. `supermask.learn(model, density, program=rule)` puts it on a model.

        class Gate(supermask.LearnedMask):
            exact = False  # as many as it likes, whatever density is asked

            def choose(self, layers):
                return [layer["scores"] > 0 for layer in layers]

            def effective(self, layers):
                masks = self.choose(layers)
                gates = [torch.sigmoid(layer["scores"]) for layer in layers]
                return [
                    layer.weight * supermask.straight_through(mask, gate)
                    for layer, mask, gate in zip(layers, masks, gates)
                ]

    A rule says how its learned tensors begin (`start`), which masks they choose now (`choose`) and what the modules
    read instead of their weights (`effective`), which autograd differentiates. Only `choose` must be written. Each sees
    all layers at once: see `Layers` and `Layer`. What the rule learns is kept in the layers, so that it is trained,
    saved and copied with the model; the rule itself holds settings.

    `effective` runs at every forward pass, under `torch.compile` too. Masks are read, checked and baked as in
    evaluation mode, where each layer's `training` is False: what `effective` gives there is what `bake` writes, and it
    is 0 where `choose` drops. A soft mask of training has its hard one there.

    Four class attributes say what a rule promises and needs:

    - `exact`: it keeps exactly as many weights as the density asks, which `supermask.check` then verifies; a density
      must be given.
    - `frozen`: the weights do not train, nor does anything else of the model, and `supermask.check` verifies that they
      have not changed. Where it is False everything trains on that trained before: learned pruning, over
      `weights="keep"`.
    - `counts_steps`: it draws noise or asks for the step. Training passes are then counted, and the count is saved and
      loaded with the model's `state_dict`. A rule draws from `Layer.uniform` and `Layer.normal`, never from a global
      random stream.
    - `compares_only`: of its learned tensors in a weight's shape only the order and the signs count, so that they may
      be bf16 (`score_dtype` of `supermask.learn`).

    Raises:
        TypeError: a rule without `choose`.
    """

    exact: bool = True
    frozen: bool = True
    counts_steps: bool = False
    compares_only: bool = False

    def start(self, layers: Layers, seed: int) -> Sequence[Mapping[str, Tensor]]:
        """What each layer begins with: `{name: tensor}`, of any shapes, in the layers' order.

        Tensors of floating point are trained, as parameters `<weight>_<name>` of the module that has the weight; those
        of other types, such as flags or counts, are kept beside them as buffers. Draw by the seed and the layer's name
        (see `supermask.masks.random_numbers`). The weights are there already, drawn anew or kept.

        If not overridden: `scores` in the weight's shape, Kaiming uniform (see `draw_scores`).
        """
        return [{"scores": scores} for scores in draw_scores(layers, seed)]

    def clamp(self, layers: Layers) -> None:  # noqa: B027
        """Bring learned tensors into the range that they must have, in place; called before they are read.

        Doing it twice must be doing it once. If not overridden: nothing.
        """

    @abstractmethod
    def choose(self, layers: Layers) -> Sequence[Tensor]:
        """The masks now: for each layer a bool tensor of the weight's shape, True = kept."""

    def effective(self, layers: Layers) -> Sequence[Tensor]:
        """What the modules read: for each layer a tensor of the weight's shape, differentiable by the learned tensors.

        If not overridden: the weight where the mask keeps, 0 elsewhere; the gradient goes straight through the choice,
        so that of `scores` is dL/dW_effective * w.
        """
        masks = self.choose(layers)
        return [
            layer.weight * straight_through(mask, layer["scores"]) for layer, mask in zip(layers, masks, strict=True)
        ]


class _StraightThrough(torch.autograd.Function):
    """One value forward, the gradient to another."""

    @staticmethod
    def forward(_ctx: Any, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.detach().to(soft.dtype, copy=True)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The values of `hard` with the derivative of `soft`: the gradient goes past a choice that has none.

        straight_through(probability > 0.5, probability)      # a mask in numbers; d/d probability = 1

    Returns:
        A tensor of the shape and type of `soft`.

    Raises:
        ValueError: two shapes.

    Source: Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013.
    """
    if hard.shape != soft.shape:
        raise ValueError(f"expected two tensors of one shape, got {list(hard.shape)} and {list(soft.shape)}")
    result: Tensor = _StraightThrough.apply(hard, soft)
    return result


def draw_scores(layers: Layers, seed: int) -> list[Tensor]:
    """Initial scores, seeded by tensor name.

    Layerwise: Kaiming uniform with a = sqrt(5), that is U(-b, b) with b = 1 / sqrt(fan-in) of each tensor. Ranked
    together, scores of different scales would empty the layers of large fan-in, so b is one number for all of them:
    1 / sqrt of the fan-in of the average weight.
    """
    fans = [layer.fans[0] for layer in layers]
    mean_fan = sum(fan * layer.size for fan, layer in zip(fans, layers, strict=True)) / sum(x.size for x in layers)
    scores = []
    for fan, layer in zip(fans, layers, strict=True):
        bound = 1.0 / math.sqrt(mean_fan if layers.allocation == "global" else fan)
        values = (uniform(layer.size, seed, "scores/" + layer.name) * 2.0 - 1.0) * bound
        scores.append(torch.from_numpy(values.astype(np.float32)).reshape(layer.shape))
    return scores
