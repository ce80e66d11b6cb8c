"""Tickets as files that other programs read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from supermask import Compaction, Ticket, TicketError, find_targets, pack_compaction, shrink
from supermask.tickets import foreign

from ..contract.errors import Problems, RequestError, several_tasks, unknown
from ..data.examples import Examples
from ..data.samples import Samples
from ..runs.outputs import write_output
from ..training.evaluation import read_data_of
from .networks import build_network, check_examples, examples_of
from .onnx import require_onnx, to_onnx, to_torch_export


def _to_safetensors(ticket: Ticket, state: str) -> bytes:
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in ticket.state_dict(state).items()})


def _to_state_dict(ticket: Ticket, state: str) -> bytes:
    return _saved(ticket.state_dict(state))


def _to_npz(ticket: Ticket, state: str) -> bytes:
    arrays = {name: tensor.numpy() for name, tensor in ticket.state_dict(state).items()}
    masks = {f"mask/{name}": mask.numpy() for name, mask in ticket.masks.items()}
    buffer = BytesIO()
    np.savez(buffer, **arrays, **masks)  # type: ignore[arg-type]
    return buffer.getvalue()


def _to_torch_prune(ticket: Ticket, state: str) -> bytes:
    return _saved(foreign.to_torch_prune(ticket, state))


def _to_hidden_networks(ticket: Ticket, state: str) -> bytes:
    return _saved(foreign.to_hidden_networks(ticket, state))


def _to_open_lth(ticket: Ticket, state: str) -> bytes:
    return _saved(foreign.to_open_lth(ticket))


def _saved(content: Any) -> bytes:
    buffer = BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


# Formats of tensors: weights with the masks applied. npz holds the masks too, as `mask/NAME`; the formats of other
# pruning programs have masks or scores in their own way (see `supermask.foreign`).
FORMATS: dict[str, Callable[[Ticket, str], bytes]] = {
    "safetensors": _to_safetensors,
    "state-dict": _to_state_dict,
    "npz": _to_npz,
    "torch-prune": _to_torch_prune,
    "hidden-networks": _to_hidden_networks,
    "open-lth": _to_open_lth,
}


# Formats of the network itself, which run without this package.
GRAPHS: dict[str, Callable[[nn.Module, Examples], bytes]] = {"onnx": to_onnx, "torch-export": to_torch_export}
# Formats for which the network has to be built.
BUILT = (*GRAPHS, "compact")


def export(
    ticket: Ticket,
    to: str,
    output: str | os.PathLike[str],
    state: str = "final",
    *,
    compact: bool = False,
    model: str | Callable[..., nn.Module] | None = None,
    data: str | Samples | None = None,
    input_shape: Sequence[int] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write a ticket's network, with its masks applied, as a file of another format.

        export(ticket, "state-dict", "net.pt"); net.load_state_dict(torch.load("net.pt"))

    Args:
        ticket: the ticket to export.
        to: the format. Tensors, masks applied: `safetensors`, `state-dict` (for `torch.load`), `npz` (for `numpy.load`,
            with the masks), and for other programs `torch-prune`, `hidden-networks` and `open-lth`. The network itself,
            for any batch size: `onnx` or `torch-export`. A smaller network: `compact` (for `supermask.load_compact`).
        output: the file to write, which must not exist.
        state: `start` or `final`.
        compact: for `onnx` and `torch-export`: first remove the units that have no effect (see `supermask.compact`).
        model: for `onnx`, `torch-export` and `compact`: what builds the network, where it is not known by name.
        data: for the same formats: a built-in data set, or samples, that the network is run on, to trace it and to
            check the file. If not given, random numbers of the shape, the type and the range that the ticket tells.
        input_shape: for the same formats: the shape of one sample, in place of what the ticket and the data tell.
        say: is given a line on what was removed to make the network smaller, and one for each layer that was not cut.

    Raises:
        RequestError: an unknown format or state, or a file that exists, all problems at once; or a ticket that the
            format cannot hold, or a package that is missing.
        RunError: the network cannot be exported, or the outputs of the file are not those of the network.
    """
    problems = []
    if to not in FORMATS and to not in BUILT:
        problems.append(unknown("format", to, [*FORMATS, *BUILT]))
    if to in FORMATS and not (model is None and data is None and input_shape is None):
        problems.append(
            f"--model, --data and --input-shape go with --to {', '.join(BUILT)}, not {to}, which holds tensors only"
        )
    if compact and to not in GRAPHS:
        problems.append(f"--compact goes with --to {' and '.join(GRAPHS)}, not {to}")
    if ticket.tasks:
        problems.append(several_tasks(ticket.tasks))
    elif state not in ticket.states:
        problems.append(unknown("state", state, ticket.states))
    if Path(output).exists():
        problems.append(f"{output} exists; nothing is overwritten")
    if not Path(output).parent.is_dir():
        problems.append(f"there is no folder {Path(output).parent}")
    if to == "onnx":
        try:
            require_onnx()
        except RequestError as error:
            problems += error.problems
    if problems:
        raise RequestError(problems)
    try:
        if to in FORMATS:
            content = FORMATS[to](ticket, state)
        else:
            content = _build(ticket, to, state, compact, model, data, input_shape, say)
    except (TicketError, RequestError):
        raise
    except ValueError as error:
        raise RequestError(f"--to {to}: {error}") from None
    write_output(output, content)
    return Path(output)


def _build(
    ticket: Ticket,
    to: str,
    state: str,
    smaller: bool,
    model: str | Callable[..., nn.Module] | None,
    data: str | Samples | None,
    input_shape: Sequence[int] | None,
    say: Callable[[str], None],
) -> bytes:
    problems = Problems()
    samples = problems.attempt(lambda: read_data_of(ticket, data) if isinstance(data, str) else data)
    network = problems.attempt(lambda: build_network(ticket, state, model))
    examples = problems.attempt(lambda: examples_of(ticket, samples, input_shape))
    problems.raise_if_any()
    assert network is not None and examples is not None, "what was not made is a problem"
    check_examples(network, examples)
    if to != "compact" and not smaller:
        return GRAPHS[to](network, examples)
    found = shrink(network, ticket.masks, examples(2))
    for line in describe_compaction(found, network):
        say(line)
    if to == "compact":
        # A network that the caller has built is not the one that the ticket names: it is given again to load the file.
        return pack_compaction(found, {} if model is not None else ticket.meta.get("architecture", {}))
    return GRAPHS[to](found.model, examples)


def describe_compaction(found: Compaction, dense: nn.Module) -> list[str]:
    """What was removed from a network, and why it was not where nothing reads or reaches it: a line each."""
    before, after = (sum(each.numel() for each in net.parameters()) for net in (dense, found.model))
    widths = {name: target.parameter.shape[target.output_axis] for name, target in find_targets(dense).items()}
    gone = ", ".join(f"{len(places):,} of {widths[name]:,} of {name}" for name, places in found.removed.items())
    told = f"removed {before - after:,} of {before:,} parameters; outputs: {gone}" if gone else "nothing was removed"
    return [told, *(f"left {name}: {why}" for name, why in found.kept_constant.items())]
