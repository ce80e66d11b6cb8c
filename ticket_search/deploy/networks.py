"""A ticket's network, and the samples that it is run on to be traced, checked and timed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from supermask import Ticket
from supermask.choosing.gradients import call

from ..contract.errors import RAISED, Problems, RequestError
from ..contract.leave import leave_here
from ..data.examples import Examples, floats, is_of_one_tensor, random_samples, real_samples
from ..data.samples import Samples
from ..data.sources import source_names, without_version
from ..data.trees import shape_of_sample, to_lists
from ..runs.experiment import describe_model, find_model
from ..training.evaluation import read_data_of
from ..training.outputs import plain_outputs


def build_network(
    ticket: Ticket, state: str = "final", model: str | Callable[..., nn.Module] | None = None
) -> nn.Module:
    """A ticket's network, masks applied, in evaluation mode.

    Args:
        ticket: the ticket.
        state: `start` or `final`.
        model: what builds a network that is not known by name: a function, or `package.module:function`, which is
            imported. It gets those of the ticket's arguments that it takes.

    Raises:
        RequestError: the architecture is not known by name, cannot be built, or does not fit the ticket.
    """
    if model is None:
        try:
            return ticket.model(state)
        except ValueError as error:
            raise RequestError(
                f"{error}; or name a function that builds it by --model package.module:function"
            ) from None
    factory = find_model(model, leave_here(model))
    takes = inspect.signature(factory).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in takes.values())
    given = {key: value for key, value in _arguments(ticket).items() if takes_all or key in takes}
    try:
        return ticket.apply_to(factory(**given), state).eval()
    except Exception as error:
        raise RequestError(f"--model {describe_model(model)}: {type(error).__name__}: {error}") from error


def examples_of(ticket: Ticket, samples: Samples | None = None, asked: Sequence[int] | None = None) -> Examples:
    """What gives batches that a ticket's network takes: random samples of a shape that is asked for, or else real ones,
    or else random ones of what the ticket records of its samples.

    Args:
        ticket: the ticket.
        samples: of the data that it was found on, where they are to be had.
        asked: the shape of one sample. Its type and the range of whole numbers are those that the ticket records.

    Raises:
        RequestError: a shape where a sample is several tensors, or nothing to take a sample from.
    """
    recorded = ticket.meta.get("sample")
    if asked is not None:
        if recorded is not None and not is_of_one_tensor(recorded):
            raise RequestError(
                f"--input-shape {','.join(map(str, asked))} is the shape of one tensor, and a sample of this ticket is "
                "several: leave it out, or name data by --data, as my_data:load"
            )
        return random_samples({**(recorded or floats(None)), "shape": list(asked)})
    if samples is not None:
        return real_samples(samples)
    if recorded is not None:
        return random_samples(recorded)
    shape = _arguments(ticket).get("input_shape")
    if not shape:
        return _samples_of_built_in(ticket)
    if isinstance(shape, Mapping) or not all(isinstance(size, int) for size in shape):
        raise RequestError(
            f"the ticket's network takes several tensors, of shapes {shape}, and the ticket does not tell what is in "
            "them: name data by --data, as my_data:load"
        )
    return random_samples(floats(list(shape)))


def _samples_of_built_in(ticket: Ticket) -> Examples:
    problems, name = Problems(), built_in_data(ticket)
    samples = None if name is None else problems.attempt(lambda: read_data_of(ticket, name))
    if samples is None:
        problems.add(
            "the ticket does not tell the shape of a sample; give it by --input-shape, as 3,32,32, or name data by "
            "--data, as my_data:load"
        )
        raise RequestError(problems.found)
    return real_samples(samples)


def built_in_data(ticket: Ticket) -> str | None:
    """The name of the data set that a ticket was found on, if it is one that is known by name."""
    name = ticket.meta.get("data")
    return name if isinstance(name, str) and without_version(name) in source_names() else None


@torch.no_grad()
def check_examples(network: nn.Module, examples: Examples) -> None:
    """Check that a network takes samples.

    Raises:
        RequestError: it does not, or it gives no tensor for them.
    """
    batch = examples(2)
    shape = to_lists(shape_of_sample(batch))
    try:
        outputs = plain_outputs(call(network, batch))
    except RAISED as error:
        first = str(error).strip().partition("\n")[0]
        raise RequestError(
            f"the network does not take samples of shape {shape}: {first}; --input-shape gives the shape of one, as "
            "3,32,32, and --data real ones, as my_data:load"
        ) from error
    if outputs is None:
        raise RequestError(f"the network gives no tensor for samples of shape {shape}, expected one or several")


def _arguments(ticket: Ticket) -> Mapping[str, Any]:
    architecture = ticket.meta.get("architecture")
    found = architecture.get("arguments", {}) if isinstance(architecture, Mapping) else {}
    return found if isinstance(found, Mapping) else {}
