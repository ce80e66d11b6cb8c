"""The size and the speed of a ticket's network: its variants measured in several engines."""

from __future__ import annotations

import copy
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from supermask import Ticket, accelerate, compact
from supermask.choosing.gradients import call
from supermask.shrinking.flow import flow
from supermask.sparse.timing import time_in_turns

from ..contract.errors import RequestError, several_tasks, unknown
from ..contract.flags import Config
from ..contract.metric import ACCURACY, Metric
from ..data.examples import Examples
from ..data.samples import Samples
from ..data.tasks import through_task
from ..data.trees import move, part
from ..runs.progress import Progress
from ..training.evaluation import evaluate, objective_of_ticket, read_data_of
from ..training.flops import flops_of
from ..training.objective import Objective
from .bench_result import Bench, Row, Sizes
from .bench_verdict import JUDGED, judge
from .machine_load import measure_load
from .networks import build_network, built_in_data, check_examples, examples_of
from .onnx import Outputs, difference, onnx_session, quiet, to_onnx

VARIANTS = ("dense", "masked", "compacted", "sparse")
ENGINES = ("eager", "compiled", "onnxruntime")
# The largest difference of a variant's outputs to the masked network's, over the largest output: sums in another order
# stay below it.
TOLERANCE = 1e-4
_WARM = 3
# So many seconds for each sparse layer to be chosen, where the variants are not measured more shortly.
CHOICE = 0.2

_Inputs = Mapping[int, Any]  # tensors or trees of them, by batch size
_Nets = dict[str, dict[int, nn.Module]]  # by variant and batch size
_Made = dict[tuple[str, str], dict[int, Outputs] | str]  # by variant and engine


def bench(
    ticket: Ticket,
    *,
    file_bytes: int | None = None,
    batch_sizes: Sequence[int] = (1, 64, 512),
    engines: Sequence[str] = ENGINES,
    threads: int | None = None,
    data: str | Samples | None = None,
    data_dir: str | None = None,
    config: Config | None = None,
    device: str = "cpu",
    state: str = "final",
    model: str | Callable[..., nn.Module] | None = None,
    input_shape: Sequence[int] | None = None,
    seconds: float = 1.0,
    progress: bool = True,
) -> Bench:
    """Measure a ticket's network: dense (without its masks, for the time), masked, compacted and sparse.

    All variants are measured in turns, so that a disturbance of the machine affects them alike. The sparse network is
    the compacted one with the fastest layers at each batch size (see `supermask.accelerate`). A variant, except the
    dense one, whose outputs are not those of the masked network has a reason instead of times.

    Args:
        ticket: the ticket to measure.
        file_bytes: the size of its file, reported beside the other sizes.
        batch_sizes: numbers of samples in a batch.
        engines: any of `eager`, `compiled` (torch.compile) and `onnxruntime` (on the CPU).
        threads: the threads of PyTorch and of onnxruntime; PyTorch's own number if not given.
        data: a built-in data set, or samples, to measure the metric on; the ticket's own if not given and if it is
            built in. The network is run on its samples too, and without any on random ones that the ticket tells of.
        data_dir: a folder that is searched for the data first.
        config: what names the loss and the metric; if not given those of the ticket, where they are no code.
        device: `cpu` or `cuda`.
        state: `start` or `final`.
        model: what builds the network, where the ticket's is not known by name.
        input_shape: the shape of one sample, in place of what the ticket and the data tell.
        seconds: the time to measure each variant in each engine at each batch size, for 5 batches at least; and of
            each layer to choose its kind, but no more than CHOICE.
        progress: show the progress on stderr.

    Raises:
        RequestError: everything that is wrong with the request.
    """
    _check_request(ticket, batch_sizes, engines, threads, device, state, seconds)
    network, chosen = build_network(ticket, state, model), data if data is not None else built_in_data(ticket)
    samples = read_data_of(ticket, chosen, data_dir) if isinstance(chosen, str) else chosen
    examples = examples_of(ticket, samples, input_shape)
    check_examples(network, examples)
    samples = None if samples is None else through_task(ticket.meta, samples).to(device)
    load = measure_load()
    with _threads(threads) as count, Progress(progress) as shown:
        if load.busy:
            shown.say(f"the machine is busy, so the times are uncertain: {load}")
        inputs = {size: move(examples(size), device) for size in dict.fromkeys(batch_sizes)}
        networks, reasons = _dense_variants(network, ticket, examples(2))
        sizes = _sizes(ticket, networks, examples(2), file_bytes)
        choice = partial(accelerate, seconds=min(CHOICE, seconds))
        nets, made = _prepare_all(networks, reasons, engines, inputs, examples, count, choice, shown)
        metric, values = _evaluate_all(nets, samples, partial(objective_of_ticket, ticket, config=config))
        rows = _measure(made, inputs, seconds, partial(_timed, metric=metric, values=values), shown)
    busy, judged = str(load) if load.busy else None, min(inputs, key=lambda size: abs(size - JUDGED))
    best = judge(rows, sizes, judged, busy, metric or ACCURACY)
    facts: dict[str, Any] = {
        "threads": count,
        "device": device,
        "data": None if samples is None else samples.name,
        "metric": metric,
        "density": ticket.density,
    }
    return Bench(sizes=sizes, load=load, **facts, rows=tuple(rows), best=best)


