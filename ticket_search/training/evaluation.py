"""Loss and metric of a model on held-out samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from supermask import Ticket
from supermask.choosing.gradients import call

from ..contract.errors import RequestError, unknown
from ..contract.flags import Config, make_config
from ..contract.metric import LOSSES, METRICS, named_values
from ..data.samples import HeldOut, Samples
from ..data.sources import find_source, read_samples
from ..data.trees import to_lists
from ..models.names import OTHERS, model_names
from .measures import wide
from .objective import CLASSIFICATION, Objective, make_objective
from .precision import EXACT, Arithmetic

# One size everywhere: the last bits of a sum, and so a tie in an argmax, may depend on it. Of 512 images the
# activations of a convolution leave the caches: conv4 takes 1.6 times as long on a CPU.
BATCH = 128


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
) -> Evaluation:
    """Loss and metric of `model` on the validation or test split: of all samples, whatever the sizes of batches are.

    The model is put into evaluation mode and back.
    """
    was_training = model.training
    model.eval()
    count: Tensor | int = 0
    total = torch.zeros((), device=data.device, dtype=wide(data.device))
    state = objective.measure.start(data.device)
    for x, y in data.batches(split, BATCH):
        with arithmetic.forward():
            outputs = call(model, objective.inputs(arithmetic.lay_out(x), y))
        loss, weight = objective.loss(outputs, y), objective.weight(y)
        total += loss.reshape(()) * weight
        state = objective.measure.add(state, objective.batch(outputs, y, loss))
        count += weight
    model.train(was_training)
    return Evaluation(total.item() / float(count), objective.measure.value(state))


def read_data_of(ticket: Ticket, data: str, data_dir: str | None = None) -> Samples:
    """A built-in data set for a ticket's network, normalized by its own mean and deviation, split as the ticket's.

    Raises:
        RequestError: an unknown data set, one that cannot be had, or that does not fit the network.
    """
    samples = read_samples(data, data_dir, int(ticket.meta.get("config", {}).get("split_seed", 0)))
    wanted = ticket.meta["architecture"].get("arguments", {})
    offered = {"input_shape": to_lists(samples.input_shape), "classes": samples.classes}
    other = [f"{key} {wanted[key]}, {data} has {has}" for key, has in offered.items() if wanted.get(key, has) != has]
    if other:
        raise RequestError(f"the ticket's network does not fit {data}: it was built for {'; '.join(other)}")
    return samples


def evaluate_ticket(ticket: Ticket, data: str, data_dir: str | None = None, state: str = "final") -> dict[str, Any]:
    """Metric and loss of a ticket on the test and validation split of a built-in data set, in fp32.

    The data is normalized by the set's own mean and deviation; the validation split is the ticket's. The loss and the
    metric are those that the ticket names, where they are no code, else cross-entropy and accuracy in percent.

    Raises:
        RequestError: an unknown data set, state or model, or data that cannot be had.
    """
    architecture = ticket.meta.get("architecture")
    name = str(architecture.get("name")) if isinstance(architecture, Mapping) else "None"
    problems = []
    if name not in model_names() and not name.startswith(OTHERS):
        problems.append(
            f"the ticket's model '{name}' is not known by name here; in Python: "
            "net = supermask.load(path).apply_to(your_model)"
        )
    if state not in ticket.states:
        problems.append(unknown("state", state, ticket.states))
    try:
        find_source(data)
    except RequestError as error:
        problems += error.problems
    if problems:
        raise RequestError(problems)
    config = ticket.meta.get("config", {})
    samples = read_data_of(ticket, data, data_dir)
    threads = torch.get_num_threads()
    try:
        # The order of sums, and so the last bit of a logit, depends on the number of threads.
        torch.set_num_threads(int(config.get("threads") or threads))
        model = ticket.model(state)
        objective = objective_of_ticket(ticket)
        test, validation = (evaluate(model, samples, split, objective) for split in ("test", "validation"))
    finally:
        torch.set_num_threads(threads)
    return {
        "metric": objective.metric.to_dict(),
        **named_values(objective.metric, test=test.value, val=validation.value),
        "test_loss": test.loss,
        "val_loss": validation.loss,
    }


def objective_of_ticket(ticket: Ticket) -> Objective:
    """The loss and the metric that a ticket names, without those that are code, which no file may name."""
    recorded = ticket.meta.get("config", {})
    own = {"loss": LOSSES, "metric": METRICS}
    named = {key: recorded[key] for key, names in own.items() if recorded.get(key) in names}
    return make_objective(make_config(Config, named))
