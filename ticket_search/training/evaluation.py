"""Loss and metric of a model on held-out samples."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from supermask import Ticket
from supermask.choosing.gradients import call
from supermask.live.learned import Learned
from supermask.live.program import program_of

from ..contract.errors import RequestError, RunError, unknown
from ..contract.flags import Config, make_config
from ..contract.metric import LOSSES, METRICS, named_values
from ..data.samples import HeldOut, Samples
from ..data.sources import find_source, read_samples
from ..data.tasks import through_task
from ..data.trees import to_lists
from ..models.names import OTHERS, model_names
from ..runs import ranks
from .measures import wide
from .objective import CLASSIFICATION, Objective, make_objective
from .precision import EXACT, Arithmetic
from .trial import look_at

# One size on every CPU: the last bits of a sum, and so a tie in an argmax, may depend on it. Of 512 images the
# activations of a convolution leave the caches: conv4 takes 1.6 times as long there.
BATCH = 128
# Elsewhere as many samples as have so many numbers, up to these: a GPU that is given few waits for the next ones.
_MOST, _NUMBERS = 4096, 1 << 22
SPLITS: tuple[HeldOut, HeldOut] = ("test", "validation")


class Evaluation(NamedTuple):
    """The mean loss over the targets that count, and the value of the metric: accuracy in percent, or another."""

    loss: float
    value: float


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    data: Samples,
    split: HeldOut,
    objective: Objective = CLASSIFICATION,
    arithmetic: Arithmetic = EXACT,
    forward: Callable[[Any], Any] | None = None,
) -> Evaluation:
    """Loss and metric of `model` on the validation or test split: of all samples, whatever the sizes of batches are.

    The model is put into evaluation mode and back. `forward` is its pass where that is compiled. Several ranks, which
    must all call this, take different batches.
    """
    group = ranks.now()
    data = data.with_share(group.rank, group.world) if group.several else data
    was_training = model.training
    model.eval()
    program = program_of(model)
    # Nothing is learned meanwhile: the masks are chosen once, and not anew for every batch.
    with program.steady() if isinstance(program, Learned) else contextlib.nullcontext():
        found = _measure(forward or partial(call, model), data, split, objective, arithmetic)
    model.train(was_training)
    return found


def batch_of(data: Samples) -> int:
    """How many samples are evaluated at once."""
    if data.device.type == "cpu":
        return BATCH
    return max(BATCH, min(_MOST, _NUMBERS // max(1, _count_numbers(data.input_shape))))


def _count_numbers(shape: Any) -> int:
    """How many numbers a sample of this shape, or of a tree of shapes, has."""
    if isinstance(shape, Mapping):
        return sum(map(_count_numbers, shape.values()))
    if all(isinstance(each, int) for each in shape):
        return math.prod(shape)
    return sum(map(_count_numbers, shape))


def _measure(
    forward: Callable[[Any], Any], data: Samples, split: HeldOut, objective: Objective, arithmetic: Arithmetic
) -> Evaluation:
    count: Tensor | int = 0
    total = torch.zeros((), device=data.device, dtype=wide(data.device))
    state = objective.measure.start(data.device)
    for x, y in data.batches(split, batch_of(data)):
        with arithmetic.forward():
            outputs = forward(objective.inputs(arithmetic.lay_out(x), y))
        loss, weight = objective.loss(outputs, y), objective.weight(y)
        total += loss.reshape(()) * weight
        state = objective.measure.add(state, objective.batch(outputs, y, loss))
        count += weight
    share_bad_images(data)
    parts = ranks.gather((total.item(), float(count), state.cpu()))
    if not any(part[1] for part in parts):
        raise RunError(f"no sample of {split} can be read")
    whole = parts[0][2]
    for _, _, other in parts[1:]:
        whole = objective.measure.merge(whole, other)
    return Evaluation(sum(part[0] for part in parts) / sum(part[1] for part in parts), objective.measure.value(whole))


def share_bad_images(data: Samples) -> None:
    """Have all ranks know of the images that any of them could not read.

    Raises:
        RunError: they are more than may be.
    """
    bad = getattr(data, "bad", None)
    if bad is None or not ranks.now().several:
        return
    for found in ranks.gather(bad.state_dict()):
        for split, images in found.items():
            bad.add(split, list(images.items()))


def read_data_of(ticket: Ticket, data: str, data_dir: str | None = None) -> Samples:
    """A built-in data set for a ticket's network, normalized by its own mean and deviation, split as the ticket's.

    Images of a folder have the size and the normalization that the ticket was found on.

    Raises:
        RequestError: an unknown data set, one that cannot be had, or that does not fit the network.
    """
    recorded = ticket.meta.get("config", {})
    keys = ("image_size", "image_mean", "image_std", "max_bad_images")
    images = {key: recorded[key] for key in keys if key in recorded}
    read = make_config(Config, {"data": "imagefolder", **images})
    samples = read_samples(
        data, data_dir, int(recorded.get("split_seed", 0)),
        image_size=read.image_size, image_mean=read.image_mean, image_std=read.image_std,
        max_bad_images=read.max_bad_images,
    )  # fmt: skip
    check_fit(ticket, samples)
    return samples


def check_fit(ticket: Ticket, samples: Samples) -> None:
    """Check that samples have the shape and the classes that a ticket's network was built for.

    Raises:
        RequestError: they do not.
    """
    architecture = ticket.meta.get("architecture")
    wanted = architecture.get("arguments", {}) if isinstance(architecture, Mapping) else {}
    offered = {"input_shape": to_lists(samples.input_shape), "classes": samples.classes}
    if _asked_for_more(ticket, samples.classes):
        del offered["classes"]
    has = [f"{key} {wanted[key]}, {samples.name} has {it}" for key, it in offered.items() if wanted.get(key, it) != it]
    if has:
        raise RequestError(f"the ticket's network does not fit {samples.name}: it was built for {'; '.join(has)}")


def _asked_for_more(ticket: Ticket, classes: int) -> bool:
    """Whether the search asked for outputs that no class has, as `--model-args classes=100`."""
    words = ticket.meta.get("config", {}).get("model_args")
    asked = [word for word in words if str(word).startswith("classes=")] if isinstance(words, list) else []
    outputs = ticket.meta["architecture"]["arguments"].get("classes") if asked else None
    return isinstance(outputs, int) and outputs > classes


def evaluate_ticket(
    ticket: Ticket,
    data: str | Samples,
    data_dir: str | None = None,
    state: str = "final",
    *,
    network: nn.Module | None = None,
    config: Config | None = None,
) -> dict[str, Any]:
    """Metric and loss of a ticket on the test and validation split of a built-in data set or of samples, in fp32.

    A built-in set is normalized by its own mean and deviation; the validation split is the ticket's. `network` is the
    ticket's, where it is not known by name, and `config` names the loss and the metric. If not given, they are those
    that the ticket names, where these are no code; what is not named follows from the data and the network.

    A ticket of one of several tasks sees the samples as that task does. Of a ticket of all of them the values are means
    over the tasks, and `tasks` has those of each.

    Raises:
        RequestError: an unknown data set, state or model, or data that cannot be had.
    """
    architecture = ticket.meta.get("architecture")
    name = str(architecture.get("name")) if isinstance(architecture, Mapping) else "None"
    problems = []
    if network is None and name not in model_names() and not name.startswith(OTHERS):
        problems.append(
            f"the ticket's model '{name}' is not known by name here; in Python: "
            "net = supermask.load(path).apply_to(your_model)"
        )
    if network is not None and ticket.tasks:
        problems.append(f"one network is no network of {len(ticket.tasks)} tasks: give ticket.task(name)")
    states = ticket.parts[ticket.tasks[0]].states if ticket.tasks else ticket.states
    if state not in states:
        problems.append(unknown("state", state, states))
    try:
        if isinstance(data, str):
            find_source(data)
    except RequestError as error:
        problems += error.problems
    if problems:
        raise RequestError(problems)
    recorded = ticket.meta.get("config", {})
    samples = read_data_of(ticket, data, data_dir) if isinstance(data, str) else data
    if ticket.tasks:
        return _evaluate_tasks(ticket, samples, state, config)
    samples = through_task(ticket.meta, samples)
    threads = torch.get_num_threads()
    try:
        # The order of sums, and so the last bit of a logit, depends on the number of threads.
        torch.set_num_threads(int(recorded.get("threads") or threads))
        model = ticket.model(state) if network is None else network
        objective = objective_of_ticket(ticket, samples, model, config)
        test, validation = (evaluate(model, samples, part, objective) for part in SPLITS)
    finally:
        torch.set_num_threads(threads)
    return {
        "metric": objective.metric.to_dict(),
        **named_values(objective.metric, test=test.value, val=validation.value),
        "test_loss": test.loss,
        "val_loss": validation.loss,
    }


def _evaluate_tasks(ticket: Ticket, samples: Samples, state: str, config: Config | None) -> dict[str, Any]:
    """The values of each of several tasks, and their means."""
    found = {name: evaluate_ticket(ticket.task(name), samples, state=state, config=config) for name in ticket.tasks}
    return {**mean_of_tasks(list(found.values())), "tasks": found}


def mean_of_tasks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The means over tasks of each number that they all have, of whole ones rounded; what else they all have alike."""
    first, *others = rows
    mean: dict[str, Any] = {}
    for key, value in first.items():
        if all(row.get(key) == value for row in others):
            mean[key] = value
        elif isinstance(value, (int, float)) and all(key in row for row in others):
            found = statistics.fmean(row[key] for row in rows)
            mean[key] = round(found) if isinstance(value, int) else found
    return mean


def objective_of_ticket(
    ticket: Ticket, samples: Samples, network: nn.Module, config: Config | None = None
) -> Objective:
    """The loss and the metric that a ticket names, without those that are code, or that a configuration names.

    Raises:
        RequestError: the network does not take the samples, or a loss or a metric that has to be named.
    """
    if config is None:
        recorded = ticket.meta.get("config", {})
        own = {"loss": LOSSES, "metric": METRICS}
        named = {key: recorded[key] for key, names in own.items() if recorded.get(key) in names}
        config = make_config(Config, named)
    name = str(ticket.meta.get("architecture", {}).get("name"))
    return make_objective(config, task=look_at(samples, name, config, network))
