"""Train, drop each layer's filters with the smallest weights, retrain; ends in a smaller network.

Li et al., Pruning Filters for Efficient ConvNets, 2016.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

import supermask
from supermask import choosing, selection, weights

from .. import training
from ..contract.declared import ScoreName
from ..contract.errors import RequestError, RunError
from ..contract.flags import Config as SharedConfig
from ..contract.flags import Positive, Words
from ..contract.method import Stage, Traits
from ..contract.metric import complete_row, known_value
from ..data.samples import whole_batches
from ..training.at_init import NO_RATE, fine_tuning

if TYPE_CHECKING:
    from torch import Tensor, nn

    from supermask import Masks, Targets, Ticket
    from supermask.choosing.gradients import Evidence

    from ..data.samples import Samples
    from ..runs.run import Run
    from ..training.units import Filters

WHEN = "When the network should be smaller and faster on ordinary hardware, and not only sparse."

TRAITS = Traits(exact_density=False)
_OF_WEIGHTS = ("magnitude", "l2")
# In fewer steps of retraining a network hardly recovers from what was taken out of it.
_FEW_STEPS = 30


class Config(SharedConfig):
    """Flags of filter pruning. A filter goes with its bias, its norm and the filters that a sum ties to it."""

    draws_masks: ClassVar[bool] = True
    from_checkpoint: ClassVar[bool] = True
    granularity: ClassVar[str] = "filter"
    method: str = "filters"
    density: float = Field(
        0.5,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="fraction of the filters or hidden units of each layer that is kept",
    )
    densities: Words = Field(
        (),
        description="densities of some layers, as 'conv1*=1,layer3.*=0.3'; the first glob that fits counts",
    )
    score: Annotated[str, ScoreName(("magnitude", "l2", "bn-scale", "random"))] = Field(
        "magnitude",
        description="score of a filter: the sum of its magnitudes (L1), its L2 norm, or the scale of its batch norm",
    )
    greedy: bool = Field(
        False,
        description="go from layer to layer and leave out of a score the weights that read channels dropped before",
    )
    rounds: int = Field(
        1, ge=1, description="rounds of pruning and retraining; the densities fall exponentially from one to the next"
    )
    scan: bool = Field(
        False,
        description="prune each layer alone and measure the metric on validation: sensitivity.json and sensitivity.png",
    )
    tolerance: float | None = Field(
        None, ge=0, le=100, allow_inf_nan=False,
        description="choose densities by the scan: of each layer the lowest that alone costs at most so much, in "
        "percentage points of accuracy or in the unit of another metric",
    )  # fmt: skip
    retrain_epochs: int | None = Field(
        None, ge=1, description="epochs of retraining in each round; a quarter of --epochs if not given"
    )
    retrain_lr: Positive | None = Field(
        None, description="constant learning rate of retraining; the last rate of the training if not given"
    )

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """Densities come from flags or from the scan."""
        found = super().problems(given)
        found += [
            f"--densities {word}: expected GLOB=DENSITY with a density above 0 and at most 1, as 'conv1*=0.5'"
            for word in self.densities
            if not _is_density(word)
        ]
        if self.tolerance is not None:
            chosen = [f"--{name}" for name in ("density", "densities") if name in given]
            found += [f"{name} and --tolerance: the scan chooses the densities, give one of them" for name in chosen]
        if self.greedy and self.score not in _OF_WEIGHTS:
            found.append(f"--greedy goes with --score {' or '.join(_OF_WEIGHTS)}")
        if "mask_seed" in given and self.score != "random":
            found.append("--mask-seed goes with --score random")
        if self.schedule == "cosine" and self.retrain_lr is None:
            found.append(NO_RATE)
        return found

    @property
    def layer_densities(self) -> dict[str, float]:
        """`densities` as globs and numbers."""
        return {word.rpartition("=")[0]: float(word.rpartition("=")[2]) for word in self.densities}

    @property
    def epochs_of_a_round(self) -> int:
        """How long a round retrains."""
        return self.retrain_epochs or math.ceil(self.epochs / 4)


def _is_density(word: str) -> bool:
    glob, _, value = word.rpartition("=")
    try:
        return bool(glob) and 0 < float(value) <= 1
    except ValueError:
        return False


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """The dense training, which a checkpoint (`--weights`) has behind it, then a retraining for each round."""
    whole = 0 if config.weights else config.epochs * steps_per_epoch
    again = config.epochs_of_a_round * steps_per_epoch
    return [Stage("level-00", 1.0, whole)] + [
        Stage(f"level-{level:02d}", config.density ** (level / config.rounds), again)
        for level in range(1, config.rounds + 1)
    ]


def check(model: nn.Module, data: Samples, config: Config) -> None:
    """Check that the network has filters that can be dropped, and that the densities fit its layers.

    Raises:
        RequestError: it has none, a glob that fits none of them, a layer that would be left empty, or one that the
            score says nothing of.
    """
    filters = find_filters(model, data, config)
    counts = filters.channels if config.tolerance is not None else count_filters(config, filters)
    try:
        drop(model, config, filters, counts, None)
    except RunError as error:
        raise RequestError(f"--score {config.score}: {error}") from None


def find_filters(model: nn.Module, data: Samples, config: Config) -> Filters:
    """The channels of the network that can be dropped, by the configured score.

    Raises:
        RequestError: there are none; why is said of each layer.
    """
    return training.units.find_filters(model, data, config, normed=config.score == "bn-scale")


def count_filters(config: Config, filters: Filters) -> dict[str, int]:
    """How many filters each layer keeps in the end.

    Raises:
        RequestError: globs that fit no such layer, or layers that would be left empty; all of them.
    """
    import torch

    units = {key: torch.zeros(channels) for key, channels in filters.channels.items()}
    try:
        counts = choosing.allocation.by_glob(config.layer_densities, rest=config.density)(
            units, config.density, filters.targets
        )
    except ValueError as error:
        raise RequestError(f"--densities: {error}; layers: {', '.join(units)}") from None
    if empty := [f"none of the {len(units[key])} of {key}" for key, count in counts.items() if not count]:
        raise RequestError(f"the densities keep {', '.join(empty)}: a layer needs a filter at least")
    return counts


def search(model: nn.Module, run: Run) -> Ticket:
    """Train, then drop filters and retrain round after round; level 0 is the dense network.

    Beside the ticket the run has `compact.safetensors`, the network without what was dropped.
    """
    config = run.config
    assert isinstance(config, Config)
    filters = find_filters(model, run.data, config)
    initial = weights.fitting.state_of(model)
    steps = config.epochs_of_a_round * whole_batches(run.data.train_size, config.batch_size)
    if steps < _FEW_STEPS:
        run.progress.say(f"the retraining after pruning has {steps} steps only: --retrain-epochs lengthens it")
    dense = run.stage("level-00", partial(_train_dense, model, config, run, filters, initial))
    run.rows.append(dense["row"])
    weights.fitting.set_state(model, dense["trained"])
    final = None if config.tolerance is not None else count_filters(config, filters)
    if config.scan or final is None:
        final = _scan(model, config, run, filters, final)
    for level in range(1, config.rounds + 1):
        counts = {key: _between(filters.channels[key], last, level / config.rounds) for key, last in final.items()}
        work = partial(_train_level, model, config, run, filters, level, counts)
        run.rows.append(run.stage(f"level-{level:02d}", work)["row"])
    ticket = run.load_level(config.rounds)
    run.save_ticket(ticket)
    run.rows[-1] |= run.stage("compact", partial(training.conclude.save_compacted, run, ticket))["row"]
    return ticket


def _between(whole: int, last: int, share: float) -> int:
    """Filters kept after a share of the rounds, from the whole to the last number in equal ratios."""
    return max(last, math.floor(whole * math.pow(last / whole, share) + 0.5))


def _train_dense(
    model: nn.Module, config: Config, run: Run, filters: Filters, initial: Mapping[str, Tensor]
) -> dict[str, Any]:

    # A checkpoint was trained elsewhere: all of the schedule lies behind it.
    start = config.epochs * whole_batches(run.data.train_size, config.batch_size) if config.weights else 0
    trained = training.loop.train_network(model, run, start=start)
    # Over the tensors of all levels, so that levels compare.
    everything = drop(model, config, filters, filters.channels, None)
    result = training.conclude.conclude(run, model, everything, initial, trained, level=0, exact=True)
    return {**result, "trained": weights.fitting.state_of(model)}


def _scan(
    model: nn.Module, config: Config, run: Run, filters: Filters, counts: dict[str, int] | None
) -> dict[str, int]:
    """Measure each layer alone; the counts given, or those that the tolerance allows."""
    dense, accuracies = known_value(complete_row(run.rows[0], run.metric), "val"), {}
    with run.progress.count("scanning layers", len(filters.channels) * len(training.sensitivity.DENSITIES)) as one_more:
        for key, channels in filters.channels.items():

            def masks_at(density: float, key: str = key, channels: int = channels) -> Masks:
                kept = filters.channels | {key: max(1, selection.top_k.count_kept(density, channels))}
                return drop(model, config, filters, kept, None)

            measured = run.stage(
                f"scan {key}", partial(training.sensitivity.scan_layer, model, run, masks_at, one_more)
            )
            accuracies[key] = measured["accuracies"]
    if run.leads:
        with run.writing():
            training.sensitivity.save_scan(run.path, dense, accuracies, run.metric)
    allowed = training.sensitivity.tell_scan(run, dense, accuracies, config.tolerance)
    return counts or {
        key: max(1, selection.top_k.count_kept(allowed[key], channels)) for key, channels in filters.channels.items()
    }


def _train_level(
    model: nn.Module,
    config: Config,
    run: Run,
    filters: Filters,
    level: int,
    counts: Mapping[str, int],
) -> dict[str, Any]:
    before = run.load_level(level - 1)
    weights.fitting.set_state(model, before.state_dict("final"))
    masks = drop(model, config, filters, counts, before.masks)
    supermask.hold(model, masks)
    start = weights.fitting.state_of(model)
    per_epoch = whole_batches(run.data.train_size, config.batch_size)
    again = fine_tuning(config, config.epochs_of_a_round, config.retrain_lr, per_epoch)
    trained = training.loop.train_network(model, run, config=again, order=f"order/{level}")
    supermask.check(model)
    result = training.conclude.conclude(run, model, masks, start, trained, level=level, exact=level < config.rounds)
    supermask.detach(model)
    result["row"] |= {
        "retrained": True,
        "filters": sum(filters.channels.values()),
        "filters_kept": sum(counts.values()),
    }
    return result


def drop(
    model: nn.Module, config: Config, filters: Filters, counts: Mapping[str, int], previous: Masks | None
) -> Masks:
    """Masks that keep the given number of filters of each layer, the best by their scores.

    Raises:
        RunError: scores that cannot be ranked.
    """
    if not config.greedy:
        return _choose(model, config, filters, counts, previous, {})
    masks: Masks | None = previous
    dropped: dict[str, Tensor] = {}
    for key, count in counts.items():
        masks = _choose(model, config, filters, {key: count}, masks, dropped)
        dropped[key] = filters.shape.dropped(key, masks, filters.targets)
    assert masks is not None
    return masks


def _choose(
    model: nn.Module,
    config: Config,
    filters: Filters,
    counts: Mapping[str, int],
    previous: Masks | None,
    dropped: Mapping[str, Tensor],
) -> Masks:
    """The best filters of the layers in `counts`; the others stay as they are."""

    scored = choosing.scores.find_score(config.score)

    def allocate(units: Mapping[str, Tensor], density: float, targets: Targets) -> dict[str, int]:
        # -inf: dropped before.
        return {key: counts.get(key, int((unit != -math.inf).sum())) for key, unit in units.items()}

    def score(model: nn.Module, targets: Targets, evidence: Evidence) -> dict[str, Tensor]:
        found = dict(scored(model, targets, evidence))
        for key, channels in dropped.items():
            for name, places in filters.shape.readers(key, channels, targets):
                found[name] = found[name].clone()
                found[name].movedim(1 - targets[name].output_axis, 0)[places] = 0
        return found

    try:
        return supermask.prune(
            model, 1.0, score, allocate, filters.shape,
            include=config.include or None, exclude=config.exclude or None,
            previous=previous, example_input=filters.example, seed=config.seeds["mask"],
        )  # fmt: skip
    except ValueError as error:
        raise RunError(str(error)) from None
