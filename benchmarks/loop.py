"""What our training loop costs beside a bare one, and what `ticket search` costs beside its training.

    python benchmarks/loop.py                       # all rows; some five minutes
    python benchmarks/loop.py --rows lenet --quick
    python benchmarks/loop.py --device cuda --json out.json

Question: an epoch of `ticket search`, with its validation, its logs and its saved state, takes how much longer than one
of a loop that does nothing but train? And the shortest search of all, how much longer than its training? The bounds are
in ROWS: what it must be, and what we would like.

Method: Fashion-MNIST, where it is found, else random pixels of its shape. The bare loop is written out below: a
permutation, batches gathered from one tensor as `x[rows]`, forward, cross-entropy, backward, a step of fused SGD; no
evaluation, no log, nothing saved. Ours is a whole `ticket search --method dense` of as many epochs into a folder of its
own, the time taken from the first step's start to the last one's end: validation after each epoch, scalars for
TensorBoard and metrics.jsonl, the state saved. Both train the same network with the same size of batches and take
turns; a median is over 3 turns, and the best of 5 medians counts. `conv4-bf16` lays our epoch in bf16, channels last,
beside the bare one in fp32, over 6,400 images. `start-up` is `ticket search` without arguments in a process of its own,
all that is not training, beside `import torch` in another; files are cached by the system after the first, which is not
counted.

The load of the machine is measured first: on a busy machine there is a table and no verdict. A row in bf16 means
nothing on a processor that only emulates it: there it is left out, and said.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from load import best_of, describe_device, judge_bounds, machine, measure_load
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from ticket_search import search
from ticket_search.contract.errors import RequestError
from ticket_search.data.dataset import Data, from_arrays
from ticket_search.data.sources import read_samples
from ticket_search.models.conv import conv4
from ticket_search.models.lenet import lenet_300_100
from ticket_search.runs.experiment import bf16_is_native
from ticket_search.training import conclude

MODELS: dict[str, Callable[..., nn.Module]] = {"lenet-300-100": lenet_300_100, "conv4": conv4}
BATCH = 128
RATE, MOMENTUM = 0.05, 0.9


@dataclass(frozen=True)
class Kind:
    """A network and how we train it; `must` and `goal` bound the ratio of our time to the bare loop's in fp32."""

    model: str
    must: float
    goal: float
    samples: int | None = None
    bf16: bool = False
    epochs: int = 2


ROWS: dict[str, Kind | None] = {
    "lenet": Kind("lenet-300-100", 1.08, 1.02),
    "conv4-bf16": Kind("conv4", 0.45, 0.30, samples=6400, bf16=True, epochs=1),
    "start-up": None,
}
START_UP = (2.0, 1.5)
Row = dict[str, Any]


def load_data() -> Data:
    """Fashion-MNIST, or random pixels of its shape and splits where it cannot be had."""
    try:
        found = read_samples("fashion-mnist", None, 0)
        assert isinstance(found, Data)
        return found
    except RequestError:
        stream = np.random.default_rng(0)
        pixels = stream.integers(0, 256, (70_000, 1, 28, 28), np.uint8)
        classes = stream.integers(0, 10, 70_000)
        parts = {"train": (pixels[:60_000], classes[:60_000]), "test": (pixels[60_000:], classes[60_000:])}
        return from_arrays(parts, 0)