def _check_request(
    ticket: Ticket,
    batch_sizes: Sequence[int],
    engines: Sequence[str],
    threads: int | None,
    device: str,
    state: str,
    seconds: float,
) -> None:
    problems = [unknown("engine", engine, ENGINES) for engine in engines if engine not in ENGINES]
    if not batch_sizes or min(batch_sizes) < 1:
        problems.append(f"batch sizes {list(batch_sizes)}: expected numbers of 1 or more")
    if not seconds > 0:
        problems.append(f"seconds {seconds}: expected more than 0")
    if threads is not None and threads < 1:
        problems.append(f"threads {threads}: expected a number of 1 or more")
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        problems.append(f"this machine has no device {device}")
    if ticket.tasks:
        problems.append(several_tasks(ticket.tasks))
    elif state not in ticket.states:
        problems.append(unknown("state", state, ticket.states))
    if problems:
        raise RequestError(problems)


def _measure(
    made: _Made, inputs: _Inputs, seconds: float, timed: Callable[[Row, Sequence[float]], Row], shown: Progress
) -> list[Row]:
    """A row for each batch size, variant and engine."""
    rows = []
    with shown.count("measuring", 100 * len(inputs)) as one_more:
        for size, x in inputs.items():
            runs = {cell: each[size] for cell, each in made.items() if not isinstance(each, str)}
            calls = {cell: partial(_call, run, x) for cell, run in runs.items()}
            times = time_in_turns(calls, seconds, _device_of(x), one_more=one_more)
            for cell, each in made.items():
                row = Row(*cell, size, reason=each if isinstance(each, str) else None)
                rows.append(timed(row, times[cell]) if cell in times else row)
    return rows


def _evaluate_all(
    nets: _Nets, samples: Samples | None, objective_of: Callable[..., Objective]
) -> tuple[Metric | None, dict[str, float]]:
    """The metric and its test values: of each variant but the dense one, whose dropped weights are noise."""
    if samples is None:
        return None, {}
    networks = {variant: next(iter(each.values())) for variant, each in nets.items() if variant != "dense"}
    objective = objective_of(samples=samples, network=networks["masked"])
    values = {variant: evaluate(network, samples, "test", objective).value for variant, network in networks.items()}
    return objective.metric, values


@torch.no_grad()
def _call(run: Outputs, x: Any) -> Any:
    return run(x)


def _device_of(x: Any) -> torch.device:
    device: torch.device = tree_leaves(x)[0].device
    return device


def _timed(row: Row, times: Sequence[float], metric: Metric | None, values: Mapping[str, float]) -> Row:
    q1, median, q3 = (1000 * value for value in statistics.quantiles(times, n=4, method="inclusive"))
    speed = 1000 * row.batch / median
    value = values.get(row.variant)
    accuracy = value if metric is not None and metric.is_accuracy else None
    row = replace(row, test_metric=value, accuracy=accuracy)
    return replace(row, median_ms=median, q1=q1, q3=q3, samples_per_second=speed)


