"""Edge-popup: learned scores choose which frozen random weights are used.

Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020. The effective weight is w where |s| is
among the largest of its tensor (or of the model) and 0 elsewhere; the gradient of a score goes straight through the
choice: ds = dL/dW_effective * w * sign(s).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..choosing.granularity import NM, GroupChooser, Weight, find_granularity
from ..masks.masks import Masks
from ..masks.random_numbers import uniform
from ..masks.targets import MASKED_BY_DEFAULT, SCORES_SUFFIX, Targets, find_named, find_targets, literal_globs, unwrap
from ..selection.top_k import count_kept
from ..selection.tracking import Chooser
from ..weights.inits import WEIGHT_INITS, Draw, density_scale, fingerprint, initialize
from .held import Program
from .zeroing import masked

RANKINGS = ("layerwise", "global")


class StraightThrough(torch.autograd.Function):
    """Frozen weight times mask forward; to the score backward, past the choice of the mask."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        """The effective weight, exactly +0 where `mask` is False."""
        ctx.save_for_backward(score, weight)
        return masked(weight, mask)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """dL/ds = dL/dW * w * sign(s): the key that ranks is |s|, and its derivative is the sign."""
        score, weight = ctx.saved_tensors
        return (grads[0] * weight).mul_(score.sign()), None, None


class EdgePopup(Program):
    """Learned masks over frozen weights: every forward pass sees the weights that the scores choose at that moment.

    During a pass the modules read the effective tensors; outside of one the model has its frozen weights under their
    own names and the scores beside them as `<weight>_scores`.
    """

    def __init__(
        self, model: nn.Module, targets: Targets, density: float, allocation: str, groups: NM | None = None
    ) -> None:
        super().__init__(model, targets)
        self.allocation = allocation
        self.density = density
        self.counts = {name: count_kept(density, target.size) for name, target in targets.items()}
        self.total = count_kept(density, targets.size)
        self.chooser: Chooser | GroupChooser = Chooser(
            self.total if allocation == "global" else list(self.counts.values())
        )
        if groups is not None:
            self.chooser = GroupChooser(groups, targets)
        self.trained = {name: p.requires_grad for name, p in model.named_parameters()}
        self.frozen: list[tuple[nn.Module, str, Tensor]] = []
        self.fingerprint = ""
        self.draws: dict[str, Draw] = {}

    def score(self, name: str) -> nn.Parameter:
        """The learned score of a masked parameter."""
        module, attribute = self.owners[name][0]
        score = module._parameters[attribute + SCORES_SUFFIX]
        assert isinstance(score, nn.Parameter), name
        return score

    def weights(self) -> dict[str, Tensor]:
        """The frozen weights, unmasked."""
        return {name: self.parameter(name).detach() for name in self.owners}

    @torch.no_grad()
    def masks(self) -> Masks:
        """The weights that the scores choose now."""
        return Masks(dict(zip(self.owners, self.chooser.choose_from_nothing(self.scores()), strict=True)))

    def scores(self) -> list[Tensor]:
        """The learned scores of all masked parameters, without their gradients."""
        return [self.score(name).detach() for name in self.owners]

    def check(self) -> None:
        """Raise ValueError where a tensor keeps no weight, scores are no numbers, or frozen weights have changed."""
        masks = self.masks()
        lost = [name for name in self.owners if not bool(torch.isfinite(self.score(name)).all())]
        if lost:
            raise ValueError(f"the scores of {', '.join(lost)} are NaN or infinite: lower the learning rate")
        empty = [f"{row.name} keeps 0 of {row.size} weights" for row in masks.report() if row.kept == 0]
        if empty:
            raise ValueError(
                "the learned masks cut the network: " + "; ".join(empty) + "; ask for a higher density, "
                "allocation='layerwise', or exclude that tensor"
            )
        if fingerprint(self.weights()) != self.fingerprint:
            raise ValueError("the frozen weights have changed since supermask.learn: do not train or reload them")

    def begin(self) -> None:
        """Put the effective tensors where the modules read their weights."""
        masks = self.chooser.choose(self.scores())
        for (name, owners), mask in zip(self.owners.items(), masks, strict=True):
            weight = self.parameter(name)
            effective = StraightThrough.apply(self.score(name), weight, mask)
            for module, attribute in owners:
                self.frozen.append((module, attribute, weight))
                _put(module, attribute, effective)

    def end(self) -> None:
        """Put the frozen weights back."""
        for module, attribute, weight in self.frozen:
            _put(module, attribute, weight)
        self.frozen = []

    @torch.no_grad()
    def bake(self) -> None:
        """Zero the weights that the scores do not choose, drop the scores, and thaw what was trainable before."""
        for name, mask in self.masks().items():
            weight = self.parameter(name)
            weight.copy_(weight.masked_fill(~mask, 0))
            for module, attribute in self.owners[name]:
                _put(module, attribute, weight)  # tied again where a checkpoint loaded by assignment has untied it
            module, attribute = self.owners[name][0]
            del module._parameters[attribute + SCORES_SUFFIX]
        for name, parameter in self.root.named_parameters():
            parameter.requires_grad_(self.trained.get(name, parameter.requires_grad))


def _put(module: nn.Module, attribute: str, tensor: Tensor) -> None:
    """Put a tensor where a module reads its weight."""
    module._parameters[attribute] = tensor  # type: ignore[assignment]
    if isinstance(module, nn.RNNBase) and attribute in module._flat_weights_names:
        # Recurrent layers read a list that is kept beside the parameters.
        module._flat_weights[module._flat_weights_names.index(attribute)] = tensor


def learn(
    model: nn.Module,
    density: float | None = None,
    *,
    granularity: str = "weight",
    weights: str = "signed-constant",
    scaled: bool = True,
    allocation: str = "layerwise",
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    seed: int = 0,
    score_seed: int | None = None,
    train_norms: bool = False,
) -> Targets:
    """Turn a model, in place, into one whose masks are learned: weights frozen, scores trainable.

        supermask.learn(model, density=0.5)  # or granularity="2:4": two of every four inputs
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        ...any training loop...
        net = supermask.bake(model)

    The weights of all linear, convolution, attention and recurrent layers are drawn anew, biases become 0, norms scale
    1 and shift 0 (see `initialize`), and all of them are frozen, as is every other parameter. Excluded layers stay
    dense: random, frozen, unscaled.

    Args:
        model: any module; no layer is replaced and no name changes.
        density: fraction of the maskable weights to use, in (0, 1]. It follows from N:M, where it need not be given.
        granularity: `weight`, or N:M as `2:4`: of every M consecutive inputs of an output those N with the largest |s|.
        weights: the init of the frozen weights (see `draw`), or `keep` for the model's own weights as they are.
        scaled: multiply drawn weights by sqrt(1/density), which keeps a layer's variance under the mask.
        allocation: `layerwise` (the same density in each tensor) or `global` (all scores ranked together).
        include: globs of the parameters to mask instead of the default set (see `find_targets`).
        exclude: globs of parameters or modules to leave dense.
        seed: of the frozen weights.
        score_seed: of the scores; the same as `seed` where not given.
        train_norms: leave the scale and shift of norms trainable.

    Returns:
        The targets, with what is left out and why.

    Raises:
        ValueError: a density outside (0, 1], an unknown init or allocation, a tensor that would keep no weight, a
            target without a fan-in, or a model that carries masks already; with N:M another density or allocation, or
            inputs that are no multiple of M, all of it at once.

    Source: Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020.
    """
    model = unwrap(model)
    find_named("allocation", allocation, dict.fromkeys(RANKINGS))
    find_named("init", weights, {**WEIGHT_INITS, "keep": None})
    groups = _groups(granularity)
    if density is None and groups is None:
        raise ValueError("learn needs a density, the fraction of the weights to use, or granularity N:M, as '2:4'")
    if density is not None:
        count_kept(density, 1)
    targets = find_targets(model, include, exclude)
    if groups is not None:
        _check_groups(groups, density, allocation, targets)
        density = groups.density
    assert density is not None
    program = EdgePopup(model, targets, density, allocation, groups)
    empty = [f"{name} ({targets[name].size})" for name, count in program.counts.items() if count == 0]
    if empty and allocation == "layerwise":
        raise ValueError(f"density {density} keeps none of the weights of {', '.join(empty)}: raise it or exclude them")
    if program.total == 0:
        raise ValueError(f"density {density} keeps none of the {targets.size} weights")
    scores = draw_scores(targets, allocation, seed if score_seed is None else score_seed)
    program.install()
    if weights != "keep":
        dense = [name for name in _weights_of(model) if name not in targets]
        scale = density_scale(density) if scaled else 1.0
        program.draws = initialize(model, weights, seed, scale, unscaled=literal_globs(dense))
    norms = {id(t.parameter) for t in find_targets(model, include="*").values() if t.kind == "norm"}
    for parameter in model.parameters():
        parameter.requires_grad_(train_norms and id(parameter) in norms)
    for name, target in targets.items():
        module, attribute = target.owners[0]
        score = nn.Parameter(torch.empty_like(target.parameter).copy_(scores[name]))
        module.register_parameter(attribute + SCORES_SUFFIX, score)
    program.fingerprint = fingerprint(program.weights())
    return targets


def _groups(granularity: str) -> NM | None:
    shape = find_granularity(granularity)
    if isinstance(shape, (NM, Weight)):
        return shape if isinstance(shape, NM) else None
    raise ValueError(f"learned scores choose single weights or N:M of them: expected weight or 2:4, got {granularity}")


def _check_groups(groups: NM, density: float | None, allocation: str, targets: Targets) -> None:
    problems, name = [], f"{groups.kept}:{groups.group}"
    if density is not None and density != groups.density:
        problems.append(f"{name} keeps {groups.density:g} of every tensor, not density={density:g}: leave it out")
    if allocation != "layerwise":
        problems.append(f"{name} keeps the same of every tensor: expected allocation='layerwise', got '{allocation}'")
    if misfits := {name: problem for name, each in targets.items() if (problem := groups.problem(each))}:
        problems.append(f"{', '.join(misfits.values())}: give exclude={list(misfits)}")
    if problems:
        raise ValueError("; ".join(problems))


def _weights_of(model: nn.Module) -> list[str]:
    """The tensors that would be masked by default; none is no mistake where others were asked for by glob."""
    return [name for name, t in find_targets(model, include="*").items() if t.kind in MASKED_BY_DEFAULT]


def draw_scores(targets: Targets, allocation: str, seed: int) -> dict[str, Tensor]:
    """Initial scores, seeded by tensor name.

    Layerwise: Kaiming uniform with a = sqrt(5), that is U(-b, b) with b = 1 / sqrt(fan-in) of each tensor. Ranked
    together, scores of different scales would empty the layers of large fan-in, so b is one number for all of them:
    1 / sqrt of the fan-in of the average weight.
    """
    fans = {name: target.fans[0] for name, target in targets.items()}
    mean_fan = sum(fans[name] * target.size for name, target in targets.items()) / targets.size
    scores = {}
    for name, target in targets.items():
        bound = 1.0 / math.sqrt(mean_fan if allocation == "global" else fans[name])
        values = (uniform(target.size, seed, "scores/" + name) * 2.0 - 1.0) * bound
        scores[name] = torch.from_numpy(values.astype(np.float32)).reshape(target.parameter.shape)
    return scores
