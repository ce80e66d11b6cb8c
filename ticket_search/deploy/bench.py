"""What a ticket is worth when it runs: sizes, latency and throughput of its variants in several engines."""

from __future__ import annotations

import copy
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from supermask import Ticket, accelerate, compact
from supermask.shrinking.flow import flow
from supermask.sparse.timing import time_in_turns

from ..contract.errors import RequestError, unknown
from ..data.sources import source_names
from ..runs.progress import Progress
from ..training.evaluation import evaluate, read_data_of
from ..training.flops import flops_of
from .bench_verdict import JUDGED, Row, judge
from .machine_load import measure_load
from .onnx import Outputs, build_network, check_shape, difference, input_shape_of, onnx_session, quiet, to_onnx

VARIANTS = ("dense", "masked", "compacted", "sparse")
ENGINES = ("eager", "compiled", "onnxruntime")
# Outputs of a variant against the masked network's, over the largest: sums in another order, not another function.
TOLERANCE = 1e-4
_WARM = 3


def bench(
    ticket: Ticket,
    *,
    file_bytes: int | None = None,
    batch_sizes: Sequence[int] = (1, 64, 512),
    engines: Sequence[str] = ENGINES,
    threads: int | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    device: str = "cpu",
    state: str = "final",
    model: str | Callable[..., nn.Module] | None = None,
    input_shape: Sequence[int] | None = None,
    seconds: float = 1.0,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure a ticket's network: dense (its masks ignored: the same shapes, for time), masked, compacted and sparse.

    All are measured in turns, so that what disturbs the machine disturbs them alike. The sparse network is the
    compacted one with the fastest layers at each batch size (see `supermask.accelerate`). Each variant but the dense
    one must give the masked network's outputs, in each engine, or it has no times but a reason.

    Args:
        ticket: what to measure.
        file_bytes: size of its file, to stand beside the others.
        batch_sizes: samples in a batch.
        engines: of `eager`, `compiled` (torch.compile) and `onnxruntime` (on the CPU).
        threads: of PyTorch and of onnxruntime; PyTorch's own number by default.
        data: a built-in data set for the accuracy; the ticket's own by default, none where that is not built in.
        data_dir: folder to look for data in first.
        device: `cpu` or `cuda`.
        state: `start` or `final`.
        model: what builds the network where it is not known by name.
        input_shape: of one sample, where the ticket does not say it.
        seconds: how long each variant and engine is measured at each batch size; at least 5 batches.
        progress: show how far it is, on stderr.

    Returns:
        `rows` (see `Row`, as dicts), `sizes`, `load` of the machine before, `best` (see `judge`), and what was asked.

    Raises:
        RequestError: everything wrong with the request.
    """
    problems = [unknown("engine", engine, ENGINES) for engine in engines if engine not in ENGINES]
    if not batch_sizes or min(batch_sizes) < 1:
        problems.append(f"batch sizes {list(batch_sizes)}: expected numbers from 1")
    if not seconds > 0:
        problems.append(f"seconds {seconds}: expected more than 0")
    if threads is not None and threads < 1:
        problems.append(f"threads {threads}: expected a number from 1")
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        problems.append(f"there is no device {device} here")
    if state not in ticket.states:
        problems.append(unknown("state", state, ticket.states))
    if problems:
        raise RequestError(problems)
    network, shape = build_network(ticket, state, model), input_shape_of(ticket, input_shape)
    check_shape(network, shape)
    name = data or _own_data(ticket)
    samples = None if name is None else read_data_of(ticket, name, data_dir).to(device)
    load = measure_load()
    with _threads(threads) as count, Progress(progress) as shown:
        if load.busy:
            shown.say(f"the machine is busy, times are uncertain: {load}")
        example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        inputs = {size: torch.randn(size, *shape).to(device) for size in dict.fromkeys(batch_sizes)}
        networks, reasons = _dense_variants(network, ticket, example)
        sizes = _sizes(ticket, networks, example, file_bytes)
        nets = {variant: dict.fromkeys(inputs, net.to(device)) for variant, net in networks.items()}
        cells = [(variant, engine) for variant in VARIANTS for engine in engines]
        made: dict[tuple[str, str], dict[int, Outputs] | str] = {}
        with shown.count("preparing", len(cells) + len(inputs)) as one_more:
            try:
                nets["sparse"] = _accelerate(networks.get("compacted", network), inputs, one_more)
            except ValueError as error:
                reasons["sparse"] = _first_line(error)
            # Tracing for a file makes PyTorch forget what it has compiled: that comes last.
            for variant, engine in sorted(cells, key=lambda cell: cell[1] == "compiled"):
                made[variant, engine] = reasons.get(variant) or _prepare(
                    variant, nets[variant], engine, inputs, None if variant == "dense" else network, count
                )
                one_more()
        accuracies = {
            variant: evaluate(next(iter(each.values())), samples, "test").accuracy
            for variant, each in nets.items()
            if samples is not None and variant != "dense"
        }
        rows = []
        with shown.count("measuring", 100 * len(inputs)) as one_more:
            for size, x in inputs.items():
                runs = {cell: each[size] for cell, each in made.items() if not isinstance(each, str)}
                calls = {cell: partial(_call, run, x) for cell, run in runs.items()}
                times = time_in_turns(calls, seconds, x.device, one_more=one_more)
                for cell in cells:
                    found, why = times.get(cell), made[cell]
                    row = Row(*cell, size, reason=why if isinstance(why, str) else None)
                    rows.append(row if found is None else _timed(row, found, accuracies.get(cell[0])))
    facts = {"sizes": sizes, "load": load.as_dict(), "threads": count, "device": device, "data": name}
    batch = min(inputs, key=lambda size: abs(size - JUDGED))
    best = judge(rows, sizes, batch, str(load) if load.busy else None)
    return {**facts, "density": ticket.density, "rows": [asdict(row) for row in rows], "best": best}


@torch.no_grad()
def _call(run: Outputs, x: Tensor) -> Tensor:
    return run(x)


def _timed(row: Row, times: Sequence[float], accuracy: float | None) -> Row:
    q1, median, q3 = (1000 * value for value in statistics.quantiles(times, n=4, method="inclusive"))
    speed = 1000 * row.batch / median
    return replace(row, median_ms=median, q1=q1, q3=q3, samples_per_second=speed, accuracy=accuracy)


def _dense_variants(network: nn.Module, ticket: Ticket, example: Tensor) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The variants that any engine runs, and why one is missing."""
    dense = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            if name in ticket.masks:
                # Any weights take the same time; zeros might not.
                noise = parameter.std() * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(torch.where(ticket.masks[name], parameter, noise))
    found, reasons = {"dense": dense, "masked": network}, {}
    try:
        found["compacted"] = compact(copy.deepcopy(network), ticket.masks, example)
    except ValueError as error:
        reasons["compacted"] = _first_line(error)
    return found, reasons


def _accelerate(network: nn.Module, inputs: Mapping[int, Tensor], one_more: Callable[[], None]) -> dict[int, nn.Module]:
    """The smallest network with the fastest layers for each batch size."""
    found = {}
    for size, x in inputs.items():
        found[size] = accelerate(network, example_input=x)
        one_more()
    return found


def _prepare(
    variant: str,
    nets: Mapping[int, nn.Module],
    engine: str,
    inputs: Mapping[int, Tensor],
    expected: nn.Module | None,
    threads: int,
) -> dict[int, Outputs] | str:
    try:
        runs: dict[int, Outputs]
        if engine == "onnxruntime":
            x = next(iter(inputs.values()))
            if variant == "sparse":
                return "sparse layers are PyTorch's own: onnxruntime has none"
            if x.is_cuda:
                return "onnxruntime is measured on the CPU"
            runs = dict.fromkeys(inputs, onnx_session(to_onnx(next(iter(nets.values())), x.shape[1:]), threads))
        elif engine == "eager":
            runs = dict(nets)
        else:
            runs = {size: _compiled(net) for size, net in nets.items()}
        with quiet(), torch.no_grad():
            for size, x in inputs.items():
                for _ in range(_WARM):
                    found = runs[size](x)
                if expected is not None and not (apart := difference(found, expected(x))) <= TOLERANCE:
                    return f"its outputs differ from the masked network's by {apart:.3g} of the largest"
    except Exception as error:
        return _first_line(error)
    return runs


def _compiled(net: nn.Module) -> Outputs:
    def run(x: Tensor) -> Tensor:
        return net(x)  # type: ignore[no-any-return]

    # Code of its own, so that no other network's compiled forms are looked through at each call.
    own = FunctionType(run.__code__.replace(), globals(), "run", None, run.__closure__)
    return torch.compile(own, dynamic=False)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(os.linesep)[0]}"


