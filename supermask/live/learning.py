"""`supermask.learn`, and what belongs to it: reading what is learned, and drawing frozen weights anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..choosing.granularity import NM, Weight, find_granularity
from ..masks.masks import mismatches
from ..masks.targets import MASKED_BY_DEFAULT, Targets, find_named, find_targets, literal_globs, unwrap
from ..plugins.other_names import hears_other_names
from ..selection.top_k import count_kept
from ..weights.inits import WEIGHT_INITS, density_scale, initialize
from .bernoulli import Bernoulli
from .biprop import Biprop
from .edge_popup import EdgePopup
from .gates import GATES
from .gem_miner import GemMiner
from .iterand import IteRand
from .layers import SHARES, Layers
from .learned import Learned
from .program import program_of
from .rule import LearnedMask
from .signed import Signed
from .threshold import Threshold

RANKINGS = ("layerwise", "global")
# How many each tensor keeps: by its density, as the ranking of all gives, or by its inputs and outputs.
BUDGETS = (*RANKINGS, *SHARES)
RULES: Mapping[str, type[LearnedMask]] = {
    "bernoulli": Bernoulli,
    "biprop": Biprop,
    "edge-popup": EdgePopup,
    "gem-miner": GemMiner,
    "iterand": IteRand,
    "signed": Signed,
    "threshold": Threshold,
    **GATES,
}


@hears_other_names
def learn(
    model: nn.Module,
    density: float | None = None,
    *,
    program: LearnedMask | str | None = None,
    granularity: str = "weight",
    weights: str = "signed-constant",
    scaled: bool = True,
    allocation: str = "layerwise",
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    seed: int = 0,
    score_seed: int | None = None,
    train_norms: bool = False,
    gain: str | float | None = None,
    score_dtype: torch.dtype | None = None,
) -> Targets:
    """Turn a model, in place, into one whose masks are learned: weights frozen, scores trainable.

        supermask.learn(model, density=0.5)  # or granularity="2:4": two of every four inputs
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        ...any training loop...
        net = supermask.bake(model)

    The weights of all linear, convolution, attention and recurrent layers are drawn anew, biases become 0, norms scale
    1 and shift 0 (see `initialize`), and all of them are frozen, as is every other parameter. Excluded layers stay
    dense: random, frozen, unscaled.

    How masks are learned is edge-popup's rule, or one's own: `program=MyRule()`, a `LearnedMask`. A rule that lets
    weights train freezes nothing; over `weights="keep"` it is a learned pruning of the model as it is.

    A part of the model may run under `torch.utils.checkpoint` if it calls modules: what it reads of a weight itself, by
    `self.weight` in a function, is not there when it runs again.

    Args:
        model: any module; no layer is replaced and no name changes.
        density: fraction of the maskable weights to use, in (0, 1]. It follows from N:M, where it need not be given;
            rules that are not exact may do without.
        program: the rule; a `LearnedMask`, or the name of one that is built in: `bernoulli`, `biprop`, `edge-popup`,
            `gem-miner`, `iterand`, `signed` or `threshold`, over random weights; `hard-concrete`, `gumbel-sigmoid` or
            `categorical` (see `gates`), over trained ones.
        granularity: `weight`, or N:M as `2:4`: of every M consecutive inputs of an output those N with the largest |s|.
        weights: the init of the frozen weights (see `draw`), or `keep` for the model's own weights as they are.
        scaled: multiply drawn weights by sqrt(1/density), which keeps a layer's variance under the mask.
        allocation: `layerwise` (the same density in each tensor), `global` (all scores ranked together), or `er` or
            `erk`: densities by the inputs and outputs of each tensor, in which it ranks its own (see `allocation.erk`).
        include: globs of the parameters to mask instead of the default set (see `find_targets`).
        exclude: globs of parameters or modules to leave dense.
        seed: of the frozen weights.
        score_seed: of what is learned and of its noise; the same as `seed` where not given.
        train_norms: leave the scale and shift of norms trainable.
        gain: of the init, in place of its own: that of an activation by its name, or a number (see `initialize`).
        score_dtype: type of the scores, and so of their gradients and moments; `torch.bfloat16` halves their memory and
            needs an optimizer that rounds at random (see `live.rounding.RoundedOptimizer`): the updates of any other
            are lost. Masks stay exact; of scores that are equal, which are more of them, the first are kept. If not
            given, the type of the weights. For rules that rank scores, as edge-popup.

    Returns:
        The targets, with what is left out and why.

    Raises:
        ValueError: a density outside (0, 1], an unknown init, allocation or rule, a tensor that would keep no weight, a
            target without a fan-in, a model that carries masks already, a score_dtype that is neither float32 nor
            bfloat16, or of a rule that computes with its scores; with N:M another density or allocation, or inputs that
            are no multiple of M, all of it at once; a rule whose masks do not fit; or parameters that are shared out
            over processes (`fully_shard`), then or in a later pass.

    Source: Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020.
    """
    model = unwrap(model)
    rule = _find_rule(program)
    find_named("allocation", allocation, dict.fromkeys(BUDGETS))
    find_named("init", weights, {**WEIGHT_INITS, "keep": None})
    groups = _groups(granularity)
    if density is None and groups is None and rule.exact:
        raise ValueError("learn needs a density, the fraction of the weights to use, or granularity N:M, as '2:4'")
    if density is not None:
        count_kept(density, 1)
    targets = find_targets(model, include, exclude)
    if groups is not None:
        _check_groups(groups, density, allocation, targets)
        density = groups.density
    mask_seed = seed if score_seed is None else score_seed
    layers = Layers(targets, density, allocation, groups, mask_seed, rule.counts_steps)
    if density is not None and rule.exact:
        _check_counts(density, layers)
    layers.score_dtype = _check_dtype(score_dtype, rule)
    learned = Learned(model, targets, rule, layers)
    learned.refuse_shards()
    learned.install()
    try:
        if weights != "keep":
            dense = [name for name in _weights_of(model) if name not in targets]
            scale = density_scale(density) if scaled and density is not None else 1.0
            learned.draws = initialize(model, weights, seed, scale, literal_globs(dense), gain)
            learned.laws = {name: draw for name, draw in learned.draws.items() if name in targets}
        if rule.frozen:
            _freeze(model, train_norms)
        learned.start(mask_seed)
    except BaseException:
        learned.forget()
        learned.remove()
        raise
    learned.freeze()
    return targets


def _find_rule(program: LearnedMask | str | None) -> LearnedMask:
    if isinstance(program, LearnedMask):
        return program
    if program is None or isinstance(program, str):
        return find_named("learned mask", program or "edge-popup", RULES)()
    if isinstance(program, type) and issubclass(program, LearnedMask):
        raise ValueError(f"a learned mask is an object: expected program={program.__name__}(), got the class")
    raise ValueError(f"expected a supermask.LearnedMask or the name of one, got a {type(program).__name__}")


def _check_dtype(dtype: torch.dtype | None, rule: LearnedMask) -> torch.dtype | None:
    if dtype not in (None, torch.float32, torch.bfloat16):
        raise ValueError(f"expected score_dtype torch.float32 or torch.bfloat16, got {dtype}")
    if dtype is not None and not rule.compares_only:
        name = type(rule).__name__
        raise ValueError(f"score_dtype goes with rules that only compare scores, as edge-popup; {name} does more")
    return dtype


def _freeze(model: nn.Module, train_norms: bool) -> None:
    norms = {id(t.parameter) for t in find_targets(model, include="*").values() if t.kind == "norm"}
    for parameter in model.parameters():
        parameter.requires_grad_(train_norms and id(parameter) in norms)


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


def _check_counts(density: float, layers: Layers) -> None:
    if empty := _empty(layers):
        raise ValueError(f"density {density} keeps none of the weights of {', '.join(empty)}: raise it or exclude them")
    if not layers.total:
        size = sum(layer.size for layer in layers)
        raise ValueError(f"density {density} keeps none of the {size} weights")


def _empty(layers: Layers) -> list[str]:
    """The layers of which the density asked keeps nothing, where each ranks its own scores."""
    if layers.allocation == "global":
        return []
    return [f"{layer.name} ({layer.size})" for layer in layers if not layer.count]


def _weights_of(model: nn.Module) -> list[str]:
    """The tensors that would be masked by default; none is no mistake where others were asked for by glob."""
    return [name for name, t in find_targets(model, include="*").items() if t.kind in MASKED_BY_DEFAULT]


def learned_of(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """What is learned for each masked weight: `{weight's name: {name: tensor}}`, the tensors themselves.

        optimizer = torch.optim.Adam([t["scores"] for t in supermask.learned_of(model).values()])
        penalty = sum(t["scores"].square().sum() for t in supermask.learned_of(model).values())

    Raises:
        ValueError: the model carries no learned masks.
    """
    return {layer.name: layer.learned for layer in _learned(model).layers}


def replace_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put other weights, for good, under masks that are learned; `check` guards these from now on.

        fresh = supermask.draw("signed-constant", weight.shape, seed=step, name=name)
        supermask.replace_weights(model, {name: torch.where(mask, weight, fresh)})  # the dropped ones redrawn

    Args:
        model: a model after `supermask.learn`.
        tensors: `{weight's name: tensor of its shape}`, of some of the masked weights or of all.

    Raises:
        ValueError: the model carries no learned masks; names without one or other shapes, all of them named; or frozen
            weights that have been changed by something else before.
    """
    program = _learned(model)
    problems = mismatches({name: tuple(t.shape) for name, t in tensors.items()}, program.shapes, "tensor")
    if problems:
        raise ValueError("the weights cannot be replaced: " + "; ".join(problems))
    program.settle()
    program.replace(tensors)