def _dense_variants(network: nn.Module, ticket: Ticket, example: Any) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The dense, masked and compacted network, and the reason where one is missing."""
    dense = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            if name in ticket.masks:
                # All weights take the same time but, maybe, zeros.
                noise = parameter.std() * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(torch.where(ticket.masks[name], parameter, noise))
    found, reasons = {"dense": dense, "masked": network}, {}
    try:
        found["compacted"] = compact(copy.deepcopy(network), ticket.masks, example)
    except ValueError as error:
        reasons["compacted"] = _first_line(error)
    return found, reasons


def _prepare_all(
    networks: Mapping[str, nn.Module],
    reasons: dict[str, str],
    engines: Sequence[str],
    inputs: _Inputs,
    examples: Examples,
    threads: int,
    choose: Callable[..., nn.Module],
    shown: Progress,
) -> tuple[_Nets, _Made]:
    """The networks of each variant by batch size, and what runs them in each engine, or the reason why nothing does."""
    masked, device = networks["masked"], _device_of(next(iter(inputs.values())))
    nets = {variant: dict.fromkeys(inputs, net.to(device)) for variant, net in networks.items()}
    cells = [(variant, engine) for variant in VARIANTS for engine in engines]
    made: _Made = {}
    with shown.count("preparing", len(cells) + len(inputs)) as one_more:
        try:
            nets["sparse"] = _accelerate(networks.get("compacted", masked), inputs, choose, one_more)
        except ValueError as error:
            reasons["sparse"] = _first_line(error)
        # Compiling comes last, because tracing for a file makes PyTorch forget what it has compiled.
        for variant, engine in sorted(cells, key=lambda cell: cell[1] == "compiled"):
            expected = None if variant == "dense" else masked
            made[variant, engine] = reasons.get(variant) or _prepare(
                variant, nets[variant], engine, inputs, examples, expected, threads
            )
            one_more()
    return nets, {cell: made[cell] for cell in cells}


def _accelerate(
    network: nn.Module, inputs: _Inputs, choose: Callable[..., nn.Module], one_more: Callable[[], None]
) -> dict[int, nn.Module]:
    """The network with the fastest kind of layer at each batch size."""
    found = {}
    for size, x in inputs.items():
        found[size] = choose(network, example_input=x)
        one_more()
    return found


def _prepare(
    variant: str,
    nets: Mapping[int, nn.Module],
    engine: str,
    inputs: _Inputs,
    examples: Examples,
    expected: nn.Module | None,
    threads: int,
) -> dict[int, Outputs] | str:
    """What runs a variant in an engine at each batch size, or the reason why nothing does."""
    try:
        runs: dict[int, Outputs]
        if engine == "onnxruntime":
            if variant == "sparse":
                return "onnxruntime has no sparse layers"
            if _device_of(next(iter(inputs.values()))).type == "cuda":
                return "onnxruntime is measured on the CPU"
            runs = dict.fromkeys(inputs, onnx_session(to_onnx(next(iter(nets.values())), examples), threads))
        elif engine == "eager":
            runs = {size: partial(call, net) for size, net in nets.items()}
        else:
            runs = {size: _compiled(net) for size, net in nets.items()}
        with quiet(), torch.no_grad():
            for size, x in inputs.items():
                for _ in range(_WARM):
                    found = runs[size](x)
                if expected is not None and not (apart := difference(found, call(expected, x))) <= TOLERANCE:
                    return f"its outputs differ from the masked network's by {apart:.3g} of the largest output"
    except Exception as error:
        return _first_line(error)
    return runs


def _compiled(net: nn.Module) -> Outputs:
    def run(x: Any) -> Any:
        return call(net, x)

    # A code object of its own: else each call would search through the compiled forms of the other networks.
    own = FunctionType(run.__code__.replace(), globals(), "run", None, run.__closure__)
    return torch.compile(own, dynamic=False)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(os.linesep)[0]}"


def _sizes(ticket: Ticket, networks: Mapping[str, nn.Module], example: Any, file_bytes: int | None) -> Sizes:
    masked, compacted = networks["masked"], networks.get("compacted")
    known: dict[str, Any] = {}
    try:
        paths = flow(masked, ticket.masks, example)
        known |= {"effective": paths.effective.kept, "units": sum(layer.units for layer in paths.layers)}
        known["dead_units"] = sum(layer.dead for layer in paths.layers)
    except ValueError as error:
        known["effective_reason"] = str(error)
    if compacted is not None:
        known |= {
            "compacted_parameters": sum(parameter.numel() for parameter in compacted.parameters()),
            "compacted_macs": flops_of(compacted, part(example, 0, 1)) // 2, "compacted_bytes": _bytes(compacted),
        }  # fmt: skip
    return Sizes(
        parameters=sum(parameter.numel() for parameter in masked.parameters()),
        weights=ticket.masks.size, kept=ticket.masks.kept, density=ticket.density,
        macs=flops_of(masked, part(example, 0, 1)) // 2, dense_bytes=_bytes(masked), ticket_bytes=file_bytes, **known,
    )  # fmt: skip


def _bytes(net: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())


@contextmanager
def _threads(asked: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(asked or before)
    try:
        yield asked or before
    finally:
        torch.set_num_threads(before)
