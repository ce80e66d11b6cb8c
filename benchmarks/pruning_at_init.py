"""Do masks chosen before training beat their own shuffles, and what does iterative pruning reach?

Frankle et al., Pruning Neural Networks at Initialization: Why Are We Missing the Mark?, 2021: a mask found before
training is worth no more than the number of weights that it keeps in each layer; shuffle it there and nothing is lost.

    python benchmarks/pruning_at_init.py snip                      # a row of results/pruning_at_init.md
    python benchmarks/pruning_at_init.py imp --seeds 0,1,2 --runs runs
    python benchmarks/pruning_at_init.py synflow --data digits --epochs 20 --density 0.1

Every seed is a `ticket search` of LeNet-300-100 and a `ticket train RUN --control shuffle` of what was found: the mask
permuted within each layer, the weights and the training the same. Test accuracy of the final step, read back from the
ticket files. Runs that are there already are read, not repeated; one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ticket_search import Run, resume, search, train
from ticket_search.analysis.intervals import confidence_interval

METHODS = ("dense", "random", "magnitude-at-init", "snip", "grasp", "synflow", "imp")
HEADER = """\
| method | test accuracy (%) | mean ± sd | shuffled (%) | mean ± sd | difference | verdict |
|---|---|---|---|---|---|---|"""


def find(method: str, seed: int, options: argparse.Namespace) -> Run:
    """The run of a method, and nothing of it done twice."""
    name = f"{method}-{options.data}-s{seed}"
    if (options.runs / name).exists():
        return resume(name, runs=options.runs)
    flags: dict[str, Any] = {"epochs": options.epochs, "threads": options.threads, "seed": seed}
    if method == "imp":
        flags["evaluate_every"] = "1ep"
    if method != "dense":
        flags["density"] = options.density
    return search(method, data=options.data, runs=options.runs, name=name, **flags)


def shuffle(run: Run, seed: int, options: argparse.Namespace) -> Run:
    """The run of its mask shuffled."""
    name = f"{run.path.name}-shuffled"
    if (options.runs / name).exists():
        return resume(name, runs=options.runs)
    flags = {"control": "shuffle", "seed": seed, "threads": options.threads}
    return train(run.path, runs=options.runs, name=name, **flags)


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def as_row(method: str, found: Sequence[float], shuffled: Sequence[float]) -> str:
    """A row of the table. Differences are of the same seed; their mean stands beside half its 95 % interval."""
    cells = [method, " ".join(f"{value:.2f}" for value in found), spread(found), "", "", "", ""]
    if shuffled:
        differences = [a - b for a, b in zip(found, shuffled, strict=True)]
        mean, interval = statistics.mean(differences), confidence_interval(differences)
        cells[3:6] = [" ".join(f"{value:.2f}" for value in shuffled), spread(shuffled), f"{mean:+.2f}"]
        if interval:
            lowest, highest = interval
            cells[5] += f" ± {(highest - lowest) / 2:.2f}"
            cells[6] = "better" if lowest > 0 else "worse" if highest < 0 else "tie"
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", default="0,1,2", help="with commas between")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of all runs")
    parser.add_argument("--json", type=Path, help="the file of all rows, to put this one into")
    options = parser.parse_args()
    found, shuffled = [], []
    for seed in map(int, options.seeds.split(",")):
        run = find(options.method, seed, options)
        found.append(run.summary["test_accuracy"])
        if options.method != "dense":
            shuffled.append(shuffle(run, seed, options).summary["test_accuracy"])
    print(HEADER)
    print(as_row(options.method, found, shuffled))
    if options.json:
        rows = json.loads(options.json.read_text()) if options.json.exists() else {}
        rows[options.method] = {"test_accuracy": found, "shuffled": shuffled}
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
