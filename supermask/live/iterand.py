"""IteRand: scores choose among random weights, and now and then those that are dropped are drawn anew.

Chijiwa et al., Pruning Randomly Initialized Neural Networks with Iterative Randomization, 2021. The effective weight is
w where the score itself, not its absolute value, is among the largest of its tensor (or of the model), and 0 elsewhere;
ds = dL/dW_effective * w. Scores start Kaiming uniform with the gain of a ReLU, U(-b, b) with b = sqrt(6 / fan-in).
After every so many steps each dropped weight is, with probability r, drawn anew from the law of the init; with r = 0 it
is what the authors call edge-popup. Their code keeps the scores from the one of rank 1 + round(q (n - 1)) on, with q
the share dropped; here floor(density * n + 1/2) are kept, as by all rules.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..masks.random_numbers import lots
from ..weights.inits import draw_at
from .layers import Layers
from .learned import Learned
from .program import program_of
from .rule import LearnedMask, draw_scores


class IteRand(LearnedMask):
    """Each layer's `scores`, in the weight's shape: the largest by value are kept, as many as the density asks.

    It does not draw weights anew by itself: `redraw` does, between two steps.
    """

    compares_only = True

    def start(self, layers: Layers, seed: int) -> list[dict[str, Tensor]]:
        """Kaiming uniform scores with the gain of a ReLU; ranked together, of one bound for all layers."""
        return [{"scores": scores * math.sqrt(6.0)} for scores in draw_scores(layers, seed)]

    def choose(self, layers: Layers) -> list[Tensor]:
        """The masks of the largest scores, layer by layer, of all together, or N of every M."""
        return layers.keep_largest([layer["scores"].detach() for layer in layers], signed=True)


def redraw(model: nn.Module, share: float, seed: int) -> None:
    """Draw each dropped weight anew with probability `share`, from the law that it was drawn from at first.

        if step % 300 == 0:
            supermask.redraw(model, share=0.1, seed=step)

    Which weights are drawn anew and what they become follows from the seed and each weight's name: give another seed
    every time. Kept weights stay as they are, to the bit; of signed constants only signs change.

    Args:
        model: after `supermask.learn`.
        share: the probability, from 0 to 1.
        seed: of which weights, and of what they become.

    Raises:
        ValueError: a share outside [0, 1], a model without learned masks, weights that `learn` has not drawn, or frozen
            weights that something else has changed.

    Source: Chijiwa et al., Pruning Randomly Initialized Neural Networks with Iterative Randomization, 2021.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"expected the share of dropped weights that are drawn anew, from 0 to 1, got {share}")
    program = program_of(model)
    if not isinstance(program, Learned):
        raise ValueError("the model carries no learned masks: supermask.learn(model, density) puts them on")
    laws, masks = program.laws, program.masks()
    if lost := [name for name in masks if name not in laws]:
        raise ValueError(
            f"how {', '.join(lost)} would be drawn anew is not known: the weights were kept as they came; "
            "expected supermask.learn(..., weights='signed-constant') or another init"
        )
    fresh = {}
    for name, mask in masks.items():
        weight, law = program.parameter(name).detach(), laws[name]
        drawn = torch.from_numpy(lots(weight.numel(), share, seed, "redraw/" + name)).view(weight.shape)
        chosen = drawn.to(weight.device) & ~mask
        places = chosen.flatten().nonzero().flatten().cpu().numpy()
        # Of a law only what is used: a tenth of the dropped ones, as a rule.
        values = draw_at(law.init, law.shape, seed, "redrawn/" + name, places, law.scale)
        fresh[name] = weight.masked_scatter(chosen, values.to(weight))
    program.settle()
    program.replace(fresh)
