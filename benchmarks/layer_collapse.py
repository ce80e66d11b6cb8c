"""Which layers does pruning at initialization leave empty? SynFlow beside magnitude, on one network.

Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, 2020: at a
thousandfold compression magnitude empties whole layers, and the network is cut; synflow, in a hundred rounds, none.

    python benchmarks/layer_collapse.py                          # vgg16 for 32x32 images, 0.1 % of the weights
    python benchmarks/layer_collapse.py --model conv4 --density 0.01 --json collapse.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import supermask
from supermask.choosing.scores import ROUNDS, Scores, find_score
from supermask.shrinking.flow import flow
from supermask.weights.architectures import find_architecture

SCORES = ("magnitude", "synflow")


def prune(model: nn.Module, density: float, score: str, example: Tensor) -> supermask.Masks:
    """`supermask.prune` with a bar over its rounds: a minute or two of synflow on a CPU."""
    rounds, scored = ROUNDS.get(score, 1), find_score(score)
    bar = iter(track(range(rounds), f"{score}, {rounds} rounds", console=Console(stderr=True)))

    def score_once(*arguments: Any) -> Scores:
        next(bar)
        return scored(*arguments)

    masks = supermask.prune(model, density, score_once, example_input=example, rounds=rounds)
    next(bar, None)  # ends the bar
    return masks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--density", type=float, default=0.001)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    shape = [3, 32, 32]
    model = find_architecture(options.model)(input_shape=shape, classes=10)
    supermask.initialize(model, "kaiming-normal", options.seed)
    example = torch.ones(1, *shape)
    found = {}
    for score in SCORES:
        masks = prune(model, options.density, score, example)
        found[score] = (masks, flow(model, masks, example))
    title = f"{options.model} at density {options.density:g}: weights kept, and those on a path"
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("tensor", no_wrap=True)
    table.add_column("weights", justify="right")
    for score in SCORES:
        table.add_column(score, justify="right", no_wrap=True)
        table.add_column("on a path", justify="right", no_wrap=True)
    for name, mask in found[SCORES[0]][0].items():
        cells = []
        for masks, paths in found.values():
            kept = masks.kept_per_tensor[name]
            cells += [f"[red]{kept:,}[/red]" if kept == 0 else f"{kept:,}"]
            cells += [f"{paths.effective.kept_per_tensor[name]:,}"]
        table.add_row(name, f"{mask.numel():,}", *cells)
    console = Console()
    console.print(table)
    rows: dict[str, Any] = {"weights_per_tensor": {name: mask.numel() for name, mask in found[SCORES[0]][0].items()}}
    for score, (masks, paths) in found.items():
        empty = [name for name, kept in masks.kept_per_tensor.items() if kept == 0]
        rows[score] = {
            "kept": masks.kept,
            "effective": paths.effective.kept,
            "empty_layers": empty,
            "kept_per_tensor": masks.kept_per_tensor,
            "effective_per_tensor": paths.effective.kept_per_tensor,
        }
        console.print(f"{score}: {masks.kept:,} kept, {paths.effective.kept:,} on a path, empty layers: {len(empty)}")
    if options.json:
        facts = {"model": options.model, "density": options.density, "seed": options.seed}
        options.json.write_text(json.dumps({**facts, **rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
