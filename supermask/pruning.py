"""prune(): score, allocation and granularity joined into masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from .allocation import Allocation, find_allocation
from .granularity import Granularity, find_granularity
from .masks import Masks, mismatches
from .scores import Score, find_score
from .selection import count_kept, top_k
from .targets import Targets, find_targets, literal_globs


def prune(
    model: nn.Module,
    density: float,
    score: str | Score = "magnitude",
    allocation: str | Allocation = "global",
    granularity: str | Granularity = "weight",
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    previous: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Masks:
    """Choose which weights of a model to keep. The model is not changed: `hold` or `bake` applies the masks.

        masks = supermask.prune(model, density=0.1)
        masks = supermask.prune(model, density=0.05, previous=masks)     # only shrinks

    Args:
        model: any module.
        density: fraction of the maskable weights to keep, in (0, 1], met to the unit, ties included.
        score: `magnitude`, `random`, or a function `(model, targets, seed) -> {name: tensor}`, higher is kept.
        allocation: `global` (all tensors ranked together), `layerwise` (the same density in each), or a function
            `(unit scores, density) -> {name: number of units}`.
        granularity: `weight`, or an object with `reduce` and `expand`.
        include: globs of the parameters to mask instead of the default set (see `find_targets`).
        exclude: globs of parameters or modules to leave dense.
        previous: masks of an earlier round; what they drop stays dropped. Where neither `include` nor `exclude` is
            given, the tensors they name are the targets.
        seed: of scores that draw random numbers.

    Raises:
        ValueError: a density outside (0, 1], an unknown name, scores that are NaN or of the wrong shape, or previous
            masks that do not fit the model or keep fewer weights than asked, or a density that keeps nothing.
    """
    count_kept(density, 1)
    if previous is not None and include is None and exclude is None:
        include = literal_globs(previous)
    targets = find_targets(model, include, exclude)
    scored = find_score(score)(model, targets, seed)
    _check_scores(scored, targets)
    shape = find_granularity(granularity)
    units = {name: shape.reduce(scored[name]) for name in targets}
    if previous is not None:
        units = _bar_dropped(units, previous, targets, shape)
    counts = find_allocation(allocation)(units, density)
    if not any(counts.values()):
        raise ValueError(f"density {density} keeps none of the {sum(unit.numel() for unit in units.values())} units")
    if previous is not None:
        _check_shrinks(counts, units, density)
    return Masks(
        {
            name: shape.expand(top_k(units[name], counts[name]), tuple(target.parameter.shape))
            for name, target in targets.items()
        }
    )


def _check_scores(scored: Mapping[str, Tensor], targets: Targets) -> None:
    problems = []
    for name, target in targets.items():
        if name not in scored:
            problems.append(f"{name} has no score")
        elif scored[name].shape != target.parameter.shape:
            problems.append(f"{name} has shape {list(target.parameter.shape)}, its scores {list(scored[name].shape)}")
        elif nan := int(torch.isnan(scored[name]).sum()):
            problems.append(f"{name} has {nan} NaN among its {target.size} scores")
    if problems:
        raise ValueError("the scores cannot be ranked: " + "; ".join(problems))


def _bar_dropped(
    units: dict[str, Tensor], previous: Mapping[str, Tensor], targets: Targets, shape: Granularity
) -> dict[str, Tensor]:
    problems = mismatches(previous, {name: tuple(target.parameter.shape) for name, target in targets.items()})
    problems += [f"there is no previous mask for {name}" for name in targets if name not in previous]
    if problems:
        raise ValueError("the previous masks do not fit the targets: " + "; ".join(problems))
    barred = {}
    for name, score in units.items():
        floating = score if score.is_floating_point() else score.to(torch.float64)
        # The lowest finite score, not -inf, for a kept unit: -inf is what says "dropped before".
        floating = floating.clamp_min(torch.finfo(floating.dtype).min)
        kept = shape.reduce(previous[name].to(floating)) > 0
        barred[name] = floating.masked_fill(~kept, -torch.inf)
    return barred


def _check_shrinks(counts: Mapping[str, int], units: Mapping[str, Tensor], density: float) -> None:
    grown = []
    for name, count in counts.items():
        had = int((units[name] != -torch.inf).sum())
        if count > had:
            grown.append(f"{name} keeps {had} and density {density} asks for {count}")
    if grown:
        raise ValueError("masks only shrink, but the previous ones keep fewer weights: " + "; ".join(grown))
