"""Is the verdict right? Experiments whose truth is planted, judged by `compare` as anybody's are.

    python benchmarks/verdict.py --json results/verdict.json         # some ten minutes on two cores
    python benchmarks/verdict.py --bank 40 --experiments 20

Question: how often is something called a ticket that is none, and how often is a true one found with the seeds that the
verdict asks for?

Method: a bank of real trainings on digits (LeNet-300-100, `ticket sweep`): dense networks, and networks under random
masks of 5 %. An experiment draws seeds from it, none twice, for the dense network and for what poses as a ticket:
`equal`, other dense networks, whose true difference is 0; `0.5 pp worse` and `1 pp worse`, the same with so many of
their right answers made wrong, each by chance; `random mask`, networks under random masks, beside controls that are no
different from them. It begins with five seeds. Where the verdict is undecided it gets the seeds that were asked for,
added to those it has, and is judged again; that second answer counts. `leaking mask`: a network whose dropped weights
were set behind the back of `hold`, and a run whose summary says more than its ticket does: both must be refused.

A false yes is a yes where the truth is worse than the margin, or no better than a control; its 95 % interval is that of
Clopper and Pearson. Must: at most 5 % of false yes for each truth, at least 80 % of yes for what is equal.
"""

from __future__ import annotations

import argparse
import json
import os
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
from ticket_search.analysis.findings import Verdict
from ticket_search.contract.flags import read_json
from ticket_search.models.lenet import lenet_300_100
from ticket_search.sweeps.file import read_sweep
from ticket_search.sweeps.sweep import run_sweep

MUST_FALSE, MUST_POWER = 0.05, 0.8
# What truths take off the accuracy of a dense network, in percentage points.
WORSE = {"equal": 0.0, "0.5 pp worse": 0.5, "1 pp worse": 1.0}
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
    half = len(dense) // 2
    dense, ticket = dense[:half], dense[half:]
    posing: dict[str, np.ndarray] = {}
    if truth == "random mask":
        masked = stream.permutation(bank["random"])
        third = len(masked) // 3
        ticket, posing = masked[:third], {"shuffle": masked[third : 2 * third], "random": masked[2 * third :]}
    else:
        right = np.round(ticket * TEST_SIZE / 100).astype(int)
        wrong = stream.binomial(right, min(1.0, WORSE[truth] / ticket.mean()))
        ticket = 100 * (right - wrong) / TEST_SIZE
    seeds = 5
    first, asked = judge(dense, ticket, posing, seeds), 0
    last = first
    if first.matching.answer == "undecided":
        asked = first.matching.more_seeds
        last = judge(dense, ticket, posing, min(seeds + asked, len(dense), len(ticket)))
    enough = seeds + asked <= min(len(dense), len(ticket))
    return {"first": first.matching.answer, "asked": asked, "last": last, "enough": enough}


def judge(dense: Sequence[float], ticket: Sequence[float], posing: dict[str, np.ndarray], seeds: int) -> Verdict:
    """The verdict of `compare` over a number of seeds."""
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        at = {"method": "posing", "seed": seed}
        rows.append({**at, "density": 1.0, "test_accuracy": float(dense[seed])})
        rows.append({**at, "density": 0.05, "test_accuracy": float(ticket[seed])})
        for control, values in posing.items():
            rows.append({**at, "density": 0.05, "control": control, "test_accuracy": float(values[seed])})
    verdict = compare([], others=rows).groups[0].verdict
    assert verdict is not None and verdict.matching is not None
    return verdict


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


def describe(truth: str, found: Sequence[dict[str, Any]], worse: bool) -> dict[str, Any]:
    """Shares of the answers over all experiments of a truth."""
    number = len(found)
    last = Counter(one["last"].matching.answer for one in found)
    row: dict[str, Any] = {
        "truth": truth,
        "first": dict(Counter(one["first"] for one in found)),
        "last": dict(last),
        "seeds_asked": float(np.median([one["asked"] for one in found if one["asked"]] or [0])),
        "not_enough_in_the_bank": sum(not one["enough"] for one in found),
    }
    if worse:
        row["false_yes"] = last["yes"] / number
        row["interval"] = list(binomtest(last["yes"], number).proportion_ci())
        row["holds"] = row["false_yes"] <= MUST_FALSE
    else:
        row["power"] = last["yes"] / number
        row["interval"] = list(binomtest(last["yes"], number).proportion_ci())
        row["holds"] = row["power"] >= MUST_POWER
    return row


def run(options: argparse.Namespace, runs: Path) -> dict[str, Any]:
    bank = make_bank(runs, options.bank, options.epochs, options.jobs)
    stream = np.random.default_rng(options.seed)
    rows = []
    for truth in (*WORSE, "random mask"):
        found = [
            experiment(truth, bank, stream)
            for _ in track(range(options.experiments), truth, console=Console(stderr=True), transient=True)
        ]
        rows.append(describe(truth, found, worse=truth != "equal"))
        if truth == "random mask":
            better = sum(one["last"].positions.answer == "yes" for one in found)
            share = better / len(found)
            interval = list(binomtest(better, len(found)).proportion_ci())
            rows.append({"truth": "random mask: better than its shuffle", "false_yes": share, "interval": interval,
                         "last": dict(Counter(one["last"].positions.answer for one in found)), "first": {},
                         "seeds_asked": 0.0, "holds": share <= MUST_FALSE})  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        leaks = [leak(number, Path(folder, str(number))) for number in range(20)]
    refused = sum(map(all, leaks))
    rows.append({"truth": "leaking mask", "first": {}, "last": {"refused": refused}, "seeds_asked": 0.0,
                 "holds": refused == len(leaks)})  # fmt: skip
    means = {method: [float(values.mean()), float(values.std(ddof=1))] for method, values in bank.items()}
    about = {"bank": options.bank, "experiments": options.experiments, "epochs": options.epochs, "accuracies": means}
    return {"machine": machine(), **about, "rows": rows}


def show(found: dict[str, Any]) -> None:
    table = Table(title=f"{found['experiments']} experiments a truth", box=SIMPLE)
    for column in ("truth", "5 seeds", "more seeds (median)", "with them", "false yes, or yes where equal", "holds"):
        table.add_column(column)
    for row in found["rows"]:
        share = row.get("false_yes", row.get("power"))
        text = "" if share is None else f"{share:.1%} ({row['interval'][0]:.1%} to {row['interval'][1]:.1%})"
        words = [" ".join(f"{key} {value}" for key, value in sorted(row[part].items())) for part in ("first", "last")]
        table.add_row(
            row["truth"], words[0], f"{row['seeds_asked']:.0f}", words[1], text, "yes" if row["holds"] else "no"
        )
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=int, default=400, help="trainings of each kind")
    parser.add_argument("--experiments", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0, help="of the experiments")
    parser.add_argument("--runs", type=Path, help="keep the bank in this folder, and go on with what is there")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.bank < 15:
        parser.error(f"--bank {options.bank}: expected 15 or more, five seeds of each of three kinds")
    with tempfile.TemporaryDirectory() as folder:
        found = run(options, options.runs or Path(folder))
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
