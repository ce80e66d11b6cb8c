"""Is the verdict right? Experiments whose truth is planted, judged by `compare` as anybody's are.

    python benchmarks/verdict.py --json results/verdict.json --page results/verdict.md  # a quarter of an hour
    python benchmarks/verdict.py --bank 40 --experiments 20

Question: how often is something called a ticket that is none, and how often is a true one found with the seeds that the
verdict asks for?

Method: a bank of real trainings on digits (LeNet-300-100, `ticket sweep`): dense networks, and networks under random
masks of 5 %. An experiment draws seeds from it, none twice, for the dense network and for what poses as a ticket:
`equal`, other dense networks, whose true difference is 0; `0.4 pp worse`, `0.5 pp worse` and `1 pp worse`, the same
with so many of their right answers made wrong, each by chance; `levels, 0.4 pp worse`, four levels of one search, each
of such networks, of which those behind the first that is not yes are no only where they are plainly worse (Holm);
`random mask`, networks under random masks, beside controls that are no different from them. It begins with five
seeds. Where the verdict is undecided it gets the seeds that were asked for, added to those it has, and is judged again;
that second answer counts. `leaking mask`: a network whose dropped weights were set behind the back of `hold`, and a run
whose summary says more than its ticket does: both must be refused.

A false yes is a yes where the truth is worse than the margin, or no better than a control; a false no is a no where it
is not worse than the margin, of several levels at any of them. The 95 % intervals are those of Clopper and Pearson.
Must: at most 5 % of false yes and of false no for each truth, at least 80 % of yes for what is equal.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from load import machine
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import binomtest

import supermask
from supermask.weights.fitting import state_of
from ticket_search import RequestError, compare
from ticket_search.analysis.findings import Group, Level
from ticket_search.contract.text_files import read_json
from ticket_search.models.lenet import lenet_300_100
from ticket_search.sweeps.file import read_sweep
from ticket_search.sweeps.sweep import run_sweep

MUST_FALSE, MUST_POWER = 0.05, 0.8
# What truths take off the accuracy of a dense network, in percentage points.
WORSE = {"equal": 0.0, "0.4 pp worse": 0.4, "0.5 pp worse": 0.5, "1 pp worse": 1.0}
LEVELS, LEVELS_WORSE, DENSITIES = "levels, 0.4 pp worse", 0.4, (0.5, 0.2, 0.1, 0.05)
# By how much the verdict lets a ticket be worse.
MARGIN = 0.5
TEST_SIZE = 360
SWEEP = """
seeds = "0-{last}"
[base]
data = "digits"
epochs = {epochs}
batch_size = 60
evaluate_every = "{epochs}ep"
[base.random]
density = 0.05
optimizer = "adam"
lr = 1.2e-3
[grid]
method = ["dense", "random"]
"""


def make_bank(runs: Path, size: int, epochs: int, jobs: int) -> dict[str, np.ndarray]:
    """Test accuracies of dense networks and of networks under random masks, in percent."""
    runs.mkdir(parents=True, exist_ok=True)
    file = runs / "bank.toml"
    file.write_text(SWEEP.format(last=size - 1, epochs=epochs))
    result = run_sweep(read_sweep(file), runs, jobs=jobs)
    if result.failures or result.interrupted:
        raise SystemExit(f"the bank is not whole: {result.failures or 'interrupted, the same command goes on'}")
    found: dict[str, list[float]] = {"dense": [], "random": []}
    for folder in result.finished:
        summary = read_json(folder / "summary.json")
        found[summary["method"]].append(summary["test_accuracy"])
    return {method: np.array(values) for method, values in found.items()}


def experiment(truth: str, bank: dict[str, np.ndarray], stream: np.random.Generator) -> dict[str, Any]:
    """One experiment: the first answer, the seeds asked for, and the last answers to all questions."""
    dense = stream.permutation(bank["dense"])
    posing: dict[str, np.ndarray] = {}
    if truth == "random mask":
        masked = stream.permutation(bank["random"])
        third = len(masked) // 3
        dense, tickets = dense[: len(dense) // 2], [masked[:third]]
        posing = {"shuffle": masked[third : 2 * third], "random": masked[2 * third :]}
    else:
        # As many seeds for the dense network as for each level.
        number = len(DENSITIES) if truth == LEVELS else 1
        part = len(dense) // (number + 1)
        parts = [dense[part * place : part * (place + 1)] for place in range(1, number + 1)]
        dense, tickets = dense[:part], [spoil(one, WORSE.get(truth, LEVELS_WORSE), stream) for one in parts]
    most = min(len(dense), *map(len, tickets))
    seeds = 5
    first, asked = judge(dense, tickets, posing, seeds), 0
    last = first
    if answer_of(first) == "undecided":
        asked = next(row.matching.more_seeds or 0 for row in first.levels if answer_at(row) == "undecided")
        last = judge(dense, tickets, posing, min(seeds + asked, most)) if asked else first
    return {"first": answer_of(first), "asked": asked, "last": last, "enough": seeds + asked <= most}


def spoil(accuracies: np.ndarray, worse: float, stream: np.random.Generator) -> np.ndarray:
    """Accuracies of networks that are so much worse, in percentage points, because right answers were made wrong."""
    right = np.round(accuracies * TEST_SIZE / 100).astype(int)
    wrong = stream.binomial(right, min(1.0, worse / accuracies.mean()))
    return 100 * (right - wrong) / TEST_SIZE


def answer_at(row: Level) -> str:
    """The answer at a level; empty for the dense network."""
    return row.matching.answer if row.matching is not None else ""


def answer_of(group: Group) -> str:
    """The answer of a group: no where any level is no, yes where all are yes, else undecided."""
    answers = {answer for row in group.levels if (answer := answer_at(row))}
    return "no" if "no" in answers else "yes" if answers == {"yes"} else "undecided"


def judge(
    dense: Sequence[float], tickets: Sequence[Sequence[float]], posing: dict[str, np.ndarray], seeds: int
) -> Group:
    """What `compare` finds over a number of seeds: a dense network and tickets, of which the last are the sparsest."""
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        at = {"method": "posing", "seed": seed}
        rows.append({**at, "density": 1.0, "test_accuracy": float(dense[seed])})
        for density, ticket in zip(DENSITIES[-len(tickets) :], tickets, strict=True):
            rows.append({**at, "density": density, "test_accuracy": float(ticket[seed])})
        for control, values in posing.items():
            rows.append({**at, "density": 0.05, "control": control, "test_accuracy": float(values[seed])})
    (group,) = compare([], others=rows).groups
    return group


def leak(number: int, folder: Path) -> list[bool]:
    """Whether a network that leaks, and a run that says more than it has, are refused."""
    torch.manual_seed(number)
    model = lenet_300_100((1, 8, 8), 10)
    supermask.hold(model, supermask.prune(model, 0.05))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    try:
        supermask.check(model)
        held = False
    except ValueError:
        held = True
    masks = supermask.masks_of(model)
    tickets = supermask.Ticket(masks, {"final": supermask.make_state(state_of(model), masks)}, {})
    folder.mkdir(parents=True)
    supermask.save(tickets, folder / "ticket.safetensors")
    (folder / "config.toml").write_text('method = "random"\nmodel = "lenet-300-100"\ndata = "digits"\ndensity = 0.05\n')
    summary = {
        "name": folder.name,
        "method": "random",
        "weights": masks.size,
        "test_accuracy": 97.0,
        "density": 0.01,
        "kept": masks.kept // 5,
        "seconds": 1.0,
        "cost": {"dense_trainings": 1},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    try:
        compare([folder])
        return [held, False]
    except RequestError as error:
        return [held, "refused" in str(error)]


def describe(truth: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares of the answers over all experiments of a truth."""
    number = len(found)
    last = Counter(answer_of(one["last"]) for one in found)
    row: dict[str, Any] = {
        "truth": truth,
        "first": dict(Counter(one["first"] for one in found)),
        "last": dict(last),
        "seeds_asked": float(np.median([one["asked"] for one in found if one["asked"]] or [0])),
        "not_enough_in_the_bank": sum(not one["enough"] for one in found),
    }
    worse = WORSE.get(truth, LEVELS_WORSE if truth == LEVELS else np.inf)
    key = "false_yes" if worse >= MARGIN else "power"
    holds = []
    if truth != LEVELS:
        row[key] = last["yes"] / number
        row["interval"] = list(binomtest(last["yes"], number).proportion_ci())
        # Close to the margin no number of seeds finds most of what is true.
        holds.append(row[key] <= MUST_FALSE if worse >= MARGIN else worse > 0 or row[key] >= MUST_POWER)
    if worse <= MARGIN:
        row["false_no"] = last["no"] / number
        row["interval_of_no"] = list(binomtest(last["no"], number).proportion_ci())
        holds.append(row["false_no"] <= MUST_FALSE)
    return {**row, "holds": all(holds)}


