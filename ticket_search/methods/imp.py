"""Iterative magnitude pruning: train, drop the smallest weights, rewind the rest, repeat.

Frankle & Carbin, The Lottery Ticket Hypothesis, 2018; rewinding to a later step: Frankle et al., Linear Mode
Connectivity and the Lottery Ticket Hypothesis, 2020.

Rewinding of the learning rate alone, and fine-tuning: Renda, Frankle & Carbin, Comparing Rewinding and Fine-tuning in
Neural Network Pruning, 2020. Other scores than the magnitude: Zhou et al., Deconstructing Lottery Tickets, 2019.

Of filters, channels and blocks the levels' densities count units: so many of each tensor or of all together, as near as
their number allows; a row says the density that was aimed at and the units kept. Filters take their biases, norms and
partners with them, and each layer keeps one.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence, Set
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

import supermask
from supermask import choosing, selection, weights

from .. import runs, training
from ..contract.declared import OWN_SCORES, ScoreName
from ..contract.errors import RequestError, RunError
from ..contract.flags import Duration, Positive, ShapedConfig, flag, groups_of, is_zero, split_words, steps_of
from ..contract.method import Stage, Traits
from ..data.samples import whole_batches
from ..training.at_init import (
    check_own_score,
    evidence_of,
    fine_tuning,
    group_problems,
    retraining_problems,
    score_problems,
    warn_of_collapse,
)
from ..training.units import Level, counts_at, find_maskable, find_unit_levels, unit_densities, unit_problems

if TYPE_CHECKING:
    from torch import Tensor, nn

    from supermask import Masks, Targets, Ticket

    from ..data.samples import Samples
    from ..runs.run import Run

WHEN = "For winning tickets: as a rule the most accurate at low densities, at the price of a training a level."

Rate = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Densities = Annotated[
    tuple[Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)], ...], BeforeValidator(split_words)
]
# Units of several weights, by the names that `supermask.prune` has for them.
_UNITS = re.compile(r"filter|channel|block:[0-9]{1,9}(x[0-9]{1,9})*")
# Of a score that leaves a tensor without mask, or is made for many rounds, levels cannot be made.
_SCORES = tuple(name for name in OWN_SCORES if name not in ("l1", "synflow", "bn-scale"))


class Config(ShapedConfig):
    """Flags of iterative magnitude pruning."""

    draws_masks: ClassVar[bool] = True
    method: str = "imp"
    density: float = Field(0.1, gt=0, le=1, allow_inf_nan=False, description="fraction of the weights kept at the end")
    batch_size: int = Field(60, ge=1, description="samples per step")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("adam", description="update rule")
    lr: float = Field(1.2e-3, gt=0, allow_inf_nan=False, description="learning rate at its highest")
    evaluate_every: Duration = Field("100it", description="how often to measure on validation, as 100it or 1ep")
    granularity: str = Field(
        "weight",
        description="what is kept or dropped as one: weight, filter (with its bias, norm and partners), channel, "
        "block:4x4, or N:M, which keeps N of every M inputs, as 2:4",
    )
    score: Annotated[str, ScoreName(_SCORES)] = Field(
        "magnitude",
        description="score by which the trained weights are ranked; magnitude-increase and the like compare them with "
        "those that are rewound to, or without rewinding with those of the start",
    )
    samples_per_class: int = Field(
        10, ge=1, description="training samples of each class on which scores of gradients are measured"
    )
    allocation: Literal["global", "layerwise", "module"] = Field(
        "global",
        description="rank all weights together (global), those of each tensor, or of each module (weight and bias); "
        "layerwise if not given for filters, channels and N:M",
    )
    fraction: float = Field(0.2, gt=0, lt=1, description="fraction of the remaining weights that each level drops")
    levels: Densities = Field(
        (),
        description="densities of the levels, each met exactly, as 0.5,0.1,0.05, in place of --density and --fraction",
    )
    conv_fraction: Rate | None = Field(
        None, description="fraction of the remaining weights of convolutions that each level drops (layerwise)"
    )
    output_fraction: Rate | None = Field(
        None, description="fraction of the remaining weights of the output layer that each level drops (layerwise)"
    )
    rewind: Duration = Field("0", description="training step whose weights each level goes back to, as 0, 500it or 2ep")
    rewind_optimizer: Literal["fresh", "restore"] = Field(
        "fresh", description="the optimizer's moments after rewinding: fresh, or those of the step that was rewound to"
    )
    then: Literal["rewind", "lr-rewind", "fine-tune"] = Field(
        "rewind",
        description="after each pruning: rewind weights and learning rate, or the rate only, or fine-tune at a "
        "constant rate",
    )
    retrain_epochs: int | None = Field(
        None, ge=1, description="epochs of fine-tuning; those of the training if not given"
    )
    retrain_lr: Positive | None = Field(
        None, description="learning rate of fine-tuning; the last rate of the training if not given"
    )
    data_order: Literal["fresh", "same"] = Field(
        "fresh", description="order of the batches of each level: drawn anew, or that of the first training again"
    )

    @model_validator(mode="before")
    @classmethod
    def _allocation_of_groups(cls, values: Any) -> Any:
        granularity = values.get("granularity") if isinstance(values, dict) else None
        follows = granularity in ("filter", "channel") or groups_of(granularity)
        return {"allocation": "layerwise", **values} if follows else values

    @model_validator(mode="before")
    @classmethod
    def _density_of_levels(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "density" in values:
            return values
        words = split_words(values.get("levels") or ())
        # What is wrong with the last level is said of the levels.
        right = isinstance(words, tuple) and words and _is_density(words[-1])
        return {**values, "density": words[-1]} if right else values

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """Per-layer rates need layerwise ranking, and some training must be left after the rewind point."""
        found = super().problems(given) + self._level_problems(given) + self._retraining_problems(given)
        found += score_problems(self, given)
        rates = {"--conv-fraction": self.conv_fraction, "--output-fraction": self.output_fraction}
        own = [name for name, value in rates.items() if value is not None]
        if self.allocation == "global":
            found += [f"{name} goes with --allocation layerwise or module" for name in own]
        if self.granularity != "weight":
            own += ["--allocation module"] if self.allocation == "module" and self.keeps_units else []
            found += [f"{name} goes with --granularity weight, not {self.granularity}" for name in own]
            if self.group_density is None and not self.keeps_units:
                found.append(
                    f"--granularity {self.granularity}: expected weight, filter, channel, block:4x4, or N:M with N "
                    "below M, as 2:4"
                )
        if self.rewind.endswith("ep") and steps_of(self.rewind, 1) >= self.epochs:
            found.append(f"--rewind {self.rewind}: expected less than the {self.epochs} epochs of a training")
        if self.rewind_optimizer == "restore" and is_zero(self.rewind):
            found.append("--rewind-optimizer restore needs --rewind after step 0: before it there are no moments")
        return found

    def _level_problems(self, given: Set[str]) -> list[str]:
        """Densities of levels fall, and nothing else says what they are."""
        if not self.levels:
            return []
        told = ",".join(f"{density:g}" for density in self.levels)
        found = [
            f"{flag(name)} and --levels {told}: the levels say what is dropped, give one of them"
            for name in ("fraction", "conv_fraction", "output_fraction")
            if name in given
        ]
        if self.density != self.levels[-1]:
            found.append(f"--density {self.density:g} and --levels {told}: the last level is the density, leave it out")
        if any(after >= before for before, after in itertools.pairwise(self.levels)):
            found.append(f"--levels {told}: expected each density below the one before")
        if self.group_density is not None:
            found.append(f"--levels {told} goes with units of one density, not {self.granularity}")
        return found

    def _retraining_problems(self, given: Set[str]) -> list[str]:
        """What fine-tuning has and rewinding has not, and moments only where weights go back to them."""
        found = retraining_problems(self, given)
        if self.then != "rewind" and self.rewind_optimizer == "restore":
            found.append(f"--rewind-optimizer restore goes with --then rewind, not {self.then}")
        return found

    @property
    def keeps_units(self) -> bool:
        """Whether several weights are kept or dropped as one, so that densities count units."""
        return _UNITS.fullmatch(self.granularity) is not None


def _is_density(value: Any) -> bool:
    try:
        return 0 < float(value) <= 1
    except (TypeError, ValueError):
        return False


TRAITS = Traits(nested=True)


def rates(config: Config, targets: Targets) -> dict[str, float]:
    """The fraction dropped per level of each tensor.

    Raises:
        RequestError: a rate for a kind of layer that carries no mask.
    """
    problems = []
    if config.output_fraction is not None and targets.output not in targets:
        problems.append("--output-fraction: the last linear layer carries no mask")
    if config.conv_fraction is not None and all(target.kind != "conv" for target in targets.values()):
        problems.append("--conv-fraction: no convolution carries a mask")
    if problems:
        raise RequestError(problems)
    found = {}
    for name, target in targets.items():
        special = config.conv_fraction if target.kind == "conv" else None
        if name == targets.output and config.output_fraction is not None:
            special = config.output_fraction
        found[name] = config.fraction if special is None else special
    if config.allocation == "module":
        for names in modules(targets):
            largest = max(names, key=lambda name: targets[name].size)
            found |= dict.fromkeys(names, found[largest])
    return found


def modules(targets: Targets) -> list[list[str]]:
    """The masked tensors of each module, as a layer's weight and bias."""
    found: dict[str, list[str]] = {}
    for name in targets:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return list(found.values())