def bare_loop(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    """Training, and nothing else."""
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM, fused=True)
    for _ in range(epochs):
        order = torch.randperm(len(y), device=x.device)
        for batch in range(len(y) // BATCH):
            rows = order[batch * BATCH : (batch + 1) * BATCH]
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    if x.is_cuda:
        torch.cuda.synchronize()


class Ours:
    """Whole searches, each in a folder of its own, and the seconds that their training took."""

    def __init__(self, kind: Kind, data: Data, device: str, folder: Path) -> None:
        self.kind, self.data, self.device, self.folder = kind, data, device, folder

    def seconds(self) -> float:
        began, spent = time.perf_counter, [0.0]
        original = conclude.train_network

        def timed(*args: Any, **flags: Any) -> conclude.Trained:
            start = began()
            trained = original(*args, **flags)
            spent[0] += began() - start
            return trained

        conclude.train_network = timed
        try:
            search(
                "dense", self.kind.model, self.data, runs=self.folder, progress=False, epochs=self.kind.epochs,
                batch_size=BATCH, optimizer="sgd", lr=RATE, momentum=MOMENTUM, device=self.device,
                threads=torch.get_num_threads(), precision="bf16" if self.kind.bf16 else "fp32",
            )  # fmt: skip
        finally:
            conclude.train_network = original
        return spent[0]


def measure_loop(kind: Kind, data: Data, device: str, quick: bool) -> Row:
    """Seconds an epoch of both."""
    if kind.samples:
        data = replace(data, train_x=data.train_x[: kind.samples], train_y=data.train_y[: kind.samples])
    data = data.to(device)
    torch.manual_seed(0)
    model = MODELS[kind.model](data.input_shape, data.classes).to(device)
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(kind, data, device, Path(folder))

        def bare() -> float:
            began = time.perf_counter()
            bare_loop(model, data.train_x, data.train_y, kind.epochs)
            return time.perf_counter() - began

        best = best_of({"bare": bare, "ours": ours.seconds}, quick)
    images = len(data.train_y) // BATCH * BATCH * kind.epochs
    return {
        "bare_seconds": best["bare"] / kind.epochs,
        "ours_seconds": best["ours"] / kind.epochs,
        "images_per_second": images / best["ours"],
        "ratio": best["ours"] / best["bare"],
    }


def measure_start_up(quick: bool) -> Row:
    """Seconds of `import torch`, and of `ticket search` less its training."""
    with tempfile.TemporaryDirectory() as folder:
        best = best_of({"bare": import_torch, "ours": lambda: search_by_default(Path(folder))}, quick)
    bare, ours = best["bare"], best["ours"]
    return {"bare_seconds": bare, "ours_seconds": ours, "ratio": ours / bare}


def import_torch() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - began


def search_by_default(folder: Path) -> float:
    """`ticket search`, in a folder of its own; what its log says that training took is taken off."""
    runs = tempfile.mkdtemp(dir=folder)
    began = time.perf_counter()
    command = [sys.executable, "-m", "ticket_search", "search", "--runs", runs]
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - began
    (log,) = Path(runs).glob("*/metrics.jsonl")
    config = tomllib.loads((log.parent / "config.toml").read_text())
    steps = 0
    for line in log.read_text().splitlines():
        row = json.loads(line)
        if speed := row.get("speed/samples-per-second"):
            seconds -= (row["step"] - steps) * config["batch_size"] / speed
            steps = row["step"]
    return seconds


def measure_all(names: list[str], options: argparse.Namespace, data: Data) -> Iterator[Row]:
    for name in names:
        kind = ROWS[name]
        if kind is None:
            yield {"row": name, "must": START_UP[0], "goal": START_UP[1], **measure_start_up(options.quick)}
        else:
            found = measure_loop(kind, data, options.device, options.quick)
            yield {"row": name, "must": kind.must, "goal": kind.goal, **found}


def tabulate(rows: list[Row], title: str) -> Table:
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    for column in ("row", "bare", "ours", "ratio", "must", "goal"):
        table.add_column(column, justify="left" if column == "row" else "right", no_wrap=True)
    for row in rows:
        numbers = [f"{row[f'{what}_seconds']:.3f}" for what in ("bare", "ours")]
        table.add_row(row["row"], *numbers, *(f"{row[key]:.3f}" for key in ("ratio", "must", "goal")))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="names, with commas between")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="of torch; as many as it takes by itself if not given")
    parser.add_argument("--quick", action="store_true", help="everything once")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    asked = options.rows.split(",")
    if unknown := [name for name in asked if name not in ROWS]:
        raise SystemExit(f"unknown rows {', '.join(unknown)}; there are {', '.join(ROWS)}")
    native = bf16_is_native(options.device)
    left_out = [name for name in asked if (kind := ROWS[name]) and kind.bf16 and not native]
    names = [name for name in asked if name not in left_out]
    load, data = measure_load(), load_data()
    bar = track(
        measure_all(names, options, data), "loops", len(names), console=Console(stderr=True), refresh_per_second=0.5
    )
    rows = list(bar)
    facts = {**machine(), **describe_device(options.device), "data": data.name}
    verdict = None if load.busy else judge_bounds(rows)
    console = Console()
    console.print(tabulate(rows, f"seconds, {data.name}: {facts['device']}, threads {facts['threads']}"))
    if left_out:
        console.print(f"left out: {', '.join(left_out)}; this processor has no bf16 arithmetic")
    console.print(f"[yellow]no verdict: the machine is busy[/yellow] ({load})" if load.busy else verdict)
    if options.json:
        result = {"benchmark": "loop", **facts, "load": load.as_dict(), "verdict": verdict, "left_out": left_out}
        options.json.write_text(json.dumps({**result, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