def run(options: argparse.Namespace, runs: Path) -> dict[str, Any]:
    bank = make_bank(runs, options.bank, options.epochs, options.jobs)
    stream = np.random.default_rng(options.seed)
    rows = []
    for truth in (*WORSE, LEVELS, "random mask"):
        found = [
            experiment(truth, bank, stream)
            for _ in track(range(options.experiments), truth, console=Console(stderr=True), transient=True)
        ]
        rows.append(describe(truth, found))
        if truth == "random mask":
            better = sum(one["last"].verdict.positions.answer == "yes" for one in found)
            share = better / len(found)
            interval = list(binomtest(better, len(found)).proportion_ci())
            rows.append({"truth": "random mask: better than its shuffle", "false_yes": share, "interval": interval,
                         "last": dict(Counter(one["last"].verdict.positions.answer for one in found)), "first": {},
                         "seeds_asked": 0.0, "holds": share <= MUST_FALSE})  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        leaks = [leak(number, Path(folder, str(number))) for number in range(20)]
    refused = sum(map(all, leaks))
    rows.append({"truth": "leaking mask", "first": {}, "last": {"refused": refused}, "seeds_asked": 0.0,
                 "holds": refused == len(leaks)})  # fmt: skip
    means = {method: [float(values.mean()), float(values.std(ddof=1))] for method, values in bank.items()}
    about = {"bank": options.bank, "experiments": options.experiments, "epochs": options.epochs, "accuracies": means}
    return {"machine": machine(), **about, "rows": rows}