def level_counts(config: Config, targets: Targets) -> list[dict[str, int]]:
    """Weights kept in each tensor at every level after the dense one, if each tensor is pruned at its own rate.

    After t levels a tensor keeps the share (1 - rate)^t. The last level is where the total is exactly that of the
    density asked; a last step of less than a tenth of a level is joined to the one before it. With N:M a level keeps
    as many of every M as `patterns` says.

    Raises:
        RequestError: a density that the rates never reach, or tensors that cannot be cut into groups of M.
    """

    if groups := patterns(config):
        if problems := group_problems(config, targets):
            raise RequestError(problems)
        return [{name: target.size // group * kept for name, target in targets.items()} for kept, group in groups]
    sizes = {name: target.size for name, target in targets.items()}
    if config.levels:
        counts = counts_at(config.levels, sizes, config.allocation == "layerwise")
        for density, kept in zip(config.levels, counts, strict=True):
            if sum(kept.values()) == 0:
                raise RequestError(f"--levels: the density {density:g} keeps none of the {targets.size:,} weights")
        return counts
    rate = rates(config, targets)
    total = selection.top_k.count_kept(config.density, targets.size)
    if total == targets.size:
        return []
    if total == 0:
        raise RequestError(f"--density {config.density:g} keeps none of the {targets.size:,} weights")

    def shares(level: float) -> dict[str, float]:
        return {name: sizes[name] * (1.0 - rate[name]) ** level for name in sizes}

    try:
        end, _ = choosing.allocation.shrink_by_rate(sizes, rate, total)
    except ValueError as error:
        raise RequestError(f"--density {config.density:g}: {error}") from None
    number = max(1, math.ceil(end - 0.1))
    counts = []
    for level in range(1, number):
        before = counts[-1] if counts else sizes
        counts.append({name: min(before[name], math.floor(share + 0.5)) for name, share in shares(level).items()})
    before = counts[-1] if counts else sizes
    if config.allocation == "layerwise" and len(set(rate.values())) == 1:
        counts.append(
            {name: min(before[name], selection.top_k.count_kept(config.density, size)) for name, size in sizes.items()}
        )
    else:
        counts.append(choosing.allocation.largest_remainder(shares(end), total, before))
    return counts


def patterns(config: Config) -> list[tuple[int, int]]:
    """N and M at every level after the dense one, each below the last by about --fraction: 3:4 and 2:4, as a rule."""
    groups = groups_of(config.granularity)
    if groups is None:
        return []
    last, group = groups
    found = [group]
    while found[-1] > last:
        share = math.floor(group * (1.0 - config.fraction) ** len(found) + 0.5)
        found.append(max(last, min(found[-1] - 1, share)))
    return [(kept, group) for kept in found[1:]]


def find_levels(model: nn.Module, data: Samples, config: Config, targets: Targets) -> list[Level]:
    """The levels after the dense one.

    Raises:
        RequestError: what `level_counts` refuses, or tensors that have no such units.
    """
    if not config.keeps_units:
        counts = level_counts(config, targets)
        shapes = ["{}:{}".format(*pattern) for pattern in patterns(config)] or ["weight"] * len(counts)
        size = targets.size
        return [Level(shape, each, size, sum(each.values()) / size) for shape, each in zip(shapes, counts, strict=True)]
    densities = unit_densities(config.density, config.levels, config.fraction)
    return find_unit_levels(model, data, config, targets, densities, config.granularity, config.allocation)


def check(model: nn.Module, data: Samples, config: Config) -> None:
    """Check that a network has such units, and that the densities keep some of them, or of filters one of each layer.

    Raises:
        RequestError: it has none, or too low a density.
    """
    if not config.keeps_units:
        return
    levels = find_levels(model, data, config, find_maskable(model, config))
    if levels and (problems := unit_problems(levels[-1], config.granularity, config.allocation)):
        raise RequestError(problems)


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """The dense training, then one training per level from the rewind point on.

    Raises:
        RequestError: a rewind point at or after the end of training.
    """
    whole = config.epochs * steps_per_epoch
    rewind = steps_of(config.rewind, steps_per_epoch)
    if rewind >= whole:
        raise RequestError(f"--rewind {config.rewind}: expected less than the {whole} steps of a training")
    again = (config.retrain_epochs or config.epochs) * steps_per_epoch if config.then == "fine-tune" else whole - rewind
    if config.keeps_units:
        densities = unit_densities(config.density, config.levels, config.fraction)
    else:
        densities = [sum(counts.values()) / targets.size for counts in level_counts(config, targets)]
    return [Stage("level-00", 1.0, whole)] + [
        Stage(f"level-{level:02d}", density, again) for level, density in enumerate(densities, start=1)
    ]


def search(model: nn.Module, run: Run) -> Ticket:
    """Run every level; each one keeps its ticket under `levels/`, and `rewind.safetensors` the step rewound to.

    Beside a ticket of whole filters the run has `compact.safetensors`, the network without what was dropped.
    """

    config = run.config
    assert isinstance(config, Config)
    levels = find_levels(model, run.data, config, run.setup.targets(config, model))
    initial = weights.fitting.state_of(model)
    # The levels before the last are pruned further, and so must not be rounded.
    work = partial(_train_dense, model, config, run, initial, levels)
    first = run.stage("level-00", work)
    run.rows.append(first["row"])
    # What the first level started from, not what the model is now: a resumed run built it anew.
    initial = run.load_level(0).state_dict("start")
    for number, level in enumerate(levels, start=1):
        compared = start = initial
        if config.then != "rewind":
            start = run.load_level(number - 1).state_dict("final")
        elif first["rewound_to"]:
            compared = start = run.load_rewind_point().state_dict()
        work = partial(_train_level, model, config, run, number, level, start, compared, first, number < len(levels))
        run.rows.append(run.stage(f"level-{number:02d}", work)["row"])
    ticket = run.load_level(len(levels))
    run.save_ticket(ticket)
    if config.granularity == "filter":
        run.rows[-1] |= run.stage("compact", partial(training.conclude.save_compacted, run, ticket))["row"]
    return ticket


def _train_dense(
    model: nn.Module, config: Config, run: Run, initial: Mapping[str, Tensor], levels: Sequence[Level]
) -> dict[str, Any]:
    rewind = steps_of(config.rewind, whole_batches(run.data.train_size, config.batch_size))
    hook = training.rewinding.RewindPoint(rewind)
    # Over the tensors of all levels, so that levels compare: filters have biases and norms.
    masks = supermask.prune(
        model, 1.0,
        granularity=levels[0].shape if config.keeps_units and levels else "weight",
        include=config.include or None, exclude=config.exclude or None,
    )  # fmt: skip
    check_own_score(model, config, run)
    trained = training.loop.train_network(model, run, hook=hook, order=_order(config, 0))
    if hook.tensors and config.then == "rewind":
        states = {"start": supermask.make_state(initial, masks, run.setup.draws)}
        states["final"] = supermask.make_state(hook.tensors, masks)
        run.save_rewind_point(supermask.Ticket(masks, states, {"step": rewind}))
    scalars = {"mask/changed": 0.0, **runs.loggers.tensorboard.densities(masks)}
    result = training.conclude.conclude(
        run, model, masks, initial, trained, level=0, scalars=scalars, exact=bool(levels)
    )
    keep_moments = config.rewind_optimizer == "restore"
    return {**result, "rewound_to": rewind, "optimizer": hook.optimizer if keep_moments else {}}


def _train_level(
    model: nn.Module,
    config: Config,
    run: Run,
    number: int,
    level: Level,
    start: Mapping[str, Tensor],
    compared: Mapping[str, Tensor],
    first: Mapping[str, Any],
    exact: bool,
) -> dict[str, Any]:
    before = run.load_level(number - 1)
    masks = _prune(before.apply_to(model), config, run, before.masks, level, compared)
    if config.keeps_units:
        warn_of_collapse(model, masks, run)
    weights.fitting.set_state(model, start)
    supermask.hold(model, masks)
    if config.then == "fine-tune":
        per_epoch = whole_batches(run.data.train_size, config.batch_size)
        tuned = fine_tuning(config, config.retrain_epochs or config.epochs, config.retrain_lr, per_epoch)
        trained = training.loop.train_network(model, run, config=tuned, order=_order(config, number))
    else:
        moments = training.rewinding.mask_moments(first["optimizer"], model, masks) if first["optimizer"] else None
        trained = training.loop.train_network(
            model, run, start=first["rewound_to"], order=_order(config, number), optimizer_state=moments
        )
    supermask.check(model)
    scalars = {"mask/changed": masks.changed(before.masks), **runs.loggers.tensorboard.densities(masks)}
    rewound = {"rewound_to": first["rewound_to"]} if first["rewound_to"] and config.then != "fine-tune" else {}
    result = training.conclude.conclude(
        run, model, masks, start, trained, level=number, scalars=scalars, exact=exact, **rewound
    )
    result["row"] |= {"retrained": True} if config.then != "rewind" else {}
    result["row"] |= _describe_units(config, level)
    supermask.detach(model)
    return result


def _describe_units(config: Config, level: Level) -> dict[str, Any]:
    if not config.keeps_units:
        return {}
    name = "filters" if config.granularity == "filter" else "units"
    return {"nominal_density": level.density, name: level.units, f"{name}_kept": level.kept}


def _order(config: Config, level: int) -> str:
    return "order/0" if config.data_order == "same" else f"order/{level}"


def _prune(
    model: nn.Module, config: Config, run: Run, previous: Masks, level: Level, start: Mapping[str, Tensor]
) -> Masks:
    # Through a layer without any filter nothing passes.
    ranked = choosing.allocation.find_allocation("global")
    together = choosing.allocation.with_floor(ranked, 0.0) if config.granularity == "filter" else ranked

    def allocate(scores: Mapping[str, Tensor], density: float, targets: Targets) -> dict[str, int]:
        if config.allocation == "layerwise":
            return dict(level.counts)
        if config.allocation == "global":
            return together(scores, density, targets)
        kept: dict[str, int] = {}
        for names in modules(targets):
            kept |= choosing.allocation.rank_together(
                {name: scores[name] for name in names}, sum(level.counts[name] for name in names)
            )
        return kept

    evidence = {} if config.score == "magnitude" else evidence_of(model, config, run, start)
    try:
        return supermask.prune(
            model,
            level.kept / level.units,
            config.score,
            allocate,
            level.shape,
            include=config.include or None,
            exclude=config.exclude or None,
            previous=previous,
            rounds=1,
            seed=config.seeds["mask"],
            **evidence,
        )
    except ValueError as error:
        raise RunError(f"{config.method}: {error}") from None
