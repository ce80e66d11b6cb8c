"""From which step on is training stable to the noise of SGD, densely and under the mask of a ticket?

    python benchmarks/connectivity.py --json results/connectivity.json --page results/connectivity.md \\
        --picture results/connectivity.png                          # about half an hour on two idle cores
    python benchmarks/connectivity.py --runs runs/connectivity      # what is done there is not done again
    python benchmarks/connectivity.py --parts mnist1d --pairs 1

Question: does what Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020, found of large
networks hold for small ones that anyone can train? That the dense network becomes stable at some step k, and that the
ticket which is rewound to k is so no later.

Method: for each k iterative magnitude pruning finds a ticket that is rewound to k, and `ticket connect` measures the
barrier between children of W_k, of the whole network and under the masks. `mnist1d` is the recipe `mnist1d-imp` (7 % of
the weights), with three pairs of children of the dense network and the ticket and one of the controls; `lenet` is
LeNet-300-100 on Fashion-MNIST (9 % of the weights, two epochs a training), with one pair. A mask belongs to the step
that its search rewound to: what becomes of the mask of step 0 over later weights is measured too (`mask of step 0`).
The expectations were written down before the trainings: of the dense network on MNIST-1D a barrier above 4 pp at step 0
and below 1.5 pp at step 400; the ticket's below the dense one's at steps 0 and 100, and below 1.5 pp at 400. They were
put to the mask of step 0 first, of which those about the ticket at steps 100 and 400 do not hold; only then each step
got a search of its own, as in the paper. Every training has one thread.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from load import machine
from rich.console import Console

from ticket_search import Run, connect, resume, search
from ticket_search.contract.recipes import find_recipe
from ticket_search.questions.barrier_plot import draw_barriers
from ticket_search.questions.barriers import Barrier, PairRow, headline, summarize

Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A search, the steps that it is rewound to and asked about, and how many pairs of each arm there are."""

    search: Row
    steps: tuple[int, ...]
    pairs: dict[str, int]


PARTS = {
    "mnist1d": Part(
        {key: value for key, value in find_recipe("mnist1d-imp").items() if key not in ("about", "rewind")},
        (0, 100, 400),
        {"dense": 3, "ticket": 3, "reinit": 1, "shuffle": 1},
    ),
    "lenet": Part(
        {key: value for key, value in find_recipe("lenet-imp-2018").items() if key not in ("about", "rewind")}
        | {"data": "fashion-mnist", "epochs": 2, "fraction": 0.7, "density": 0.09, "evaluate_every": "1ep"},
        (0, 100, 500),
        {"dense": 1, "ticket": 1},
    ),
}


@dataclass(frozen=True)
class Found:
    """What was found in a part: its searches by step, all rows, and those of the first mask over later weights."""

    runs: dict[int, Run]
    rows: list[PairRow]
    moved: list[PairRow]

    @property
    def barriers(self) -> list[Barrier]:
        """Over pairs."""
        return summarize(self.rows)

    @property
    def headline(self) -> str:
        """The finding in a sentence."""
        return headline(self.barriers, next(iter(self.runs.values())).metric)


def ask(name: str, options: argparse.Namespace) -> Found:
    """The searches of a part and what is known of them; what is missing is made."""
    part = PARTS[name]
    steps = tuple(options.steps or part.steps)
    runs = {step: find_run(name, step, options) for step in steps}
    rows, moved, first = list[PairRow](), list[PairRow](), runs[steps[0]]
    for arm, most in part.pairs.items():
        pairs = min(most, options.pairs or most)
        for step, run in runs.items():
            # The dense network is the same in all searches.
            asked = first if arm == "dense" else run
            rows += rows_of(asked, arm, step, pairs)
            if arm == "ticket" and run is not first:
                moved += rows_of(first, arm, step, pairs)
    return Found(runs, rows, moved)


def rows_of(run: Run, arm: str, step: int, pairs: int) -> list[PairRow]:
    """The rows of an arm at a step."""
    found = connect(run, [step], pairs=pairs, arms=[arm]).rows
    return [row for row in found if (row.arm, row.step) == (arm, step) and row.pair < pairs]


def find_run(name: str, step: int, options: argparse.Namespace) -> Run:
    """The search that rewinds to a step, made if it is not there."""
    folder = options.runs / (f"{name}-rewind-{step}" if step else name)
    if folder.exists():
        return resume(folder)
    flags = PARTS[name].search | ({"epochs": options.epochs} if options.epochs else {})
    return search(**flags, rewind=f"{step}it" if step else "0", runs=options.runs, name=folder.name, threads=1)


def expectations(found: Found) -> list[Row]:
    """What was expected of MNIST-1D, what was found, and whether it holds."""
    at = {(barrier.arm, barrier.step): barrier for barrier in found.barriers}
    claims = [("dense at step 0: above 4 pp", at["dense", 0].mean, at["dense", 0].mean > 4)]
    for arm in ("dense", "ticket"):
        claims.append((f"{arm} at step 400: below 1.5 pp", at[arm, 400].mean, at[arm, 400].mean < 1.5))
    for step in (0, 100):
        gap = at["ticket", step].to_dense
        assert gap is not None, "both arms have the same pairs"
        claims.append((f"ticket less dense at step {step}, pair by pair: below 0", gap.mean, gap.mean < 0))
    return [{"claim": claim, "found": value, "holds": holds} for claim, value, holds in claims]


