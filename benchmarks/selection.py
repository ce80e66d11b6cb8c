"""What exact selection costs: `supermask.selection.top_k.top_k` beside `numpy.partition` alone.

    python benchmarks/selection.py                                # 1e4 to 1e8 keys, one thread; some three minutes
    python benchmarks/selection.py --threads 2 --json out.json
    python benchmarks/selection.py --sizes 1e4,1e5 --quick

Question: is the whole mask (exactly k True, ties by position) ready before `numpy.partition(keys, n - k)` has only put
the threshold in its place? It shall be, at every size and density, and cost at most 4 ns a weight.

Method: float32 keys, the absolute values of normal numbers and uniform numbers, seeded; up to 16 arrays where they are
small, so that no branch predictor learns one by heart. The rivals take turns in every round, each with all arrays; a
median is over 5 rounds (3 from 1e7 keys on), and the best of 5 medians counts. For context, up to 1e7 keys, one median
of 3 rounds over 3 arrays: `torch.topk`, `torch.kthvalue` and a full `torch.sort`. Masks are checked before they are
timed. NumPy uses one thread, torch those of `--threads`. The machine's load is measured first: on a busy machine there
is a table and no verdict.

What `numpy.partition` costs depends on the processor's instructions: where AVX-512 stores compressed vectors slowly
(AMD Zen 4), it is several times faster with AVX2. To compare with that as well:

    NPY_DISABLE_CPU_FEATURES="AVX512_ICL X86_V4" python benchmarks/selection.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from load import interleaved, machine, measure_load
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from supermask.selection.top_k import count_kept, top_k

SIZES = "1e4,1e5,1e6,1e7,1e8"
DENSITIES = (0.5, 0.1, 0.01)
KEYS: dict[str, Callable[[np.random.Generator, int], NDArray[np.float32]]] = {
    "normal": lambda stream, size: np.abs(stream.standard_normal(size, dtype=np.float32)),
    "uniform": lambda stream, size: stream.random(size, dtype=np.float32),
}
CONTEXT_UP_TO = 10**7
LARGE = 10**7
MOST_NS = 4.0

Row = dict[str, Any]


def measure(keys: list[Tensor], density: float, quick: bool) -> Row:
    """Nanoseconds a weight of every rival, for arrays of one size."""
    size = keys[0].numel()
    k = count_kept(density, size)
    arrays = [key.numpy() for key in keys]
    for key in keys[:2]:
        check(key, k)
    rivals: dict[str, Callable[[int], object]] = {
        "ours": lambda i: top_k(keys[i], k),
        "partition": lambda i: np.partition(arrays[i], size - k),
    }
    context: dict[str, Callable[[int], object]] = {
        "topk": lambda i: keys[i].topk(k),
        "kthvalue": lambda i: keys[i].kthvalue(size - k + 1),
        "sort": lambda i: keys[i].sort(),
    }
    rounds = 1 if quick else 3 if size >= LARGE else 5
    times = interleaved(rivals, len(keys), rounds, 1 if quick else 5)
    if size <= CONTEXT_UP_TO:
        times |= interleaved(context, min(3, len(keys)), 1 if quick else 3, 1)
    ns = {f"{name}_ns": times[name] / size * 1e9 if name in times else None for name in (*rivals, *context)}
    return {**ns, "ratio": times["ours"] / times["partition"]}


def check(keys: Tensor, k: int) -> None:
    """A mask of exactly k keys, none of them below one that was left out."""
    mask = top_k(keys, k)
    assert int(mask.sum()) == k
    assert keys[mask].min() >= keys[~mask].max()


def measure_all(sizes: list[int], quick: bool) -> Iterator[Row]:
    """A row for every size, kind of keys and density."""
    for size in sizes:
        inputs = max(1, min(16, 400_000 // size))
        for kind, draw in KEYS.items():
            keys = [torch.from_numpy(draw(np.random.default_rng(seed), size)) for seed in range(inputs)]
            for density in DENSITIES:
                yield {"size": size, "density": density, "keys": kind, **measure(keys, density, quick)}


def judge(rows: list[Row]) -> str:
    """One sentence about all rows."""
    slower = [row for row in rows if row["ratio"] > 1]
    dear = [row for row in rows if row["ours_ns"] > MOST_NS]
    worst = max(row["ratio"] for row in rows)
    return (
        f"top_k is slower than numpy.partition alone in {len(slower)} of {len(rows)} rows (largest ratio {worst:.2f}) "
        f"and costs more than {MOST_NS:g} ns a weight in {len(dear)}"
    )


def tabulate(rows: list[Row], title: str) -> Table:
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    for column in ("keys", "of", "density", "top_k", "partition", "ratio", "topk", "kthvalue", "sort"):
        table.add_column(column, justify="left" if column == "of" else "right", no_wrap=True, min_width=len(column))
    for row in rows:
        times = [row[f"{name}_ns"] for name in ("topk", "kthvalue", "sort")]
        table.add_row(
            f"{row['size']:.0e}",
            str(row["keys"]),
            f"{row['density']:g}",
            f"{row['ours_ns']:.2f}",
            f"{row['partition_ns']:.2f}",
            f"{row['ratio']:.2f}",
            *("" if time is None else f"{time:.1f}" for time in times),
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=SIZES, help="numbers of keys, with commas between")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--quick", action="store_true", help="every rival once")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load = measure_load()
    sizes = [int(float(size)) for size in options.sizes.split(",")]
    total = len(sizes) * len(KEYS) * len(DENSITIES)
    bar = track(
        measure_all(sizes, options.quick), "selection", total, console=Console(stderr=True), refresh_per_second=0.5
    )
    rows = list(bar)
    facts = machine()
    verdict = None if load.busy else judge(rows)
    console = Console()
    console.print(tabulate(rows, f"ns a weight: {facts['cpu']}, NumPy {facts['numpy']}, threads {facts['threads']}"))
    console.print(f"[yellow]no verdict: the machine is busy[/yellow] ({load})" if load.busy else verdict)
    if options.json:
        result = {"benchmark": "selection", **facts, "load": load.as_dict(), "verdict": verdict, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
