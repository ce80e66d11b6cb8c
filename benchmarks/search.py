"""What whole searches take: the numbers to lay beside other programs.

    python benchmarks/search.py                                # lenet-imp-2018 and an epoch of conv4; many minutes
    python benchmarks/search.py --rows lenet-imp-2018 --epochs 12
    python benchmarks/search.py --device cuda --json out.json

Question: how long is a published search, and how many images a second does edge-popup train on?

Method: `ticket search --config ROW --data fashion-mnist` in a process of its own, once: what is long needs no median.
`lenet-imp-2018` is the whole recipe, the dense network and sixteen levels (`--epochs` shortens each),
`conv4-edge-popup` one epoch.
Seconds are those of the whole command, start-up, validation, tests and files included; images a second are of training
alone, as TensorBoard shows them, the median over what was logged. The recipes are those in `configs/`, but for the data
set: the one that the machines have on which no other can be had.

The load of the machine is measured first, and stands beside the numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from load import describe_device, machine, measure_load
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table

# Recipes, and flags that are not theirs.
ROWS: dict[str, tuple[str, ...]] = {"lenet-imp-2018": (), "conv4-edge-popup": ("--epochs", "1")}
Row = dict[str, Any]


def measure(recipe: str, options: argparse.Namespace) -> Row:
    """One search, as a user types it."""
    flags = [*ROWS[recipe], "--data", options.data, "--device", options.device]
    if options.epochs and not ROWS[recipe]:
        flags = [*flags, "--epochs", str(options.epochs)]
    if options.threads:
        flags = [*flags, "--threads", str(options.threads)]
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "ticket_search", "search", "--config", recipe, *flags]
        began = time.perf_counter()
        answer = subprocess.run([*command, "--runs", runs, "--json"], check=False, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        if answer.returncode:
            raise SystemExit(answer.stderr)
        summary = json.loads(answer.stdout)
        rows = [json.loads(line) for line in (Path(runs) / summary["name"] / "metrics.jsonl").read_text().splitlines()]
    speeds = [row["speed/samples-per-second"] for row in rows if "speed/samples-per-second" in row]
    return {
        "row": recipe,
        "flags": flags,
        "seconds": seconds,
        "trainings": max(1, len(summary.get("levels", []))),
        "steps": summary["cost"]["steps"],
        "images_per_second": statistics.median(speeds),
        "density": summary["density"],
        "test_accuracy": summary["test_accuracy"],
    }


def measure_all(recipes: list[str], options: argparse.Namespace) -> Iterator[Row]:
    for recipe in recipes:
        yield measure(recipe, options)


def tabulate(rows: list[Row], title: str) -> Table:
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    for column in ("search", "seconds", "trainings", "steps", "images/s", "density", "test %"):
        table.add_column(column, justify="left" if column == "search" else "right", no_wrap=True)
    for row in rows:
        numbers = [f"{row['seconds']:.1f}", f"{row['trainings']}", f"{row['steps']:,}"]
        numbers += [f"{row['images_per_second']:,.0f}", f"{row['density']:.4g}", f"{row['test_accuracy']:.2f}"]
        table.add_row(row["row"], *numbers)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="recipes, with commas between")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--epochs", type=int, help="of each training, instead of the recipe's")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="of torch; as many as it takes by itself if not given")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args()
    recipes = options.rows.split(",")
    if unknown := [recipe for recipe in recipes if recipe not in ROWS]:
        raise SystemExit(f"unknown rows {', '.join(unknown)}; there are {', '.join(ROWS)}")
    load = measure_load()
    bar = track(
        measure_all(recipes, options), "searches", len(recipes), console=Console(stderr=True), refresh_per_second=0.5
    )
    rows = list(bar)
    facts = {**machine(), **describe_device(options.device), "threads": options.threads or torch.get_num_threads()}
    console = Console()
    console.print(tabulate(rows, f"{options.data}: {facts['device']}, threads {facts['threads']}"))
    if load.busy:
        console.print(f"[yellow]the machine is busy[/yellow] ({load})")
    if options.json:
        result = {"benchmark": "search", **facts, "load": load.as_dict(), "rows": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
