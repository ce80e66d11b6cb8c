"""Gates over weights that are trained: each is soft in training and open or shut in evaluation.

A gate opens by a logit. In training it is drawn anew in every pass, from seeded noise, and lets its weight through in
part or whole; in evaluation exactly as many gates are open as the density asks, those of the largest logits, or in each
group the likeliest pattern. What keeps the soft gates near that density is a penalty on `expected`.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..masks.random_numbers import normal
from ..selection.top_k import kth_largest
from .layers import Layer, Layers
from .rule import LearnedMask, straight_through

# Logits that a magnitude gives lie between minus this and this.
STEEPEST = 3.0
# An open gate lets no less through than this.
LEAST = 1e-3
# More patterns than these of a group are not weighed one against another.
MOST_PATTERNS = 256


class _Gates(LearnedMask):
    """A gate for each weight, by its `logits`."""

    frozen, counts_steps = False, True
    # The logit of a gate that is open as often as not.
    even = 0.0

    def __init__(self, *, frozen: bool = False, begin: Literal["magnitude", "random"] = "magnitude") -> None:
        """Take whether the weights are frozen, and from what the logits begin.

        Args:
            frozen: leave the weights as they are, so that the gates alone learn.
            begin: `magnitude`: the logit of an even chance, and log(|w| / the least |w| that the density keeps),
                between -3 and 3; or `random`: the logit of the density, and seeded normal noise of 0.01.

        Raises:
            ValueError: another beginning.
        """
        if begin not in ("magnitude", "random"):
            raise ValueError(f"gates begin from magnitude or random, got begin={begin!r}")
        self.frozen, self.begin = frozen, begin

    def start(self, layers: Layers, seed: int) -> list[dict[str, Tensor]]:
        """`logits` in each weight's shape."""
        if self.begin == "magnitude":
            return [{"logits": logits + self.even} for logits in _logits_of_magnitude(layers)]
        density = min(max(layers.density or 0.5, 1e-4), 1 - 1e-4)
        middle = math.log(density / (1 - density)) + self.even
        draws = [normal(layer.size, seed, "gates/" + layer.name) * 0.01 + middle for layer in layers]
        return [
            {"logits": torch.from_numpy(drawn).float().view(layer.shape)}
            for drawn, layer in zip(draws, layers, strict=True)
        ]

    def choose(self, layers: Layers) -> list[Tensor]:
        """The masks of the largest logits, as many as the density asks, or N of every M."""
        return layers.keep_largest([layer["logits"] for layer in layers], signed=True)

    def effective(self, layers: Layers) -> Sequence[Tensor]:
        """In training the weight times its soft gate; in evaluation the weight where the mask keeps."""
        if all(layer.training for layer in layers):
            return [layer.weight * self.gate(layer["logits"], layer.uniform()) for layer in layers]
        masks = self.choose(layers)
        return [
            layer.weight * (self.gate(layer["logits"], layer.uniform()) if layer.training else self.shut(layer, mask))
            for layer, mask in zip(layers, masks, strict=True)
        ]

    def shut(self, layer: Layer, mask: Tensor) -> Tensor:
        """The gates of an evaluation, of which the mask keeps some open: wholly."""
        return mask

    @abstractmethod
    def gate(self, logits: Tensor, u: Tensor) -> Tensor:
        """The soft gates, of the logits' shape, for uniform numbers u in (0, 1)."""

    @abstractmethod
    def expected(self, logits: Tensor) -> Tensor:
        """The probability of each gate to be open in a training pass; its mean is the density that is expected."""