COLUMNS = (
    "truth", "five seeds", "more seeds (median)", "with them",
    "false yes, or yes where it matches (95 % interval)", "false no (95 % interval)", "holds",
)  # fmt: skip


def cells_of(row: dict[str, Any]) -> list[str]:
    """A truth as the cells of a table."""

    def share(value: float | None, interval: str) -> str:
        return "" if value is None else f"{value:.1%} ({row[interval][0]:.1%} to {row[interval][1]:.1%})"

    words = [", ".join(f"{key} {value}" for key, value in sorted(row[part].items())) for part in ("first", "last")]
    said = share(row.get("false_yes", row.get("power")), "interval")
    said_no = share(row.get("false_no"), "interval_of_no")
    return [
        row["truth"], words[0], f"{row['seeds_asked']:.0f}", words[1], said, said_no, "yes" if row["holds"] else "no",
    ]  # fmt: skip


def show(found: dict[str, Any]) -> None:
    table = Table(title=f"{found['experiments']} experiments a truth", box=SIMPLE)
    for column in COLUMNS:
        table.add_column(column)
    for row in found["rows"]:
        table.add_row(*cells_of(row))
    Console(width=180).print(table)


def write_table(found: dict[str, Any], page: Path) -> None:
    """Put the results in place of the table that a page has, and of the number of experiments."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| truth |"))
    end = next(number for number, line in enumerate([*lines, ""]) if number > start and not line.startswith("|"))
    table = [COLUMNS, ["---"] * len(COLUMNS), *map(cells_of, found["rows"])]
    lines[start:end] = [f"| {' | '.join(cells)} |" for cells in table]
    text = re.sub(
        r"\d+ experiments for each truth", f"{found['experiments']} experiments for each truth", "\n".join(lines)
    )
    page.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=int, default=400, help="trainings of each kind")
    parser.add_argument("--experiments", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0, help="of the experiments")
    parser.add_argument("--runs", type=Path, help="keep the bank in this folder, and go on with what is there")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="a page, as results/verdict.md, whose table is written anew")
    options = parser.parse_args()
    if options.bank < 25:
        parser.error(f"--bank {options.bank}: expected 25 or more, five seeds of a dense network and of four levels")
    with tempfile.TemporaryDirectory() as folder:
        found = run(options, options.runs or Path(folder))
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if options.page:
        write_table(found, options.page)


if __name__ == "__main__":
    main()
