"""What a ticket file costs: bytes beside the entropy of its masks, time to pack and unpack, memory while doing so.

    python benchmarks/ticket_file.py                       # 266 k, 2.4 M and 25 M weights; a minute
    python benchmarks/ticket_file.py --json out.json
    python benchmarks/ticket_file.py --models lenet-300-100 --densities 0.5,0.1 --quick

Question: do masks take at most 1.05 times their entropy and 1 kB, are at least 30 million weights a second packed and
unpacked on one core, and does either take at most 2 bytes a weight beside the bool masks themselves?

Method: seeded tickets, so that a file holds masks and next to nothing else; every weight is kept or keptped at random,
which no coding can shorten below the entropy: n H(p) / 8 bytes, summed over layers, p being a layer's own density. The
mask part is what masks add to a file: its bytes less those of the same ticket without masks, descriptions included.
Packing is from bool tensors to the bytes of the file, checksum included; unpacking is from those bytes to all bool
tensors, checked. Times are the best of 5 medians of 3, one thread. Memory is the peak that `tracemalloc` sees beyond
what was there, and beyond the masks for unpacking, measured by itself. The load of the machine is measured first: on a
busy machine there is a table and no verdict.

The last line is a supermask as people share one: conv4 for 28x28 images, half of every layer kept, weights drawn from a
seed as signed constants.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from load import interleaved, machine, measure_load
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import supermask
from supermask import Masks, State, Ticket, make_state
from ticket_search.models.conv import conv4
from ticket_search.models.lenet import lenet_300_100

MODELS: dict[str, Callable[[], nn.Module]] = {
    "lenet-300-100": lambda: lenet_300_100((1, 28, 28), 10),
    "conv4": lambda: conv4((3, 32, 32), 10),
    "resnet50": torchvision.models.resnet50,
}
DENSITIES = "0.9,0.5,0.3,0.1,0.036,0.01,0.001"
MOST_OF_ENTROPY, AND_BYTES = 1.05, 1000
LEAST_PER_SECOND = 30e6
MOST_MEMORY = 2.0

Row = dict[str, Any]


def entropy_bytes(masks: Masks) -> float:
    """The sum over tensors of n H(p) / 8."""
    total = 0.0
    for row in masks.report():
        for p in (row.density, 1 - row.density):
            total -= row.size * p * math.log2(p) / 8 if p else 0.0
    return total


def seeded(model: str, density: float) -> Ticket:
    """A ticket of random masks and drawn weights; the weights themselves are never made."""
    with torch.device("meta"):
        network = MODELS[model]()
    stream = np.random.default_rng(0)
    shapes = {name: tuple(target.parameter.shape) for name, target in supermask.find_targets(network).items()}
    masks = Masks(
        {name: torch.from_numpy(stream.random(shape, np.float32) < density) for name, shape in shapes.items()}
    )
    drawn = {name: supermask.Draw("signed-constant", 0, 1.0, shape) for name, shape in shapes.items()}
    return Ticket(masks, {"start": State({}, drawn, "0" * 64)}, {"model": model})


def unpack(data: bytes) -> Masks:
    masks = supermask.unpack(data).masks
    dict(masks)
    return masks


def peak(call: Callable[[], object]) -> int:
    """Bytes that a call takes at its peak, its result included."""
    gc.collect()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def measure(model: str, density: float, quick: bool) -> Row:
    ticket = seeded(model, density)
    size, data = ticket.masks.size, supermask.pack(ticket)
    assert unpack(data) == ticket.masks
    bare = supermask.pack(Ticket(Masks({}), ticket.states, ticket.meta))
    calls: dict[str, Callable[[int], object]] = {
        "pack": lambda _: supermask.pack(ticket),
        "unpack": lambda _: unpack(data),
    }
    times = interleaved(calls, 1, 1 if quick else 3, 1 if quick else 5)
    entropy = entropy_bytes(ticket.masks)
    part = len(data) - len(bare)
    return {
        "model": model,
        "weights": size,
        "density": density,
        "entropy_bytes": entropy,
        "mask_bytes": part,
        "file_bytes": len(data),
        "ratio": part / entropy,
        "allowed_bytes": MOST_OF_ENTROPY * entropy + AND_BYTES,
        "pack_per_second": size / times["pack"],
        "unpack_per_second": size / times["unpack"],
        "pack_memory": peak(lambda: supermask.pack(ticket)) / size,
        "unpack_memory": peak(lambda: unpack(data)) / size - 1,
    }


def measure_all(models: list[str], densities: list[float], quick: bool) -> Iterator[Row]:
    for model in models:
        for density in densities:
            yield measure(model, density, quick)


def measure_supermask() -> Row:
    """A seeded conv4 at half of every layer, all of it in the file."""
    model = conv4((1, 28, 28), 10)
    draws = supermask.initialize(model, "signed-constant", seed=0, scale=2**0.5)
    masks = supermask.prune(model, 0.5, "random", allocation="layerwise")
    ticket = Ticket(masks, {"start": make_state(model.state_dict(), masks, draws)}, {"model": "conv4"})
    size = len(supermask.pack(ticket))
    dense = 4 * sum(parameter.numel() for parameter in model.parameters())
    return {"weights": masks.size, "file_bytes": size, "dense_bytes": dense, "times_smaller": dense / size}


def judge(rows: list[Row]) -> str:
    """One sentence about all rows."""
    large = [row for row in rows if row["mask_bytes"] > row["allowed_bytes"]]
    slow = [row for row in rows if min(row["pack_per_second"], row["unpack_per_second"]) < LEAST_PER_SECOND]
    hungry = [row for row in rows if max(row["pack_memory"], row["unpack_memory"]) > MOST_MEMORY]
    return (
        f"masks take more than {MOST_OF_ENTROPY:g} times their entropy and 1 kB in {len(large)} of {len(rows)} rows, "
        f"packing or unpacking is below {LEAST_PER_SECOND / 1e6:g} million weights a second in {len(slow)} and takes "
        f"more than {MOST_MEMORY:g} bytes a weight in {len(hungry)}"
    )


def tabulate(rows: list[Row], title: str) -> Table:
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    for column in ("weights", "density", "entropy", "masks", "ratio", "limit", "M/s", "M/s", "B/w", "B/w"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row['weights']:,}",
            f"{row['density']:g}",
            f"{row['entropy_bytes']:,.0f}",
            f"{row['mask_bytes']:,}",
            f"{row['ratio']:.3f}",
            f"{row['allowed_bytes']:,.0f}",
            f"{row['pack_per_second'] / 1e6:.0f}",
            f"{row['unpack_per_second'] / 1e6:.0f}",
            f"{row['pack_memory']:.2f}",
            f"{row['unpack_memory']:.2f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="networks, with commas between")
    parser.add_argument("--densities", default=DENSITIES, help="fractions kept, with commas between")
    parser.add_argument("--quick", action="store_true", help="everything once")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = measure_load()
    models, densities = options.models.split(","), [float(density) for density in options.densities.split(",")]
    bar = track(
        measure_all(models, densities, options.quick),
        "ticket files",
        len(models) * len(densities),
        console=Console(stderr=True),
        refresh_per_second=0.5,
    )
    rows = list(bar)
    shared = measure_supermask()
    facts = machine()
    verdict = None if load.busy else judge(rows)
    console = Console()
    title = f"bytes; million weights/s, bytes of memory a weight, each to pack and to unpack: {facts['cpu']}"
    console.print(tabulate(rows, title))
    console.print(
        f"conv4 at 50 %, seeded: {shared['file_bytes']:,} bytes for {shared['weights']:,} weights, "
        f"{shared['times_smaller']:.1f} times smaller than fp32"
    )
    console.print(f"[yellow]no verdict: the machine is busy[/yellow] ({load})" if load.busy else verdict)
    if options.json:
        result = {"benchmark": "ticket_file", **facts, "load": load.as_dict(), "verdict": verdict}
        options.json.write_text(json.dumps({**result, "rows": rows, "supermask": shared}, indent=2) + "\n")


if __name__ == "__main__":
    main()
