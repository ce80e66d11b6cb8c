"""How is the lottery ticket hypothesis related to ReLU? Five activations at equal densities, each with two gains.

    python benchmarks/activations.py --json results/activations.json --page results/activations.md \\
        --picture results/activations.png
    python benchmarks/activations.py --data digits --train-size 600 --epochs 1 --seeds 0     # to look at how it works

LeNet-300-100 with ReLU, leaky ReLU, GELU, tanh and no activation at all: iterative magnitude pruning to 20 % and 5 % of
the weights, with fresh weights under the last mask (`reinit`), and edge-popup at 20 %. Each activation has its own init
gain, and in a second arm that of ReLU, but for leaky ReLU, whose gain is that of ReLU to four digits: otherwise scales
would be compared. Runs that are there already are read, not repeated. The predictions were written before the study was
run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from predictions import Prediction, as_table

import supermask
import ticket_search
from supermask import Activity, Masks
from supermask.weights.fitting import set_state
from ticket_search import Run
from ticket_search.analysis.dot_plot import Dot, plot_dots
from ticket_search.analysis.intervals import Difference, confidence_interval, difference
from ticket_search.training.evaluation import BATCH, read_data_of

# So many batches of the validation split are looked at: 2,048 inputs.
_BATCHES = 16
ACTIVATIONS = ("relu", "leaky-relu", "gelu", "tanh", "identity")
LEVELS = (0.2, 0.05)
# The columns of the tables: what a run is measured by.
IMP, TICKET, REINIT, POPUP = "imp 20 %", "imp 5 %", "reinit 5 %", "edge-popup 20 %"

HEAD = """\
# Tickets and ReLU

Question: how is the lottery ticket hypothesis related to training a network with ReLU activation functions?

```
python benchmarks/activations.py --json results/activations.json --page results/activations.md \\
    --picture results/activations.png
```"""

PREDICTIONS = (
    Prediction("relu - identity, imp 5 %", "+", "without an activation the network is a linear classifier"),
    Prediction("relu - tanh, imp 5 %", "=", "magnitude pruning asks nothing of the activation"),
    Prediction("relu - gelu, imp 5 %", "=", "GELU is nearly ReLU"),
    Prediction("relu - leaky-relu, imp 5 %", "=", "a slope of 0.01 is nearly none", 0.5),
    Prediction("relu: ticket - reinit", "+", "the hypothesis, of networks of ReLUs"),
    Prediction("tanh: ticket - reinit", "+", "the hypothesis is not one of ReLUs"),
    Prediction("gelu: ticket - reinit", "+", "the same"),
    Prediction("identity: ticket - reinit", "=", "a linear classifier trains from anywhere"),
    Prediction("relu - tanh: ticket - reinit", "=", "the advantage of the ticket is about as large"),
    Prediction("relu - identity, edge-popup 20 %", "+", "masks over random weights need something that is not linear"),
    Prediction("relu - tanh, edge-popup 20 %", "=", "tanh at its own gain is as good a random network"),
    Prediction("tanh: own gain - gain of relu, imp 5 %", "=", "Adam makes up for the scale"),
    Prediction("tanh: own gain - gain of relu, edge-popup 20 %", "=", "5/3 and 1.41 are near each other"),
    Prediction("relu: in effect / kept, ticket - dense", "-", "training to few weights leaves fewer units active"),
    Prediction("relu - gelu: in effect / kept, ticket", "-", "GELU is 0 nowhere", 0.05),
    Prediction("relu: never active, ticket - dense", "+", "units lose their inputs"),
)


def arms() -> list[tuple[str, str]]:
    """Activations with the gain that they start with: their own, and that of ReLU."""
    own = [(name, name) for name in ACTIVATIONS]
    return own + [(name, "relu") for name in ACTIVATIONS if name not in ("relu", "leaky-relu")]


def find(method: str, activation: str, gain: str, seed: int, options: argparse.Namespace) -> Run:
    """The run of a method, and nothing of it done twice."""
    name = f"{method}-{activation}-gain-{gain}-s{seed}"
    if (options.runs / name).exists():
        return ticket_search.resume(name, runs=options.runs, progress=False)
    flags: dict[str, Any] = {"epochs": options.epochs, "seed": seed, "threads": options.threads, "init_gain": gain}
    flags |= {"train_size": options.train_size, "activation": activation, "evaluate_every": f"{options.epochs}ep"}
    if method == "imp":
        flags |= {"optimizer": "adam", "lr": 1.2e-3, "levels": LEVELS, "density": LEVELS[-1]}
    else:
        flags |= {"density": LEVELS[0], "scaled": True, "lr": 0.1}
    return ticket_search.search(method, data=options.data, runs=options.runs, name=name, progress=False, **flags)


def measure(run: Run) -> dict[str, Any]:
    """What ReLU units, and what kept weights, do in a ticket and in the network that stands beside it."""
    ticket = run.ticket
    samples = read_data_of(ticket, run.config.data)
    inputs = [x for x, _ in itertools.islice(samples.batches("validation", BATCH), _BATCHES)]
    if run.levels:
        dense = run.load_level(0)
        network, masks = dense.model(), dense.masks
    else:
        network = ticket.model()
        set_state(network, ticket.states["final"].tensors({}))
        masks = Masks({name: mask | True for name, mask in ticket.masks.items()})
    return {
        "ticket": plain(supermask.activity(ticket.model(), inputs, ticket.masks)),
        "dense": plain(supermask.activity(network, inputs, masks)),
    }


def plain(found: Activity) -> dict[str, Any]:
    return {
        key: getattr(found, key)
        for key in ("units", "never", "always", "emptied", "never_and_emptied", "active", "density", "in_effect")
    }


def rows_of(activation: str, gain: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What is measured of one activation with one gain at one seed."""
    imp, popup = (find(method, activation, gain, seed, options) for method in ("imp", "edge-popup"))
    beside = {row["control"]: row for row in ticket_search.controls(imp.path, ["reinit"], progress=False)}
    levels = [row["test_accuracy"] for row in imp.levels]
    return {
        "activation": activation,
        "gain": gain,
        "seed": seed,
        "dense": levels[0],
        IMP: levels[1],
        TICKET: levels[2],
        REINIT: beside["reinit"]["test_accuracy"],
        POPUP: popup.summary["test_accuracy"],
        "of imp": measure(imp),
        "of edge-popup": measure(popup),
    }