class HardConcrete(_Gates):
    """Gates that are exactly 0 or 1 with some probability and between them otherwise.

        rule = supermask.live.gates.HardConcrete()
        supermask.learn(model, 0.1, program=rule, weights="keep")
        ...
        density = torch.cat([rule.expected(t["logits"]).flatten() for t in supermask.learned_of(model).values()]).mean()
        (loss + strength * (density - 0.1) ** 2).backward()

    s = sigmoid((log u - log(1 - u) + logit) / temperature), stretched to (-0.1, 1.1), cut to [0, 1]; temperature 2/3.
    Evaluated without noise, sigmoid(logit) stretched and cut; as many of them stay open as the density asks, each by at
    least 0.001. Over frozen weights an open gate is 1.

    Source: Louizos et al., Learning Sparse Neural Networks through L0 Regularization, 2018.
    """

    temperature, low, high = 2 / 3, -0.1, 1.1
    even = temperature * math.log(-low / high)

    def gate(self, logits: Tensor, u: Tensor) -> Tensor:
        """In [0, 1], 0 and 1 included."""
        soft = ((u.log() - (1 - u).log() + logits) / self.temperature).sigmoid()
        return (soft * (self.high - self.low) + self.low).clamp(0, 1)

    def shut(self, layer: Layer, mask: Tensor) -> Tensor:
        """As far open as without noise: sigmoid(logit), stretched and cut; wholly over frozen weights."""
        if self.frozen:
            return mask
        # Not cut at 0: what is kept is there.
        still = layer["logits"].sigmoid() * (self.high - self.low) + self.low
        return still.clamp(LEAST, 1) * mask

    def expected(self, logits: Tensor) -> Tensor:
        """sigmoid(logit - temperature * log(-low / high)): the probability of a gate above 0."""
        return (logits - self.even).sigmoid()


class GumbelSigmoid(_Gates):
    """Gates that are open or shut in training too; the gradient is that of the soft choice.

    y = sigmoid((logit + g - g') / temperature), where g - g' = log u - log(1 - u) is the difference of two Gumbel
    numbers; open where y is above 1/2; temperature 2/3.

    Source: Maddison et al., The Concrete Distribution, 2017; Jang et al., Categorical Reparameterization with
    Gumbel-Softmax, 2017 (straight through).
    """

    temperature = 2 / 3

    def gate(self, logits: Tensor, u: Tensor) -> Tensor:
        """0 or 1, with the derivative of y."""
        soft = ((u.log() - (1 - u).log() + logits) / self.temperature).sigmoid()
        return straight_through(soft > 0.5, soft)

    def expected(self, logits: Tensor) -> Tensor:
        """sigmoid(logit)."""
        return logits.sigmoid()


