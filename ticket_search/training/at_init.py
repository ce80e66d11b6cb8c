"""What the methods share that prune a network at initialization: score, mask, train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

import supermask
from supermask import choosing, selection, shrinking, weights

from .. import runs, training
from ..contract.declared import LOOKS_AT_DATA, OWN_SCORES, looks_at_data
from ..contract.errors import RAISED, RequestError, RunError
from ..contract.flags import Config as SharedConfig
from ..contract.flags import ShapedConfig, is_zero
from ..contract.method import Stage, Traits
from ..runs import ranks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from supermask import Masks, Targets, Ticket
    from supermask.choosing.gradients import Evidence
    from supermask.choosing.scores import Scores
    from supermask.masks.targets import Target

    from ..data.samples import Samples
    from ..runs.run import Run
    from .objective import Objective

TRAITS = Traits()
NO_RATE = "--schedule cosine ends at a rate of 0, which retrains nothing: give --retrain-lr"


class PruningConfig(ShapedConfig):
    """The flags of every method that prunes by a score: how many each tensor keeps, and in what shape."""

    density: float = Field(0.1, gt=0, le=1, allow_inf_nan=False, description="fraction of the weights kept at the end")
    batch_size: int = Field(60, ge=1, description="samples per step")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("adam", description="update rule")
    lr: float = Field(1.2e-3, gt=0, allow_inf_nan=False, description="learning rate at its highest")
    allocation: Literal["global", "layerwise", "erk", "er", "balanced"] | None = Field(
        None,
        description="how the kept weights are shared among tensors; global if not given, of larger units layerwise",
    )
    granularity: str = Field(
        "weight", description="the unit that is kept or dropped as a whole: weight, filter, channel, block:4x4, 2:4"
    )
    floor: float = Field(0.0, ge=0, lt=1, description="least fraction of its weights that every tensor keeps")


class AtInitConfig(PruningConfig):
    """The flags of the methods that prune at initialization."""

    score: ClassVar[str] = ""
    rounds: int = Field(
        1, ge=1, description="rounds of scoring and pruning; the density falls exponentially from one to the next"
    )

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """N:M has one density only."""
        found = super().problems(given)
        if self.group_density is not None and self.rounds != 1:
            found.append(f"--granularity {self.granularity} is met in one round: give --rounds 1")
        return found


class DataConfig(AtInitConfig):
    """The flags of those whose scores look at data."""

    samples_per_class: int = Field(
        10,
        ge=1,
        description="training samples of each class (or for each float target) on which the scores are measured",
    )


def plan(config: AtInitConfig, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """One training, of the pruned network.

    Raises:
        RequestError: a granularity that does not fit the targets, or a density that keeps nothing.
    """
    check_pruning(config, targets)
    return [Stage("training", config.density, config.epochs * steps_per_epoch)]


def check_pruning(config: PruningConfig, targets: Targets) -> None:
    """Check that the targets can be pruned in the configured way.

    Raises:
        RequestError: a granularity that is none or does not fit the targets, an allocation or a floor that cannot be,
            or a density that keeps nothing.
    """

    if problems := group_problems(config, targets):
        raise RequestError(problems)
    try:
        shape = choosing.granularity.find_granularity(config.granularity)
        units = shape.reduce({name: target.parameter.detach() for name, target in targets.items()}, targets)
    except ValueError as error:
        raise RequestError(f"--granularity {config.granularity}: {error}") from None
    try:
        counts = choosing.pruning.allocation_for(shape, config.allocation, config.floor)(units, config.density, targets)
    except ValueError as error:
        raise RequestError(f"--density {config.density:g}: {error}") from None
    if not any(counts.values()):
        number, what = sum(unit.numel() for unit in units.values()), config.granularity
        raise RequestError(f"--density {config.density:g} keeps none of the {number:,} units ({what})")


def density_problems(config: SharedConfig, targets: Mapping[str, Target]) -> list[str]:
    """What a density keeps nothing of: tensors where each is ranked by itself (`allocation`), or all of them."""
    counts = {name: selection.top_k.count_kept(config.density, target.size) for name, target in targets.items()}
    total, problems = sum(target.size for target in targets.values()), []
    empty = [name for name, count in counts.items() if count == 0]
    if getattr(config, "allocation", "global") == "layerwise" and empty:
        problems.append(f"--density {config.density:g} keeps none of {', '.join(empty)}: raise it or --exclude them")
    if selection.top_k.count_kept(config.density, total) == 0:
        problems.append(f"--density {config.density:g} keeps none of the {total:,} weights")
    return problems


def group_problems(config: ShapedConfig, targets: Mapping[str, Target]) -> list[str]:
    """What cannot be cut into the groups of N:M, all of it and the flag that leaves it dense; empty if that is all."""

    if config.group_density is None:
        return []
    shape = choosing.granularity.find_granularity(config.granularity)
    assert isinstance(shape, choosing.granularity.NM)
    misfits = {name: problem for name, target in targets.items() if (problem := shape.problem(target))}
    if not misfits:
        return []
    typed = ",".join([*config.exclude, *misfits])
    return [
        f"--granularity {config.granularity}: {'; '.join(misfits.values())}; leave that dense with --exclude {typed}"
    ]


def prune_and_train(model: nn.Module, run: Run) -> Ticket:
    """Choose the masks of `model` at initialization by the method's score, then train what is left."""
    config = run.config
    assert isinstance(config, AtInitConfig)
    start = weights.fitting.state_of(model)

    def choose() -> Masks:
        evidence: dict[str, Any] = {"rounds": config.rounds, "example_input": example_of(run.data)}
        if isinstance(config, DataConfig):
            objective = training.trial.find_objective(run.setup, config, model)
            batches = score_batches(run.data, config, config.samples_per_class, objective)
            evidence["batches"] = shared(batches, config.score)
        return choose_masks(model, config, config.score, run, **evidence)

    masks = choose_once(run, "pruning", choose)
    warn_of_collapse(model, masks, run)
    supermask.hold(model, masks)
    return training.conclude.train_once(model, run, masks, start=start)


