"""Loss and accuracy of a model on held-out samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from supermask import Ticket

from ..contract.errors import RequestError, unknown
from ..data.samples import HeldOut, Samples
from ..data.sources import find_source, read_samples
from ..models.names import TORCHVISION, model_names
from .objective import CLASSIFICATION, Objective
from .precision import EXACT, Arithmetic

# One size everywhere: the last bits of a sum, and so a tie in an argmax, may depend on it. Of 512 images the
# activations of a convolution leave the caches: conv4 takes 1.6 times as long on a CPU.
BATCH = 128
SPLITS: tuple[HeldOut, HeldOut] = ("test", "validation")


class Evaluation(NamedTuple):
    """Mean loss (cross-entropy), and mean score (accuracy) in percent."""

    loss: float
    accuracy: float


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    data: Samples,
    split: HeldOut,
    objective: Objective = CLASSIFICATION,
    arithmetic: Arithmetic = EXACT,
) -> Evaluation:
    """Mean loss and score of `model` on the validation or test split.

    The model is put into evaluation mode and back.
    """
    was_training = model.training
    model.eval()
    count = 0
    # Apple's GPUs have no float64.
    wide = torch.float32 if data.device.type == "mps" else torch.float64
    loss, score = (torch.zeros((), device=data.device, dtype=wide) for _ in range(2))
    for x, y in data.batches(split, BATCH):
        with arithmetic.forward():
            outputs = model(arithmetic.lay_out(x))
        outputs = outputs.float()
        loss += objective.loss(outputs, y) * len(y)
        score += objective.score(outputs, y).sum()
        count += len(y)
    model.train(was_training)
    return Evaluation(loss.item() / count, 100.0 * score.item() / count)


def read_data_of(ticket: Ticket, data: str, data_dir: str | None = None) -> Samples:
    """A built-in data set for a ticket's network, normalized by its own mean and deviation, split as the ticket's.

    Raises:
        RequestError: an unknown data set, one that cannot be had, or that does not fit the network.
    """
    samples = read_samples(data, data_dir, int(ticket.meta.get("config", {}).get("split_seed", 0)))
    check_fit(ticket, samples)
    return samples


def check_fit(ticket: Ticket, samples: Samples) -> None:
    """Check that samples have the shape and the classes that a ticket's network was built for.

    Raises:
        RequestError: they do not.
    """
    architecture = ticket.meta.get("architecture")
    wanted = architecture.get("arguments", {}) if isinstance(architecture, Mapping) else {}
    offered = {"input_shape": list(samples.input_shape), "classes": samples.classes}
    has = [f"{key} {wanted[key]}, {samples.name} has {it}" for key, it in offered.items() if wanted.get(key, it) != it]
    if has:
        raise RequestError(f"the ticket's network does not fit {samples.name}: it was built for {'; '.join(has)}")


def evaluate_ticket(
    ticket: Ticket,
    data: str | Samples,
    data_dir: str | None = None,
    state: str = "final",
    *,
    network: nn.Module | None = None,
    objective: Objective = CLASSIFICATION,
) -> dict[str, float]:
    """Test and validation accuracy (percent) and loss of a ticket on a built-in data set or on samples, in fp32.

    A built-in set is normalized by its own mean and deviation; the validation split is the ticket's. `network` is the
    ticket's, where it is not known by name, and `objective` what is measured in place of cross-entropy and accuracy.

    Raises:
        RequestError: an unknown data set, state or model, or data that cannot be had.
    """
    architecture = ticket.meta.get("architecture")
    name = str(architecture.get("name")) if isinstance(architecture, Mapping) else "None"
    problems = []
    if network is None and name not in model_names() and not name.startswith(TORCHVISION):
        problems.append(
            f"the ticket's model '{name}' is not known by name here; in Python: "
            "net = supermask.load(path).apply_to(your_model)"
        )
    if state not in ticket.states:
        problems.append(unknown("state", state, ticket.states))
    try:
        if isinstance(data, str):
            find_source(data)
    except RequestError as error:
        problems += error.problems
    if problems:
        raise RequestError(problems)
    config = ticket.meta.get("config", {})
    samples = read_data_of(ticket, data, data_dir) if isinstance(data, str) else data
    threads = torch.get_num_threads()
    try:
        # The order of sums, and so the last bit of a logit, depends on the number of threads.
        torch.set_num_threads(int(config.get("threads") or threads))
        model = ticket.model(state) if network is None else network
        test, validation = (evaluate(model, samples, part, objective) for part in SPLITS)
    finally:
        torch.set_num_threads(threads)
    return {
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "val_accuracy": validation.accuracy,
        "val_loss": validation.loss,
    }
