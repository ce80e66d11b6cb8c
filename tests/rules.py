"""Learned masks for tests: one file's worth each, by public names alone, as different from each other as there are."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch

import supermask
from supermask import LearnedMask, straight_through
from supermask.live import Bernoulli as OurBernoulli
from supermask.live import Biprop as OurBiprop
from supermask.live import EdgePopup, GemMiner, IteRand
from supermask.live import Signed as OurSigned
from supermask.live.gates import Categorical, GumbelSigmoid, HardConcrete
from supermask.masks.random_numbers import normal, uniform

sys.path.append(str(Path(__file__).parent.parent / "examples"))
from sigmoid_gate import SigmoidGate


class Straight(LearnedMask):
    """All that need be written."""

    def choose(self, layers):
        return layers.keep_largest([layer["scores"] for layer in layers], signed=True)


class Biprop(LearnedMask):
    """sign(w) where the mask keeps, times the mean |w| of what is kept (Diffenderfer & Kailkhura, 2021)."""

    def choose(self, layers):
        return layers.keep_largest([layer["scores"] for layer in layers])

    def effective(self, layers):
        made = []
        for layer, mask in zip(layers, self.choose(layers), strict=True):
            gain = (layer.weight.abs() * mask).sum() / mask.sum()
            made.append(straight_through(layer.weight.sign() * mask * gain, layer.weight * layer["scores"].abs()))
        return made


class Bernoulli(LearnedMask):
    """Each weight is kept with probability sigmoid(logit), in evaluation too, and rescaled (Zhou et al., 2019)."""

    exact, counts_steps = False, True

    def start(self, layers, seed):
        return [{"logits": torch.zeros(layer.shape)} for layer in layers]

    def choose(self, layers):
        return [layer.uniform() < layer["logits"].sigmoid() for layer in layers]

    def effective(self, layers):
        gates = [
            straight_through(mask, layer["logits"].sigmoid())
            for layer, mask in zip(layers, self.choose(layers), strict=True)
        ]
        return [layer.weight * gate * (layer.size / gate.sum()) for layer, gate in zip(layers, gates, strict=True)]


class Patterns(LearnedMask):
    """Which 2 of every 4 inputs: a choice among 6 patterns, soft in training (MaskLLM; Fang et al., 2024)."""

    counts_steps = True
    patterns = torch.tensor([p for p in itertools.product((0.0, 1.0), repeat=4) if sum(p) == 2])

    def start(self, layers, seed):
        draws = [(normal(layer.size // 4 * 6, seed, "logits/" + layer.name), layer) for layer in layers]
        return [{"logits": torch.from_numpy(draw).float().view(-1, 6), "strength": torch.ones(())} for draw, _ in draws]

    def lay_out(self, layer, groups):
        moved = layer.weight.movedim(1 - layer.output_axis, -1).shape
        return groups.reshape(moved).movedim(-1, 1 - layer.output_axis)

    def choose(self, layers):
        patterns = self.patterns.to(layers[0].weight.device) > 0
        return [self.lay_out(layer, patterns[layer["logits"].argmax(1)]) for layer in layers]

    def effective(self, layers):
        if not any(layer.training for layer in layers):
            return [layer.weight * mask for layer, mask in zip(layers, self.choose(layers), strict=True)]
        temperature = (4.0 - 0.1 * layers.step).clamp(min=0.05)
        gumbel = [-(-layer.uniform(layer["logits"].shape).log()).log() for layer in layers]
        soft = [
            ((layer["strength"] * layer["logits"] + noise) / temperature).softmax(1)
            for layer, noise in zip(layers, gumbel, strict=True)
        ]
        return [
            layer.weight * self.lay_out(layer, share @ self.patterns.to(share))
            for layer, share in zip(layers, soft, strict=True)
        ]


class Gates(LearnedMask):
    """A hard-concrete gate for each output, over weights that train (Louizos et al., 2018)."""

    exact, frozen, counts_steps = False, False, True

    def start(self, layers, seed):
        outputs = [layer.shape[layer.output_axis] for layer in layers]
        draws = [normal(count, seed, layer.name) for count, layer in zip(outputs, layers, strict=True)]
        return [{"logits": torch.from_numpy(draw).float() * 2 + 1} for draw in draws]

    def gates(self, layers):
        made = []
        for layer in layers:
            logits, shape = layer["logits"], [1] * len(layer.shape)
            if layer.training:
                u = layer.uniform(logits.shape)
                logits = (logits + u.log() - (1 - u).log()) / 0.66
            shape[layer.output_axis] = -1
            made.append((logits.sigmoid() * 1.2 - 0.1).clamp(0, 1).view(shape).expand(layer.shape))
        return made

    def choose(self, layers):
        return [gate > 0 for gate in self.gates(layers)]

    def effective(self, layers):
        return [layer.weight * gate for layer, gate in zip(layers, self.gates(layers), strict=True)]


class Clamped(LearnedMask):
    """p in [0, 1], kept above 1/2, some barred for good by a flag (Gem-Miner; Sreenivasan et al., 2022)."""

    exact = False

    def start(self, layers, seed):
        draws = [torch.from_numpy(uniform(x.size, seed, "p/" + x.name)).float().view(x.shape) for x in layers]
        return [{"p": draw * 1.5 - 0.25, "alive": draw > 0.1} for draw in draws]

    def clamp(self, layers):
        for layer in layers:
            layer["p"].clamp_(0, 1)

    def choose(self, layers):
        return [(layer["p"] > 0.5) & layer["alive"] for layer in layers]

    def effective(self, layers):
        return [
            layer.weight * straight_through(mask, layer["p"] * layer["alive"])
            for layer, mask in zip(layers, self.choose(layers), strict=True)
        ]


class Signed(LearnedMask):
    """A mask in -1, 0 and 1 (Koster et al., 2022): no density can be asked, it follows from the threshold."""

    exact, threshold = False, 0.1

    def choose(self, layers):
        return [layer["scores"].abs() > self.threshold for layer in layers]

    def effective(self, layers):
        return [
            layer.weight * straight_through(layer["scores"].sign() * mask, layer["scores"])
            for layer, mask in zip(layers, self.choose(layers), strict=True)
        ]


class Redrawing(EdgePopup):
    """Edge-popup whose dropped weights are drawn anew now and then (IteRand; Chijiwa et al., 2021)."""

    def redraw(self, model, step, share=0.5):
        fresh = {}
        for name, mask in supermask.masks_of(model).items():
            weight = model.get_parameter(name).detach()
            lot = torch.from_numpy(uniform(weight.numel(), step, "lot/" + name)).view(weight.shape).to(weight.device)
            drawn = supermask.draw("signed-constant", weight.shape, step, name).to(weight)
            fresh[name] = torch.where(~mask & (lot < share), drawn, weight)
        supermask.replace_weights(model, fresh)


class Tasks(LearnedMask):
    """Masks for several tasks over the same weights, one in use, or a mixture (SupSup; Wortsman et al., 2020)."""

    task, mixture = 0, None

    def start(self, layers, seed):
        parts = [super(Tasks, self).start(layers, seed + task) for task in range(3)]
        return [
            {f"scores{task}": part["scores"] for task, part in enumerate(layer)} for layer in zip(*parts, strict=True)
        ]

    def masks(self, layers, task):
        return layers.keep_largest([layer[f"scores{task}"] for layer in layers], signed=True)

    def choose(self, layers):
        return self.masks(layers, self.task)

    def effective(self, layers):
        if self.mixture is not None:
            mixed = [self.masks(layers, task) for task in range(3)]
            return [
                layer.weight * sum(share * mask for share, mask in zip(self.mixture, masks, strict=True))
                for layer, masks in zip(layers, zip(*mixed, strict=True), strict=True)
            ]
        return [
            layer.weight * straight_through(mask, layer[f"scores{self.task}"])
            for layer, mask in zip(layers, self.choose(layers), strict=True)
        ]


# Every rule with what `learn` is asked beside it. All shared tests go over all of them.
RULES = {
    "edge-popup": (EdgePopup, {"density": 0.5}),
    "edge-popup, global": (EdgePopup, {"density": 0.5, "allocation": "global"}),
    "edge-popup, 2:4": (EdgePopup, {"granularity": "2:4"}),
    "sigmoid gate": (SigmoidGate, {"weights": "keep"}),
    "straight through": (Straight, {"density": 0.3}),
    "biprop": (Biprop, {"density": 0.3, "weights": "kaiming-normal"}),
    "bernoulli": (Bernoulli, {"weights": "xavier-normal"}),
    "patterns": (Patterns, {"granularity": "2:4"}),
    "gates": (Gates, {"weights": "keep"}),
    "clamped": (Clamped, {"scaled": False}),
    "signed": (Signed, {"weights": "kaiming-normal"}),
    "redrawing": (Redrawing, {"density": 0.5}),
    "hard-concrete": (HardConcrete, {"density": 0.5, "weights": "keep"}),
    "gumbel-sigmoid": (GumbelSigmoid, {"density": 0.4, "weights": "keep"}),
    "gumbel-sigmoid, 2:4": (GumbelSigmoid, {"granularity": "2:4", "weights": "keep"}),
    "categorical, 2:4": (Categorical, {"granularity": "2:4", "weights": "keep"}),
    "tasks": (Tasks, {"density": 0.5}),
    "iterand of ours": (IteRand, {"density": 0.5}),
    "bernoulli of ours": (OurBernoulli, {"weights": "xavier-normal"}),
    "gem-miner of ours": (GemMiner, {"scaled": False}),
    "signed of ours": (OurSigned, {"density": 0.3, "weights": "kaiming-normal"}),
    "signed by a threshold": (lambda: OurSigned(0.1, 1.2), {}),
    "biprop of ours": (OurBiprop, {"density": 0.3, "weights": "kaiming-normal"}),
}


def learn(model, name, **more):
    """The rule of that name on a model; returns its program."""
    rule, asked = RULES[name]
    supermask.learn(model, program=rule(), **asked, **more)
    return supermask.live.program_of(model)
