"""What masks add to a training step: edge-popup and held masks beside the dense network.

    python benchmarks/step.py                                  # all rows, the machine's cores; some five minutes
    python benchmarks/step.py --rows lenet,lenet-hold --quick
    python benchmarks/step.py --device cuda --batch-size 512 --json out.json

Question: how much longer is a step of training masks than the step of the same network without them? The bounds are in
ROWS: what it must be, and what we would like.

Method: seeded normal inputs of 28x28 (MNIST's shape) and random labels, on the device before anything is timed. A step
is zero_grad, forward, cross-entropy, backward and one step of fused SGD (momentum 0.9, weight decay 1e-4); the dense
network trains all its parameters, edge-popup its scores at density 0.5, `hold` what a mask of 20 % keeps, and
`gates-2:4` its weights and six logits for each four of them, in layers whose inputs come in fours. All of them are the
same modules from the same constructor. Dense network and masks take turns, step by step, so that both see the same
machine; a median is over all the turns, and the best of 5 medians counts. Compiled rows compile both. Warm-up, and
with it all compilation, comes first and is not timed. On a GPU each turn is several steps and ends with a
synchronization. Memory is the peak of a process of its own beyond what it held before the network was built (on Linux,
or on a GPU). For context, `lenet-sorting` is edge-popup as it was first published: a sort of every layer's
scores in every step.

The load of the machine is measured first: on a busy machine there is a table and no verdict. A row in bf16 means
nothing on a processor that only emulates it: there it is left out, and said.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from load import describe_device, interleaved, judge_bounds, machine, measure_load
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import supermask
from ticket_search.models.conv import conv4, conv6
from ticket_search.models.lenet import lenet_300_100
from ticket_search.models.resnet import resnet18, resnet20
from ticket_search.runs.experiment import bf16_is_native
from ticket_search.training.precision import Arithmetic

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet": lenet_300_100, "conv4": conv4, "conv6": conv6, "resnet18": resnet18, "resnet20": resnet20,
}  # fmt: skip
SHAPE, CLASSES = (1, 28, 28), 10
STEPS_A_TURN = {"cpu": 1, "cuda": 20}


@dataclass(frozen=True)
class Kind:
    """A network with masks of some kind, to be laid beside the same without; `must` and `goal` bound the ratio."""

    model: str
    masks: str = "edge-popup"
    bf16: bool = False
    compiled: bool = False
    memory: bool = False
    must: float | None = None
    goal: float | None = None


ROWS = {
    "lenet": Kind("lenet", must=1.70, goal=1.40),
    "lenet-compiled": Kind("lenet", compiled=True, must=1.35, goal=1.10),
    "conv4": Kind("conv4", must=1.06, goal=1.02),
    "conv4-bf16": Kind("conv4", bf16=True, must=1.12, goal=1.05),
    "resnet20-bf16": Kind("resnet20", bf16=True, must=1.20, goal=1.10),
    "lenet-hold": Kind("lenet", "hold", must=1.12, goal=1.05),
    "conv4-memory": Kind("conv4", memory=True, must=1.5, goal=1.3),
    "conv4-gates-2:4": Kind("conv4", "gates-2:4", must=1.10, goal=1.05),
    "lenet-gates-2:4": Kind("lenet", "gates-2:4"),
    "lenet-sorting": Kind("lenet", "sorting"),
}
GPU_ROWS = {
    "conv6-bf16-compiled": Kind("conv6", bf16=True, compiled=True, must=1.05),
    "resnet18-bf16-compiled": Kind("resnet18", bf16=True, compiled=True, must=1.05),
    "lenet": Kind("lenet"),
    "conv4-memory": Kind("conv4", memory=True, must=1.5, goal=1.3),
}
Row = dict[str, Any]


class SortedTopK(torch.autograd.Function):
    """A mask by a full sort, gradients straight through: what a step costs without a selection."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, k: int) -> Tensor:
        order = keys.flatten().sort().indices
        mask = torch.zeros_like(keys).flatten()
        mask[order[keys.numel() - k :]] = 1.0
        return mask.view_as(keys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class Sorting(nn.Module):
    """Edge-popup layer by layer through a parametrization that sorts."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("frozen", weight.detach().clone())

    def forward(self, score: Tensor) -> Tensor:
        return self.frozen * SortedTopK.apply(score.abs(), score.numel() // 2)


def prepare(kind: Kind, masks: str, device: str) -> tuple[nn.Module, Arithmetic]:
    """A network, with masks or `none`, as `ticket search` would train it."""
    torch.manual_seed(0)
    model = MODELS[kind.model](SHAPE, CLASSES).to(device)
    if kind.bf16:
        model.to(memory_format=torch.channels_last)
    if masks == "edge-popup":
        supermask.learn(model, 0.5)
    elif masks == "gates-2:4":
        targets = supermask.find_targets(model)
        odd = [name for name, target in targets.items() if target.parameter.shape[1] % 4]
        supermask.learn(model, program="categorical", granularity="2:4", weights="keep", exclude=odd or None)
    elif masks == "hold":
        supermask.hold(model, supermask.prune(model, 0.2))
    elif masks == "sorting":
        for layer in [module for module in model.modules() if isinstance(module, nn.Linear)]:
            nn.utils.parametrize.register_parametrization(layer, "weight", Sorting(layer.weight), unsafe=True)
            layer.bias.requires_grad_(False)
    return model, Arithmetic(device, kind.bf16, kind.bf16)


def make_step(kind: Kind, masks: str, device: str, batch_size: int) -> Callable[[int], object]:
    """One training step, of which the argument says nothing."""
    model, arithmetic = prepare(kind, masks, device)
    generator = torch.Generator().manual_seed(0)
    x = arithmetic.lay_out(torch.randn(batch_size, *SHAPE, generator=generator).to(device))
    y = torch.randint(CLASSES, (batch_size,), generator=generator).to(device)
    forward = compile_apart(model) if kind.compiled else model
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, 0.1, momentum=0.9, weight_decay=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with arithmetic.forward():
            outputs = forward(x)
        nn.functional.cross_entropy(outputs.float(), y).backward()
        optimizer.step()

    def turn(_: int) -> None:
        for _ in range(STEPS_A_TURN[device]):
            step()
        if device == "cuda":
            torch.cuda.synchronize()

    return turn


def compile_apart(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """As `ticket search --compile` does, but two models of a kind do not look through each other's code in turns."""

    def forward(x: Tensor) -> Tensor:
        return model(x)

    forward.__code__ = forward.__code__.replace()
    return torch.compile(forward)


def measure(kind: Kind, device: str, batch_size: int, quick: bool) -> Row:
    """Milliseconds a step of both, or megabytes, and the ratio."""
    if kind.memory:
        dense, masked = (peak_memory(kind, masks, device, batch_size) for masks in ("none", kind.masks))
        return {"dense_megabytes": dense / 1e6, "masks_megabytes": masked / 1e6, "ratio": masked / dense}
    calls = {masks: make_step(kind, masks, device, batch_size) for masks in ("none", kind.masks)}
    once = interleaved(calls, 1, 2 if quick else 10, 1)
    # As many turns as take some seconds, and no fewer than a median wants.
    rounds = 1 if quick else min(300, max(10, round(4 / sum(once.values()))))
    times = interleaved(calls, 1, rounds, 1 if quick else 5)
    milliseconds = {masks: 1000 * time / STEPS_A_TURN[device] for masks, time in times.items()}
    return {
        "dense_ms": milliseconds["none"],
        "masks_ms": milliseconds[kind.masks],
        "ratio": milliseconds[kind.masks] / milliseconds["none"],
        "images_per_second": 1000 * batch_size / milliseconds[kind.masks],
    }


def peak_memory(kind: Kind, masks: str, device: str, batch_size: int) -> float:
    """Bytes that training takes at its peak, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_memory, kind, masks, device, batch_size, torch.get_num_threads()).result()


def _peak_memory(kind: Kind, masks: str, device: str, batch_size: int, threads: int) -> float:
    torch.set_num_threads(threads)
    make_step(Kind("lenet"), "edge-popup", device, 2)(0)  # what libraries take at their first use
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = memory(device, "VmRSS")
    step = make_step(kind, masks, device, batch_size)
    for _ in range(5):
        step(0)
    return memory(device, "VmHWM") - before


def memory(device: str, what: str) -> float:
    """Bytes that this process has (VmRSS) or has had at most (VmHWM); of a GPU those it has had at most."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not from getrusage, which counts what the parent process had when it started this one.
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in status if line.startswith(what))


