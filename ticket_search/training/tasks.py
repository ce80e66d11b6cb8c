"""What a method of several tasks does: a training of scores for each, one ticket of all, and how tasks are inferred."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import supermask
from supermask import LearnedMask, Superposition, Ticket
from supermask.live.tasks import Objective
from supermask.masks.random_numbers import permutation, random_words
from supermask.weights.fitting import state_of

from ..contract.flags import Config
from ..data.dataset import Data
from ..data.tasks import Tasks
from ..runs.run import Run
from .evaluation import mean_of_tasks
from .learned_scores import fit_scores, learn_scores
from .outputs import main_output

# From how many images a decision is reported.
IMAGES = (1, 16)


def train_tasks(
    model: nn.Module, run: Run, tasks: Tasks, make_rule: Callable[[], LearnedMask], decisions: int
) -> Ticket:
    """Learn masks for each of several tasks over the same frozen weights.

    Each task is a stage of the run: its scores begin anew, by a seed of its own. The ticket has all tasks; the run's
    row has the means over them with the task known, a row for each in `tasks`, and in `inference` how many decisions
    about the task of test images were right.

    Args:
        model: the network, whose weights each task begins with; it is not changed.
        run: of which these are the only trainings.
        tasks: what is made of its data.
        make_rule: gives the rule of one task's masks.
        decisions: about the task of how many groups of test images is decided, for each task at most.
    """
    rows, tickets = [], {}
    for index, name in enumerate(tasks.names):
        found = run.stage(f"task {name}", partial(_fit_task, model, run, tasks, index, make_rule))
        rows.append({"task": name, **found["row"]})
        tickets[name] = supermask.unpack(found["ticket"].numpy().tobytes())
    joined = supermask.join_tasks(tickets, _weights(model, run.config))
    ticket = replace(joined, meta={**joined.meta, **_mean_values(tickets)})
    run.save_ticket(ticket)
    inference = run.stage("inference", lambda: {"rows": _count_inferred(ticket, run, tasks, decisions)})["rows"]
    means = {**mean_of_tasks(rows), "kept": ticket.kept, "density": ticket.density}
    run.rows.append({**means, "inference": inference, "tasks": rows})
    return run.ticket


def _fit_task(
    model: nn.Module, run: Run, tasks: Tasks, index: int, make_rule: Callable[[], LearnedMask]
) -> dict[str, Any]:
    name, kept = tasks.names[index], list[Ticket]()
    net = copy.deepcopy(model)
    # Half of a word: a seed is below 2^63.
    seed = int(random_words(1, run.config.seeds["mask"], f"task/{name}")[0]) >> 1
    learn_scores(net, run.config, make_rule(), score_seed=seed)
    with run.setup.using(tasks.samples(run.data, index)):
        found = fit_scores(net, run, order=f"order/{name}", keep=kept.append, task=tasks.describe(index))
    # A stage keeps tensors and plain data: the ticket as the bytes of its file.
    return {**found, "ticket": torch.frombuffer(bytearray(supermask.pack(kept[0])), dtype=torch.uint8)}


def _weights(model: nn.Module, config: Config) -> dict[str, Tensor] | None:
    """The weights that are kept as the model came with them, in the type that tickets store."""
    if config.init != "keep":
        return None
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.dtype]
    return {
        name: tensor if dtype is None or tensor.dtype != torch.float32 else tensor.to(dtype).float()
        for name, tensor in state_of(model).items()
    }


def _mean_values(tickets: Mapping[str, Ticket]) -> dict[str, Any]:
    """What a ticket says of its metric, as means over tasks."""
    metas = [ticket.meta for ticket in tickets.values()]
    if "accuracy" in metas[0]:
        return {"accuracy": _means([meta["accuracy"] for meta in metas])}
    return {"metric": {**metas[0]["metric"], "values": _means([meta["metric"]["values"] for meta in metas])}}


def _means(values: list[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        state: {split: statistics.fmean(each[state][split] for each in values) for split in splits}
        for state, splits in values[0].items()
    }


def _count_inferred(ticket: Ticket, run: Run, tasks: Tasks, decisions: int) -> list[dict[str, Any]]:
    """For each number of images the percentage of decisions that name the right task, of test images of all tasks."""
    superposed = ticket.superpose(run.setup.build().to(run.config.device))
    images = {name: _draw_images(tasks.samples(run.data, index), run) for index, name in enumerate(tasks.names)}
    real = tasks.classes(run.data)
    asked: dict[Objective, int | None] = {"entropy": None}
    if _outputs(superposed, next(iter(images.values()))) > real:
        asked["superfluous"] = real
    else:
        run.progress.say(
            "the network has no outputs beyond its classes, which tell tasks apart; --model-args classes=100 gives "
            "them to a built-in network"
        )
    found = list[dict[str, Any]]()
    for together in IMAGES:
        whole = {name: x[: len(x) // together * together][: decisions * together] for name, x in images.items()}
        if any(len(x) == 0 for x in whole.values()):
            run.progress.say(f"there are not {together} test images of each task to infer it from")
            continue
        for objective, number in asked.items():
            try:
                named = {
                    name: superposed.infer(x, together, "one-shot", objective, number) for name, x in whole.items()
                }
            except ValueError as error:
                # As of a batch norm that one image has one value for.
                run.progress.say(f"no task can be inferred from {together} images: {error}")
                found.append({"images": together, "by": objective, "reason": str(error)})
                continue
            right = sum(each.count(name) for name, each in named.items())
            made = sum(map(len, named.values()))
            found.append({"images": together, "by": objective, "right": 100.0 * right / made, "decisions": made})
    return found


def _draw_images(samples: Data, run: Run) -> Tensor:
    """The test images of a task in an order of their own: a file may have them class by class."""
    x: Tensor = samples.test_x
    return x[torch.from_numpy(permutation(len(x), run.config.split_seed, "decisions")).to(x.device)]


@torch.no_grad()
def _outputs(superposed: Superposition, x: Tensor) -> int:
    """How many outputs the network has."""
    outputs = main_output(superposed(x[:2]))
    return 0 if outputs is None else int(outputs.shape[1])