def change_density(model: nn.Module, density: float) -> None:
    """Ask learned masks for another density from the next pass on, as to let it fall in the course of training.

        for step in range(steps):
            supermask.change_density(model, supermask.choosing.schedules.cubic(step / steps, 0.1))

    Args:
        model: after `supermask.learn` with a density.
        density: fraction of the maskable weights to use, in (0, 1].

    Raises:
        ValueError: a model without learned masks, masks that no density was asked of or that N:M gives theirs, a
            density outside (0, 1], or one that keeps no weight of a tensor.
    """
    program = _learned(model)
    layers = program.layers
    if layers.pattern is not None or layers.density is None:
        raise ValueError(
            "these masks have no density that could change: expected supermask.learn(model, density), without N:M"
        )
    count_kept(density, 1)
    before = layers.density
    layers.ask(density)
    if program.rule.exact and (empty := _empty(layers)):
        layers.ask(before)
        raise ValueError(f"density {density} keeps none of the weights of {', '.join(empty)}: raise it")
    program.ask(density)


def _learned(model: nn.Module) -> Learned:
    program = program_of(model)
    if isinstance(program, Learned):
        return program
    there = "no masks" if program is None else "masks that are held, not learned"
    raise ValueError(f"the model carries {there}: supermask.learn(model, density) puts learned ones on")
