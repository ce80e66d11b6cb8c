"""Hundreds of searches in one process: does its memory grow, or the number of its threads or of its open files?

    python benchmarks/leaks.py --searches 300 --json results/leaks.json --plot results/leaks.png

As a notebook does that searches again and again. Slopes are of straight lines through the second half, where what is
loaded when it is first used is loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

METHODS = ("edge-popup", "imp", "one-shot", "gradual", "rigl", "gates")
FLAGS: dict[str, Any] = {"epochs": 2, "train_size": 320, "threads": 1, "progress": False}
OF_METHOD: dict[str, dict[str, Any]] = {"imp": {"density": 0.5, "fraction": 0.5}}


def used() -> dict[str, float]:
    """Megabytes of memory, threads and open files of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "memory": int(status["VmRSS"].split()[0]) / 1000,
        "threads": int(status["Threads"]),
        "files": len(os.listdir("/proc/self/fd")),
    }


def measure(searches: int) -> dict[str, list[float]]:
    """What is in use after each of so many searches."""
    from ticket_search import search

    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(searches):
            method = METHODS[number % len(METHODS)]
            run = search(method, seed=number, runs=folder, **{**FLAGS, **OF_METHOD.get(method, {})})
            assert run.ticket.masks.kept > 0 and run.metrics
            for name, value in used().items():
                found.setdefault(name, []).append(value)
    return found


def slope(values: list[float]) -> float:
    """How much a number grows per hundred searches, over the second half."""
    half = values[len(values) // 2 :]
    return round(float(100 * np.polyfit(np.arange(len(half)), half, 1)[0]), 6) + 0.0


def draw(found: dict[str, list[float]], path: str) -> None:
    import matplotlib.pyplot as plt

    names = {"memory": "memory (MB)", "threads": "threads", "files": "open files"}
    figure, panels = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    for panel, (name, title) in zip(panels, names.items(), strict=True):
        panel.plot(range(1, len(found[name]) + 1), found[name], linewidth=1.2)
        panel.set_ylim(0, 1.25 * max(found[name]))
        panel.set_title(f"{title}: {slope(found[name]):+.2f} per 100 searches", fontsize=9)
        panel.set_xlabel("searches in one process")
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=300)
    parser.add_argument("--json", default="", help="write the numbers to this file")
    parser.add_argument("--plot", default="", help="draw them to this file")
    given = parser.parse_args()
    began = time.monotonic()
    found = measure(given.searches)
    slopes = {name: slope(values) for name, values in found.items()}
    for name, value in slopes.items():
        print(f"{name:8} {found[name][0]:8.0f} -> {found[name][-1]:8.0f}  {value:+.2f} per 100 searches")
    print(f"{given.searches} searches in {time.monotonic() - began:.0f} s")
    if given.json:
        Path(given.json).write_text(json.dumps({"searches": given.searches, "slopes": slopes, "used": found}) + "\n")
    if given.plot:
        draw(found, given.plot)


if __name__ == "__main__":
    main()
