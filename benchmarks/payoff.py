"""What a subnetwork buys on this machine: a lottery ticket in compressed rows, and a network with half its filters.

    python benchmarks/payoff.py --json results/payoff.json     # about two hours: two searches and a control
    python benchmarks/payoff.py --runs runs/payoff             # searches that are done there are not done again
    python benchmarks/payoff.py --rows 2:4 --device cuda       # semi-structured layers of the size of a ViT's

Question: is a ticket faster and smaller where it runs, at the same accuracy, than the dense network it was found in?

Method: `lenet` is iterative magnitude pruning of LeNet-300-100 on Fashion-MNIST to 3 % (the recipe `lenet-imp-2018`
with 12 epochs a level); `conv4` is filter pruning: half of the filters of every convolution and half of the hidden
units, three epochs of training, three of retraining; its control is the same smaller network trained from fresh
weights. Both are measured as `ticket bench` does, at batch 64: dense, masked, compacted and sparse, in PyTorch's eager
mode, compiled and in onnxruntime, all in turns in one process. A ratio is the median time of the dense network over
that of the best choice. `2:4` lays a linear layer in bf16 beside the same with two of every four inputs, on a GPU.

The load of the machine is measured first; a busy one is not judged.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from load import describe_device, machine, measure_load
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import nn

import supermask
from supermask.sparse.timing import time_in_turns
from ticket_search import Run, controls, resume, search
from ticket_search.contract.recipes import find_recipe
from ticket_search.deploy.bench import bench
from ticket_search.deploy.bench_result import Bench, to_dict
from ticket_search.runs.names import TICKET

BATCH = 64
Row = dict[str, Any]
SEARCHES: dict[str, dict[str, Any]] = {
    "lenet": {key: value for key, value in find_recipe("lenet-imp-2018").items() if key != "about"}
    | {"density": 0.03, "epochs": 12},
    "conv4": {
        "method": "filters", "model": "conv4", "density": 0.5, "epochs": 3, "retrain_epochs": 3, "batch_size": 128,
        "lr": 1e-3, "retrain_lr": 3e-4, "optimizer": "adam", "channels_last": True,
    },
}  # fmt: skip
# What each number must be at least, and what we would like.
BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "lenet: times dense in eager": (1.6, 2.0),
    "lenet: times the fastest dense": (None, 1.0),
    "lenet: points over the accuracy reported": (0.0, None),
    "lenet: dense bytes over those of the ticket": (12.0, None),
    "conv4: times dense in eager": (3.0, None),
    "conv4: times the fastest dense": (None, 1.0),
    "conv4: points over the dense network": (-1.0, None),
    "conv4: dense parameters over those kept": (1 / 0.3, None),
    "2:4: times dense in bf16": (1.2, None),
}


def find_run(name: str, options: argparse.Namespace) -> Run:
    """The finished run of a name, searched for if it is not there."""
    flags = SEARCHES[name]
    folder = options.runs / name
    if not folder.exists():
        where = {"data": options.data, "runs": options.runs, "name": name, "threads": options.threads}
        return search(**(flags | where | ({"epochs": options.epochs} if options.epochs else {})))
    return resume(folder)


def measure_lenet(options: argparse.Namespace) -> tuple[Row, dict[str, Any]]:
    run = find_run("lenet", options)
    measured = _bench(run, options)
    best, sizes = measured.best, measured.sizes
    chosen = next(row for row in measured.rows if (row.variant, row.engine) == (best.variant, best.engine))
    numbers = {
        "lenet: times dense in eager": best.times_dense_eager,
        "lenet: times the fastest dense": best.times_fastest_dense,
        "lenet: points over the accuracy reported": chosen.accuracy - run.summary["test_accuracy"],
        "lenet: dense bytes over those of the ticket": sizes.dense_bytes / sizes.ticket_bytes,
    }
    dense = run.levels[0]["test_accuracy"]
    return numbers, {"density": run.summary["density"], "dense_accuracy": dense, **to_dict(measured)}


def measure_conv4(options: argparse.Namespace) -> tuple[Row, dict[str, Any]]:
    run = find_run("conv4", options)
    reinit = next(row for row in controls(run.path, ["reinit"]) if row["control"] == "reinit")
    measured = _bench(run, options)
    dense, summary = run.levels[0], run.summary
    numbers = {
        "conv4: times dense in eager": measured.best.times_dense_eager,
        "conv4: times the fastest dense": measured.best.times_fastest_dense,
        "conv4: points over the dense network": summary["compact"]["test_accuracy"] - dense["test_accuracy"],
        "conv4: dense parameters over those kept": 1 / summary["compact"]["share_of_parameters"],
    }
    accuracies = {"dense": dense["test_accuracy"], "compacted": summary["compact"]["test_accuracy"]}
    accuracies["fresh weights"] = reinit["test_accuracy"]
    return numbers, {"accuracies": accuracies, "compact": summary["compact"], **to_dict(measured)}


def _bench(run: Run, options: argparse.Namespace) -> Bench:
    path = run.path / TICKET
    return bench(
        supermask.load(path), file_bytes=path.stat().st_size, batch_sizes=[BATCH], data=options.data,
        threads=options.threads, seconds=options.seconds,
    )  # fmt: skip


def measure_24(options: argparse.Namespace) -> tuple[Row, dict[str, Any]]:
    """Linear layers of a ViT-B: 128 images of 197 tokens, 768 to 3,072 and back, in bf16."""
    device = torch.device(options.device)
    net = nn.Sequential(nn.Linear(768, 3072), nn.Linear(3072, 768)).to(device, torch.bfloat16).eval()
    masks = supermask.prune(net, 0.5, granularity="2:4")
    x = torch.randn(128 * 197, 768, device=device, dtype=torch.bfloat16)
    supermask.hold(net, masks)
    sparse = supermask.accelerate(net, example_input=x, candidates=["2:4"])
    dense = supermask.bake(net)
    with torch.no_grad():
        times = time_in_turns({"dense": lambda: dense(x), "2:4": lambda: sparse(x)}, options.seconds, device)
    medians = {name: sorted(each)[len(each) // 2] for name, each in times.items()}
    layers = [layer.chosen for layer in supermask.speedup_of(sparse).layers]
    return {"2:4: times dense in bf16": medians["dense"] / medians["2:4"]}, {"seconds": medians, "layers": layers}


MEASURES = {"lenet": measure_lenet, "conv4": measure_conv4, "2:4": measure_24}


def tabulate(rows: list[Row], title: str) -> Table:
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    for column in ("number", "here", "must be at least", "goal"):
        table.add_column(column, justify="left" if column == "number" else "right", no_wrap=True)
    for row in rows:
        table.add_row(row["row"], *("" if row[key] is None else f"{row[key]:.2f}" for key in ("here", "must", "goal")))
    return table


def judge(rows: list[Row]) -> str:
    """Which rows are as they must be."""
    bound = [row for row in rows if row["must"] is not None]
    held = [row for row in bound if row["here"] >= row["must"]]
    wished = [row for row in rows if row["goal"] is not None]
    reached = sum(row["here"] >= row["goal"] for row in wished)
    short = "".join(f" Short: {row['row']}." for row in bound if row not in held)
    return (
        f"Verdict: {len(held)} of {len(bound)} numbers are what they must be; {reached} of {len(wished)} reach their "
        f"goal.{short}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help="lenet, conv4, 2:4, with commas between; what the device can if not given")
    parser.add_argument("--runs", type=Path, default=Path("runs/payoff"), help="where the searches are, or go")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--epochs", type=int, help="of each training, instead of those above")
    parser.add_argument("--seconds", type=float, default=3.0, help="of measuring, for each variant and engine")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="of torch; as many as it takes by itself if not given")
    parser.add_argument("--json", type=Path, help="where to write what was measured")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    asked = options.rows.split(",") if options.rows else ["2:4"] if options.device == "cuda" else ["lenet", "conv4"]
    if unknown := [name for name in asked if name not in MEASURES]:
        raise SystemExit(f"unknown rows {', '.join(unknown)}; there are {', '.join(MEASURES)}")
    if "2:4" in asked and options.device != "cuda":
        raise SystemExit("2:4 needs CUDA with compute capability 8.0: give --device cuda")
    facts = {**machine(), **describe_device(options.device), "batch_size": BATCH}
    for name in asked:  # searching comes first: it makes the machine busy
        if name in SEARCHES:
            run = find_run(name, options)
            if name == "conv4":
                controls(run.path, ["reinit"])
    load = measure_load()
    rows: list[Row] = []
    details = {}
    for name in asked:
        numbers, details[name] = MEASURES[name](options)
        bounds = {key: BOUNDS[key] for key in numbers}
        rows += [{"row": k, "here": v, "must": bounds[k][0], "goal": bounds[k][1]} for k, v in numbers.items()]
    verdict = None if load.busy else judge(rows)
    console = Console()
    console.print(tabulate(rows, f"batch {BATCH}: {facts['device']}, threads {facts['threads']}"))
    console.print(f"[yellow]no verdict: the machine is busy[/yellow] ({load})" if load.busy else verdict)
    if options.json:
        result = {"benchmark": "payoff", **facts, "load": load.as_dict(), "verdict": verdict, "rows": rows}
        options.json.write_text(json.dumps({**result, "details": details}, indent=2) + "\n")


if __name__ == "__main__":
    main()