def _sizes(
    ticket: Ticket, networks: Mapping[str, nn.Module], example: Tensor, file_bytes: int | None
) -> dict[str, Any]:
    masked, compacted = networks["masked"], networks.get("compacted")
    sizes: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in masked.parameters()),
        "weights": ticket.masks.size, "kept": ticket.masks.kept, "density": ticket.density,
        "effective": None, "units": None, "dead_units": None,
        "macs": flops_of(masked, example[:1]) // 2,
        "dense_bytes": _bytes(masked), "ticket_bytes": file_bytes,
        "compacted_parameters": None, "compacted_macs": None, "compacted_bytes": None,
    }  # fmt: skip
    try:
        paths = flow(masked, ticket.masks, example)
        sizes |= {"effective": paths.effective.kept, "units": sum(layer.units for layer in paths.layers)}
        sizes["dead_units"] = sum(layer.dead for layer in paths.layers)
    except ValueError as error:
        sizes["effective_reason"] = str(error)
    if compacted is not None:
        sizes |= {
            "compacted_parameters": sum(parameter.numel() for parameter in compacted.parameters()),
            "compacted_macs": flops_of(compacted, example[:1]) // 2, "compacted_bytes": _bytes(compacted),
        }  # fmt: skip
    return sizes


def _bytes(net: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())


def _own_data(ticket: Ticket) -> str | None:
    name = ticket.meta.get("data")
    return name if isinstance(name, str) and name in source_names() else None


@contextmanager
def _threads(asked: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(asked or before)
    try:
        yield asked or before
    finally:
        torch.set_num_threads(before)