def differences_of(rows: list[dict[str, Any]]) -> dict[str, Difference | None]:
    """The differences that the predictions are about, paired by seed."""

    def of(key: str, activation: str, gain: str = "") -> dict[int, float]:
        chosen = [row for row in rows if (row["activation"], row["gain"]) == (activation, gain or activation)]
        return {row["seed"]: row[key] for row in chosen}

    def gap(one: str, other: str, activation: str) -> dict[int, float]:
        others = of(other, activation)
        return {seed: value - others[seed] for seed, value in of(one, activation).items()}

    def part(activation: str, which: str) -> dict[int, float]:
        found = {seed: each[which] for seed, each in of("of imp", activation).items()}
        return {seed: each["in_effect"] / each["density"] for seed, each in found.items()}

    def never(which: str) -> dict[int, float]:
        return {seed: each[which]["never"] for seed, each in of("of imp", "relu").items()}

    found = {f"relu - {name}, {TICKET}": difference(of(TICKET, "relu"), of(TICKET, name)) for name in ACTIVATIONS[1:]}
    for name in ACTIVATIONS:
        found[f"{name}: ticket - reinit"] = difference(of(TICKET, name), of(REINIT, name))
        found[f"relu - {name}, {POPUP}"] = difference(of(POPUP, "relu"), of(POPUP, name))
        for key in (TICKET, POPUP):
            title = f"{name}: own gain - gain of relu, {key}"
            found[title] = difference(of(key, name), of(key, name, "relu"))
    found["relu - tanh: ticket - reinit"] = difference(gap(TICKET, REINIT, "relu"), gap(TICKET, REINIT, "tanh"))
    found["relu: in effect / kept, ticket - dense"] = difference(part("relu", "ticket"), part("relu", "dense"))
    found["relu - gelu: in effect / kept, ticket"] = difference(part("relu", "ticket"), part("gelu", "ticket"))
    found["relu: never active, ticket - dense"] = difference(never("ticket"), never("dense"))
    return found


def mean(values: list[float], form: str = ".2f") -> str:
    spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{spread}"


def as_page(rows: list[dict[str, Any]]) -> str:
    """The numbers as a page, without what is said of them."""
    columns = ("dense", IMP, TICKET, REINIT, POPUP)
    accuracy = [f"| activation | gain | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 2)]
    use = [
        "| activation | gain | of the kept weights in effect: imp 5 % | dense | edge-popup 20 % | its network | "
        "units never active: imp 5 % | dense | of them emptied | always: imp 5 % | dense |",
        "|" + "---|" * 11,
    ]
    for activation, gain in arms():
        here = [row for row in rows if (row["activation"], row["gain"]) == (activation, gain)]
        if not here:
            continue
        accuracy.append(
            f"| {activation} | {gain} | {' | '.join(mean([row[key] for row in here]) for key in columns)} |"
        )
        shares = [
            mean([row[of][which]["in_effect"] / row[of][which]["density"] for row in here], ".3f")
            for of in ("of imp", "of edge-popup")
            for which in ("ticket", "dense")
        ]
        counts = [
            mean([row["of imp"][which][key] for row in here], ".0f") if activation == "relu" else ""
            for which, key in (
                ("ticket", "never"), ("dense", "never"), ("ticket", "never_and_emptied"), ("ticket", "always"),
                ("dense", "always"),
            )
        ]  # fmt: skip
        use.append(f"| {activation} | {gain} | {' | '.join(shares)} | {' | '.join(counts)} |")
    return "\n\n".join([
        HEAD, "Test accuracy (%), mean ± standard deviation over the seeds:", "\n".join(accuracy),
        "![Accuracy by activation, with 95 % intervals](activations.png)",
        "What takes part on an average validation input, as a share of what is kept, and units of 400:",
        "\n".join(use), as_table(PREDICTIONS, differences_of(rows), "points, shares or units"),
    ]) + "\n"  # fmt: skip


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Means with their intervals: a panel for each column of the table."""
    panels = {}
    for key in ("dense", TICKET, REINIT, POPUP):
        dots = []
        for activation, gain in arms():
            values = [row[key] for row in rows if (row["activation"], row["gain"]) == (activation, gain)]
            family = "its own gain" if activation == gain else "the gain of ReLU"
            if values:
                interval = confidence_interval(values)
                dots.append(Dot(activation, statistics.fmean(values), interval, family))
        panels[key] = dots
    plot_dots(panels, path, "test accuracy (%)", overwrite=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--train-size", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", default="0,1,2", help="with commas between")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of all runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="where the tables go; what is said of them is written by hand")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    rows = []
    for seed in map(int, options.seeds.split(",")):
        for activation, gain in arms():
            rows.append(rows_of(activation, gain, seed, options))
            print(f"{activation}, gain of {gain}, seed {seed}: {rows[-1][TICKET]:.2f} %", flush=True)
    page = as_page(rows)
    print(page)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    if options.page:
        options.page.write_text(page)
    if options.picture:
        draw(rows, options.picture)


if __name__ == "__main__":
    main()
