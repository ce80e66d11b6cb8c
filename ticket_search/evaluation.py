"""Loss and accuracy of a model on held-out samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from supermask import Ticket

# One size everywhere: the last bits of a sum, and so a tie in an argmax, may depend on it.
BATCH = 512


class Evaluation(NamedTuple):
    """Mean cross-entropy, and accuracy in percent."""

    loss: float
    accuracy: float


@torch.inference_mode()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> Evaluation:
    """Mean cross-entropy and accuracy of `model` on samples x [n, ...] with classes y [n].

    The model is put into evaluation mode and back.
    """
    was_training = model.training
    model.eval()
    loss = torch.zeros((), device=x.device, dtype=torch.float64)
    right = torch.zeros((), device=x.device, dtype=torch.int64)
    for start in range(0, len(y), BATCH):
        logits = model(x[start : start + BATCH])
        labels = y[start : start + BATCH]
        loss += functional.cross_entropy(logits, labels, reduction="sum")
        right += (logits.argmax(1) == labels).sum()
    model.train(was_training)
    return Evaluation(loss.item() / len(y), 100.0 * right.item() / len(y))


def evaluate_ticket(ticket: Ticket, data: str, data_dir: str | None = None, state: str = "final") -> dict[str, float]:
    """Test and validation accuracy (percent) and loss of a ticket on a built-in data set, in fp32.

    The data is normalized by the set's own mean and deviation; the validation split is the ticket's.

    Raises:
        RequestError: an unknown data set, state or model, or data that cannot be had.
    """
    from .data import SOURCES, read_arrays
    from .data.dataset import split
    from .models import model_names
    from .problems import RequestError, unknown

    architecture = ticket.meta.get("architecture")
    name = architecture.get("name") if isinstance(architecture, Mapping) else None
    problems = []
    if name not in model_names():
        problems.append(
            f"the ticket's model '{name}' is not known by name here; in Python: "
            "net = supermask.load(path).apply_to(your_model)"
        )
    if state not in ticket.states:
        problems.append(unknown("state", state, ticket.states))
    if data not in SOURCES:
        problems.append(unknown("data set", data, SOURCES))
    if problems:
        raise RequestError(problems)
    config = ticket.meta.get("config", {})
    samples = split(data, read_arrays(data, data_dir), int(config.get("split_seed", 0)))
    wanted = ticket.meta["architecture"].get("arguments", {})
    offered = {"input_shape": list(samples.input_shape), "classes": samples.classes}
    other = [f"{key} {wanted[key]}, {data} has {has}" for key, has in offered.items() if wanted.get(key, has) != has]
    if other:
        raise RequestError(f"the ticket's network does not fit {data}: it was built for {'; '.join(other)}")
    threads = torch.get_num_threads()
    try:
        # The order of sums, and so the last bit of a logit, depends on the number of threads.
        torch.set_num_threads(int(config.get("threads") or threads))
        model = ticket.model(state)
        test = evaluate(model, samples.test_x, samples.test_y)
        validation = evaluate(model, samples.validation_x, samples.validation_y)
    finally:
        torch.set_num_threads(threads)
    return {
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "val_accuracy": validation.accuracy,
        "val_loss": validation.loss,
    }