def choose_once(run: Run, stage: str, choose: Callable[[], Masks]) -> Masks:
    """The masks that training begins with, chosen in a stage of the run, so that a run that goes on has them too."""

    def work() -> dict[str, Any]:
        masks = choose()
        run.log(0, runs.loggers.tensorboard.densities(masks))
        return {"masks": dict(masks), "uncounted": sorted(masks.uncounted)}

    chosen = run.stage(stage, work)
    return supermask.Masks(chosen["masks"], chosen["uncounted"])


def choose_masks(model: nn.Module, config: PruningConfig, score: str, run: Run, **evidence: Any) -> supermask.Masks:
    """`supermask.prune` with the configured flags, and a bar over the rounds of scoring.

    Raises:
        RunError: what it refuses, such as scores that are NaN.
    """

    coupled = config.granularity == "filter"
    if not coupled and score in OWN_SCORES and score not in ("synflow", "bn-scale"):
        evidence.pop("example_input", None)
    if "batches" in evidence:
        evidence["loss"] = training.trial.find_objective(run.setup, config, model).loss
    rounds = evidence.pop("rounds", None) or (
        1 if config.group_density is not None else choosing.scores.ROUNDS.get(score, 1)
    )
    scored = choosing.scores.find_score(score)
    try:
        with run.progress.count(f"scoring by {score}", rounds) as one_more:

            def score_once(model: nn.Module, targets: Targets, evidence: Evidence) -> Scores:
                found = scored(model, targets, evidence)
                one_more()
                return found

            return supermask.prune(
                model,
                config.density,
                score_once,
                config.allocation,
                config.granularity,
                include=config.include or None,
                exclude=config.exclude or None,
                floor=config.floor,
                rounds=rounds,
                seed=config.seeds["mask"],
                **evidence,
            )
    except ValueError as error:
        raise RunError(f"{config.method}: {error}") from None


def check_own_score(model: nn.Module, config: Any, run: Run) -> None:
    """Try a score of another package on the initial weights, before a training that would be for nothing.

    It is told that the weights began a tenth nearer to 0, so that one which compares the two has something to compare.

    Raises:
        RequestError: it raises, or its scores cannot be ranked.
    """
    if config.score in OWN_SCORES:
        return
    began = {
        name: 0.9 * tensor for name, tensor in weights.fitting.state_of(model).items() if tensor.is_floating_point()
    }
    evidence = choosing.gradients.Evidence(config.seeds["mask"], **evidence_of(model, config, run, began))
    targets = supermask.find_targets(model, config.include or None, config.exclude or None)
    try:
        with choosing.gradients.undisturbed(model, config.seeds["mask"]):
            scores = choosing.scores.find_score(config.score)(model, targets, evidence)
        choosing.pruning.check_scores(scores, targets)
    except RAISED as error:
        told = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise RequestError(f"--score {config.score}, tried on the initial weights: {told}") from error