def as_line(barrier: Barrier, name: str = "") -> str:
    """A line of the table."""
    gap, interval = barrier.to_dense, barrier.interval
    between = "" if gap is None or gap.interval is None else f" [{gap.interval[0]:+.1f}, {gap.interval[1]:+.1f}]"
    cells = [
        name or barrier.arm,
        f"{barrier.step}",
        f"**{barrier.mean:.2f}**",
        "" if interval is None else f"{max(0.0, interval[0]):.1f} to {interval[1]:.1f}",
        f"{barrier.pairs}",
        "" if gap is None else f"{gap.mean:+.2f}{between}",
        f"{barrier.loss:.3f}",
        f"{barrier.end:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def page_of(found: Found, picture: Path | None) -> list[str]:
    """The part of the page about one part."""
    first = next(iter(found.runs.values()))
    summary, said = first.summary, found.headline
    tickets = ", ".join(f"{float(run.summary['test_accuracy']):.1f} ({step})" for step, run in found.runs.items())
    dense = [row for row in found.rows if row.arm == "dense"]
    moved = [barrier for barrier in summarize([*dense, *found.moved]) if barrier.arm == "ticket"]
    drawn = "Barrier over the step that is shared, and the error between children"
    return [
        f"## {summary['model']} on {summary['data']}",
        "",
        f"{said[0].upper()}{said[1:]}.",
        "",
        *([] if picture is None else [f"![{drawn}]({picture.name})", ""]),
        "| arm | step k | barrier (pp) | 95 % interval | pairs | less dense, by pair | barrier of the loss | error of "
        "children (%) |",
        "|---|---|---|---|---|---|---|---|",
        *map(as_line, found.barriers),
        *(as_line(barrier, "mask of step 0") for barrier in moved),
        "",
        f"Test accuracy of the searches: {float(first.levels[0]['test_accuracy']):.1f} % dense; their tickets of "
        f"{100 * summary['density']:.3g} % of {summary['weights']:,} weights, by the step rewound to: {tickets}.",
        "",
    ]


def make_page(parts: dict[str, Found], claims: list[Row], facts: Row, picture: Path | None) -> str:
    """The page of results."""
    assert __doc__ is not None
    lines = ["# From which step on is training stable to the noise of SGD?", ""]
    lines += [*("Question: " + __doc__.partition("Question: ")[2]).strip().splitlines(), ""]
    lines += ["```bash", "python benchmarks/connectivity.py --json results/connectivity.json \\"]
    lines += ["    --page results/connectivity.md --picture results/connectivity.png", "```", ""]
    for place, found in enumerate(parts.values()):
        lines += page_of(found, None if place else picture)
    if claims:
        lines += ["## Expected beforehand, of MNIST-1D", "", "| expected | found (pp) | holds |", "|---|---|---|"]
        lines += [f"| {each['claim']} | {each['found']:.2f} | {'yes' if each['holds'] else 'no'} |" for each in claims]
        few = "Three pairs are few: where the interval of a paired difference in the table holds 0, its sign is all"
        lines += ["", f"{few} that was found. The controls have one pair.", ""]
    lines += [
        f"Python {facts['python']}, torch {facts['torch']}, {facts['cpu']}, one thread. Errors are those of the test "
        "split. Children begin with fresh moments of the optimizer, and the two data orders of a pair are the same in "
        "every arm and at every step.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--runs", type=Path, default=Path("runs/connectivity"))
    parser.add_argument("--steps", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"unknown parts {', '.join(unknown)}; there are {', '.join(PARTS)}")
    parts = {name: ask(name, options) for name in options.parts}
    facts, whole = machine(), not (options.steps or options.epochs)
    claims = expectations(parts["mnist1d"]) if "mnist1d" in parts and whole else []
    console = Console()
    for name, found in parts.items():
        console.print(f"{name}: {found.headline}", markup=False, highlight=False, soft_wrap=True)
    for claim in claims:
        told = f"{'holds' if claim['holds'] else 'does not hold'}: {claim['claim']} ({claim['found']:.2f})"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
    if options.json:
        answers = {
            name: {
                "headline": found.headline,
                "barriers": [asdict(barrier) for barrier in found.barriers],
                "rows": [row.model_dump() for row in found.rows],
                "mask_of_step_0": [row.model_dump() for row in found.moved],
                "levels": {step: list(run.levels) for step, run in found.runs.items()},
            }
            for name, found in parts.items()
        }
        written = {"benchmark": "connectivity", **facts, "expectations": claims, "parts": answers}
        options.json.write_text(json.dumps(written, indent=2) + "\n")
    if options.picture:
        name, found = next(iter(parts.items()))
        metric = next(iter(found.runs.values())).metric
        options.picture.write_bytes(draw_barriers(found.barriers, found.rows, metric, name))
    if options.page:
        options.page.write_text(make_page(parts, claims, facts, options.picture))


if __name__ == "__main__":
    main()
