"""From which step on is training stable to the noise of SGD, densely and under the mask of a ticket?

    python benchmarks/connectivity.py --json results/connectivity.json --page results/connectivity.md \\
        --picture results/connectivity.png        # about half an hour on two idle cores
    python benchmarks/connectivity.py --runs runs/connectivity      # what is done there is not done again
    python benchmarks/connectivity.py --parts mnist1d --pairs 1

Question: does what Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020, found of large
networks hold for small ones that anyone can train? That the dense network becomes stable at some step k, and that the
ticket is so no later.

Method: iterative magnitude pruning finds a ticket that is rewound to step 0, and `ticket connect` asks of it. `mnist1d`
is the recipe `mnist1d-imp` (7 % of the weights) at steps 0, 100 and 400 with three pairs of children in each arm;
`lenet` is LeNet-300-100 on Fashion-MNIST (9 % of the weights, two epochs a training) at steps 0, 100 and 500 with one
pair. The expectations were written down before the trainings: of the dense network on MNIST-1D a barrier above 4 pp
at step 0 and below 1.5 pp at step 400; the ticket's below the dense one's at steps 0 and 100, and below 1.5 pp at 400.
Every training has one thread.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from load import machine
from rich.console import Console

from ticket_search import Run, connect, resume, search
from ticket_search.contract.flags import find_recipe
from ticket_search.questions.barriers import ARMS, Barrier
from ticket_search.questions.connectivity import Connectivity

SEARCHES: dict[str, dict[str, Any]] = {
    "mnist1d": {key: value for key, value in find_recipe("mnist1d-imp").items() if key != "about"},
    "lenet": {key: value for key, value in find_recipe("lenet-imp-2018").items() if key not in ("about", "density")}
    | {"data": "fashion-mnist", "epochs": 2, "fraction": 0.7, "density": 0.09, "evaluate_every": "1ep"},
}
# The steps that children share, how many pairs of them, and the arms.
ASKED: dict[str, tuple[list[int], int, list[str]]] = {
    "mnist1d": ([0, 100, 400], 3, list(ARMS)),
    "lenet": ([0, 100, 500], 1, ["dense", "ticket"]),
}
Row = dict[str, Any]


def ask(name: str, options: argparse.Namespace) -> tuple[Run, Connectivity]:
    """The search of a name and what is known of it, both made if they are not there."""
    folder = options.runs / name
    flags = SEARCHES[name] | ({"epochs": options.epochs} if options.epochs else {})
    if folder.exists():
        run = resume(folder)
    else:
        run = search(**flags, runs=options.runs, name=name, threads=1)
    steps, pairs, arms = ASKED[name]
    return run, connect(run, options.steps or steps, pairs=options.pairs or pairs, arms=arms)


def expectations(found: Connectivity) -> list[Row]:
    """What was expected of MNIST-1D, what was found, and whether it holds."""
    at = {(barrier.arm, barrier.step): barrier for barrier in found.barriers}

    def row(claim: str, value: float, holds: bool) -> Row:
        return {"claim": claim, "found": value, "holds": holds}

    def mean(arm: str, step: int) -> float:
        return at[arm, step].mean

    rows = [row("dense at step 0: above 4 pp", mean("dense", 0), mean("dense", 0) > 4)]
    rows += [row(f"{arm} at step 400: below 1.5 pp", mean(arm, 400), mean(arm, 400) < 1.5) for arm in ARMS[:2]]
    for step in (0, 100):
        gap = at["ticket", step].to_dense
        if gap is not None:
            rows.append(row(f"ticket less dense at step {step}: below 0, pair by pair", gap.mean, gap.mean < 0))
    return rows


def as_row(barrier: Barrier) -> str:
    """A line of the table."""
    gap, interval = barrier.to_dense, barrier.interval
    cells = [
        barrier.arm,
        f"{barrier.step}",
        f"**{barrier.mean:.2f}**",
        "" if interval is None else f"{max(0.0, interval[0]):.2f} to {interval[1]:.2f}",
        f"{barrier.pairs}",
        "" if gap is None else f"{gap.mean:+.2f}" + ("" if gap.std is None else f" ± {gap.std:.2f}"),
        f"{barrier.loss:.3f}",
        f"{barrier.end:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def page_of(name: str, run: Run, found: Connectivity) -> list[str]:
    """The part of the page about one search."""
    summary = run.summary
    dense = float(run.levels[0]["test_accuracy"])
    return [
        f"## {summary['model']} on {summary['data']}",
        "",
        f"{found.headline[0].upper()}{found.headline[1:]}.",
        "",
        f"The search, `{name}`, kept {100 * summary['density']:.3g} % of {summary['weights']:,} weights in "
        f"{len(run.levels) - 1} levels rewound to step 0; test accuracy {dense:.1f} % dense, "
        f"{float(summary['test_accuracy']):.1f} % at the last level.",
        "",
        "| arm | step k | barrier (pp) | 95 % interval | pairs | less dense, by pair | barrier of the loss | error of "
        "children (%) |",
        "|---|---|---|---|---|---|---|---|",
        *map(as_row, found.barriers),
        "",
    ]


def make_page(parts: dict[str, tuple[Run, Connectivity]], claims: list[Row], facts: Row, picture: Path | None) -> str:
    """The page of results."""
    lines = ["# From which step on is training stable to the noise of SGD?", ""]
    lines += [*(__doc__ or "").partition("Question: ")[1:][1].strip().splitlines(), ""]
    lines += ["```bash", "python benchmarks/connectivity.py --json results/connectivity.json \\"]
    lines += ["    --page results/connectivity.md --picture results/connectivity.png", "```", ""]
    for name, (run, found) in parts.items():
        lines += page_of(name, run, found)
        if name == "mnist1d" and picture is not None:
            lines += [f"![Barrier over the step that children share, and the error between them]({picture.name})", ""]
    if claims:
        lines += ["## Expected beforehand, of MNIST-1D", "", "| expected | found (pp) | holds |", "|---|---|---|"]
        lines += [f"| {each['claim']} | {each['found']:.2f} | {'yes' if each['holds'] else 'no'} |" for each in claims]
        lines += [""]
    lines += [
        f"Python {facts['python']}, torch {facts['torch']}, {facts['cpu']}, one thread. Errors are those of the test "
        "split; children begin with fresh moments of the optimizer, and the two data orders of a pair are the same in "
        "every arm and at every step.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(SEARCHES))
    parser.add_argument("--runs", type=Path, default=Path("runs/connectivity"))
    parser.add_argument("--steps", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    if unknown := [name for name in options.parts if name not in SEARCHES]:
        parser.error(f"unknown parts {', '.join(unknown)}; there are {', '.join(SEARCHES)}")
    parts = {name: ask(name, options) for name in options.parts}
    facts, whole = machine(), not (options.steps or options.epochs)
    claims = expectations(parts["mnist1d"][1]) if "mnist1d" in parts and whole else []
    console = Console()
    for name, (_, found) in parts.items():
        console.print(f"{name}: {found.headline}", markup=False, highlight=False, soft_wrap=True)
    for claim in claims:
        told = f"{'holds' if claim['holds'] else 'does not hold'}: {claim['claim']} ({claim['found']:.2f})"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
    if options.json:
        answers = {
            name: {**found.to_dict(), "levels": list(run.levels), "cost": run.summary["cost"]}
            for name, (run, found) in parts.items()
        }
        written = {"benchmark": "connectivity", **facts, "expectations": claims, "parts": answers}
        options.json.write_text(json.dumps(written, indent=2) + "\n")
    if options.picture:
        shutil.copyfile(next(iter(parts.values()))[1].picture, options.picture)
    if options.page:
        options.page.write_text(make_page(parts, claims, facts, options.picture))


if __name__ == "__main__":
    main()
