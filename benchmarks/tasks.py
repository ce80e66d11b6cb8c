"""Several tasks in one file: are outputs, inferred tasks, bytes and the time of a switch what they should be?

    python benchmarks/tasks.py                       # ten permuted-digit tasks; a minute
    python benchmarks/tasks.py --json out.json
    python benchmarks/tasks.py --tasks permuted:2 --epochs 2 --quick

Question: of ten tasks over one LeNet-300-100 that was never trained, is each one's output bit-equal to that of its own
ticket, are 95 % of all tasks inferred right from 16 images, does each task add at most 1.05 times the entropy of its
mask and 1,000 bytes to the file, and does a switch take at most 2 forward passes of a batch of 128?

Method: `supsup` learns the masks; the network has 100 outputs, of which 10 have a class (Wortsman et al., Supermasks in
Superposition, 2020). A task's own ticket is written to bytes, read back, and its network built from these alone;
outputs are compared on all test images, bit by bit, with those of the one network that holds all masks, switched in
place, in another order than that of the tasks. A decision is by one gradient of the entropy of the outputs, or of G of
the 90 outputs that have no class; all test images are decided on, one by one and 16 at a time. What a task adds to the
file is the file's length less that of the file of the other tasks. Times are the best of 5 medians of 3, in turns with
the forward pass, one thread: of the network on digits, and of the same network for 28x28 images with random masks. The
load of the machine is measured first: on a busy machine the times have no verdict.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from load import interleaved, machine, measure_load
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from ticket_file import entropy_bytes

import supermask
from supermask import Masks, Superposition, Ticket
from supermask.weights.fitting import state_of
from ticket_search import Run, search
from ticket_search.data.tasks import read_tasks
from ticket_search.models.lenet import lenet_300_100

MOST_OF_ENTROPY, AND_BYTES = 1.05, 1000
LEAST_RIGHT, FROM_IMAGES = 95.0, 16
MOST_PASSES, BATCH = 2.0, 128
IMAGES = (1, FROM_IMAGES)
OBJECTIVES: dict[str, int | None] = {"entropy": None, "superfluous": 10}

Row = dict[str, Any]


def measure_tasks(run: Run) -> Iterator[Row]:
    """A row for each task."""
    ticket, tasks = run.ticket, read_tasks(run.config.tasks)
    net, whole = ticket.superpose(), len(supermask.pack(ticket))
    images = {name: tasks.samples(run.data, index).test_x for index, name in enumerate(ticket.tasks)}
    with torch.no_grad():
        outputs = {name: net.switch(name)(images[name]) for name in reversed(ticket.tasks)}
    for name in ticket.tasks:
        own = supermask.unpack(supermask.pack(ticket.task(name)))
        with torch.no_grad():
            expected = own.model()(images[name])
        row = {
            "task": name,
            "density": own.density,
            "test_accuracy": own.meta["accuracy"]["final"]["test"],
            "bit_equal": torch.equal(outputs[name].view(torch.int32), expected.view(torch.int32)),
            "entropy_bytes": entropy_bytes(own.masks),
            "added_bytes": whole - len(supermask.pack(without(ticket, name))),
        }
        row["allowed_bytes"] = MOST_OF_ENTROPY * row["entropy_bytes"] + AND_BYTES
        for together in IMAGES:
            x = images[name][: len(images[name]) // together * together]
            row[f"decisions_{together}"] = len(x) // together
            for objective, real in OBJECTIVES.items():
                named = net.infer(x, together, objective=objective, real=real)
                row[f"right_{together}_{objective}"] = named.count(name)
        yield row


def without(ticket: Ticket, name: str) -> Ticket:
    """The same ticket without one of its tasks."""
    others = [each for each in ticket.tasks if each != name]
    if len(others) > 1:
        joined = supermask.join_tasks({each: ticket.task(each) for each in others})
        return Ticket(Masks({}), {}, ticket.meta, joined.sets, backbone=joined.backbone, parts=joined.parts)
    return ticket.task(others[0])


def measure_switch(name: str, net: Superposition, x: torch.Tensor, quick: bool) -> Row:
    """Seconds of a switch and of a forward pass, in turns."""
    tasks, times = net.tasks, 20

    def switch(start: int) -> None:
        for step in range(times):
            net.switch(tasks[(start + step) % len(tasks)])

    def forward(_: int) -> None:
        with torch.no_grad():
            for _ in range(times):
                net(x)

    switch(0), forward(0)
    found = interleaved({"switch": switch, "forward": forward}, 1, 1 if quick else 3, 1 if quick else 5)
    weights = sum(math.prod(shape) for shape in net.shapes.values())
    return {
        "network": name,
        "weights": weights,
        "tasks": len(tasks),
        "switch_ms": 1e3 * found["switch"] / times,
        "forward_ms": 1e3 * found["forward"] / times,
        "ratio": found["switch"] / found["forward"],
    }


def random_superposition(tasks: int) -> tuple[Superposition, torch.Tensor]:
    """LeNet-300-100 for 28x28 images with random masks that keep half of every layer."""
    model = lenet_300_100((1, 28, 28), 10)
    masks = {str(i): supermask.prune(model, 0.5, "random", allocation="layerwise", seed=i) for i in range(tasks)}
    return Superposition(model, state_of(model), masks), torch.randn(BATCH, 1, 28, 28)


def summarize(rows: list[Row], run: Run) -> Row:
    ticket = run.ticket
    size = (run.path / "ticket.safetensors").stat().st_size
    shares = {
        f"right_{together}_{objective}": 100.0
        * sum(row[f"right_{together}_{objective}"] for row in rows)
        / sum(row[f"decisions_{together}"] for row in rows)
        for together in IMAGES
        for objective in OBJECTIVES
    }
    return {
        "tasks": len(rows),
        "weights": ticket.masks.size,
        "test_accuracy": run.summary["test_accuracy"],
        **shares,
        **{f"decisions_{together}": sum(row[f"decisions_{together}"] for row in rows) for together in IMAGES},
        "file_bytes": size,
        "own_files_bytes": sum(len(supermask.pack(ticket.task(name))) for name in ticket.tasks),
        "dense_bytes": 4 * ticket.meta["parameters"] * len(rows),
        "training_seconds": run.summary["seconds"],
    }


def judge(rows: list[Row], whole: Row, switches: list[Row], busy: bool) -> str:
    """One sentence about all claims."""
    equal = sum(row["bit_equal"] for row in rows)
    large = [row["task"] for row in rows if row["added_bytes"] > row["allowed_bytes"]]
    right = {objective: whole[f"right_{FROM_IMAGES}_{objective}"] for objective in OBJECTIVES}
    told = ", ".join(f"{share:.2f} % by {objective}" for objective, share in right.items())
    reached = "at least" if min(right.values()) >= LEAST_RIGHT else "NOT at least"
    slow = max(row["ratio"] for row in switches)
    time = f"a switch takes at most {slow:.2f} forward passes ({'within' if slow <= MOST_PASSES else 'NOT within'} 2)"
    return (
        f"{equal} of {len(rows)} tasks give outputs bit-equal to those of their own tickets; from {FROM_IMAGES} images "
        f"{reached} {LEAST_RIGHT:g} % of tasks are inferred right ({told}); {len(large)} of {len(rows)} tasks add more "
        f"than {MOST_OF_ENTROPY:g} times the entropy of their masks and 1 kB; "
        + ("no verdict on times: the machine is busy" if busy else time)
    )


def tabulate(rows: list[Row]) -> Table:
    table = Table(title="each task", box=SIMPLE, padding=(0, 1, 0, 0))
    for column in ("task", "test %", "equal", "right of 1", "right of 16", "entropy", "added", "limit"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        right = [f"{row[f'right_{n}_entropy']} / {row[f'decisions_{n}']}" for n in IMAGES]
        sizes = [f"{row[key]:,.0f}" for key in ("entropy_bytes", "added_bytes", "allowed_bytes")]
        table.add_row(row["task"], f"{row['test_accuracy']:.2f}", "yes" if row["bit_equal"] else "NO", *right, *sizes)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="permuted:10", help="the tasks, as of ticket search --method supsup")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of learning each task's masks")
    parser.add_argument("--quick", action="store_true", help="every time once")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = measure_load()
    flags: dict[str, Any] = {"tasks": options.tasks, "epochs": options.epochs, "evaluate_every": f"{options.epochs}ep"}
    with tempfile.TemporaryDirectory() as folder:
        run = search("supsup", runs=folder, threads=1, decisions=1, model_args=("classes=100",), **flags)
        rows = list(measure_tasks(run))
        whole = summarize(rows, run)
        x = read_tasks(options.tasks).samples(run.data, 0).test_x[:BATCH]
        large, images = random_superposition(len(rows))
        switches = [
            measure_switch("digits, 8x8", run.ticket.superpose(), x, options.quick),
            measure_switch("28x28", large, images, options.quick),
        ]
    verdict, facts = judge(rows, whole, switches, load.busy), machine()
    console = Console()
    console.print(tabulate(rows))
    for row in switches:
        console.print(
            f"{row['network']}, {row['weights']:,} weights: a switch takes {row['switch_ms']:.3f} ms, a forward pass "
            f"of {BATCH} {row['forward_ms']:.3f} ms, ratio {row['ratio']:.3f}",
            soft_wrap=True,
        )
    console.print(
        f"one file of {whole['file_bytes']:,} bytes; the tasks' own files {whole['own_files_bytes']:,}; as many dense "
        f"networks in fp32 {whole['dense_bytes']:,}",
        soft_wrap=True,
    )
    console.print(verdict, soft_wrap=True)
    if options.json:
        result = {"benchmark": "tasks", **facts, "load": load.as_dict(), "verdict": verdict}
        options.json.write_text(
            json.dumps({**result, "whole": whole, "rows": rows, "switches": switches}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