class Categorical(LearnedMask):
    """Which N of every M inputs: a logit for each pattern, a mixture of patterns in training, then the likeliest.

        supermask.learn(model, granularity="2:4", program=Categorical(steps=2000), weights="keep")

    In training the shares are softmax((scale * logits + Gumbel noise) / temperature), the scale from 100 to 500 and the
    temperature from 4 to 0.05, both linear over `steps` training passes. The logits begin as normal noise of 0.01,
    to which 3 of its standard deviations are added for each weight that a pattern shares with the N largest of its
    group, beyond N / 2 of them.

    Source: Fang et al., MaskLLM: Learnable Semi-Structured Sparsity for Large Language Models, 2024.
    """

    frozen, counts_steps = False, True
    temperatures, scales = (4.0, 0.05), (100.0, 500.0)
    noise = 0.01

    def __init__(
        self, steps: int = 1000, *, frozen: bool = False, begin: Literal["magnitude", "random"] = "magnitude"
    ) -> None:
        """Take how long the schedules are, whether the weights are frozen, and from what the logits begin.

        Args:
            steps: training passes until temperature and scale are at their end, where they stay.
            frozen: leave the weights as they are, so that the patterns alone are learned.
            begin: `magnitude`: with that prior of strength 3, or `random`: without.

        Raises:
            ValueError: no steps, or another beginning.
        """
        if steps < 1 or begin not in ("magnitude", "random"):
            raise ValueError(f"expected steps of at least 1 and begin magnitude or random, got {steps} and {begin!r}")
        self.steps, self.frozen, self.strength = steps, frozen, 3.0 if begin == "magnitude" else 0.0
        self.patterns = torch.empty(0)

    def start(self, layers: Layers, seed: int) -> list[dict[str, Tensor]]:
        """`logits`, [patterns, groups], for each layer.

        Raises:
            ValueError: no N:M, or too many patterns.
        """
        if layers.pattern is None:
            raise ValueError("categorical masks choose N of every M weights: learn(model, granularity='2:4', ...)")
        kept, group = layers.pattern.kept, layers.pattern.group
        if (number := math.comb(group, kept)) > MOST_PATTERNS:
            raise ValueError(f"{kept}:{group} has {number:,} patterns, expected at most {MOST_PATTERNS}, as 4:8 has 70")
        chosen = itertools.combinations(range(group), kept)
        self.patterns = torch.tensor([[float(place in each) for place in range(group)] for each in chosen])
        started = []
        for layer, best in zip(layers, layers.keep_largest([layer.weight for layer in layers]), strict=True):
            drawn = normal(layer.size // group * number, seed, "patterns/" + layer.name) * self.noise
            shared = self.patterns @ self._groups(layer, best.to("cpu", torch.float32)).T - kept / 2
            logits = torch.from_numpy(drawn).float().view(number, -1) + self.noise * self.strength * shared
            started.append({"logits": logits})
        return started

    def choose(self, layers: Layers) -> list[Tensor]:
        """The likeliest pattern of each group; of equal ones the first."""
        return [self._likeliest(layer) for layer in layers]

    def effective(self, layers: Layers) -> Sequence[Tensor]:
        """In training the weight times its group's mixture of patterns; in evaluation what the mask keeps."""
        made = []
        for layer in layers:
            if layer.training:
                shares = self.shares(layer["logits"], layer.uniform(layer["logits"].shape), layers.step)
                gate = self._lay_out(layer, self.patterns.T.to(shares) @ shares)
            else:
                gate = self._likeliest(layer)
            made.append(layer.weight * gate)
        return made

    def shares(self, logits: Tensor, u: Tensor, step: Tensor) -> Tensor:
        """Each pattern's share of its group, [patterns, groups], for uniform numbers u in (0, 1)."""
        done = (step.to(torch.float32) / self.steps).clamp(max=1)
        temperature, scale = (
            (first + (last - first) * done).to(u.device) for first, last in (self.temperatures, self.scales)
        )
        # Over the first dimension, of long rows: over rows of six a softmax takes eight times as long.
        return ((scale / temperature) * logits - u.log().neg_().log_().div_(temperature)).softmax(0)

    def _likeliest(self, layer: Layer) -> Tensor:
        patterns = self.patterns.T.to(layer.weight.device) > 0
        return self._lay_out(layer, patterns[:, layer["logits"].argmax(0)])

    def _groups(self, layer: Layer, mask: Tensor) -> Tensor:
        return mask.movedim(1 - layer.output_axis, -1).reshape(-1, self.patterns.shape[1])

    @staticmethod
    def _lay_out(layer: Layer, groups: Tensor) -> Tensor:
        """Values of each place in each group, [M, groups], in the weight's shape."""
        *others, inputs = layer.weight.movedim(1 - layer.output_axis, -1).shape
        spread = groups.view(len(groups), *others, inputs // len(groups)).movedim(0, -1)
        return spread.reshape(*others, inputs).movedim(-1, 1 - layer.output_axis)


def _logits_of_magnitude(layers: Layers) -> list[Tensor]:
    """log(|w| / the least |w| that the density keeps), of each layer or of all of them; 0 where all are equal."""
    sizes = [layer.weight.detach().abs().to("cpu", torch.float32) for layer in layers]
    if layers.allocation == "global":
        assert layers.total is not None
        least = [kth_largest(torch.cat([size.flatten() for size in sizes]), layers.total)] * len(sizes)
    else:
        least = [kth_largest(size, layer.count or 1) for size, layer in zip(sizes, layers, strict=True)]
    tiny = torch.finfo(torch.float32).tiny
    return [
        (size.clamp_min(tiny) / edge.clamp_min(tiny)).log().clamp(-STEEPEST, STEEPEST)
        for size, edge in zip(sizes, least, strict=True)
    ]


GATES: Mapping[str, type[LearnedMask]] = {
    "hard-concrete": HardConcrete,
    "gumbel-sigmoid": GumbelSigmoid,
    "categorical": Categorical,
}