def measure_all(rows: dict[str, Kind], options: argparse.Namespace) -> Iterator[Row]:
    for name, kind in rows.items():
        torch.compiler.reset()
        bounds = {"must": kind.must, "goal": kind.goal}
        yield {"row": name, **bounds, **measure(kind, options.device, options.batch_size, options.quick)}


def tabulate(rows: list[Row], title: str) -> Table:
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    for column in ("row", "dense", "masks", "", "ratio", "must", "goal"):
        table.add_column(column, justify="left" if column in ("row", "") else "right", no_wrap=True)
    for row in rows:
        unit = "ms" if "dense_ms" in row else "megabytes"
        bounds = ["" if row[bound] is None else f"{row[bound]:.2f}" for bound in ("must", "goal")]
        values = [f"{row[f'{what}_{unit}']:.3g}" for what in ("dense", "masks")]
        table.add_row(row["row"], *values, "ms" if unit == "ms" else "MB", f"{row['ratio']:.3f}", *bounds)
    return table


def choose(options: argparse.Namespace) -> tuple[dict[str, Kind], list[str]]:
    """The rows asked for, and those that this machine cannot measure."""
    known = GPU_ROWS if options.device == "cuda" else ROWS
    asked = options.rows.split(",") if options.rows else list(known)
    if unknown := [name for name in asked if name not in known]:
        raise SystemExit(f"unknown rows {', '.join(unknown)}; there are {', '.join(known)}")
    native = bf16_is_native(options.device)
    left_out = [name for name in asked if known[name].bf16 and not native]
    return {name: known[name] for name in asked if name not in left_out}, left_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help="names, with commas between; all if not given")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, help="of torch; as many as it takes by itself if not given")
    parser.add_argument("--quick", action="store_true", help="every rival once")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    chosen, left_out = choose(options)
    load = measure_load()
    bar = track(
        measure_all(chosen, options), "steps", len(chosen), console=Console(stderr=True), refresh_per_second=0.5
    )
    rows = list(bar)
    facts = {**machine(), **describe_device(options.device), "batch_size": options.batch_size}
    verdict = None if load.busy else judge_bounds(rows)
    console = Console()
    console.print(tabulate(rows, f"a step, batch {options.batch_size}: {facts['device']}, threads {facts['threads']}"))
    if left_out:
        console.print(f"left out: {', '.join(left_out)}; this processor has no bf16 arithmetic")
    console.print(f"[yellow]no verdict: the machine is busy[/yellow] ({load})" if load.busy else verdict)
    if options.json:
        result = {"benchmark": "step", **facts, "load": load.as_dict(), "verdict": verdict, "left_out": left_out}
        options.json.write_text(json.dumps({**result, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
