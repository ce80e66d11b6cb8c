"""SupSup: over one frozen network learn a mask for each of several tasks, and infer the task.

Wortsman et al., Supermasks in Superposition, 2020.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from supermask import live

from .. import training
from ..contract.errors import RequestError
from ..contract.flags import NotNegative, Positive, Seed, flag
from ..contract.method import Stage, Traits
from ..data.tasks import read_tasks
from ..training.random_weights import ScoresConfig, plan_as_it_comes, plan_scores

if TYPE_CHECKING:
    from torch import nn

    from supermask import Targets, Ticket

    from ..data.samples import Samples
    from ..runs.run import Run

WHEN = "When one network must learn several tasks and forget none of them."


class Config(ScoresConfig):
    """Flags of SupSup.

    The paper has two rules. `top-k`, where the task is known (GG), is edge-popup's: the largest |s| of each tensor,
    with the Erdos-Renyi budget min(0.5, s (inputs + outputs) / weights), which without the cap is `--allocation er` of
    layers without kernels; the authors train it by Adam at 1e-3 with a cosine. `threshold`, where it is inferred (GN),
    keeps every s >= 0; the authors train it by RMSprop at 1e-4 for 1,000 steps. There 90 outputs of 100 have no class:
    training lowers them under the right mask only, and without such outputs (`--model-args classes=100`) few decisions
    are right. A mask that is chosen wrongly counts as a wrong decision, and accuracies are those with the task known.
    """

    method: str = "supsup"
    epochs: int = Field(60, ge=1, description="epochs of learning the masks of each task")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("adam", description="optimizer that updates the scores")
    lr: Positive = Field(1e-3, description="learning rate of the scores after warmup, which the schedule may lower")
    weight_decay: NotNegative = Field(0.0, description="weight decay, on the scores")
    tasks: str = Field(
        "permuted:5",
        description="the tasks that are made of the data: permuted:N (pixels in N orders), rotated:N (images turned by "
        "N equal angles) or split:N (the classes in N equal groups, each numbered from 0)",
    )
    task_seed: Seed = Field(0, description="seed of the orders of --tasks permuted:N")
    rule: Literal["top-k", "threshold"] = Field(
        "top-k",
        description="what a mask keeps: top-k, the largest scores in absolute value, as many as --density asks; "
        "threshold, every score of at least 0, however many these are",
    )
    allocation: Literal["layerwise", "global", "er", "erk"] = Field(  # type: ignore[assignment]
        "layerwise",
        description="how many each tensor keeps: the same share of each, of all ranked together, or shares by inputs "
        "and outputs (er), by the kernel too (erk)",
    )
    decisions: int = Field(
        100,
        ge=1,
        description="how many decisions about the task of 1 and of 16 test images are made for each task, at most, to "
        "report how many of them are right",
    )

    def problems(self, given: Set[str] = frozenset()) -> list[str]:
        """Two tasks at least; a threshold says how many are kept, so that nothing else may; inference needs classes."""
        found = super().problems(given)
        tasks = None
        try:
            tasks = read_tasks(self.tasks, self.task_seed)
        except RequestError as error:
            found += error.problems
        if tasks is not None and tasks.kind != "permuted" and "task_seed" in given:
            found.append(f"--task-seed goes with --tasks permuted:N, not {self.tasks}")
        if self.loss not in (None, "cross-entropy"):
            found.append(f"--loss {self.loss}: tasks are inferred from the outputs for classes; expected cross-entropy")
        if self.rule == "threshold":
            others = [name for name in ("density", "allocation", "scaled") if name in given]
            others += ["granularity"] if self.granularity != "weight" else []
            found += [
                f"{flag(name)} goes with --rule top-k: --rule threshold says itself how many are kept"
                for name in others
            ]
        return found


TRAITS = Traits(weights="frozen")


def plan(config: Config, targets: Targets, steps_per_epoch: int) -> list[Stage]:
    """A training for each task.

    Raises:
        RequestError: a density that leaves a tensor without weights, a target that is no weight, or one without groups.
    """
    plan_one = plan_scores if config.rule == "top-k" else plan_as_it_comes
    (stage,) = plan_one(config, targets, steps_per_epoch)
    tasks = read_tasks(config.tasks)
    # Of a data set that is split each task has a part.
    share = tasks.number if tasks.kind == "split" else 1
    steps = config.epochs * max(1, steps_per_epoch // share)
    return [Stage(f"task {name}", stage.density, steps) for name in tasks.names]


def check(model: nn.Module, data: Samples, config: Config) -> None:
    """Check that the tasks can be made of the data.

    Raises:
        RequestError: they cannot.
    """
    if problems := read_tasks(config.tasks, config.task_seed).problems(data):
        raise RequestError(problems)


def search(model: nn.Module, run: Run) -> Ticket:
    """Learn the masks of each task over the frozen weights of `model`, and count how often tasks are inferred right."""
    config = run.config
    assert isinstance(config, Config)
    tasks = read_tasks(config.tasks, config.task_seed)
    rule = live.EdgePopup if config.rule == "top-k" else live.Threshold
    return training.tasks.train_tasks(model, run, tasks, rule, config.decisions)