def retraining_problems(config: Any, given: Set[str]) -> list[str]:
    """What does not go together of `--then` and its flags: rewinding has a step, fine-tuning a rate and a length."""
    if config.then != "fine-tune":
        own = {"--retrain-epochs": config.retrain_epochs, "--retrain-lr": config.retrain_lr}
        return [f"{name} goes with --then fine-tune" for name, value in own.items() if value is not None]
    found = []
    if "rewind" in given and not is_zero(config.rewind):
        found.append("--rewind goes with --then rewind or lr-rewind")
    if config.retrain_lr is not None and config.retrain_epochs == 0:
        found.append("--retrain-lr goes with --retrain-epochs above 0")
    if config.schedule == "cosine" and config.retrain_lr is None and config.retrain_epochs != 0:
        found.append(NO_RATE)
    return found


def fine_tuning(config: SharedConfig, epochs: int, lr: float | None, steps_per_epoch: int) -> SharedConfig:
    """Training on at a constant rate; if none is given, the last of the configured training."""

    total = config.epochs * steps_per_epoch
    last = lr or training.optimization.learning_rate(config, total - 1, total, steps_per_epoch)
    return config.model_copy(
        update={"epochs": epochs, "lr": last, "schedule": "constant", "milestones": (), "warmup": "0"}
    )


def score_problems(config: Any, given: Set[str]) -> list[str]:
    """What does not go with a score: samples with one that looks at none, a seed with one that draws nothing."""
    found = []
    if "samples_per_class" in given and not looks_at_data(config.score):
        found.append(f"--samples-per-class goes with --score {', '.join(LOOKS_AT_DATA)}")
    if "mask_seed" in given and not looks_at_data(config.score) and config.score != "random":
        found.append(f"--mask-seed goes with --score {', '.join(LOOKS_AT_DATA)}, random")
    return found


def evidence_of(model: nn.Module, config: Any, run: Run, start: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the configured score is given to look at.

    Args:
        model: the network.
        config: with `score` and `samples_per_class`.
        run: its data.
        start: the weights that those of the network are compared with.
    """
    evidence: dict[str, Any] = {"example_input": example_of(run.data), "start": start}
    if looks_at_data(config.score):
        objective = training.trial.find_objective(run.setup, config, model)
        batches = score_batches(run.data, config, config.samples_per_class, objective)
        evidence["batches"] = shared(batches, config.score)
        evidence["loss"] = objective.loss
    return evidence


def example_of(data: Samples) -> Any:
    """Two validation samples, for what needs to run the network: their shape is what counts."""
    return next(data.batches("validation", 2))[0]


def score_batches(
    data: Samples, config: SharedConfig, per_class: int, objective: Objective | None = None
) -> Iterator[Any]:
    """Training samples drawn by the mask seed, `per_class` of each class on average, in batches of equal size.

    All of them: an epoch of training would leave out what does not fill a batch. Of float targets so many for each
    number that the network gives.
    """

    order = supermask.masks.random_numbers.permutation(data.train_size, config.seeds["mask"], "score-samples")
    count = min(data.train_size, per_class * max(1, data.classes))
    size = max(divisor for divisor in range(1, min(config.batch_size, count) + 1) if count % divisor == 0)
    form = objective or training.objective.CLASSIFICATION
    return (form.score_batch(x, y) for x, y in data.train_batches(order[:count], size))


def shared(batches: Iterable[Any], score: str) -> Iterable[Any]:
    """The share of this rank of batches for a score, whose sums are those of all ranks; all, where they are too few.

    A score of another package does not know of other ranks, and sees all batches on each.
    """
    group = ranks.now()
    if not group.several or score not in OWN_SCORES:
        return batches
    found = list(batches)
    if len(found) < group.world:
        return found
    return choosing.gradients.Shared(found[group.rank :: group.world], ranks.add)


def warn_of_collapse(model: nn.Module, masks: Masks, run: Run) -> None:
    """Say which tensors are cut off before training is wasted on them."""

    try:
        found = shrinking.flow.flow(model, masks, example_of(run.data))
    except ValueError as error:
        run.progress.say(f"cut layers are not looked for: {error}")
        return
    empty = [name for name, kept in masks.kept_per_tensor.items() if kept == 0]
    for sentence in shrinking.flow.describe(found):
        tell = run.warn if sentence.startswith(tuple(f"{name} " for name in empty)) else run.progress.say
        tell(sentence)
