"""prune(): score, allocation and granularity joined into masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..masks.masks import Masks, first_few, mismatches, shapes_of
from ..masks.targets import LeftOut, Targets, find_targets, learned_names, literal_globs, plain_name, unwrap
from ..plugins.other_names import hears_other_names
from ..selection.top_k import count_kept
from ..weights.fitting import merge_tied
from .allocation import Allocation, by_glob, find_allocation, with_floor
from .calibration import Rule, prune_in_order, put_back
from .coupling import Coupled, couple
from .gradients import Evidence, Loss, Replay, undisturbed
from .granularity import NM, Channel, Filter, Granularity, Units, find_granularity
from .schedules import Schedule, densities_over
from .scores import ROUNDS, Score, find_score
from .sparsegpt import SPARSEGPT
from .wanda import WANDA

# Scores that look at what each layer is given.
BY_INPUTS: Mapping[str, Rule] = {WANDA.name: WANDA, SPARSEGPT.name: SPARSEGPT}
_MISFITS = "the previous masks do not fit the targets"


@hears_other_names
def prune(
    model: nn.Module,
    density: float | Mapping[str, float],
    score: str | Score = "magnitude",
    allocation: str | Allocation | None = None,
    granularity: str | Granularity = "weight",
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    previous: Mapping[str, Tensor] | None = None,
    floor: float = 0.0,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    example_input: Any = None,
    start: Mapping[str, Tensor] | None = None,
    rounds: int | Sequence[float] | None = None,
    schedule: str | Schedule = "exponential",
    seed: int = 0,
) -> Masks:
    """Choose which weights of a model to keep. The model is not changed: `hold` or `bake` applies the masks.

        masks = supermask.prune(model, density=0.1)
        masks = supermask.prune(model, density=0.05, previous=masks)                          # only shrinks
        masks = supermask.prune(model, 0.1, "snip", batches=loader)                           # before training
        masks = supermask.prune(model, 0.01, "synflow", example_input=torch.ones(1, 3, 32, 32))
        masks = supermask.prune(model, 0.5, granularity="filter", example_input=x)            # whole channels
        masks = supermask.prune(model, {"conv": 0.5, "linear": 0.1, "output": 1.0})           # layer by layer

    Args:
        model: any module.
        density: fraction of the maskable units to keep, in (0, 1], met to the unit, ties included. Or densities by
            glob, kind of layer or `output` (see `by_glob`), which are an allocation themselves.
        score: `magnitude`, `l2`, `random`, `snip`, `grasp`, `synflow`, `taylor`, `movement`, `bn-scale`, one by the
            weights of the start (`magnitude-increase`, `large-init`, ...; see `criteria`), or a function
            `(model, targets, evidence) -> {name: tensor}`, higher is kept. `wanda` and `sparsegpt` rank the weights of
            each output by themselves, layer after layer (see `by_inputs`); the weights that SparseGPT corrects are
            those of `prune_and_correct`. A tensor whose scores are all infinite stays dense, as one without a batch
            norm behind it under `bn-scale`: it gets no mask and counts in no density.
        allocation: `global` (all units ranked together; the default), `layerwise` (the same density in each tensor; the
            default of filters, channels and N:M), `erk`, `er`, `balanced`, or a function
            `(unit scores, density, targets) -> {name: number}`.
        granularity: `weight`, `filter`, `channel`, `block:4x4`, `2:4`, or an object of that contract. `filter` with an
            `example_input` drops whole channels: all filters that write one, their biases, the norm behind them. The
            masks then hold biases and norms too, which no density counts.
        include: globs of the parameters to mask instead of the default set (see `find_targets`).
        exclude: globs of parameters or modules to leave dense.
        previous: masks of an earlier round; what they drop stays dropped. Where neither `include` nor `exclude` is
            given, the tensors they name are the targets.
        floor: the fraction of its units that every tensor keeps at least, and at least one; with 0 a tensor may lose
            all of its units.
        batches: for scores that look at gradients: any iterable of (inputs, targets); one is in memory at a time, but
            for several rounds an iterator is read into a list. For `wanda` and `sparsegpt` targets may be missing.
        loss: `loss(outputs, targets)` for them, cross-entropy if not given.
        example_input: what the model takes: for `synflow`, `bn-scale` and coupled filters.
        start: for `magnitude-increase` and the like: the state dict that training began from.
        rounds: score and drop again and again, down to the density: their number or the density of each. 100 for
            `synflow`, else 1.
        schedule: the density over the rounds: `exponential`, `cubic` or `linear`.
        seed: of scores that draw random numbers.

    Raises:
        ValueError: a density outside (0, 1], an unknown name, scores that are NaN or of the wrong shape, previous
            masks that do not fit the model or keep fewer units than asked, a density that keeps nothing, a floor above
            the density, or a combination that cannot be, with the reason.
    """
    model = unwrap(model)
    if learned_names(model):
        raise ValueError("the model's masks are being learned: supermask.bake(model) first")
    if isinstance(score, str) and score in BY_INPUTS:
        asked = {
            "allocation": allocation, "previous": previous, "floor": floor or None, "start": start, "rounds": rounds,
        }  # fmt: skip
        return by_inputs(
            model, density, score, granularity, batches=batches, include=include, exclude=exclude, seed=seed, **asked
        )
    _check_density(density, floor, allocation)
    if previous is not None:
        previous = merge_tied(previous if isinstance(previous, Masks) else Masks(previous), model)
    if previous is not None and include is None and exclude is None:
        include = literal_globs(_counted(previous))
    targets = find_targets(model, include, exclude)
    shape = find_granularity(granularity)
    if granularity == "filter" and example_input is not None:
        shape = couple(model, targets, example_input)
    allocate = by_glob(density) if isinstance(density, Mapping) else allocation_for(shape, allocation, floor)
    scored = find_score(score)
    if rounds is None:
        rounds = ROUNDS.get(score, 1) if isinstance(score, str) and not isinstance(shape, NM) else 1
    masks = None if previous is None else _take_previous(previous, model, targets)
    goals = _goals(density, rounds, schedule, 1.0 if masks is None else _alive(masks, targets, shape))
    if isinstance(batches, Iterator) and len(goals) > 1:
        batches = Replay(batches)
    evidence = Evidence(seed, batches, loss, example_input, start)
    for left, goal in zip(reversed(range(len(goals))), goals, strict=True):
        with undisturbed(model, seed), zeroed(model, masks):
            scores = scored(model, targets, _without_dropped(evidence, masks))
        masks = _choose(scores, targets, shape, allocate, goal, masks, last=left == 0)
    assert masks is not None
    return masks


def by_inputs(
    model: nn.Module,
    density: float | Mapping[str, float],
    score: str,
    granularity: str | Granularity = "weight",
    *,
    batches: Iterable[Any] | None,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    seed: int = 0,
    **others: Any,
) -> Masks:
    """`prune` by a score that looks at inputs; see `calibration.prune_in_order`.

    Layer after layer: each is scored by the inputs that it has once those before it are pruned, and each output keeps
    the same number of its weights, or N of every M. Afterwards the model is as it was.

    Raises:
        ValueError: what `prune_in_order` refuses, or others of the arguments of `prune` that go with no such score.
    """
    if given := [name for name, value in others.items() if value is not None]:
        raise ValueError(
            f"'{score}' prunes once and keeps the same number of every output's weights: leave {', '.join(given)} out"
        )
    with put_back(find_targets(model, include, exclude)):
        return prune_in_order(
            model, density, BY_INPUTS[score], granularity, batches=batches, include=include, exclude=exclude, seed=seed
        )


def allocation_for(shape: Granularity, allocation: str | Allocation | None, floor: float = 0.0) -> Allocation:
    """The allocation asked, over a floor; if none is asked, the one that units of this shape can be ranked by.

    Raises:
        ValueError: an unknown name.
    """
    if allocation is None:
        # Sums over filters of different sizes do not compare.
        allocation = "layerwise" if isinstance(shape, (NM, Filter, Channel, Coupled)) else "global"
    found = find_allocation(allocation)
    return with_floor(found, floor) if floor else found


def _choose(
    scores: Mapping[str, Tensor],
    targets: Targets,
    shape: Granularity,
    allocate: Allocation,
    density: float,
    previous: Masks | None,
    last: bool,
) -> Masks:
    check_scores(scores, targets)
    everything = targets
    if not isinstance(shape, Coupled):
        targets = _scored(scores, targets)
    if lost := [name for name in targets if previous is not None and name not in previous]:
        raise ValueError(f"{_MISFITS}: " + "; ".join(f"there is no previous mask for {name}" for name in lost))
    units = shape.reduce({name: scores[name].detach() for name in targets}, targets)
    units = {key: unit for key, unit in units.items() if not bool((unit == torch.inf).all())}
    if previous is not None:
        units = _bar_dropped(units, previous, targets, shape)
    counts = allocate(units, density, targets)
    if not any(counts.values()):
        raise ValueError(f"density {density} keeps none of the {sum(unit.numel() for unit in units.values())} units")
    if previous is not None and not last:  # only the density asked is met in each tensor
        counts = {name: min(count, _alive_in(units[name])) for name, count in counts.items()}
    if previous is not None:
        _check_shrinks(counts, units, density)
    masks = shape.expand(shape.choose(units, counts), targets)
    for name, before in {} if previous is None else previous.items():
        masks[name] = masks[name] & before.to(masks[name].device) if name in masks else before
    left_whole = shape.left_whole if isinstance(shape, Coupled) else {}
    return Masks(masks, [name for name in masks if name not in everything], left_whole)


def _scored(scores: Mapping[str, Tensor], targets: Targets) -> Targets:
    """The targets without those that stay dense."""
    dense = {name for name in targets if bool((scores[name] == torch.inf).all())}
    left = {name: LeftOut(targets[name].size, "dense by its score", targets[name].parameter.dim()) for name in dense}
    kept = {name: target for name, target in targets.items() if name not in dense}
    if not kept:
        raise ValueError(f"the scores leave all of {', '.join(targets)} dense: there is nothing to rank")
    return Targets(kept, {**targets.left_out, **left}, targets.output)


def _goals(
    density: float | Mapping[str, float], rounds: int | Sequence[float], schedule: str | Schedule, start: float
) -> list[float]:
    if not isinstance(density, Mapping):
        return densities_over(rounds, density, schedule, max(start, density))
    if rounds != 1:
        raise ValueError("densities by glob are met in one round: expected rounds=1, or one density for all")
    return [1.0]


def _alive(masks: Masks, targets: Targets, shape: Granularity) -> float:
    """The fraction of the units of which something is kept."""
    targets = Targets({name: target for name, target in targets.items() if name in masks}, {}, targets.output)
    units = shape.reduce({name: masks[name].to(torch.float64) for name in targets}, targets).values()
    return sum(int(torch.count_nonzero(unit)) for unit in units) / sum(unit.numel() for unit in units)


def _alive_in(unit: Tensor) -> int:
    return int(torch.count_nonzero(unit != -torch.inf))


@contextmanager
def zeroed(model: nn.Module, masks: Masks | None) -> Iterator[None]:
    """The model with the dropped weights at 0, as long as the block lasts."""
    if masks is None:
        yield
        return
    masked = find_targets(model, include=literal_globs(masks))
    dropped = [(target.parameter, ~masks[name].to(target.parameter.device)) for name, target in masked.items()]
    before = [(parameter, where, parameter.detach()[where].clone()) for parameter, where in dropped]
    with torch.no_grad():
        for parameter, where in dropped:
            parameter[where] = 0
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, where, values in before:
                parameter[where] = values


def _without_dropped(evidence: Evidence, masks: Masks | None) -> Evidence:
    """The evidence with the weights of the start at 0 where they are dropped, as those of the model are."""
    if masks is None or not isinstance(evidence.start, Mapping):
        return evidence
    start = {
        name: torch.where(mask.to(tensor.device), tensor, torch.zeros_like(tensor))
        if isinstance(tensor, Tensor)
        and (mask := masks.get(plain_name(name))) is not None
        and mask.shape == tensor.shape
        else tensor
        for name, tensor in evidence.start.items()
    }
    return replace(evidence, start=start)


def _check_density(density: float | Mapping[str, float], floor: float, allocation: str | Allocation | None) -> None:
    for value in density.values() if isinstance(density, Mapping) else [density]:
        count_kept(value, 1)
    if isinstance(density, Mapping) and floor:
        raise ValueError("densities by glob are floors themselves: expected one density with a floor")
    if isinstance(density, Mapping) and allocation is not None:
        raise ValueError(f"densities by glob are an allocation themselves: expected one density with {allocation!r}")


def _counted(masks: Mapping[str, Tensor]) -> list[str]:
    return [name for name in masks if not (isinstance(masks, Masks) and name in masks.uncounted)]


def check_scores(scored: Mapping[str, Tensor], targets: Targets) -> None:
    """Check that every target has scores, of its shape and none of them NaN.

    Raises:
        ValueError: the first that have not, and their number.
    """
    problems = []
    for name, target in targets.items():
        if name not in scored:
            problems.append(f"{name} has no score")
        elif scored[name].shape != target.parameter.shape:
            problems.append(f"{name} has shape {list(target.parameter.shape)}, its scores {list(scored[name].shape)}")
        elif nan := int(torch.isnan(scored[name]).sum()):
            problems.append(f"{name} has {nan} NaN among its {target.size} scores")
    if problems:
        raise ValueError("the scores cannot be ranked: " + first_few(problems))


def _take_previous(previous: Mapping[str, Tensor], model: nn.Module, targets: Targets) -> Masks:
    """The previous masks of the targets; where they are all targets, those of biases and norms that go with them."""
    masks = {name: previous[name] for name in targets if name in previous}
    shapes = {name: tuple(target.parameter.shape) for name, target in targets.items()}
    if len(masks) == len(_counted(previous)) < len(previous):
        masks |= previous
        shapes = {name: tuple(each.parameter.shape) for name, each in find_targets(model, include="*").items()}
    if problems := mismatches(shapes_of(masks), shapes):
        raise ValueError(f"{_MISFITS}: " + first_few(problems))
    return Masks(masks, [name for name in masks if name not in targets])


def _bar_dropped(units: Units, previous: Masks, targets: Targets, shape: Granularity) -> Units:
    kept = shape.reduce({name: previous[name].to(torch.float64) for name in targets}, targets)
    barred = {}
    for key, score in units.items():
        floating = score if score.is_floating_point() else score.to(torch.float64)
        # The lowest finite score, not -inf, for a kept unit: -inf is what says "dropped before".
        floating = floating.clamp_min(torch.finfo(floating.dtype).min)
        barred[key] = floating.masked_fill((kept[key] <= 0).to(floating.device), -torch.inf)
    return barred


def _check_shrinks(counts: Mapping[str, int], units: Units, density: float) -> None:
    grown = []
    for name, count in counts.items():
        had = _alive_in(units[name])
        if count > had:
            grown.append(f"{name} keeps {had} and density {density} asks for {count}")
    if grown:
        raise ValueError("masks only shrink, but the previous ones keep fewer weights: " + "; ".join(grown))
