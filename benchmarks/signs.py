"""Is it the signs? Tickets of the MNIST-1D perceptron beside starts that have their signs or their magnitudes only.

    python benchmarks/signs.py --json results/signs.json --page results/signs.md \\
    --picture results/signs.png
    python benchmarks/signs.py --seeds 0,1 --epochs 2 --levels 0.5,0.2 --runs runs     # to look at how it works

Every seed is a search with the recipe mnist1d-imp and the controls of `ticket signs`. Runs that are there already are
read, not repeated; one that was stopped goes on. The predictions were written before the study was run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from predictions import Prediction, as_table

import ticket_search
from ticket_search import Run
from ticket_search.analysis.intervals import Difference, difference
from ticket_search.contract.recipes import find_recipe
from ticket_search.questions.agreement import ALL, mask_overlap
from ticket_search.questions.signs import Signs, plot_signs

HEAD = """\
# Is it the signs?

Question: of the initial weights of a ticket, are the signs enough? (Zhou et al., *Deconstructing Lottery
Tickets: Zeros, Signs, and the Supermask*, 2019, found that they are.)

```
python benchmarks/signs.py --json results/signs.json --page results/signs.md \\
    --picture results/signs.png
```"""

PREDICTIONS = (
    Prediction(
        "initial-signs - ticket", "=", "Zhou et al. 2019: of the initial weights of a ticket the signs are enough", 2.0
    ),
    Prediction("trained-signs - ticket", "=", "few kept weights change their sign, so these are nearly the same", 2.0),
    Prediction("magnitudes - ticket", "-", "with other signs the magnitudes are those of other weights"),
    Prediction("initial-signs - magnitudes", "+", "the same, put side by side"),
    Prediction("magnitudes - reinit", "=", "magnitudes of kept weights are hardly above those of fresh ones", 2.0),
    Prediction("initial-signs - reinit", "+", "if it is the signs, fresh weights lack what matters"),
    Prediction(
        "reinit - shuffle", "+", "on MNIST-1D the places matter more than the weights: its inputs have an order"
    ),
    Prediction("kept - dropped sign agreement", "+", "what training moves through zero is small, and so is dropped"),
    Prediction("overlap - chance, fc1", "+", "which inputs matter is the same for every seed"),
    Prediction("overlap - chance, fc2", "=", "hidden units have no order from seed to seed", 0.01),
)


def find(seed: int, options: argparse.Namespace) -> Run:
    """The search of a seed, and nothing of it done twice."""
    name = f"signs-s{seed}"
    if (options.runs / name).exists():
        return ticket_search.resume(name, runs=options.runs)
    flags: dict[str, Any] = {k: v for k, v in find_recipe("mnist1d-imp").items() if k not in ("about", "method")}
    flags |= {"seed": seed, "threads": options.threads}
    flags |= {"epochs": options.epochs} if options.epochs else {}
    if options.levels:
        levels = tuple(map(float, options.levels.split(",")))
        flags |= {"levels": levels, "density": levels[-1]}
        del flags["fraction"]
    return ticket_search.search("imp", runs=options.runs, name=name, **flags)


def differences_of(found: Signs, each: list[Signs]) -> dict[str, Difference | None]:
    """The differences that predictions are about, paired by seed. `each` is what a single run says."""
    values = {arm.name: dict(zip(found.runs, arm.values, strict=True)) for arm in found.arms}
    pairs = {prediction.name: prediction.name.split(" - ") for prediction in PREDICTIONS}
    gaps = {
        name: difference(values[one], values[other])
        for name, (one, other) in pairs.items()
        if one in values and other in values
    }
    rows = [next(row for row in one.agreement if row.layer == ALL) for one in each]
    kept, dropped = ({n: row[key] for n, row in enumerate(rows)} for key in ("dense", "dropped"))
    gaps["kept - dropped sign agreement"] = difference(kept, dropped)
    return gaps


def overlaps_of(runs: list[Run]) -> dict[str, Difference | None]:
    """Overlap minus that by chance. Pairs of runs share runs, so only pairs of which none does count as samples."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for number in range(len(runs) // 2):
        pair = [runs[2 * number].ticket.masks, runs[2 * number + 1].ticket.masks]
        for row in mask_overlap(pair):
            layer = found.setdefault(
                f"overlap - chance, {row.layer.partition('.')[0]}", {"overlap": {}, "by_chance": {}}
            )
            for key in layer:
                layer[key][number] = row[key]
    return {name: difference(each["overlap"], each["by_chance"]) for name, each in found.items()}


def as_page(found: Signs, gaps: dict[str, Difference | None]) -> str:
    """The numbers as a page, without what is said of them."""
    lines = [
        "| start, under the ticket's mask | test accuracy (%) | mean ± sd | to the ticket | Holm p |",
        "|---|---|---|---|---|",
    ]
    for arm in found.arms:
        values = " ".join(f"{value:.2f}" for value in arm.values)
        gap = arm.difference
        told = "" if gap is None else f"{gap.mean:+.2f}"
        told += "" if gap is None or gap.interval is None else f" [{gap.interval[0]:+.2f}, {gap.interval[1]:+.2f}]"
        chance = "" if arm.p_holm is None else f"{arm.p_holm:.2g}"
        std = "" if arm.std is None else f" ± {arm.std:.2f}"
        lines.append(f"| {arm.name} | {values} | {arm.mean:.2f}{std} | {told} | {chance} |")
    answers = "\n".join(f"- {each.question} **{each.in_words()}**: {each.because}" for each in found.answers)
    shares = ["| layer | kept | in the ticket | in the dense network | dropped, there |", "|---|---|---|---|---|"]
    shares += [
        f"| {row.layer} | {row.weights:,.0f} | {row.ticket:.3f} | {row.dense:.3f} | {row.dropped:.3f} |"
        for row in found.agreement
        if row.dense is not None and row.dropped is not None
    ]
    common = [
        "| layer | in all | by chance | pairs overlap | by chance | standard deviations |",
        "|---|---|---|---|---|---|",
    ]
    common += [
        f"| {row.layer} | {row.intersection:.4f} | {row.intersection_by_chance:.4f} | {row.overlap:.3f} | "
        f"{row.by_chance:.3f} | {row.beyond or 0:+.1f} |"
        for row in found.overlaps
    ]
    return "\n\n".join([
        HEAD, f"**{found.headline}**", answers, "\n".join(lines),
        "![Accuracy of each start with its interval](signs.png)",
        "Share of weights that keep their sign in training:", "\n".join(shares),
        "What the masks of all seeds have in common:", "\n".join(common),
        as_table(PREDICTIONS, gaps, "points, or shares"),
    ]) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4", help="with commas between")
    parser.add_argument("--epochs", type=int, help="of each training; those of the recipe if not given")
    parser.add_argument("--levels", help="densities with commas between; those of the recipe if not given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of all runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="where the tables go; what is said of them is written by hand")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    runs = [find(seed, options) for seed in map(int, options.seeds.split(","))]
    found = ticket_search.signs([run.path for run in runs])
    each = [ticket_search.signs(run.path) for run in runs]
    gaps = differences_of(found, each) | overlaps_of(runs)
    page = as_page(found, gaps)
    print(page)
    if options.json:
        named = {**found.to_dict(), "runs": [Path(run).name for run in found.runs]}
        options.json.write_text(json.dumps(named, indent=2) + "\n")
    if options.page:
        options.page.write_text(page)
    if options.picture:
        plot_signs(found, options.picture, overwrite=True)


if __name__ == "__main__":
    main()
